"""Checkpoints of a run: written atomically, read strictly.

checkpoints/step-00012000/ holds a TensorFlow checkpoint and manifest.json (manifests.py). The folder is written under a
temporary name, read back and renamed, so that a kill at any moment leaves either a complete checkpoint or none. (Object
stores cannot rename folders: there a checkpoint is complete once its manifest exists, which is written last.) Damage
of any byte is detected when the checkpoint is read.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras
from absl import logging

from rethink_tf.errors import UserError, check_at_least, in_one_line
from rethink_tf.storage import checkpoint_index, files, manifests, retries
from rethink_tf.storage.checkpoint_index import VALUE
from rethink_tf.storage.identity import Identity, check_owner
from rethink_tf.storage.metrics_lines import evaluated_steps, is_on_demand
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.structures import AVERAGES


class Best(NamedTuple):
  """The evaluated checkpoint with the highest value of a metric."""

  step: int
  metric: str
  value: float


class RunCheckpoints:
  """The checkpoints of one run: the newest `keep` and, after `keep_best`, the best one.

  A checkpoint that cannot be written (full disk) is logged and counted in `failures`; the older ones are kept and
  training continues. `save` returns whether it succeeded, which matters for the last one. Transient storage errors are
  retried with backoff (retries.py).

  writes: False on workers other than the chief, whose `save` and `tidy` do nothing.
  """

  def __init__(self, run_folder: RunFolder, keep: int = 3, writes: bool = True):
    check_at_least('run', 1, keep_checkpoints=keep)
    self._run_folder, self._keep, self._writes = run_folder, keep, writes
    self._metric: str | None = None
    self._evaluated: Callable[[], int] = lambda: -1
    self._recorded: Best | None = None  # in best.json
    self._warned = False
    self._identity: Identity | None = None
    self._any_run = False
    self.failures = 0
    self.restored_step: int | None = None  # of the checkpoint that was restored last

  def belong_to(self, identity: Identity, any_run: bool = False) -> None:
    """Write the run's name into checkpoints, and refuse to restore those of other runs unless `any_run` is true."""
    self._identity, self._any_run = identity, any_run

  def keep_best(self, metric: str, evaluated: Callable[[], int]) -> None:
    """Keep the checkpoint with the highest `metric` ('box/AP') from now on, and record it in best.json.

    evaluated: returns the step whose evaluation began last. Its checkpoint is kept until its metrics are known.
    """
    self._metric, self._evaluated = metric, evaluated

  def save(self, step: int, trackables: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    """Write the checkpoint of `step`; return whether it is complete on the disk.

    Args:
      trackables: arguments of `tf.train.Checkpoint`: the model, the optimizer.
      state: other state as JSON: counters, seeds.

    Raises:
      UserError: a variable is not finite; the checkpoint is not written.
    """
    if not self._writes:
      return True
    if self._identity is not None and self._identity.run:
      state = {**state, 'run': self._identity.run}
    final = self._folder(step)
    folder = final if self._run_folder.remote else self._run_folder.join('checkpoints', f'.writing-{step:08d}')

    def write() -> None:
      self._remove([folder, *self._interrupted()])
      tf.io.gfile.makedirs(folder)
      tf.train.Checkpoint(**trackables).write(_prefix(folder))
      _check_finite(folder, step)
      manifests.write(folder, step, state)
      if folder != final:
        _sync(folder)
        self._remove([final])  # a damaged one of the same step, skipped at the last restart
        os.rename(folder, final)
        _sync(os.path.dirname(final), files=False)

    try:
      retries.call(write, folder)
    except (OSError, tf.errors.OpError) as error:
      self.failures += 1
      self._remove([folder])
      logging.error('The checkpoint of step %d could not be written (failure %d): %s. Training continues; %s', step,
                    self.failures, in_one_line(error), self._describe_newest())
      return False
    except UserError:
      self._remove([folder])
      raise
    self._run_folder.attempt('files of the run', self._run_folder.texts.write_missing)
    self.tidy()
    return True

  def tidy(self) -> None:
    """Remove checkpoints that are no longer kept, and update best.json."""
    if not self._writes:
      return
    steps = self.steps()
    kept = set(steps[-self._keep:])
    if self._metric is not None:
      lines = self._run_folder.readable_metrics()
      if lines is None:  # which one is the best is not known
        return
      lines = [line for line in lines if str(line.get('kind')).startswith('eval')]
      kept |= {self._evaluated()} - evaluated_steps(lines)
      best = _best(lines, self._metric, steps)
      if best is not None:
        kept.add(best.step)
        self._record(best)
      elif lines and not self._warned:
        self._warned = True
        metrics = sorted({name for line in lines for name in line} - {'kind', 'step', 'time'})
        logging.warning('no evaluation has the metric %s, so no checkpoint is kept as the best one: set run.keep_best '
                        'to one of %s', self._metric, ', '.join(metrics))
    self._remove(self._folder(step) for step in steps if step not in kept)

  def record_best(self, metric: str) -> None:
    """Update best.json after an evaluation outside of training; only training removes checkpoints."""
    best = _best(self._run_folder.readable_metrics() or (), metric, self.steps())
    if best is not None:
      self._record(best)

  def best(self, metric: str) -> Best | None:
    """Return the checkpoint with the highest `metric` in evaluations of training, None without evaluations.

    Every file of it has been read; a damaged one is left out, with a warning.

    Raises:
      UserError: the storage refuses one that may be sound.
    """
    lines, left = self._run_folder.read_metrics(), set(self._listed())
    best = sound = _best(lines, metric, left)
    while sound is not None and self._read(sound.step) is None:
      if sound.step not in self._listed():  # removed by the training of this run, for a better one
        return self.best(metric)
      left.remove(sound.step)
      sound = _best(lines, metric, left)
    if best != sound:
      logging.warning('the best checkpoint, step %d (%s %.4g), is damaged; %s', best.step, metric, best.value,
                      f'step {sound.step} ({sound.value:.4g}) is the best of the others' if sound else
                      'no other one has been evaluated')
    return sound

  def choose(self, which: str | int, metric: str) -> int | None:
    """Return the step for 'latest', 'best' (by `metric`) or a number; None stands for the newest sound checkpoint.

    Raises:
      UserError: any other value, or there is no best checkpoint.
    """
    if which == 'latest':
      return None
    if which == 'best':
      best = self.best(metric)
      if best is None:
        raise UserError(f'no sound checkpoint in {self._run_folder.path} has been evaluated by {metric}, so none is '
                        f'the best: use --checkpoint=latest or one of the steps {self.steps() or "(none)"}')
      return best.step
    if not str(which).isdecimal():
      raise UserError(f'--checkpoint={which}: use latest, best or a step, such as {self.latest() or 12000}')
    return int(which)

  def _record(self, best: Best) -> None:
    if best != self._recorded:
      text = json.dumps({'checkpoint': f'checkpoints/step-{best.step:08d}', **best._asdict()}) + '\n'
      if self._run_folder.attempt('best.json', lambda: self._run_folder.put_text('best.json', text)):
        self._recorded = best

  def steps(self) -> list[int]:
    """Return the steps of complete checkpoints, ascending."""
    return [step for step in self._listed() if self._manifest(step) is not None]

  def is_sound(self, step: int) -> bool:
    """Whether every file of a checkpoint can be read and matches its checksum; errors as of `best`."""
    return self._read(step) is not None

  def latest(self) -> int | None:
    """Return the step of the newest complete checkpoint, None if there is none."""
    return next((step for step in reversed(self._listed()) if self._manifest(step) is not None), None)

  def runs(self) -> list[str]:
    """Return the names of runs that complete checkpoints bear, that of the newest first; earlier versions gave none."""
    found = [self._manifest(step) or {'state': {}} for step in reversed(self._listed())]
    return list(dict.fromkeys(run for one in found if isinstance(run := one['state'].get('run'), str)))

  def restore(self, trackables: Mapping[str, Any], step: int | None = None,
              otherwise: Mapping[str, Callable[[], None]] = MappingProxyType({})) -> dict[str, Any] | None:
    """Restore the newest sound checkpoint (or that of `step`) into `trackables`; return its state, None without any.

    Variables must exist: build model and optimizer first. The variables of each trackable must be the same in the file,
    with the same shapes; names in the file that are not in `trackables` are not read. Damaged checkpoints are skipped
    with a warning.

    otherwise: by name of a trackable that a file may lack as a whole, what to do then once the others are restored.

    Raises:
      UserError: the file is of another model or another run; all checkpoints are damaged; that of `step` is missing or
        damaged.
    """
    listed = self._listed()
    if step is not None:
      listed = [step] if step in listed else []
      if not listed:
        raise self._missing(step)
    for candidate in reversed(listed):
      folder, sound = self._folder(candidate), self._read(candidate)
      if sound is None:
        continue
      manifest, values = sound
      if not self._any_run:
        check_owner(self._identity, manifest['state'], folder)
      lacking = trackables.keys() - {name.split('/')[0] for name in values}
      present = {name: each for name, each in trackables.items() if name not in lacking & otherwise.keys()}
      _check_same_variables(present, {name: value.shape for name, value in values.items()}, folder)
      status = tf.train.Checkpoint(**present).read(_prefix(folder))
      status.assert_existing_objects_matched()
      status.expect_partial()  # names that are not in `trackables`
      self.restored_step = candidate
      for name in trackables.keys() - present.keys():
        otherwise[name]()
      return manifest['state']
    listed_now = self._listed()
    if step is not None:  # training, which keeps the newest ones, may have removed it meanwhile
      raise self._damaged(step) if step in listed_now else self._missing(step)
    if set(listed_now) - set(listed):
      return self.restore(trackables, otherwise=otherwise)
    if listed:
      raise UserError(f'every checkpoint in {self._run_folder.join("checkpoints")} is damaged '
                      f'(steps {", ".join(map(str, listed))}): move that folder away to start from scratch')
    return None

  def _missing(self, step: int) -> UserError:
    return UserError(f'no checkpoint of step {step} in {self._run_folder.join("checkpoints")}: there are '
                     f'{self.steps() or "none"}')

  def _damaged(self, step: int) -> UserError:
    others = [other for other in self.steps() if other != step]
    return UserError(f'the checkpoint of step {step} in {self._run_folder.join("checkpoints")} is damaged'
                     + (f': use --checkpoint=latest or one of the steps {others}' if others else
                        ', and there is no other one: train again'))

  def _read(self, step: int) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Return manifest and variables of a checkpoint; None, with a warning, if it is damaged."""
    folder = self._folder(step)
    files.refuse_patterns(folder)
    return manifests.unless_damaged(lambda: _read_sound(folder, step), folder)

  def _folder(self, step: int) -> str:
    return manifests.step_folder(self._run_folder.join('checkpoints'), step)

  def _listed(self) -> list[int]:
    return manifests.steps(self._run_folder.join('checkpoints'))

  def _interrupted(self) -> list[str]:
    folder = self._run_folder.join('checkpoints')
    return [os.path.join(folder, name) for name in manifests.names_in(folder) if name.startswith('.writing-')]

  def _manifest(self, step: int) -> dict[str, Any] | None:
    """Return the manifest of a complete checkpoint, else None."""
    try:
      return manifests.read(self._folder(step), step)
    except (OSError, tf.errors.OpError, ValueError):
      return None

  def _describe_newest(self) -> str:
    newest = self.latest()
    return 'there is no checkpoint yet.' if newest is None else f'the newest checkpoint is of step {newest}.'

  def _remove(self, folders: Iterable[str]) -> None:
    for folder in folders:
      try:
        if self._run_folder.remote and tf.io.gfile.isdir(folder):
          tf.io.gfile.rmtree(folder)
        elif not self._run_folder.remote:
          shutil.rmtree(folder, ignore_errors=True)
      except (OSError, tf.errors.OpError) as error:
        logging.warning('%s could not be removed: %s', folder, in_one_line(error))


def iterations(optimizer: tf_keras.optimizers.Optimizer) -> int:
  """Return the step of the weights, by which checkpoints, metrics and evaluations are named."""
  return int(optimizer.iterations.numpy())  # .numpy(): mirrored variables do not support int()


def variables(root: Any) -> dict[str, tf.Variable]:
  """Return {name in a checkpoint: variable} of everything below a layer, model or tf.train.Checkpoint.

  Traversed in the order of tf.train.Checkpoint: breadth first, along the attribute names by which objects are tracked.
  """
  view = tf.train.TrackableView(root)  # holds the root weakly
  found, seen, queue = {}, set(), [((), root)]
  while queue:
    path, trackable = queue.pop(0)
    if id(trackable) in seen:
      continue
    seen.add(id(trackable))
    if isinstance(trackable, tf.Variable):
      found['/'.join(path)] = trackable
    queue += [((*path, name.replace('.', '..').replace('/', '.S')), child)
              for name, child in view.children(trackable).items()]
  return found


def _prefix(folder: str) -> str:
  return os.path.join(folder, 'weights')


def _sync(folder: str, files: bool = True) -> None:
  """Flush a local folder and its files to the disk, so that the rename survives a power cut."""
  for path in [*(os.path.join(folder, name) for name in (os.listdir(folder) if files else ())), folder]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def _read_sound(folder: str, step: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Return manifest and variables of a checkpoint whose files match their checksums; errors as of `manifests.read`."""
  return manifests.verify(folder, step), _read_all(folder)


def _best(lines: Iterable[Mapping[str, Any]], metric: str, steps: Iterable[int]) -> Best | None:
  """Return the best of `steps` by lines of metrics.jsonl, the latest of equal ones, without evaluations on demand."""
  steps = set(steps)
  found = {line['step']: line[metric] for line in lines
           if str(line.get('kind')).startswith('eval') and line.get('step') in steps
           and not is_on_demand(line)
           and isinstance(line.get(metric), int | float) and (line[metric] >= 0)}
  if not found:
    return None
  step = max(found, key=lambda step: (found[step], step))
  return Best(step, metric, found[step])


def _read_all(folder: str) -> dict[str, np.ndarray]:
  """Return all variables of a checkpoint. Every tensor is read, so that TensorFlow compares checksums (OpError)."""
  problem = checkpoint_index.problem(_prefix(folder))  # a forged index would crash TensorFlow
  if problem:
    raise OSError(problem)
  reader = tf.compat.v1.train.NewCheckpointReader(_prefix(folder))
  tensors = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}
  return {key.removesuffix(VALUE): value for key, value in tensors.items() if key.endswith(VALUE)}


