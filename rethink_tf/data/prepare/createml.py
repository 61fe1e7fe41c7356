"""JSON of Apple's Create ML, as Roboflow and RectLabel export it, too: boxes by their centres.

Units, origin and anchor of the coordinates are not in the file, but arguments of Create ML's training. Read are its
defaults: pixels from the upper left corner of the image, to the centre of a box. Where no number of a data set exceeds
1, the coordinates are fractions of the image (MLBoundingBoxUnits.normalized).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from rethink_tf.data.categories import is_text, shorten
from rethink_tf.data.prepare.layout import (
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
  output_name,
)
from rethink_tf.data.prepare.shapes import box, boxed, numbers
from rethink_tf.data.prepare.source_folder import EXAMINED, JsonShape, SourceFolder, split_of

NAME, TITLE = 'createml', "Create ML's JSON"
FRACTIONS = 'no coordinate is above 1: all are read as fractions of the images'
NO_LIST = 'entry without a list of annotations'
_KEYS = (('image', 'annotations'), ('imagefilename', 'annotation'))  # of Roboflow and Create ML's app; of its framework


class _Entry(NamedTuple):
  """The entry of an image in a file."""

  where: str
  image: str | None  # its file, None if it is missing
  split: str | None
  objects: Any  # a list; an empty one: there are none


def recognize(folder: SourceFolder) -> str | None:
  """Return the JSON files that are lists of images with annotations."""
  files = _files(folder, folder.with_suffix('.json')[:EXAMINED])
  return folder.describe(files) if files else None


def read(folder: SourceFolder, options: Options) -> Reading:
  """Read all files, which are the splits of one data set, or parts of it."""
  files = chosen(folder, _files(folder, folder.with_suffix('.json')), options, 'JSON of Create ML')
  entries = [entry for file in files for entry in _entries(folder, file)]
  boxes = [found for entry in entries if isinstance(entry.objects, list)
           for one in entry.objects if (found := _numbers(one)) is not None]
  reading = Reading(TITLE, iter(()), len(entries), upright=True)
  fractions = bool(boxes) and max(map(max, boxes)) <= 1
  if fractions:
    reading.notes.append(FRACTIONS)
  reading.images = _images(folder, entries, fractions, reading)
  return reading


def _files(folder: SourceFolder, files: list[str]) -> list[str]:
  def is_createml(shape: Any) -> bool:
    return isinstance(shape, list) and bool(shape) and isinstance(shape[0], JsonShape) and any(
      {*keys} <= {*shape[0].keys} for keys in _KEYS)
  return [file for file in files if is_createml(folder.json_shape(file))]


def _entries(folder: SourceFolder, file: str) -> Iterator[_Entry]:
  content = folder.load_json(file)
  split = split_of(file)
  for i, entry in enumerate(content if isinstance(content, list) else ()):
    entry = entry if isinstance(entry, dict) else {}
    image, objects = (next((entry[key] for key in keys if key in entry), None) for keys in zip(*_KEYS, strict=True))
    yield _Entry(f'{file}[{i}], {shorten(image)}', folder.find_image(image, of=file, split=split), split, objects)


def _images(folder: SourceFolder, entries: list[_Entry], fractions: bool, reading: Reading) -> Iterator[LabelledImage]:
  used: set[str] = set()
  for where, image, split, objects in entries:
    if not isinstance(objects, list):
      reading.problems.add(NO_LIST, 1, where)
    elif claim(image, used, reading, where, len(objects)):
      instances = [instance for i, one in enumerate(objects)
                   if (instance := _instance(one, fractions, f'{where}, annotations[{i}]', reading)) is not None]
      yield LabelledImage(image, output_name(image), split, instances, fractions=fractions)
  count_unannotated(folder, used, reading, NOT_NAMED)


def _numbers(entry: Any) -> list[float] | None:
  """Return centre x and y, width and height."""
  place = entry.get('coordinates') if isinstance(entry, dict) else None
  return numbers([place.get(name) for name in ('x', 'y', 'width', 'height')]) if isinstance(place, dict) else None


def _instance(entry: Any, fractions: bool, where: str, reading: Reading) -> dict[str, Any] | None:
  label, values = entry.get('label') if isinstance(entry, dict) else None, _numbers(entry)
  if not is_text(label) or not label.strip():
    reading.leave_out(NO_CLASS, where)
  elif values is None or min(values[2:]) <= 0:
    reading.leave_out(NOT_FINITE if values is None else NO_AREA, where)
  else:
    x, y, width, height = values
    bbox = [x - width / 2, y - height / 2, width, height]
    return {'category': label.strip(), **boxed(bbox if fractions else box(*bbox[:2], x + width / 2, y + height / 2))}
  return None
