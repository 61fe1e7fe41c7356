"""Files of torch.save, read without torch: the legacy format (a sequence of pickles, then raw storages) and the zip
format (data.pkl and data/<key>).

The pickle is read by an allow-list, in which the placeholders below replace torch's classes; other objects are opaque.
Storages are mapped into memory, not read; a tensor is a view (offset, size, stride) of a storage whose bounds are
checked first.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from rethink_tf.errors import UserError, excerpt, in_one_line
from rethink_tf.weights import pickles, placeholders
from rethink_tf.weights.contents import Lazy
from rethink_tf.weights.placeholders import Opaque

MAGIC = 0x1950a86a20f9469cfc6c
PROTOCOL = 1001
_MAX_PICKLE = 1 << 26  # bytes of data.pkl; a ResNet's takes 100 kB
_MAX_DIRECTORY = 8 << 20  # bytes of the archive's list of entries; each storage takes about 100

# Element types; bfloat16 is the upper half of a float32.
STORAGES = {'FloatStorage': '<f4', 'HalfStorage': '<f2', 'BFloat16Storage': 'bfloat16', 'DoubleStorage': '<f8',
            'LongStorage': '<i8', 'IntStorage': '<i4', 'ShortStorage': '<i2', 'CharStorage': '<i1',
            'ByteStorage': '<u1', 'BoolStorage': '<u1', 'UntypedStorage': '<u1', 'ComplexFloatStorage': '<c8',
            'ComplexDoubleStorage': '<c16'}


@dataclasses.dataclass(frozen=True)
class StorageType:
  """Placeholder of torch.FloatStorage and similar classes."""

  name: str

  @property
  def dtype(self) -> np.dtype:
    kind = STORAGES[self.name]
    return np.dtype('<u2' if kind == 'bfloat16' else kind)


@dataclasses.dataclass(frozen=True)
class Storage:
  """A storage of the file, by its key."""

  type: StorageType
  key: str
  count: int


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A view of a storage: offset, sizes and strides in elements."""

  storage: Storage
  offset: int
  size: tuple[int, ...]
  stride: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor | Opaque:
  if isinstance(storage, Opaque):
    return storage
  if not isinstance(storage, Storage) or not all(isinstance(sides, tuple | list) and len(sides) <= 32
                                                 for sides in (size, stride)):
    raise ValueError('a tensor without a storage, or of over 32 dimensions')
  if storage.type.dtype.kind == 'c':
    return Opaque('a complex tensor')
  return Tensor(storage, offset, tuple(size), tuple(stride))


def _rebuild_typed(*arguments: Any) -> Opaque:
  """Placeholder of torch._utils._rebuild_tensor_v3: of element types without a storage class, as 8-bit floats."""
  types = [found.name for found in arguments if isinstance(found, Opaque) and found.name.startswith('torch.')]
  return Opaque(f'a tensor of {types[0]}' if types else 'a tensor without a known element type')


def _rebuild_parameter(data: Any, *_: Any) -> Any:
  return data


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
  """Placeholder of torch._tensor._rebuild_from_type_v2: a tensor with attributes, which are dropped."""
  return function(*arguments) if function in (_rebuild_tensor, _rebuild_typed, _rebuild_parameter) else \
    Opaque('a tensor of a class')


_ALLOWED = {
  **placeholders.ALLOWED,
  ('torch._utils', '_rebuild_tensor'): _rebuild_tensor,
  ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
  ('torch._utils', '_rebuild_tensor_v3'): _rebuild_typed,
  ('torch._utils', '_rebuild_parameter'): _rebuild_parameter,
  ('torch._utils', '_rebuild_parameter_with_state'): _rebuild_parameter,
  ('torch._tensor', '_rebuild_from_type_v2'): _rebuild_from_type,
  ('torch.storage', 'UntypedStorage'): StorageType('UntypedStorage'),
  **{('torch', name): StorageType(name) for name in STORAGES},
}


def load(path: str) -> Any:
  """Return the object in a file of torch.save, with its tensors as arrays that are read on demand.

  Raises:
    UserError: incomplete file, big-endian, a tensor outside its storage, or a pickle that could run programs.
  """
  try:
    data = np.memmap(path, np.uint8, 'r')
  except (OSError, ValueError) as error:
    raise UserError(f'{path}: cannot be read ({in_one_line(error)}): give the path of a weight file') from error
  content, storages = (_zip if data[:4].tobytes() == b'PK\x03\x04' else _legacy)(path, data)
  return pickles.replaced(content, Tensor, lambda tensor: _view(tensor, storages[tensor.storage.key], path))


def _persistent(path: str) -> tuple[Callable[[Any], Storage | Opaque], dict[str, Storage]]:
  """Return a reader of persistent ids ('storage', type, key, device, count[, view]), and the storages it has read."""
  known = {}

  def make(pid: Any) -> Storage | Opaque:
    if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == 'storage' and isinstance(pid[1], Opaque):
      return Opaque(f'a tensor of {pid[1].name}')
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != 'storage' or \
        not isinstance(pid[1], StorageType) or not isinstance(pid[2], str) or not _is_count(pid[4]):
      raise ValueError('an unknown persistent id')
    if len(pid) == 6 and pid[5] is not None:
      raise UserError(f'{path}: storage {excerpt(pid[2])} is a view of another one: save the weights again with '
                      'a newer torch')
    storage = Storage(pid[1], pid[2], pid[4])
    if known.setdefault(storage.key, storage) != storage:
      raise ValueError(f'storage {excerpt(storage.key)} is described twice')
    return storage
  return make, known


