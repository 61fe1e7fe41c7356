"""Detectron2 checkpoints (.pkl) of Mask R-CNN: exact names, nothing left over on either side.

Detectron2 is channels-first, has x before y in box deltas and the background as the last class; here channels are
last, y comes first and the background is class 0. Every layout rule below was compared with its outputs.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.errors import UserError
from rethink_tf.weights import pickles

# Constants of a Detectron2 model that some versions store beside its weights.
NOT_WEIGHTS = ('*.cell_anchors.*', 'pixel_mean', 'pixel_std', '*.num_batches_tracked')


class Entry(NamedTuple):
  """Where a Detectron2 array goes, and how it is laid out there."""

  variable: tf.Variable
  convert: Callable[[np.ndarray], np.ndarray]


def read(path: str) -> dict[str, np.ndarray]:
  """The arrays of a checkpoint by Detectron2's names, as they are stored.

  Raises:
    UserError: the file cannot be read, runs code, or is not Detectron2's.
  """
  content = pickles.load(path)
  if not isinstance(content, dict) or not isinstance(content.get('model'), dict):
    raise UserError(f"{path}: has no dictionary 'model', so it is not a Detectron2 checkpoint: use the reader of its "
                    'format')
  arrays = content['model']
  for name, array in arrays.items():
    if not isinstance(name, str) or not isinstance(array, np.ndarray | np.generic) or array.dtype.kind not in 'fiu':
      raise UserError(f'{path}: {name!r} is not an array of numbers: this is not a Detectron2 checkpoint')
  return arrays


def load(model: Any, path: str, *, channels: str, exceptions: Sequence[str] = ()) -> list[str]:
  """Reads a checkpoint into a built MaskRCNN and returns the names it loaded.

  channels: 'rgb' or 'bgr', what the weights were trained on (Detectron2's model zoo: bgr); the model always takes RGB.
  exceptions: patterns ('roi_heads.box_predictor.*') of Detectron2 names that stay as they are, on both sides.

  Raises:
    UserError: a name is missing or left over, a shape differs, or the file is not a Detectron2 checkpoint. Nothing is
      loaded then.
  """
  if channels not in ('rgb', 'bgr'):
    raise UserError(f"channels = {channels!r}: say 'rgb' or 'bgr', the order the weights were trained on")
  return assign(table(model, channels), read(path), path, exceptions)


def assign(entries: Mapping[str, Entry], arrays: Mapping[str, np.ndarray], path: str,
           exceptions: Sequence[str] = ()) -> list[str]:
  """Puts arrays into variables: all names on both sides, or a UserError that lists what differs and no change."""
  excepted = {name for name in {*entries, *arrays} if _matches(name, exceptions)}
  expected = entries.keys() - excepted
  given = {name for name in arrays.keys() - excepted if not _matches(name, NOT_WEIGHTS)}
  missing, unused = sorted(expected - given), sorted(given - expected)
  values, wrong = {}, []
  for name in sorted(expected & given):
    try:
      values[name] = entries[name].convert(arrays[name].astype(np.float32))
    except ValueError:  # cannot be laid out that way, hence not that layer's shape
      values[name] = arrays[name]
    if values[name].shape != tuple(entries[name].variable.shape):
      wrong.append(f'{name} {arrays[name].shape} for {tuple(entries[name].variable.shape)}')
  if missing or unused or wrong:
    for kind, names in (('missing in the file', missing), ('not in the model', unused), ('wrong shape', wrong)):
      logging.error('%s: %d %s%s', path, len(names), kind, ''.join(f'\n  {name}' for name in names))
    raise UserError(f'{path}: {_some(missing)} missing in the file, {_some(unused)} not in the model, '
                    f'{_some(wrong)} of another shape: build the model of the checkpoint, or name exceptions')
  for name, value in values.items():
    entries[name].variable.assign(value)
  logging.info('%s: loaded %d arrays; left as they are: %s', path, len(values), sorted(excepted) or 'none')
  return list(values)


def table(model: Any, channels: str = 'rgb') -> dict[str, Entry]:
  """{Detectron2 name: Entry} of every variable of a built MaskRCNN."""
  entries = {
    **_backbone(model.backbone, 'backbone.bottom_up', channels),
    **_fpn(model.fpn, 'backbone'),
    **_rpn(model.rpn_head, 'proposal_generator.rpn_head'),
    **_box_head(model.box_head, model.box_pooler.size, 'roi_heads.box_head'),
    **_box_predictor(model.box_predictor, 'roi_heads.box_predictor'),
  }
  if model.mask_head is not None:
    entries |= _mask_head(model.mask_head, model.mask_predictor, 'roi_heads.mask_head')
  named = {id(entry.variable) for entry in entries.values()}
  forgotten = [variable.name for variable in model.variables if id(variable) not in named]
  if forgotten:
    raise UserError(f'{_some(forgotten)} of the model have no name in Detectron2: its weights cannot be loaded into it')
  return entries


def _backbone(backbone, prefix, channels):
  entries = _conv_norm(backbone.stem, f'{prefix}.stem.conv1')
  if channels == 'bgr':
    name = f'{prefix}.stem.conv1.weight'
    entries[name] = Entry(entries[name].variable, lambda w: kernel(w[:, ::-1]))
  for stage, blocks in enumerate(backbone.stages, 2):
    for i, block in enumerate(blocks):
      for part in ('shortcut', 'conv1', 'conv2', 'conv3'):
        layer = getattr(block, part)
        if layer is not None:
          entries |= _conv_norm(layer, f'{prefix}.res{stage}.{i}.{part}')
  return entries


def _fpn(fpn, prefix):
  entries = {}
  for i, (lateral, output) in enumerate(zip(fpn.laterals, fpn.outputs, strict=True), 2):
    entries |= _conv_norm(lateral, f'{prefix}.fpn_lateral{i}') | _conv_norm(output, f'{prefix}.fpn_output{i}')
  return entries


def _rpn(head, prefix):
  return {
    **_layer(head.conv, f'{prefix}.conv', kernel),
    **_layer(head.objectness, f'{prefix}.objectness_logits', kernel),
    **_layer(head.deltas, f'{prefix}.anchor_deltas', lambda w: kernel(swap_deltas(w)), swap_deltas),
  }


def _box_head(head, size, prefix):
  entries = {}
  for i, conv in enumerate(head.convs, 1):
    entries |= _conv_norm(conv, f'{prefix}.conv{i}')
  for i, fc in enumerate(head.fcs, 1):
    entries |= _layer(fc, f'{prefix}.fc{i}', (lambda w: flattened(w, size)) if i == 1 else np.transpose)
  return entries


def _box_predictor(predictor, prefix):
  return {
    **_layer(predictor.classes, f'{prefix}.cls_score', lambda w: background_first(w).T, background_first),
    **_layer(predictor.deltas, f'{prefix}.bbox_pred', lambda w: swap_deltas(w).T, swap_deltas),
  }


def _mask_head(head, predictor, prefix):
  entries = {}
  for i, conv in enumerate(head.convs, 1):
    entries |= _conv_norm(conv, f'{prefix}.mask_fcn{i}')
  entries |= _layer(head.deconv, f'{prefix}.deconv', kernel)  # (in, out, h, w) -> (h, w, out, in) all the same
  return entries | _layer(predictor.conv, f'{prefix}.predictor', kernel)


def _conv_norm(layer, prefix):
  """A ConvNorm: the convolution's own arrays, and those of its norm under `.norm`."""
  entries = _layer(layer.conv, prefix, kernel)
  for attribute, name in (('gamma', 'weight'), ('beta', 'bias'), ('moving_mean', 'running_mean'),
                          ('moving_variance', 'running_var')):
    variable = getattr(layer.norm, attribute, None)
    if variable is not None:
      entries[f'{prefix}.norm.{name}'] = Entry(variable, same)
  return entries


def _layer(layer, prefix, convert_kernel, convert_bias=None):
  entries = {f'{prefix}.weight': Entry(layer.kernel, convert_kernel)}
  if layer.bias is not None:
    entries[f'{prefix}.bias'] = Entry(layer.bias, convert_bias or same)
  return entries


def same(w: np.ndarray) -> np.ndarray:
  return w


def kernel(w: np.ndarray) -> np.ndarray:
  """Convolution (out, in / groups, h, w) -> (h, w, in / groups, out)."""
  return w.transpose(2, 3, 1, 0)


def flattened(w: np.ndarray, size: int) -> np.ndarray:
  """Fully connected (out, C · size²) after a flattened map of C, H, W -> (size² · C, out) after one of H, W, C."""
  return w.reshape(len(w), -1, size, size).transpose(2, 3, 1, 0).reshape(-1, len(w))


def swap_deltas(w: np.ndarray) -> np.ndarray:
  """First axis dx dy dw dh of each box -> dy dx dh dw."""
  return w.reshape(-1, 4, *w.shape[1:])[:, [1, 0, 3, 2]].reshape(w.shape)


def background_first(w: np.ndarray) -> np.ndarray:
  """First axis of classes, background last -> background first."""
  return np.roll(w, 1, axis=0)


def _matches(name, patterns):
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _some(names, limit=4):
  """'none', or how many and the first few."""
  if not names:
    return 'none'
  return f"{len(names)} ({', '.join(names[:limit])}{', …' if len(names) > limit else ''})"
