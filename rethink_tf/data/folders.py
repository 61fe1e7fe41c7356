"""Untrusted file names: names that are not UTF-8 are reported, and no name resolves to a path outside its folder."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from rethink_tf.errors import UserError


def check_one_path(name: str, value: Any) -> None:
  """Raise UserError unless an argument, named as in gin, is one path or None."""
  if not isinstance(value, str | os.PathLike | None):
    raise UserError(f'{name} = {str(value)[:100]!r} should be one path in quotes: join several files into one, with '
                    'ids that do not collide')


def list_names(folder: str) -> list[str]:
  """List the names in a folder with tf.io.gfile, local or gs://.

  Raises:
    tf.errors.OpError: no such folder.
    UserError: a name in it is not UTF-8, as in archives of other systems; TensorFlow then lists nothing.
  """
  try:
    return tf.io.gfile.listdir(folder)
  except UnicodeDecodeError as error:
    raise UserError(f'{folder}: the name of a file in it is not UTF-8 ({error.object[-60:]!r}): rename it') from error


def find_files(folder: str, names: Sequence[str]) -> list[str | None]:
  """Return the names of files below a folder as they are on the disk, None where one is missing.

  Each folder is listed once, instead of a look-up for each file. A name with accents is found in either form of
  Unicode: macOS stores them decomposed.
  """
  present = {}
  for subfolder in {posixpath.dirname(name) for name in names}:
    try:
      listing = list_names(os.path.join(folder, subfolder))
    except tf.errors.OpError:
      continue
    present |= {posixpath.join(subfolder, entry): None for entry in listing}
  composed = {unicodedata.normalize('NFC', name): name for name in present if not name.isascii()}
  return [name if name in present else composed.get(unicodedata.normalize('NFC', name)) for name in names]


def inside(folder: str, name: str) -> str | None:
  """Return the path of a name from a data file, relative to a folder or absolute; None if it is outside the folder.

  Symbolic links are followed: the owner of the disk creates them, a data file cannot.
  """
  if '://' in folder:
    root = folder.rstrip('/')
    normal = posixpath.normpath(name.removeprefix(f'{root}/'))
    outside = normal.startswith(('/', '../')) or normal in ('.', '..') or ':/' in normal
    return None if outside or '\0' in name else f'{root}/{normal}'
  root = os.path.abspath(folder)
  path = os.path.normpath(os.path.join(root, name))
  outside = path == root or os.path.commonpath([root, path]) != root
  return None if outside or '\0' in name or '://' in name else path
