"""Size and orientation of image files, and what they say about the coordinates of an annotation.

An image whose EXIF orientation is a quarter turn is read as its annotated size says (data.images). Where the size does
not decide (half a turn, mirror images, square images), it is read as stored: if the annotation tool has shown it
upright, an upright copy is written in its place.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from rethink_tf.data.image_notes import orientation
from rethink_tf.data.images import MAX_PIXELS, ImageError, check_pixels, header_size, measure, read_file
from rethink_tf.data.prepare.layout import LabelledImage
from rethink_tf.data.prepare.source_folder import SourceFolder
from rethink_tf.errors import in_one_line

_HEAD = 1 << 18  # first bytes of a file, which hold the size of nearly all


class ImageFacts(NamedTuple):
  """What is known about an image file."""

  size: tuple[int, int]  # height, width that the coordinates of its annotation refer to
  turned: bool  # to be written upright


class OtherSize(ImageError):
  """The image is of another size than its annotation says."""


def examine(folder: SourceFolder, image: LabelledImage, upright: bool | None) -> ImageFacts:
  """Return size and orientation of an image by its header.

  upright: whether the annotation tool shows images with their orientation applied; None: not known.

  Raises:
    ImageError: the file cannot be read, is too large, or is of another size than annotated (OtherSize).
  """
  data = image.data if image.data is not None else _read_head(folder.path(image.file))
  try:
    stored = header_size(data)
    if stored is None:
      data = image.data if image.data is not None else read_file(folder.path(image.file), image.file)
      stored = measure(data)
  except ValueError as error:
    raise ImageError(f'{image.file}: {in_one_line(error)}') from error
  if min(stored) < 1:
    raise ImageError(f'{image.file}: the image has no pixels')
  check_pixels(stored, image.file, MAX_PIXELS)
  turn = orientation(data)
  shown = stored[::-1] if turn >= 5 else stored
  if image.size is None:
    return ImageFacts(shown if upright else stored, bool(upright) and turn != 1 and shown == stored)
  if tuple(image.size) not in (stored, shown):
    raise OtherSize(f'{image.file}: annotated as {image.size[1]}x{image.size[0]} (width x height), the file is '
                    f'{stored[1]}x{stored[0]}')
  return ImageFacts(tuple(image.size), bool(upright) and turn != 1 and shown == stored)


def write_upright(path: str, target: str) -> None:
  """Write an image with its orientation applied, as PNG without loss; raises ImageError if it cannot be read."""
  try:
    with Image.open(path, formats=('JPEG', 'PNG', 'TIFF', 'WEBP')) as image:
      pixels = np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
  except Exception as error:  # of any kind in damaged files
    raise ImageError(f'{path}: cannot be decoded: {in_one_line(error)}') from error
  data = cv2.imencode('.png', pixels[..., ::-1])[1].tobytes()
  with open(target, 'wb') as file:
    file.write(data)


def _read_head(path: str) -> bytes:
  try:
    with open(path, 'rb') as file:
      return file.read(_HEAD)
  except OSError as error:
    raise ImageError(f'{path}: cannot be read: {in_one_line(error)}') from error
