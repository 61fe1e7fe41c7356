"""Execution of a study's runs one after another, each in its own process; completed stages are skipped."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rethink_tf.console import duration
from rethink_tf.errors import UserError
from rethink_tf.storage import identity
from rethink_tf.storage.checkpoints import RunCheckpoints
from rethink_tf.storage.run_folder import RunFolder, total_steps
from rethink_tf.study.stages import Stage

POLL_SECONDS = 2.0
REPORT_SECONDS = 30.0
CALIBRATION_STEPS = 12
_FORKED = ('checkpoints', 'eval', 'tensorboard', 'metrics.jsonl', 'initial_weights.json', 'categories.json',
           identity.FILE)


class Calibration(NamedTuple):
  """A short run."""

  seconds: float  # of its process
  lines: Sequence[Mapping[str, Any]]  # of its metrics, at each step
  remaining_steps: int  # of the run that it stands for


class Runner:
  """Runs the stages of a study."""

  def __init__(self, output: str, more: Sequence[str] = (), log: Callable[[str], None] = print) -> None:
    """Write nothing yet.

    Args:
      output: folder for the run folder of each trial, and <trial>.log with the output of its process.
      more: arguments of every call of the training command (--data_dir=...).
      log: prints a line of progress.
    """
    self._output, self._more, self._log = output, tuple(more), log
    self._images_per_second: float | None = None  # of the latest stage

  def folder(self, name: str) -> str:
    """Return the run folder of a trial."""
    return os.path.join(self._output, name)

  def done(self, stage: Stage) -> bool:
    """Whether the last checkpoint of a stage exists, and, at the end of a run, its last evaluation."""
    path = self.folder(stage.trial.name)
    if not os.path.isdir(path):
      return False
    folder = RunFolder(path, create=False)
    latest = RunCheckpoints(folder).latest()
    if latest is None or latest < stage.end:
      return False
    return stage.partial or any(line.get('kind') == 'eval' and line.get('step') == stage.end
                                for line in folder.read_metrics())

  def evaluated(self, name: str) -> bool:
    """Whether the run of a trial has an evaluation."""
    path = self.folder(name)
    return os.path.isdir(path) and any(line.get('kind') == 'eval'
                                       for line in RunFolder(path, create=False).read_metrics())

  def pretrain(self, path: str, files: Sequence[str], params: Sequence[str], more: Sequence[str]) -> None:
    """Pre-train in a run folder, or continue.

    Raises:
      UserError: the command failed.
    """
    self._call('rethink_tf.pretrain', path, arguments(files, params, path, more), lambda: _last_step(f'{path}.log'))

  def run(self, stages: Sequence[Stage]) -> list[str]:
    """Run the stages that are not done; return one line per failed stage. Later stages of a failed run are skipped."""
    failures, failed = [], set()
    for number, stage in enumerate(stages):
      name = stage.trial.name
      head = f'[{number + 1}/{len(stages)}] {name}'
      if self.done(stage):
        self._log(f'{head}: complete to iteration {stage.end}')
        continue
      if name in failed or (stage.fork_of and stage.fork_of.name in failed):
        failures.append(f'{name}: skipped, since the run it continues has failed')
        failed.add(name)
        continue
      try:
        if stage.fork_of is not None:
          self._fork(stage)
        self._train(stage, head, stages[number + 1:])
      except UserError as error:
        self._log(f'{head}: {error.line()}')
        failures.append(f'{name}: {error.line()}')
        failed.add(name)
    return failures

  def reached(self, stage: Stage) -> int:
    """Return the step that the run of a stage has reached, 0 before its first checkpoint."""
    path = self.folder(stage.trial.name)
    return (RunCheckpoints(RunFolder(path, create=False)).latest() or 0) if os.path.isdir(path) else 0

  def calibrate(self, stage: Stage) -> Calibration:
    """Train a few steps of a stage with two evaluations, in a temporary folder.

    Raises:
      UserError: the command failed.
    """
    steps = min(CALIBRATION_STEPS, stage.length.steps)
    often = [f'{stage.length.often} = {max(steps // 2, 1)}'] if stage.length.often else []
    params = [*stage.trial.params, *stage.length.quiet, *often, _stop(steps, stage), 'run.log_every = 1']
    self._log(f'timing {steps} steps and two evaluations of {stage.trial.name}')
    return self._calibrate('rethink_tf.train', stage.trial.files, params, self._more, None)

  def calibrate_pretraining(self, path: str, files: Sequence[str], params: Sequence[str],
                            more: Sequence[str]) -> Calibration:
    """Train a few steps of a pre-training in a temporary folder.

    Raises:
      UserError: the command failed.
    """
    self._log(f'timing {CALIBRATION_STEPS} steps of pre-training {path}')
    made = self._calibrate('rethink_tf.pretrain', files, [*params, 'run.log_every = 1'], more, CALIBRATION_STEPS)
    reached = RunCheckpoints(RunFolder(path, create=False)).latest() if os.path.isdir(path) else None
    return made._replace(remaining_steps=max(made.remaining_steps - (reached or 0), 0))

  @staticmethod
  def pretrained(path: str) -> bool:
    """Whether the last checkpoint of a pre-training exists."""
    if not os.path.isdir(path):
      return False
    folder = RunFolder(path, create=False)
    latest, last = RunCheckpoints(folder).latest(), total_steps(folder)
    return latest is not None and last is not None and latest >= last

  def _calibrate(self, module: str, files: Sequence[str], params: Sequence[str], more: Sequence[str],
                 stop_after: int | None) -> Calibration:
    """Run a command in a temporary folder, to its end or until it has trained `stop_after` steps."""
    with tempfile.TemporaryDirectory(prefix='calibration-', ignore_cleanup_errors=True) as scratch:
      path = os.path.join(scratch, 'run')

      def trained() -> bool:
        return stop_after is not None and len(_train_lines(path)) >= stop_after

      begin = time.monotonic()
      self._call(module, path, arguments(files, params, path, more), lambda: '', trained)
      seconds, folder = time.monotonic() - begin, RunFolder(path, create=False)
      return Calibration(seconds, folder.read_metrics(), total_steps(folder) or 0)

  def _train(self, stage: Stage, head: str, later: Sequence[Stage]) -> None:
    params = [*stage.trial.params]
    if stage.partial:
      params += [*stage.length.quiet, _stop(stage.end, stage)]
    path = self.folder(stage.trial.name)
    remaining = sum((s.end - s.start) * s.length.batch_size for s in later if not self.done(s))
    self._log(f'{head}: iterations {stage.start} to {stage.end}')
    self._call('rethink_tf.train', path, arguments(stage.trial.files, params, path, self._more),
               lambda: self._progress(path, stage, head, remaining))

  def _progress(self, path: str, stage: Stage, head: str, remaining: int) -> str:
    """Return a line about the current run and the time left, '' before its first step.

    remaining: images of the later stages.
    """
    lines = [line for line in _train_lines(path) if line['step'] > stage.start]
    if not lines:
      return ''
    step, speed = lines[-1]['step'], self._images_per_second
    if len(lines) > 1:  # the first one includes tracing
      speed = lines[-1].get('images_per_second') or speed
    if not speed:
      return f'{head}: iteration {step}/{stage.end}'
    self._images_per_second = speed
    seconds = (stage.end - step) * stage.length.batch_size / speed
    return (f'{head}: iteration {step}/{stage.end}, {speed:.3g} images/s, ETA {duration(seconds)}, '
            f'study {duration(seconds + remaining / speed)} (evaluations not counted)')

  def _fork(self, stage: Stage) -> None:
    """Copy the trunk's run up to iteration `start` into the run folder of a stage, atomically."""
    target = self.folder(stage.trial.name)
    if os.path.isdir(target):
      return  # forked before
    source = self.folder(stage.fork_of.name)
    if stage.start not in RunCheckpoints(RunFolder(source, create=False)).steps():
      raise UserError(f'{source} no longer has the checkpoint of iteration {stage.start}, from which '
                      f'{stage.trial.name} continues: set Study.share_prefixes = False, or remove that folder to train '
                      'it again')
    temporary = f'{target}.forking'
    shutil.rmtree(temporary, ignore_errors=True)
    os.makedirs(temporary)
    for name in _FORKED:
      path = os.path.join(source, name)
      if os.path.isdir(path):
        shutil.copytree(path, os.path.join(temporary, name))
      elif os.path.isfile(path):
        shutil.copy2(path, os.path.join(temporary, name))
    for step in RunCheckpoints(RunFolder(temporary, create=False)).steps():
      if step > stage.start:
        shutil.rmtree(os.path.join(temporary, 'checkpoints', f'step-{step:08d}'))
    identity.fork(RunFolder(temporary, create=False))
    # Metrics of later iterations are cancelled by the line with which the new run resumes.
    os.rename(temporary, target)

  def _call(self, module: str, path: str, arguments: Sequence[str], progress: Callable[[], str],
            enough: Callable[[], bool] = lambda: False) -> None:
    """Run a command to its end, or until `enough`, with its output in <path>.log, and log its progress.

    Raises:
      UserError: it failed; the message is its error line.
    """
    log = f'{path}.log'
    os.makedirs(os.path.dirname(log) or '.', exist_ok=True)
    with open(log, 'ab') as file:
      process = subprocess.Popen([sys.executable, '-m', module, *arguments], stdout=file, stderr=subprocess.STDOUT)
      try:
        reported, latest, stopped = time.monotonic(), '', False
        while process.poll() is None:
          time.sleep(POLL_SECONDS)
          if not stopped and enough():
            stopped = True
            process.send_signal(signal.SIGTERM)
          if time.monotonic() - reported > REPORT_SECONDS:
            reported, line = time.monotonic(), progress()
            if line and line != latest:  # no progress during evaluation and tracing
              self._log(line)
            latest = line
      except BaseException:  # Ctrl-C or SIGTERM: wait until the run has saved a checkpoint
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    if process.returncode and not stopped:
      raise UserError(f'failed with exit code {process.returncode}: {_last_error(log)} (output: {log})')


