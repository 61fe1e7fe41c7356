"""Manifests of checkpoints: which checkpoint of a run is complete and undamaged.

manifest.json of a checkpoint folder holds step, state, size and SHA-256 of every other file, and a checksum of all of
it. It is written last, so a folder without one is incomplete. A checkpoint may come from anybody: names and sizes are
checked before they are used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.errors import UserError, in_one_line
from rethink_tf.storage import retries
from rethink_tf.storage.files import open_regular

T = TypeVar('T')

_NAME = 'manifest.json'
_MAX_BYTES = 16 << 20  # of a manifest; a detector's has 1 kB
_BEFORE_CHECKSUMS = {'step', 'files', 'state'}  # in the manifests of older runs


def write(folder: str, step: int, state: Mapping[str, Any]) -> None:
  """Write the manifest of the files in a checkpoint folder. state: JSON, which may hold NumPy numbers and arrays."""
  def plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
      return value.tolist()
    raise TypeError(f'the state of a checkpoint must be JSON, not {type(value).__name__}')
  names = sorted(tf.io.gfile.listdir(folder))
  manifest = {'step': step, 'files': {name: _size(folder, name) for name in names},
              'sha256': {name: _sha256(folder, name) for name in names}, 'state': dict(state)}
  manifest = json.loads(json.dumps(manifest, default=plain))
  with tf.io.gfile.GFile(path(folder), 'w') as file:
    file.write(json.dumps({**manifest, 'checksum': checksum(manifest)}, indent=1))


def path(folder: str) -> str:
  """Return the path of the manifest of a checkpoint folder, which is written last."""
  return os.path.join(folder, _NAME)


def checksum(manifest: Mapping[str, Any]) -> str:
  """Return the checksum of a manifest without its field 'checksum'."""
  return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def read(folder: str, step: int | None = None) -> dict[str, Any]:
  """Return the manifest of a checkpoint folder whose files all exist with their recorded sizes.

  step: the step it must be of; None: any.

  Raises:
    ValueError: the manifest is damaged, or files are truncated.
    OSError, tf.errors.OpError: something is missing or cannot be read.
  """
  with open_regular(path(folder)) as file:
    if file.size() > _MAX_BYTES:
      raise ValueError('its manifest is damaged')
    content = file.read()
  try:
    manifest = json.loads(content)
    recorded = manifest.pop('checksum', None)
    sound = recorded == checksum(manifest) or manifest.keys() == _BEFORE_CHECKSUMS and recorded is None
    sound = sound and step in (None, manifest['step']) and isinstance(manifest['state'], dict)
    files, digests = manifest['files'], manifest.get('sha256', {})
    sound = sound and digests.keys() <= files.keys() and all(name == os.path.basename(name) for name in files)
    complete = sound and files and all(_size(folder, name) == size for name, size in files.items())
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise ValueError('its manifest is damaged') from error
  if not sound:
    raise ValueError('its manifest is damaged')
  if not complete:
    raise ValueError('files are cut short')
  return manifest


def verify(folder: str, step: int | None = None) -> dict[str, Any]:
  """Return the manifest of a checkpoint folder after comparing every file with its checksum; errors as of `read`."""
  manifest = read(folder, step)
  for name, digest in manifest.get('sha256', {}).items():
    if _sha256(folder, name) != digest:
      raise ValueError(f'{name} is damaged')
  return manifest


def unless_damaged(read_checkpoint: Callable[[], T], folder: str) -> T | None:
  """Return the result of `read_checkpoint`, retried with backoff; None, with a warning, if the checkpoint is damaged.

  Raises:
    UserError: the storage refuses to read a checkpoint that may be sound.
  """
  try:
    return retries.call(read_checkpoint, folder)
  except (OSError, ValueError, tf.errors.OpError) as error:
    if retries.is_transient(error) or isinstance(error, (PermissionError, tf.errors.PermissionDeniedError)):
      raise UserError(f'{folder} cannot be read, though it may be sound: {in_one_line(error)}; run the same '
                      'command again once the storage is available') from error
    logging.warning('Skipping the damaged checkpoint %s: %s', folder, in_one_line(error))
    return None


def newest_sound(run: str) -> str | None:
  """Return the folder of the newest sound checkpoint of a run folder, or `run` itself if it is a checkpoint folder.

  Every file is compared with its checksum. A damaged checkpoint is skipped with a warning; None if there is no other.

  Raises:
    UserError: the storage refuses a checkpoint that may be sound.
  """
  parent = os.path.join(run, 'checkpoints')
  candidates = [(step_folder(parent, step), step) for step in reversed(steps(parent))]
  if tf.io.gfile.exists(path(run)):
    candidates = [(run, None)]
  for folder, step in candidates:
    if unless_damaged(lambda folder=folder, step=step: verify(folder, step), folder) is not None:
      return folder
  return None


def step_folder(parent: str, step: int) -> str:
  """Return the folder of a step's checkpoint in the folder `checkpoints` of a run."""
  return os.path.join(parent, f'step-{step:08d}')


def names_in(parent: str) -> list[str]:
  """Return the names in a folder, [] if there is none."""
  return [name.rstrip('/') for name in tf.io.gfile.listdir(parent)] if tf.io.gfile.isdir(parent) else []


def steps(parent: str) -> list[int]:
  """Return the steps of all checkpoints in a folder, ascending, including damaged and incomplete ones."""
  return sorted(int(name[5:]) for name in names_in(parent) if re.fullmatch(r'step-\d+', name))


def _size(folder: str, name: str) -> int:
  return tf.io.gfile.stat(os.path.join(folder, name)).length


def _sha256(folder: str, name: str) -> str:
  digest = hashlib.sha256()
  with open_regular(os.path.join(folder, name)) as file:
    while block := file.read(1 << 24):
      digest.update(block)
  return digest.hexdigest()
