"""Checkpoints of a run: atomic to write, strict to read.

checkpoints/step-00012000/ holds a TensorFlow checkpoint and manifest.json: step, state, size and SHA-256 of every file,
and a checksum of all this. The folder is written beside its place, read back, and moved there in one go; a kill at any
moment leaves either the whole checkpoint or none. (Object stores cannot move folders: there the manifest, written last,
decides.) Whatever byte of it is damaged later is noticed when it is read.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras
from absl import logging

from rethink_tf.errors import UserError, in_one_line
from rethink_tf.storage import checkpoint_index, retries
from rethink_tf.storage.run_folder import RunFolder

ON_DEMAND = 'on_demand'  # field of the line of an evaluation that training did not make

_VALUE = '/.ATTRIBUTES/VARIABLE_VALUE'
_BEFORE_CHECKSUMS = {'step', 'files', 'state'}  # in the manifests of older runs


class Best(NamedTuple):
  """The evaluated checkpoint with the highest figure."""

  step: int
  metric: str
  value: float


class RunCheckpoints:
  """The checkpoints of one run, of which the newest `keep` stay, and after `keep_best` the best one.

  A checkpoint that cannot be written (full disk) is logged and counted in `failures`; the older ones stay and training
  goes on. Whether the last one of a training failed is for the caller to judge by `save`'s result. Storage that fails
  for a moment is asked again (retries.py).

  writes: False on the workers beside the chief, whose `save` and `tidy` leave the folder alone.
  """

  def __init__(self, run_folder: RunFolder, keep: int = 3, writes: bool = True):
    if keep < 1:
      raise UserError(f'RunCheckpoints.keep = {keep} must be at least 1')
    self._run_folder, self._keep, self._writes = run_folder, keep, writes
    self._metric: str | None = None
    self._evaluated: Callable[[], int] = lambda: -1
    self._told: Best | None = None
    self._warned = False
    self.failures = 0

  def keep_best(self, metric: str, evaluated: Callable[[], int]) -> None:
    """From now on the checkpoint with the highest figure `metric` ('box/AP') stays, and best.json says which it is.

    evaluated: the step whose evaluation began last. Its checkpoint stays until its figures are known.
    """
    self._metric, self._evaluated = metric, evaluated

  def save(self, step: int, trackables: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    """Writes the checkpoint of `step`; True when it is complete on the disk.

    Args:
      trackables: what `tf.train.Checkpoint` can hold, by name: the model, the optimizer.
      state: the rest, as JSON: counters, seeds.

    Raises:
      UserError: a variable is not finite. Such weights are never written: the newest checkpoint is a sound one.
    """
    if not self._writes:
      return True
    final = self._folder(step)
    folder = final if self._run_folder.remote else self._run_folder.join('checkpoints', f'.writing-{step:08d}')

    def write():
      self._remove([folder, *self._interrupted()])
      tf.io.gfile.makedirs(folder)
      tf.train.Checkpoint(**trackables).write(_prefix(folder))
      _check_finite(folder, step)
      names = sorted(tf.io.gfile.listdir(folder))
      _write_manifest(folder, {'step': step, 'files': {name: _size(folder, name) for name in names},
                               'sha256': {name: _sha256(folder, name) for name in names}, 'state': dict(state)})
      if folder != final:
        _sync(folder)
        self._remove([final])  # a damaged one of the same step, which an earlier restart has passed over
        os.rename(folder, final)
        _sync(os.path.dirname(final), files=False)

    try:
      retries.call(write, folder)
    except (OSError, tf.errors.OpError) as error:
      self.failures += 1
      self._remove([folder])
      logging.error('The checkpoint of step %d could not be written (failure %d): %s. Training goes on; %s', step,
                    self.failures, in_one_line(error), self._newest_in_words())
      return False
    except UserError:
      self._remove([folder])
      raise
    self.tidy()
    return True

  def tidy(self) -> None:
    """Removes the checkpoints that need not stay, and brings best.json up to date."""
    if not self._writes:
      return
    steps = self.steps()
    stay = set(steps[-self._keep:])
    if self._metric is not None:
      lines = [line for line in self._run_folder.read_metrics() if str(line.get('kind')).startswith('eval')]
      stay |= {self._evaluated()} - {line['step'] for line in lines if line['kind'] == 'eval'}
      best = _best(lines, self._metric, steps)
      if best is not None:
        stay.add(best.step)
        self._tell(best)
      elif lines and not self._warned:
        self._warned = True
        figures = sorted({name for line in lines for name in line} - {'kind', 'step', 'time'})
        logging.warning('no evaluation has a figure %s, so no checkpoint is kept as the best one: choose run.keep_best '
                        'from %s', self._metric, ', '.join(figures))
    self._remove(self._folder(step) for step in steps if step not in stay)

  def best(self, metric: str) -> Best | None:
    """The checkpoint that training evaluated with the highest `metric`; None without any."""
    return _best(self._run_folder.read_metrics(), metric, self.steps())

  def choose(self, which: str | int, metric: str) -> int | None:
    """The step that 'latest', 'best' (by `metric`) or a number means; None: the newest sound one.

    Raises:
      UserError: anything else, or there is no best one.
    """
    if which == 'latest':
      return None
    if which == 'best':
      best = self.best(metric)
      if best is None:
        raise UserError(f'no checkpoint in {self._run_folder.path} has been evaluated by {metric}, so none is the '
                        f'best: use --checkpoint=latest or one of the steps {self.steps() or "(none)"}')
      return best.step
    if not str(which).isdecimal():
      raise UserError(f'--checkpoint={which}: use latest, best or a step, such as {self.latest() or 12000}')
    return int(which)

  def _tell(self, best: Best):
    if best != self._told:
      text = json.dumps({'checkpoint': f'checkpoints/step-{best.step:08d}', **best._asdict()}) + '\n'
      if self._run_folder.attempt('best.json', lambda: self._run_folder.put_text('best.json', text)):
        self._told = best

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
      folder = self._folder(candidate)
      try:
        manifest, values = retries.call(lambda folder=folder, step=candidate: _read_sound(folder, step), folder)
      except (OSError, ValueError, tf.errors.OpError) as error:
        if retries.is_transient(error) or isinstance(error, (PermissionError, tf.errors.PermissionDeniedError)):
          raise UserError(f'{folder} cannot be read, though it may be sound: {in_one_line(error)}; give the same '
                          'command again when the storage is well') from error
        logging.warning('Passing over the damaged checkpoint %s: %s', folder, in_one_line(error))
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
    """What the checkpoint says of itself; None unless it is sound and its files are all there with
    their sizes."""
    try:
      return _read_manifest(self._folder(step), step)
    except (OSError, tf.errors.OpError, ValueError):
      return None

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
        logging.warning('Could not remove %s: %s', folder, in_one_line(error))


def iterations(optimizer: tf_keras.optimizers.Optimizer) -> int:
  """The step at which training stands, by which checkpoints, metrics and evaluations are named."""
  return int(optimizer.iterations.numpy())  # .numpy(): a mirrored variable has no int()


def _prefix(folder: str) -> str:
  return os.path.join(folder, 'weights')


def _size(folder: str, name: str) -> int:
  return tf.io.gfile.stat(os.path.join(folder, name)).length


def _write_manifest(folder: str, manifest: Mapping[str, Any]):
  def plain(value):
    if isinstance(value, (np.generic, np.ndarray)):
      return value.tolist()
    raise TypeError(f'the state of a checkpoint must be JSON, not {type(value).__name__}')
  manifest = json.loads(json.dumps(manifest, default=plain))
  with tf.io.gfile.GFile(os.path.join(folder, 'manifest.json'), 'w') as file:
    file.write(json.dumps({**manifest, 'checksum': _checksum(manifest)}, indent=1))


def _sync(folder: str, files: bool = True):
  """Puts a local folder and its files on the disk, so that not even a power cut undoes the rename."""
  for path in [*(os.path.join(folder, name) for name in (os.listdir(folder) if files else ())), folder]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def _checksum(manifest: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(folder: str, name: str) -> str:
  digest = hashlib.sha256()
  with tf.io.gfile.GFile(os.path.join(folder, name), 'rb') as file:
    while part := file.read(1 << 24):
      digest.update(part)
  return digest.hexdigest()


def _read_manifest(folder: str, step: int) -> dict[str, Any]:
  """The manifest; ValueError unless it is sound, and all files are there with their sizes."""
  with tf.io.gfile.GFile(os.path.join(folder, 'manifest.json'), 'rb') as file:
    content = file.read()
  try:
    manifest = json.loads(content)
    checksum = manifest.pop('checksum', None)
    summed = checksum == _checksum(manifest) or manifest.keys() == _BEFORE_CHECKSUMS and checksum is None
    sound = summed and manifest['step'] == step
    files = manifest['files'] if isinstance(manifest['state'], dict) else {}
    complete = files and all(_size(folder, name) == size for name, size in files.items())
    sound = sound and isinstance(manifest.get('sha256', {}), dict)
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise ValueError('its manifest is damaged') from error
  if not sound:
    raise ValueError('its manifest is damaged')
  if not complete:
    raise ValueError('files are cut short')
  return manifest


def _read_sound(folder: str, step: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Manifest and variables of a checkpoint of which every byte has been compared with its checksum.

  Raises:
    ValueError, OSError, OpError: something is damaged, missing or cannot be read.
  """
  manifest = _read_manifest(folder, step)
  for name, digest in manifest.get('sha256', {}).items():
    if _sha256(folder, name) != digest:
      raise ValueError(f'{name} is damaged')
  return manifest, _read_all(folder)


def _best(lines: Iterable[Mapping[str, Any]], metric: str, steps: Iterable[int]) -> Best | None:
  """The best of `steps` by lines of metrics.jsonl. Of equal ones the latest; evaluations on demand do not count."""
  steps = set(steps)
  found = {line['step']: line[metric] for line in lines
           if str(line.get('kind')).startswith('eval') and not line.get(ON_DEMAND) and line.get('step') in steps
           and isinstance(line.get(metric), int | float) and (line[metric] >= 0)}
  if not found:
    return None
  step = max(found, key=lambda step: (found[step], step))
  return Best(step, metric, found[step])


def _read_all(folder: str) -> dict[str, np.ndarray]:
  """Every variable of a checkpoint. All its tensors are read: TensorFlow compares the checksum of each (OpError)."""
  wrong = checkpoint_index.problem(_prefix(folder))  # before TensorFlow, whose process a forged index ends
  if wrong:
    raise OSError(wrong)
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

