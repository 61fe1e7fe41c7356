"""A restricted unpickler: plain containers and arrays are read, everything else is refused, and no code is run.

A pickle is a program that names functions and calls them. Here it can name only a few placeholders, which record their
arguments: no function of NumPy or torch is called (a forged element type would make NumPy dereference pointers from the
file), and arrays are created afterwards, from validated shapes. The interpreter is Python's slow one: for the C one,
five bytes are enough to allocate 32 GB.
"""

from __future__ import annotations

import math
import os
import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from rethink_tf.errors import UserError, excerpt, in_one_line

_ELEMENTS = {f'{kind}{size}' for kind, sizes in (('f', '248'), ('i', '1248'), ('u', '1248'), ('b', '1'))
             for size in sizes}
_MAX_DEPTH = 100  # of nested containers; a checkpoint has five
_MAX_MARKS = 1000  # open at a time: twice the depth in a sound file
_MAX_OPERATIONS = 1_000_000  # some seconds; a detector's checkpoint with its optimizer takes 50,000
_MAX_BITS = 1 << 10  # of an integer: hashing or multiplying longer ones takes any time
_SLACK = 1 << 20  # bytes


class Refused(Exception):
  """A pickle refers to something that is not allowed; the message names it."""


class Built:
  """Base class of placeholders that a pickle creates first and gives a state afterwards (`__setstate__`).

  Unless it is a container itself, `finished()` returns the object that it is replaced by.
  """


class _Dtype(Built):
  """Placeholder of numpy.dtype, for numbers only. Python 2 writes 'f4', and the byte order as a state."""

  def __init__(self, name: Any, *_: Any):
    if not isinstance(name, str) or name not in _ELEMENTS:
      raise Refused(f'elements of type {excerpt(name, 20)}')
    self._name, self._order = name, '<'

  def __setstate__(self, state: Any) -> None:
    order = state[1]
    if order not in ('<', '>', '|', '='):
      raise ValueError('byte order')
    self._order = '<' if order == '=' else order

  def finished(self) -> np.dtype:
    return np.dtype(self._order + self._name)


class _Array(Built):
  """Placeholder of an instance of numpy.ndarray."""

  def __init__(self):
    self._value: np.ndarray | None = None

  def __setstate__(self, state: Any) -> None:
    _, shape, dtype, fortran, raw = state
    self._value = _from_bytes(raw, dtype, shape, 'F' if fortran else 'C')

  def finished(self) -> np.ndarray:
    if self._value is None:
      raise ValueError('an array without content')
    return self._value


def _encode(text: str, encoding: str = 'latin1') -> bytes:
  """Placeholder of _codecs.encode, by which protocols below 3 write bytes; other codecs are refused."""
  if encoding not in ('latin1', 'latin-1'):
    raise Refused(f'the codec {excerpt(encoding, 20)}')
  return text.encode('latin1')


def _from_bytes(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
  if not isinstance(dtype, _Dtype):
    raise ValueError('an array without an element type')
  dtype, raw = dtype.finished(), raw.encode('latin1') if isinstance(raw, str) else raw  # str: Python 2's
  if not isinstance(shape, tuple) or len(shape) > 32 or \
      not all(type(side) is int and 0 <= side < 1 << 62 for side in shape) or \
      not isinstance(raw, bytes | bytearray) or math.prod(shape) * dtype.itemsize != len(raw):
    raise ValueError('an array whose shape and bytes disagree')
  return np.frombuffer(raw, dtype).reshape(shape, order=order)


def _scalar(dtype: Any, raw: Any) -> np.generic:
  return _from_bytes(raw, dtype, (), 'C')[()]


def _ndarray() -> None:
  """Placeholder of the class numpy.ndarray, which pickles of arrays only name."""
  raise ValueError('numpy.ndarray is not called')


def _reconstruct(cls: Any, shape: Any, kind: Any) -> _Array:
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
}


