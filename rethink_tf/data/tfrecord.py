"""TFRecord files read at any place: framing, checksums, offsets.

A record is its length (uint64), the masked CRC-32C of the length, the payload and the masked CRC-32C of the payload,
all little-endian. TensorFlow's own readers go from the front, or fetch 16 MB around every record.
"""

import functools
import struct
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

HEADER, FOOTER = 12, 4  # bytes around the payload
_LONG = 1 << 24  # bytes; a length beyond is compared with the file's before memory is taken for it
_LONGEST = 1 << 31  # bytes; protocol buffers are no longer
_LANE = 64  # bytes that one lane of the vectorised checksum takes
_POLYNOMIAL = 0x82F63B78


class DamagedRecord(Exception):
  """A record whose bytes do not match their checksum, or that is cut off.

  Attributes:
    next_offset: where the next record begins, None where that is lost too.
  """

  def __init__(self, message: str, next_offset: int | None = None) -> None:
    super().__init__(message)
    self.next_offset = next_offset


def read_record(file: tf.io.gfile.GFile, offset: int) -> tuple[bytes, int]:
  """The payload of the record at `offset`, and where the next one begins.

  Raises:
    DamagedRecord: cut off, or not what was written.
    EOFError: `offset` is the end of the file.
  """
  file.seek(offset)
  header = file.read(HEADER)
  if not header:
    raise EOFError
  if len(header) < HEADER or masked_crc(header[:8]) != struct.unpack('<I', header[8:])[0]:
    raise DamagedRecord(f'the record at byte {offset} has a damaged header')
  length = struct.unpack('<Q', header[:8])[0]
  if length > _LONG and length > min(file.size() - offset - HEADER - FOOTER, _LONGEST):
    raise DamagedRecord(f'the record at byte {offset} is cut off')
  body = file.read(length + FOOTER)
  if len(body) < length + FOOTER:
    raise DamagedRecord(f'the record at byte {offset} is cut off')
  next_offset = offset + HEADER + length + FOOTER
  if masked_crc(body[:length]) != struct.unpack('<I', body[length:])[0]:
    raise DamagedRecord(f'the record at byte {offset} is damaged (its checksum does not match)', next_offset)
  return body[:length], next_offset


def scan(path: str) -> Iterator[tuple[int, bytes | DamagedRecord]]:
  """Offset and payload of every record of a file, damage in place of a payload; ends where the framing is lost."""
  with tf.io.gfile.GFile(path, 'rb') as file:
    offset: int | None = 0
    while offset is not None:
      start = offset
      try:
        payload, offset = read_record(file, start)
      except EOFError:
        return
      except DamagedRecord as damage:
        payload, offset = damage, damage.next_offset
      yield start, payload


def masked_crc(data: bytes) -> int:
  """CRC-32C (Castagnoli), rotated and shifted as TFRecord stores it."""
  crc = _crc32c(data)
  return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _crc32c(data: bytes) -> int:
  """The checksum by lanes: NumPy has none, and a loop over 150,000 bytes in Python takes 30 ms.

  What does not fill lanes of 64 bytes goes first, byte by byte. The lanes are advanced together, a 16-bit word at a
  time, then joined in pairs: crc(a + b) is crc(a), moved past as many zero bytes as b has, xor crc(b).
  """
  crc = 0xFFFFFFFF
  front = len(data) % _LANE
  table = _word_table()
  for byte in data[:front]:
    crc = int(table[(crc ^ byte) << 8 & 0xFFFF]) ^ (crc >> 8)
  if len(data) > front:
    words = np.frombuffer(data, '<u4', offset=front).copy()
    words[0] ^= crc
    lanes = words.view('<u2').reshape(-1, _LANE // 2).T.astype(np.int64, order='C')  # [32, L]
    crcs = np.zeros(lanes.shape[1], np.int64)
    for word in lanes:
      crcs = _shift(crcs ^ word, (table,))
    level = 0
    while len(crcs) > 1:
      if len(crcs) % 2:
        crcs = np.concatenate([np.zeros(1, np.int64), crcs])  # zeros in front change nothing
      crcs = _shift(crcs[0::2], _lane_tables(level)) ^ crcs[1::2]
      level += 1
    crc = int(crcs[0])
  return crc ^ 0xFFFFFFFF


def _shift(crcs: np.ndarray, tables: tuple[np.ndarray, ...]) -> np.ndarray:
  """Checksums (as int64, NumPy's own type of index) moved on: one table moves the lower half out, two move both."""
  moved = tables[0][crcs & 0xFFFF]
  return moved ^ (tables[1][crcs >> 16] if len(tables) == 2 else crcs >> 16)


@functools.cache
def _word_table() -> np.ndarray:
  """int64 [65536]: what 16 bits become when they are shifted out."""
  crc = np.arange(1 << 16)
  for _ in range(16):
    crc = (crc >> 1) ^ (crc & 1) * _POLYNOMIAL
  return crc


@functools.cache
def _lane_tables(level: int) -> tuple[np.ndarray, np.ndarray]:
  """int64 [65536] for the lower and for the upper half of a checksum: moved past 64 * 2**level zero bytes."""
  low = np.arange(1 << 16)
  halves = [low, low << 16]
  # A lane is 32 words; twice as many bytes are the tables of half as many, applied to themselves.
  steps, tables = (_LANE // 2, (_word_table(),)) if level == 0 else (2, _lane_tables(level - 1))
  for _ in range(steps):
    halves = [_shift(half, tables) for half in halves]
  return halves[0], halves[1]
