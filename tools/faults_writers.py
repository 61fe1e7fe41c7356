"""Faults of users rather than of machines: a second writer of a run folder, and other settings in the same one."""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import signal

from tools.small_runs import EVERY, Bench, Row, Training

SETTINGS = ('BATCH_SIZE = 12', 'EpochSchedule.base_rate = 0.02', 'SGD.momentum = 0.5', 'run.seed = 7', 'run.ema = None',
            'NORM = @group_norm')


class Second(Training):
  """The same command in the folder of another training, with further bindings and a log of its own."""

  def __init__(self, first: Training, *params: str):
    super().__init__(first.bench, first.folder)
    self.params = params
    self.log = first.folder.parent / f'second-{len(list(first.folder.parent.iterdir()))}.log'

  def command(self) -> list[str]:
    return [*super().command(), *(f'--gin_param={param}' for param in self.params)]

  def error(self) -> str:
    return next(iter(re.findall('(?m)^error: (.*)$', self.log.read_text(errors='replace'))), '')


def two_writers(bench: Bench, faults: int) -> Row:
  """The same command while the first one runs, stands still (SIGSTOP), and after it was killed."""
  training, refused = Training(bench), 0
  training.start()
  training.wait_for_steps(EVERY + 2)
  for number in range(faults):
    os.kill(training.pid, signal.SIGSTOP if number % 2 else signal.SIGCONT)
    second = Second(training)
    second.start()
    refused += second.wait() == 1 and f'process {training.pid} on ' in second.error()
  os.kill(training.pid, signal.SIGKILL)
  training.wait()
  training.finish()
  lines = [line['step'] for line in training.lines('train')]
  repeated = len(lines) - len(set(lines)) - sum(training.lost())
  outcome = (f'{refused} of {faults} refused in one line that names the process; {repeated} lines of metrics by two '
             'writers; after SIGKILL the next start went on at once')
  equal = training.equal() and refused == faults and not repeated
  return Row('a second start in the folder of a running one, also while it is stopped', faults, 1, outcome,
             training.lost(), training.codes, equal)


def changed_settings(bench: Bench, faults: int) -> Row:
  """Starts with other settings in the folder of an interrupted run, which write nothing, and the right one."""
  del faults
  training, refused, unchanged = Training(bench), 0, 0
  training.start()
  training.wait_for_steps(EVERY + 2)
  os.kill(training.pid, signal.SIGTERM)
  training.wait()
  before = _contents(training.folder)
  for setting in SETTINGS:
    second = Second(training, setting)
    second.start()
    refused += second.wait() == 1 and 'was trained with other settings' in second.error()
    unchanged += _contents(training.folder) == before
  training.finish()
  outcome = (f'{refused} of {len(SETTINGS)} refused in one line, {unchanged} without a byte written; then the run '
             'completed')
  equal = training.equal() and refused == unchanged == len(SETTINGS)
  return Row('other batch, rate, momentum, seed, averages, norm in the same folder', len(SETTINGS), 1, outcome,
             training.lost(), training.codes, equal)


def _contents(folder: pathlib.Path) -> dict[str, str]:
  return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob('*') if path.is_file()}
