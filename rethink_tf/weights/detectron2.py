"""Detectron2 checkpoints (.pkl, .pth) of Mask R-CNN, loaded strictly: the names of file and model must be the same.

Detectron2 is channels-first, has x before y in box deltas and the background as the last class; here channels are
last, y comes first and the background is class 0. Every layout rule below was verified against Detectron2's outputs.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras
from absl import logging

from rethink_tf.errors import UserError
from rethink_tf.weights import detectron2_settings, pickles
from rethink_tf.weights.contents import (
  BACKBONE,
  DETECTRON2_MEAN,
  TORCH_STD,
  Array,
  Contents,
  architecture_of,
  check_arrays,
  norm_of,
)

if TYPE_CHECKING:
  from rethink_tf.models.fpn import FPN
  from rethink_tf.models.heads import BoxHead, BoxPredictor, MaskHead, MaskPredictor, RPNHead
  from rethink_tf.models.keypoints import KeypointHead, KeypointPredictor
  from rethink_tf.models.layers import ConvNorm
  from rethink_tf.models.mask_rcnn import MaskRCNN
  from rethink_tf.models.resnet import ResNet

Convert = Callable[[np.ndarray], np.ndarray]

# Words of `__author__` in files of scripts that rename torchvision's and self-supervised networks.
_CONVERTERS = frozenset('torchvision moco openselfsup mmselfsup solo simsiam byol densecl swav dino barlow vissl '
                        'pixpro mmaction2'.split())

# Constants of a Detectron2 model that some versions store with its weights.
NOT_WEIGHTS = ('*.cell_anchors.*', 'pixel_mean', 'pixel_std', '*.num_batches_tracked')


class Entry(NamedTuple):
  """The variable that an array of a file is assigned to, and the conversion to its layout."""

  variable: tf.Variable
  convert: Convert


def identity(w: np.ndarray) -> np.ndarray:
  return w


def read(path: str) -> dict[str, np.ndarray]:
  """Return the arrays of a checkpoint by Detectron2's names, in its layout.

  Raises:
    UserError: the file cannot be read, could run code, or is not a Detectron2 checkpoint.
  """
  content = pickles.load(path)
  if not isinstance(content, dict) or not isinstance(content.get('model'), dict):
    raise UserError(f"{path}: has no dictionary 'model', so it is not a Detectron2 checkpoint: use the reader of its "
                    'format')
  arrays = content['model']
  try:
    check_arrays(arrays, path)
  except UserError as error:
    raise UserError(f'{error}, at least not a Detectron2 checkpoint') from error
  return arrays


def recognizes(names: Collection[str]) -> bool:
  """Return whether names of arrays are Detectron2's, of a backbone or a detector."""
  return any(f'{prefix}stem.conv1.weight' in names for prefix in ('', 'backbone.', BACKBONE))


def contents(arrays: Mapping[str, Array], path: str, container: str, author: str = '') -> Contents:
  """Return the contents of a checkpoint. Detectron2 keeps strides, channel order and means in its configuration only.

  Raises:
    UserError: not a ResNet.
  """
  constants = tuple(name for name in arrays if _matches(name, NOT_WEIGHTS) or _is_head(name, author))
  weights = {_full(name): array for name, array in arrays.items() if name not in constants}
  detector = any(name.startswith(('proposal_generator.', 'roi_heads.', 'backbone.fpn_')) for name in weights)
  if not detector:
    weights = {name.removeprefix(BACKBONE): array for name, array in weights.items()}
  found = Contents(path, f'Detectron2 {container}', 'detector' if detector else 'backbone', weights, norm=None,
                   architecture=None, licence='CC BY-SA 3.0 for Detectron2\'s model zoo', ignored=constants)
  backbone, notes = found.backbone(), ()
  norm = norm_of(list(backbone))
  if norm == 'gn' and detector:  # without statistics: GN, or BN folded into a fixed affine map
    norm = 'gn' if 'backbone.fpn_lateral2.norm.weight' in weights else 'folded'
  elif norm == 'gn':
    norm, notes = None, ('norms without statistics: GN or folded BN, which the file does not specify',)
  found = found._replace(norm=norm, architecture=architecture_of(backbone, path), notes=notes)
  if detector:
    found = detectron2_settings.read(found)
    if found.settings:
      return found
  if is_converted(author, arrays):
    return found._replace(channels='rgb', stride_in_1x1=False, pixel_mean=DETECTRON2_MEAN, pixel_std=TORCH_STD)
  return _with_pixels(found, arrays)


