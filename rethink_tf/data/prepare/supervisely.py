"""Supervisely's projects: ann/NAME.jpg.json beside img/NAME.jpg, in a folder for each data set, and meta.json.

Where all coordinates of a file are whole numbers, they number pixels, as its SDK writes them: a rectangle includes the
last one, and outlines run through the centres. With fractions, as its labelling tool stores them, they are continuous.
"""

from __future__ import annotations

import base64
import binascii
import math
import posixpath
import zlib
from collections.abc import Iterator
from typing import Any

from rethink_tf.data.categories import is_text, shorten
from rethink_tf.data.detection.segmentation import ROTATED, turned_box
from rethink_tf.data.prepare.labelme import BAD_MASK, WITHOUT_AREA
from rethink_tf.data.prepare.layout import (
  FEW_POINTS,
  NO_AREA,
  NO_CLASS,
  NOT_FINITE,
  LabelledImage,
  Options,
  Reading,
  claim,
  count_unannotated,
  each_json,
  grouped,
  image_size,
  output_name,
)
from rethink_tf.data.prepare.shapes import box, cut_out, decoded_png, flat_points, numbers, pasted
from rethink_tf.data.prepare.source_folder import EXAMINED, JsonShape, SourceFolder, split_of
from rethink_tf.data.problems import REPAIRED
from rethink_tf.errors import UserError

NAME, TITLE = 'supervisely', "Supervisely's JSON"
EMPTY = ('{count} of {total} images have no objects: Supervisely does not record whether somebody has looked at them, '
         'or they are not annotated yet')
FOREIGN = 'JSON file that is not of Supervisely'
_MAX_PNG = 1 << 26  # bytes of a mask, decompressed


def recognize(folder: SourceFolder) -> str | None:
  """Return one of the JSON files with the size of an image and objects."""
  return next((file for file in _files(folder)[:EXAMINED] if isinstance(shape := folder.json_shape(file), JsonShape)
               and {'size', 'objects'} <= {*shape.keys}), None)


def read(folder: SourceFolder, options: Options) -> Reading:
  """List the JSON files; they are read one at a time."""
  files = _files(folder)
  reading = Reading(TITLE, iter(()), len(files))
  reading.images = _images(folder, files, reading)
  return reading


def _files(folder: SourceFolder) -> list[str]:
  """Return the JSON files in folders `ann` or, without any, all."""
  files = folder.with_suffix('.json')
  return [file for file in files if posixpath.basename(posixpath.dirname(file)) == 'ann'] or files


def _images(folder: SourceFolder, files: list[str], reading: Reading) -> Iterator[LabelledImage]:
  used: set[str] = set()
  empty, shapes = 0, _shapes_of_classes(folder)
  for file, content in each_json(folder, files, reading):
    objects = content.get('objects') if isinstance(content, dict) else None
    if not isinstance(objects, list):
      reading.problems.add(FOREIGN, 1, file)
      continue
    image = _image(folder, file)
    if claim(image, used, reading, file, len(objects)):
      size = content['size'] if isinstance(content.get('size'), dict) else {}
      size = image_size(size.get('height'), size.get('width'))
      empty += not objects
      yield LabelledImage(image, output_name(image), _split(file, content),
                          grouped(_parts(objects, shapes, size, file, reading), file, reading), size)
  if empty:
    reading.notes.append(EMPTY.format(count=empty, total=len(used)))
  count_unannotated(folder, used, reading)


def _shapes_of_classes(folder: SourceFolder) -> dict[str, Any]:
  """Return {class: its shape} of meta.json, for objects of early versions, which do not name theirs."""
  found = {}
  for file in folder.named('meta.json'):
    try:
      content = folder.load_json(file)
    except UserError:
      continue
    classes = content.get('classes') if isinstance(content, dict) else None
    found |= {one['title']: one.get('shape') for one in (classes if isinstance(classes, list) else ())
              if isinstance(one, dict) and is_text(one.get('title'))}
  return found


def _image(folder: SourceFolder, file: str) -> str | None:
  """Return the image of an annotation file: img/NAME of ann/NAME.json, or else one of its name."""
  name = posixpath.basename(file)[:-len('.json')]
  beside = posixpath.join(posixpath.dirname(posixpath.dirname(file)), 'img')
  return folder.find_image(name, beside) or folder.find_image(name, of=file) or folder.image_of(file)


def _split(file: str, content: dict[str, Any]) -> str | None:
  """Return the split that the data set of an image, or else one of the tags of the image names."""
  tags = content.get('tags') if isinstance(content.get('tags'), list) else []
  names = [tag['name'] for tag in tags if isinstance(tag, dict) and is_text(tag.get('name'))]
  return split_of(posixpath.dirname(file)) or next((split for name in names if (split := split_of(name))), None)


