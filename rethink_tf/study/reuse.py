"""Whether a run folder that already exists was trained with the study's present configuration."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence

import tensorflow as tf

from rethink_tf import gin_files
from rethink_tf.compare.run_summary import twin_key
from rethink_tf.data import digest, in_place
from rethink_tf.errors import UserError
from rethink_tf.storage import identity
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.storage.settings import FREE, LENGTH, Change, changes, listed, of_the_scores


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

  whole: the run is at its end, so that the length of its schedule is compared, too, and what its scores depend on: a
    comparison would take it for a run of other settings.

  Raises:
    UserError: a setting differs.
  """
  found = _changes(path, files, params, data_dir)
  if trained := [change for change in found if _of_weights(change) and (whole or change.kind != LENGTH)]:
    raise UserError(f'{name}: was trained with other settings: {listed(trained)}: choose another --output, or remove '
                    f'{path} to train it again')
  if scored := [change for change in found if whole and _of_scores(change)]:
    raise UserError(f'{name}: was evaluated with other settings: {listed(scored)}: leave them as they were, or choose '
                    'another --output: runs that are scored in different ways have no verdict together')


def differences(path: str, files: Sequence[str], params: Sequence[str], data_dir: str | None = None) -> list[Change]:
  """Return the settings of a run folder that differ from a configuration and affect the weights; [] if there is no run.

  Raises:
    UserError: the configuration is not valid.
  """
  return list(filter(_of_weights, _changes(path, files, params, data_dir)))


def _changes(path: str, files: Sequence[str], params: Sequence[str], data_dir: str | None) -> list[Change]:
  """Return all settings of a run folder that differ from a configuration, [] if there is no run.

  Folders of the same data are no difference: a study may have been moved to another machine.

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
    folders = tuple(str(change.now) for change in found if _other_data(change))
    if folders and _is_data_of(digest.to_compare(was.data), folders):
      found = [change for change in found if not _other_data(change)]
    return found
  finally:
    gin_files.clear()


@functools.lru_cache(maxsize=16)
def _is_data_of(recorded: str, folders: tuple[str, ...]) -> bool:
  """Whether the data of the parsed configuration, in these folders now, is what a run has recorded of its data.

  recorded: by digest.to_compare. Runs of a study have few different data sets: each is read once.
  """
  from rethink_tf import experiment

  del folders  # part of the key
  was = json.loads(recorded)
  names = {split: source for split, source in (('train', 'train_source'), ('held_out', 'eval_source'))
           if was.get(split)}
  try:
    now = {split: digest.summarize(gin_files.argument(experiment.run, source)(training=split == 'train'))
           for split, source in names.items()}
  except UserError:  # it cannot be read
    return False
  return bool(now) and not any(digest.differences(was[split], now[split]) for split in now)


def _other_data(change: Change) -> bool:
  if not change.name.endswith('.data_dir') or not all(isinstance(one, str) for one in (change.was, change.now)):
    return False
  return len({one if '://' in one else os.path.realpath(os.path.expanduser(one))
              for one in (change.was, change.now)}) > 1


def _of_weights(change: Change) -> bool:
  return change.kind != FREE or _other_data(change)


def _of_scores(change: Change) -> bool:
  """Whether an evaluation with the other value has other scores, and a comparison tells the runs apart by it."""
  named = change.name.endswith(('_dir', '_file'))  # on another machine the same data has another path
  return bool(twin_key({change.name: 1})) and not named and (change.name.startswith('eval/')
                                                             or of_the_scores(change.name))


def _digest(files: Sequence[str], params: Sequence[str], data_dir: str | None) -> str:
  import rethink_tf.experiment  # noqa: F401

  in_place.parse(files, params, data_dir)
  try:
    return hashlib.sha256(gin_files.text().encode()).hexdigest()[:8]
  finally:
    gin_files.clear()
