"""Retries with exponential backoff after transient storage errors.

Transient: the storage is unavailable, slow or restarting. These are TensorFlow's Unavailable, DeadlineExceeded, Aborted
(its name for ESTALE) and Unknown (for EIO), and the operating system's EIO, ESTALE, ETIMEDOUT, broken and refused
connections. Not transient: missing files (NotFound, ENOENT), missing permissions (PermissionDenied, EACCES, EROFS),
full disks (ResourceExhausted, ENOSPC, EDQUOT), damaged data (DataLoss) and invalid calls (InvalidArgument and others).
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

_jitter = random.SystemRandom()  # leaves the seeded generator of the run alone


def is_transient(error: BaseException | None) -> bool:
  """Whether the next attempt may succeed: for a transient error, or an error raised from one."""
  while error is not None:
    if isinstance(error, TRANSIENT_STATUS) or (isinstance(error, OSError) and error.errno in TRANSIENT_ERRNO):
      return True
    error = error.__cause__
  return False


def call(action: Callable[[], T], what: str, attempts: int = 8, first: float = 0.5, longest: float = 30.0) -> T:
  """Return the result of `action`, retried with backoff after transient errors, up to `attempts` calls in all.

  The n-th pause lasts min(longest, first · 2^(n-1)) seconds, minus a random share of up to a half so that hosts do not
  retry at the same moment. Each retry is logged, in a line that begins with `what`. By default the pauses add up to a
  minute at most.

  Raises:
    The error of `action`: at once if it is not transient, otherwise that of the last attempt.
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
