"""Labelbox's export (version 2): NDJSON, a data row a line, or the same as a JSON list.

A row has the labels of its image by project. Masks are addresses, which only the account can read.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

from rethink_tf.data.categories import as_text, is_text, shorten
from rethink_tf.data.prepare import json_lines
from rethink_tf.data.prepare.labelme import WITHOUT_AREA
from rethink_tf.data.prepare.layout import (
  FEW_POINTS,
  NO_CLASS,
  NOT_FINITE,
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
from rethink_tf.data.prepare.shapes import flat_pairs, numbers, outlined
from rethink_tf.data.prepare.source_folder import EXAMINED, IMAGE_SUFFIXES, SourceFolder, has_suffix, split_of
from rethink_tf.data.problems import REPAIRED
from rethink_tf.errors import UserError

NAME, TITLE = 'labelbox', "Labelbox's NDJSON"
NOT_A_ROW = 'line that is not valid JSON, or no data row'
NO_LABEL = 'image without a label of the project (not annotated yet, or skipped)'
SEVERAL = 'image with several labels of the project (the first one is used)'
MASK = 'mask that is an address (draw polygons, or export the masks as files)'
_SUFFIXES = ('.ndjson', '.jsonl', '.json')
_KEYS = {'data_row', 'projects'}
_NAMES = ('external_id', 'global_key', 'row_data', 'id')  # of a data row, for messages


def recognize(folder: SourceFolder) -> str | None:
  """Return the files of data rows with projects."""
  files = _files(folder, folder.with_suffix(*_SUFFIXES)[:EXAMINED])
  return folder.describe(files) if files else None


def read(folder: SourceFolder, options: Options) -> Reading:
  """Read all files, which are the splits of one data set, or parts of it; rows are read one at a time."""
  files = chosen(folder, _files(folder, folder.with_suffix(*_SUFFIXES)), options, 'export of Labelbox')
  reading = Reading(TITLE, iter(()), 0)
  projects: dict[str, str] = {}
  for file in files:
    for _, row in _rows(folder, file):
      reading.total += 1
      projects |= {key: _title(key, project) for key, project in _projects(row).items() if _labels(project)}
  project = _choose(folder, projects, options)
  reading.images = _images(folder, files, project, reading)
  return reading


def _files(folder: SourceFolder, files: list[str]) -> list[str]:
  return [file for file in files if _KEYS <= {*json_lines.first(folder, file)} or _is_json(folder, file)]


def _is_json(folder: SourceFolder, file: str) -> bool:
  """Whether a file is one JSON value: a row or a list of rows."""
  if not file.lower().endswith('.json'):
    return False
  shape = folder.json_shape(file)
  shape = next(iter(shape), None) if isinstance(shape, list) else shape
  return shape is not None and _KEYS <= {*shape.keys}


def _rows(folder: SourceFolder, file: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yield (place, row); {} for what is no object."""
  if not _is_json(folder, file):
    yield from json_lines.objects(folder, file)
    return
  content = folder.load_json(file)
  for i, row in enumerate(content if isinstance(content, list) else [content]):
    yield f'{file}[{i}]', row if isinstance(row, dict) else {}


