"""Small training runs into which faults.py injects faults: data, processes, logs and checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

for _name in ('OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS', 'TF_NUM_INTRAOP_THREADS', 'TF_NUM_INTEROP_THREADS'):
  os.environ.setdefault(_name, '1')  # no thread may run when the process forks, and one core is enough
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

ROOT = pathlib.Path(__file__).resolve().parents[1]

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from rethink_tf import command_line, experiment  # noqa: E402, F401  the slow import

CLASSES, IMAGES, BATCH = 3, 20, 6
EVERY = 5  # steps between checkpoints


def parameters(epochs: int) -> list[str]:
  bindings = [
    'NORM = @no_norm', 'ResNet.zero_init_residual = False', 'ResNet.depth = 14',
    'ResNet.stem_width = 32', 'ResNet.res2_width = 32',
    "strategy.kind = 'one_device'", f'BATCH_SIZE = {BATCH}', f'EpochSchedule.base_batch = {BATCH}',
    f'run.images_per_device = {BATCH}', 'CROP_SIZE = 32', 'SHORT_SIDE = 36', 'run.eval_images_per_device = 15',
    f'EpochSchedule.epochs = {epochs}', 'EpochSchedule.base_rate = 0.0002', 'EpochSchedule.drops = ()',
    'EpochSchedule.warmup_epochs = 0', "eval/image_folder.split = 'train'", 'TopKEvaluator.every = 0',
    'TopKEvaluator.at_end = False', 'run.log_every = 1', f'run.checkpoint_every = {EVERY}',
    'ClassificationTrainInput.workers = 1', 'run.ema = @ExponentialMovingAverage',
  ]
  return [f'--gin_param={binding}' for binding in bindings]


class Row(NamedTuple):
  """A row of the table of faults."""

  kind: str
  faults: int
  runs: int
  outcome: str  # one sentence
  lost: list[int]  # steps of each restart
  codes: list[int]
  equal: bool | None  # None: nothing to compare


class Training:
  """A run folder and the processes that train in it, one after another."""

  def __init__(self, bench: Bench, folder: pathlib.Path | None = None):
    self.bench = bench
    self.folder = folder or pathlib.Path(tempfile.mkdtemp(dir=bench.scratch)) / 'run'
    self.log = self.folder.parent / f'{self.folder.name}.log'
    self.codes: list[int] = []
    self.pid = 0

  def start(self, inject: Callable[[], None] = lambda: None) -> None:
    """Start the command. inject: called in its process first."""
    self.seen = len(self.lines('train'))
    sys.stdout.flush()
    self.pid = os.fork()
    if self.pid:
      return
    code = 70
    try:
      with open(self.log, 'ab', buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
      inject()
      sys.argv = ['pretrain', *self.command()]
      command_line.run_command('train')
    except SystemExit as end:
      code = end.code if isinstance(end.code, int) else 0
    finally:
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(code)

  def command(self) -> list[str]:
    """The arguments of rethink_tf.pretrain."""
    return ['--gin_file=gin_configs/pretraining/clothing.gin', '--gin_file=gin_configs/runtime/deterministic.gin',
            f'--data_dir={self.bench.data}', f'--model_dir={self.folder}', *parameters(self.bench.epochs)]

  def wait(self) -> int:
    """Wait for the end and return the exit code, or minus the signal."""
    code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
    self.codes.append(code)
    return code

  def running(self) -> bool:
    return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

  def lines(self, *kinds: str) -> list[dict]:
    """Lines of metrics.jsonl as written, those of lost steps included."""
    try:
      text = (self.folder / 'metrics.jsonl').read_bytes()
    except OSError:
      return []
    found = []
    for line in text.split(b'\n'):
      with contextlib.suppress(ValueError):
        found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict) and line.get('kind') in kinds and 'step' in line]

  def wait_for_steps(self, steps: int) -> bool:
    """Wait until this start has trained this many steps; False when it ended before."""
    while len(self.lines('train')) < self.seen + steps:
      if not self.running():
        return False
      time.sleep(0.01)
    return True

  def finish(self) -> None:
    self.start()
    self.complete()

  def complete(self) -> None:
    """Wait for the end, which must be exit code 0."""
    if self.wait():
      raise SystemExit(f'error: a start without faults ended with {self.codes[-1]}:\n'
                       + self.log.read_text(errors='replace')[-2000:])

  def lost(self) -> list[int]:
    """For each restart, the steps that had been logged and were trained again."""
    found, reached = [], None
    for line in self.log.read_text(errors='replace').splitlines():
      if trained := re.match(r'(?:\[0\] )?step (\d+)/', line):
        reached = int(trained[1])
      elif begun := re.match(r'(?:\[0\] )?from step (\d+) to', line):
        found += [] if reached is None else [reached - int(begun[1])]
        reached = int(begun[1])
    return found

  def count_logged(self, pattern: str) -> int:
    """Matches of a regular expression in the log."""
    if not self.log.exists():  # nothing has been logged yet
      return 0
    return len(re.findall(pattern, self.log.read_text(errors='replace')))

  def checkpoints(self) -> list[pathlib.Path]:
    return sorted((self.folder / 'checkpoints').glob('step-*'))

  def equal(self, other: Training | None = None) -> bool:
    """Whether the last checkpoint equals that of the run without faults, or of another run."""
    mine, other = (variables(one.checkpoints()[-1]) for one in (self, other or self.bench.reference()))
    return mine.keys() == other.keys() and all(np.array_equal(mine[name], other[name]) for name in mine)


class Bench:
  """Data, random numbers and the reference run without faults."""

  def __init__(self, scratch: str, epochs: int, seed: int):
    self.scratch, self.epochs, self.random = scratch, epochs, random.Random(seed)
    self.data = pathlib.Path(scratch, 'data')
    rng = np.random.default_rng(seed)
    for k in range(CLASSES):
      (self.data / 'train' / f'class{k}').mkdir(parents=True)
      for n in range(IMAGES):
        colour = np.eye(3)[k] * 60 + 90
        image = np.clip(colour + rng.normal(0, 60, (40, 48, 3)), 0, 255).astype(np.uint8)
        cv2.imwrite(str(self.data / 'train' / f'class{k}' / f'{n}.png'), image)
    self._reference: Training | None = None

  @property
  def steps(self) -> int:
    return self.epochs * CLASSES * IMAGES // BATCH

  def reference(self) -> Training:
    if self._reference is None:
      self._reference = Training(self)
      self._reference.finish()
    return self._reference


def variables(checkpoint: pathlib.Path) -> dict[str, np.ndarray]:
  reader = tf.compat.v1.train.NewCheckpointReader(str(checkpoint / 'weights'))
  return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()
          if name.endswith('VARIABLE_VALUE') and 'save_counter' not in name}
