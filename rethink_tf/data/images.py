"""Photographs from bytes: every kind of JPEG and PNG to RGB, and damaged files found out.

A few bytes of header decide how much memory a picture takes: its size is read from there first.
"""

import functools
import io
import struct
import warnings

import cv2
import numpy as np
from PIL import Image, ImageOps

# More than Pillow's own limit is for max_pixels to decide.
warnings.simplefilter('ignore', Image.DecompressionBombWarning)
# A photograph that OpenCV cannot read becomes an ImageError with its name; OpenCV's own nameless line adds nothing.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_START_OF_JPEG = b'\xff\xd8'
_END_OF_JPEG = b'\xff\xd9'
_END_OF_PNG = b'IEND\xaeB`\x82'
_TAIL = 1024  # bytes in which the end marker must lie; some cameras pad the file
_FRAME_MARKERS = {*range(0xc0, 0xd0)} - {0xc4, 0xc8, 0xcc}  # the segments of a JPEG that tell its size
_MAX_SCANS = 100  # of a progressive JPEG, which has ten or so; each goes over all pixels, also when it holds nothing
# Pillow's other formats are no photographs, and some of them start programs (Ghostscript for EPS).
_FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP', 'TIFF', 'PPM', 'JPEG2000', 'AVIF', 'HEIF')

MAX_PIXELS = 100_000_000  # of a picture, unless told otherwise: 300 MB of RGB
MAX_BYTES = 1 << 30  # of a file


class ImageError(Exception):
  """A picture that cannot be read; the message is one line that names it."""


def decode(data: bytes, name: str, expected_size: tuple[int, int] | None = None,
           max_pixels: int = MAX_PIXELS) -> np.ndarray:
  """Decodes a photograph: grey, CMYK, 16-bit and transparent ones all become 8-bit RGB.

  The pixels are taken as stored. Only where the size then differs from `expected_size` and the EXIF orientation
  makes it agree is the photograph turned upright: annotation tools differ in whether they obey EXIF.

  Args:
    data: the file.
    name: what to call it in the message.
    expected_size: (height, width) by the annotation file.
    max_pixels: height x width that a header may claim.

  Returns:
    uint8 [height, width, 3] RGB.

  Raises:
    ImageError: empty, truncated or not a picture, too large, or of a size other than expected.
  """
  if not data:
    raise ImageError(f'{name}: the file is empty')
  size = header_size(data)
  if size is not None:
    check_pixels(size, name, max_pixels)
    if _many_scans(data):
      raise ImageError(f'{name}: has over {_MAX_SCANS} scans, which no camera and no program writes')
    if expected_size is not None and sorted(size) != sorted(expected_size):
      raise _another_size(name, size, expected_size)
  image = _decode(data, name, max_pixels, upright=False)
  if expected_size is None or image.shape[:2] == tuple(expected_size):
    return image
  stored = image.shape[:2]
  if stored == tuple(expected_size)[::-1]:  # only a quarter turn changes the size
    image = _decode(data, name, max_pixels, upright=True)
    if image.shape[:2] == tuple(expected_size):
      return image
  raise _another_size(name, stored, expected_size)


def header_size(data: bytes) -> tuple[int, int] | None:
  """(height, width) by the header of a JPEG or PNG; None for other formats, and where the header is damaged."""
  if data.startswith(_START_OF_JPEG):
    place = _frame_header(data)
    return struct.unpack('>HH', data[place + 5:place + 9]) if place is not None else None
  if data.startswith(b'\x89PNG\r\n\x1a\n') and data[12:16] == b'IHDR' and len(data) >= 24:
    return struct.unpack('>II', data[16:24])[::-1]
  return None


def measure(data: bytes) -> tuple[int, int]:
  """(height, width) by the header of any format; ValueError where there is none."""
  size = header_size(data)
  if size is not None:
    return size
  try:
    with Image.open(io.BytesIO(data), formats=_formats()) as picture:
      return picture.size[::-1]
  except Exception as error:  # as in _decode_strictly
    raise ValueError('not a picture in a known format') from error


@functools.cache
def _formats() -> tuple[str, ...]:
  """Those that the installed Pillow has."""
  Image.init()
  return tuple(name for name in _FORMATS if name in Image.OPEN)


