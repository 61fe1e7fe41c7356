"""Errors that are shown to users as one line, and interruption by a signal."""

from __future__ import annotations

import contextlib
import math
import re
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# C0, C1, and the characters that reverse the direction of text.
_CONTROL = re.compile('[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]')


class UserError(Exception):
  """An error that the user can fix: one line that names the file, the field and the fix.

  Commands print it without a traceback and exit with code 1.
  """

  exit_code = 1
  # Keras would put its own line in front, with the arguments of the layer, of an error that a layer raises.
  _keras_call_info_injected = True

  def line(self) -> str:
    """Return the message without the lines that gin appends, one for each constructor being called."""
    return str(self).split('\n')[0]


class WorkerLost(UserError):
  """Another worker of the job has ended or cannot be reached; all workers must be restarted."""

  exit_code = 69  # EX_UNAVAILABLE of sysexits.h


class Interrupted(KeyboardInterrupt):
  """A signal has ended the work after everything was saved.

  signum: SIGINT (Ctrl-C), SIGTERM (pre-emption) or another one of process.signals.EXIT_CODES.
  message: how to continue; None: the default of the command.
  """

  def __init__(self, signum: int, message: str | None = None):
    super().__init__(message or '')
    self.signum, self.message = signal.Signals(signum), message


def check_at_least(part: str, least: float, **arguments: float | Sequence | None) -> None:
  """Check numbers that are arguments of a part, or sequences of numbers; None stands for no number.

  Raises:
    UserError: a number is below `least`, or none; the message begins with part.argument.
  """
  _check(part, arguments, lambda number: number >= least, f'use {least:g} or more')


def check_fractions(part: str, **arguments: float | Sequence | None) -> None:
  """Check, as `check_at_least`, that numbers are from 0 to 1."""
  _check(part, arguments, lambda number: 0 <= number <= 1, 'use a fraction, 0 to 1')


def check_positive(part: str, **arguments: float | Sequence | None) -> None:
  """Check, as `check_at_least`, that numbers are above 0 and finite."""
  _check(part, arguments, lambda number: 0 < number < math.inf, 'use a number above 0')


def _check(part: str, arguments: Mapping[str, Any], is_right: Callable[[float], bool], cure: str) -> None:
  for name, value in arguments.items():
    numbers = [value]
    while any(isinstance(number, tuple | list) for number in numbers):
      numbers = [one for number in numbers for one in (number if isinstance(number, tuple | list) else (number,))]
    if not all(number is None or is_right(number) for number in numbers):
      shown = shortened(plain(repr(value)), 80) if isinstance(value, tuple | list) else excerpt(value)
      raise UserError(f'{part}.{name} = {shown}: {cure}')


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


def plain(text: str, keep: str = '') -> str:
  """Return a text with control characters escaped, as \\x1b: they would command a terminal or break a table.

  keep: those that stay, as the ends of lines.
  """
  return _CONTROL.sub(lambda found: found[0] if found[0] in keep else found[0].encode('unicode_escape').decode(), text)


def shortened(text: str, length: int) -> str:
  """Return at most `length` characters of a text; … shows that it goes on, after a whole word where words are short."""
  if len(text) <= length:
    return text
  words = text[:length].rpartition(' ')[0].rstrip()
  return (words if len(words) > length // 2 else text[:length - 1]) + '…'


def in_one_line(error: BaseException, length: int | None = None) -> str:
  """Return the message of an OS or TensorFlow error as one line, without file names and operations.

  length: most characters of it; None: all.
  """
  text = getattr(error, 'strerror', None) or getattr(error, 'message', None) or str(error) or type(error).__name__
  text = re.sub(r'^\{\{\w+ [^}]*\}\} ', '', str(text))  # the operation, meaningless to the user
  # Of a temporary file (storage.files): messages name the one that it becomes.
  text = re.sub(r'^[^;]*\.\d+\.partial(/[^;]*)?; ', '', ' '.join(text.split()))
  text = re.sub(r' Failed to flush \d+ events to .*', '', text)  # of a TensorBoard log, with its path again
  return text if length is None else shortened(text, length)


def storage_error(error: BaseException) -> UserError | None:
  """Return the UserError for an error that TensorFlow's file system has raised; None for any other.

  Whatever asks first whether a file exists gets one where an address cannot be reached, or is of a scheme that
  TensorFlow does not read, as https://.
  """
  scheme = re.search(r"File system scheme '(\w+)' not implemented \(file: '([^']*)'\)", str(error))
  if scheme is not None:
    others = '' if scheme[1] == 'gs' else ' or gs://'
    return UserError(f'{plain(scheme[2])}: TensorFlow cannot open {scheme[1]}:// on this machine: use a local path'
                     f'{others}')
  while error is not None:
    files = [frame.filename.replace('\\', '/') for frame in traceback.extract_tb(error.__traceback__)]
    if any(file.endswith('tensorflow/python/lib/io/file_io.py') for file in files):
      return UserError(f'storage: {in_one_line(error)}: check the address, and that this machine may read it')
    error = error.__cause__
  return None


@contextlib.contextmanager
def needs_models(what: str) -> Iterator[None]:
  """Around imports of tf-models-official, which has no complete set of wheels for native Windows.

  It registers configurables of its own, also after a configuration was parsed, which locks gin.

  Raises:
    UserError: it cannot be imported.
  """
  import gin

  try:
    with gin.unlock_config():
      yield
  except ImportError as error:
    raise UserError(f"{what} needs tf-models-official, which cannot be imported ({in_one_line(error)}): pip install "
                    "'tf-models-official~=2.20.0'; on Windows use WSL2, since tensorflow-text has no wheel there"
                    ) from error
