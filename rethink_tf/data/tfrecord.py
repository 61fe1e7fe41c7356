"""Random access to TFRecord files: framing, checksums, offsets.

A record consists of its length (uint64), the masked CRC-32C of the length, the payload and the masked CRC-32C of the
payload, all little-endian. TensorFlow's own readers read sequentially, or fetch 64 MB around every record of a bucket.
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

import google_crc32c
import tensorflow as tf

from rethink_tf.storage.files import require_regular

HEADER, FOOTER = 12, 4  # bytes around the payload
_CHECKED_LENGTH = 1 << 24  # bytes; a longer record is checked against the size of the file before memory is allocated
_MAX_LENGTH = 1 << 31  # bytes; the limit of protocol buffers


class DamagedRecord(Exception):
  """A record that does not match its checksum, or that is truncated.

  Attributes:
    next_offset: offset of the next record, None if it is unknown.
  """

  def __init__(self, message: str, next_offset: int | None = None) -> None:
    super().__init__(message)
    self.next_offset = next_offset


def open_records(path: str) -> BinaryIO | tf.io.gfile.GFile:
  """Open a file of records, local or gs://; raises OSError or tf.errors.OpError unless it is a regular file.

  A local one with Python's `open`: to seek in a GFile takes a quarter of a millisecond.
  """
  if '://' in path:
    return tf.io.gfile.GFile(path, 'rb')
  require_regular(path)
  return open(path, 'rb')


def read_at(path: str, offset: int) -> bytes:
  """Return the payload of the record at an offset of a file; raises as `open_records` and `read_record`."""
  with open_records(path) as file:
    return read_record(file, offset)[0]


def read_record(file: BinaryIO | tf.io.gfile.GFile, offset: int) -> tuple[bytes, int]:
  """Return the payload of the record at `offset`, and the offset of the next one.

  Raises:
    DamagedRecord: the record is truncated, or its checksum does not match.
    EOFError: `offset` is the end of the file.
  """
  file.seek(offset)
  header = file.read(HEADER)
  if not header:
    raise EOFError
  if len(header) < HEADER or masked_crc(header[:8]) != struct.unpack('<I', header[8:])[0]:
    raise DamagedRecord(f'the record at byte {offset} has a damaged header')
  length = struct.unpack('<Q', header[:8])[0]
  if length > _CHECKED_LENGTH:
    file.seek(0, os.SEEK_END)
    if length > min(file.tell() - offset - HEADER - FOOTER, _MAX_LENGTH):
      raise DamagedRecord(f'the record at byte {offset} is truncated')
    file.seek(offset + HEADER)
  body = file.read(length + FOOTER)
  if len(body) < length + FOOTER:
    raise DamagedRecord(f'the record at byte {offset} is truncated')
  next_offset = offset + HEADER + length + FOOTER
  if masked_crc(body[:length]) != struct.unpack('<I', body[length:])[0]:
    raise DamagedRecord(f'the record at byte {offset} is damaged (its checksum does not match)', next_offset)
  return body[:length], next_offset


def scan(path: str) -> Iterator[tuple[int, bytes | DamagedRecord]]:
  """Yield offset and payload of every record, or the DamagedRecord; stops where the next offset is unknown."""
  with open_records(path) as file:
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
  """Return the CRC-32C (Castagnoli), masked as in TFRecord files."""
  crc = google_crc32c.value(data)
  return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