def check_pixels(size: tuple[int, int], name: str, max_pixels: int) -> None:
  """ImageError where height x width are too many pixels."""
  if size[0] * size[1] > max_pixels:
    raise ImageError(f'{name}: the picture is {size[1]}x{size[0]} (width x height), more than max_pixels = '
                     f'{max_pixels:,}')


def read_bounded(file, name: str, max_bytes: int = MAX_BYTES) -> bytes:
  """The content of an open GFile; ImageError where it is too large for a picture."""
  size = file.size()
  if size > max_bytes:
    raise ImageError(f'{name}: {size:,} bytes are too many for a picture')
  return file.read(size)


def _another_size(name: str, stored: tuple[int, int], expected: tuple[int, int]) -> ImageError:
  return ImageError(f'{name}: the picture is {stored[1]}x{stored[0]} (width x height), but its annotation says '
                    f'{expected[1]}x{expected[0]}')


def _decode(data: bytes, name: str, max_pixels: int, upright: bool) -> np.ndarray:
  # What has no plain header is left to Pillow, which tells the size before it decodes.
  if _is_whole(data) and header_size(data) is not None:
    flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
      image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # more pixels than OpenCV allows
      image = None
    if image is not None:
      return image
  return _decode_strictly(data, name, max_pixels, upright)


def _is_whole(data: bytes) -> bool:
  """Whether a JPEG or PNG ends as it should, which costs microseconds; OpenCV may decode half a file silently.

  Inside the compressed data of a JPEG the end marker cannot occur.
  """
  if data.startswith(_START_OF_JPEG):
    return data.rfind(_END_OF_JPEG, -_TAIL) >= 0
  return data.startswith(b'\x89PNG') and data.rfind(_END_OF_PNG, -_TAIL) >= 0


def _decode_strictly(data: bytes, name: str, max_pixels: int, upright: bool) -> np.ndarray:
  """Slower, for any other format and for what looks damaged: Pillow refuses incomplete data."""
  if data.startswith(_START_OF_JPEG) and not _has_end(data):  # Pillow accepts a download that zeros fill up
    raise ImageError(f'{name}: the JPEG is truncated')
  try:
    with Image.open(io.BytesIO(data), formats=_formats()) as picture:
      check_pixels(picture.size[::-1], name, max_pixels)
      picture.load()
      if upright:
        picture = ImageOps.exif_transpose(picture)
      if picture.mode.startswith('I'):  # 16 bit: convert('RGB') would clip at 255 instead of scaling
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
      return np.array(picture.convert('RGB'))
  except ImageError:
    raise
  except Exception as error:  # Pillow's readers raise whatever a damaged field leads to, down to struct.error
    reason = ' '.join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
      reason = 'not a picture in a known format'
    raise ImageError(f'{name}: cannot be decoded: {reason}') from error


def _has_end(data: bytes) -> bool:
  """Whether an end follows on the compressed data of a JPEG; a thumbnail in its header has an end of its own."""
  place = 2
  while data[place:place + 1] == b'\xff' and data[place + 1:place + 2] != b'\xda':  # header segments
    place += 2 + int.from_bytes(data[place + 2:place + 4], 'big')
  return data.find(_END_OF_JPEG, place) >= 0


def _many_scans(data: bytes) -> bool:
  """Whether a JPEG has more scans than anything honest; 12 kB of empty ones can take a minute."""
  frame = _frame_header(data) if data.startswith(_START_OF_JPEG) else None
  if frame is None:
    return False
  scan = data.find(b'\xff\xda', frame)
  if data[frame + 1] in (0xc0, 0xc1) and data[scan + 4:scan + 5] == data[frame + 9:frame + 10]:
    return False  # sequential, and its first scan holds all components: decoders stop there. Most photographs are so
  return data.count(b'\xff\xda', frame) > _MAX_SCANS


def _frame_header(data: bytes) -> int | None:
  """Where the segment of a JPEG begins that tells its size; None where something else comes between the segments."""
  place = 2
  while data[place:place + 1] == b'\xff' and len(data) >= place + 9:
    marker = data[place + 1]
    if marker in _FRAME_MARKERS:
      return place
    length = int.from_bytes(data[place + 2:place + 4], 'big')
    if length < 2 or marker in (0xd9, 0xda, 0xff):
      return None
    place += 2 + length
  return None
