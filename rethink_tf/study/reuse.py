"""Whether a run folder that already exists was trained with the study's present configuration."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import tensorflow as tf

from rethink_tf import gin_files
from rethink_tf.data import in_place
from rethink_tf.errors import UserError
from rethink_tf.storage import identity
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.storage.settings import FREE, LENGTH, Change, changes


def pretraining_folder(path: str, files: Sequence[str], params: Sequence[str], data_dir: str | None = None) -> str:
  """Return the run folder of a pre-training: `path`, or <path>-<digest> if `path` holds one with other settings.

  Studies share pre-trainings by name. Were one continued with other settings, the weights that another study's runs
  started from would change.
  """
  parent, name = os.path.split(path)
  if not tf.io.gfile.isdir(parent) or not any(one.startswith(name) for one in tf.io.gfile.listdir(parent)):
    return path  # without a look at the data, which may be far away
  keyed = f'{path}-{_digest(files, params, data_dir)}'
  if tf.io.gfile.isdir(keyed):
    return keyed
  return keyed if differences(path, files, params, data_dir) else path


def check_done(path: str, name: str, files: Sequence[str], params: Sequence[str], data_dir: str | None,
               whole: bool) -> None:
  """Check that a run that counts as done was trained with its present configuration.

  whole: the run is at its end, so that the length of its schedule is compared, too.

  Raises:
    UserError: a setting differs.
  """
  found = [change for change in differences(path, files, params, data_dir) if whole or change.kind != LENGTH]
  if found:
    more = f' and {len(found) - 3} more' if len(found) > 3 else ''
    raise UserError(f'{name}: was trained with other settings: {", ".join(map(str, found[:3]))}{more}: choose another '
                    f'--output, or remove {path} to train it again')


def differences(path: str, files: Sequence[str], params: Sequence[str], data_dir: str | None = None) -> list[Change]:
  """Return the settings of a run folder that differ from a configuration and affect the weights; [] if there is no run.

  Raises:
    UserError: the configuration is not valid.
  """
  was = identity.read(RunFolder(path, create=False)) if tf.io.gfile.isdir(path) else None
  if was is None or not was.settings:
    return []
  import rethink_tf.experiment  # noqa: F401  registers what gin files name

  in_place.parse(files, params, data_dir)
  try:
    found = changes(was.settings, gin_files.effective(was.settings))
  finally:
    gin_files.clear()
  return [change for change in found if change.kind != FREE or _other_data(change)]


def _other_data(change: Change) -> bool:
  if not change.name.endswith('.data_dir') or not all(isinstance(one, str) for one in (change.was, change.now)):
    return False
  return len({one if '://' in one else os.path.realpath(os.path.expanduser(one))
              for one in (change.was, change.now)}) > 1


def _digest(files: Sequence[str], params: Sequence[str], data_dir: str | None) -> str:
  import rethink_tf.experiment  # noqa: F401

  in_place.parse(files, params, data_dir)
  try:
    return hashlib.sha256(gin_files.text().encode()).hexdigest()[:8]
  finally:
    gin_files.clear()
