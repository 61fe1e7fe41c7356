"""Tables (.csv) with a box a row: of TensorFlow's object detection, whose columns Roboflow and VoTT write too, and of
keras-retinanet, without a header: image, x0, y0, x1, y1, class, the last five empty for an image without objects. Of
such an image Roboflow writes an empty line, without its name. Tables of Kaggle's competitions have the boxes in one
column, "[x, y, width, height]", and the names of images without suffix.
"""

from __future__ import annotations

import csv
import posixpath
import re
from collections.abc import Iterator
from typing import NamedTuple

from rethink_tf.data.categories import as_text, is_text
from rethink_tf.data.detection.voc_xml import EXCHANGED
from rethink_tf.data.prepare.layout import (
  MISSING,
  NO_AREA,
  NO_CLASS,
  NO_IMAGE,
  NOT_FINITE,
  NOT_NAMED,
  LabelledImage,
  Options,
  Reading,
  chosen,
  count_unannotated,
  output_name,
)
from rethink_tf.data.prepare.shapes import box, boxed, text_numbers
from rethink_tf.data.prepare.source_folder import EXAMINED, IMAGE_SUFFIXES, SourceFolder, has_suffix, split_of
from rethink_tf.data.problems import REPAIRED
from rethink_tf.errors import UserError

ROBOFLOW = '_annotations.csv'
NAME, TITLE = 'csv', 'a table (CSV)'
COLUMNS = 'filename, class, xmin, ymin, xmax, ymax'
AGAIN = '{count} images are in several tables, with the same objects: used once, in {file}'
NO_CLASSES = '{file} has no column with classes: all objects are of the class {name!r}'
_IMAGE = ('filename', 'file_name', 'image', 'image_path', 'path', 'image_id', 'image_name')
_CLASS = ('class', 'label', 'class_name', 'category', 'category_name')
_CORNERS = (('xmin', 'x_min'), ('ymin', 'y_min'), ('xmax', 'x_max'), ('ymax', 'y_max'))
_BOX = 'bbox'
_WHEAT = {'image_id', 'width', 'height', _BOX, 'source'}  # of the Global Wheat Detection
_ONE_CLASS = 'object'
_NO_CORNERS = 0.1  # share of the boxes that are none as corners, where they are x, y, width and height


class _Table(NamedTuple):
  """A table with the roles of its columns."""

  file: str
  rows: list[list[str]]  # without the header
  first: int  # line number of the first row
  columns: tuple[int, ...]  # of image, class, xmin, ymin, xmax, ymax and, where there are, height and width
  classes: bool = True  # whether a column has them
  certain: bool = True  # whether it is known what the numbers of the boxes are


class _Row(NamedTuple):
  """A row, with its fields as text."""

  line: int
  name: str
  box: tuple[str, ...]
  size: tuple[str, ...]


def recognize(folder: SourceFolder) -> str | None:
  """Return the tables of boxes if there are any."""
  files = [table.file for table in _tables(folder, folder.with_suffix('.csv')[:EXAMINED]) if any(map(any, table.rows))]
  return folder.describe(files) if files else None


def read(folder: SourceFolder, options: Options) -> Reading:
  """Read all tables, first those whose name is that of a split."""
  tables = _tables(folder, sorted(folder.with_suffix('.csv'), key=lambda file: split_of(file) is None))
  files = chosen(folder, [table.file for table in tables], options, f'table with the columns {COLUMNS}')
  tables = [table for table in tables if table.file in files]
  reading = Reading(TITLE, iter(()), 0)
  for table in tables:
    if not table.certain:
      raise UserError(f'{folder.path(table.file)}: the numbers of its column {_BOX} may be x, y, width and height, or '
                      'two corners: write them to the columns xmin, ymin, xmax, ymax')
    if not table.classes:
      reading.notes.append(NO_CLASSES.format(file=as_text(table.file), name=_ONE_CLASS))
  entries: dict[str, tuple[str, list[_Row]]] = {}
  repeated: list[str] = []
  for table in tables:
    for image, rows in _by_image(folder, table, reading).items():
      if image not in entries:
        entries[image] = table.file, rows
      elif _same(entries[image][1], rows):
        repeated.append(entries[image][0])
      else:
        raise UserError(f'{folder.root}: {as_text(entries[image][0])} and {as_text(table.file)} have different objects '
                        f'of {as_text(image)}: name one of them with --annotation_file, or remove the other')
  if repeated:
    reading.notes.append(AGAIN.format(count=len(repeated), file=folder.describe(sorted(set(repeated)))))
  reading.total = len(entries)
  beside = {posixpath.dirname(table.file) for table in tables if posixpath.basename(table.file) == ROBOFLOW}
  reading.images = _images(folder, entries, beside, reading)
  return reading


