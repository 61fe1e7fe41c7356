"""Hugging Face's imagefolder for object detection: metadata.jsonl beside the images of each split, a line an image.

`objects` has a list of boxes, `bbox`, x, y, width and height in pixels as in COCO, and one of their classes,
`categories` or `category`: names, or numbers, whose names are not in the file. These are read from classes.txt, a name
a line from number 0 on, or from the class labels that a README.md of the Hub declares for the column.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any, NamedTuple

from rethink_tf.data.categories import as_text, is_text, shorten
from rethink_tf.data.prepare import json_lines, yaml_text
from rethink_tf.data.prepare.class_numbers import MAX_NUMBER, UNKNOWN_CLASS, check_names, check_numbers, listed_names
from rethink_tf.data.prepare.layout import (
  NO_CLASS,
  NOT_NAMED,
  LabelledImage,
  Options,
  Reading,
  chosen,
  claim,
  count_unannotated,
  image_size,
  output_name,
  sized,
)
from rethink_tf.data.prepare.shapes import numbers
from rethink_tf.data.prepare.source_folder import EXAMINED, SourceFolder, split_of
from rethink_tf.errors import UserError

NAME, TITLE = 'imagefolder', "Hugging Face's imagefolder"
NOT_JSON = 'line that is not valid JSON, or has no file_name'
NO_OBJECTS = 'image whose line has no lists of boxes and classes of one length'
NUMBER_AMONG_NAMES = 'of a class that is a number, where others have names'
NAMED_BY = 'classes are numbers: their names are those of {file}'
NO_NAMES = ('classes are numbers and have no names in the source: they are named by their numbers. Write their names, '
            'one a line from number 0 on, to {file}')
NO_OUTLINES = 'objects have outlines or masks (segmentation), which are not read: export COCO json for them'
_NAMES = 'classes.txt'
_CLASSES = ('category', 'categories', 'label', 'labels', 'category_id')


class _Line(NamedTuple):
  """A line of a metadata file."""

  file: str
  where: str
  entry: dict[str, Any]


class _Classes(NamedTuple):
  """What the classes of the objects are."""

  named: bool  # in the lines; otherwise they are numbers
  names: dict[int, str] | None  # of the numbers; None: not in the source
  file: str  # with the names
  used: set[float]  # gets the numbers of the objects


def recognize(folder: SourceFolder) -> str | None:
  """Return the JSON Lines with the objects of an image."""
  files = _files(folder, folder.with_suffix('.jsonl')[:EXAMINED])
  return folder.describe(files) if files else None


def read(folder: SourceFolder, options: Options) -> Reading:
  """Read all files, which are the splits of one data set, or parts of it."""
  files = chosen(folder, _files(folder, folder.with_suffix('.jsonl')), options, 'JSON Lines of an imagefolder')
  reading = Reading(TITLE, iter(()), 0)
  lines = [line for file in files for line in _lines(folder, file, reading)]
  reading.total = len(lines)
  named = any(_is_name(label) and _number(label) is None for line in lines for _, label in _objects(line.entry) or ())
  found = None if named else _described(folder)
  if not named:
    reading.notes.append(NAMED_BY.format(file=as_text(found[0])) if found else
                         NO_NAMES.format(file=folder.path(_NAMES)))
  if any(any(_column(line.entry, 'segmentation') or ()) for line in lines):
    reading.notes.append(NO_OUTLINES)
  classes = _Classes(named, found[1] if found else None, found[0] if found else '', set())
  reading.images = _images(folder, lines, classes, reading)
  return reading


def _files(folder: SourceFolder, files: list[str]) -> list[str]:
  return [file for file in files if {'file_name', 'objects'} <= {*json_lines.first(folder, file)}]


def _lines(folder: SourceFolder, file: str, reading: Reading) -> Iterator[_Line]:
  for where, entry in json_lines.objects(folder, file):
    if is_text(entry.get('file_name')):
      yield _Line(file, where, entry)
    else:
      reading.problems.add(NOT_JSON, 1, where)


def _objects(entry: dict[str, Any]) -> list[tuple[Any, Any]] | None:
  """Return (box, class) of each object of an image; None if it has no lists of both that fit."""
  boxes, labels = _column(entry, 'bbox'), _column(entry, *_CLASSES)
  if boxes == []:
    return []
  fits = boxes is not None and labels is not None and len(boxes) == len(labels)
  return list(zip(boxes, labels, strict=True)) if fits else None


def _column(entry: dict[str, Any], *names: str) -> list[Any] | None:
  """Return the values of the first of these columns of the objects, which are a list each, or an object each."""
  objects = entry.get('objects')
  if isinstance(objects, list):
    rows = [one if isinstance(one, dict) else {} for one in objects]
    return [next((row[name] for name in names if name in row), None) for row in rows]
  values = next((objects[name] for name in names if name in objects), None) if isinstance(objects, dict) else None
  return values if isinstance(values, list) else None


def _is_name(label: Any) -> bool:
  return is_text(label) and bool(label.strip())


def _number(label: Any) -> int | None:
  """Return the number of a class, which may be written as text; None if it is none."""
  if isinstance(label, str):
    label = int(label) if label.isascii() and label.isdecimal() and len(label) < 11 else None
  number = None if label is None else numbers([label], largest=MAX_NUMBER)
  return int(number[0]) if number and number[0] >= 0 and number[0] == int(number[0]) else None


def _described(folder: SourceFolder) -> tuple[str, dict[int, str]] | None:
  """Return the names of class numbers, and their file; raises UserError if there are several."""
  found = [(file, names) for file in folder.named(_NAMES) if (names := listed_names(folder, file))]
  found = found or [(file, names) for file in folder.named('readme.md') if (names := _of_card(folder, file))]
  if len({tuple(names.items()) for _, names in found}) > 1:
    raise UserError(f'{folder.root}: {folder.describe([file for file, _ in found])} have different class names: remove '
                    'all but one')
  return found[0] if found else None


def _of_card(folder: SourceFolder, file: str) -> dict[int, str] | None:
  """Return the names of the class labels in the only column `objects` of a card of the Hub; None without them."""
  try:
    head = folder.read_text(file).split('---', 2)
    content = yaml_text.parse(file, head[1]) if len(head) == 3 and not head[0].strip() else None
  except UserError:
    return None
  info = content.get('dataset_info') if isinstance(content, dict) else None
  features = [one.get('features') for one in (info if isinstance(info, list) else [info]) if isinstance(one, dict)]
  columns = [column for one in features if isinstance(one, list) for column in one if isinstance(column, dict)]
  found = _class_labels([column for column in columns if column.get('name') == 'objects'])
  if not found or any(one != found[0] for one in found):
    return None
  try:
    names = {int(key): name for key, name in found[0].items()}
  except ValueError:
    return None
  check_names(names, folder.path(file))
  return names


def _class_labels(content: Any) -> list[dict[str, Any]]:
  """Return the names of all class labels in part of a description; an alias of YAML may be in it many times."""
  found, seen, todo = [], set(), [content]
  while todo:
    one = todo.pop()
    if id(one) in seen:
      continue
    seen.add(id(one))
    label = one.get('class_label') if isinstance(one, dict) else None
    if isinstance(label, dict) and isinstance(label.get('names'), dict) and label['names']:
      found.append(label['names'])
    todo += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
  return found


def _images(folder: SourceFolder, lines: list[_Line], classes: _Classes, reading: Reading) -> Iterator[LabelledImage]:
  used: set[str] = set()
  left: set[str] = set()
  for file, where, entry in lines:
    image = folder.find_image(entry['file_name'], of=file, split=split_of(file))
    objects = _objects(entry)
    if objects is None:
      reading.problems.add(NO_OBJECTS, 1, f'{where}, {shorten(entry["file_name"])}')
      left.add(image or '')
    elif claim(image, used, reading, where, len(objects)):
      instances = [instance for i, (bbox, label) in enumerate(objects) if (
        instance := _instance(bbox, label, classes, f'{where}, bbox[{i}]', reading)) is not None]
      yield LabelledImage(image, output_name(image), split_of(posixpath.dirname(image)) or split_of(file), instances,
                          image_size(entry.get('height'), entry.get('width')))
  count_unannotated(folder, used | left, reading, NOT_NAMED)
  if not classes.named:
    names = classes.names or {number: str(number) for number in sorted(map(int, classes.used))}
    if classes.names:
      check_numbers(folder, classes.used, names, classes.file)
    reading.categories = {number: {'id': number + 1, 'name': name} for number, name in sorted(names.items())}


def _instance(bbox: Any, label: Any, classes: _Classes, where: str, reading: Reading) -> dict[str, Any] | None:
  number = _number(label)
  if number is None and not _is_name(label):
    reading.leave_out(NO_CLASS, where)
    return None
  if classes.named and not isinstance(label, str):
    reading.leave_out(NUMBER_AMONG_NAMES, where)
    return None
  if not classes.named:
    classes.used.add(number)
    if classes.names and number not in classes.names:
      reading.leave_out(UNKNOWN_CLASS, where)
      return None
  fields = sized(numbers(bbox) if isinstance(bbox, list) and len(bbox) == 4 else None, where, reading)
  return None if fields is None else {'category': label.strip() if classes.named else number, **fields}
