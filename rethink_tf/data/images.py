"""Decoding of image files: every kind of JPEG and PNG to RGB, with detection of damaged files.

The header determines how much memory an image takes, so the size is read from there and checked before decoding.
"""

from __future__ import annotations

import functools
import io
import os
import struct
import warnings

import cv2
import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from rethink_tf.data.bit_depth import bits_of, to_8_bits
from rethink_tf.data.image_notes import ImageNotes, exif_orientation, jpeg_header_end
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.storage.files import open_regular, require_regular

# max_pixels replaces Pillow's own limit.
warnings.simplefilter('ignore', Image.DecompressionBombWarning)
if int(cv2.__version__.split('.')[0]) < 5:  # setup.py asks for it, but opencv-python writes into the same folder
  raise UserError(f'{os.path.dirname(cv2.__file__)} is OpenCV {cv2.__version__}, but 5.0 or later is needed: pip '
                  'uninstall opencv-python, then pip install --force-reinstall --no-deps opencv-python-headless')
# An image that OpenCV cannot read raises an ImageError with its name; OpenCV's own message names no file.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_START_OF_JPEG = b'\xff\xd8'
_END_OF_JPEG = b'\xff\xd9'
_END_OF_PNG = b'IEND\xaeB`\x82'
LFS = b'version https://git-lfs'  # what a repository has in place of a file
_TIFF = (b'II*\0', b'MM\0*')
_UPPER_BITS_ONLY = ('PNG', 'TIFF', 'PPM', 'JPEG2000')  # formats of whose colours of 16 bits Pillow returns the upper 8
_12_BITS = 16  # no 12 bits exceed it among the upper 8 of 16, rounded
_IMAGE_WIDTH, _IMAGE_LENGTH, _BITS_PER_SAMPLE = 256, 257, 258  # tags of a TIFF
_TAIL = 1024  # last bytes of a file that must contain the end marker; some cameras pad the file
_FRAME_MARKERS = {*range(0xc0, 0xd0)} - {0xc4, 0xc8, 0xcc}  # the JPEG segments that contain the size
_MAX_SCANS = 100  # of a progressive JPEG, which has about ten; each one is decoded over all pixels, even if it is empty
# Pillow's other formats are not raster images, and some of them start programs (Ghostscript for EPS).
_FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP', 'TIFF', 'PPM', 'JPEG2000', 'AVIF', 'HEIF')

# EXIF orientation -> the transformation of the stored pixels that makes the image upright.
TURNS = {
  2: lambda image: image[:, ::-1],
  3: lambda image: image[::-1, ::-1],
  4: lambda image: image[::-1],
  5: lambda image: image.transpose(1, 0, 2),
  6: lambda image: np.rot90(image, -1),
  7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
  8: np.rot90,
}
QUARTER_TURNS = (5, 6, 7, 8)  # those that exchange height and width
_INVERSE = {6: 8, 8: 6}  # the others undo themselves

MAX_PIXELS = 100_000_000  # default limit of an image: 300 MB of RGB
MAX_BYTES = 1 << 30  # of a file


class ImageError(Exception):
  """An image that cannot be read; the message is one line that names it."""


def decode(data: bytes, name: str, expected_size: tuple[int, int] | None = None,
           max_pixels: int = MAX_PIXELS, notes: ImageNotes | None = None) -> np.ndarray:
  """Decode an image file to 8-bit RGB, from grey, CMYK, 16-bit, float or transparent images too.

  The EXIF orientation is ignored, unless the stored size differs from `expected_size` and the rotated one matches:
  annotation tools differ in whether they apply it. Where the size does not decide, this is counted in `notes`.

  Args:
    data: contents of the file.
    name: of the file, for messages.
    expected_size: (height, width) in the annotation file.
    max_pixels: limit of height x width in the header.
    notes: count what is unusual about the image.

  Returns:
    uint8 [height, width, 3] RGB.

  Raises:
    ImageError: empty, truncated, not an image, too large, or of another size than expected.
  """
  if not data:
    raise ImageError(f'{name}: the file is empty')
  size = header_size(data)
  if size is not None:
    check_pixels(size, name, max_pixels)
    if _many_scans(data):
      raise ImageError(f'{name}: has over {_MAX_SCANS} scans, more than any encoder writes')
    if expected_size is not None and sorted(size) != sorted(expected_size):
      raise _size_error(name, size, expected_size)
  image = _decode(data, name, max_pixels, upright=False, notes=notes)
  if expected_size is None or image.shape[:2] == tuple(expected_size):
    if notes is not None:
      notes.check(image, data, name)
    return image
  stored = image.shape[:2]
  if stored == tuple(expected_size)[::-1]:  # only a quarter turn changes the size
    image = _decode(data, name, max_pixels, upright=True)
    if image.shape[:2] == tuple(expected_size):
      return image
  raise _size_error(name, stored, expected_size)


