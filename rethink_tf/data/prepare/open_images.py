"""Tables of Open Images, as FiftyOne and CVAT write them, too: a box a row, in fractions of the image.

Their columns are ImageID, LabelName, XMin, XMax, YMin, YMax and more; `IsGroupOf` marks a crowd. A class is a code
(/m/011k07), whose name is in a further table of two columns (class-descriptions-boxable.csv, classes.csv).
"""

from __future__ import annotations

import csv
import itertools
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from rethink_tf.data.categories import as_text, is_text, shorten
from rethink_tf.data.detection.voc_xml import EXCHANGED
from rethink_tf.data.prepare.layout import (
  AGAIN,
  MISSING,
  NO_AREA,
  NO_CLASS,
  NO_IMAGE,
  NOT_FINITE,
  NOT_NAMED,
  OF_AGAIN,
  LabelledImage,
  Options,
  Reading,
  chosen,
  count_unannotated,
  output_name,
)
from rethink_tf.data.prepare.shapes import boxed, text_numbers
from rethink_tf.data.prepare.source_folder import EXAMINED, SourceFolder, split_of
from rethink_tf.data.prepare.yolo import IN_PIXELS, LARGEST
from rethink_tf.data.problems import REPAIRED
from rethink_tf.errors import UserError, in_one_line

NAME, TITLE = 'open_images', "Open Images' tables"
NOT_DESCRIBED = 'of a class whose code has no name in the source'
NO_NAMES = ('classes are named by their codes ({example}): put class-descriptions-boxable.csv of Open Images into the '
            'source for their names')
CROWDS = '{count} boxes are around groups (IsGroupOf): crowds, which are not trained on'
_COLUMNS = ('imageid', 'labelname', 'xmin', 'xmax', 'ymin', 'ymax')
_CROWD = 'isgroupof'
_CODE = re.compile(r'/[a-z]/\w+')
_DESCRIPTIONS = re.compile(r'[\w-]*class-descriptions[\w-]*\.csv|classes\.csv', re.IGNORECASE)


class _Row(NamedTuple):
  """A row, with its fields as text."""

  line: int
  label: str
  box: tuple[str, ...]  # x0, x1, y0, y1
  crowd: bool


def recognize(folder: SourceFolder) -> str | None:
  """Return the tables of boxes if there are any."""
  files = _files(folder, folder.with_suffix('.csv')[:EXAMINED])
  return folder.describe(files) if files else None


def read(folder: SourceFolder, options: Options) -> Reading:
  """Read the boxes of the images that are in the source: the tables may be of many more."""
  files = chosen(folder, _files(folder, folder.with_suffix('.csv')), options, 'table of Open Images')
  reading = Reading(TITLE, iter(()), 0)
  entries: dict[str, tuple[str, list[_Row]]] = {}
  for file in files:
    _gather(folder, file, entries, reading)
  names = _names(folder)
  code = next((row.label for _, rows in entries.values() for row in rows if _CODE.fullmatch(row.label)), None)
  if not names and code is not None:
    reading.notes.append(NO_NAMES.format(example=code))
  reading.total = len(entries)
  reading.images = _images(folder, entries, names, reading)
  return reading


def _files(folder: SourceFolder, files: list[str]) -> list[str]:
  return [file for file in files if {*_COLUMNS} <= {*_header(folder, file)}]


def _first_line(folder: SourceFolder, file: str) -> str:
  return ''.join(folder.first_lines(file, 1)).split('\r', 1)[0]


def _header(folder: SourceFolder, file: str) -> list[str]:
  """Return the names of the columns in lower case; [] if the first line is none of a table."""
  try:
    return [word.strip().lower() for row in csv.reader([_first_line(folder, file)]) for word in row]
  except csv.Error:
    return []


def _table(folder: SourceFolder, file: str) -> Iterator[tuple[int, list[str]]]:
  """Yield number and fields of each line; raises UserError if it is no table."""
  rows = csv.reader(part for line in folder.lines(file) for part in line.rstrip('\r\n').split('\r'))
  try:
    for row in rows:
      yield rows.line_num, [field.strip() for field in row]
  except csv.Error as error:
    raise UserError(f'{folder.path(file)}: line {rows.line_num}: not a table (CSV): {in_one_line(error)}') from error


