"""The bytes of a file over http: interrupted transfers continue where they stopped, and retry with backoff.

A partial file lies beside <name>.partial.json, which records what it is a part of: the address, the length and the
validator (ETag or date) that the server gave. It is continued only if the server confirms the validator (If-Range), or
if a published checksum will tell whether the parts belong together; otherwise it is begun anew. A file that has changed
in between is thus never joined from two versions.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import math
import os
import re
import shutil
import socket
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

from absl import logging

from rethink_tf import __version__, console
from rethink_tf.downloads.remote_file import MIB, RemoteFile
from rethink_tf.errors import UserError, in_one_line, plain, shortened
from rethink_tf.redaction import redact
from rethink_tf.storage import retries

TIMEOUT_SECONDS = 30.0  # without a byte; then the connection is made anew
ATTEMPTS = 8  # without progress
FIRST_PAUSE = 0.5  # seconds
_BLOCK = 1 << 16
_AGENT = f'rethink_tf/{__version__}'
_TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)


class Interruption(ConnectionError):
  """A transfer that stopped; the next attempt may continue it."""

  def __init__(self, message: str):
    super().__init__(errno.ECONNRESET, message)


class _State(NamedTuple):
  """What a partial file is part of; total: its length, None if the server does not state it."""

  url: str
  validator: str = ''
  total: int | None = None


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
  """Follows redirects to http and https only, and from https to https only."""

  def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
    allowed = ('https://',) if req.full_url.startswith('https://') else ('https://', 'http://')
    if not newurl.lower().startswith(allowed):
      raise UserError(f'{redact(req.full_url)}: redirects to {shortened(plain(redact(newurl)), 200)}, which is not '
                      'followed: get the file from its publisher')
    return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(remote: RemoteFile, partial: str, label: str) -> bool:
  """Download a file to the path `partial`, continuing what is there; return whether it was joined from several parts.

  label: name of the file in progress lines.

  Raises:
    UserError: the address does not exist, or the server, the network or the disk fails for longer than a minute.
  """
  transfer = _Transfer(remote, partial, label)
  while True:
    before = transfer.received
    try:
      retries.call(transfer.attempt, redact(remote.url), ATTEMPTS, FIRST_PAUSE)
      return transfer.joined
    except Interruption as error:
      if transfer.received <= before:
        kept = f'{transfer.received / MIB:.1f} MiB are kept: ' if transfer.received else ''
        raise UserError(f'{redact(remote.url)}: {in_one_line(error)}; {kept}the same command continues, or set '
                        'https_proxy if this machine needs a proxy') from error
    except OSError as error:
      raise _of_disk(error, partial) from error
    finally:
      transfer.progress.close()


def published_md5(remote: RemoteFile) -> str:
  """Return the MD5 from the file beside a published one, '' if it cannot be obtained."""
  request = urllib.request.Request(remote.url + remote.md5_suffix, headers={'User-Agent': _AGENT})
  try:
    with _opener().open(request, timeout=TIMEOUT_SECONDS) as response:
      found = re.match(rb'\s*([0-9a-fA-F]{32})(?![0-9a-fA-F])', response.read(1000))
  except (OSError, http.client.HTTPException, UserError) as error:
    logging.warning('%s: no checksum: %s', redact(request.full_url), in_one_line(error))
    return ''
  return found[1].decode().lower() if found else ''


def discard(partial: str) -> None:
  """Remove a partial file and its record."""
  for path in (partial, f'{partial}.json'):
    with contextlib.suppress(FileNotFoundError):
      os.remove(path)


class _Transfer:
  """Attempts to complete a partial file.

  received: bytes of the partial file. joined: it consists of parts of several connections.
  """

  def __init__(self, remote: RemoteFile, partial: str, label: str):
    self._remote, self._partial, self._label = remote, partial, label
    self._state = self._read_state()
    self.received = os.path.getsize(partial) if self._state is not None and os.path.exists(partial) else 0
    self.joined = self.received > 0
    self.progress = console.Progress(label, 0, sys.stderr, unit='MiB')
    self._connected = False

  def attempt(self) -> None:
    """Request what is missing. Raises Interruption, UserError, or OSError of the disk."""
    if self._state is not None and self.received and self.received == self._state.total:
      return
    with self._opened() as response:
      self._connected = True
      self._accept(response)
      self._copy(response)
    total = self._state.total
    if total is not None and self.received != total:
      raise Interruption(f'the connection ended after {self.received:,} of {total:,} bytes')

  @contextlib.contextmanager
  def _opened(self) -> Iterator[Any]:
    headers = {'User-Agent': _AGENT, 'Accept-Encoding': 'identity'}
    if self.received and (self._state.validator or self._remote.has_checksum):
      headers['Range'] = f'bytes={self.received}-'
      if self._state.validator:
        headers['If-Range'] = self._state.validator
    request = urllib.request.Request(self._remote.url, headers=headers)
    try:
      response = _opener().open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
      error.close()
      raise self._of_status(error) from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
      raise self._of_connection(error) from error
    with response:
      yield response

  def _of_status(self, error: urllib.error.HTTPError) -> Exception:
    if error.code == 416:  # the file is shorter than what is here
      self._restart(_State(self._remote.url))
      return Interruption('the file on the server is not that of the partial file: starting over')
    if 300 <= error.code < 400:  # urllib itself refuses file:// and the like
      place = shortened(plain(redact(error.headers.get('Location', ''))), 200)
      return UserError(f'{redact(self._remote.url)}: redirects to {place}, which is not followed: get the file from '
                       'its publisher')
    what = f'the server answers {error.code} ({shortened(plain(str(error.reason)), 80)})'
    if error.code in _TRANSIENT_STATUS:
      return Interruption(what)
    cure = 'set https_proxy with user and password' if error.code == 407 else \
      'the address may have changed: get the file from its publisher'
    return UserError(f'{redact(self._remote.url)}: {what}: {cure}')

  def _of_connection(self, error: Exception) -> Exception:
    reason = getattr(error, 'reason', error)
    if isinstance(reason, ssl.SSLCertVerificationError):
      return UserError(f'{redact(self._remote.url)}: the certificate of the server is not trusted '
                       f'({plain(reason.verify_message)}): set SSL_CERT_FILE to the certificates of your network')
    text = plain(in_one_line(reason) if isinstance(reason, BaseException) else str(reason))
    if isinstance(reason, socket.gaierror) and not self._connected:
      return UserError(f'{redact(self._remote.url)}: the server is not found ({text}): connect this machine to the '
                       'network, or set https_proxy')
    if isinstance(reason, TimeoutError):
      text = f'no answer within {TIMEOUT_SECONDS:g} s'
    return Interruption(text)

  def _accept(self, response: Any) -> None:
    """Decide from the headers of a response whether to continue the partial file or begin it anew."""
    headers = response.headers
    if headers.get('Content-Encoding', 'identity') != 'identity':
      raise UserError(f'{redact(self._remote.url)}: the server sends it compressed '
                      f'({plain(headers["Content-Encoding"])[:40]}), which was not requested: get the file by hand')
    if headers.get_content_type() == 'text/html':
      raise UserError(f'{redact(self._remote.url)}: the server sends a web page instead of the file: log in to the '
                      'network or the proxy, or get the file by hand')
    now = _State(self._remote.url, _validator(headers), None)
    if response.status == 206:
      start, total = _content_range(headers.get('Content-Range', ''))
      same = now.validator in (self._state.validator, '') and (None in (total, self._state.total) or
                                                               total == self._state.total)
      if start != self.received or not same:
        self._restart(_State(self._remote.url))
        raise Interruption('the file has changed on the server: starting over')
      if self._state.total is None:
        self._state = self._state._replace(total=total)
      self.joined = True
    else:
      if self.received:
        logging.info('%s: the server cannot continue the partial file: starting over', self._label)
      length = headers.get('Content-Length', '')
      self._restart(now._replace(total=int(length) if length.isdecimal() else None))
      if self._state.total is None and not response.chunked and not self._remote.has_checksum:
        raise UserError(f'{redact(self._remote.url)}: the server does not state the length of the file, and there is no'
                        ' checksum, so that an interruption could not be noticed: get the file from its publisher')
    self._check_size()
    self.progress.start(self.received, self._state.total or 0)

  def _check_size(self) -> None:
    total = self._state.total
    if total is None:
      return
    if self._remote.size is not None and total != self._remote.size:
      discard(self._partial)
      raise UserError(f'{redact(self._remote.url)}: the server has {total:,} bytes instead of {self._remote.size:,}: '
                      'it is another file than the published one')
    free = shutil.disk_usage(os.path.dirname(self._partial) or '.').free
    if total - self.received > free:
      raise UserError(f'{os.path.dirname(self._partial)}: {math.ceil((total - self.received) / MIB)} MiB are needed '
                      f'and {free // MIB} free: make room, or choose another folder (RETHINK_TF_CACHE)')

  def _copy(self, response: Any) -> None:
    limit = self._state.total if self._state.total is not None else float('inf')
    with open(self._partial, 'ab') as file:
      try:
        while self.received < limit:
          try:
            block = response.read1(_BLOCK)  # what is there: `read` would wait for a whole block
          except (http.client.HTTPException, OSError) as error:
            raise self._of_connection(error) from error
          if not block:
            break
          file.write(block)
          self.received += len(block)
          self.progress.count(len(block))
      finally:
        file.flush()
        self.received = file.tell()
      os.fsync(file.fileno())

  def _restart(self, state: _State) -> None:
    with open(self._partial, 'wb'):
      pass
    self._state, self.received, self.joined = state, 0, False
    with open(f'{self._partial}.json', 'w') as file:
      json.dump(state._asdict(), file)

  def _read_state(self) -> _State | None:
    try:
      with open(f'{self._partial}.json') as file:
        state = _State(**json.loads(file.read(1 << 16)))
    except (OSError, ValueError, TypeError):
      return None
    sound = isinstance(state.validator, str) and isinstance(state.total, int | None)
    return state if sound and state.url == self._remote.url else None


def _opener() -> urllib.request.OpenerDirector:
  """Return an opener that follows http and https only, through the environment's proxies (https_proxy, no_proxy)."""
  opener = urllib.request.OpenerDirector()
  for handler in (urllib.request.ProxyHandler(), urllib.request.UnknownHandler(), urllib.request.HTTPHandler(),
                  urllib.request.HTTPSHandler(), urllib.request.HTTPDefaultErrorHandler(), _SafeRedirects(),
                  urllib.request.HTTPErrorProcessor()):
    opener.add_handler(handler)
  return opener


def _validator(headers: Any) -> str:
  """Return what If-Range accepts: a strong ETag, else the date of the last modification."""
  tag = headers.get('ETag', '')
  return tag if tag.startswith('"') else headers.get('Last-Modified', '')


def _content_range(value: str) -> tuple[int | None, int | None]:
  """Return start and total of 'bytes 100-199/200'; None for each that is missing."""
  span, _, total = value.removeprefix('bytes ').partition('/')
  start = span.partition('-')[0]
  return int(start) if start.isdecimal() else None, int(total) if total.isdecimal() else None


def _of_disk(error: OSError, partial: str) -> UserError:
  return UserError(f'{partial}: cannot be written: {in_one_line(error)}: make room, or choose another folder '
                   '(RETHINK_TF_CACHE)')
