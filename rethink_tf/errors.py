"""The error that is shown to people as one line, and the place where it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence


class UserError(Exception):
  """Something the user can mend: the message is one line that names the file, the field and the fix.

  The command-line doors print it without a traceback and exit with code 1.
  """

  def line(self) -> str:
    """The message by itself: gin appends the constructors it was calling, a line each."""
    return str(self).split('\n')[0]


def as_command(main: Callable[[], None], argv: Sequence[str], interrupted: str) -> None:
  """Calls main, if no argument is left over: a UserError is one line and exit code 1, Ctrl-C `interrupted` and 130."""
  try:
    if argv[1:]:
      raise UserError(f'unexpected argument {argv[1]!r}: options are written --name=value; see --help')
    main()
  except UserError as error:
    print(f'error: {error.line()}', file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    print(interrupted, file=sys.stderr)
    sys.exit(130)