def arguments(files: Sequence[str], params: Sequence[str], path: str, more: Sequence[str]) -> list[str]:
  """Return the arguments of the training command for one run."""
  return [*(f'--gin_file={file}' for file in files), *(f'--gin_param={param}' for param in params),
          f'--model_dir={path}', *more]


def _stop(steps: int, stage: Stage) -> str:
  """Return the binding that ends a run after some steps."""
  return f'KTimesSchedule.stop_k = {steps / stage.length.unit!r}'


def _train_lines(path: str) -> list[dict[str, Any]]:
  if not os.path.isfile(os.path.join(path, 'metrics.jsonl')):
    return []
  return [line for line in RunFolder(path, create=False).read_metrics() if line.get('kind') == 'train']


def _last_step(log: str) -> str:
  """Return the last progress line in a command's output, '' if there is none."""
  with open(log, errors='replace') as file:
    return next((line.strip() for line in reversed(file.readlines()) if line.startswith('step ')), '')


def _last_error(log: str) -> str:
  """Return the last error line in a command's output, else its last line."""
  with open(log, errors='replace') as file:
    lines = [line.strip() for line in file.read().splitlines() if line.strip()]
  errors = [line for line in lines if line.startswith('error:')]
  return re.sub(r'^error: ', '', errors[-1] if errors else lines[-1] if lines else 'no output')
