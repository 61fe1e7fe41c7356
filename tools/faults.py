"""Fault injection: interrupt small training runs in every available way and report the results.

  python -m tools.faults --output=results/faults.md

Each row trains the same small classifier on synthetic images (deterministic, with averaged weights) with the usual
command, injects a fault, repeats the command until the run is complete, and compares its last checkpoint, bit for bit,
with that of a run without faults. Starts are forks of a process that has imported TensorFlow without using it, which
saves the import. `--only=sigkill` runs one row, `--quick` a short combination.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import errno
import os
import pathlib
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

# First: it sets up the environment for TensorFlow.
from tools.small_runs import EVERY, ROOT, Bench, Row, Training, variables  # isort: skip

from tools import faults_running  # isort: skip
from tools.faults_writers import changed_settings, two_writers  # isort: skip

import numpy as np  # isort: skip
import tensorflow as tf  # isort: skip

from rethink_tf.data.classification.image_folder import ImageFolder  # isort: skip
from rethink_tf.data.classification.input import ClassificationTrainInput  # isort: skip
from rethink_tf.training.losses import ClassificationLoss  # isort: skip

POISON = -7  # image id of the batch whose loss is NaN


def sigkill(bench: Bench, faults: int) -> Row:
  """SIGKILL at random moments: a quarter anywhere in a start, the others after up to 25 steps and a fraction."""
  done, runs, lost, codes, equal = 0, 0, [], [], True
  while done < faults:
    training, runs = Training(bench), runs + 1
    while done < faults:
      training.start()
      if bench.random.random() < 0.25:
        time.sleep(bench.random.uniform(0, 10))
      elif training.wait_for_steps(bench.random.randint(1, 25)):
        time.sleep(bench.random.uniform(0, 0.1))
      if not training.running():
        break
      os.kill(training.pid, signal.SIGKILL)
      training.wait()
      done += 1
    else:
      training.start()
    training.complete()
    lost, codes, equal = lost + training.lost(), codes + training.codes, equal and training.equal()
  return Row('SIGKILL at a random moment', done, runs, 'every run completed', lost, codes, equal)


def sigterm(bench: Bench, faults: int) -> Row:
  training, seconds = _terminated(bench, faults, signals=1)
  outcome = f'exited after the next step with a checkpoint, at most {max(seconds):.1f} s after the signal'
  return Row('SIGTERM', faults, 1, outcome, training.lost(), training.codes, training.equal())


def sigterm_twice(bench: Bench, faults: int) -> Row:
  training, seconds = _terminated(bench, faults, signals=2)
  outcome = f'exited at once, at most {max(seconds):.2f} s after the first signal'
  return Row('SIGTERM twice, 1 ms apart', faults, 1, outcome, training.lost(), training.codes, training.equal())


def _terminated(bench: Bench, faults: int, signals: int) -> tuple[Training, list[float]]:
  """Return a run stopped `faults` times by `signals` SIGTERMs and then completed, and the seconds of each stop."""
  training, seconds = Training(bench), []
  for _ in range(faults):
    training.start()
    training.wait_for_steps(1 + bench.random.randrange(12))
    begin = time.monotonic()
    for number in range(signals):
      time.sleep(0.001 * (number > 0))
      os.kill(training.pid, signal.SIGTERM)
    training.wait()
    seconds.append(time.monotonic() - begin)
  training.finish()
  return training, seconds


def damaged(bench: Bench, faults: int) -> Row:
  """Damage the newest checkpoint between two starts: flip a bit, truncate or delete a file."""
  training = Training(bench)
  for number in range(faults):
    training.start()
    training.wait_for_steps(2 * EVERY + 3)  # two checkpoints at least
    os.kill(training.pid, signal.SIGKILL)
    training.wait()
    _damage(training.checkpoints()[-1], number, bench.random)
  training.finish()
  passed = training.count_logged('Skipping the damaged checkpoint')
  outcome = f'{passed} damaged checkpoints detected; resumed from the one before, curves included'
  kind = 'newest checkpoint damaged after a SIGKILL: a bit of data, index or manifest; data truncated; deleted'
  good = training.equal() and passed == faults
  return Row(kind, faults, 1, outcome, training.lost(), training.codes, good)


def _damage(checkpoint: pathlib.Path, number: int, rng: random.Random) -> None:
  data, index, manifest = (next(checkpoint.glob(name)) for name in ('*.data*', '*.index', 'manifest.json'))
  victim = (data, index, manifest, data, rng.choice([data, index, manifest]))[number % 5]
  size = victim.stat().st_size
  if number % 5 == 4:
    victim.unlink()
  elif number % 5 == 3:
    os.truncate(victim, rng.randrange(size))
  else:
    content = bytearray(victim.read_bytes())
    content[rng.randrange(size)] ^= 1 << rng.randrange(8)
    victim.write_bytes(content)


def full_disk(bench: Bench, faults: int) -> Row:
  """Use a small file system of its own where that is allowed, else a limit on the file size."""
  mount = pathlib.Path(tempfile.mkdtemp(dir=bench.scratch))
  mounted = os.geteuid() == 0 and subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=64m', 'none', str(mount)], capture_output=True).returncode == 0
  training = Training(bench, mount / 'run')
  training.log = mount.parent / f'{mount.name}.log'
  try:
    training.start()
    training.wait_for_steps(3 * EVERY)
    if mounted:
      with contextlib.suppress(OSError), open(mount / 'ballast', 'wb', buffering=0) as ballast:
        while True:
          ballast.write(bytes(1 << 16))
    else:
      resource.prlimit(training.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    training.wait()
    (mount / 'ballast').unlink(missing_ok=True)
    training.finish()
    failed = training.count_logged('could not be written [(]failure')
    outcome = (f'trained to the end; {failed} checkpoints could not be written, one log line each; metrics waited in '
               'memory; the last error is one line; with free space the same command completed the run')
    kind = f'full disk ({"tmpfs" if mounted else "RLIMIT_FSIZE"})'
    return Row(kind, 1, 1, outcome, training.lost(), training.codes, training.equal())
  finally:
    if mounted:
      subprocess.run(['umount', str(mount)], check=True)


def deleted_folder(bench: Bench, faults: int) -> Row:
  training = Training(bench)
  training.start()
  training.wait_for_steps(3 * EVERY)
  for _ in range(100):  # the run writes into it meanwhile
    shutil.rmtree(training.folder, ignore_errors=True)
    if not training.folder.exists():
      break
  training.wait()
  outcome = 'training continued; later checkpoints are in a new folder'
  return Row('run folder deleted while it trains', 1, 1, outcome, training.lost(), training.codes, training.equal())


def nan(bench: Bench, faults: int) -> Row:
  """A batch whose loss is NaN, at step 42: twice, then repaired."""
  def inject():
    batch, loss = ClassificationTrainInput.batch, ClassificationLoss.__call__

    def poisoned(self, step):
      made = batch(self, step)
      if step == 41:
        made.image_ids[0] = POISON
      return made

    def not_a_number(self, outputs, batch):
      bad = tf.reduce_any(batch.image_ids == POISON)
      return {name: tf.where(bad, float('nan'), value) for name, value in loss(self, outputs, batch).items()}

    ClassificationTrainInput.batch, ClassificationLoss.__call__ = poisoned, not_a_number

  training = Training(bench)
  for _ in range(2):
    training.start(inject)
    training.wait()
  finite = all(np.isfinite(value).all() for path in training.checkpoints() for value in variables(path).values()
               if value.dtype.kind == 'f')
  training.finish()
  named = training.count_logged('not finite at step 42, image ids')
  outcome = (f'{named} times one line that names loss, step and images; every checkpoint '
             f'{"finite" if finite else "NOT FINITE"}; completed with the batch repaired')
  return Row('NaN in the loss of one batch', 2, 1, outcome, training.lost(), training.codes, training.equal())


def flaky_reads(bench: Bench, faults: int) -> Row:
  """Every 50th read fails once, alternately with an OSError and with an error of TensorFlow."""
  def inject():
    load, calls = ImageFolder.load, [0]

    def flaky(self, i):
      calls[0] += 1
      if calls[0] % 50 == 0:
        if calls[0] % 100:
          raise OSError(errno.EIO, os.strerror(errno.EIO))
        raise tf.errors.UnavailableError(None, None, 'storage is restarting')
      return load(self, i)

    ImageFolder.load = flaky

  training = Training(bench)
  training.start(inject)
  training.wait()
  retried = training.count_logged('; attempt 2 of ')
  return Row('a read that fails once (EIO, Unavailable)', retried, 1, f'{retried} reads retried, one log line each',
             training.lost(), training.codes, training.equal())


def lost_reader(bench: Bench, faults: int) -> Row:
  """Every read fails from some step on."""
  def inject():
    load, calls = ImageFolder.load, [0]

    def gone(self, i):
      calls[0] += 1
      if calls[0] > 400:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
      return load(self, i)

    ImageFolder.load = gone

  training = Training(bench)
  training.start(inject)
  training.wait()
  one_line = training.count_logged(r'(?m)^error: .* cannot be read: Input/output error$')
  training.finish()
  tried = training.count_logged('; attempt ')
  outcome = (f'retried {tried} times in a minute, then {one_line} error line that names the image; completed when '
             'storage was back')
  return Row('every read fails from some step on', 1, 1, outcome, training.lost(), training.codes, training.equal())


def killed_worker(bench: Bench, faults: int) -> Row:
  """SIGKILL one of two workers on this machine, started by the multi-worker launcher."""
  kind = 'SIGKILL of one of two workers'
  launcher, runtime = ROOT / 'launch' / 'multi_worker.sh', 'gin_configs/runtime/multi_worker.gin'
  if not launcher.exists() or not (ROOT / runtime).exists():
    return Row(kind, 0, 0, f'not run: no {launcher.name} or {runtime}', [], [], None)

  def command(training):
    own = [argument for argument in training.command() if 'strategy.kind' not in argument]
    return ['bash', str(launcher), '--workers=2', '--grace=20', '--', sys.executable, '-m', 'rethink_tf.pretrain',
            *own, f'--gin_file={runtime}', '--gin_param=run.images_per_device = 3']

  reference, training = Training(bench), Training(bench)
  for each, kill in ((reference, False), (training, True), (training, False)):
    with open(each.log, 'ab') as log:
      process = subprocess.Popen(command(each), cwd=ROOT, stdout=log, stderr=log)
    if kill:
      while len(each.lines('train')) < 2 * EVERY and process.poll() is None:
        time.sleep(0.02)
      children = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
      os.kill(int(children[-1]), signal.SIGKILL)
    each.codes.append(process.wait())
  complete = reference.codes == [0] and training.codes[-1] == 0
  outcome = ('the launcher ended the other worker; the same command on both completed the run, compared with two '
             'workers without faults' if complete else 'NOT COMPLETE')
  equal = complete and training.equal(reference)
  return Row(kind, 1, 1, outcome, training.lost(), training.codes, equal)


def several(bench: Bench, faults: int) -> Row:
  """The most common faults in one run."""
  training = Training(bench)
  for signum in (signal.SIGTERM, signal.SIGKILL):
    training.start()
    training.wait_for_steps(EVERY + 2)
    os.kill(training.pid, signum)
    training.wait()
  _damage(training.checkpoints()[-1], 0, bench.random)
  training.finish()
  outcome = f'completed; {training.count_logged("Skipping the damaged checkpoint")} damaged checkpoint detected'
  return Row('SIGTERM, SIGKILL, a damaged checkpoint', 3, 1, outcome, training.lost(), training.codes, training.equal())


ROWS = {'sigkill': (sigkill, 20), 'sigterm': (sigterm, 5), 'sigterm_twice': (sigterm_twice, 2), 'damaged': (damaged, 5),
        'full_disk': (full_disk, 1), 'deleted_folder': (deleted_folder, 1), 'nan': (nan, 2),
        'flaky_reads': (flaky_reads, 1), 'lost_reader': (lost_reader, 1), 'killed_worker': (killed_worker, 1),
        'two_writers': (two_writers, 3), 'changed_settings': (changed_settings, 1), **faults_running.ROWS}
QUICK = {'several': (several, 3)}


def table(rows: list[Row]) -> str:
  text = ['| fault | times | runs | outcome | steps lost per restart: mean, maximum | exit codes | '
          'final weights equal |',
          '|---|---|---|---|---|---|---|']
  for row in rows:
    codes = ', '.join(f'{code} ×{count}' for code, count in sorted(collections.Counter(row.codes).items()))
    lost = f'{sum(row.lost) / len(row.lost):.1f}, {max(row.lost)}' if row.lost else 'no restart'
    equal = {True: 'yes', False: '**no**', None: '–'}[row.equal]
    text.append(f'| {row.kind} | {row.faults} | {row.runs} | {row.outcome} | {lost} | {codes} | {equal} |')
  return '\n'.join(text)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--output', help='Markdown file for the table; default: print only')
  parser.add_argument('--only', action='append', choices=ROWS, help='run only this row; repeatable')
  parser.add_argument('--quick', action='store_true', help='one run with three faults')
  parser.add_argument('--epochs', type=int, default=30, help='of 10 steps each')
  parser.add_argument('--seed', type=int, default=0, help='of the times and places of the faults')
  flags = parser.parse_args()
  begin, rows = time.monotonic(), []
  chosen = QUICK if flags.quick else {name: ROWS[name] for name in flags.only or ROWS}
  with tempfile.TemporaryDirectory(prefix='faults-', ignore_cleanup_errors=True) as scratch:
    bench = Bench(scratch, flags.epochs, flags.seed)
    for make, faults in chosen.values():
      rows.append(make(bench, faults))
      print(table(rows[-1:]).split('\n')[-1], flush=True)
      if flags.output:
        command = ' '.join(['python -m tools.faults', *sys.argv[1:]])
        pathlib.Path(flags.output).write_text(HEAD.format(
          command=command, steps=bench.steps, every=EVERY, minutes=(time.monotonic() - begin) / 60,
          python=platform.python_version(), tensorflow=tf.__version__, table=table(rows)))
  if not all(row.equal in (True, None) for row in rows):
    sys.exit('error: a run with faults ended with other weights')


HEAD = '''# Fault injection

`{command}`: {minutes:.0f} minutes on one core (Python {python}, TensorFlow {tensorflow}).

A classifier (ResNet-14, averaged weights) is trained for {steps} steps with the usual command, `run.deterministic`, a
checkpoint every {every} steps and a line of metrics every step. After each fault the same command is repeated until the
run is complete, and its last checkpoint (weights, velocities, averages) is compared bit for bit with that of a run
without faults. Steps lost are those that had been logged and were trained again. Exit codes: 0 complete, 1 an error in
one line, 75 SIGTERM; -9 is a process that was killed.

{table}
'''


if __name__ == '__main__':
  main()
