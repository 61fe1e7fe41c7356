"""Run folders of this package (checkpoints/step-00012000/ with manifest.json and a TensorFlow checkpoint).

Names and layouts are those of the variables: a detector loads by the paths along which TensorFlow tracks them.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError
from rethink_tf.models.resnet import PADDINGS
from rethink_tf.storage import checkpoints, manifests, settings
from rethink_tf.storage.files import open_regular
from rethink_tf.weights import compared
from rethink_tf.weights.contents import EPSILON, OF_RESNET, Array, Contents, Lazy, architecture_of
from rethink_tf.weights.detectron2 import Entry, identity
from rethink_tf.weights.tf_models import open_checkpoint, tensor

_MAX_BYTES = 16 << 20  # of a configuration
_SUFFIXES = {'conv/kernel': 'weight', 'conv/bias': 'bias', 'norm/gamma': 'norm.weight', 'norm/beta': 'norm.bias',
             'norm/moving_mean': 'norm.running_mean', 'norm/moving_variance': 'norm.running_var'}
_NORMS = ('@group_norm', '@addons_group_norm', '@scoped_norm', '@sync_batch_norm', '@frozen_batch_norm', '@no_norm')


def read(path: str) -> Contents:
  """Return the contents of the newest sound checkpoint of a run: of a detector, or of a classifier's pre-training.

  Raises:
    UserError: there is none, or it cannot be read.
  """
  folder = manifests.newest_sound(path)
  if folder is None:
    raise UserError(f'{path}: a folder without a complete checkpoint (checkpoints/step-…/manifest.json): give a run '
                    'folder or a weight file')
  reader, shapes = open_checkpoint(os.path.join(folder, 'weights'), path)
  arrays = {name.removeprefix('detector/'): tensor(reader, name, shape, path) for name, shape in shapes.items()
            if name.startswith('detector/')}
  if not any(name.startswith('backbone/') for name in arrays):
    raise UserError(f'{path}: its checkpoint holds no detector/backbone: give the folder of a detection or a '
                    'pre-training run')
  kind = 'detector' if any(name.startswith(('fpn/', 'rpn_head/', 'box_head/')) for name in arrays) else 'backbone'
  canonical = _canonical(arrays)
  norm = None
  if set(OF_RESNET) <= canonical.keys():  # other backbones, too, have a stem
    norm = 'bn' if 'stem.conv1.norm.running_mean' in canonical else \
      'gn' if 'stem.conv1.norm.weight' in canonical else 'none'
  architecture = architecture_of(canonical, path) if norm is not None else None
  config = _config(path if folder != path else os.path.dirname(os.path.dirname(path.rstrip('/'))))
  part = settings.parse(config).get('ResNet.norm')
  part = part if norm == 'gn' and isinstance(part, str) and re.fullmatch(r'@[\w./]+', part) else None
  if part not in (None, *_NORMS):  # scale and shift alone do not show which norm they follow
    norm = 'own'
  return Contents(
    path, f'run of this package, {os.path.basename(folder.rstrip("/"))}', kind, arrays, norm=norm,
    architecture=architecture, channels='rgb', stride_in_1x1=bound_value(config, 'stride_in_1x1'),
    pixel_mean=bound_value(config, 'pixel_mean'), pixel_std=bound_value(config, 'pixel_std'),
    epsilon=bound_value(config, 'epsilon') or EPSILON, padding=bound_value(config, 'padding') or 'symmetric',
    licence='yours, and that of the weights it started from', own=True,
    settings=_settings(config) if kind == 'detector' else _backbone(config), checkpoint=folder,
    norm_groups=bound_value(config, 'groups'), norm_part=part if norm == 'own' else None,
    imports=_imports(config))


def table(model: tf_keras.layers.Layer) -> dict[str, Entry]:
  """Return {name in a checkpoint: Entry} of every variable below a layer or model."""
  return {name: Entry(variable, identity) for name, variable in checkpoints.variables(model).items()}


def _canonical(arrays: Mapping[str, Array]) -> dict[str, Lazy]:
  """Return a ResNet backbone's arrays by Detectron2's names and shapes, for inspection only."""
  found = {}
  for name, array in arrays.items():
    match = re.fullmatch(r'backbone/(stem|stages/([0-3])/(\d+)/(conv[123]|shortcut))/((?:conv|norm)/\w+)', name)
    if match and match[5] in _SUFFIXES:
      layer = 'stem.conv1' if match[1] == 'stem' else f'res{int(match[2]) + 2}.{match[3]}.{match[4]}'
      shape = array.shape
      if len(shape) == 4:
        shape = shape[3], shape[2], shape[0], shape[1]
      found[f'{layer}.{_SUFFIXES[match[5]]}'] = Lazy(shape, lambda array=array: array)
  return found


def _config(folder: str) -> str:
  """Return the text of a run's configuration, '' without one."""
  path = os.path.join(folder, 'config.gin')
  try:
    with open_regular(path, 'r') as file:
      return file.read() if file.size() <= _MAX_BYTES else ''
  except (OSError, tf.errors.OpError, UnicodeDecodeError):
    return ''