def _with_pixels(found: Contents, arrays: Mapping[str, Array]) -> Contents:
  """Return the contents with the channel order, mean and deviation of pixels, if the arrays hold them."""
  mean, std = (arrays.get(name) for name in ('pixel_mean', 'pixel_std'))
  if mean is None or std is None or not np.size(mean) == np.size(std) == 3:
    return found
  mean, std = (tuple(np.asarray(values, np.float64).ravel().tolist()) for values in (mean, std))
  if mean[0] < mean[2]:  # red is the brightest on average
    return found._replace(channels='bgr', pixel_mean=mean[::-1], pixel_std=std[::-1])
  return found._replace(channels='rgb', pixel_mean=mean, pixel_std=std) if mean[0] > mean[2] else found


def _is_head(name: str, author: str) -> bool:
  """Return whether a name is of a head of self-supervision, which a converter has put under the stem."""
  if re.fullmatch(r'stem\.fc\.(?:weight|bias)', name):
    return bool(author) and author.lower() != 'torchvision'
  return bool(re.match(r'stem\.(?:fc\.\d|projection|projector|predictor|prototypes|head|queue)', name))


def is_converted(author: str, names: Collection[str]) -> bool:
  """Return whether a script converted a network of torchvision's names, which takes RGB, without its configuration.

  Detectron2's own script and MoCo's name themselves; they and their descendants leave the classifier, or the head of
  self-supervision, under the stem.
  """
  words = set(re.split(r'[^a-z0-9]+', author.lower()))
  return bool(words & _CONVERTERS) or any(name.startswith('stem.fc.') for name in names)


def _full(name: str) -> str:
  """Return the name in a detector of stem.…, backbone.stem.… or backbone.bottom_up.stem.…"""
  if name in ('stem.fc.weight', 'stem.fc.bias'):  # the classifier, by Detectron2's converter of torchvision's files
    return name.replace('stem.fc', 'linear')
  bare = name.removeprefix('backbone.')
  return f'{BACKBONE}{bare}' if bare.startswith(('stem.', 'res2.', 'res3.', 'res4.', 'res5.')) else name


def load(model: MaskRCNN, path: str, *, channels: str, exceptions: Sequence[str] = ()) -> list[str]:
  """Load a checkpoint into a built MaskRCNN; return the names that were loaded.

  channels: 'rgb' or 'bgr', the order the weights were trained on (Detectron2's model zoo: bgr); the model takes RGB.
  exceptions: patterns ('roi_heads.box_predictor.*') of Detectron2 names that are not loaded, in file and model.

  Raises:
    UserError: a name is missing or unexpected, a shape differs, or the file is not a Detectron2 checkpoint. Nothing is
      loaded then.
  """
  if channels not in ('rgb', 'bgr'):
    raise UserError(f"channels = {channels!r}: use 'rgb' or 'bgr', the order the weights were trained on")
  return assign(table(model, channels), read(path), path, exceptions)


def assign(entries: Mapping[str, Entry], arrays: Mapping[str, Array], path: str, exceptions: Sequence[str] = (),
           ignored: Sequence[str] = ()) -> list[str]:
  """Assign arrays, read one by one, to the variables of the same names; return these names.

  exceptions: patterns of names that are not loaded, in file and model. ignored: patterns of further names in the file.

  Raises:
    UserError: names or shapes differ. Nothing is assigned then, and all differences are logged.
  """
  excepted = {name for name in {*entries, *arrays} if _matches(name, exceptions)}
  expected = entries.keys() - excepted
  given = {name for name in arrays.keys() - excepted if not _matches(name, (*NOT_WEIGHTS, *ignored))}
  missing, unexpected, wrong = sorted(expected - given), sorted(given - expected), []
  for name in sorted(expected & given):
    shape, wanted = tuple(arrays[name].shape), tuple(entries[name].variable.shape)
    if converted_shape(entries[name], shape) != wanted:
      wrong.append(f'{name} {shape} for {wanted}')
  if missing or unexpected or wrong:
    for kind, names in (('missing in the file', missing), ('not in the model', unexpected), ('wrong shape', wrong)):
      logging.error('%s: %d %s%s', path, len(names), kind, ''.join(f'\n  {name}' for name in names))
    raise UserError(f'{path}: {shortened(missing)} missing in the file, {shortened(unexpected)} not in the model, '
                    f'{shortened(wrong)} of another shape: build the model of the checkpoint, or name exceptions')
  for name in sorted(expected):
    value = entries[name].convert(np.asarray(arrays[name], np.float32))
    if not np.isfinite(value).all():
      raise UserError(f'{path}: {name} holds non-finite values: use another file')
    entries[name].variable.assign(value)
  logging.info('%s: loaded %d arrays; not loaded: %s', path, len(expected), sorted(excepted) or 'none')
  return sorted(expected)


