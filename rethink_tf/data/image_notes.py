"""Unusual properties of image files, noticed while they are read: counted, and logged at 1, 10, 100, ... images."""

from __future__ import annotations

import io
import threading

import numpy as np
from absl import logging
from PIL import Image

ONE_VALUE = 'of one value only, as an image of a wrong bit depth would be'
TURNED = ('with an EXIF orientation, read as they are stored since their size fits both ways: check with inspect_data '
          'that boxes lie on objects')
PAGES = 'with several frames or pages, of which the first alone is read: save each as an image of its own'
FEWER_BITS = ('brighter than others by 16 times or more, since their largest value needs fewer bits (8 or 12 of 16): '
              'save all with 8 bits, scaled alike')
_EXIF = (b'Exif\0\0', b'eXIf')  # of JPEG and PNG
_TIFF = (b'II', b'MM')
_WEBP_EXIF, _WEBP_FRAMES = 8, 2  # flags in the header of a WebP; the EXIF chunk itself may follow the pixels
_HEAD = 1 << 17  # first bytes of a file, in which it stands
_ORIENTATION = 0x0112  # tag
_STEP = 16  # pixels between those that are compared first


class ImageNotes:
  """Counts images by unusual properties; thread-safe.

  Attributes:
    names: reason -> names of the images.
  """

  def __init__(self, source: str, quiet: bool = False) -> None:
    """source: name of the data set, for messages. quiet: only count."""
    self._source, self._quiet = source, quiet
    self._by_bits: dict[int, set[str]] = {}
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
    if str(count).strip('0') == '1' and not self._quiet:
      logging.warning('%s: %d images %s (e.g. %s)', self._source, count, reason, name)

  def check(self, image: np.ndarray, data: bytes, name: str) -> None:
    """Count unusual properties of an image file: its decoded image uint8 [h, w, 3] and its contents."""
    if has_one_value(image):
      self.add(ONE_VALUE, name)
    if is_turned(data, image.shape[:2]):
      self.add(TURNED, name)
    self.check_pages(data, name)

  def add_depth(self, bits: int, name: str) -> None:
    """Record as how many bits an image of more than 8 is read; images that differ from the others are counted."""
    with self._lock:
      is_new = bits not in self._by_bits
      self._by_bits.setdefault(bits, set()).add(name)  # once, whatever the number of epochs
      most = max(self._by_bits)
      fewer = [name] if bits < most else []
      if is_new and bits == most:
        fewer = [one for other, names in self._by_bits.items() if other < most for one in names]
    for one in fewer:
      self.add(FEWER_BITS, one)

  def check_pages(self, data: bytes, name: str) -> None:
    """Count a file if it has several images."""
    if has_pages(data):
      self.add(PAGES, name)


def has_one_value(image: np.ndarray) -> bool:
  """Whether all pixels of an image are equal."""
  first = image[0, 0]
  return bool((image[::_STEP, ::_STEP] == first).all() and (image == first).all())


def is_turned(data: bytes, size: tuple[int, int]) -> bool:
  """Whether an image has an EXIF orientation that its size, as annotated and as stored, does not settle.

  Half a turn and mirroring keep the size, and so does any turn of a square image.
  """
  turn = orientation(data)
  return turn in (2, 3, 4) or turn in (5, 6, 7, 8) and size[0] == size[1]


def has_pages(data: bytes) -> bool:
  """Whether a GIF, PNG, TIFF or WebP file has several frames or pages."""
  if data.startswith(b'\x89PNG'):
    return b'acTL' in data[:max(data.find(b'IDAT', 0, _HEAD), 0)]
  if data.startswith(b'RIFF'):
    return _webp_flag(data, _WEBP_FRAMES)
  if not data.startswith((b'GIF8', *_TIFF)):
    return False
  try:
    with Image.open(io.BytesIO(data), formats=('GIF', 'TIFF')) as image:
      return getattr(image, 'n_frames', 1) > 1
  except Exception:  # of any kind in damaged files; the decoder names those that it cannot read
    return False


def orientation(data: bytes) -> int:
  """Return the EXIF orientation of a JPEG, PNG, TIFF or WebP file, 1 to 8; 1 if there is none."""
  if not _may_have_exif(data):
    return 1
  try:
    with Image.open(io.BytesIO(data), formats=('JPEG', 'PNG', 'TIFF', 'WEBP')) as image:
      return exif_orientation(image)
  except Exception:  # of any kind in damaged files; the decoder names those that it cannot read
    return 1


def _may_have_exif(data: bytes) -> bool:
  """Whether a file has to be opened to know its orientation, at a cost of microseconds."""
  if data.startswith(_TIFF):
    return True
  if data.startswith(b'RIFF'):
    return _webp_flag(data, _WEBP_EXIF)
  end = jpeg_header_end(data) if data.startswith(b'\xff\xd8') else _HEAD
  head = data[:end if data[end:end + 2] == b'\xff\xda' else _HEAD]
  return any(mark in head for mark in _EXIF)


def _webp_flag(data: bytes, flag: int) -> bool:
  return data[12:16] == b'VP8X' and len(data) > 20 and bool(data[20] & flag)


def jpeg_header_end(data: bytes) -> int:
  """Return the offset after the header segments of a JPEG: of its first scan, or of the first invalid segment."""
  offset = 2
  while data[offset:offset + 1] == b'\xff' and data[offset + 1:offset + 2] != b'\xda':
    offset += 2 + int.from_bytes(data[offset + 2:offset + 4], 'big')
  return offset


def exif_orientation(image: Image.Image) -> int:
  """Return the EXIF orientation of an open image, 1 to 8; 1 if there is none."""
  turn = image.getexif().get(_ORIENTATION, 1)
  return turn if turn in range(1, 9) else 1