def load(path: str) -> Any:
  """Return the object in a pickle of dictionaries, lists, strings, numbers and arrays; Python 2's strings as latin-1.

  Raises:
    UserError: no such file, not a complete pickle, or one that refers to any other class or function.
  """
  try:
    file = open(path, 'rb')
  except OSError as error:
    raise UserError(f'{path}: cannot be read ({in_one_line(error)}): give the path of a weight file') from error
  with file:
    return load_from(file, path)


def load_from(file: BinaryIO, path: str, allowed: Mapping[tuple[str, str], Any] = ALLOWED,
              persistent: Callable[[Any], Any] | None = None) -> Any:
  """Return the object in the next pickle of an open file. persistent: converts persistent ids. Errors as of `load`."""
  try:
    content = _Unpickler(_Bounded(file), allowed, persistent).load()
    return replaced(content, Built, lambda found: found.finished())
  except Refused as error:
    raise UserError(f'{path}: refers to {printable(str(error))}, which could run code: convert the weights to plain '
                    'arrays') from error
  except UserError:
    raise
  except Exception as error:  # a damaged pickle raises almost any exception
    # Of a KeyError, Python shows the repr of the key, an object of the file.
    reason = '' if isinstance(error, KeyError) else f': {printable(str(error)[:200])}'
    raise UserError(f'{path}: not a complete pickle ({type(error).__name__}{reason}): fetch it again') from error


def printable(text: str) -> str:
  """Return a text from a file as one line without control characters."""
  return ''.join(letter if letter.isprintable() else '?' for letter in ' '.join(text.split()))


def replaced(content: Any, kind: type, replacement: Callable[[Any], Any]) -> Any:
  """Return nested containers with every object of a type replaced by replacement(object).

  A container that is referred to many times is visited once: a few bytes can refer to one millions of times.
  """
  known: dict[int, Any] = {}

  def visit(value: Any, depth: int) -> Any:
    if not isinstance(value, kind | dict | list | tuple):
      return value
    if depth > _MAX_DEPTH:
      raise ValueError(f'containers are nested over {_MAX_DEPTH} deep')
    if id(value) not in known:
      if isinstance(value, dict):
        known[id(value)] = {key: visit(item, depth + 1) for key, item in value.items()}
      elif isinstance(value, kind):
        known[id(value)] = replacement(value)
      else:
        known[id(value)] = type(value)([visit(item, depth + 1) for item in value])
    return known[id(value)]
  return visit(content, 0)


class _Bounded:
  """A file that refuses to read beyond its end: for a length in a pickle, memory is allocated before it is read."""

  def __init__(self, file: BinaryIO):
    self._file = file
    position = file.tell()
    self._end = file.seek(0, os.SEEK_END)
    self.size = self._end - position
    file.seek(position)
    self.readline = file.readline

  def read(self, size: int) -> bytes:
    if not 0 <= size <= self._end - self._file.tell():
      raise EOFError('ends too early')
    return self._file.read(size)


class _Operations(dict):
  """Operations by their codes. Counts how many are looked up, and refuses endless programs."""

  count = 0

  def __getitem__(self, code: int) -> Callable[[Any], None]:
    self.count += 1
    if self.count > _MAX_OPERATIONS:
      raise pickle.UnpicklingError(f'over {_MAX_OPERATIONS:,} operations')
    return super().__getitem__(code)


