"""SIGTERM and Ctrl-C during training: the first ends it after a checkpoint, the second at once."""

from __future__ import annotations

import os
import signal
import threading
import types

from absl import logging

from rethink_tf.distributed.coordination import StopTogether
from rethink_tf.errors import EXIT_CODES, Interrupted


class Interruption:
  """Handles SIGTERM and SIGINT in the main thread while this context is entered.

  The first signal is stored in `received` and logged. While `deferred`, the owner raises `error()` once the work is
  saved; otherwise Interrupted is raised at once, wherever the main thread is. A second signal ends the process at once,
  also within a long step: a thread watches for it, because Python calls signal handlers only between two of its own
  instructions.

  together: agreement of several workers on the last step; None for a single one.

  Attributes:
    received: the signal, None before the first.
    deferred: whether there is unsaved work.
    message: that of Interrupted: how to resume.
  """

  def __init__(self, together: StopTogether | None = None):
    self._together = together
    self._proposed = False
    self.received: int | None = None
    self.deferred = False
    self.message: str | None = None
    self._handlers: dict[int, object] = {}

  @property
  def shared(self) -> bool:
    """Whether there are other workers, which must end at the same step."""
    return self._together is not None

  def __enter__(self) -> Interruption:
    if self._together is not None:
      self._together.watch()
    if threading.current_thread() is not threading.main_thread():
      return self  # signals reach the main thread only: its owner handles them
    reading, self._writing = os.pipe()
    os.set_blocking(self._writing, False)
    self._earlier = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
    self._handlers = {signum: signal.signal(signum, self._note) for signum in EXIT_CODES}
    threading.Thread(target=self._watch, args=[reading], name='signals', daemon=True).start()
    return self

  def __exit__(self, *exception: object) -> None:
    if self._together is not None:
      self._together.end()
    if self._handlers:
      for signum, handler in self._handlers.items():
        signal.signal(signum, handler)
      signal.set_wakeup_fd(self._earlier)
      os.close(self._writing)  # ends the thread
      self._handlers = {}

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
    if not self.deferred:
      raise self.error()

  def _watch(self, reading: int) -> None:
    """Read the number of each signal from the pipe that Python's handler in C writes to."""
    first = True
    with os.fdopen(reading, 'rb', buffering=0) as numbers:
      while number := numbers.read(1):
        if number[0] not in EXIT_CODES:
          continue
        if not first:
          os._exit(EXIT_CODES[number[0]])
        first = False
        logging.warning('%s: ends after this step, once its checkpoint is saved, with code %d; a second signal ends at '
                        'once', signal.Signals(number[0]).name, EXIT_CODES[number[0]])
