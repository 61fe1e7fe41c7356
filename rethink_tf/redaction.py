"""Redaction of passwords, tokens and signed links in logs, tracebacks and run folders."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
import traceback
import types
from collections.abc import Iterator

HIDDEN = '***'

_SECRET = (r'(?:pass(?:word|wd|phrase)|secret|token|credentials?|signature|api[-_]?key|access[-_]?key(?:[-_]?id)?|'
           r'private[-_]?key)')
_PATTERNS = (
  # scheme://user:password@host, scheme://token@host
  (re.compile(r'([a-z][a-z0-9+.-]{0,30}://)[^/\s\'"]+@', re.IGNORECASE), rf'\g<1>{HIDDEN}@'),
  # A link's parameter, also when the link is itself a parameter: ...&X-Goog-Signature=..., ?sig=..., %26token%3D...
  (re.compile(rf'((?:[?&;]|%3f|%26)(?:[\w.-]{{0,40}}{_SECRET}|sig|key|auth|code)(?:=|%3d))[^&;\s\'"#%]*[^&;\s\'"#%:,.)]',
              re.IGNORECASE), rf'\g<1>{HIDDEN}'),
  (re.compile(r'(authorization["\']?\s{0,3}[:=]\s{0,3}["\']?(?:(?:bearer|basic) )?)[^\s\'"]+', re.IGNORECASE),
   rf'\g<1>{HIDDEN}'),
  (re.compile(r'\b(bearer )(?=\S*\d)[\w.~+/=-]{16,}', re.IGNORECASE), rf'\g<1>{HIDDEN}'),
  # --token=..., PASSWORD = '...', "api_key": "...", secret: ...; but no "unexpected token: ...". Quotes stay, so that a
  # configuration can still be read.
  (re.compile(rf'({_SECRET}["\']?\s{{0,3}}=\s{{0,3}}|{_SECRET}["\']\s{{0,3}}:\s{{0,3}}|'
              r'(?:password|passwd|secret|api[-_]?key):\s{0,3})'
              r'(?:(["\'])(?:(?!\2)[^\n])*\2|[^\s,;&\'")}\]]*[^\s,;&\'")}\]:.])', re.IGNORECASE),
   rf'\g<1>\g<2>{HIDDEN}\g<2>'),
  # Token formats of services: Google, GitHub, Hugging Face, Slack, signed JSON.
  (re.compile(r'\b(?:ya29\.[\w.-]{20,}|AIza[\w-]{30,}|gh[pousr]_\w{30,}|github_pat_\w{30,}|hf_\w{30,}|'
              r'xox[abprs]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)'), HIDDEN),
  (re.compile(r'(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?=-----END|\Z)', re.DOTALL), rf'\g<1>{HIDDEN}'),
)


def redact(text: str) -> str:
  """Replace everything that looks like a credential by ***."""
  for pattern, hidden in _PATTERNS:
    text = pattern.sub(hidden, text)
  return text


class RedactingFilter(logging.Filter):
  """A filter for log handlers that redacts lines and tracebacks before they are written."""

  def filter(self, record: logging.LogRecord) -> bool:
    record.msg, record.args = redact(record.getMessage()), ()
    if record.exc_info and not record.exc_text:
      record.exc_text = logging.Formatter().formatException(record.exc_info)
    if record.exc_text:
      record.exc_text = redact(record.exc_text)
    return True


@contextlib.contextmanager
def redacted_tracebacks() -> Iterator[None]:
  """Redact the tracebacks of uncaught exceptions, of threads and of the body itself. Also a decorator."""
  earlier, threading.excepthook = threading.excepthook, _show_end_of_thread
  try:
    yield
  except Exception:
    sys.excepthook = _show  # not restored: Python calls it at exit
    raise
  finally:
    threading.excepthook = earlier


def _show(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None, before: str = '') -> None:
  sys.stderr.write(before + redact(''.join(traceback.format_exception(kind, error, trace))))


def _show_end_of_thread(ended: threading.ExceptHookArgs) -> None:
  if not issubclass(ended.exc_type, SystemExit):
    _show(ended.exc_type, ended.exc_value, ended.exc_traceback, f'Exception in thread {ended.thread.name}:\n')