def _gather(folder: SourceFolder, file: str, entries: dict[str, tuple[str, list[_Row]]], reading: Reading) -> None:
  """Add the rows of a table by their images; count those of images that are missing, or that another table has."""
  header = _header(folder, file)
  places = [header.index(name) for name in _COLUMNS]
  crowd = header.index(_CROWD) if _CROWD in header else len(header)
  split, image, name = split_of(file), None, None
  missing: dict[str, str] = {}  # image -> its first row
  again: dict[str, str] = {}
  rows = Counter()
  for line, row in itertools.islice(_table(folder, file), 1, None):
    if not any(row):
      continue
    key, label, *values = [row[place] if place < len(row) else '' for place in places]
    if key != name:  # the rows of an image follow each other
      name, image = key, folder.find_stem(key, of=file, split=split) or folder.find_image(key, of=file, split=split)
    where = f'{file}, line {line}'
    if image is None:
      missing.setdefault(key, f'{where}: {shorten(key)}')
      rows[MISSING] += 1
    elif entries.setdefault(image, (file, []))[0] == file:
      is_crowd = crowd < len(row) and row[crowd].lower() in ('1', '1.0', 'true')
      entries[image][1].append(_Row(line, label, tuple(values), is_crowd))
    else:
      again.setdefault(image, f'{where}: {shorten(key)}')
      rows[OF_AGAIN] += 1
  for reason, of_rows, found in ((NO_IMAGE, MISSING, missing), (AGAIN, OF_AGAIN, again)):
    if found:
      example = next(iter(found.values()))
      reading.problems.add(reason, len(found), example)
      reading.leave_out(of_rows, example, rows[of_rows])


def _names(folder: SourceFolder) -> dict[str, str]:
  """Return {code: name} of all tables of classes; raises UserError if a code has several names."""
  names: dict[str, str] = {}
  for file in folder.with_suffix('.csv'):
    if not _DESCRIPTIONS.fullmatch(posixpath.basename(file)) and not re.fullmatch(
        rf'{_CODE.pattern},[^,]+', _first_line(folder, file)):
      continue
    for line, row in _table(folder, file):
      if len(row) == 2 and is_text(row[1]) and row[1] and names.setdefault(row[0], row[1]) != row[1]:
        raise UserError(f'{folder.path(file)}: line {line}: {as_text(row[0])} is {as_text(row[1])} and elsewhere '
                        f'{as_text(names[row[0]])}: remove all but one table of class names')
  return names


def _images(folder: SourceFolder, entries: dict[str, tuple[str, list[_Row]]], names: dict[str, str],
            reading: Reading) -> Iterator[LabelledImage]:
  crowds = 0
  for image, (file, rows) in entries.items():
    instances = [instance for row in rows
                 if (instance := _instance(row, names, f'{file}, line {row.line}', reading)) is not None]
    crowds += sum(one['iscrowd'] for one in instances)
    yield LabelledImage(image, output_name(image), split_of(posixpath.dirname(image)) or split_of(file), instances,
                        fractions=True)
  count_unannotated(folder, entries, reading, NOT_NAMED)
  if crowds:
    reading.notes.append(CROWDS.format(count=crowds))


def _instance(row: _Row, names: dict[str, str], where: str, reading: Reading) -> dict[str, Any] | None:
  values = text_numbers(row.box)
  if not row.label or not is_text(row.label):
    reading.leave_out(NO_CLASS, where)
  elif names and row.label not in names and _CODE.fullmatch(row.label):
    reading.leave_out(NOT_DESCRIBED, where)
  elif values is None:
    reading.leave_out(NOT_FINITE, where)
  elif max(map(abs, values)) > LARGEST:
    reading.leave_out(IN_PIXELS, where)
  elif values[0] == values[1] or values[2] == values[3]:
    reading.leave_out(NO_AREA, where)
  else:
    reading.leave_out(EXCHANGED, where, int(values[0] > values[1] or values[2] > values[3]), REPAIRED)
    (x0, x1), (y0, y1) = sorted(values[:2]), sorted(values[2:])
    return {'category': names.get(row.label, row.label), **boxed([x0, y0, x1 - x0, y1 - y0]), 'iscrowd': int(row.crowd)}
  return None
