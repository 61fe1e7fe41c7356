"""Unpacks zip and tar archives from elsewhere: only regular files, only into one folder, up to a limit of size.

An interrupted unpacking resumes: files are written whole or not at all, and existing ones are not written again.
"""

from __future__ import annotations

import gzip
import lzma
import math
import os
import posixpath
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import tensorflow as tf

from rethink_tf.console import Progress
from rethink_tf.downloads.remote_file import MIB
from rethink_tf.errors import UserError, excerpt, in_one_line
from rethink_tf.storage import files

_RATIO, _SLACK = 20, 1 << 30  # bytes unpacked for each byte of an archive, and in all, at most
_MAX_FILES = 1_000_000
_HIDDEN = ('__MACOSX/', '.')  # what macOS adds to an archive
# RuntimeError: of zipfile, for encrypted files and unknown methods of compression.
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError, RuntimeError)


class _Member(NamedTuple):
  """A file of an archive; open: returns its content."""

  name: str  # relative to the folder, with /
  size: int
  entry: Any


def unpack(path: str, folder: str, below: str = '') -> int:
  """Unpack an archive into a folder; return the number of its files.

  below: a folder of the archive, as 'VOCdevkit/': its content is unpacked, and anything else refused.

  Raises:
    UserError: the archive is damaged, holds links, names outside of the folder or too much, or the disk is full.
  """
  try:
    if zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as archive:
        return _unpack(path, folder, list(_of_zip(archive, path, below)), archive.open)
    with tarfile.open(path, 'r:*') as archive:
      members = list(_of_tar(archive, path, below))
      while archive.fileobj.read(1 << 20):  # to the end, where gzip has its checksum: tarfile stops before it
        pass
      return _unpack(path, folder, members, archive.extractfile)
  except (*_DAMAGED, OSError, tf.errors.OpError) as error:
    if isinstance(error, _DAMAGED) or isinstance(error, OSError) and error.errno is None:  # without: of bz2
      raise UserError(f'{path}: a damaged archive, or of an unknown kind ({in_one_line(error)}): delete it, and it is '
                      'downloaded again') from error
    raise UserError(f'{folder}: cannot be written: {in_one_line(error)}: make room, or choose another folder'
                    ) from error


def _of_zip(archive: zipfile.ZipFile, path: str, below: str) -> Iterator[_Member]:
  for entry in archive.infolist():
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
      raise UserError(f'{path}: {excerpt(entry.filename)} is a link or a device: such archives are not unpacked')
    name = _inside(entry.filename, path, below)
    if name and not entry.is_dir():
      yield _Member(name, entry.file_size, entry)


def _of_tar(archive: tarfile.TarFile, path: str, below: str) -> Iterator[_Member]:
  for count, entry in enumerate(archive):
    if count > _MAX_FILES:
      break  # _unpack refuses it
    if not (entry.isfile() or entry.isdir()) or entry.issparse():
      raise UserError(f'{path}: {excerpt(entry.name)} is a link or a device: such archives are not unpacked')
    name = _inside(entry.name, path, below)
    if name and not entry.isdir():
      yield _Member(name, entry.size, entry)


def _inside(name: str, path: str, below: str) -> str:
  """Return a name relative to the folder; '' for the folder itself and what is not unpacked.

  Raises:
    UserError: it leads out of the folder.
  """
  if name.startswith(_HIDDEN[0]) or posixpath.basename(name).startswith('.') and name not in ('.', './'):
    return ''
  clean = posixpath.normpath(name)
  parts = clean.split('/')
  if name.startswith('/') or '..' in parts or '\\' in name or ':' in parts[0] or not name.isprintable():
    raise UserError(f'{path}: {excerpt(name)} would be written outside of the folder: such archives are not unpacked')
  if f'{clean}/' == below or clean == '.':
    return ''
  if not clean.startswith(below):
    raise UserError(f'{path}: {excerpt(name)} is not in {below}, where the published archive has everything: it is '
                    'another archive')
  return clean.removeprefix(below)


def _unpack(path: str, folder: str, members: list[_Member], opened: Any) -> int:
  total, limit = sum(member.size for member in members), _RATIO * os.path.getsize(path) + _SLACK
  if total > limit or len(members) > _MAX_FILES:
    raise UserError(f'{path}: would unpack to {total:,} bytes in {len(members):,} files: too many for an archive of '
                    'its size')
  os.makedirs(folder, exist_ok=True)
  missing = [member for member in members if not _is_there(os.path.join(folder, member.name), member.size)]
  needed, free = sum(member.size for member in missing), shutil.disk_usage(folder).free
  if needed > free:
    raise UserError(f'{folder}: {math.ceil(needed / MIB)} MiB are needed and {free // MIB} free: make room, or choose '
                    'another folder')
  progress = Progress(f'unpacking {os.path.basename(path)}', len(missing), sys.stderr)
  for member in missing:
    target = os.path.join(folder, *member.name.split('/'))
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with opened(member.entry) as content, files.replacing(target) as temporary:
      _copy(content, temporary, member, path)
    progress.count()
  progress.close()
  return len(members)


def _is_there(path: str, size: int) -> bool:
  try:
    status = os.lstat(path)
  except OSError:
    return False
  return stat.S_ISREG(status.st_mode) and status.st_size == size


def _copy(content: IO[bytes], temporary: str, member: _Member, path: str) -> None:
  left = member.size
  with open(temporary, 'wb') as file:
    while block := content.read(min(1 << 20, left + 1)):
      left -= len(block)
      if left < 0:
        break
      file.write(block)
  if left:
    raise UserError(f'{path}: {excerpt(member.name)} is not as large as the archive says: it is damaged: delete it, '
                    'and it is downloaded again')