def _tables(folder: SourceFolder, files: list[str]) -> list[_Table]:
  """Return those files that are tables of boxes."""
  found = []
  for file in files:
    try:
      lines = folder.read_text(file).splitlines()
      delimiter = ';' if lines and lines[0].count(';') > lines[0].count(',') else ','
      rows = list(csv.reader(lines, delimiter=delimiter))
    except (UserError, csv.Error):
      continue
    header = [word.strip().lower() for word in rows[0]] if rows else []
    places = [next((header.index(name) for name in names if name in header), None)
              for names in (_IMAGE, _CLASS, *_CORNERS, ('height',), ('width',), (_BOX,))]
    if None not in (places[0], places[8]) and None in places[2:6]:
      found += _with_boxes(file, set(header), rows[1:], places)
      continue
    places = places[:8]
    if None not in places[:6]:
      found.append(_Table(file, rows[1:], 2, tuple(places if None not in places else places[:6])))
    elif (any(map(_is_row, rows)) or posixpath.basename(file) == ROBOFLOW) and all(
        _is_row(row) or not any(row) for row in rows):
      found.append(_Table(file, rows, 1, (0, 5, 1, 2, 3, 4)))
  return found


def _with_boxes(file: str, header: set[str], rows: list[list[str]], places: list[int | None]) -> list[_Table]:
  """Return the table whose boxes are in one column, with their corners in four; none if these are no boxes.

  places: of image, class, four unused ones, height, width and box, None without one.
  """
  image, label, height, width, box_place = places[0], places[1], *places[6:]
  written, boxes = [], []
  for row in rows:
    text, *others = [row[place] if place is not None and place < len(row) else ''
                     for place in (box_place, image, label, height, width)]
    words = [word for word in re.split(r'[\s,;\[\]()]+', text) if word]
    values = text_numbers(words) if len(words) == 4 else None
    corners = ['', '', '', '']
    if values is not None:
      x, y, w, h = values
      boxes.append(values)
      corners = [repr(one) for one in (x, y, x + max(w, 0), y + max(h, 0))]  # negative sizes have no area
    elif words:
      corners = [text] * 4
    if label is None:
      others[1] = _ONE_CLASS * bool(words)
    written.append([*others[:2], *corners, *others[2:]] if any(row) else [])
  no_corners = sum(x >= w or y >= h for x, y, w, h in boxes)
  columns = tuple(range(6 if None in (height, width) else 8))
  certain = header >= _WHEAT or no_corners >= _NO_CORNERS * len(boxes)
  return [_Table(file, written, 2, columns, label is not None, certain)] if boxes else []


def _is_row(row: list[str]) -> bool:
  """Whether a row may be in keras-retinanet's format."""
  return len(row) == 6 and has_suffix(row[0].strip(), IMAGE_SUFFIXES) and (
    not any(row[1:]) or text_numbers(row[1:5]) is not None and bool(row[5].strip()))


def _by_image(folder: SourceFolder, table: _Table, reading: Reading) -> dict[str, list[_Row]]:
  """Return image -> rows of a table; rows of missing images, and without one, are counted."""
  found: dict[str, list[_Row]] = {}
  images: dict[str, str | None] = {}
  for line, row in enumerate(table.rows, start=table.first):
    if not any(row):
      continue
    name, label, *values = [row[place].strip() if place < len(row) else '' for place in table.columns]
    if name not in images:
      split = split_of(table.file)
      images[name] = (folder.find_image(name, of=table.file, split=split)
                      or folder.find_stem(name, of=table.file, split=split))
      if images[name] is None:
        reading.problems.add(NO_IMAGE, 1, f'{as_text(table.file)}, line {line}: {as_text(name)}')
    if images[name] is None:
      reading.leave_out(MISSING, f'{table.file}, line {line}')
    else:
      found.setdefault(images[name], []).append(_Row(line, label, tuple(values[:4]), tuple(values[4:])))
  return found


def _same(rows: list[_Row], others: list[_Row]) -> bool:
  return sorted(row[1:3] for row in rows) == sorted(row[1:3] for row in others)


def _images(folder: SourceFolder, entries: dict[str, tuple[str, list[_Row]]], beside: set[str],
            reading: Reading) -> Iterator[LabelledImage]:
  for image, (file, rows) in entries.items():
    instances = []
    for row in rows:
      where, corners = f'{file}, line {row.line}', text_numbers(row.box)
      if not row.name and not any(row.box):
        continue  # an image without objects
      if not row.name or not is_text(row.name):
        reading.leave_out(NO_CLASS, where)
      elif corners is None or corners[0] == corners[2] or corners[1] == corners[3]:
        reading.leave_out(NOT_FINITE if corners is None else NO_AREA, where)
      else:
        reading.leave_out(EXCHANGED, where, int(corners[0] > corners[2] or corners[1] > corners[3]), REPAIRED)
        instances.append({'category': row.name, **boxed(box(*corners))})
    size = text_numbers(rows[0].size)
    yield LabelledImage(image, output_name(image), split_of(file), instances,
                        (int(size[0]), int(size[1])) if size and min(size) >= 1 else None)
  count_unannotated(folder, entries, reading, NOT_NAMED, beside)
