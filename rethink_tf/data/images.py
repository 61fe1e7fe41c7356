"""Photographs from bytes: every kind of JPEG and PNG to RGB, and damaged files found out."""

import io

import cv2
import numpy as np
from PIL import Image, ImageOps

# A photograph that OpenCV cannot read becomes an ImageError with its name; OpenCV's own nameless line adds nothing.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_START_OF_JPEG = b'\xff\xd8'
_END_OF_JPEG = b'\xff\xd9'
_END_OF_PNG = b'IEND\xaeB`\x82'
_TAIL = 1024  # bytes in which the end marker must lie; some cameras pad the file


class ImageError(Exception):
  """A picture that cannot be read; the message is one line that names it."""


def decode(data: bytes, name: str, expected_size: tuple[int, int] | None = None) -> np.ndarray:
  """Decodes a photograph: grey, CMYK, 16-bit and transparent ones all become 8-bit RGB.

  The pixels are taken as stored. Only where the size then differs from `expected_size` and the EXIF orientation
  makes it agree is the photograph turned upright: annotation tools differ in whether they obey EXIF.

  Args:
    data: the file.
    name: what to call it in the message.
    expected_size: (height, width) by the annotation file.

  Returns:
    uint8 [height, width, 3] RGB.

  Raises:
    ImageError: empty, truncated or not a picture, or of a size other than expected.
  """
  image = _decode(data, name, upright=False)
  if expected_size is None or image.shape[:2] == tuple(expected_size):
    return image
  stored = image.shape[:2]
  if stored == tuple(expected_size)[::-1]:  # only a quarter turn changes the size
    image = _decode(data, name, upright=True)
    if image.shape[:2] == tuple(expected_size):
      return image
  raise ImageError(f'{name}: the picture is {stored[1]}x{stored[0]} (width x height), but its annotation says '
                   f'{expected_size[1]}x{expected_size[0]}')


def _decode(data: bytes, name: str, upright: bool) -> np.ndarray:
  if not data:
    raise ImageError(f'{name}: the file is empty')
  if _is_whole(data):
    flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
      image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # more pixels than OpenCV allows
      image = None
    if image is not None:
      return image
  return _decode_strictly(data, name, upright)


def _is_whole(data: bytes) -> bool:
  """Whether a JPEG or PNG ends as it should, which costs microseconds; OpenCV may decode half a file silently.

  Inside the compressed data of a JPEG the end marker cannot occur.
  """
  if data.startswith(_START_OF_JPEG):
    return data.rfind(_END_OF_JPEG, -_TAIL) >= 0
  return data.startswith(b'\x89PNG') and data.rfind(_END_OF_PNG, -_TAIL) >= 0


def _decode_strictly(data: bytes, name: str, upright: bool) -> np.ndarray:
  """Slower, for any other format and for what looks damaged: Pillow refuses incomplete data."""
  if data.startswith(_START_OF_JPEG) and not _has_end(data):  # Pillow accepts a download that zeros fill up
    raise ImageError(f'{name}: the JPEG is truncated')
  try:
    with Image.open(io.BytesIO(data)) as picture:
      picture.load()
      if upright:
        picture = ImageOps.exif_transpose(picture)
      if picture.mode.startswith('I'):  # 16 bit: convert('RGB') would clip at 255 instead of scaling
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
      return np.array(picture.convert('RGB'))
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
