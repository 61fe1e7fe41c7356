"""Reading pickles without running what is in them: only parts of NumPy and torch are allowed, all else is refused.

What is allowed of torch are stand-ins of our own (torch_files.py): nothing of torch is imported.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from rethink_tf.errors import UserError


class Refused(Exception):
  """Carries the name of what a pickle may not refer to."""


def _encode(text: str, encoding: str = 'latin1') -> bytes:
  """What protocols below 3 make bytes of; every other codec is refused."""
  if encoding not in ('latin1', 'latin-1'):
    raise Refused(f'the codec {encoding!r}')
  return text.encode('latin1')


# What arrays and scalars are made of, under the names of NumPy 1 and 2. Taken from living objects, because their
# module has moved and may move again.
_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_SCALAR = np.float32(0).__reduce__()[0]
ALLOWED = {
  ('numpy.core.multiarray', '_reconstruct'): _RECONSTRUCT,
  ('numpy._core.multiarray', '_reconstruct'): _RECONSTRUCT,
  ('numpy.core.multiarray', 'scalar'): _SCALAR,
  ('numpy._core.multiarray', 'scalar'): _SCALAR,
  ('numpy', 'ndarray'): np.ndarray,
  ('numpy', 'dtype'): np.dtype,
  ('_codecs', 'encode'): _encode,
}


def load(path: str) -> Any:
  """The object in a pickle of dictionaries, lists, strings, numbers and arrays; Python 2's strings as latin-1.

  Raises:
    UserError: no such file, not a whole pickle, or one that refers to any other class or function.
  """
  try:
    file = open(path, 'rb')
  except OSError as error:
    raise UserError(f'{path}: cannot be read ({error.strerror}): give the path of a weight file') from error
  with file:
    return load_from(file, path)


def load_from(file: BinaryIO, path: str, allowed: Mapping[tuple[str, str], Any] = ALLOWED,
              persistent: Callable[[Any], Any] | None = None) -> Any:
  """The next pickle of an open file; persistent: makes an object of a persistent id. Errors as of `load`."""
  try:
    return _Unpickler(file, allowed, persistent).load()
  except Refused as error:
    raise UserError(f'{path}: refers to {error}, which could run code: convert the weights to plain arrays') from error
  except UserError:
    raise
  except Exception as error:  # a damaged pickle raises nearly anything
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
    raise UserError(f'{path}: not a complete pickle ({reason}): fetch it again') from error


class _Unpickler(pickle.Unpickler):
  def __init__(self, file, allowed, persistent):
    super().__init__(file, encoding='latin1')
    self._allowed, self._persistent = allowed, persistent

  def find_class(self, module, name):
    try:
      return self._allowed[module, name]
    except KeyError:
      raise Refused(f'{module}.{name}') from None

  def persistent_load(self, pid):
    if self._persistent is None:
      raise pickle.UnpicklingError('a persistent id where none belongs')
    return self._persistent(pid)
