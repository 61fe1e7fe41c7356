"""SIGTERM and Ctrl-C during training: the first one waits for a checkpoint, the second one does not."""

from __future__ import annotations

import os
import signal
import threading

from absl import logging

from rethink_tf.distributed.coordination import StopTogether
from rethink_tf.errors import EXIT_CODES, Interrupted


class Interruption:
  """What the two signals do while this context is entered, in the main thread.

  The first is noted in `received` and told in one line. While `deferred` it is for the owner to raise `error()` once
  the work is saved; otherwise Interrupted is raised at once, wherever the main thread is. A second signal ends the
  process on the spot, in the middle of a long step too: a thread watches for it, because Python calls its handlers
  only between two of its own instructions.

  together: among several workers, what they end by; None alone.

  Attributes:
    received: the signal, None so far.
    deferred: whether something is unsaved.
    told: what Interrupted says.
  """

  def __init__(self, together: StopTogether | None = None):
    self._together = together
    self._asked = False
    self.received: int | None = None
    self.deferred = False
    self.told: str | None = None
    self._handlers: dict[int, object] = {}

  @property
  def shared(self) -> bool:
    """Whether there are other workers, whom a signal concerns too."""
    return self._together is not None

  def __enter__(self) -> Interruption:
    if self._together is not None:
      self._together.watch()
    if threading.current_thread() is not threading.main_thread():
      return self  # signals reach the main thread only: whoever owns it decides
    reading, self._writing = os.pipe()
    os.set_blocking(self._writing, False)
    self._earlier = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
    self._handlers = {signum: signal.signal(signum, self._note) for signum in EXIT_CODES}
    threading.Thread(target=self._watch, args=[reading], name='signals', daemon=True).start()
    return self

  def __exit__(self, *exception) -> None:
    if self._together is not None:
      self._together.end()
    if self._handlers:
      for signum, handler in self._handlers.items():
        signal.signal(signum, handler)
      signal.set_wakeup_fd(self._earlier)
      os.close(self._writing)  # ends the thread
      self._handlers = {}

  def ends(self, step: int, following: int) -> bool:
    """Whether work ends after `step`, because of a signal to this process or to another worker's.

    following: the step after which one may be asked next.
    """
    if self._together is None:
      return self.received is not None
    if self.received is not None and not self._asked:
      self._asked = True
      self._together.ask(self.received, following)
    return self._together.step is not None and step >= self._together.step

  def error(self) -> Interrupted:
    """What ends the work, which is saved."""
    if self._together is not None and self._together.step is not None:
      self._together.saved()
    return Interrupted(self.received or self._together.signum, self.told)

  def _note(self, signum, frame):
    self.received = signum
    if not self.deferred:
      raise self.error()

  def _watch(self, reading: int):
    """Reads the number of each signal as it comes in, from the pipe that Python's own handler in C writes to."""
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