def converted_shape(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...] | None:
  """Return the shape after conversion; None if an array of this shape cannot be converted."""
  try:
    return entry.convert(np.broadcast_to(np.float32(0), shape)).shape
  except ValueError:
    return None


def is_resnet(backbone: tf_keras.layers.Layer) -> bool:
  return hasattr(backbone, 'stem') and hasattr(backbone, 'stride_in_1x1')


def backbone_table(backbone: ResNet, prefix: str = '', channels: str = 'rgb') -> dict[str, Entry]:
  """Return {Detectron2 name: Entry} of the variables of a built ResNet; prefix: 'backbone.bottom_up.' in a detector."""
  entries = _conv_norm(backbone.stem, f'{prefix}stem.conv1')
  if channels == 'bgr':
    name = f'{prefix}stem.conv1.weight'
    entries[name] = Entry(entries[name].variable, lambda w: kernel(w[:, ::-1]))
  for stage, blocks in enumerate(backbone.stages, 2):
    for i, block in enumerate(blocks):
      for name in ('shortcut', 'conv1', 'conv2', 'conv3'):
        layer = getattr(block, name)
        if layer is not None:
          entries |= _conv_norm(layer, f'{prefix}res{stage}.{i}.{name}')
  return entries


def linear_table(layer: tf_keras.layers.Dense) -> dict[str, Entry]:
  """Return the entries of a classifier's fully connected layer."""
  return _layer(layer, 'linear', np.transpose)


def without_names(model: MaskRCNN) -> tf_keras.layers.Layer | None:
  """Return the backbone or FPN if Detectron2 has no such layer, else None."""
  if not is_resnet(model.backbone):
    return model.backbone
  return None if hasattr(model.fpn, 'laterals') else model.fpn


def table(model: MaskRCNN, channels: str = 'rgb') -> dict[str, Entry]:
  """Return {Detectron2 name: Entry} of every variable of a built MaskRCNN with a ResNet backbone.

  Raises:
    UserError: Detectron2 has no names for the backbone, the FPN or some variables.
  """
  if (layer := without_names(model)) is not None:
    raise UserError(f'{type(layer).__name__} has no names in Detectron2: only weights of a run of this '
                    'package can be loaded into it')
  entries = {
    **backbone_table(model.backbone, BACKBONE, channels),
    **_fpn(model.fpn, 'backbone'),
    **_rpn(model.rpn_head, 'proposal_generator.rpn_head'),
  }
  stages = [('', model.box_head, model.box_predictor)]
  if model.cascade is not None:
    stages = [(f'.{i}', *stage) for i, stage in enumerate(model.cascade.stages(stages[0][1:]))]
  for suffix, head, predictor in stages:
    entries |= _box_head(head, model.box_pooler.size, f'roi_heads.box_head{suffix}')
    entries |= _box_predictor(predictor, f'roi_heads.box_predictor{suffix}')
  if model.mask_head is not None:
    entries |= _mask_head(model.mask_head, model.mask_predictor, 'roi_heads.mask_head')
  if model.keypoint_head is not None:
    entries |= _keypoint_head(model.keypoint_head, model.keypoint_predictor, 'roi_heads.keypoint_head')
  named = {id(entry.variable) for entry in entries.values()}
  unnamed = [variable.name for variable in model.variables if id(variable) not in named]
  if unnamed:
    raise UserError(f'{shortened(unnamed)} of the model have no name in Detectron2: its weights cannot be loaded')
  return entries


def _fpn(fpn: FPN, prefix: str) -> dict[str, Entry]:
  entries = {}
  for i, (lateral, output) in enumerate(zip(fpn.laterals, fpn.outputs, strict=True), 2):
    entries |= _conv_norm(lateral, f'{prefix}.fpn_lateral{i}') | _conv_norm(output, f'{prefix}.fpn_output{i}')
  return entries


