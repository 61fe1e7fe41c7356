"""Makes a study's runs, one after another, each in a process of its own; what is there already is not made again."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from rethink_tf.console import duration
from rethink_tf.errors import UserError
from rethink_tf.storage.checkpoints import RunCheckpoints
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.study.stages import Stage

POLL_SECONDS = 2.0
REPORT_SECONDS = 30.0
CALIBRATION_STEPS = 12
_FORKED = ('checkpoints', 'eval', 'tensorboard', 'metrics.jsonl', 'initial_weights.json', 'categories.json')


class Runner:
  """Runs stages under one output folder.

  output: holds a run folder for each trial, and <trial>.log with what its process has printed.
  more: arguments that every call of the training door gets (--data_dir=…).
  say: where progress goes, a line at a time.
  """

  def __init__(self, output: str, more: Sequence[str] = (), say: Callable[[str], None] = print):
    self._output, self._more, self._say = output, tuple(more), say
    self._images_per_second = None  # of the latest stage that trained
    os.makedirs(output, exist_ok=True)

  def folder(self, name: str) -> str:
    return os.path.join(self._output, name)

  def done(self, stage: Stage) -> bool:
    """Whether a stage needs nothing any more: its checkpoint is there, and for a whole run its last evaluation."""
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
    """Whether a run has something to compare."""
    path = self.folder(name)
    return os.path.isdir(path) and any(line.get('kind') == 'eval'
                                       for line in RunFolder(path, create=False).read_metrics())

  def pretrain(self, path: str, files: Sequence[str], params: Sequence[str], more: Sequence[str]) -> None:
    """Makes, or completes, the pre-training run of a folder."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    self._call('rethink_tf.pretrain', path, arguments(files, params, path, more), lambda: _last_step(f'{path}.log'))

  def run(self, stages: Sequence[Stage]) -> list[str]:
    """Makes what is not done; returns one line for each stage that failed. What a failed one forks into is left out."""
    failures, failed = [], set()
    for number, stage in enumerate(stages):
      name = stage.trial.name
      if self.done(stage):
        self._say(f'[{number + 1}/{len(stages)}] {name}: complete to iteration {stage.end}')
        continue
      if name in failed or (stage.fork_of and stage.fork_of.name in failed):
        failures.append(f'{name}: left out, since the run it continues has failed')
        failed.add(name)
        continue
      try:
        if stage.fork_of is not None:
          self._fork(stage)
        self._train(stage, f'[{number + 1}/{len(stages)}] {name}', stages[number + 1:])
      except UserError as error:
        self._say(f'[{number + 1}/{len(stages)}] {name}: {error.line()}')
        failures.append(f'{name}: {error.line()}')
        failed.add(name)
    return failures

  def calibrate(self, stage: Stage) -> float:
    """Images a second of a few steps of a stage's run, made in a folder that is then removed."""
    path = self.folder('.calibration')
    shutil.rmtree(path, ignore_errors=True)
    steps = min(CALIBRATION_STEPS, stage.length.steps)
    params = [*stage.trial.params, *stage.length.quiet, _stop(steps, stage), 'run.log_every = 1']
    try:
      self._call('rethink_tf.train', path, arguments(stage.trial.files, params, path, self._more), lambda: '')
      lines = [line for line in RunFolder(path, create=False).read_metrics() if line.get('kind') == 'train']
    finally:
      shutil.rmtree(path, ignore_errors=True)
      log = f'{path}.log'
      if os.path.exists(log):
        os.remove(log)
    self._images_per_second = _speed(lines)
    return self._images_per_second

  def _train(self, stage: Stage, head: str, later: Sequence[Stage]) -> None:
    params = [*stage.trial.params]
    if stage.partial:
      params += [*stage.length.quiet, _stop(stage.end, stage)]
    path = self.folder(stage.trial.name)
    still = sum((s.end - s.start) * s.length.batch_size for s in later if not self.done(s))
    self._say(f'{head}: iterations {stage.start} to {stage.end}')
    self._call('rethink_tf.train', path, arguments(stage.trial.files, params, path, self._more),
               lambda: self._progress(path, stage, head, still))

  def _progress(self, path: str, stage: Stage, head: str, still: int) -> str:
    """A line about a run under way and the study's end; '' before there is something to say."""
    if not os.path.isfile(os.path.join(path, 'metrics.jsonl')):
      return ''
    lines = [line for line in RunFolder(path, create=False).read_metrics()
             if line.get('kind') == 'train' and line['step'] > stage.start]
    if not lines:
      return ''
    step, speed = lines[-1]['step'], self._images_per_second
    if len(lines) > 1:  # the first one holds the tracing
      speed = lines[-1].get('images_per_second') or speed
    if not speed:
      return f'{head}: iteration {step}/{stage.end}'
    self._images_per_second = speed
    left = (stage.end - step) * stage.length.batch_size / speed
    return (f'{head}: iteration {step}/{stage.end}, {speed:.3g} images/s, ETA {duration(left)}, '
            f'study {duration(left + still / speed)} (evaluations not counted)')

  def _fork(self, stage: Stage) -> None:
    """Copies the trunk's run as it stands at `start`, in one move; metrics of later iterations stay behind."""
    target = self.folder(stage.trial.name)
    if os.path.isdir(target):
      return  # forked before, perhaps trained on
    source = self.folder(stage.fork_of.name)
    if stage.start not in RunCheckpoints(RunFolder(source, create=False)).steps():
      raise UserError(f'{source} has no checkpoint of iteration {stage.start} any more, from which {stage.trial.name} '
                      'would go on: set Study.share_prefixes = False, or remove that folder to make it again')
    building = f'{target}.forking'
    shutil.rmtree(building, ignore_errors=True)
    os.makedirs(building)
    for name in _FORKED:
      path = os.path.join(source, name)
      if os.path.isdir(path):
        shutil.copytree(path, os.path.join(building, name))
      elif os.path.isfile(path):
        shutil.copy2(path, os.path.join(building, name))
    for step in RunCheckpoints(RunFolder(building, create=False)).steps():
      if step > stage.start:
        shutil.rmtree(os.path.join(building, 'checkpoints', f'step-{step:08d}'))
    # The run that continues cancels lines of later iterations itself, by the line it begins with.
    os.rename(building, target)

  def _call(self, module: str, path: str, arguments: Sequence[str], progress: Callable[[], str]) -> None:
    """Runs a door to its end, with a progress line now and then; <path>.log gets what it prints.

    Raises:
      UserError: it failed; the message is its own last line.
    """
    log = f'{path}.log'
    with open(log, 'ab') as file:
      process = subprocess.Popen([sys.executable, '-m', module, *arguments], stdout=file, stderr=subprocess.STDOUT)
      try:
        said, latest = time.monotonic(), ''
        while process.poll() is None:
          time.sleep(POLL_SECONDS)
          if time.monotonic() - said > REPORT_SECONDS:
            said, line = time.monotonic(), progress()
            if line and line != latest:  # evaluations and tracing report nothing
              self._say(line)
            latest = line
      except BaseException:  # Ctrl-C or an end from outside: the run saves itself, and this one waits for it
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    if process.returncode:
      raise UserError(f'failed with exit code {process.returncode}: {_last_error(log)} (all of it: {log})')


