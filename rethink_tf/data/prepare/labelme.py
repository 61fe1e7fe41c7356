"""LabelMe's files: a JSON an image, with the image inside or beside it."""

from __future__ import annotations

import base64
import binascii
import math
import posixpath
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from rethink_tf.data.categories import as_text, is_text, shorten
from rethink_tf.data.detection.segmentation import ROTATED
from rethink_tf.data.images import header_size
from rethink_tf.data.prepare.layout import (
  FEW_POINTS,
  NO_AREA,
  NO_CLASS,
  NO_IMAGE,
  NOT_FINITE,
  SECOND_FILE,
  LabelledImage,
  Options,
  Reading,
  count_unannotated,
  each_json,
  grouped,
  image_size,
  output_name,
  splits_by_folder,
)
from rethink_tf.data.prepare.shapes import box, decoded_png, ellipse, flat_points, pasted
from rethink_tf.data.prepare.source_folder import EXAMINED, JsonShape, SourceFolder
from rethink_tf.data.problems import REPAIRED
from rethink_tf.errors import UserError

NAME, TITLE = 'labelme', "LabelMe's JSON"
WITHOUT_AREA = 'a point, line or other shape without area'
BAD_MASK = 'with a mask that cannot be decoded'
FOREIGN = 'JSON file that is not of LabelMe'
NO_OBJECT = "a region of no class, as LabelMe's lists of labels have it (__ignore__, _background_)"
_NO_CLASSES = ('__ignore__', '_background_')
_TURNED = ('oriented_rectangle', 'rotation')  # of LabelMe, of X-AnyLabeling


def recognize(folder: SourceFolder) -> str | None:
  """Return one of the JSON files with "shapes" and an image."""
  return next((file for file in folder.with_suffix('.json')[:EXAMINED] if _is_labelme(folder.json_shape(file))), None)


def read(folder: SourceFolder, options: Options) -> Reading:
  """List the JSON files; they are read one at a time."""
  splits = splits_by_folder(folder.with_suffix('.json'))
  reading = Reading(TITLE, iter(()), len(splits), upright=True)
  reading.images = _images(folder, splits, reading)
  return reading


def embedded(text: Any) -> bytes | None:
  """Decode an image embedded in a JSON file as base64; None if there is none, or if it is no JPEG or PNG."""
  if not isinstance(text, str) or not text:
    return None
  try:
    data = base64.b64decode(text.rpartition(',')[2], validate=False)
  except (binascii.Error, ValueError):
    return None
  return data if header_size(data) is not None else None


def suffix_of(data: bytes) -> str:
  """Return the suffix of an embedded image."""
  return '.jpg' if data.startswith(b'\xff\xd8') else '.png'


def _is_labelme(shape: Any) -> bool:
  return isinstance(shape, JsonShape) and 'shapes' in shape.keys and bool({'imagePath', 'imageData'} & set(shape.keys))


def _images(folder: SourceFolder, splits: dict[str, str | None], reading: Reading) -> Iterator[LabelledImage]:
  used: set[str] = set()
  for file, content in each_json(folder, splits, reading):
    split = splits[file]
    if not isinstance(content, dict) or not isinstance(content.get('shapes'), list):
      reading.problems.add(FOREIGN, 1, as_text(file))
      continue
    image, data = _image(folder, file, content)
    if image is None or image in used:
      reading.problems.add(NO_IMAGE if image is None else SECOND_FILE, 1, as_text(file))
      continue
    used.add(image)
    size = image_size(content.get('imageHeight'), content.get('imageWidth'))
    instances = grouped(_parts(content['shapes'], file, size, reading), file, reading)
    yield LabelledImage(image, output_name(image), split, instances, size, data=data)
  count_unannotated(folder, used, reading)
  if not used:
    raise UserError(f'{folder.root}: none of its {len(splits)} JSON files has shapes and an image: '
                    + '; '.join(f'{reason}, e.g. {problem.cases[0].text}'
                                for reason, problem in list(reading.problems.by_reason().items())[:2]))


def _image(folder: SourceFolder, file: str, content: dict[str, Any]) -> tuple[str | None, bytes | None]:
  """Return the image of an annotation file: the one that it names, the one of its own name, or the embedded one."""
  image = folder.find_image(content.get('imagePath'), of=file) or folder.image_of(file)
  if image is not None:
    return image, None
  data = embedded(content.get('imageData'))
  return (posixpath.splitext(file)[0] + suffix_of(data), data) if data is not None else (None, None)


def _parts(shapes: list[Any], file: str, size: tuple[int, int] | None,
           reading: Reading) -> Iterator[tuple[str, int | str | None, tuple[str, Any]]]:
  """Yield label, group_id and part of each shape."""
  for i, shape in enumerate(shapes):
    where = f'{file}, shapes[{i}]'
    label = shape.get('label') if isinstance(shape, dict) else None
    if not is_text(label) or not label.strip():
      reading.leave_out(NO_CLASS, where)
      continue
    if label.strip() in _NO_CLASSES:
      reading.leave_out(NO_OBJECT, where)
      continue
    part = _part(shape, size, where, reading)
    if part is not None:
      group = shape.get('group_id')
      yield label.strip(), group if isinstance(group, int | str) else None, part


def _part(shape: dict[str, Any], size: tuple[int, int] | None, where: str, reading: Reading) -> tuple[str, Any] | None:
  """Return ('polygon', points), ('box', corners) or ('mask', uint8 [h, w]); None if the shape is left out."""
  kind = shape.get('shape_type', 'polygon')
  kind = 'polygon' if kind is None else kind
  values = flat_points(shape.get('points'))
  if values is None:
    reading.leave_out(NOT_FINITE, where)
  elif kind == 'polygon':
    if len(values) >= 6:
      return 'polygon', values
    reading.leave_out(FEW_POINTS, where)
  elif kind in ('rectangle', 'circle', 'mask') and len(values) == 4:
    x0, y0, x1, y1 = values
    if kind == 'mask':
      mask = _mask(shape.get('mask'), round(min(x0, x1)), round(min(y0, y1)), size)
      if mask is not None:
        return 'mask', mask
      reading.leave_out(BAD_MASK, where)
    elif kind == 'circle' and values[:2] != values[2:]:
      radius = math.hypot(x1 - x0, y1 - y0)
      return 'polygon', ellipse(x0, y0, radius, radius)
    elif kind == 'rectangle' and x0 != x1 and y0 != y1:
      return 'box', box(x0, y0, x1, y1)
    else:
      reading.leave_out(NO_AREA, where)
  elif kind in ('rectangle', *_TURNED) and len(values) == 8:  # of newer versions: four corners
    reading.leave_out(ROTATED, where, int(kind in _TURNED), REPAIRED)
    corners = np.reshape(values, [4, 2])
    return 'box', box(*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())
  else:
    reading.leave_out(f'{WITHOUT_AREA} ({shorten(kind)})', where)
  return None


def _mask(text: Any, x0: int, y0: int, size: tuple[int, int] | None) -> np.ndarray | None:
  """Decode a mask that is stored as the PNG of its box; None if it is invalid."""
  data = embedded(text)
  crop = decoded_png(data, size, cv2.IMREAD_GRAYSCALE) if data is not None and size is not None else None
  mask = pasted(crop, x0, y0, size) if crop is not None else None
  return mask if mask is not None and mask.any() else None
