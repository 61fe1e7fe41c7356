"""Redaction of passwords, tokens and signed links in logs, tracebacks and run folders."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
import traceback
import types
from collections.abc import Iterator, Sequence

from rethink_tf.errors import plain

HIDDEN = '***'

_SECRET = (r'(?:pass(?:word|wd|phrase|code)|secret|token|credential|signature|(?<![a-z])(?:pwd|pass|auth|jwt|creds)|'
           r'(?:api|access|private|account|storage|shared|signing|encryption|master|kaggle|client|ssh)[-_]?key(?:[-_]?id)?)'
           r's?')
_PATTERNS = (
  # scheme://user:password@host, scheme://token@host; a password may hold a slash, unlike host:port/path@version
  (re.compile(r'([a-z][a-z0-9+.-]{0,30}://)[^/\s\'"]+@', re.IGNORECASE), rf'\g<1>{HIDDEN}@'),
  (re.compile(r'([a-z][a-z0-9+.-]{0,30}://)[^/\s\'"@:]{1,100}:(?!\d{1,5}(?:[/?#]|$))[^\s\'"]{0,200}@', re.IGNORECASE),
   rf'\g<1>{HIDDEN}@'),
  # A link's parameter, also when the link is itself a parameter: ...&X-Goog-Signature=..., ?sig=..., %26token%3D...
  (re.compile(rf'([?&;#](?:[\w.-]{{0,40}}{_SECRET}|sig|key|code)=)[^&;\s\'"#]*[^&;\s\'"#:,.)]', re.IGNORECASE),
   rf'\g<1>{HIDDEN}'),
  (re.compile(rf'((?:[?&;]|%3f|%26)(?:[\w.-]{{0,40}}{_SECRET}|sig|key|code)%3d)'
              r'(?:[^&;\s\'"#%]|%(?!26|23|3b))*(?:[^&;\s\'"#%:,.)])', re.IGNORECASE), rf'\g<1>{HIDDEN}'),
  # Headers: Authorization: Bearer ..., also of schemes with several fields; Cookie: ...
  (re.compile(r'((?:authorization|cookie)["\']?\s{0,3}[:=]\s{0,3}(["\']))(?:\\.|(?!\2)[^\\\n])*', re.IGNORECASE),
   rf'\g<1>{HIDDEN}'),
  (re.compile(r'(cookie:\s{0,3}|authorization\s{0,3}[:=]\s{0,3}(?:digest|oauth|hawk|mac|aws4)[\w-]*\s)[^\n]*[^\n\'"]',
              re.IGNORECASE), rf'\g<1>{HIDDEN}'),
  (re.compile(r'(authorization\s{0,3}[:=]\s{0,3}(?:[a-z][\w-]{0,30} )?)[^\s\'"]+', re.IGNORECASE), rf'\g<1>{HIDDEN}'),
  (re.compile(r'\b(bearer )(?=\S*\d)[\w.~+/=-]{16,}', re.IGNORECASE), rf'\g<1>{HIDDEN}'),
  # Token formats of services: Google, GitHub, GitLab, Hugging Face, Slack, AWS, npm, PyPI, OpenAI and others, signed
  # JSON.
  (re.compile(r'\b(?:ya29\.[\w.-]{20,}|1//0[\w-]{20,}|AIza[\w-]{30,}|GOCSPX-[\w-]{20,}|gh[pousr]_\w{30,}|'
              r'github_pat_\w{30,}|gl(?:pat|rt|dt|soat|cbt|ptt|ft|imt|agent)-[\w.-]{15,}|hf_\w{30,}|xox[abeprs]-[\w-]{10,}|'
              r'xapp-[\w-]{10,}|(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{12,}|npm_\w{30,}|pypi-[\w-]{30,}|'
              r'[srpw]k[-_](?:(?:live|test|proj|ant|or|svcacct|admin)[-_])?[\w-]{20,}|nvapi-[\w-]{30,}|dckr_pat_[\w-]{20,}|'
              r'dop_v1_\w{30,}|r8_\w{30,}|gsk_\w{30,}|KGAT_\w{20,}|SG\.[\w-]{15,}\.[\w-]{15,}|'
              r'eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)'), HIDDEN),
  (re.compile(r'(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?=-----END|\Z)', re.DOTALL), rf'\g<1>{HIDDEN}'),
)
# --token=..., PASSWORD = '...', "api_key": "...", secret: ...; but no "unexpected token: ...".
_NAME = re.compile(
  rf'{_SECRET}["\']?\s{{0,3}}=|{_SECRET}["\']\s{{0,3}}:|(?:passw(?:or)?d|pwd|passphrase|secret|[-_]token|[-_]?key):',
  re.IGNORECASE)
# Its value: strings, which gin breaks into lines, a list of them, or text up to the next space or bracket.
_BEFORE = re.compile(r'[ \t]{0,3}(?:\\\n\s*)?[bru]{0,2}')
_STRING = r"""(?:\'\'\'(?:(?!\'\'\').)*\'\'\'|"{3}(?:(?!"{3}).)*"{3}|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*")"""
_STRINGS = re.compile(rf'\(?{_STRING}(?:\s+{_STRING})+\)?|{_STRING}', re.DOTALL)
_BRACKETS = re.compile(r'[\[({][^\])}]*[\])}]')
_LITERAL = re.compile(r'(?:None|True|False|[@%][\w./]+(?:\(\))?)(?![^\s,;)}\]])')  # of gin and Python
_COUNT = re.compile(r'[\d.e+-]{1,12}(?![^\s,;)}\]])')  # max_tokens = 4096
_WORD = re.compile(r'(?:[^\s,;&\'")}\]]|[,;](?=[^\s\'"]))*[^\s,;&\'")}\]:.]')
_OPTION = re.compile(rf'--?[\w.-]*{_SECRET}', re.IGNORECASE)


def redact(text: str) -> str:
  """Replace everything that looks like a credential by ***."""
  for pattern, hidden in _PATTERNS:
    text = pattern.sub(hidden, text)
  return _without_values(text)


def redact_arguments(arguments: Sequence[str]) -> list[str]:
  """Return a command's arguments without credentials, also where an option and its value are two arguments."""
  shown = [redact(argument) for argument in arguments]
  for i, option in enumerate(arguments[:-1]):
    if _OPTION.fullmatch(option):
      shown[i + 1] = HIDDEN
  return shown


def _without_values(text: str) -> str:
  """Hide the values of names such as password. Quotes stay, so that a configuration can still be read."""
  pieces, begin = [], 0
  for name in _NAME.finditer(text):
    if name.end() < begin:
      continue
    start = _BEFORE.match(text, name.end()).end()
    if _LITERAL.match(text, start) or 'token' in name[0].lower() and _COUNT.match(text, start):
      continue
    quoted = _STRINGS.match(text, start)
    value = quoted or _BRACKETS.match(text, start) or _WORD.match(text, start)
    if value:
      key = name[0].rstrip(' :')[-1]  # of a dictionary: a quote
      quote = value[0].lstrip('(')[0] if quoted else key if key in '"\'' else "'" if value[0][0] in '[({' else ''
      pieces += [text[begin:start], f'{quote}{HIDDEN}{quote}']
      begin = value.end()
  return ''.join([*pieces, text[begin:]])


class RedactingFilter(logging.Filter):
  """A filter for log handlers: redacts lines and tracebacks, and escapes control characters in them."""

  def filter(self, record: logging.LogRecord) -> bool:
    record.msg, record.args = plain(redact(record.getMessage()), '\n\t'), ()
    if record.exc_info and not record.exc_text:
      record.exc_text = logging.Formatter().formatException(record.exc_info)
    if record.exc_text:
      record.exc_text = plain(redact(record.exc_text), '\n\t')
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


if __name__ == '__main__':  # for the launch scripts: arguments without credentials, each ended by a zero byte
  sys.stdout.write(''.join(f'{argument}\0' for argument in redact_arguments(sys.argv[1:])))
