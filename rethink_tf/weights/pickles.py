"""A restricted unpickler: plain containers and arrays are read, other objects stay opaque, and no code is run.

A pickle is a program that names functions and calls them. Here it can name only placeholders, which record their
arguments: no function of NumPy or torch is called (a forged element type would make NumPy dereference pointers from the
file), and arrays are created afterwards, from validated shapes. What stands beside the weights in a checkpoint
(argparse.Namespace, collections.Counter of a schedule, sets, devices, configurations) becomes an `Opaque`, of which
only the name is kept; names that serve to run programs are refused. The interpreter is Python's slow one: for the C
one, five bytes are enough to allocate 32 GB.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from rethink_tf.errors import UserError, in_one_line, shortened
from rethink_tf.weights.placeholders import ALLOWED, Built, Opaque, Refused, printable

_MAX_DEPTH = 100  # of nested containers; a checkpoint has five
_MAX_MARKS = 1000  # open at a time: twice the depth in a sound file
_MAX_OPERATIONS = 1_000_000  # some seconds; a detector's checkpoint with its optimizer takes 50,000
_MAX_BITS = 1 << 10  # of an integer: hashing or multiplying longer ones takes any time
_SLACK = 1 << 20  # bytes
_SIZED = str | bytes | bytearray | tuple | list

# A file that names these was made to run programs. They would not be run here either, but it is not a file to trust.
_REFUSED = frozenset(
  'os posix nt ntpath posixpath subprocess commands popen2 sys importlib imp runpy pty shutil socket http urllib '
  'urllib2 requests ctypes code codeop bdb pdb timeit profile cProfile trace pickle _pickle cPickle dill cloudpickle '
  'joblib marshal operator _operator types inspect webbrowser multiprocessing asyncio threading _thread pip setuptools '
  'pandas builtins __builtin__ torch.load torch.hub.load torch.jit.load torch.package numpy.load'.split())
_HARMLESS = {'set', 'frozenset', 'complex', 'slice', 'range', 'xrange', 'object', 'bytearray', 'bytes', 'int', 'long',
             'float', 'str', 'unicode', 'bool', 'list', 'tuple', 'dict', 'type', 'Ellipsis', 'NotImplemented'}


def load(path: str) -> Any:
  """Return the object in a pickle of dictionaries, lists, strings, numbers and arrays; Python 2's strings as latin-1.

  Raises:
    UserError: no such file, not a complete pickle, or one that could run programs.
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
    raise UserError(f'{path}: refers to {printable(str(error))}, which could run code: get the weights from a '
                    'source that you trust, as plain arrays') from error
  except UserError:
    raise
  except Exception as error:  # a damaged pickle raises almost any exception
    # Of a KeyError, Python shows the repr of the key, an object of the file.
    reason = '' if isinstance(error, KeyError) else f': {printable(shortened(str(error), 200))}'
    raise UserError(f'{path}: not a complete pickle ({type(error).__name__}{reason}): download it again') from error


def replaced(content: Any, kind: type, replacement: Callable[[Any], Any]) -> Any:
  """Replace every object of a type in nested containers by replacement(object); return the result.

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
  """A file that refuses to read beyond its end: Python allocates the memory for a length in a pickle before reading."""

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
  """The table of pickle operations; it counts how many are executed, and stops endless programs."""

  count = 0

  def __getitem__(self, code: int) -> Callable[[Any], None]:
    self.count += 1
    if self.count > _MAX_OPERATIONS:
      raise pickle.UnpicklingError(f'over {_MAX_OPERATIONS:,} operations')
    return super().__getitem__(code)


class _Unpickler(pickle._Unpickler):
  """Python's unpickler, with objects of classes and sets as opaque values, and with limits on time and memory."""

  dispatch = dict(pickle._Unpickler.dispatch)

  def __init__(self, file: _Bounded, allowed: Mapping[tuple[str, str], Any],
               persistent: Callable[[Any], Any] | None):
    super().__init__(file, encoding='latin1')
    self._allowed, self._persistent = allowed, persistent
    self.dispatch = _Operations(self.dispatch)
    self._passed, self._may_pass = 0, 2 * file.size + _SLACK  # bytes and characters given to placeholders

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) in self._allowed:
      return self._allowed[module, name]
    full, root = f'{str(module)[:60]}.{str(name)[:60]}', str(module).split('.')[0]
    if (root in _REFUSED or full in _REFUSED) and not (root in ('builtins', '__builtin__') and name in _HARMLESS):
      raise Refused(full)
    return Opaque(full)

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
      raise pickle.UnpicklingError('arguments that are not a tuple')
    self._count(arguments)
    self.stack[-1] = self.stack[-1](*arguments)

  def _count(self, arguments: Any) -> None:
    """Limit the total length given to placeholders: two bytes can pass the same long string to them once more."""
    if isinstance(arguments, tuple):
      self._passed += sum(len(value) for value in arguments if isinstance(value, _SIZED))
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
    self.append(int.from_bytes(self.read(size), 'little', signed=True))

  def _text_integer(self) -> None:
    """INT and LONG of protocol 0: decimal, with 00 and 01 for booleans."""
    line = self.readline()
    if len(line) > _MAX_BITS // 4:
      raise pickle.UnpicklingError(f'an integer of {len(line):,} digits')
    line = line[:-1].removesuffix(b'L')
    self.append(line == b'01' if line in (b'00', b'01') else int(line, 0))

  def _byte_array(self) -> None:
    """Read the content before Python does, which would allocate the length that the file claims."""
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
    if isinstance(self.stack[-1], Opaque):
      return
    if not isinstance(self.stack[-1], dict):
      raise pickle.UnpicklingError('an item is set on an object that is not a dictionary')
    # Other keys are of no weights, and nested tuples that refer to one tuple many times take practically infinite time
    # to hash.
    if isinstance(key, str | int | bytes):
      self.stack[-1][key] = value

  def _instantiate(self, klass: Any, args: Any) -> None:
    """Called for INST and OBJ with the class and its arguments."""
    if not isinstance(klass, Opaque):
      raise Refused('objects of classes')
    self.append(klass)

  def _new_object(self) -> None:
    self.stack.pop()  # arguments
    self._instantiate(self.stack.pop(), ())

  def _new_object_with_keywords(self) -> None:
    self.stack.pop()
    self._new_object()

  def _empty_set(self) -> None:
    self.append(Opaque('a set'))

  def _frozen_set(self) -> None:
    self.pop_mark()
    self._empty_set()

  def _add_items(self) -> None:
    self.pop_mark()
    if not isinstance(self.stack[-1], Opaque):
      raise pickle.UnpicklingError('items are added to an object that is not a set')

  def _refuse(self) -> None:
    raise Refused('extensions of this machine')

  dispatch.update({
    pickle.BUILD[0]: _build, pickle.REDUCE[0]: _reduce, pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items,
    pickle.DICT[0]: _new_dict, pickle.MARK[0]: _mark, pickle.LONG4[0]: _long, pickle.INT[0]: _text_integer,
    pickle.LONG[0]: _text_integer, pickle.BYTEARRAY8[0]: _byte_array, pickle.NEWOBJ[0]: _new_object,
    pickle.NEWOBJ_EX[0]: _new_object_with_keywords, pickle.EMPTY_SET[0]: _empty_set, pickle.FROZENSET[0]: _frozen_set,
    pickle.ADDITEMS[0]: _add_items})
  dispatch.update(dict.fromkeys((code[0] for code in (pickle.EXT1, pickle.EXT2, pickle.EXT4)), _refuse))
