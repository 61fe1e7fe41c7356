"""Placeholders of the classes and functions that a pickle can name: they record arguments and call nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rethink_tf.errors import excerpt

_ELEMENTS = {f'{kind}{size}' for kind, sizes in (('f', '248'), ('i', '1248'), ('u', '1248'), ('b', '1'))
             for size in sizes}


class Refused(Exception):
  """A pickle refers to something that is not allowed; the message is its name."""


class Built:
  """Base class of placeholders that a pickle creates first and gives a state afterwards (`__setstate__`).

  Unless it is a container itself, `finished()` returns the object that it is replaced by.
  """


class Opaque(Built):
  """Placeholder of a class or function, and of its instances and results: calls, items and states are ignored."""

  def __init__(self, name: str):
    self.name = printable(name[:120])

  def __call__(self, *_: Any) -> Opaque:
    return self

  def __setstate__(self, state: Any) -> None:
    pass

  def append(self, _: Any) -> None:
    pass

  def extend(self, _: Any) -> None:
    pass

  def finished(self) -> Opaque:
    return self


class OrderedDict(dict, Built):
  """Placeholder of collections.OrderedDict and defaultdict; attributes that torch sets on it are dropped."""

  def __init__(self, items: Any = ()):
    super().__init__()
    for key, value in items if isinstance(items, list | tuple) else ():
      if isinstance(key, str | int | bytes):
        self[key] = value

  def __setstate__(self, state: Any) -> None:
    pass


class _Dtype(Built):
  """Placeholder of numpy.dtype. Python 2 writes 'f4', and the byte order as a state."""

  def __init__(self, name: Any, *_: Any):
    self._name, self._order = name if isinstance(name, str) else excerpt(name), '<'

  @property
  def is_numeric(self) -> bool:
    return self._name in _ELEMENTS

  def __setstate__(self, state: Any) -> None:
    order = state[1]
    if not self.is_numeric:
      return
    if order not in ('<', '>', '|', '='):
      raise ValueError('byte order')
    self._order = '<' if order == '=' else order

  def finished(self) -> np.dtype | Opaque:
    if not self.is_numeric:
      return Opaque(f'an array of elements {self._name}')
    return np.dtype(self._order + self._name)


class _Array(Built):
  """Placeholder of an instance of numpy.ndarray."""

  def __init__(self):
    self._value: np.ndarray | Opaque | None = None

  def __setstate__(self, state: Any) -> None:
    _, shape, dtype, fortran, raw = state
    self._value = _from_bytes(raw, dtype, shape, 'F' if fortran else 'C')

  def finished(self) -> np.ndarray | Opaque:
    if self._value is None:
      raise ValueError('an array without content')
    return self._value


def _encode(text: str, encoding: str = 'latin1') -> bytes:
  """Placeholder of _codecs.encode, by which protocols below 3 write bytes; other codecs are refused."""
  if encoding not in ('latin1', 'latin-1'):
    raise Refused(f'the codec {excerpt(encoding, 20)}')
  return text.encode('latin1')


def _from_bytes(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray | Opaque:
  if isinstance(dtype, Opaque):
    return dtype
  if not isinstance(dtype, _Dtype):
    raise ValueError('an array without an element type')
  if not dtype.is_numeric:
    return dtype.finished()
  dtype, raw = dtype.finished(), raw.encode('latin1') if isinstance(raw, str) else raw  # str: Python 2's
  if not isinstance(shape, tuple) or len(shape) > 32 or \
      not all(type(side) is int and 0 <= side < 1 << 62 for side in shape) or \
      not isinstance(raw, bytes | bytearray) or math.prod(shape) * dtype.itemsize != len(raw):
    raise ValueError('an array whose shape and bytes disagree')
  return np.frombuffer(raw, dtype).reshape(shape, order=order)


def _scalar(dtype: Any, raw: Any) -> np.generic | Opaque:
  value = _from_bytes(raw, dtype, (), 'C')
  return value if isinstance(value, Opaque) else value[()]


def _ndarray() -> None:
  """Placeholder of the class numpy.ndarray, which pickles of arrays only name."""
  raise ValueError('numpy.ndarray is not called')


def _reconstruct(cls: Any, shape: Any, kind: Any) -> _Array | Opaque:
  if isinstance(cls, Opaque):
    return cls
  if cls is not _ndarray:
    raise ValueError('an array of another class')
  return _Array()


ALLOWED = {
  **{(module, name): placeholder
     for module in ('numpy.core.multiarray', 'numpy._core.multiarray')  # of NumPy 1 and 2
     for name, placeholder in (('_reconstruct', _reconstruct), ('scalar', _scalar))},
  **{(module, '_frombuffer'): _from_bytes for module in ('numpy.core.numeric', 'numpy._core.numeric')},  # protocol 5
  ('numpy', 'ndarray'): _ndarray,
  ('numpy', 'dtype'): _Dtype,
  ('_codecs', 'encode'): _encode,
  ('collections', 'OrderedDict'): OrderedDict,
  ('collections', 'defaultdict'): lambda *_: OrderedDict(),  # of (factory); its items follow
}


def printable(text: str) -> str:
  """Return a text from a file as one line, with control characters removed."""
  return ''.join(letter if letter.isprintable() else '?' for letter in ' '.join(text.split()))
