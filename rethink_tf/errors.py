"""Errors that are shown to users as one line, interruption by a signal, and the exit codes of both."""

from __future__ import annotations

import re
import signal
import sys
import types
from collections.abc import Callable, Sequence

from rethink_tf.redaction import redact, redacted_tracebacks

# Of a command ended by a signal. 75 is EX_TEMPFAIL of sysexits.h: incomplete, run the same command again.
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}


class UserError(Exception):
  """An error that the user can fix: one line that names the file, the field and the fix.

  Commands print it without a traceback and exit with code 1.
  """

  exit_code = 1

  def line(self) -> str:
    """Return the message without the lines that gin appends, one for each constructor being called."""
    return str(self).split('\n')[0]


class WorkerLost(UserError):
  """Another worker of the job has ended or cannot be reached; all workers must be restarted."""

  exit_code = 69  # EX_UNAVAILABLE of sysexits.h


class Interrupted(KeyboardInterrupt):
  """A signal has ended the work after everything was saved.

  signum: SIGINT (Ctrl-C) or SIGTERM (pre-emption).
  message: how to continue; None: the default of the command.
  """

  def __init__(self, signum: int, message: str | None = None):
    super().__init__(message or '')
    self.signum, self.message = signal.Signals(signum), message


@redacted_tracebacks()
def as_command(main: Callable[[], None], argv: Sequence[str], interrupted: str) -> None:
  """Call main, unless an argument is left over, and turn exceptions into a line and an exit code.

  A UserError prints one line and exits with its exit code (1; 69 for WorkerLost). Ctrl-C and SIGTERM print
  `interrupted`, or the message of Interrupted, and exit with 130 or 75. Any other exception gives Python's traceback,
  redacted.
  """
  earlier = {}
  try:
    earlier = {signum: signal.signal(signum, _interrupt) for signum in EXIT_CODES}
    if argv[1:]:
      raise UserError(f'unexpected argument {argv[1]!r}: options are written --name=value; see --help')
    main()
  except UserError as error:
    print(f'error: {redact(error.line())}', file=sys.stderr)
    sys.exit(error.exit_code)
  except KeyboardInterrupt as error:
    signum = getattr(error, 'signum', signal.SIGINT)
    print(getattr(error, 'message', None) or interrupted, file=sys.stderr)
    sys.exit(EXIT_CODES[signum])
  finally:
    for signum, handler in earlier.items():
      signal.signal(signum, handler)


def excerpt(value: object, length: int = 80) -> str:
  """Return an untrusted value for a message: plain values quoted and cut to `length`, of others the type alone.

  A few bytes of a file can build an object whose repr takes all memory, and a name can hold terminal control
  characters.
  """
  if isinstance(value, str | bytes | bytearray):
    return repr(value[:length]) + ('…' if len(value) > length else '')
  if value is None or isinstance(value, bool | float) or isinstance(value, int) and value.bit_length() <= 64:
    return repr(value)
  return f'an object of type {type(value).__name__[:length]}'


def in_one_line(error: BaseException) -> str:
  """Return the message of an OS or TensorFlow error as one line, without file names and operations."""
  text = getattr(error, 'strerror', None) or getattr(error, 'message', None) or str(error) or type(error).__name__
  text = re.sub(r'^\{\{\w+ [^}]*\}\} ', '', str(text))  # the operation, meaningless to the user
  return ' '.join(str(text).split())


def _interrupt(signum: int, frame: types.FrameType | None) -> None:
  raise Interrupted(signum)
