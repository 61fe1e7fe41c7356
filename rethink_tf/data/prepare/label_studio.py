"""Label Studio's JSON: a list of tasks with annotations in percent of the image; rectangles, ellipses, polygons, brush.

Its COCO and YOLO exports are read by the modules of these formats.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from rethink_tf.data.categories import is_text, shorten
from rethink_tf.data.detection.segmentation import ROTATED
from rethink_tf.data.images import MAX_PIXELS
from rethink_tf.data.prepare.layout import (
  FEW_POINTS,
  NO_AREA,
  NO_CLASS,
  NO_IMAGE,
  NOT_FINITE,
  NOT_NAMED,
  LabelledImage,
  Options,
  Reading,
  count_unannotated,
  output_name,
)
from rethink_tf.data.prepare.shapes import box, boxed, ellipse, flat_points, masked, numbers, outlined, rotated_box
from rethink_tf.data.prepare.source_folder import EXAMINED, IMAGE_SUFFIXES, SourceFolder, has_suffix, names_in
from rethink_tf.data.problems import REPAIRED
from rethink_tf.errors import UserError

NAME, TITLE = 'label_studio', "Label Studio's JSON"
ROTATED_VIEW = 'drawn on a rotated view of the image'
NOT_ANNOTATED = 'task without an annotation (not annotated yet, or skipped)'
SEVERAL = 'task with several annotations (the ground truth is used, or else the first)'
UNNAMED = 'task of several images, whose results do not say which is theirs'
BAD_BRUSH = 'with a brush mask that cannot be decoded'
UNREAD = 'a result of a kind that is not read'
_UPLOADED = re.compile(r'^[0-9a-f]{8}-')  # what Label Studio puts before the name of an uploaded file
_OF_THE_TASK = ('choices', 'relation', 'textarea', 'rating', 'number')  # not of a region
_SHAPES = ('rectangle', 'polygon', 'ellipse', 'brush')  # whose class another result of the same id has
_KINDS = ('rectanglelabels', 'polygonlabels', 'ellipselabels', 'brushlabels')


def recognize(folder: SourceFolder) -> str | None:
  """Return the JSON file with a list of tasks."""
  files = [file for file in folder.with_suffix('.json')[:EXAMINED] if _is_export(folder.json_shape(file))]
  return folder.describe(files) if files else None


def read(folder: SourceFolder, options: Options) -> Reading:
  """Read the tasks of the only export, or of the one that is named."""
  files = [file for file in folder.with_suffix('.json') if _is_export(folder.json_shape(file))]
  if options.annotation_file:
    files = [file for file in files if file == options.annotation_file]
  if len(files) != 1:
    raise UserError(f'{folder.root}: {folder.describe(files, 5) or "no file"}: name one export of Label Studio with '
                    '--annotation_file')
  tasks = folder.load_json(files[0])
  reading = Reading(TITLE, iter(()), len(tasks), upright=True)
  reading.images = _images(folder, files[0], tasks, reading)
  return reading


def decode_brush(rle: Any, height: int, width: int) -> np.ndarray | None:
  """Decode the run lengths of a brush (thi.ng's rle-pack of RGBA) -> uint8 [height, width]; None if damaged.

  A header of 32 bits: number of values, 5 bits: bits of a value less 1, 4 times 4 bits: bits of a length less 1. Then
  runs: a bit for a repeated value, 2 bits that choose the size of the length, the length less 1, the value or values.
  """
  try:
    bits = np.unpackbits(np.array(rle, np.uint8) if all(type(one) is int and 0 <= one < 256 for one in rle) else [])
  except (TypeError, ValueError):
    return None
  text = (bits + 48).astype(np.uint8).tobytes()
  total, place = 4 * height * width, 57
  if len(text) < place or int(text[:32], 2) != total or height * width > MAX_PIXELS:
    return None
  word = int(text[32:37], 2) + 1
  sizes = [int(text[i:i + 4], 2) + 1 for i in range(37, 53, 4)]
  place, values, done = 53, np.zeros(total, np.uint8), 0
  try:
    while done < total:
      repeated, size = text[place] == 49, sizes[int(text[place + 1:place + 3], 2)]
      place += 3
      length = int(text[place:place + size], 2) + 1
      place += size
      count = 1 if repeated else length
      found = text[place:place + count * word]
      if len(found) < count * word or done + length > total:
        return None
      place += count * word
      values[done:done + length] = [min(int(found[i:i + word], 2), 255) for i in range(0, len(found), word)]
      done += length
  except (ValueError, IndexError):
    return None
  return (values.reshape(height, width, 4)[:, :, 3] > 0).astype(np.uint8)


def _is_export(shapes: Any) -> bool:
  return isinstance(shapes, list) and bool(shapes) and all(
    'data' in shape.keys and {'annotations', 'completions'} & set(shape.keys) for shape in shapes)


def _images(folder: SourceFolder, file: str, tasks: list[Any], reading: Reading) -> Iterator[LabelledImage]:
  used: set[str] = set()
  skipped: set[str | None] = set()
  for i, task in enumerate(tasks):
    where = f'{file}, task {shorten(task.get("id", i)) if isinstance(task, dict) else i}'
    results = _results(task, where, reading)
    if results is None:
      skipped.update(_find(folder, value) for value in _fields_of_images(task).values())
      continue
    classed = {shorten(result.get('id')) for result in results
               if isinstance(result, dict) and result.get('type') in (*_KINDS, 'labels')}
    for image, own in _by_image(folder, task, results, where, reading):
      if image is None or image in used:
        reading.problems.add(NO_IMAGE if image is None else 'image of a second task', 1, where)
        continue
      used.add(image)
      if (labelled := _labelled(image, own, classed, where, reading)) is not None:
        yield labelled
  count_unannotated(folder, used | skipped, reading, NOT_NAMED)


def _labelled(image: str, results: list[tuple[int, Any]], classed: set[str], where: str,
              reading: Reading) -> LabelledImage | None:
  """Return an image with the objects of its numbered results; None if these are of several sizes.

  classed: ids of results that have a class.
  """
  sizes = {tuple(size) for _, result in results if isinstance(result, dict) and (
    size := numbers([result.get('original_height'), result.get('original_width')])) and min(size) >= 1}
  if len(sizes) > 1:
    reading.problems.add('task with results of several image sizes', 1, where)
    return None
  size = tuple(map(int, sizes.pop())) if sizes else None
  instances = []
  for k, result in results:
    if isinstance(result, dict) and result.get('type') in _SHAPES and shorten(result.get('id')) not in classed:
      reading.leave_out(NO_CLASS, f'{where}, result {k}')
    elif (instance := _instance(result, size, f'{where}, result {k}', reading)) is not None:
      instances.append(instance)
  return LabelledImage(image, output_name(image), None, instances, size)


def _by_image(folder: SourceFolder, task: dict[str, Any], results: list[Any], where: str, reading: Reading
              ) -> list[tuple[str | None, list[tuple[int, Any]]]]:
  """Return the images of a task, None for one whose file is missing, with the numbered results on each.

  Most tasks have one. Where there are several, results say on which they are: `to_name` is the tag that shows the image
  (which people name as its field in the data), `item_index` the place in a list of images.
  """
  numbered = list(enumerate(results))
  fields = _fields_of_images(task)
  images = {place: _find(folder, value) for place, value in fields.items()}
  placed = {_place(result) for result in results
            if isinstance(result, dict) and result.get('type') not in _OF_THE_TASK}
  names = {name for name, _ in placed}
  if len(placed) < 2 and not any(index for _, index in placed):
    own = next(((name, None) for name in names if (name, None) in images), ('image', None))
    if own in images:
      return [(images[own], numbered)]
    found = {file for file in images.values() if file is not None}
    if len(found) < 2:
      return [(next(iter(found), None), numbered)]
  lists = {name for name, index in fields if index is not None}
  if len(names) == 1 and len(lists) == 1:  # the tag may have another name than the only list
    images = {place: file for place, file in images.items() if place[0] in lists}
    placed_on = {(next(iter(lists)), index): (next(iter(names)), index) for _, index in placed}
  else:
    placed_on = {place: place for place in placed}
  if not placed_on.keys() <= images.keys():
    reading.problems.add(UNNAMED, 1, where)
    return []
  return [(file, [(k, result) for k, result in numbered if isinstance(result, dict) and place in placed_on and
                  _place(result) == placed_on[place]]) for place, file in images.items()]


def _place(result: dict[str, Any]) -> tuple[str | None, int | None]:
  """Return the tag that shows a result's image, and the image's index in its list of images."""
  name, index = result.get('to_name'), result.get('item_index')
  return name if isinstance(name, str) else None, index if type(index) is int else None


def _fields_of_images(task: Any) -> dict[tuple[str, int | None], str]:
  """Return {(field of the data, index in its list or None): value} of the values that name image files."""
  data = task.get('data') if isinstance(task, dict) else None
  found: dict[tuple[str, int | None], str] = {}
  for name, value in (data.items() if isinstance(data, dict) else ()):
    for index, one in enumerate(value) if isinstance(value, list) else ((None, value),):
      if isinstance(one, str) and any(has_suffix(name, IMAGE_SUFFIXES) for name in names_in(one)):
        found[name, index] = one
  return found


def _results(task: Any, where: str, reading: Reading) -> list[Any] | None:
  """Return the results of a task's first annotation that was not cancelled; None if there is none."""
  annotations = task.get('annotations', task.get('completions')) if isinstance(task, dict) else None
  valid = [one for one in annotations or () if isinstance(one, dict) and isinstance(one.get('result'), list)
           and not one.get('was_cancelled')] if isinstance(annotations, list) else []
  if not valid:
    reading.problems.add(NOT_ANNOTATED, 1, where)
    return None
  if len(valid) > 1:
    reading.problems.add(SEVERAL, 1, where, REPAIRED)
  return sorted(valid, key=lambda one: not one.get('ground_truth'))[0]['result']


def _find(folder: SourceFolder, value: str) -> str | None:
  """Return the image that a value names, with or without Label Studio's prefix of uploaded files."""
  for name in names_in(value):
    head, _, tail = name.replace('\\', '/').rpartition('/')
    found = folder.find_image(name) or folder.find_image(posixpath.join(head, _UPLOADED.sub('', tail)))
    if found:
      return found
  return None


def _instance(result: Any, size: tuple[int, int] | None, where: str, reading: Reading) -> dict[str, Any] | None:
  kind = result.get('type') if isinstance(result, dict) else None
  value = result.get('value') if isinstance(result, dict) else None
  if kind == 'labels' and isinstance(value, dict):  # <Labels> with a shape of its own
    kind = next((name for name, field in (('polygonlabels', 'points'), ('brushlabels', 'rle'), ('ellipselabels',
                 'radiusX'), ('rectanglelabels', 'width')) if field in value), kind)
  if kind not in _KINDS or not isinstance(value, dict):
    if kind not in (*_OF_THE_TASK, *_SHAPES):
      reading.leave_out(f'{UNREAD} ({shorten(kind)})', where)
    return None
  labels = value.get(kind) or value.get('labels')
  if not isinstance(labels, list) or not labels or not is_text(labels[0]) or not labels[0].strip():
    reading.leave_out(NO_CLASS, where)
    return None
  if len(labels) > 1:
    reading.leave_out('with several classes (the first is used)', where, outcome=REPAIRED)
  if result.get('image_rotation') not in (None, 0) or size is None:
    reading.leave_out(NOT_FINITE if size is None else ROTATED_VIEW, where)
    return None
  fields = _fields(kind, value, size, where, reading)
  return None if fields is None else {'category': labels[0].strip(), **fields}


def _brush(value: dict[str, Any], size: tuple[int, int], where: str, reading: Reading) -> dict[str, Any] | None:
  mask = decode_brush(value.get('rle'), *size)
  if mask is None or not mask.any():
    reading.leave_out(BAD_BRUSH if mask is None else NO_AREA, where)
    return None
  return masked(mask)


def _polygon(value: dict[str, Any], size: tuple[int, int], where: str, reading: Reading) -> dict[str, Any] | None:
  height, width = size
  flat = flat_points(value.get('points'))
  if flat is None or len(flat) < 6:
    reading.leave_out(NOT_FINITE if flat is None else FEW_POINTS, where)
    return None
  return outlined([np.array(flat) / 100 * np.tile([width, height], len(flat) // 2)])


def _fields(kind: str, value: dict[str, Any], size: tuple[int, int], where: str,
            reading: Reading) -> dict[str, Any] | None:
  """Return box and outline in pixels; None if the shape is left out."""
  if kind == 'brushlabels':
    return _brush(value, size, where, reading)
  if kind == 'polygonlabels':
    return _polygon(value, size, where, reading)
  height, width = size
  names = ('x', 'y', 'radiusX', 'radiusY') if kind == 'ellipselabels' else ('x', 'y', 'width', 'height')
  found = numbers([*(value.get(name) for name in names), value.get('rotation') or 0])
  if found is None or min(found[2:4]) <= 0:
    reading.leave_out(NOT_FINITE if found is None else NO_AREA, where)
    return None
  x, y, w, h = np.multiply(found[:4], (width, height, width, height)) / 100
  if kind == 'ellipselabels':
    return outlined([ellipse(x, y, w, h, np.radians(found[4]))])
  if found[4] % 360:
    reading.leave_out(ROTATED, where, outcome=REPAIRED)
    return boxed(rotated_box(x, y, w, h, found[4]))
  return boxed(box(x, y, x + w, y + h))
