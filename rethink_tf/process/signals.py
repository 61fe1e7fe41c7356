"""Signals and deadlines of a command, which take effect even while its main thread is in a call into C."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import types
from collections.abc import Callable, Iterator

# Of a command ended by a signal. 75 is EX_TEMPFAIL of sysexits.h: incomplete, run the same command again. SIGHUP: the
# terminal or the connection is gone; SIGUSR1, which ends a process by default: the warning of some batch systems.
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}
EXIT_CODES |= {getattr(signal, name): 75 for name in ('SIGHUP', 'SIGUSR1') if hasattr(signal, name)}  # not on Windows
URGENT = (signal.SIGINT, signal.SIGTERM)  # the second one ends at once; a closed terminal sends SIGHUP several times
RESUMES = 'stopped; the same command resumes from the last checkpoint'  # of commands that train
error_descriptor = 2  # console.held_stderr keeps the standard error at another one meanwhile
CLEANUP_SECONDS = 30.0  # after the main thread has reacted: it may wait for a thread whose read never ends
PATIENCE_SECONDS = 10.0  # after a signal, for a main thread within a call into C


@contextlib.contextmanager
def handled_signals(handler: Callable[[int, types.FrameType | None], None],
                    watch: Callable[[int], None]) -> Iterator[None]:
  """Handle the signals of EXIT_CODES in the main thread; in another thread, whose owner handles them, do nothing.

  A signal that the caller of the process ignores (nohup, jobs in the background of a script) stays ignored; one with a
  handler in C (None, faulthandler.register) stays with that.

  handler: called in the main thread, between two instructions of Python.
  watch: called at once with the number of each signal, in a thread, also while the main thread is within a call into C.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  handled = [signum for signum in EXIT_CODES if signal.getsignal(signum) not in (signal.SIG_IGN, None)]
  reading, writing = socket.socketpair()  # Windows takes no pipe
  writing.setblocking(False)
  earlier_pipe = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
  earlier = {signum: signal.signal(signum, handler) for signum in handled}

  def read() -> None:
    with reading:
      while number := reading.recv(1):
        if number[0] in handled:
          watch(number[0])

  threading.Thread(target=read, name='signals', daemon=True).start()
  try:
    yield
  finally:
    for signum, function in earlier.items():
      signal.signal(signum, function)
    signal.set_wakeup_fd(earlier_pipe)
    writing.close()  # ends the thread


@contextlib.contextmanager
def deadline(seconds: float, message: str, code: int) -> Iterator[None]:
  """End the process if the body takes longer than `seconds`: it may be in a call into C that no signal interrupts."""
  done = threading.Event()

  def wait() -> None:
    if not done.wait(seconds):
      end(message, code)

  threading.Thread(target=wait, name='deadline', daemon=True).start()
  try:
    yield
  finally:
    done.set()


def end(message: str, code: int) -> None:
  """End the process from any thread, whatever the main thread is doing, with a line on standard error."""
  with contextlib.suppress(OSError):
    os.write(error_descriptor, f'{message}\n'.encode(errors='backslashreplace'))
  os._exit(code)


class Watchdog:
  """Ends the process if the main thread does not react to a signal in time, or at a second signal before it has.

  The main thread may be in a call into C that never returns: a read from storage that hangs, a worker that is gone.

  reacted: set by the handler in the main thread. done: set when the command has ended.
  """

  def __init__(self, message: str, cleanup_seconds: float | None):
    self._message, self._cleanup = message, cleanup_seconds
    self.done = threading.Event()
    self._signals: list[int] = []
    self.reacted = threading.Event()

  def watch(self, signum: int) -> None:
    """Record a signal; called by handled_signals."""
    if not self._signals:
      threading.Thread(target=self._wait, args=[signum], name='watchdog', daemon=True).start()
    self._signals.append(signum)
    if sum(one in URGENT for one in self._signals) > 1 and not self.reacted.wait(0.2):
      end(self._message, EXIT_CODES[signum])

  def _wait(self, signum: int) -> None:
    if not (self.reacted.wait(PATIENCE_SECONDS) and self.done.wait(self._cleanup)):
      end(self._message, EXIT_CODES[signum])
