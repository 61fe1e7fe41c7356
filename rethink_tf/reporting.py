"""What the doors give out: files, and word of how far they are."""

from __future__ import annotations

import os
import time

import tensorflow as tf

from rethink_tf.errors import UserError, in_one_line

PROGRESS_SECONDS = 10.0


def write(path: str, data: bytes) -> None:
  """Writes a result, local or gs://, and the folders above it.

  Raises:
    UserError: it cannot be written.
  """
  try:
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.gfile.GFile(path, 'wb') as file:
      file.write(data)
  except (OSError, tf.errors.OpError) as error:
    raise UserError(f'{path}: cannot be written: {in_one_line(error)}; choose another place with --output') from error


class Progress:
  """A line now and then: how many of how many, how fast, how long still.

  The clock starts with the first one: tracing a network is no part of its speed.
  """

  def __init__(self, name: str, total: int):
    self._name, self._total, self._done = name, total, 0
    self._first = self._shown = 0.0

  def count(self) -> None:
    """One more is done."""
    self._done += 1
    now = time.monotonic()
    if self._done == 1:
      self._first = self._shown = now
    elif now - self._shown >= PROGRESS_SECONDS:
      self._shown = now
      speed = (self._done - 1) / (now - self._first)
      minutes, seconds = divmod(round((self._total - self._done) / speed), 60)
      print(f'{self._name}: {self._done}/{self._total}, {speed:.3g}/s, {minutes}:{seconds:02d} left', flush=True)
