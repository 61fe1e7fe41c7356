"""What is unusual about image files, noticed while they are read: counted, and logged at 1, 10, 100, ... images."""

from __future__ import annotations

import struct
import threading

import numpy as np
from absl import logging

ONE_VALUE = 'of one value only, as an image of a wrong bit depth would be'
TURNED = ('with an EXIF orientation, read as they are stored since their size fits both ways: check with inspect_data '
          'that boxes lie on objects')
_EXIF = b'Exif\0\0'
_ORIENTATION = 0x0112
_STEP = 16  # pixels between those that are compared first


class ImageNotes:
  """Counts images by what is unusual about them; thread-safe.

  Attributes:
    names: reason -> names of the images.
  """

  def __init__(self, source: str) -> None:
    self._source = source
    self._lock = threading.Lock()
    self.names: dict[str, set[str]] = {}

  def add(self, reason: str, name: str) -> None:
    """Count an image once."""
    with self._lock:
      names = self.names.setdefault(reason, set())
      if name in names:
        return
      names.add(name)
      count = len(names)
    if str(count).strip('0') == '1':
      logging.warning('%s: %d images %s (e.g. %s)', self._source, count, reason, name)

  def check(self, image: np.ndarray, data: bytes, name: str) -> None:
    """Count what is unusual about a file: its decoded image uint8 [h, w, 3] and its contents."""
    if has_one_value(image):
      self.add(ONE_VALUE, name)
    if is_turned(data, image.shape[:2]):
      self.add(TURNED, name)


def has_one_value(image: np.ndarray) -> bool:
  """Whether all pixels of an image are equal."""
  first = image[0, 0]
  return bool((image[::_STEP, ::_STEP] == first).all() and (image == first).all())


def is_turned(data: bytes, size: tuple[int, int]) -> bool:
  """Whether a JPEG or PNG has an EXIF orientation that its size, as annotated and stored, does not decide.

  Half a turn and mirror images keep the size, and so does any turn of a square image.
  """
  turn = orientation(data)
  return turn in (2, 3, 4) or turn in (5, 6, 7, 8) and size[0] == size[1]


def orientation(data: bytes) -> int:
  """Return the EXIF orientation of a JPEG or PNG file, 1 to 8; 1 if there is none."""
  try:
    if data.startswith(b'\xff\xd8'):
      return _of_tiff(_jpeg_exif(data))
    if data.startswith(b'\x89PNG'):
      return _of_tiff(_png_exif(data))
  except (struct.error, IndexError):
    pass
  return 1


def _jpeg_exif(data: bytes) -> bytes:
  offset = 2
  while data[offset:offset + 1] == b'\xff' and data[offset + 1] not in (0xd9, 0xda):
    length = int.from_bytes(data[offset + 2:offset + 4], 'big')
    if length < 2:
      break
    if data[offset + 1] == 0xe1 and data[offset + 4:offset + 10] == _EXIF:
      return data[offset + 10:offset + 2 + length]
    offset += 2 + length
  return b''


def _png_exif(data: bytes) -> bytes:
  offset = 8
  while offset + 8 <= len(data) and data[offset + 4:offset + 8] != b'IEND':
    length = int.from_bytes(data[offset:offset + 4], 'big')
    if data[offset + 4:offset + 8] == b'eXIf':
      return data[offset + 8:offset + 8 + length]
    offset += 12 + length
  return b''


def _of_tiff(block: bytes) -> int:
  """Return the orientation in the first directory of a TIFF header."""
  if block[:2] not in (b'II', b'MM'):
    return 1
  order = '<' if block[:2] == b'II' else '>'
  (start,) = struct.unpack_from(f'{order}I', block, 4)
  (count,) = struct.unpack_from(f'{order}H', block, start)
  for k in range(min(count, 200)):
    tag, kind = struct.unpack_from(f'{order}HH', block, start + 2 + 12 * k)
    if tag == _ORIENTATION and kind == 3:
      (value,) = struct.unpack_from(f'{order}H', block, start + 2 + 12 * k + 8)
      return value if 1 <= value <= 8 else 1
  return 1