def _legacy(path: str, data: np.ndarray) -> tuple[Any, dict[str, np.ndarray]]:
  """Read five pickles, then for every key its number of elements (int64) and the elements."""
  make, known = _persistent(path)
  with open(path, 'rb') as file:
    def read(persistent: Callable[[Any], Storage] | None = None) -> Any:
      return pickles.load_from(file, path, _ALLOWED, persistent)
    if read() != MAGIC or read() != PROTOCOL:
      raise UserError(f'{path}: not a known version of the legacy format of torch.save: save the weights again')
    system = read()
    if not isinstance(system, dict) or system.get('little_endian') is not True:
      raise UserError(f'{path}: written on a big-endian machine: save the weights again on a little-endian one')
    content, keys = read(make), read()
    position = file.tell()
  if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(known):
    raise UserError(f'{path}: its list of storages does not match its tensors: download it again')
  storages = {}
  for key in keys:
    storage, begin = known[key], position + 8
    end = begin + storage.count * storage.type.dtype.itemsize
    if end > data.size:
      raise _truncated(path, key)
    count, = struct.unpack('<q', data[position:begin].tobytes())
    if count != storage.count:
      raise UserError(f'{path}: storage {excerpt(key)} holds {count} elements instead of {storage.count}: fetch '
                      'it again')
    storages[key], position = data[begin:end], end
  return content, storages


class _Limited:
  """A file that refuses to read more than `longest` bytes at once: `zipfile` reads the whole list of entries."""

  def __init__(self, file: BinaryIO, longest: int):
    self._file, self.longest = file, longest
    self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

  def read(self, size: int = -1) -> bytes:
    if size > self.longest:
      raise zipfile.BadZipFile(f'a list of {size:,} bytes')
    return self._file.read(size)


def _zip(path: str, data: np.ndarray) -> tuple[Any, dict[str, np.ndarray]]:
  """Read <root>/data.pkl, <root>/data/<key> and <root>/byteorder; everything is stored without compression."""
  try:
    with open(path, 'rb') as file, zipfile.ZipFile(limited := _Limited(file, _MAX_DIRECTORY)) as archive:
      limited.longest = _MAX_PICKLE
      entries = {entry.filename: entry for entry in archive.infolist()}
      roots = [name.removesuffix('data.pkl') for name in entries if name.endswith('/data.pkl') and name.count('/') == 1]
      if len(roots) != 1:
        raise UserError(f'{path}: a zip archive without data.pkl, so it is not a file of torch.save: give the weight '
                        'file itself')
      root = roots[0]
      if entries[f'{root}data.pkl'].file_size > _MAX_PICKLE:
        raise UserError(f'{path}: its data.pkl is not a list of weights (over {_MAX_PICKLE >> 20} MB)')
      if any(entries[name].compress_type != zipfile.ZIP_STORED for name in (f'{root}data.pkl', f'{root}byteorder')
             if name in entries):  # decompressing could take any time and memory
        raise UserError(f'{path}: its data.pkl is compressed: save the weights again with torch.save')
      pickled = archive.read(f'{root}data.pkl')
      with archive.open(f'{root}byteorder') if f'{root}byteorder' in entries else io.BytesIO(b'little') as file:
        order = file.read(16)
  except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError,
          OverflowError, MemoryError, struct.error, zlib.error) as error:
    raise UserError(f'{path}: not a complete zip archive ({in_one_line(error)}): download it again') from error
  if order != b'little':
    raise UserError(f'{path}: written on a big-endian machine: save the weights again on a little-endian one')
  make, known = _persistent(path)
  content = pickles.load_from(io.BytesIO(pickled), path, _ALLOWED, make)
  storages = {}
  for key, storage in known.items():
    entry = entries.get(f'{root}data/{key}')
    if entry is None or entry.compress_type != zipfile.ZIP_STORED:
      problem = 'missing' if entry is None else 'compressed'
      raise UserError(f'{path}: storage {excerpt(key)} is {problem}: save the weights again with torch.save')
    header = data[entry.header_offset:entry.header_offset + 30].tobytes()
    if len(header) < 30 or header[:4] != b'PK\x03\x04':
      raise _truncated(path, key)
    name_length, extra_length = struct.unpack('<HH', header[26:30])
    begin = entry.header_offset + 30 + name_length + extra_length
    end = begin + storage.count * storage.type.dtype.itemsize
    if end > min(data.size, begin + entry.file_size):
      raise _truncated(path, key)
    storages[key] = data[begin:end]
  return content, storages


def _view(tensor: Tensor, raw: np.ndarray, path: str) -> Lazy:
  """Return a tensor as an array, after checking that it lies inside its storage."""
  storage, offset, size, stride = tensor.storage, tensor.offset, tensor.size, tensor.stride
  valid = len(size) == len(stride) <= 32 and all(map(_is_count, (offset, *size, *stride)))
  if valid and 0 not in size:
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    valid = last < storage.count and math.prod(size) <= storage.count
  if not valid:
    raise UserError(f'{path}: a tensor of size {_shown(size)} lies outside its storage {excerpt(storage.key)}: the '
                    'file is damaged or forged; download it again')
  if 0 in size:
    return Lazy(size, lambda: np.zeros(size, np.float32))

  def read() -> np.ndarray:
    values = raw.view(storage.type.dtype)[offset:]
    array = np.lib.stride_tricks.as_strided(values, size, [step * values.itemsize for step in stride], writeable=False)
    if storage.type.name == 'BFloat16Storage':
      return (array.astype('<u4') << 16).view('<f4')
    return array
  return Lazy(size, read)


def _is_count(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _shown(size: tuple[Any, ...]) -> str:
  return f'({", ".join(excerpt(side) for side in size[:8])}{", …" if len(size) > 8 else ""})'


def _truncated(path: str, key: str) -> UserError:
  return UserError(f'{path}: ends before its storage {excerpt(key, 40)} does ({os.path.getsize(path):,} bytes): fetch '
                   'it again')