def _rpn(head: RPNHead, prefix: str) -> dict[str, Entry]:
  convs = [head.conv, *head.further_convs]
  names = [f'{prefix}.conv'] if len(convs) == 1 else [f'{prefix}.conv.conv{i}' for i in range(len(convs))]
  entries = {}
  for name, conv in zip(names, convs, strict=True):
    entries |= _layer(conv, name, kernel)
  return {
    **entries,
    **_layer(head.objectness, f'{prefix}.objectness_logits', kernel),
    **_layer(head.deltas, f'{prefix}.anchor_deltas', lambda w: kernel(swap_deltas(w)), swap_deltas),
  }


def _box_head(head: BoxHead, size: int, prefix: str) -> dict[str, Entry]:
  entries = {}
  for i, conv in enumerate(head.convs, 1):
    entries |= _conv_norm(conv, f'{prefix}.conv{i}')
  for i, fc in enumerate(head.fcs, 1):
    entries |= _layer(fc, f'{prefix}.fc{i}', (lambda w: flattened(w, size)) if i == 1 else np.transpose)
  return entries


def _box_predictor(predictor: BoxPredictor, prefix: str) -> dict[str, Entry]:
  return {
    **_layer(predictor.classes, f'{prefix}.cls_score', lambda w: background_first(w).T, background_first),
    **_layer(predictor.deltas, f'{prefix}.bbox_pred', lambda w: swap_deltas(w).T, swap_deltas),
  }


def _mask_head(head: MaskHead, predictor: MaskPredictor, prefix: str) -> dict[str, Entry]:
  entries = {}
  for i, conv in enumerate(head.convs, 1):
    entries |= _conv_norm(conv, f'{prefix}.mask_fcn{i}')
  entries |= _layer(head.deconv, f'{prefix}.deconv', kernel)  # (in, out, h, w) -> (h, w, out, in)
  return entries | _layer(predictor.conv, f'{prefix}.predictor', kernel)


def _keypoint_head(head: KeypointHead, predictor: KeypointPredictor, prefix: str) -> dict[str, Entry]:
  entries = {}
  for i, conv in enumerate(head.convs, 1):
    entries |= _conv_norm(conv, f'{prefix}.conv_fcn{i}')
  return entries | _layer(predictor.deconv, f'{prefix}.score_lowres', kernel)


def _conv_norm(layer: ConvNorm, prefix: str) -> dict[str, Entry]:
  """Return the entries of a ConvNorm: those of the convolution, and those of its norm under `.norm`."""
  entries = _layer(layer.conv, prefix, kernel)
  for attribute, name in (('gamma', 'weight'), ('beta', 'bias'), ('moving_mean', 'running_mean'),
                          ('moving_variance', 'running_var')):
    variable = getattr(layer.norm, attribute, None)
    if variable is not None:
      entries[f'{prefix}.norm.{name}'] = Entry(variable, identity)
  return entries


def _layer(layer: tf_keras.layers.Layer, prefix: str, convert_kernel: Convert,
           convert_bias: Convert = identity) -> dict[str, Entry]:
  entries = {f'{prefix}.weight': Entry(layer.kernel, convert_kernel)}
  if layer.bias is not None:
    entries[f'{prefix}.bias'] = Entry(layer.bias, convert_bias)
  return entries


def kernel(w: np.ndarray) -> np.ndarray:
  """Kernel of a convolution: (out, in / groups, h, w) -> (h, w, in / groups, out)."""
  return w.transpose(2, 3, 1, 0)


def flattened(w: np.ndarray, size: int) -> np.ndarray:
  """Fully connected layer after a flattened map: (out, C · size²), flattened as C H W -> (size² · C, out), as H W C."""
  return w.reshape(len(w), -1, size, size).transpose(2, 3, 1, 0).reshape(-1, len(w))


def swap_deltas(w: np.ndarray) -> np.ndarray:
  """First axis: dx dy dw dh of each box -> dy dx dh dw."""
  return w.reshape(-1, 4, *w.shape[1:])[:, [1, 0, 3, 2]].reshape(w.shape)


def background_first(w: np.ndarray) -> np.ndarray:
  """First axis: classes with the background last -> first."""
  return np.roll(w, 1, axis=0)


def _matches(name: str, patterns: Sequence[str]) -> bool:
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def shortened(names: Sequence[str], limit: int = 4) -> str:
  """Return 'none', or the number of names and the first few."""
  if not names:
    return 'none'
  return f"{len(names)} ({', '.join(names[:limit])}{', …' if len(names) > limit else ''})"