def header_size(data: bytes) -> tuple[int, int] | None:
  """Return (height, width) from the header of a JPEG or PNG; None for other formats and damaged headers."""
  if data.startswith(_START_OF_JPEG):
    offset = _frame_header(data)
    return struct.unpack('>HH', data[offset + 5:offset + 9]) if offset is not None else None
  if data.startswith(b'\x89PNG\r\n\x1a\n') and data[12:16] == b'IHDR' and len(data) >= 24:
    return struct.unpack('>II', data[16:24])[::-1]
  return None


def measure(data: bytes) -> tuple[int, int]:
  """Return (height, width) from the header of any format; raises ValueError if there is none."""
  size = header_size(data)
  if size is not None:
    return size
  try:
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
      return stored_size(image)
  except Exception as error:  # as in _decode_strictly
    raise ValueError(_not_an_image(data)) from error


def _not_an_image(data: bytes) -> str:
  """Return what data without the header of an image is."""
  return 'a pointer of Git LFS: fetch the files with `git lfs pull`' if data.startswith(LFS) else (
    'not an image in a known format')


def turn_and_size(path: str) -> tuple[int, tuple[int, int]]:
  """Return the EXIF orientation and the stored (height, width) of a local file, (1, (0, 0)) without a header."""
  try:
    require_regular(path)
    with Image.open(path, formats=_formats()) as image:
      return exif_orientation(image), stored_size(image)
  except Exception:  # of any kind in damaged files; the decoder names those that it cannot read
    return 1, (0, 0)


def stored_size(image: Image.Image) -> tuple[int, int]:
  """Return (height, width) of an opened image as stored; Pillow's size of a TIFF has the EXIF orientation applied."""
  if image.format == 'TIFF':
    return image.tag_v2[_IMAGE_LENGTH], image.tag_v2[_IMAGE_WIDTH]
  return image.height, image.width


@functools.cache
def _formats() -> tuple[str, ...]:
  """Return the accepted formats that the installed Pillow supports."""
  Image.init()
  return tuple(name for name in _FORMATS if name in Image.OPEN)


def check_pixels(size: tuple[int, int], name: str, max_pixels: int) -> None:
  """Raise ImageError if height x width exceeds max_pixels."""
  if size[0] * size[1] > max_pixels:
    raise ImageError(f'{name}: the image is {size[1]}x{size[0]} (width x height), more than max_pixels = '
                     f'{max_pixels:,}')


def read_file(path: str, name: str | None = None, max_bytes: int = MAX_BYTES) -> bytes:
  """Return the contents of a regular file, local or gs://. name: in messages; None: its path.

  Raises:
    ImageError: it cannot be read, or is larger than max_bytes.
  """
  name = name or path
  try:
    with open_regular(path) as file:
      size = file.size()
      if size > max_bytes:
        raise ImageError(f'{name}: {size:,} bytes are too many for an image')
      return file.read(size)
  except (tf.errors.OpError, UnicodeDecodeError) as error:  # the latter: of a name that is not UTF-8
    raise ImageError(f'{name}: cannot be read: {in_one_line(error)}') from error


def _size_error(name: str, stored: tuple[int, int], expected: tuple[int, int]) -> ImageError:
  return ImageError(f'{name}: the image is {stored[1]}x{stored[0]} (width x height), but its annotation says '
                    f'{expected[1]}x{expected[0]}')


def _decode(data: bytes, name: str, max_pixels: int, upright: bool, notes: ImageNotes | None = None) -> np.ndarray:
  # Files without a plain header are left to Pillow, which reports the size before it decodes.
  if _is_whole(data) and header_size(data) is not None:
    flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    flags |= cv2.IMREAD_ANYDEPTH if data.startswith(b'\x89PNG') and data[24] == 16 else 0
    try:
      image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # more pixels than OpenCV allows
      image = None
    if image is not None:
      return image if image.dtype == np.uint8 else _scaled(image, name, notes)
  return _decode_strictly(data, name, max_pixels, upright, notes)


def _scaled(image: np.ndarray, name: str, notes: ImageNotes | None) -> np.ndarray:
  try:
    scaled = to_8_bits(image)
  except ValueError as error:
    raise ImageError(f'{name}: {error}') from error
  if notes is not None and scaled.any() and image.dtype != np.uint8:
    notes.add_depth(bits_of(image), name)
  return scaled


def _is_whole(data: bytes) -> bool:
  """Whether a JPEG or PNG ends with its end marker, at a cost of microseconds; OpenCV may decode half a file silently.

  The end marker cannot occur inside the compressed data of a JPEG.
  """
  if data.startswith(_START_OF_JPEG):
    return data.rfind(_END_OF_JPEG, -_TAIL) >= 0
  return data.startswith(b'\x89PNG') and data.rfind(_END_OF_PNG, -_TAIL) >= 0 and _chunks_fit(data)