def _outlines(one: Any) -> list[tuple[Any, list[Any]]]:
  """Return the outline and the outlines of the holes of each part of an object."""
  parts = one.get('parts', [one.get('points')]) if isinstance(one, dict) else []
  return [(part.get('exterior'), holes if isinstance(holes := part.get('interior'), list) else [])
          for part in (parts if isinstance(parts, list) else ()) if isinstance(part, dict)]


def _parts(objects: list[Any], shapes: dict[str, Any], size: tuple[int, int] | None, file: str,
           reading: Reading) -> Iterator[tuple[str, Any, tuple[str, Any]]]:
  """Yield class, instance and part of each object; those of one class and instance are one object."""
  whole = all(value.is_integer() for one in objects for outline, holes in _outlines(one) for points in (outline, *holes)
              for value in flat_points(points) or ())
  for i, one in enumerate(objects):
    where = f'{file}, objects[{i}]'
    label = one.get('classTitle') if isinstance(one, dict) else None
    if not is_text(label) or not label.strip():
      reading.leave_out(NO_CLASS, where)
      continue
    kind = one.get('geometryType') or shapes.get(label)
    if kind in ('bitmap', 'alpha_mask'):
      parts = _mask(one, kind, size, where, reading)
    elif kind in ('rectangle', 'oriented_bbox'):
      parts = _box(one, whole, where, reading)
    elif kind in ('polygon', 'multipolygon'):
      parts = _polygons(one, whole, size, where, reading)
    else:
      reading.leave_out(f'{WITHOUT_AREA} ({shorten(kind)})', where)
      continue
    instance = one.get('instance')
    instance = instance if isinstance(instance, int | str) else ('object', i) if len(parts) > 1 else None
    yield from ((label.strip(), instance, part) for part in parts)


def _mask(one: dict[str, Any], kind: str, size: tuple[int, int] | None, where: str,
          reading: Reading) -> list[tuple[str, Any]]:
  """Return the mask of an object, which is stored as the PNG of its box, compressed once more."""
  bitmap = one.get('bitmap') if isinstance(one.get('bitmap'), dict) else {}
  origin = numbers(bitmap['origin']) if isinstance(bitmap.get('origin'), list) else None
  crop = None if size is None else decoded_png(_png(bitmap.get('data')), size)
  if origin is None or len(origin) != 2 or crop is None:
    reading.leave_out(BAD_MASK, where)
    return []
  crop = crop[..., 3] if crop.ndim == 3 and crop.shape[2] == 4 else crop if crop.ndim == 2 else crop.max(axis=2)
  mask = pasted(crop >= (128 if kind == 'alpha_mask' else 1), *map(math.floor, origin), size)
  if mask is None or not mask.any():
    reading.leave_out(BAD_MASK if mask is None else NO_AREA, where)
    return []
  return [('mask', mask)]


def _png(text: Any) -> bytes:
  try:
    data = base64.b64decode(text if isinstance(text, str) else '')
    return zlib.decompressobj().decompress(data, _MAX_PNG)
  except (binascii.Error, ValueError):
    return b''
  except zlib.error:
    return data  # not compressed, which its SDK reads, too


def _box(one: dict[str, Any], whole: bool, where: str, reading: Reading) -> list[tuple[str, Any]]:
  corners = next((flat_points(outline) for outline, _ in _outlines(one)), None)
  angle = numbers([one.get('angle') or 0])
  if corners is None or len(corners) != 4 or angle is None:
    reading.leave_out(NOT_FINITE, where)
    return []
  x, y, width, height = box(*corners)
  width, height = width + whole, height + whole
  if min(width, height) <= 0:
    reading.leave_out(NO_AREA, where)
    return []
  if angle[0]:
    reading.leave_out(ROTATED, where, outcome=REPAIRED)
    x, y, width, height = turned_box(x, y, width, height, math.degrees(angle[0]))
  return [('box', box(x, y, x + width, y + height))]


def _polygons(one: dict[str, Any], whole: bool, size: tuple[int, int] | None, where: str,
              reading: Reading) -> list[tuple[str, Any]]:
  """Return the parts of an object: outlines, and masks of those with holes."""
  parts = []
  for outline, holes in _outlines(one) or [(None, [])]:
    points, *inner = (None if flat is None else [value + 0.5 * whole for value in flat]
                      for flat in map(flat_points, (outline, *holes)))
    inner = [hole for hole in inner if hole is None or len(hole) >= 6]
    if points is None or len(points) < 6 or None in inner:
      reading.leave_out(FEW_POINTS if points and len(points) < 6 else NOT_FINITE, where)
    elif not inner:
      parts.append(('polygon', points))
    elif (mask := None if size is None else cut_out(points, inner, size)) is not None and mask.any():
      parts.append(('mask', mask))
    else:
      reading.leave_out(BAD_MASK if mask is None else NO_AREA, where)
  return parts
