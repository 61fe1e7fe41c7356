"""JSON of the VGG Image Annotator (VIA) 1 and 2: projects and exported annotations."""

from __future__ import annotations

import math
import posixpath
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from rethink_tf.data.categories import as_text, is_text, shorten
from rethink_tf.data.prepare.labelme import WITHOUT_AREA, embedded, suffix_of
from rethink_tf.data.prepare.layout import (
  AGAIN,
  FEW_POINTS,
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
from rethink_tf.data.prepare.shapes import box, boxed, ellipse, numbers, outlined
from rethink_tf.data.prepare.source_folder import EXAMINED, JsonShape, SourceFolder, split_of
from rethink_tf.data.problems import REPAIRED
from rethink_tf.errors import UserError

NAME, TITLE = 'via', "VIA's JSON"
OBJECT = 'object'  # the class, where regions have no attribute
CLOSED = 'a polyline that ends where it begins (taken for an outline)'
REPEATED = '{count} images are in several of the {files} files of VIA, with the same regions: used once'
_GAP = 0.05  # between the ends of a closed polyline, of the diagonal of its box
_BOXES = {'rect': ('x', 'y', 'width', 'height'), 'circle': ('cx', 'cy', 'r', 'r'), 'ellipse': ('cx', 'cy', 'rx', 'ry')}


class _Entry(NamedTuple):
  """The entry of an image in a file."""

  file: str
  split: str | None
  content: dict[str, Any]
  image: str | None  # its file, None if it is missing
  data: bytes | None  # of an image within the annotation file


def recognize(folder: SourceFolder) -> str | None:
  """Return the JSON files with regions."""
  files = _files(folder, folder.with_suffix('.json')[:EXAMINED])
  return folder.describe(files) if files else None


def read(folder: SourceFolder, options: Options) -> Reading:
  """Read all files, and find the attribute that holds the class.

  A project and what was exported of it, or a copy of either, have the same images; files of different images are parts
  of one data set, as of several people, or one file an image.
  """
  files = chosen(folder, _files(folder, folder.with_suffix('.json')), options, 'JSON of VIA')
  files.sort(key=lambda file: split_of(file) is None)  # of the same entries, those that say the split
  entries = [_entry(folder, file, content) for file in files for content in _contents(folder.load_json(file))]
  key = _class_key(folder, entries, options)
  reading = Reading(TITLE, iter(()), len(entries), upright=True)
  if key is None:
    reading.notes.append(f'regions have no attribute: one class, {OBJECT!r}')
  distinct = _distinct(folder, entries)
  if len(distinct) < len(entries):
    reading.notes.append(REPEATED.format(count=len(entries) - len(distinct), files=len(files)))
  reading.images = _images(folder, distinct, key, reading)
  return reading


def _files(folder: SourceFolder, files: list[str]) -> list[str]:
  def is_via(shape: Any) -> bool:
    if not isinstance(shape, JsonShape):
      return False
    return '_via_img_metadata' in shape.keys or shape.first is not None and {'filename', 'regions'} <= set(
      shape.first.keys)
  return [file for file in files if is_via(folder.json_shape(file))]


def _entry(folder: SourceFolder, file: str, content: dict[str, Any]) -> _Entry:
  split, name = split_of(file), content.get('filename')
  image = folder.find_image(name, of=file, split=split)
  data = embedded(content.get('base64_img_data')) if image is None and is_text(name) else None
  if data is not None:
    image = posixpath.splitext(posixpath.basename(name.replace('\\', '/')))[0] + suffix_of(data)
  return _Entry(file, split, content, image, data)


def _distinct(folder: SourceFolder, entries: list[_Entry]) -> list[_Entry]:
  """Return the entries without those that other files repeat, or that hold nothing where another file has regions.

  Raises:
    UserError: two files have different regions of an image.
  """
  kept: dict[Any, _Entry] = {}
  for i, entry in enumerate(entries):
    name = entry.image or shorten(entry.content.get('filename'))
    key = name if entry.image and entry.data is None else (name, entry.split)  # no image file that tells them apart
    first = kept.get(key)
    if first is None or first.file == entry.file:
      kept[key if first is None else i] = entry  # twice in one file: counted as such
    elif not _regions(first.content):
      kept[key] = entry._replace(split=first.split)
    elif _regions(entry.content) and _regions(entry.content) != _regions(first.content):
      raise UserError(f'{folder.root}: {as_text(first.file)} and {as_text(entry.file)} have different regions of '
                      f'{as_text(name)}: name one of them with --annotation_file, or remove the other')
  return list(kept.values())


def _contents(content: dict[str, Any]) -> list[dict[str, Any]]:
  found = content.get('_via_img_metadata', content)
  return [entry for entry in (found.values() if isinstance(found, dict) else ()) if isinstance(entry, dict)]


def _regions(entry: dict[str, Any]) -> list[Any]:
  """Return the regions of an image: a list, in version 1 an object with the keys 0, 1, ..."""
  regions = entry.get('regions')
  return list(regions.values()) if isinstance(regions, dict) else regions if isinstance(regions, list) else []


def _class_key(folder: SourceFolder, entries: list[_Entry], options: Options) -> str | None:
  """Return the attribute that holds the class; None if regions have none."""
  keys = Counter(key for entry in entries for region in _regions(entry.content) if isinstance(region, dict) and
                 isinstance(region.get('region_attributes'), dict) for key in region['region_attributes'])
  if options.class_key is not None and options.class_key not in keys:
    raise UserError(f'{folder.root}: --class_key = {options.class_key!r} is not an attribute of its regions: '
                    f'{", ".join(map(as_text, sorted(keys))) or "they have none"}')
  if options.class_key is None and len(keys) > 1:
    raise UserError(f'{folder.root}: regions have the attributes {", ".join(map(as_text, sorted(keys)))}: name the one '
                    'that holds the class with --class_key')
  return options.class_key or next(iter(keys), None)


def _images(folder: SourceFolder, entries: list[_Entry], key: str | None, reading: Reading) -> Iterator[LabelledImage]:
  used: set[str] = set()
  for file, split, entry, image, data in entries:
    where = f'{file}, {shorten(entry.get("filename"))}'
    if image is None or image in used:
      reading.problems.add(NO_IMAGE if image is None else AGAIN, 1, where)
      continue
    used.add(image)
    instances = [instance for i, region in enumerate(_regions(entry))
                 if (instance := _instance(region, key, f'{where}, region {i}', reading)) is not None]
    yield LabelledImage(image, output_name(image), split, instances, data=data)
  count_unannotated(folder, used, reading, NOT_NAMED)


def _instance(region: Any, key: str | None, where: str, reading: Reading) -> dict[str, Any] | None:
  shape = region.get('shape_attributes') if isinstance(region, dict) else None
  if not isinstance(shape, dict):
    reading.leave_out(NOT_FINITE, where)
    return None
  name = _class(region, key)
  if name is None:
    reading.leave_out(NO_CLASS, where)
    return None
  fields = _fields(shape, where, reading)
  return None if fields is None else {'category': name, **fields}


def _class(region: dict[str, Any], key: str | None) -> str | None:
  """Return the value of the class attribute; for checkboxes, the only one that is ticked."""
  if key is None:
    return OBJECT
  attributes = region.get('region_attributes')
  value = attributes.get(key) if isinstance(attributes, dict) else None
  if isinstance(value, dict):
    ticked = [name for name, on in value.items() if on]
    value = ticked[0] if len(ticked) == 1 else None
  value = str(value) if type(value) is int else value
  return value.strip() if is_text(value) and value.strip() else None


def _fields(shape: dict[str, Any], where: str, reading: Reading) -> dict[str, Any] | None:
  """Return box and outline of a region; None if it is left out."""
  kind = shape.get('name')
  if kind in ('polygon', 'polyline'):
    return _outline(shape, kind == 'polygon', where, reading)
  if not isinstance(kind, str) or kind not in _BOXES:
    reading.leave_out(f'{WITHOUT_AREA} ({shorten(kind)})', where)
    return None
  values = numbers([shape.get(field) for field in _BOXES[kind]])
  angle = numbers([shape.get('theta') or 0])
  if values is None or angle is None or min(values[2:]) <= 0:
    reading.leave_out(NOT_FINITE if values is None or angle is None else NO_AREA, where)
    return None
  x, y, a, b = values
  return boxed(box(x, y, x + a, y + b)) if kind == 'rect' else outlined([ellipse(x, y, a, b, angle[0])])


def _outline(shape: dict[str, Any], is_polygon: bool, where: str, reading: Reading) -> dict[str, Any] | None:
  """Return box and outline of a polygon, or of a polyline whose ends almost meet."""
  xs, ys = shape.get('all_points_x'), shape.get('all_points_y')
  values = None
  if isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys):
    values = numbers([value for pair in zip(xs, ys, strict=True) for value in pair])
  if values is None or len(values) < 6:
    reading.leave_out(NOT_FINITE if values is None else FEW_POINTS, where)
    return None
  found = outlined([values])
  if not is_polygon:
    if math.dist(values[:2], values[-2:]) > _GAP * math.hypot(*found['bbox'][2:]):
      reading.leave_out(f'{WITHOUT_AREA} ({shorten(shape.get("name"))})', where)
      return None
    reading.leave_out(CLOSED, where, outcome=REPAIRED)
  return found
