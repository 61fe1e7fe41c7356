"""Reads and writes users' files, local and gs://: only regular files are read, and writing is atomic.

A reader sees either the old file or the complete new one.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence

import tensorflow as tf
from absl import logging

from rethink_tf.errors import UserError, in_one_line, plain

_OF_PATTERNS = re.compile(r'[*?\[]' if os.sep == '\\' else r'[*?\[\\]')
ELSEWHERE = 'choose another place with --output, or free space'
OTHER_FOLDER = 'choose another --output_dir, or free space'
_OWN_CELLS = ('-', '+ pre-training')  # no value, and the head of a column of `compare`


def open_regular(path: str, mode: str = 'rb') -> tf.io.gfile.GFile:
  """Open a file for reading. A FIFO would block, a device might never end.

  Raises:
    tf.errors.FailedPreconditionError: it is a FIFO, a socket or a device. Other errors when it is read.
  """
  require_regular(path)
  try:
    path.encode()
    return tf.io.gfile.GFile(path, mode)
  except UnicodeEncodeError:  # a name that is not UTF-8, as Python reads it from a disk: TensorFlow takes its bytes
    return tf.io.gfile.GFile(os.fsencode(path), mode)


def require_regular(path: str) -> None:
  """Raise tf.errors.FailedPreconditionError for a local FIFO, socket or device; folders and missing files pass."""
  if '://' in path:
    return
  with contextlib.suppress(OSError, ValueError):  # reading reports these
    if stat.S_IFMT(os.stat(path).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
      raise tf.errors.FailedPreconditionError(None, None, 'not a regular file')


def refuse_links(folder: str) -> None:
  """Check that nothing in a local folder is a symbolic link, before a command writes there.

  A folder from elsewhere may hold links to any file of this machine; the folder itself may be one.

  Raises:
    UserError: it holds one.
  """
  if '://' in folder:
    return
  for path, folders, names in os.walk(folder):
    for name in (*folders, *names):
      link = os.path.join(path, name)
      if os.path.islink(link):
        raise UserError(f'{plain(link)}: is a symbolic link to {plain(os.readlink(link))}, where results would be '
                        'written: replace it by what it points to, or choose another --model_dir')


def refuse_patterns(path: str) -> None:
  """Check that a path has no characters of patterns, since TensorFlow looks for checkpoints by a pattern.

  Raises:
    UserError: the path has characters of patterns.
  """
  found = _OF_PATTERNS.search(path)
  if found:
    raise UserError(f'{plain(path)}: TensorFlow finds no checkpoint in a path with {found[0]}, which it takes for a '
                    'pattern: rename the folder, or choose another')


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
  """Yield a temporary path in the same folder; the file written there replaces `path` unless an error is raised.

  Raises:
    OSError, tf.errors.OpError: the storage refuses it.
  """
  temporary = _temporary(path)
  try:
    yield temporary
    tf.io.gfile.rename(temporary, path, overwrite=True)
  except BaseException:
    with contextlib.suppress(OSError, tf.errors.OpError):
      tf.io.gfile.remove(temporary)
    raise


def _temporary(path: str) -> str:
  """Return a temporary path in the same folder, removing a link of that name, whose target would be written."""
  folder, name = os.path.split(path)
  temporary = os.path.join(folder, f'.{name}.{os.getpid()}.partial')
  if '://' not in temporary and os.path.islink(temporary):
    os.remove(temporary)  # else its target would be written
  return temporary


def write(path: str, data: bytes | str) -> None:
  """Write a file atomically; its folder must exist. Raises OSError or tf.errors.OpError."""
  with replacing(path) as temporary, tf.io.gfile.GFile(temporary, 'wb') as file:
    file.write(data)


@contextlib.contextmanager
def logged_failures(what: str) -> Iterator[None]:
  """Log an error of storage within the body, which ends there, as a warning: `what` could not be written."""
  try:
    yield
  except (OSError, tf.errors.OpError) as error:
    logging.warning('%s could not be written: %s', what, in_one_line(error))


def as_csv(rows: Iterable[Sequence[object]]) -> bytes:
  """Return rows as a CSV file.

  A spreadsheet takes a cell that begins with =, +, - or @ for a formula, which can run programs; a name from a file may
  be one. Such a cell begins with an apostrophe, unless it is a number. Control characters are escaped.
  """
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows([_cell(plain(str(value))) for value in row] for row in rows)
  return text.getvalue().encode()


def _cell(text: str) -> str:
  if text[:1] not in ('=', '+', '-', '@') or text in _OWN_CELLS:
    return text
  try:
    float(text)
  except ValueError:
    return f"'{text}"
  return text


def write_output(path: str, data: bytes | str | None, cure: str = ELSEWHERE) -> None:
  """Write a result of a command with --output atomically, creating its folder; None removes that of an earlier call.

  Raises:
    UserError: the storage refuses it; the message ends with `cure`.
  """
  write_outputs(os.path.dirname(path), {os.path.basename(path): data}, cure)


def write_outputs(folder: str, contents: Mapping[str, bytes | str | None], cure: str = ELSEWHERE) -> None:
  """Write several results like write_output, by name, none before it is known that all fit on the disk.

  Raises:
    UserError: the storage refuses one; those of an earlier call are still there.
  """
  path, staged = os.path.join(folder, *list(contents)[:1]), {}
  try:
    tf.io.gfile.makedirs(folder or '.')
    for name, data in contents.items():
      path = os.path.join(folder, name)
      if data is not None:
        staged[path] = _temporary(path)
        with tf.io.gfile.GFile(staged[path], 'wb') as file:
          file.write(data)
    for path in list(staged):
      tf.io.gfile.rename(staged[path], path, overwrite=True)
      del staged[path]
    for path in (os.path.join(folder, name) for name, data in contents.items() if data is None):
      with contextlib.suppress(tf.errors.NotFoundError):
        tf.io.gfile.remove(path)
  except (OSError, tf.errors.OpError) as error:
    raise UserError(f'{path}: cannot be written: {in_one_line(error)}; {cure}') from error
  finally:
    for temporary in staged.values():
      with contextlib.suppress(OSError, tf.errors.OpError):
        tf.io.gfile.remove(temporary)
