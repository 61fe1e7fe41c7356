"""Errors of storage that pass: tried again, later and later, then left to the caller.

Transient, since the next attempt may succeed: storage that is unavailable, slow to answer or restarting. These are
TensorFlow's Unavailable, DeadlineExceeded, Aborted (its name for ESTALE) and Unknown (for EIO), and the operating
system's EIO, ESTALE, ETIMEDOUT, broken and refused connections. Not transient: what is missing (NotFound, ENOENT),
forbidden (PermissionDenied, EACCES, EROFS), full (ResourceExhausted, ENOSPC, EDQUOT), damaged (DataLoss) or wrong
(InvalidArgument and the rest).
"""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf
from absl import logging

from rethink_tf.errors import in_one_line

T = TypeVar('T')

TRANSIENT_STATUS = (tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError,
                    tf.errors.UnknownError)
TRANSIENT_ERRNO = frozenset((
  errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.ENOLCK, errno.ECONNRESET,
  errno.ECONNABORTED, errno.ECONNREFUSED, errno.EPIPE, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN,
  errno.ENETRESET, errno.ENETUNREACH))

_jitter = random.SystemRandom()  # not the generator that the run has seeded


def is_transient(error: BaseException | None) -> bool:
  """Whether the next attempt may succeed; an error that was raised from such an error is one."""
  while error is not None:
    if isinstance(error, TRANSIENT_STATUS) or (isinstance(error, OSError) and error.errno in TRANSIENT_ERRNO):
      return True
    error = error.__cause__
  return False


def call(action: Callable[[], T], what: str, attempts: int = 8, first: float = 0.5, longest: float = 30.0) -> T:
  """The result of `action`, which is called again after a transient error, `attempts` times at most.

  The n-th pause lasts first · 2^(n-1) seconds, at most `longest`, less up to half of it by chance: hosts that failed
  together do not come back together. Each one is a line in the log, which begins with `what`. As given they sum up to a
  minute or less.

  Raises:
    Whatever `action` raises: at once when it is not transient, else from the last attempt.
  """
  for attempt in range(1, attempts):
    try:
      return action()
    except Exception as error:
      if not is_transient(error):
        raise
      pause = min(longest, first * 2 ** (attempt - 1)) * _jitter.uniform(0.5, 1.0)
      logging.warning('%s: %s; attempt %d of %d in %.1f s', what, in_one_line(error), attempt + 1, attempts, pause)
      time.sleep(pause)
  return action()
