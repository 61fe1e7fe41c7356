"""SIGTERM, SIGHUP and Ctrl-C during training: the first ends it after a checkpoint, the second at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import types

from absl import logging

from rethink_tf.distributed.coordination import StopTogether
from rethink_tf.errors import Interrupted
from rethink_tf.process.signals import EXIT_CODES, PATIENCE_SECONDS, RESUMES, URGENT, end, handled_signals


class Interruption:
  """Handles SIGTERM, SIGINT and the other signals of EXIT_CODES in the main thread while this context is entered.

  The first signal is stored in `received` and logged. While `deferred` is true, the owner raises `error()` once the
  work is saved. Otherwise Interrupted is raised at once in the main thread; the process ends if that thread does not
  return from a call into C within PATIENCE_SECONDS (as in an evaluation whose data never arrives). A second SIGTERM or
  SIGINT ends the process at once, even during a long step: a thread watches for it, because Python runs signal handlers
  only between two of its own instructions.

  together: agreement of several workers on the last step; None for a single worker.

  Attributes:
    received: the first signal; None before it.
    deferred: whether there is unsaved work.
    message: for Interrupted: how to resume.
  """

  def __init__(self, together: StopTogether | None = None):
    self._together = together
    self._proposed = False
    self.received: int | None = None
    self.deferred = False
    self.message: str | None = None
    self._signals = contextlib.ExitStack()
    self._reacted = threading.Event()
    self._any, self._urgent = False, 0  # signals

  @property
  def shared(self) -> bool:
    """Whether there are other workers, which must end at the same step."""
    return self._together is not None

  def __enter__(self) -> Interruption:
    if self._together is not None:
      self._together.watch()
    self._signals.enter_context(handled_signals(self._note, self._watch))
    return self

  def __exit__(self, *exception: object) -> None:
    if self._together is not None:
      self._together.end()
    self._reacted.set()
    self._signals.close()

  def ends(self, step: int, following: int) -> bool:
    """Whether training ends after `step`, because of a signal to this process or another worker.

    following: the next step at which this is called.
    """
    if self._together is None:
      return self.received is not None
    if self.received is not None and not self._proposed:
      self._proposed = True
      self._together.propose(self.received, following)
    return self._together.step is not None and step >= self._together.step

  def error(self) -> Interrupted:
    """Return the exception that ends training, once the work is saved."""
    if self._together is not None and self._together.step is not None:
      self._together.confirm_saved()
    return Interrupted(self.received or self._together.signum, self.message)

  def _note(self, signum: int, frame: types.FrameType | None) -> None:
    self.received = signum
    self._reacted.set()
    if not self.deferred:
      raise self.error()

  def _watch(self, signum: int) -> None:
    """React to a signal in a thread, even while the main thread is in a call into C."""
    first, self._urgent = not self._any, self._urgent + (signum in URGENT)
    self._any = True
    if self._urgent > 1:
      os._exit(EXIT_CODES[signum])
    if not first:
      return
    what = ('ends after this step, once its checkpoint is saved, with exit code %d; a second signal ends it at once'
            if self.deferred else 'ends now, with exit code %d: nothing is left to save')
    logging.warning('%s: training %s', signal.Signals(signum).name, what % EXIT_CODES[signum])
    threading.Thread(target=self._end_a_stall, args=[signum], name='stall', daemon=True).start()

  def _end_a_stall(self, signum: int) -> None:
    while not self._reacted.wait(PATIENCE_SECONDS):
      if not self.deferred:
        end(self.message or RESUMES, EXIT_CODES[signum])
