"""ResNets of tf-models-official: TF2 object checkpoints, whose layers have no names but a number.

layer_with_weights-0 and -1 are the stem's convolution and norm, every further one is a block with _conv1.._conv3,
_norm1.._norm3 and, where a stage begins, _shortcut and _norm0.
"""

from __future__ import annotations

import re

import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.storage import checkpoint_index
from rethink_tf.weights.contents import DETECTRON2_MEAN, TORCH_STD, Contents, Lazy, architecture_of, check_names

_VALUE = '/.ATTRIBUTES/VARIABLE_VALUE'
_EPSILON = 1e-3
_NORM = {'gamma': 'weight', 'beta': 'bias', 'moving_mean': 'running_mean', 'moving_variance': 'running_var'}
_PARTS = {'_conv1': 'conv1', '_conv2': 'conv2', '_conv3': 'conv3', '_shortcut': 'shortcut',
          '_norm1': 'conv1', '_norm2': 'conv2', '_norm3': 'conv3', '_norm0': 'shortcut'}


def open_checkpoint(prefix: str, path: str):
  """(reader, {name without the suffix of values: shape}) of a TensorFlow checkpoint.

  Raises:
    UserError: it cannot be read.
  """
  try:
    wrong = checkpoint_index.problem(prefix)
    if wrong:
      raise ValueError(wrong)
    reader = tf.train.load_checkpoint(prefix)
    shapes = reader.get_variable_to_shape_map()
  except (tf.errors.OpError, OSError, ValueError, RuntimeError) as error:
    reason = ' '.join(str(getattr(error, 'message', None) or error).split())[:200]
    raise UserError(f'{path}: not a complete TensorFlow checkpoint ({reason}): copy its .index and .data files '
                    'again') from error
  check_names(shapes, path)
  return reader, {name.removesuffix(_VALUE): tuple(shape) for name, shape in shapes.items() if name.endswith(_VALUE)}


def tensor(reader, name: str, shape, path: str, axes=None) -> Lazy:
  """A variable of a checkpoint, read on demand; TensorFlow compares its checksum then."""
  def read():
    try:
      value = reader.get_tensor(name + _VALUE)
    except (tf.errors.OpError, RuntimeError, ValueError, IndexError) as error:  # IndexError: fewer bytes than listed
      raise UserError(f'{path}: {name} cannot be read (checksum or length): copy the checkpoint again') from error
    return value if axes is None else value.transpose(axes)
  return Lazy(shape if axes is None else [shape[axis] for axis in axes], read)


def read(prefix: str, path: str) -> Contents:
  """Contents of a checkpoint of a classifier or a detector with a ResNet backbone: the backbone, and a classifier.

  Raises:
    UserError: damaged, or its network is none that this reader knows.
  """
  reader, shapes = open_checkpoint(prefix, path)
  root = _root(shapes, path)
  arrays, ignored, stage, block = {}, [], 1, 0
  layers = _layers(shapes, root)
  for number in sorted(layers):
    parts = layers[number]
    if number > 1:
      stage, block = (stage + 1, 0) if '_shortcut/kernel' in parts else (stage, block + 1)
    for part in parts:
      name, axes = _canonical(number, part, stage, block)
      if name is None:
        raise UserError(f'{path}: {root}layer_with_weights-{number}/{part} has no place in a ResNet of bottleneck '
                        'blocks: ResNet-D stems, squeeze-and-excitation (ResNet-RS) and basic blocks are not read')
      full = f'{root}layer_with_weights-{number}/{part}'
      arrays[name] = tensor(reader, full, shapes[full], path, axes if len(shapes[full]) == 4 else None)
  ignored = [name for name in shapes if not name.startswith(root)]
  notes = ("trained with TensorFlow's padding 'same', which is asymmetric on even sizes: features differ slightly at "
           'the start of fine-tuning', "mean and standard deviation are tf-models-official's defaults")
  return Contents(path, 'tf-models-official checkpoint', 'backbone', arrays, 'bn', architecture_of(arrays, path), 'rgb',
                  False, DETECTRON2_MEAN, TORCH_STD, _EPSILON, 'Apache-2.0 (tf-models-official)', tuple(ignored), notes)


def _root(shapes, path):
  """What stands before layer_with_weights-0: the model, and its backbone if it has one."""
  for name in sorted(shapes):
    match = re.fullmatch(r'(.*?/?)layer_with_weights-0/kernel', name)
    if match and not name.startswith('optimizer/') and len(shapes[name]) == 4 and shapes[name][:2] == (7, 7):
      return match[1]
  raise UserError(f'{path}: no 7x7 convolution layer_with_weights-0, so it is no ResNet of tf-models-official: '
                  f'{len(shapes)} variables, first {min(shapes, default="none")}')


def _layers(shapes, root):
  """{number: ['_conv1/kernel', …]} of the backbone."""
  layers = {}
  for name in sorted(shapes):
    match = re.fullmatch(r'layer_with_weights-(\d+)/(.+)', name.removeprefix(root)) if name.startswith(root) else None
    if match and '.OPTIMIZER_SLOT' not in name:
      layers.setdefault(int(match[1]), []).append(match[2])
  return layers


def _canonical(number, part, stage, block):
  """(Detectron2's name, transposition) of a part of a layer, (None, None) if it belongs to no ResNet."""
  layer, _, kind = part.rpartition('/')
  if number == 0 and part == 'kernel':
    return 'stem.conv1.weight', (3, 2, 0, 1)
  if number == 1 and part in _NORM:
    return f'stem.conv1.norm.{_NORM[part]}', None
  if number > 1 and layer in _PARTS and (kind == 'kernel' or kind in _NORM):
    place = f'res{stage}.{block}.{_PARTS[layer]}'
    return (f'{place}.weight', (3, 2, 0, 1)) if kind == 'kernel' else (f'{place}.norm.{_NORM[kind]}', None)
  return None, None
