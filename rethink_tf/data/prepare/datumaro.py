"""Datumaro's own JSON: annotations/SUBSET.json with the images in images/SUBSET, as Datumaro and CVAT write it."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from rethink_tf.data.categories import is_text, shorten
from rethink_tf.data.detection.segmentation import ROTATED, to_rle, turned_box
from rethink_tf.data.images import MAX_PIXELS
from rethink_tf.data.prepare.cvat import TAG
from rethink_tf.data.prepare.labelme import BAD_MASK, WITHOUT_AREA
from rethink_tf.data.prepare.layout import (
  FEW_POINTS,
  NO_AREA,
  NO_CLASS,
  NOT_FINITE,
  NOT_NAMED,
  LabelledImage,
  Options,
  Reading,
  chosen,
  claim,
  count_unannotated,
  grouped,
  image_size,
  output_name,
)
from rethink_tf.data.prepare.shapes import box, ellipse, joined, numbers
from rethink_tf.data.prepare.source_folder import EXAMINED, JsonShape, SourceFolder, split_of
from rethink_tf.data.problems import REPAIRED

NAME, TITLE = 'datumaro', "Datumaro's JSON"


def recognize(folder: SourceFolder) -> str | None:
  """Return the JSON files with categories and items."""
  files = _files(folder, folder.with_suffix('.json')[:EXAMINED])
  return folder.describe(files) if files else None


def read(folder: SourceFolder, options: Options) -> Reading:
  """Read all files, which are the subsets of one data set."""
  files = chosen(folder, _files(folder, folder.with_suffix('.json')), options, 'JSON of Datumaro')
  reading = Reading(TITLE, iter(()), 0)
  contents = [(file, _labels(content), content['items']) for file in files
              if isinstance((content := folder.load_json(file)).get('items'), list)]
  reading.total = sum(len(items) for _, _, items in contents)
  reading.images = _images(folder, contents, reading)
  return reading


def _files(folder: SourceFolder, files: list[str]) -> list[str]:
  return [file for file in files if isinstance(shape := folder.json_shape(file), JsonShape)
          and {'categories', 'items'} <= {*shape.keys}]


def _labels(content: dict[str, Any]) -> list[str | None]:
  """Return the names of the classes by their number."""
  found = content.get('categories')
  for key in ('label', 'labels'):
    found = found.get(key) if isinstance(found, dict) else None
  names = [one.get('name') if isinstance(one, dict) else None for one in found] if isinstance(found, list) else []
  return [name.strip() if is_text(name) and name.strip() else None for name in names]


def _images(folder: SourceFolder, contents: list[tuple[str, list[str | None], list[Any]]],
            reading: Reading) -> Iterator[LabelledImage]:
  used: set[str] = set()
  for file, labels, item in ((file, labels, item) for file, labels, items in contents for item in items):
    item = item if isinstance(item, dict) else {}
    where, annotations = f'{file}, item {shorten(item.get("id"))}', item.get('annotations')
    annotations = annotations if isinstance(annotations, list) else []
    media = item['image'] if isinstance(item.get('image'), dict) else {}
    image = _image(folder, file, media.get('path') or item.get('id'))
    if claim(image, used, reading, where, len(annotations)):
      size = media['size'] if isinstance(media.get('size'), list) else []
      size = image_size(*size) if len(size) == 2 else None
      crowds: list[dict[str, Any]] = []
      instances = grouped(_parts(annotations, labels, size, where, reading, crowds), where, reading)
      yield LabelledImage(image, output_name(image), split_of(file), instances + crowds, size)
  count_unannotated(folder, used, reading, NOT_NAMED)


def _image(folder: SourceFolder, file: str, name: Any) -> str | None:
  """Return the image of an item: that of its path in the folder of the subset, or else the nearest one.

  An item without an image has an id, which is the path of the image without its suffix.
  """
  subset = posixpath.splitext(posixpath.basename(file))[0]
  inside = posixpath.join(posixpath.dirname(posixpath.dirname(file)), 'images', subset)
  found = folder.find_image(name, inside, split=split_of(file)) or folder.find_image(name, of=file)
  return found or (folder.image_of(posixpath.join(inside, f'{name}.')) if is_text(name) else None)


def _parts(annotations: list[Any], labels: list[str | None], size: tuple[int, int] | None, where: str,
           reading: Reading, crowds: list[dict[str, Any]]) -> Iterator[tuple[str, int | None, tuple[str, Any]]]:
  """Yield class, group and part of each annotation, 0 being no group; crowds, of COCO, are appended to `crowds`."""
  for i, one in enumerate(annotations):
    place, one = f'{where}, annotations[{i}]', one if isinstance(one, dict) else {}
    attributes = one['attributes'] if isinstance(one.get('attributes'), dict) else {}
    number, group, kind = one.get('label_id'), one.get('group'), one.get('type')
    name = labels[number] if type(number) is int and 0 <= number < len(labels) else None
    if kind in ('label', 'caption'):
      reading.leave_out(TAG, place)
    elif name is None:
      reading.leave_out(NO_CLASS, place)
    elif (part := _part(one, kind, attributes, size, place, reading)) is not None:
      if attributes.get('is_crowd') is True:
        crowds.append({'category': name, 'iscrowd': 1, **joined([part])})
      else:
        yield name, group if type(group) is int and group else None, part


def _part(one: dict[str, Any], kind: Any, attributes: dict[str, Any], size: tuple[int, int] | None, where: str,
          reading: Reading) -> tuple[str, Any] | None:
  """Return ('polygon', points), ('box', bbox) or ('mask', uint8 [height, width]); None if the shape is left out."""
  if kind == 'mask':
    mask = _mask(one.get('rle'), size)
    if mask is not None and mask.any():
      return 'mask', mask
    reading.leave_out(BAD_MASK if mask is None else NO_AREA, where)
    return None
  if kind not in ('bbox', 'ellipse', 'polygon'):
    reading.leave_out(f'{WITHOUT_AREA} ({shorten(kind)})', where)
    return None
  listed = one.get('bbox' if kind == 'bbox' else 'points')
  values = numbers(listed) if isinstance(listed, list) else None
  angle = numbers([attributes.get('rotation') or 0])
  if values is None or angle is None or len(values) % 2 or kind != 'polygon' and len(values) != 4:
    reading.leave_out(NOT_FINITE, where)
  elif kind == 'polygon':
    if len(values) >= 6:
      return 'polygon', values
    reading.leave_out(FEW_POINTS, where)
  else:
    x, y, width, height = values if kind == 'bbox' else box(*values)
    if min(width, height) <= 0:
      reading.leave_out(NO_AREA, where)
    elif kind == 'ellipse':
      return 'polygon', ellipse(x + width / 2, y + height / 2, width / 2, height / 2, np.radians(angle[0]))
    else:
      if angle[0] % 360:
        reading.leave_out(ROTATED, where, outcome=REPAIRED)
        x, y, width, height = turned_box(x, y, width, height, angle[0])
      return 'box', box(x, y, x + width, y + height)
  return None


def _mask(rle: Any, size: tuple[int, int] | None) -> np.ndarray | None:
  """Decode run lengths of COCO, of an image of any size if none is recorded; None if they are malformed."""
  try:
    height, width = size or rle['size']
    if height * width > MAX_PIXELS:
      return None
    return mask_api.decode(to_rle(rle, height, width))
  except (ValueError, TypeError, KeyError, OverflowError):
    return None
