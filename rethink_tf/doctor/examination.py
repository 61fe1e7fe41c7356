"""Runs the worker, again after each check that ends it, and collects its rows. Does not import TensorFlow."""

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
from collections.abc import Mapping, Sequence
from typing import IO, Any, NamedTuple

from rethink_tf.doctor.rows import FAILED, NOT_RUN, Row, from_json
from rethink_tf.errors import plain
from rethink_tf.redaction import redact

COMMAND = (sys.executable, '-m', 'rethink_tf.doctor.worker')
_START = 'TensorFlow starts'
_TAIL = 8 << 10  # bytes of a worker's log, from which the reason is taken


class Examination(NamedTuple):
  """What was found: rows of checks, and facts such as versions."""

  rows: list[Row]
  facts: dict[str, str]
  seconds: float


def examine(command: Sequence[str], options: Mapping[str, Any], timeout: float) -> Examination:
  """Run all checks. command: of the worker; timeout: seconds for each check."""
  start = time.monotonic()
  rows: list[Row] = []
  facts: dict[str, str] = {}
  done: list[str] = []
  planned: list[str] | None = None
  while planned is None or len(done) < len(planned):
    before = len(done)
    arguments = json.dumps({'options': dict(options), 'done': done, 'facts': planned is None})
    running, reason = _START, ''
    with tempfile.TemporaryFile() as log, _worker([*command, arguments], log) as worker:
      lines = _lines(worker)
      while True:
        try:
          line = lines.get(timeout=timeout)
        except queue.Empty:
          worker.kill()
          reason = f'did not end within {timeout / 60:g} minutes (--timeout_minutes)'
          break
        if line is None:
          break
        message = json.loads(line)
        if 'plan' in message:
          planned, facts, running = message['plan'], message['facts'] or facts, ''
        elif 'begin' in message:
          running = message['begin']
          print(f'{len(done) + 1}/{len(planned)} {plain(running)}', file=sys.stderr, flush=True)
        else:
          rows += [from_json(fields) for fields in message['rows']]
          done.append(message['end'])
          running = ''
      code = worker.wait()
      if len(done) == len(planned or ()) and planned is not None:
        break
      reason = reason or f'{_ended(code)}: {_last_lines(log)}'
    if running == _START or not running and len(done) == before:
      missing = [name for name in planned or () if name not in done]
      rows += [Row(_START, '', FAILED, note=reason), *(Row(name, '', NOT_RUN) for name in missing)]
      break
    if running:
      rows.append(Row(running, '', FAILED, note=reason))
      done.append(running)
  return Examination(rows, facts, time.monotonic() - start)


@contextlib.contextmanager
def _worker(command: Sequence[str], log: IO[bytes]):
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
  """Return what the worker has printed last, the lines that speak of an error first, in one line."""
  size = log.seek(0, 2)
  log.seek(max(size - _TAIL, 0))
  lines = [line.strip() for line in log.read().decode(errors='replace').splitlines() if line.strip()]
  telling = [line for line in lines if any(word in line for word in ('rror', 'Check failed', 'atal', 'LLVM', 'F0000'))]
  return plain(redact(' | '.join((telling or lines)[-3:])))[:500] or 'it printed nothing'
