"""The error that is shown to people as one line, the end by a signal, and the place where both meet the shell."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Sequence

from rethink_tf.redaction import redact, redacted_tracebacks

# Of a command that a signal has ended. 75 is EX_TEMPFAIL of sysexits.h: not done, give the same command again.
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}


class UserError(Exception):
  """Something the user can mend: the message is one line that names the file, the field and the fix.

  The command-line doors print it without a traceback and exit with code 1.
  """

  exit_code = 1

  def line(self) -> str:
    """The message by itself: gin appends the constructors it was calling, a line each."""
    return str(self).split('\n')[0]


class WorkerLost(UserError):
  """Another worker of the job has ended or cannot be reached: start all of them again."""

  exit_code = 69  # EX_UNAVAILABLE of sysexits.h


class Interrupted(KeyboardInterrupt):
  """A signal has ended the work at a place where it may end: what should be saved is saved.

  signum: SIGINT (Ctrl-C) or SIGTERM (pre-emption). told: how to go on, None for what the command says.
  """

  def __init__(self, signum: int, told: str | None = None):
    super().__init__(told or '')
    self.signum, self.told = signal.Signals(signum), told


@redacted_tracebacks()
def as_command(main: Callable[[], None], argv: Sequence[str], interrupted: str) -> None:
  """Calls main, if no argument is left over, and turns what it raises into a line and an exit code.

  A UserError is one line and its exit code (1; 69 of a WorkerLost). Ctrl-C and SIGTERM are `interrupted`, or what an
  Interrupted says instead, and 130 or 75. Anything else is Python's traceback, redacted.
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
    print(getattr(error, 'told', None) or interrupted, file=sys.stderr)
    sys.exit(EXIT_CODES[signum])
  finally:
    for signum, handler in earlier.items():
      signal.signal(signum, handler)


def in_one_line(error: BaseException) -> str:
  """The part of an OS or TensorFlow error that says what happened, as one line."""
  text = getattr(error, 'strerror', None) or getattr(error, 'message', None) or str(error) or type(error).__name__
  text = re.sub(r'^\{\{\w+ [^}]*\}\} ', '', str(text))  # the operation, which says nothing to the user
  return ' '.join(str(text).split())


def _interrupt(signum, frame):
  raise Interrupted(signum)
