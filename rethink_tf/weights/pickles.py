"""Reading pickles without running what is in them: only NumPy's parts are allowed, all else is refused by name."""

from __future__ import annotations

import codecs
import io
import pickle
from typing import Any

import numpy as np
import tensorflow as tf

from rethink_tf.errors import UserError

# What arrays and scalars are made of, under the names of NumPy 1 and 2. Taken from living objects, because their
# module has moved and may move again.
_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_SCALAR = np.float32(0).__reduce__()[0]
_ALLOWED = {
  ('numpy.core.multiarray', '_reconstruct'): _RECONSTRUCT,
  ('numpy._core.multiarray', '_reconstruct'): _RECONSTRUCT,
  ('numpy.core.multiarray', 'scalar'): _SCALAR,
  ('numpy._core.multiarray', 'scalar'): _SCALAR,
  ('numpy', 'ndarray'): np.ndarray,
  ('numpy', 'dtype'): np.dtype,
  ('_codecs', 'encode'): codecs.encode,
}


def load(path: str) -> Any:
  """The object in a pickle of dictionaries, lists, strings, numbers and arrays; Python 2's strings as latin-1.

  Raises:
    UserError: no such file, not a whole pickle, or one that refers to any other class or function.
  """
  try:
    with tf.io.gfile.GFile(path, 'rb') as file:
      data = file.read()
  except tf.errors.OpError as error:
    raise UserError(f'{path}: cannot be read ({error.message}): give the path of a weight file') from error
  try:
    return _Unpickler(io.BytesIO(data), encoding='latin1').load()
  except _Refused as error:
    raise UserError(f'{path}: refers to {error}, which could run code: convert the weights to plain arrays') from error
  except Exception as error:  # a damaged pickle raises nearly anything
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())
    raise UserError(f'{path}: not a complete pickle ({reason}): fetch it again') from error


class _Refused(Exception):
  """Carries the name of what a pickle may not refer to."""


class _Unpickler(pickle.Unpickler):
  def find_class(self, module, name):
    try:
      return _ALLOWED[module, name]
    except KeyError:
      raise _Refused(f'{module}.{name}') from None
