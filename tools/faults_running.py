"""Faults around a training: its output, its terminal, its metrics, and data that never arrives."""

from __future__ import annotations

import os
import signal
import threading
import time

from tools.small_runs import EVERY, Bench, Row, Training  # first: it sets up the environment for TensorFlow

from rethink_tf.data import batching  # isort: skip
from rethink_tf.data.classification.image_folder import ImageFolder  # isort: skip

NO_LINES = b'{"kind": "train"}\n{"kind": "eval", "step": "many"}\n{"step": 1e999}\n[]\n\xff\xfe\n{"kind": "train", "st'


def full_output(bench: Bench, faults: int) -> Row:
  """Standard output on a full disk (/dev/full)."""
  return _without_output(bench, 'standard output on a full disk (`> /dev/full`)',
                         lambda: os.open('/dev/full', os.O_WRONLY))


def closed_pipe(bench: Bench, faults: int) -> Row:
  """Standard output is a pipe whose reader has ended (`| head -1`)."""
  def pipe() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing

  return _without_output(bench, 'standard output is a pipe that nobody reads (`| head -1`)', pipe)


def _without_output(bench: Bench, kind: str, output) -> Row:
  training = Training(bench)
  training.start(lambda: os.dup2(output(), 1))
  training.complete()
  reported = training.count_logged('standard output cannot be written')
  return Row(kind, 1, 1, f'trained to the end; {reported} line on the standard error', training.lost(), training.codes,
             training.equal() and reported == 1)


def sighup(bench: Bench, faults: int) -> Row:
  """The terminal is closed: SIGHUP, which may come twice."""
  training, seconds = Training(bench), []
  for number in range(faults):
    training.start()
    training.wait_for_steps(1 + bench.random.randrange(12))
    begin = time.monotonic()
    for _ in range(1 + number % 2):
      os.kill(training.pid, signal.SIGHUP)
      time.sleep(0.001)
    training.wait()
    seconds.append(time.monotonic() - begin)
  training.finish()
  outcome = f'exited after the next step with a checkpoint, at most {max(seconds):.1f} s after the signal'
  return Row('SIGHUP, once and twice', faults, 1, outcome, training.lost(), training.codes, training.equal())


def unreadable_metrics(bench: Bench, faults: int) -> Row:
  """Lines without a step in metrics.jsonl, then a folder in its place."""
  training = Training(bench)
  metrics = training.folder / 'metrics.jsonl'
  for fault in ('lines', 'folder'):
    training.start()
    training.wait_for_steps(EVERY + 2)
    os.kill(training.pid, signal.SIGTERM)
    training.wait()
    if fault == 'lines':
      with open(metrics, 'ab') as file:
        file.write(NO_LINES)
    else:
      metrics.rename(training.folder / 'moved.jsonl')
      metrics.mkdir()
  training.finish()
  skipped, unread = training.count_logged(r'skipped \d+ line\(s\)'), training.count_logged('metrics.jsonl: cannot be')
  outcome = (f'trained to the end; {bool(skipped) + bool(unread)} of 2 faults named in a warning; checkpoints are kept '
             'while the best one is not known')
  return Row('metrics.jsonl: lines without a step, half lines, no text; a folder in its place', 2, 1, outcome,
             training.lost(), training.codes, training.equal() and bool(unread))


def hanging_read(bench: Bench, faults: int) -> Row:
  """A read that never returns, and SIGTERM."""
  def inject() -> None:
    load, calls = ImageFolder.load, [0]

    def hang(self, i):
      calls[0] += 1
      if calls[0] > 200:
        threading.Event().wait()
      return load(self, i)

    ImageFolder.load, batching.WAITING_SECONDS = hang, 2.0

  training = Training(bench)
  training.start(inject)
  while training.running() and not training.count_logged('waiting for data'):
    time.sleep(0.1)
  begin = time.monotonic()
  os.kill(training.pid, signal.SIGTERM)
  training.wait()
  seconds = time.monotonic() - begin
  training.finish()
  outcome = (f'a line names the image that is awaited; SIGTERM saved a checkpoint and ended the run within '
             f'{seconds:.1f} s')
  return Row('a read that never ends, then SIGTERM', 1, 1, outcome, training.lost(), training.codes,
             training.equal() and training.codes[0] == 75 and not any(training.lost()))


ROWS = {'full_output': (full_output, 1), 'closed_pipe': (closed_pipe, 1), 'sighup': (sighup, 4),
        'unreadable_metrics': (unreadable_metrics, 2), 'hanging_read': (hanging_read, 1)}
