"""Checkpoints of a run: atomic to write, strict to read.

checkpoints/step-00012000/ holds a TensorFlow checkpoint and manifest.json: step, state, and the size of every file. The
folder is written beside its place, read back, and moved there in one go; a kill at any moment leaves
either the whole checkpoint or none. (Object stores cannot move folders: there the manifest, written last, decides.)
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.errors import UserError
from rethink_tf.run_folder import RunFolder

_VALUE = '/.ATTRIBUTES/VARIABLE_VALUE'


class RunCheckpoints:
  """The checkpoints of one run, of which the newest `keep` stay.

  A checkpoint that cannot be written (full disk) is logged and counted in `failures`; the older ones stay and training
  goes on. Whether the last one of a training failed is for the caller to judge by `save`'s result.
  """

  def __init__(self, run_folder: RunFolder, keep: int = 3):
    if keep < 1:
      raise UserError(f'RunCheckpoints.keep = {keep} must be at least 1')
    self._run_folder, self._keep = run_folder, keep
    self.failures = 0

  def save(self, step: int, trackables: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    """Writes the checkpoint of `step`; True when it is complete on the disk.

    Args:
      trackables: what `tf.train.Checkpoint` can hold, by name: the model, the optimizer.
      state: the rest, as JSON: counters, seeds.

    Raises:
      UserError: a variable is not finite. Such weights are never written: the newest checkpoint is a sound one.
    """
    final = self._folder(step)
    folder = final if self._run_folder.remote else self._run_folder.join('checkpoints', f'.writing-{step:08d}')
    try:
      self._remove([folder, *self._interrupted()])
      tf.io.gfile.makedirs(folder)
      tf.train.Checkpoint(**trackables).write(_prefix(folder))
      _check_finite(folder, step)
      files = {name: _size(folder, name) for name in sorted(tf.io.gfile.listdir(folder))}
      _write_manifest(folder, {'step': step, 'files': files, 'state': dict(state)})
      if folder != final:
        _sync(folder)
        self._remove([final])  # a damaged one of the same step, which an earlier restart has passed over
        os.rename(folder, final)
        _sync(os.path.dirname(final), files=False)
    except (OSError, tf.errors.OpError) as error:
      self.failures += 1
      self._remove([folder])
      logging.error('The checkpoint of step %d could not be written (failure %d): %s. Training goes on; %s', step,
                    self.failures, _one_line(error), self._newest_in_words())
      return False
    except UserError:
      self._remove([folder])
      raise
    self._remove(self._folder(old) for old in self.steps()[:-self._keep])
    return True

  def steps(self) -> list[int]:
    """The steps whose checkpoints are complete, ascending."""
    return [step for step in self._listed() if self._manifest(step) is not None]

  def latest(self) -> int | None:
    """The step of the newest complete checkpoint, None without any."""
    return next((step for step in reversed(self._listed()) if self._manifest(step) is not None), None)

  def restore(self, trackables: Mapping[str, Any], step: int | None = None) -> dict[str, Any] | None:
    """Restores the newest sound checkpoint (or that of `step`) into `trackables`; returns its state, None without any.

    Variables must exist already: build model and optimizer first. Every variable of each named trackable must be in the
    file with its shape, and the other way round; names that are left out of `trackables` are not read.
    A damaged checkpoint is passed over with a warning.

    Raises:
      UserError: the file belongs to another model; all checkpoints are damaged; that of `step` is missing or damaged.
    """
    listed = self._listed()
    if step is not None:
      listed = [step] if step in listed else []
      if not listed:
        raise UserError(f'no checkpoint of step {step} in {self._run_folder.join("checkpoints")}: '
                        f'there are {self.steps() or "none"}')
    for candidate in reversed(listed):
      manifest, folder = self._manifest(candidate), self._folder(candidate)
      try:
        if manifest is None:
          raise OSError('files are missing or cut short')
        values = _read_all(folder)
      except (OSError, tf.errors.OpError) as error:
        logging.warning('Passing over the damaged checkpoint %s: %s', folder, _one_line(error))
        continue
      _check_same_variables(trackables, {name: value.shape for name, value in values.items()}, folder)
      status = tf.train.Checkpoint(**trackables).read(_prefix(folder))
      status.assert_existing_objects_matched()
      status.expect_partial()  # what `trackables` leaves out was left out on purpose
      return manifest['state']
    if listed:
      raise UserError(f'every checkpoint in {self._run_folder.join("checkpoints")} is damaged '
                      f'(steps {", ".join(map(str, listed))}): move that folder away to start afresh')
    return None

  def _folder(self, step: int) -> str:
    return self._run_folder.join('checkpoints', f'step-{step:08d}')

  def _names(self) -> list[str]:
    folder = self._run_folder.join('checkpoints')
    return [name.rstrip('/') for name in tf.io.gfile.listdir(folder)] if tf.io.gfile.isdir(folder) else []

  def _listed(self) -> list[int]:
    return sorted(int(name[5:]) for name in self._names() if re.fullmatch(r'step-\d+', name))

  def _interrupted(self) -> list[str]:
    return [self._run_folder.join('checkpoints', name) for name in self._names() if name.startswith('.writing-')]

  def _manifest(self, step: int) -> dict[str, Any] | None:
    """What the checkpoint says of itself; None unless its files are all there with their sizes."""
    folder = self._folder(step)
    try:
      with tf.io.gfile.GFile(os.path.join(folder, 'manifest.json')) as file:
        manifest = json.load(file)
      complete = all(_size(folder, name) == size for name, size in manifest['files'].items())
    except (OSError, tf.errors.OpError, ValueError, KeyError, TypeError, AttributeError):
      return None
    return manifest if complete else None

  def _newest_in_words(self) -> str:
    newest = self.latest()
    return 'there is no checkpoint yet.' if newest is None else f'the newest checkpoint is of step {newest}.'

  def _remove(self, folders: Iterable[str]):
    for folder in folders:
      try:
        if self._run_folder.remote and tf.io.gfile.isdir(folder):
          tf.io.gfile.rmtree(folder)
        elif not self._run_folder.remote:
          shutil.rmtree(folder, ignore_errors=True)
      except (OSError, tf.errors.OpError) as error:
        logging.warning('Could not remove %s: %s', folder, _one_line(error))


def _prefix(folder: str) -> str:
  return os.path.join(folder, 'weights')


def _size(folder: str, name: str) -> int:
  return tf.io.gfile.stat(os.path.join(folder, name)).length


def _write_manifest(folder: str, manifest: Mapping[str, Any]):
  def plain(value):
    if isinstance(value, (np.generic, np.ndarray)):
      return value.tolist()
    raise TypeError(f'the state of a checkpoint must be JSON, not {type(value).__name__}')
  with tf.io.gfile.GFile(os.path.join(folder, 'manifest.json'), 'w') as file:
    file.write(json.dumps(manifest, indent=1, default=plain))


def _sync(folder: str, files: bool = True):
  """Puts a local folder and its files on the disk, so that not even a power cut undoes the rename."""
  for path in [*(os.path.join(folder, name) for name in (os.listdir(folder) if files else ())), folder]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def _read_all(folder: str) -> dict[str, np.ndarray]:
  """Every variable of a checkpoint. All its tensors are read: TensorFlow compares the checksum of each (OpError)."""
  reader = tf.compat.v1.train.NewCheckpointReader(_prefix(folder))
  tensors = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}
  return {key.removesuffix(_VALUE): value for key, value in tensors.items() if key.endswith(_VALUE)}


def _check_finite(folder: str, step: int):
  for name, value in _read_all(folder).items():
    if np.issubdtype(value.dtype, np.inexact) and not np.isfinite(value).all():
      raise UserError(f'training diverged: {name} is not finite after step {step}; its checkpoint was not written. '
                      'Lower the learning rate or lengthen the warm-up')


def _variables(trackables: Mapping[str, Any]) -> dict[str, tf.TensorShape]:
  """Checkpoint name -> shape of every variable, found the way tf.train.Checkpoint does: breadth first."""
  root = tf.train.Checkpoint(**trackables)
  view = tf.train.TrackableView(root)  # holds the root weakly
  found, seen, queue = {}, set(), [((), root)]
  while queue:
    path, trackable = queue.pop(0)
    if id(trackable) in seen:
      continue
    seen.add(id(trackable))
    if isinstance(trackable, tf.Variable):
      found['/'.join(path)] = trackable.shape
    queue += [((*path, name.replace('.', '..').replace('/', '.S')), child)
              for name, child in view.children(trackable).items()]
  return found


def _check_same_variables(trackables: Mapping[str, Any], in_file: Mapping[str, tuple[int, ...]], folder: str):
  in_model = _variables(trackables)
  in_file = {name: shape for name, shape in in_file.items() if name.split('/')[0] in trackables}
  differences = [
    ('only in the file', sorted(in_file.keys() - in_model.keys())),
    ('only in the model', sorted(in_model.keys() - in_file.keys())),
    ('of another shape', [f'{name} (file {list(in_file[name])}, model {in_model[name].as_list()})'
                          for name in sorted(in_file.keys() & in_model.keys())
                          if tuple(in_file[name]) != tuple(in_model[name])]),
  ]
  told = [f'{len(names)} variable(s) {where}: {", ".join(names[:5])}{", ..." if len(names) > 5 else ""}'
          for where, names in differences if names]
  if told:
    raise UserError(f'wrong checkpoint {folder}: {"; ".join(told)}. Use the configuration the run was started with '
                    '(config.gin in its folder), or another --model_dir')


def _one_line(error: BaseException) -> str:
  return ' '.join(str(getattr(error, 'message', None) or error).split())
