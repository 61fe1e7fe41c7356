"""A cache of downloaded files: one process downloads a file, others of the machine wait for it.

A file is put in place once it is complete and verified; beside it, <name>.download.json records its address, size and
checksums, to which a later download is compared where the publisher gives no checksum. A file that was put there by
hand is verified and recorded in the same way. Nothing of a file is executed or unpacked.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any, TextIO

from absl import logging

from rethink_tf.downloads import transfer
from rethink_tf.downloads.remote_file import Digests, RemoteFile, digests
from rethink_tf.downloads.settings import OFFLINE, is_offline
from rethink_tf.errors import UserError, in_one_line, plain
from rethink_tf.redaction import redact

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

_POLL_SECONDS = 0.5
_REPORT_SECONDS = 60.0
_LOCKED_BYTE = 1 << 30  # on Windows, where others cannot read what is locked: far behind the name of the holder


def fetch(remote: RemoteFile, folder: str, label: str) -> str:
  """Return the path of a published file in a folder of this machine, downloaded and verified if it is not there yet.

  label: what messages call it, as 'moco_v2'.

  Raises:
    UserError: it cannot be downloaded, is not the published file, or the machine is offline; one line with the cure.
  """
  remote.check_address()
  path = os.path.join(folder, remote.name)
  if _is_in_place(remote, path):
    return path
  if is_offline():
    raise UserError(f'{label}: is not at {path}, and downloads are off (--offline or {OFFLINE}): leave it out, or copy '
                    f'{redact(remote.url)} to that path')
  try:
    os.makedirs(folder, exist_ok=True)
    with _locked(path, label) as partial:
      if not _is_in_place(remote, path):  # else another process has downloaded it meanwhile
        _download(remote, path, partial, label)
  except OSError as error:
    raise UserError(f'{folder}: cannot be written: {in_one_line(error)}: choose another folder with RETHINK_TF_CACHE'
                    ) from error
  return path


def how_to_repeat(path: str) -> str:
  """Return how to download a file of a cache again, for a message about its content; '' for other files."""
  record = _read_record(path)
  return '' if record is None else (f' (it was downloaded on {record["date"]}, and is used as long as it is there: '
                                    f'delete it and {path}.download.json)')


def _download(remote: RemoteFile, path: str, partial: str, label: str) -> None:
  if remote.md5_suffix and not remote.has_checksum:
    remote = remote._replace(md5=transfer.published_md5(remote))
  logging.info('%s: downloading %s to %s', label, redact(remote.url), os.path.dirname(path))
  for again in (True, False):
    joined = transfer.download(remote, partial, label)
    found = digests(partial)
    difference = remote.difference(found)
    if not difference:
      break
    transfer.discard(partial)
    if not (joined and again):  # parts of two versions may have been joined
      raise UserError(f'{redact(remote.url)}: {difference}: the download was damaged or is another file, and was '
                      'deleted: try again, or get the file from its publisher')
    logging.warning('%s: %s: starting over, since it was downloaded in several parts', label, difference)
  earlier = _read_record(path)
  if earlier is not None and not remote.has_checksum and earlier['sha256'] != found.sha256:
    raise UserError(f'{path}: the publisher has changed the file since {earlier["date"]}: its sha256 was '
                    f'{earlier["sha256"][:16]} and is {found.sha256[:16]}: delete {path}.download.json to accept it')
  os.replace(partial, path)
  transfer.discard(partial)
  _write_record(remote, path, found)
  logging.info('%s: %s bytes, sha256 %s%s', path, f'{found.size:,}', found.sha256[:16],
               '' if remote.has_checksum else ' (recorded: its publisher gives no checksum)')


def _is_in_place(remote: RemoteFile, path: str) -> bool:
  """Whether the cache holds the published file, as far as that is known.

  Raises:
    UserError: it has another one.
  """
  try:
    status = os.stat(path)
  except FileNotFoundError:
    return False
  except OSError as error:
    raise UserError(f'{path}: cannot be read: {in_one_line(error)}') from error
  record = _read_record(path)
  if record is not None and (record['size'], record['mtime_ns']) == (status.st_size, status.st_mtime_ns):
    found = Digests(record['size'], record['sha256'], record['md5'])
  else:
    found = digests(path)
    if record is not None and record['sha256'] != found.sha256:
      raise UserError(f'{path}: has changed since it was downloaded on {record["date"]}: delete it, and it is '
                      'downloaded again')
  difference = remote.difference(found)
  if difference:
    raise UserError(f'{path}: {difference}: it is not {redact(remote.url)}: delete it, and it is downloaded '
                    'again')
  with contextlib.suppress(OSError):  # a cache that others share may be read-only
    _write_record(remote, path, found, record)
  return True


def _read_record(path: str) -> dict[str, Any] | None:
  try:
    with open(f'{path}.download.json') as file:
      record = json.loads(file.read(1 << 16))
    kinds = {'size': int, 'mtime_ns': int, 'sha256': str, 'md5': str, 'date': str}
    return record if all(isinstance(record[name], kind) for name, kind in kinds.items()) else None
  except (OSError, ValueError, TypeError, KeyError):
    return None


def _write_record(remote: RemoteFile, path: str, found: Digests, earlier: dict[str, Any] | None = None) -> None:
  now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
  record = {'url': redact(remote.url), **found._asdict(), 'mtime_ns': os.stat(path).st_mtime_ns,
            'date': now if earlier is None else earlier['date']}
  if record != earlier:
    temporary = f'{path}.download.json.{os.getpid()}.partial'
    with open(temporary, 'w') as file:
      json.dump(record, file, indent=2)
    os.replace(temporary, f'{path}.download.json')


@contextlib.contextmanager
def _locked(path: str, label: str) -> Iterator[str]:
  """Hold the system's lock on a file of the cache while it is downloaded; yield the path of the partial file.

  The lock ends with its process; other processes wait. On a file system without locks each downloads to its own file.
  """
  with open(f'{path}.lock', 'a+') as file:
    try:
      _wait_for_lock(file, label)
    except OSError:
      partial = f'{path}.{socket.gethostname()}.{os.getpid()}.partial'
    else:
      partial = f'{path}.partial'
      file.truncate(0)
      file.write(f'process {os.getpid()} on {socket.gethostname()}')
      file.flush()
    yield partial


def _wait_for_lock(file: TextIO, label: str) -> None:
  """Take the system's lock on an open file as soon as no other process has it; raises OSError where there are none."""
  report_at = time.monotonic()
  without_name = report_at + 1  # the holder writes its name just after it has taken the lock
  while True:
    try:
      return _lock(file)
    except BlockingIOError:
      now = time.monotonic()
    if now >= report_at:
      file.seek(0)
      holder = file.read(200).strip()
      if not holder and now < without_name:
        time.sleep(0.02)
        continue
      report_at = now + _REPORT_SECONDS
      logging.info('%s: waiting for %s, which is downloading it', label, plain(holder or 'another process'))
    time.sleep(_POLL_SECONDS)


def _lock(file: TextIO) -> None:
  """Take the system's lock on an open file; raises BlockingIOError if another has it, OSError where there are none."""
  if fcntl is not None:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return
  import msvcrt
  os.lseek(file.fileno(), _LOCKED_BYTE, os.SEEK_SET)
  try:
    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
  except OSError as error:
    if error.errno == errno.EACCES:
      raise BlockingIOError(errno.EAGAIN, 'locked') from error
    raise
