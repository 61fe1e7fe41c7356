"""Our own run folders (checkpoints/step-00012000/ with manifest.json and a TensorFlow checkpoint).

Names and layout are those of the variables: a detector loads by the paths along which TensorFlow tracks them.
"""

from __future__ import annotations

import ast
import json
import os
import re
from typing import Any

import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.weights.contents import Contents, Lazy, architecture_of
from rethink_tf.weights.detectron2 import Entry, same
from rethink_tf.weights.tf_models import open_checkpoint, tensor

_MAX_BYTES = 16 << 20  # of a manifest or a configuration
_PARTS = {'conv/kernel': 'weight', 'conv/bias': 'bias', 'norm/gamma': 'norm.weight', 'norm/beta': 'norm.bias',
          'norm/moving_mean': 'norm.running_mean', 'norm/moving_variance': 'norm.running_var'}


def newest_step(path: str) -> str | None:
  """The folder of the newest complete checkpoint of a run folder, the folder itself if it is one; None without any."""
  if is_complete(path):
    return path
  folder = os.path.join(path, 'checkpoints')
  names = [name.rstrip('/') for name in tf.io.gfile.listdir(folder)] if tf.io.gfile.isdir(folder) else []
  steps = sorted((name for name in names if re.fullmatch(r'step-\d+', name)), key=lambda name: int(name[5:]))
  return next((os.path.join(folder, name) for name in reversed(steps) if is_complete(os.path.join(folder, name))), None)


def is_complete(folder: str) -> bool:
  """Whether the manifest is there and every file has the length it tells."""
  try:
    files = manifest(folder)['files']
    return bool(files) and all(os.path.basename(name) == name and
                               tf.io.gfile.stat(os.path.join(folder, name)).length == size
                               for name, size in files.items())
  except (OSError, tf.errors.OpError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
    return False


def manifest(folder: str) -> dict[str, Any]:
  """manifest.json of a checkpoint; ValueError and its like where it is none."""
  with tf.io.gfile.GFile(os.path.join(folder, 'manifest.json')) as file:
    if file.size() > _MAX_BYTES:
      raise ValueError('too long')
    return json.load(file)


def read(path: str) -> Contents:
  """Contents of the newest complete checkpoint of a run: of a detector, or of a classifier's pre-training.

  Raises:
    UserError: there is none, or it is damaged.
  """
  step = newest_step(path)
  if step is None:
    raise UserError(f'{path}: a folder without a complete checkpoint (checkpoints/step-…/manifest.json): give a run '
                    'folder or a weight file')
  reader, shapes = open_checkpoint(os.path.join(step, 'weights'), path)
  arrays = {name.removeprefix('detector/'): tensor(reader, name, shape, path) for name, shape in shapes.items()
            if name.startswith('detector/')}
  if not any(name.startswith('backbone/') for name in arrays):
    raise UserError(f'{path}: its checkpoint holds no detector/backbone: give the folder of a detection or a '
                    'pre-training run')
  kind = 'detector' if any(name.startswith(('fpn/', 'rpn_head/', 'box_head/')) for name in arrays) else 'backbone'
  canonical = _canonical(arrays)
  norm = None
  if 'stem.conv1.weight' in canonical:
    norm = 'bn' if 'stem.conv1.norm.running_mean' in canonical else \
      'gn' if 'stem.conv1.norm.weight' in canonical else 'none'
  architecture = architecture_of(canonical, path) if norm is not None else None
  config = _config(path if step != path else os.path.dirname(os.path.dirname(path.rstrip('/'))))
  return Contents(path, f'run of this package, {os.path.basename(step.rstrip("/"))}', kind, arrays, norm, architecture,
                  'rgb', _bound(config, 'stride_in_1x1'), _bound(config, 'pixel_mean'), _bound(config, 'pixel_std'),
                  _bound(config, 'epsilon') or 1e-5, 'yours, and that of the weights it started from', own=True)


def table(model: Any, prefix: str = '') -> dict[str, Entry]:
  """{path of a variable below a layer or model: Entry}, the way tf.train.Checkpoint tracks them: breadth first."""
  view = tf.train.TrackableView(model)
  found, seen, queue = {}, set(), [((), model)]
  while queue:
    path, trackable = queue.pop(0)
    if id(trackable) in seen:
      continue
    seen.add(id(trackable))
    if isinstance(trackable, tf.Variable):
      found[prefix + '/'.join(path)] = Entry(trackable, same)
    queue += [((*path, name.replace('.', '..').replace('/', '.S')), child)
              for name, child in view.children(trackable).items()]
  return found


def _canonical(arrays) -> dict[str, Lazy]:
  """Shapes of a ResNet backbone by Detectron2's names, for inspection alone."""
  found = {}
  for name, array in arrays.items():
    match = re.fullmatch(r'backbone/(stem|stages/([0-3])/(\d+)/(conv[123]|shortcut))/((?:conv|norm)/\w+)', name)
    if match and match[5] in _PARTS:
      place = 'stem.conv1' if match[1] == 'stem' else f'res{int(match[2]) + 2}.{match[3]}.{match[4]}'
      shape = array.shape
      if len(shape) == 4:
        shape = shape[3], shape[2], shape[0], shape[1]
      found[f'{place}.{_PARTS[match[5]]}'] = Lazy(shape, lambda array=array: array)
  return found


def _config(folder):
  """The text of a run's configuration, '' when there is none."""
  path = os.path.join(folder, 'config.gin')
  try:
    with tf.io.gfile.GFile(path) as file:
      return file.read() if file.size() <= _MAX_BYTES else ''
  except (OSError, tf.errors.OpError, UnicodeDecodeError):
    return ''


def _bound(config, name):
  """The value that a configuration binds to the parameter of this name, None when it does not."""
  owner = {'stride_in_1x1': 'ResNet', 'epsilon': '(?:sync|frozen)_batch_norm'}.get(name, r'\w+')
  match = re.search(rf'^{owner}\.{name} = (?:\\\n)?\s*(.+)$', config, re.MULTILINE)
  try:
    value = ast.literal_eval(match[1]) if match and len(match[1]) < 200 else None
  except (ValueError, SyntaxError, RecursionError, MemoryError):
    return None
  if name == 'stride_in_1x1':
    return value if isinstance(value, bool) else None
  if name == 'epsilon':
    return value if _is_positive(value) else None
  return tuple(value) if isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_positive, value)) else None


def _is_positive(value: Any) -> bool:
  return isinstance(value, int | float) and 0 < value < 1e6
