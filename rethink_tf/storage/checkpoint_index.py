"""Validation of the index of a TensorFlow checkpoint, before TensorFlow reads it.

TensorFlow trusts an index: an invalid entry aborts the whole process, and for a shape, memory is allocated before
anything is read. A checkpoint may come from anybody, so its index is first compared with its files.

The index is a sorted string table (LevelDB's): blocks of entries with prefix-compressed keys, an index of the blocks,
and a footer with the position of that. The value of a key is a BundleEntryProto, that of '' a BundleHeaderProto.
"""

from __future__ import annotations

import math
import struct

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import tensor_bundle_pb2

from rethink_tf.storage import files

VALUE = '/.ATTRIBUTES/VARIABLE_VALUE'  # suffix of the keys that hold the values of variables
_MAX_BYTES = 16 << 20  # of an index; a detector's has 100 kB
_MAX_ENTRIES = 100_000  # a detector's has 3,000
_LONGEST_KEY = 2000  # characters
_MAGIC = 0xdb4775248b80fb57
_FOOTER, _TRAILER = 48, 5  # bytes at the end of the file, and after each block: type of compression, checksum


def problem(prefix: str) -> str | None:
  """Return a description of the first error in the index or the lengths of the data files, None without errors.

  Checksums are compared by TensorFlow. prefix: of the checkpoint's files.

  Raises:
    tf.errors.OpError: the index cannot be read.
  """
  with files.open_regular(f'{prefix}.index') as file:
    if file.size() > _MAX_BYTES:
      return f'its index has {file.size():,} bytes'
    data = file.read()
  try:
    entries = _entries(data)
    header = tensor_bundle_pb2.BundleHeaderProto.FromString(entries.pop(b'', b''))
    if not 1 <= header.num_shards < 100_000 or header.endianness != tensor_bundle_pb2.BundleHeaderProto.LITTLE:
      return 'its index has no valid header'
    lengths: dict[int, int] = {}
    for key, value in entries.items():
      error = _problem_of(tensor_bundle_pb2.BundleEntryProto.FromString(value), prefix, header.num_shards, lengths)
      if error:
        return f'{key[:80].decode()!r} {error}'
  except (DecodeError, UnicodeDecodeError, IndexError, ValueError, struct.error):
    return 'its index is damaged'
  return None


def _problem_of(entry: tensor_bundle_pb2.BundleEntryProto, prefix: str, num_shards: int,
                lengths: dict[int, int]) -> str | None:
  """Return a description of an error in an entry, None without one. lengths: of the data files seen so far."""
  if entry.slices:
    return 'is stored in slices'
  try:
    dtype = tf.as_dtype(entry.dtype)
  except TypeError:
    return 'has an unknown type'
  shape = [side.size for side in entry.shape.dim]
  if entry.shape.unknown_rank or len(shape) > 32 or any(not 0 <= side < 2 ** 48 for side in shape):
    return f'has the shape {shape[:8]}'
  count = math.prod(shape)
  if not 0 <= entry.shard_id < num_shards or entry.offset < 0 or entry.size < 0 or \
      (count > entry.size if dtype == tf.string else count * dtype.size != entry.size):
    return f'has {entry.size} bytes for the shape {shape[:8]}'
  if entry.shard_id not in lengths:
    path = f'{prefix}.data-{entry.shard_id:05d}-of-{num_shards:05d}'
    files.require_regular(path)
    lengths[entry.shard_id] = tf.io.gfile.stat(path).length if tf.io.gfile.exists(path) else -1
  if entry.offset + entry.size > lengths[entry.shard_id]:
    return 'exceeds the end of its data file'
  return None


def _entries(data: bytes) -> dict[bytes, bytes]:
  """Return {key: value} of the whole table; a damaged one raises ValueError, IndexError or struct.error."""
  if len(data) < _FOOTER or struct.unpack('<Q', data[-8:])[0] != _MAGIC:
    raise ValueError('no footer')
  position = len(data) - _FOOTER
  for _ in range(2):  # skip the handle of the block of properties
    _, position = _varint(data, position)
  handle, position = _handle(data, position)
  entries: dict[bytes, bytes] = {}
  unread = len(data)
  for value in _block(data, *handle).values():
    begin, size = _handle(value, 0)[0]
    unread -= size + _TRAILER
    if unread < 0:
      raise ValueError('blocks are listed twice')
    entries |= _block(data, begin, size)
  if len(entries) > _MAX_ENTRIES:
    raise ValueError('too many entries')
  return entries


def _block(data: bytes, begin: int, size: int) -> dict[bytes, bytes]:
  if begin + size + _TRAILER > len(data) or size < 4 or data[begin + size] != 0:  # TensorFlow does not compress blocks
    raise ValueError('no block')
  block = data[begin:begin + size]
  end = size - 4 - 4 * struct.unpack('<I', block[-4:])[0]  # followed by the positions of keys stored in full
  if end < 0:
    raise ValueError('no block')
  position, key, entries = 0, b'', {}
  while position < end:
    shared, position = _varint(block, position)
    unshared, position = _varint(block, position)
    length, position = _varint(block, position)
    if shared > len(key) or position + unshared + length > end or shared + unshared > _LONGEST_KEY:
      raise ValueError('an entry exceeds its block')
    key = key[:shared] + block[position:position + unshared]
    entries[key] = block[position + unshared:position + unshared + length]
    position += unshared + length
  return entries


def _handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
  """Return begin and size of a block, and the position after them."""
  begin, position = _varint(data, position)
  size, position = _varint(data, position)
  return (begin, size), position


def _varint(data: bytes, position: int) -> tuple[int, int]:
  """Return an integer, and the position after it."""
  value = 0
  for shift in range(0, 70, 7):
    byte = data[position]
    position += 1
    value |= (byte & 127) << shift
    if byte < 128:
      return value, position
  raise ValueError('an integer without an end')