class _Unpickler(pickle._Unpickler):
  """Python's unpickler without the operations that plain data does not need, and with limits on time and memory."""

  dispatch = dict(pickle._Unpickler.dispatch)

  def __init__(self, file: _Bounded, allowed: Mapping[tuple[str, str], Any],
               persistent: Callable[[Any], Any] | None):
    super().__init__(file, encoding='latin1')
    self._allowed, self._persistent = allowed, persistent
    self.dispatch = _Operations(self.dispatch)
    self._passed, self._may_pass = 0, 2 * file.size + _SLACK  # bytes and characters given to placeholders

  def find_class(self, module: str, name: str) -> Any:
    try:
      return self._allowed[module, name]
    except KeyError:
      raise Refused(f'{str(module)[:60]}.{str(name)[:60]}') from None

  def persistent_load(self, pid: Any) -> Any:
    if self._persistent is None:
      raise pickle.UnpicklingError('an unexpected persistent id')
    return self._persistent(pid)

  def _build(self) -> None:
    """Set a state on a placeholder only: set on a function or a class, it would change this process."""
    state = self.stack.pop()
    if not isinstance(self.stack[-1], Built):
      raise Refused(f'the state of {type(self.stack[-1]).__name__!r}')
    self._count(state)
    self.stack[-1].__setstate__(state)

  def _reduce(self) -> None:
    arguments = self.stack.pop()
    if not isinstance(arguments, tuple):
      raise pickle.UnpicklingError('arguments that are no tuple')
    self._count(arguments)
    self.stack[-1] = self.stack[-1](*arguments)

  def _count(self, arguments: Any) -> None:
    """Bound what placeholders convert: two bytes can pass the same long string to them once more."""
    if isinstance(arguments, tuple):
      self._passed += sum(len(value) for value in arguments if isinstance(value, str | bytes | bytearray | tuple))
    if self._passed > self._may_pass:
      raise pickle.UnpicklingError('its arrays are larger than the file')

  def _mark(self) -> None:
    if len(self.metastack) >= _MAX_MARKS:
      raise pickle.UnpicklingError(f'over {_MAX_MARKS} open marks')
    self.load_mark()

  def _long(self) -> None:
    size, = struct.unpack('<i', self.read(4))
    if not 0 <= size <= _MAX_BITS // 8:
      raise pickle.UnpicklingError(f'an integer of {size} bytes')
    self.append(pickle.decode_long(self.read(size)))

  def _text_integer(self) -> None:
    """INT and LONG of protocol 0: decimal, with 00 and 01 for booleans."""
    line = self.readline()
    if len(line) > _MAX_BITS // 4:
      raise pickle.UnpicklingError(f'an integer of {len(line):,} digits')
    line = line[:-1].removesuffix(b'L')
    self.append(line == b'01' if line in (b'00', b'01') else int(line, 0))

  def _byte_array(self) -> None:
    """Read the content first: Python allocates the length that the file claims."""
    size, = struct.unpack('<Q', self.read(8))
    self.append(bytearray(self.read(size)))

  def _set_item(self) -> None:
    value, key = self.stack.pop(), self.stack.pop()
    self._put(key, value)

  def _set_items(self) -> None:
    items = self.pop_mark()
    for key, value in zip(items[::2], items[1::2], strict=True):
      self._put(key, value)

  def _new_dict(self) -> None:
    items = self.pop_mark()
    self.append({})
    for key, value in zip(items[::2], items[1::2], strict=True):
      self._put(key, value)

  def _put(self, key: Any, value: Any) -> None:
    # Nested tuples that refer to one tuple many times take practically infinite time to hash.
    if not isinstance(key, str | int | bytes):
      raise Refused(f'keys of type {type(key).__name__!r}')
    if not isinstance(self.stack[-1], dict):
      raise pickle.UnpicklingError('an item is set on an object that is not a dictionary')
    self.stack[-1][key] = value

  def _refuse(self) -> None:
    raise Refused('objects of classes, or sets')

  dispatch.update({
    pickle.BUILD[0]: _build, pickle.REDUCE[0]: _reduce, pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items,
    pickle.DICT[0]: _new_dict, pickle.MARK[0]: _mark, pickle.LONG4[0]: _long, pickle.INT[0]: _text_integer,
    pickle.LONG[0]: _text_integer, pickle.BYTEARRAY8[0]: _byte_array})
  dispatch.update(dict.fromkeys((code[0] for code in (
    pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.EMPTY_SET,
    pickle.ADDITEMS, pickle.FROZENSET)), _refuse))
