"""JSON of the VGG Image Annotator (VIA) 1 and 2: projects and exported annotations."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator
from typing import Any

from rethink_tf.data.categories import as_text, is_text, shorten
from rethink_tf.data.prepare.labelme import WITHOUT_AREA, embedded, suffix_of
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
from rethink_tf.data.prepare.shapes import box, boxed, ellipse, numbers, outlined
from rethink_tf.data.prepare.source_folder import JsonShape, SourceFolder, split_of
from rethink_tf.errors import UserError

NAME, TITLE = 'via', "VIA's JSON"
OBJECT = 'object'  # the class, where regions have no attribute
_EXAMINED = 40
_BOXES = {'rect': ('x', 'y', 'width', 'height'), 'circle': ('cx', 'cy', 'r', 'r'), 'ellipse': ('cx', 'cy', 'rx', 'ry')}


def recognize(folder: SourceFolder) -> str | None:
  """Return the JSON files with regions."""
  files = _files(folder)
  return folder.describe(files) if files else None


def read(folder: SourceFolder, options: Options) -> Reading:
  """Read all files, one for each split, and find the attribute that holds the class."""
  files = _files(folder)
  if options.annotation_file:
    files = [file for file in files if file == options.annotation_file]
  splits = {file: split_of(file) for file in files}
  if not files or len(files) > 1 and len(set(splits.values()) - {None}) < len(files):
    raise UserError(f'{folder.root}: {folder.describe(files, 5) or "no file"}: several files of VIA need the names of '
                    'splits (train, val) or --annotation_file')
  entries = [(file, entry) for file in files for entry in _entries(folder.load_json(file))]
  key = _class_key(folder, entries, options)
  reading = Reading(TITLE, iter(()), len(entries), upright=True)
  if key is None:
    reading.notes.append(f'regions have no attribute: one class, {OBJECT!r}')
  reading.images = _images(folder, entries, splits, key, reading)
  return reading


def _files(folder: SourceFolder) -> list[str]:
  def is_via(shape: Any) -> bool:
    if not isinstance(shape, JsonShape):
      return False
    return '_via_img_metadata' in shape.keys or shape.first is not None and {'filename', 'regions'} <= set(
      shape.first.keys)
  return [file for file in folder.with_suffix('.json')[:_EXAMINED] if is_via(folder.json_shape(file))]


def _entries(content: dict[str, Any]) -> list[dict[str, Any]]:
  found = content.get('_via_img_metadata', content)
  return [entry for entry in (found.values() if isinstance(found, dict) else ()) if isinstance(entry, dict)]


def _regions(entry: dict[str, Any]) -> list[Any]:
  """Return the regions of an image: a list, in version 1 an object with the keys 0, 1, ..."""
  regions = entry.get('regions')
  return list(regions.values()) if isinstance(regions, dict) else regions if isinstance(regions, list) else []


def _class_key(folder: SourceFolder, entries: list[tuple[str, dict[str, Any]]], options: Options) -> str | None:
  """Return the attribute that holds the class; None if regions have none."""
  keys = Counter(key for _, entry in entries for region in _regions(entry) if isinstance(region, dict) and
                 isinstance(region.get('region_attributes'), dict) for key in region['region_attributes'])
  if options.class_key is not None and options.class_key not in keys:
    raise UserError(f'{folder.root}: --class_key = {options.class_key!r} is no attribute of its regions: '
                    f'{", ".join(map(as_text, sorted(keys))) or "they have none"}')
  if options.class_key is None and len(keys) > 1:
    raise UserError(f'{folder.root}: regions have the attributes {", ".join(map(as_text, sorted(keys)))}: name the one '
                    'that holds the class with --class_key')
  return options.class_key or next(iter(keys), None)


def _images(folder: SourceFolder, entries: list[tuple[str, dict[str, Any]]], splits: dict[str, str | None],
            key: str | None, reading: Reading) -> Iterator[LabelledImage]:
  used: set[str] = set()
  for file, entry in entries:
    where = f'{file}, {shorten(entry.get("filename"))}'
    image, data = folder.find_image(entry.get('filename'), of=file, split=splits[file]), None
    if image is None and is_text(entry.get('filename')):
      data = embedded(entry.get('base64_img_data'))
      stem = posixpath.splitext(posixpath.basename(entry['filename'].replace('\\', '/')))[0]
      image = f'{stem}{suffix_of(data)}' if data is not None else None
    if image is None or image in used:
      reading.problems.add(NO_IMAGE if image is None else 'image with a second entry', 1, where)
      continue
    used.add(image)
    instances = [instance for i, region in enumerate(_regions(entry))
                 if (instance := _instance(region, key, f'{where}, region {i}', reading)) is not None]
    yield LabelledImage(image, output_name(image), splits[file], instances, data=data)
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
  """Return the value of the attribute: of a checkbox, the only one that is ticked."""
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
  kind = shape.get('name')
  if kind == 'polygon':
    xs, ys = shape.get('all_points_x'), shape.get('all_points_y')
    values = numbers([value for pair in zip(xs, ys, strict=True) for value in pair]) if (
      isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys)) else None
    if values is None or len(values) < 6:
      reading.leave_out(NOT_FINITE if values is None else FEW_POINTS, where)
      return None
    return outlined([values])
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
