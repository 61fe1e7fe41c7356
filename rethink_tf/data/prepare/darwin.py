"""V7's Darwin JSON, version 2.0 and 1.0: a file an image, which does not hold the image itself."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

import numpy as np

from rethink_tf.data.categories import is_text, shorten
from rethink_tf.data.images import MAX_PIXELS
from rethink_tf.data.prepare.cvat import TAG
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
  image_size,
  output_name,
  sized,
  splits_by_folder,
)
from rethink_tf.data.prepare.shapes import alternating, ellipse, flat_pairs, masked, numbers, outlined
from rethink_tf.data.prepare.source_folder import EXAMINED, JsonShape, SourceFolder

NAME, TITLE = 'darwin', "V7's Darwin JSON"
FOREIGN = 'JSON file that is not of an image of V7'
SLOTS = 'item of several slots, or a video'
_OF_THE_IMAGE = ('tag', 'raster_layer', 'string', 'graph', 'table', 'simple_table')  # no objects with a place
_WITHOUT_AREA = ('line', 'keypoint', 'skeleton', 'cuboid', 'eye', 'link')


def recognize(folder: SourceFolder) -> str | None:
  """Return one of the JSON files with an item, or the image of a data set, and annotations."""
  return next((file for file in folder.with_suffix('.json')[:EXAMINED] if isinstance(
    shape := folder.json_shape(file), JsonShape) and 'annotations' in shape.keys
    and ('item' in shape.keys or {'dataset', 'image'} <= {*shape.keys})), None)


def read(folder: SourceFolder, options: Options) -> Reading:
  """List the JSON files; they are read one at a time."""
  splits = splits_by_folder(folder.with_suffix('.json'))
  reading = Reading(TITLE, iter(()), len(splits))
  reading.images = _images(folder, splits, reading)
  return reading


def _images(folder: SourceFolder, splits: dict[str, str | None], reading: Reading) -> Iterator[LabelledImage]:
  used: set[str] = set()
  for file, content in each_json(folder, splits, reading):
    split = splits[file]
    content = content if isinstance(content, dict) else {}
    item, annotations = content.get('item', content.get('image')), content.get('annotations')
    if not isinstance(item, dict) or not isinstance(annotations, list):
      reading.problems.add(FOREIGN, 1, file)
      continue
    slots = item['slots'] if isinstance(item.get('slots'), list) and item['slots'] else [item]
    slots = [slot for slot in slots if isinstance(slot, dict)]
    if len(slots) != 1 or slots[0].get('type', 'image') != 'image':
      reading.problems.add(SLOTS, 1, file)
      reading.leave_out('of an image that is left out', file, len(annotations))
      continue
    image, size = _image(folder, file, item), image_size(slots[0].get('height'), slots[0].get('width'))
    if claim(image, used, reading, file, len(annotations)):
      instances = [instance for i, one in enumerate(annotations) if (instance := _instance(
        one if isinstance(one, dict) else {}, annotations, size, f'{file}, annotations[{i}]', reading)) is not None]
      yield LabelledImage(image, output_name(image), split, instances, size)
  count_unannotated(folder, used, reading)


def _image(folder: SourceFolder, file: str, item: dict[str, Any]) -> str | None:
  """Return the image of an item by its name and folder in V7, or else the one that has the name of the file."""
  place = item['path'].strip('/') if isinstance(item.get('path'), str) else ''
  names = [item[field] for field in ('name', 'original_filename', 'filename') if is_text(item.get(field))]
  found = (folder.find_image(posixpath.join(place, name), of=file) for name in names)
  return next((image for image in found if image is not None), None) or folder.image_of(file)


def _instance(one: dict[str, Any], annotations: list[Any], size: tuple[int, int] | None, where: str,
              reading: Reading) -> dict[str, Any] | None:
  name = one.get('name')
  if any(kind in one for kind in _OF_THE_IMAGE):
    reading.leave_out(TAG, where, int('raster_layer' not in one))
  elif not is_text(name) or not name.strip():
    reading.leave_out(NO_CLASS, where)
  elif (fields := _fields(one, annotations, size, where, reading)) is not None:
    return {'category': name.strip(), **fields}
  return None


def _fields(one: dict[str, Any], annotations: list[Any], size: tuple[int, int] | None, where: str,
            reading: Reading) -> dict[str, Any] | None:
  """Return box and outline, or mask, of an annotation; None if it is left out."""
  if (kind := next((kind for kind in _WITHOUT_AREA if kind in one), None)) is not None:
    reading.leave_out(f'{WITHOUT_AREA} ({shorten(kind)})', where)
    return None
  if 'polygon' in one or 'complex_polygon' in one:
    return _polygon(one, size, where, reading)
  if 'mask' in one:
    mask = _mask(one.get('id'), annotations, size)
    if mask is not None and mask.any():
      return masked(mask)
    reading.leave_out(BAD_MASK if mask is None else NO_AREA, where)
    return None
  is_ellipse = 'ellipse' in one
  shape = one.get('ellipse' if is_ellipse else 'bounding_box')
  shape = shape if isinstance(shape, dict) else {}
  center, radius = (shape[key] if isinstance(shape.get(key), dict) else {} for key in ('center', 'radius'))
  values = numbers([center.get('x'), center.get('y'), radius.get('x'), radius.get('y'), shape.get('angle') or 0]
                   if is_ellipse else [shape.get(key) for key in ('x', 'y', 'w', 'h')])
  fields = sized(values, where, reading)
  return outlined([ellipse(*values)]) if is_ellipse and fields is not None else fields


def _polygon(one: dict[str, Any], size: tuple[int, int] | None, where: str, reading: Reading) -> dict[str, Any] | None:
  """Return an outline or, of several ones, the mask of what an odd number of them contains, as V7 draws them."""
  shape = one.get('polygon', one.get('complex_polygon'))
  paths = shape.get('paths', shape.get('path')) if isinstance(shape, dict) else None
  paths = paths if isinstance(paths, list) and paths and isinstance(paths[0], list) else [paths]
  polygons = list(map(flat_pairs, paths))
  drawn = [points for points in polygons if points and len(points) >= 6]
  if None in polygons or not drawn:
    reading.leave_out(NOT_FINITE if None in polygons else FEW_POINTS, where)
    return None
  if len(drawn) == 1:
    return outlined(drawn)
  mask = None if size is None else alternating(drawn, size)
  if mask is not None and mask.any():
    return masked(mask)
  reading.leave_out(BAD_MASK if mask is None else NO_AREA, where)
  return None


def _mask(key: Any, annotations: list[Any], size: tuple[int, int] | None) -> np.ndarray | None:
  """Return the pixels of a mask in the raster layer, which holds pairs of a number and its run, row by row."""
  layers = [one['raster_layer'] for one in annotations if isinstance(one, dict)
            and isinstance(one.get('raster_layer'), dict)]
  if size is None or size[0] * size[1] > MAX_PIXELS or len(layers) != 1 or not isinstance(key, str):
    return None
  numbers_of, runs = (layers[0].get(field) for field in ('mask_annotation_ids_mapping', 'dense_rle'))
  number = numbers_of.get(key) if isinstance(numbers_of, dict) else None
  if type(number) is not int or not isinstance(runs, list) or len(runs) % 2 or not all(
      type(value) is int and 0 <= value <= MAX_PIXELS for value in runs):
    return None
  pairs = np.array(runs, np.int64).reshape(-1, 2)
  if pairs[:, 1].sum() != size[0] * size[1]:
    return None
  return np.repeat(pairs[:, 0] == number, pairs[:, 1]).reshape(size).astype(np.uint8)
