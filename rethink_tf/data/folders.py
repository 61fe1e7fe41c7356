"""Untrusted file names: names that are not UTF-8 are reported, and no name resolves to a path outside its folder."""

from __future__ import annotations

import os
import posixpath

import tensorflow as tf

from rethink_tf.errors import UserError


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
