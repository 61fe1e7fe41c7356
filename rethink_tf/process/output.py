"""Standard streams whose errors do not end a command: if output is lost, the work continues."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Callable
from typing import Any, TextIO

from rethink_tf.errors import plain

_REWRITTEN = re.compile(r'\r[^\x00-\x1f\x7f-\x9f]*\x1b\[K')  # a line of console.Progress


class Output:
  """A standard stream whose errors are reported once and then ignored, so that the work continues.

  Each write is attempted, since a disk may have space again. Characters that the encoding of the stream lacks are
  escaped,
  and so are control characters, which a name in someone else's file may hold.

  report: whether to print the first error on standard error.
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
  """Return the error by which standard output was lost; None if nothing was, or if its reader has ended (`| head`)."""
  failure = getattr(sys.stdout, 'failure', None)
  return None if getattr(failure, 'errno', None) == errno.EPIPE else failure