def _imports(config: str) -> tuple[str, ...]:
  """Return the modules outside this package that a configuration imports, as `import` names them."""
  found = re.findall(r'^(?:from ([\w.]+) )?import ([\w.]+)(?: as \w+)?$', config, re.MULTILINE)
  modules = ('.'.join(filter(None, names)) for names in found)
  return tuple(name for name in modules if name.split('.')[0] not in ('rethink_tf', '__gin__'))


def _settings(config: str) -> dict[str, Any]:
  """Return the bindings of a detector that its weights imply."""
  found = {}
  for name in compared.BINDINGS:
    match = re.search(rf'^{re.escape(name)} = (?:\\\n)?\s*(.+)$', config, re.MULTILINE)
    try:
      value = ast.literal_eval(match[1]) if match and len(match[1]) < 200 else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
      value = None
    if isinstance(value, bool | int | float | tuple):
      found[name] = value
  return found


def _backbone(config: str) -> dict[str, Any]:
  """Return the bindings of a detector with the backbone of a pre-training run; none for those of this package."""
  bound = settings.parse(config)
  match = re.fullmatch(r'@(?:[\w.]+\.)?(\w+)\(\)', str(bound.get('Classifier.backbone')))
  if match is None or match[1] in ('ResNet', 'VGG', 'CBNet'):
    return {}
  its = {name: value for name, value in bound.items()
         if name.startswith(f'{match[1]}.') and name != f'{match[1]}.name'}
  return {'MaskRCNN.backbone': match[0], **its}


def bound_value(config: str, name: str) -> Any:
  """Return the value that a configuration binds to the parameter of this name; None without a valid one."""
  owner = {'stride_in_1x1': 'ResNet', 'padding': 'ResNet', 'epsilon': '(?:sync|frozen)_batch_norm',
           'groups': '(?:addons_)?group_norm'}.get(name, r'\w+')
  match = re.search(rf'^{owner}\.{name} = (?:\\\n)?\s*(.+)$', config, re.MULTILINE)
  try:
    value = ast.literal_eval(match[1]) if match and len(match[1]) < 200 else None
  except (ValueError, SyntaxError, RecursionError, MemoryError):
    return None
  if name == 'stride_in_1x1':
    return value if isinstance(value, bool) else None
  if name == 'padding':
    return value if value in PADDINGS else None
  if name == 'groups':
    return value if isinstance(value, int) and _is_positive(value) else None
  if name == 'epsilon':
    return value if _is_positive(value) else None
  return tuple(value) if isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_positive, value)) else None


def _is_positive(value: Any) -> bool:
  return isinstance(value, int | float) and 0 < value < 1e6
