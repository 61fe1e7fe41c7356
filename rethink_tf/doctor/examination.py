"""Runs the worker, restarting it after a check that crashes it, and collects its rows. Does not import TensorFlow."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

from rethink_tf.doctor.rows import FAILED, NOT_RUN, Row, from_json
from rethink_tf.errors import plain, shortened
from rethink_tf.redaction import redact

COMMAND = (sys.executable, '-m', 'rethink_tf.doctor.worker')
_START = 'TensorFlow starts'
_TAIL = 8 << 10  # bytes of a worker's log, from which the reason is taken


class Examination(NamedTuple):
  """The findings: rows of checks, and facts such as versions."""

  rows: list[Row]
  facts: dict[str, str]
  seconds: float


class _Progress:
  """The messages of all workers so far.

  running: name of the check that the present worker runs; _START before its first message, '' between two checks.
  planned: names of all checks; None before the first message.
  """

  def __init__(self) -> None:
    self.rows: list[Row] = []
    self.facts: dict[str, str] = {}
    self.done: list[str] = []
    self.planned: list[str] | None = None
    self.running = _START

  @property
  def complete(self) -> bool:
    """Whether all checks are done."""
    return self.planned is not None and len(self.done) == len(self.planned)

  def take(self, message: Mapping[str, Any]) -> None:
    """Take a message of the worker: its plan, the begin of a check, or the end of one."""
    if 'plan' in message:
      self.planned, self.facts, self.running = message['plan'], message['facts'] or self.facts, ''
    elif 'begin' in message:
      self.running = message['begin']
      print(f'{len(self.done) + 1}/{len(self.planned)} {plain(self.running)}', file=sys.stderr, flush=True)
    else:
      self.rows += [from_json(fields) for fields in message['rows']]
      self.done.append(message['end'])
      self.running = ''


def examine(command: Sequence[str], options: Mapping[str, Any], timeout: float) -> Examination:
  """Run all checks. command: of the worker; timeout: seconds for each check."""
  start, progress = time.monotonic(), _Progress()
  while not progress.complete:
    before = len(progress.done)
    reason = _run_worker(command, options, timeout, progress)
    if progress.complete:
      break
    if progress.running == _START or not progress.running and len(progress.done) == before:
      missing = [name for name in progress.planned or () if name not in progress.done]
      progress.rows += [Row(_START, '', FAILED, note=reason), *(Row(name, '', NOT_RUN) for name in missing)]
      break
    if progress.running:
      progress.rows.append(Row(progress.running, '', FAILED, note=reason))
      progress.done.append(progress.running)
  return Examination(progress.rows, progress.facts, time.monotonic() - start)


def _run_worker(command: Sequence[str], options: Mapping[str, Any], timeout: float, progress: _Progress) -> str:
  """Run a worker on the checks that are not done, until it ends or a check takes too long; return why it has ended."""
  arguments = json.dumps({'options': dict(options), 'done': progress.done, 'facts': progress.planned is None})
  progress.running = _START
  with tempfile.TemporaryFile() as log, _worker([*command, arguments], log) as worker:
    lines = _lines(worker)
    try:
      while (line := lines.get(timeout=timeout)) is not None:
        progress.take(json.loads(line))
    except queue.Empty:
      worker.kill()
      worker.wait()
      return f'did not end within {timeout / 60:g} minutes (--timeout_minutes)'
    return f'{_ended(worker.wait())}: {_last_lines(log)}'


@contextlib.contextmanager
def _worker(command: Sequence[str], log: IO[bytes]) -> Iterator[subprocess.Popen]:
  worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
  try:
    yield worker
  finally:
    worker.kill()
    worker.wait()
    worker.stdout.close()


def _lines(worker: subprocess.Popen) -> queue.Queue[bytes | None]:
  """Return a queue of the worker's lines, None at their end."""
  lines: queue.Queue[bytes | None] = queue.Queue()

  def read() -> None:
    with contextlib.suppress(ValueError):  # closed
      for line in worker.stdout:
        lines.put(line)
    lines.put(None)

  threading.Thread(target=read, name='doctor', daemon=True).start()
  return lines


def _ended(code: int) -> str:
  if code >= 0:
    return f'the process ended with exit code {code}'
  with contextlib.suppress(ValueError):
    return f'the process was ended by {signal.Signals(-code).name}'
  return f'the process was ended by signal {-code}'


def _last_lines(log: IO[bytes]) -> str:
  """Return the last lines that the worker printed, those about an error first, as one line."""
  size = log.seek(0, 2)
  log.seek(max(size - _TAIL, 0))
  lines = [line.strip() for line in log.read().decode(errors='replace').splitlines() if line.strip()]
  telling = [line for line in lines if any(word in line for word in ('rror', 'Check failed', 'atal', 'LLVM', 'F0000'))]
  return shortened(plain(redact(' | '.join((telling or lines)[-3:]))), 500) or 'it printed nothing'
