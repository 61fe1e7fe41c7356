"""The error that is shown to people as one line."""


class UserError(Exception):
  """Something the user can mend: the message is one line that names the file, the field and the fix.

  The command-line doors print it without a traceback and exit with code 1.
  """

  def line(self) -> str:
    """The message by itself: gin appends the constructors it was calling, a line each."""
    return str(self).split('\n')[0]