def _stop(steps: int, stage: Stage) -> str:
  return f'KTimesSchedule.stop_k = {steps / stage.length.unit!r}'


def arguments(files: Sequence[str], params: Sequence[str], path: str, more: Sequence[str]) -> list[str]:
  """Of the training door, for one run."""
  return [*(f'--gin_file={file}' for file in files), *(f'--gin_param={param}' for param in params),
          f'--model_dir={path}', *more]


def _speed(lines: Sequence[dict]) -> float:
  """Images a second by the median step: the first one of each padded shape holds its tracing."""
  steps = [(after['images'] - before['images']) / max(after['seconds'] - before['seconds'], 1e-9)
           for before, after in itertools.pairwise(lines)]
  return statistics.median(steps or [lines[0]['images'] / max(lines[0]['seconds'], 1e-9)])


def _last_step(log: str) -> str:
  """The door's own last line of progress; '' before there is one."""
  with open(log, errors='replace') as file:
    return next((line.strip() for line in reversed(file.readlines()) if line.startswith('step ')), '')


def _last_error(log: str) -> str:
  with open(log, errors='replace') as file:
    lines = [line.strip() for line in file.read().splitlines() if line.strip()]
  errors = [line for line in lines if line.startswith('error:')]
  return re.sub(r'^error: ', '', errors[-1] if errors else lines[-1] if lines else 'it printed nothing')
