"""What commands print: progress with the time left, durations, and only the log lines that matter."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

import tensorflow as tf
from absl import logging as absl_logging

from rethink_tf.process import signals

PROGRESS_SECONDS = 10.0  # between two lines in a log; a terminal's line is rewritten twice a second


class Progress:
  """Lines such as 'images: 120/5000, 8.3/s, ETA 9 min 48 s', at most one every ten seconds; thread-safe.

  On a terminal one line is rewritten. The clock starts with the first item, so that the speed does not include tracing
  the network.

  unit: 'MiB' if bytes are counted; total: 0 if unknown.
  """

  def __init__(self, name: str, total: int, stream: TextIO | None = None, unit: str = ''):
    self._name, self._total, self._done, self._unit = name, total, 0, unit
    self._stream = stream or sys.stdout
    self._terminal = self._stream.isatty()
    self._first = self._shown = 0.0
    self._begun: int | None = None  # what was done when the clock started
    self._lock = threading.Lock()

  def start(self, done: int, total: int) -> None:
    """Start the clock, with what is done already."""
    with self._lock:
      self._done = self._begun = done
      self._total = total
      self._first = self._shown = time.monotonic()

  def count(self, amount: int = 1) -> None:
    """Record that one more item is done, or `amount` bytes."""
    with self._lock:
      self._done += amount
      now = time.monotonic()
      if self._begun is None:
        self._begun, self._first, self._shown = self._done, now, now
      elif (now - self._shown >= (0.5 if self._terminal else PROGRESS_SECONDS)
            or self._done == self._total and self._shown > self._first):
        self._shown = now
        line = self._line((self._done - self._begun) / (now - self._first))
        print(f'\r{line}\x1b[K' if self._terminal else line, end='' if self._terminal else '\n', file=self._stream,
              flush=True)

  def _line(self, speed: float) -> str:
    left = f', ETA {duration(max(self._total - self._done, 0) / speed)}' if self._total and speed else ''
    if not self._unit:
      return f'{self._name}: {self._done}/{self._total}, {speed:.3g}/s{left}'
    done, total, speed = (value / (1 << 20) for value in (self._done, self._total, speed))
    return f'{self._name}: {done:.1f}{f"/{total:.1f}" if total else ""} {self._unit}, {speed:.3g} {self._unit}/s{left}'

  def close(self) -> None:
    """End the line of a terminal."""
    if self._terminal and self._done > 1:
      print(file=self._stream, flush=True)


def duration(seconds: float) -> str:
  """A duration in its two leading units: '3 h 12 min'."""
  if not math.isfinite(seconds):
    return '?'
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  if days:
    return f'{days} d {hours} h'
  if hours:
    return f'{hours} h {minutes} min'
  return f'{minutes} min {seconds} s' if minutes else f'{seconds} s'


def counted(number: int, one: str, several: str | None = None) -> str:
  """A number of things: '1 image', '2 images', '2 classes'."""
  return f'{number} {one if number == 1 else several or f"{one}s"}'


def points(value: float) -> str:
  """A number of points of AP in words: '1 point', '0.5 points'."""
  return f'{value:g} point{"" if value == 1 else "s"}'


def times(ratio: float) -> str:
  """A ratio: '120 x', '3.4 x', 'less than 0.01 x'."""
  return f'{ratio:,.0f} x' if ratio >= 99.5 else 'less than 0.01 x' if ratio < 0.01 else f'{ratio:.2g} x'


def signed(value: float) -> str:
  """A difference in points with its sign, two digits below one point: '+3.4', '-0.04', '+0.00'.

  An end of an interval beside zero, or beside the margin, decides a verdict.
  """
  rounded = round(value, 2) + 0.0  # no -0.00
  return f'{value:+.1f}' if abs(rounded) >= 1 else f'{rounded:+.2f}'


def magnitude(value: float) -> str:
  """A difference in points without its sign, with the digits that `signed` gives it: '3.4', '0.04'."""
  return signed(value)[1:]


def told_apart(first: float, second: float, digits: int = 1) -> tuple[str, str]:
  """Two values with the digits that tell them apart, four at most: they are beside words that say that they differ."""
  texts = f'{first:.{digits}f}', f'{second:.{digits}f}'
  return texts if texts[0] != texts[1] or digits == 4 else told_apart(first, second, digits + 1)


def percent(share: float) -> str:
  """A share in percent with as many digits as it has: '95 %', '99.9 %'."""
  return f'{100 * share:.12g} %'


def hide_library_info() -> None:
  """Show this package's information lines without a prefix, and hide those of the libraries."""
  absl_logging.set_verbosity(absl_logging.INFO)
  handler = absl_logging.get_absl_handler()
  handler.setFormatter(None)  # plain lines, without the prefix of a server log
  handler.addFilter(_is_ours_or_a_warning)
  # One trace for each padded shape is intended.
  tf.get_logger().addFilter(_is_no_retracing)


# Functions rather than lambdas: a logger takes the same filter only once.
def _is_ours_or_a_warning(record: logging.LogRecord) -> bool:
  return record.levelno > logging.INFO or 'rethink_tf' in record.pathname


def _is_no_retracing(record: logging.LogRecord) -> bool:
  return 'tf.function retracing' not in record.getMessage()


def compile_once() -> None:
  """Compile with XLA for the first time, hiding the line that it prints about that at every log level.

  Starts TensorFlow: call it after the devices are chosen. On the CPU, whatever GPUs XLA could not compile for.
  """
  with held_stderr(), tf.device('/CPU:0'):
    tf.function(lambda x: x + 1.0, jit_compile=True)(tf.constant(0.0))


# Run in another process, which outlives an abort: prints what it has read unless that ends with the mark.
_READER = """
import sys
text = sys.stdin.buffer.read()
if not text.endswith(b'\\0done'):
  sys.stderr.buffer.write(text)
  sys.stderr.buffer.flush()
"""


@contextlib.contextmanager
def held_stderr() -> Iterator[None]:
  """Hold back what C++ code writes to the standard error: dropped afterwards, but printed if the process ends inside.

  TensorFlow writes the reason and aborts, which no handler of Python sees.
  """
  try:
    reader = subprocess.Popen([sys.executable, '-I', '-S', '-c', _READER], stdin=subprocess.PIPE,
                              stdout=subprocess.DEVNULL, stderr=2, start_new_session=True)
  except (OSError, ValueError):  # no more processes, or Python without an executable: extra lines do no harm
    yield
    return
  kept = os.dup(2)
  try:
    os.dup2(reader.stdin.fileno(), 2)
    signals.error_descriptor = kept
    yield
  finally:
    signals.error_descriptor = 2
    os.dup2(kept, 2)
    os.close(kept)
    with contextlib.suppress(OSError), reader:
      reader.stdin.write(b'\0done')