def _check_finite(folder: str, step: int) -> None:
  for name, value in _read_all(folder).items():
    if np.issubdtype(value.dtype, np.inexact) and not np.isfinite(value).all():
      raise UserError(f'training diverged: {name} is not finite after step {step}; its checkpoint was not written. '
                      'Lower the learning rate or lengthen the warm-up')


def _check_same_variables(trackables: Mapping[str, Any], in_file: Mapping[str, tuple[int, ...]], folder: str) -> None:
  in_model = {name: variable.shape for name, variable in variables(tf.train.Checkpoint(**trackables)).items()}
  in_file = {name: shape for name, shape in in_file.items() if name.split('/')[0] in trackables}
  if AVERAGES in trackables and not any(name.split('/')[0] == AVERAGES for name in in_file):
    raise UserError(f'{folder}: has no averages of the weights, which were not taken at its step (run.ema): choose '
                    "another checkpoint, or leave them out, as --gin_param='run.ema = None' does")
  differences = [
    ('only in the file', sorted(in_file.keys() - in_model.keys())),
    ('only in the model', sorted(in_model.keys() - in_file.keys())),
    ('of another shape', [f'{name} (file {list(in_file[name])}, model {in_model[name].as_list()})'
                          for name in sorted(in_file.keys() & in_model.keys())
                          if tuple(in_file[name]) != tuple(in_model[name])]),
  ]
  messages = [f'{len(names)} variable(s) {where}: {", ".join(names[:5])}{", ..." if len(names) > 5 else ""}'
              for where, names in differences if names]
  if messages:
    raise UserError(f'wrong checkpoint {folder}: {"; ".join(messages)}. Use the configuration the run was started with '
                    '(config.gin in its folder), or another --model_dir')