def _projects(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
  projects = row.get('projects')
  return {key: one for key, one in projects.items() if isinstance(one, dict)} if isinstance(projects, dict) else {}


def _title(key: str, project: dict[str, Any]) -> str:
  return project['name'] if is_text(project.get('name')) else key


def _labels(project: dict[str, Any]) -> list[list[Any]]:
  """Return the objects of each label of an image that nobody has skipped."""
  found = []
  for label in project['labels'] if isinstance(project.get('labels'), list) else ():
    label = label if isinstance(label, dict) else {}
    annotations, details = label.get('annotations'), label.get('performance_details')
    objects = annotations.get('objects') if isinstance(annotations, dict) else None
    if isinstance(objects, list) and not (isinstance(details, dict) and details.get('skipped') is True):
      found.append(objects)
  return found


def _choose(folder: SourceFolder, projects: dict[str, str], options: Options) -> str:
  """Return the project to read: the one whose id or name the options give, or the only one.

  projects: id -> name, of those that have labels.

  Raises:
    UserError: there is none, or there are several.
  """
  listed = ', '.join(sorted(f'{as_text(name)} ({as_text(key)})' for key, name in projects.items()))
  found = [key for key, name in projects.items() if options.class_key in (None, key, name)]
  if not projects:
    raise UserError(f'{folder.root}: no data row of Labelbox has a label with objects: export with labels, of a '
                    'project of images')
  if not found:
    raise UserError(f'{folder.root}: --class_key = {options.class_key!r} is no project with labels: {listed}')
  if len(found) > 1:
    raise UserError(f'{folder.root}: has labels of the projects {listed}: name the one to read with --class_key')
  return found[0]


def _images(folder: SourceFolder, files: list[str], project: str, reading: Reading) -> Iterator[LabelledImage]:
  used: set[str] = set()
  left: set[str] = set()
  for file, where, row in ((one, *row) for one in files for row in _rows(folder, one)):
    data = row.get('data_row')
    if not isinstance(data, dict) or not any(is_text(data.get(name)) for name in _NAMES):
      reading.problems.add(NOT_A_ROW, 1, where)
      continue
    image = _image(folder, file, data)
    where = f'{where}, {shorten(next(data[name] for name in _NAMES if is_text(data.get(name))))}'
    labels = _labels(_projects(row).get(project, {}))
    if not labels:
      reading.problems.add(NO_LABEL, 1, where)
      left.add(image or '')
    elif claim(image, used, reading, where, len(labels[0])):
      if len(labels) > 1:
        reading.problems.add(SEVERAL, 1, where, REPAIRED)
      media = row['media_attributes'] if isinstance(row.get('media_attributes'), dict) else {}
      instances = [instance for i, one in enumerate(labels[0]) if (
        instance := _instance(one if isinstance(one, dict) else {}, f'{where}, objects[{i}]', reading)) is not None]
      yield LabelledImage(image, output_name(image), split_of(posixpath.dirname(image)) or split_of(file), instances,
                          image_size(media.get('height'), media.get('width')))
  count_unannotated(folder, used | left, reading, NOT_NAMED)


def _image(folder: SourceFolder, file: str, data: dict[str, Any]) -> str | None:
  """Return the image that a data row names, with or without suffix; its address counts if no other name is a file's."""
  given, address, key = ([data[name] for name in names if is_text(data.get(name))]
                         for names in (('external_id', 'global_key'), ('row_data',), ('id',)))
  if not any(has_suffix(name, IMAGE_SUFFIXES) for name in given):
    given += address
  found = [*(folder.find_image(name, of=file) for name in given),
           *(folder.find_stem(name, of=file) for name in given + key)]
  return next((image for image in found if image is not None), None)


def _instance(one: dict[str, Any], where: str, reading: Reading) -> dict[str, Any] | None:
  name = one.get('name')
  if 'mask' in one or 'composite_mask' in one:
    reading.leave_out(MASK, where)
  elif not is_text(name) or not name.strip():
    reading.leave_out(NO_CLASS, where)
  elif (fields := _fields(one, where, reading)) is not None:
    return {'category': name.strip(), **fields}
  return None


def _fields(one: dict[str, Any], where: str, reading: Reading) -> dict[str, Any] | None:
  """Return box and outline of an object; None if it is left out."""
  if 'polygon' in one:
    points = flat_pairs(one['polygon'])
    if points is not None and len(points) >= 6:
      return outlined([points])
    reading.leave_out(NOT_FINITE if points is None else FEW_POINTS, where)
  elif 'bounding_box' in one:
    shape = one['bounding_box'] if isinstance(one['bounding_box'], dict) else {}
    return sized(numbers([shape.get(key) for key in ('left', 'top', 'width', 'height')]), where, reading)
  else:
    reading.leave_out(WITHOUT_AREA, where)
  return None
