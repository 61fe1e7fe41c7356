"""ResNets of tf-models-official: TF2 object checkpoints, whose layers are numbered instead of named.

layer_with_weights-0 and -1 are the stem's convolution and norm, every further one is a block with _conv1.._conv3,
_norm1.._norm3 and, in the first block of a stage, _shortcut and _norm0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rethink_tf.errors import UserError, in_one_line
from rethink_tf.storage import checkpoint_index, files
from rethink_tf.storage.checkpoint_index import VALUE
from rethink_tf.weights import settings_files
from rethink_tf.weights.contents import DETECTRON2_MEAN, TORCH_STD, Contents, Lazy, architecture_of, check_names

EPSILONS = ('1e-5 (experiment resnet_imagenet), 1e-4 (maskrcnn_resnetfpn_coco, fasterrcnn_resnetfpn_coco) or 1e-3 '
            '(retinanet_resnetfpn_coco, seg_*, and models without an experiment)')
_NORM = {'gamma': 'weight', 'beta': 'bias', 'moving_mean': 'running_mean', 'moving_variance': 'running_var'}
_LAYERS = {'_conv1': 'conv1', '_conv2': 'conv2', '_conv3': 'conv3', '_shortcut': 'shortcut',
           '_norm1': 'conv1', '_norm2': 'conv2', '_norm3': 'conv3', '_norm0': 'shortcut'}

Reader = Any  # of tf.train.load_checkpoint, whose type has no public name
Shape = tuple[int, ...]


def open_checkpoint(prefix: str, path: str) -> tuple[Reader, dict[str, Shape]]:
  """Return a reader of a TensorFlow checkpoint and {name of a variable: shape}.

  Raises:
    UserError: it cannot be read.
  """
  files.refuse_patterns(prefix)
  try:
    problem = checkpoint_index.problem(prefix)
    if problem:
      raise ValueError(problem)
    reader = tf.train.load_checkpoint(prefix)
    shapes = reader.get_variable_to_shape_map()
  except (tf.errors.OpError, OSError, ValueError, RuntimeError) as error:
    raise UserError(f'{path}: not a complete TensorFlow checkpoint ({in_one_line(error, 200)}): copy its .index and '
                    '.data files again') from error
  check_names(shapes, path)
  return reader, {name.removesuffix(VALUE): tuple(shape) for name, shape in shapes.items() if name.endswith(VALUE)}


def tensor(reader: Reader, name: str, shape: Shape, path: str, axes: Sequence[int] | None = None) -> Lazy:
  """Return a variable of a checkpoint, with its axes permuted; it is read, and its checksum compared, on demand."""
  def read_value() -> np.ndarray:
    try:
      value = reader.get_tensor(name + VALUE)
    except (tf.errors.OpError, RuntimeError, ValueError, IndexError) as error:  # IndexError: fewer bytes than listed
      raise UserError(f'{path}: {name} cannot be read (checksum or length): copy the checkpoint again') from error
    return value if axes is None else value.transpose(axes)
  return Lazy(shape if axes is None else [shape[axis] for axis in axes], read_value)


def read(prefix: str, path: str) -> Contents:
  """Return the ResNet backbone of a classifier's or a detector's checkpoint.

  Raises:
    UserError: damaged, or another network.
  """
  reader, shapes = open_checkpoint(prefix, path)
  root = _root(shapes, path)
  arrays, ignored, stage, block = {}, [], 1, 0
  layers = _layers(shapes, root)
  for number in sorted(layers):
    if number > 1:
      stage, block = (stage + 1, 0) if '_shortcut/kernel' in layers[number] else (stage, block + 1)
    for variable in layers[number]:
      full = f'{root}layer_with_weights-{number}/{variable}'
      name, axes = canonical(number, variable, stage, block)
      if name is None:
        raise UserError(f'{path}: {full} does not belong to a ResNet of bottleneck blocks: ResNet-D stems, '
                        'squeeze-and-excitation (ResNet-RS) and basic blocks are not supported')
      arrays[name] = tensor(reader, full, shapes[full], path, axes if len(shapes[full]) == 4 else None)
  ignored = [name for name in shapes if not name.startswith(root)]
  epsilon, notes = _epsilon(path)
  notes += ("mean and standard deviation are tf-models-official's defaults",)
  return Contents(path, 'tf-models-official checkpoint', 'backbone', arrays, norm='bn',
                  architecture=architecture_of(arrays, path), channels='rgb', stride_in_1x1=False,
                  pixel_mean=DETECTRON2_MEAN, pixel_std=TORCH_STD, epsilon=epsilon, padding='same',
                  licence='Apache-2.0 (tf-models-official)', ignored=tuple(ignored), notes=notes)


def _epsilon(path: str) -> tuple[float | None, tuple[str, ...]]:
  """Return the epsilon of the batch norms, which only params.yaml of the experiment contains, and notes."""
  place, settings = settings_files.beside(path, ('params.yaml',))
  epsilon = settings_files.get(settings, 'task.model.norm_activation.norm_epsilon')
  if isinstance(epsilon, float) and 0 < epsilon < 1:
    return epsilon, (f'epsilon of BatchNorm is {epsilon:g} in {place}',)
  return None, (f'epsilon of BatchNorm is not in the file (it is norm_epsilon in params.yaml): {EPSILONS}',)


def likely_epsilon(names: Sequence[str]) -> float:
  """Return the epsilon of the experiment that a checkpoint's other variables suggest."""
  layers = {layer for name in names for layer in name.split('/')}
  if layers & {'rpn_head', 'detection_head', 'mask_head'}:
    return 1e-4
  return 1e-3 if layers & {'decoder', 'head'} else 1e-5


def _root(shapes: Mapping[str, Shape], path: str) -> str:
  """Return the prefix of layer_with_weights-0: the path to the model, or to its backbone if it has one."""
  for name in sorted(shapes):
    match = re.fullmatch(r'(.*?/?)layer_with_weights-0/kernel', name)
    if match and not name.startswith('optimizer/') and len(shapes[name]) == 4 and shapes[name][:2] == (7, 7):
      return match[1]
  raise UserError(f'{path}: no 7x7 convolution layer_with_weights-0, so it is not a ResNet of tf-models-official: '
                  f'{len(shapes)} variables, first {min(shapes, default="none")}')


def _layers(shapes: Iterable[str], root: str) -> dict[int, list[str]]:
  """Return {number of a layer: ['_conv1/kernel', …]} of the backbone."""
  layers = {}
  for name in sorted(shapes):
    match = re.fullmatch(r'layer_with_weights-(\d+)/(.+)', name.removeprefix(root)) if name.startswith(root) else None
    if match and '.OPTIMIZER_SLOT' not in name:
      layers.setdefault(int(match[1]), []).append(match[2])
  return layers


def canonical(number: int, variable: str, stage: int, block: int) -> tuple[str | None, tuple[int, ...] | None]:
  """Return Detectron2's name of a layer's variable and the permutation of its axes; (None, None) if unknown."""
  layer, _, kind = variable.rpartition('/')
  if number == 0 and variable == 'kernel':
    return 'stem.conv1.weight', (3, 2, 0, 1)
  if number == 1 and variable in _NORM:
    return f'stem.conv1.norm.{_NORM[variable]}', None
  if number > 1 and layer in _LAYERS and (kind == 'kernel' or kind in _NORM):
    convolution = f'res{stage}.{block}.{_LAYERS[layer]}'
    return (f'{convolution}.weight', (3, 2, 0, 1)) if kind == 'kernel' else (f'{convolution}.norm.{_NORM[kind]}', None)
  return None, None
