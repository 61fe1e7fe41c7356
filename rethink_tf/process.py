"""The process of a command: flags and --help, errors in one line, exit codes, signals, output that is lost."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import signal
import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from absl import app, logging

from rethink_tf.errors import Interrupted, UserError, WorkerLost, in_one_line, plain
from rethink_tf.redaction import RedactingFilter, redact, redacted_tracebacks

# Of a command ended by a signal. 75 is EX_TEMPFAIL of sysexits.h: incomplete, run the same command again. SIGHUP: the
# terminal or the connection is gone; SIGUSR1, which ends a process by default: the warning of some batch systems.
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}
EXIT_CODES |= {getattr(signal, name): 75 for name in ('SIGHUP', 'SIGUSR1') if hasattr(signal, name)}  # not on Windows
URGENT = (signal.SIGINT, signal.SIGTERM)  # the second one ends at once; a closed terminal sends SIGHUP several times
_HELP = ('-h', '-?', '-help', '--help', '--helpshort')  # of this command; absl's --helpfull also lists the libraries'
_REWRITTEN = re.compile(r'\r[^\x00-\x1f\x7f-\x9f]*\x1b\[K')  # a line of console.Progress
error_descriptor = 2  # console.held_stderr keeps the standard error at another one meanwhile
CLEANUP_SECONDS = 30.0  # after the main thread has reacted: it may wait for a thread whose read never ends
PATIENCE_SECONDS = 10.0  # after a signal, for a main thread within a call into C


def start(main: Callable[..., None], takes_arguments: bool = False,
          interrupted: str = 'stopped; the same command resumes from the last checkpoint',
          result_is_printed: bool = False, cleanup_seconds: float | None = CLEANUP_SECONDS) -> None:
  """Parse the command line, call main, and turn errors into one line and an exit code (as_command).

  takes_arguments: main is called with the positional arguments. result_is_printed: standard output is the result, so
  that an error of writing it ends with exit code 1; other commands continue without their output. cleanup_seconds:
  after a signal, in which threads that read must have ended; None: unlimited.
  After a signal or the loss of a worker the process exits at once: Python would wait for the scoring thread, and
  TensorFlow for the worker.
  """
  def command(argv: list[str]) -> None:
    try:
      call, others = (functools.partial(main, argv[1:]), argv[:1]) if takes_arguments else (main, argv)
      as_command(call, others, interrupted, cleanup_seconds, result_is_printed)
    except SystemExit as end:
      if end.code in (*EXIT_CODES.values(), WorkerLost.exit_code):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)
      raise

  protect_output(report=not result_is_printed)
  logging.get_absl_handler().addFilter(RedactingFilter())
  app.run(command, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  """Parse the flags, and return what is left; --help prints the flags of the command and exits with code 0."""
  arguments = argv[1:argv.index('--')] if '--' in argv else argv[1:]
  if any(argument in _HELP for argument in arguments):
    app.usage(shorthelp=True, writeto_stdout=True)
    sys.exit(0)
  return app.parse_flags_with_usage(argv)


def check_path(path: str | None, message: str) -> None:
  """Check that a local path of the command line exists, before TensorFlow is imported, which takes seconds.

  Raises:
    UserError: '<path>: <message>'.
  """
  if path and '://' not in path and not os.path.exists(os.path.expanduser(path)):
    raise UserError(f'{path}: {message}')


@redacted_tracebacks()
def as_command(main: Callable[[], None], argv: Sequence[str], interrupted: str,
               cleanup_seconds: float | None = CLEANUP_SECONDS, result_is_printed: bool = False) -> None:
  """Call main, unless an argument is left over, and turn exceptions into a line and an exit code.

  A UserError prints one line and exits with its exit code (1; 69 for WorkerLost). Ctrl-C, SIGTERM and SIGHUP print
  `interrupted`, or the message of Interrupted, and exit with 130 or 75, also from a call into C that never returns. Any
  other exception gives Python's traceback, redacted.
  """
  watchdog = Watchdog(interrupted, cleanup_seconds)

  def interrupt(signum: int, frame: types.FrameType | None) -> None:
    watchdog.reacted.set()
    raise Interrupted(signum)

  try:
    with handled_signals(interrupt, watchdog.watch):
      if argv[1:]:
        raise UserError(f'unexpected argument {argv[1]!r}: options are written --name=value; see --help')
      main()
      sys.stdout.flush()
      if result_is_printed and lost_output() is not None:
        raise UserError(f'standard output: cannot be written: {in_one_line(lost_output())}')
  except UserError as error:
    print(f'error: {redact(error.line())}', file=sys.stderr)
    sys.exit(error.exit_code)
  except KeyboardInterrupt as error:
    signum = getattr(error, 'signum', signal.SIGINT)
    print(getattr(error, 'message', None) or interrupted, file=sys.stderr)
    sys.exit(EXIT_CODES[signum])
  finally:
    watchdog.done.set()


class Output:
  """A standard stream whose errors are reported once and then ignored: they cost the output, not the work.

  A disk may have space again: each write is attempted. Characters that the encoding of the stream lacks are escaped,
  and so are control characters: a name in a file of others may hold them.

  report: whether the first error is printed on the standard error.
  failure: the first error; None so far.
  """

  def __init__(self, stream: TextIO, name: str, report: bool = True):
    self._stream, self._name, self._report = stream, name, report
    self.failure: Exception | None = None
    if hasattr(stream, 'reconfigure'):
      with contextlib.suppress(OSError, ValueError):  # it flushes the stream
        stream.reconfigure(errors='backslashreplace')

  def write(self, text: str) -> int:
    """Write text; return its length."""
    shown = text if _REWRITTEN.fullmatch(text) else plain(text, '\n\t')
    self._attempt(lambda: self._stream.write(shown))
    return len(text)

  def flush(self) -> None:
    """Flush the stream."""
    self._attempt(self._stream.flush)

  def _attempt(self, action: Callable[[], Any]) -> None:
    try:
      action()
    except (OSError, ValueError) as error:  # ValueError: the stream is closed
      if self.failure is None:
        self.failure = error
        reason = getattr(error, 'strerror', None) or error
        if self._report:
          print(f'warning: {self._name} cannot be written ({reason}): the command continues', file=sys.stderr)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


def protect_output(report: bool = True) -> None:
  """Replace the standard streams by Outputs; streams that are closed (`>&-`) discard what is written."""
  for name, descriptor in (('stdin', 0), ('stdout', 1), ('stderr', 2)):
    if getattr(sys, name) is None:
      with contextlib.suppress(OSError):
        os.fstat(descriptor)
        continue
      nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor: no other file may become 'stdout'
      setattr(sys, name, os.fdopen(nowhere, 'r' if name == 'stdin' else 'w'))
  for name, label in (('stdout', 'standard output'), ('stderr', 'standard error')):
    if not isinstance(getattr(sys, name), Output):
      setattr(sys, name, Output(getattr(sys, name), label, report))


def lost_output() -> Exception | None:
  """Return the error that cost standard output; None if nothing is lost, or nobody reads it (`| head`)."""
  failure = getattr(sys.stdout, 'failure', None)
  return None if getattr(failure, 'errno', None) == errno.EPIPE else failure


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
  """End the process if the body, a call into C that no signal interrupts, takes longer."""
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
  """End the process from any thread, whatever the main thread does, with a line on the standard error."""
  with contextlib.suppress(OSError):
    os.write(error_descriptor, f'{message}\n'.encode(errors='backslashreplace'))
  os._exit(code)


class Watchdog:
  """Ends the process when the main thread does not react to a signal in time, or at a second signal before it has.

  The main thread may be within a call into C that never returns: a read of storage that hangs, a worker that is gone.

  reacted: set by the handler in the main thread. done: set when the command has ended.
  """

  def __init__(self, message: str, cleanup_seconds: float | None):
    self._message, self._cleanup = message, cleanup_seconds
    self.done = threading.Event()
    self._signals: list[int] = []
    self.reacted = threading.Event()

  def watch(self, signum: int) -> None:
    """Note a signal; for handled_signals."""
    if not self._signals:
      threading.Thread(target=self._wait, args=[signum], name='watchdog', daemon=True).start()
    self._signals.append(signum)
    if sum(one in URGENT for one in self._signals) > 1 and not self.reacted.wait(0.2):
      end(self._message, EXIT_CODES[signum])

  def _wait(self, signum: int) -> None:
    if not (self.reacted.wait(PATIENCE_SECONDS) and self.done.wait(self._cleanup)):
      end(self._message, EXIT_CODES[signum])