def _chunks_fit(data: bytes) -> bool:
  """Whether the chunk lengths of a PNG stay within the file; OpenCV allocates a chunk before it reads it."""
  offset = 8
  while offset + 8 <= len(data) and data[offset + 4:offset + 8] != b'IEND':
    offset += 12 + int.from_bytes(data[offset:offset + 4], 'big')
  return offset + 8 <= len(data)


def _decode_strictly(data: bytes, name: str, max_pixels: int, upright: bool, notes: ImageNotes | None) -> np.ndarray:
  """Decode with Pillow, which rejects incomplete data: slower, for other formats and files that look damaged."""
  if data.startswith(_START_OF_JPEG) and not _has_end(data):  # Pillow accepts a truncated file padded with zeros
    raise ImageError(f'{name}: the JPEG is truncated')
  try:
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
      check_pixels(image.size[::-1], name, max_pixels)
      kind = image.format
      applied = exif_orientation(image) if kind == 'TIFF' and not upright else 1  # by load(), of a TIFF alone
      image.load()
      reduced = image.mode[0] not in 'IF' and kind in _UPPER_BITS_ONLY
      deep = reduced and kind == 'TIFF' and max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,))) > 8
      if upright:
        image = ImageOps.exif_transpose(image)
      if image.mode[0] in 'IF':  # more than 8 bits: convert('RGB') would clip at 255 instead of scaling
        image = Image.fromarray(_scaled(np.asarray(image), name, notes))
      pixels = np.array(image.convert('RGB'))
      if deep and notes is not None and pixels.max() > _12_BITS:
        notes.add_depth(16, name)
      if reduced:
        pixels = _with_lower_bits(pixels, data, name, notes)
      return np.ascontiguousarray(TURNS[_INVERSE.get(applied, applied)](pixels)) if applied in TURNS else pixels
  except ImageError:
    raise
  except Exception as error:  # damaged files raise any type of exception in Pillow, down to struct.error
    unknown = isinstance(error, Image.UnidentifiedImageError)
    reason = in_one_line(error) if not unknown else _not_an_image(data) if data[:4] not in _TIFF else (
      'a TIFF of a kind that is not supported: save it as PNG')
    raise ImageError(f'{name}: cannot be decoded: {reason}') from error


def _with_lower_bits(pixels: np.ndarray, data: bytes, name: str, notes: ImageNotes | None) -> np.ndarray:
  """Scale colours of 16 bits by what is in them, if the upper 8 bits do not already decide that it is all 16."""
  if pixels.max(initial=0) > _12_BITS or data.startswith(b'\x89PNG') and not _chunks_fit(data):
    return pixels
  try:  # not IMREAD_COLOR_RGB, with which OpenCV 5.0.0 mixes up the bytes of a TIFF
    deep = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
  except cv2.error:
    return pixels
  if deep is None or deep.dtype != np.uint16 or deep.shape != pixels.shape:
    return pixels
  deep = cv2.cvtColor(deep, cv2.COLOR_BGR2RGB)
  same = cv2.absdiff((deep >> 8).astype(np.uint8), pixels).max() <= 1  # otherwise it takes the colours for others
  return _scaled(deep, name, notes) if same else pixels


def _has_end(data: bytes) -> bool:
  """Whether an end marker follows the header segments of a JPEG; a thumbnail in the header has its own."""
  return data.find(_END_OF_JPEG, jpeg_header_end(data)) >= 0


def _many_scans(data: bytes) -> bool:
  """Whether a JPEG has more scans than any encoder writes; 12 kB of empty scans can take a minute to decode."""
  frame = _frame_header(data) if data.startswith(_START_OF_JPEG) else None
  if frame is None:
    return False
  scan = data.find(b'\xff\xda', frame)
  if data[frame + 1] in (0xc0, 0xc1) and data[scan + 4:scan + 5] == data[frame + 9:frame + 10]:
    return False  # sequential with all components in the first scan, like most files: decoders stop there
  return data.count(b'\xff\xda', frame) > _MAX_SCANS


def _frame_header(data: bytes) -> int | None:
  """Return the offset of the JPEG segment that contains the size; None if the segments before it are damaged."""
  offset = 2
  while data[offset:offset + 1] == b'\xff' and len(data) >= offset + 9:
    marker = data[offset + 1]
    if marker in _FRAME_MARKERS:
      return offset
    length = int.from_bytes(data[offset + 2:offset + 4], 'big')
    if length < 2 or marker in (0xd9, 0xda, 0xff):
      return None
    offset += 2 + length
  return None
