"""The index of a TensorFlow checkpoint, looked through before TensorFlow reads it.

TensorFlow takes an index at its word: an entry that is none ends the whole process, and a shape is memory before
anything is read. A checkpoint may come from anybody, so what its index says is compared with the files first.

The index is a sorted table (LevelDB's): blocks of entries that share the beginnings of their keys, an index of the
blocks, and a footer that tells where that is. The value of a key is a BundleEntryProto, that of '' a BundleHeaderProto.
"""

from __future__ import annotations

import math
import struct

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import tensor_bundle_pb2

_MAX_BYTES = 256 << 20  # of an index; a detector's has 100 kB
_MAGIC = 0xdb4775248b80fb57
_FOOTER, _TRAILER = 48, 5  # bytes at the end of the file, and behind each block: kind of compression, checksum


def problem(prefix: str) -> str | None:
  """What is wrong with the index of the checkpoint at `prefix`, or with the lengths of its data files; None if nothing.

  Checksums are left to TensorFlow.

  Raises:
    tf.errors.OpError: the index cannot be read.
  """
  with tf.io.gfile.GFile(f'{prefix}.index', 'rb') as file:
    if file.size() > _MAX_BYTES:
      return f'its index has {file.size():,} bytes'
    data = file.read()
  try:
    entries = _entries(data)
    header = tensor_bundle_pb2.BundleHeaderProto.FromString(entries.pop(b'', b''))
    if not 1 <= header.num_shards < 100_000 or header.endianness != tensor_bundle_pb2.BundleHeaderProto.LITTLE:
      return 'its index has no header that fits this machine'
    lengths: dict[int, int] = {}
    for key, value in entries.items():
      wrong = _problem_of(tensor_bundle_pb2.BundleEntryProto.FromString(value), prefix, header.num_shards, lengths)
      if wrong:
        return f'{key[:80].decode()!r} {wrong}'
  except (DecodeError, UnicodeDecodeError, IndexError, ValueError, struct.error):
    return 'its index is damaged'
  return None


def _problem_of(entry, prefix, num_shards, lengths):
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
    lengths[entry.shard_id] = tf.io.gfile.stat(path).length if tf.io.gfile.exists(path) else -1
  if entry.offset + entry.size > lengths[entry.shard_id]:
    return 'lies behind the end of its data file'
  return None


def _entries(data: bytes) -> dict[bytes, bytes]:
  """Key -> value of a whole table; ValueError and its like where it is none."""
  if len(data) < _FOOTER or struct.unpack('<Q', data[-8:])[0] != _MAGIC:
    raise ValueError('no footer')
  place = len(data) - _FOOTER
  for _ in range(2):  # the handle of the block of properties comes first
    _, place = _varint(data, place)
  handle, place = _handle(data, place)
  found: dict[bytes, bytes] = {}
  for value in _block(data, *handle).values():
    found |= _block(data, *_handle(value, 0)[0])
  return found


def _block(data: bytes, begin: int, size: int) -> dict[bytes, bytes]:
  if begin + size + _TRAILER > len(data) or size < 4 or data[begin + size] != 0:  # 1: compressed, which none is
    raise ValueError('no block')
  block = data[begin:begin + size]
  end = size - 4 - 4 * struct.unpack('<I', block[-4:])[0]  # the places where keys are written in full stand behind
  if end < 0:
    raise ValueError('no block')
  place, key, entries = 0, b'', {}
  while place < end:
    shared, place = _varint(block, place)
    unshared, place = _varint(block, place)
    length, place = _varint(block, place)
    if shared > len(key) or place + unshared + length > end:
      raise ValueError('an entry behind the end of its block')
    key = key[:shared] + block[place:place + unshared]
    entries[key] = block[place + unshared:place + unshared + length]
    place += unshared + length
  return entries


def _handle(data: bytes, place: int) -> tuple[tuple[int, int], int]:
  begin, place = _varint(data, place)
  size, place = _varint(data, place)
  return (begin, size), place


def _varint(data: bytes, place: int) -> tuple[int, int]:
  """An integer, and where the next one begins."""
  value = 0
  for shift in range(0, 70, 7):
    byte = data[place]
    place += 1
    value |= (byte & 127) << shift
    if byte < 128:
      return value, place
  raise ValueError('an integer without an end')
