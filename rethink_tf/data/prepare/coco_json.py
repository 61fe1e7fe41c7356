"""COCO json in the folders of Roboflow (train/_annotations.coco.json beside images), CVAT (annotations/ and images/),
Label Studio (result.json and images/), or one file beside or above its images.
"""

from __future__ import annotations

import json
import posixpath
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from rethink_tf.data.categories import parse_categories, shorten, warn_of_names
from rethink_tf.data.detection.annotation_reader import rotation
from rethink_tf.data.detection.segmentation import ROTATED, in_coco_format, turned_box
from rethink_tf.data.json_files import load_json
from rethink_tf.data.prepare.layout import (
  MISSING,
  NO_CLASS,
  NO_IMAGE,
  NOT_FINITE,
  NOT_NAMED,
  LabelledImage,
  Options,
  Reading,
  count_unannotated,
  output_name,
  refuse_several,
)
from rethink_tf.data.prepare.shapes import MAX_COORDINATE, box, numbers
from rethink_tf.data.prepare.source_folder import JsonShape, SourceFolder, is_below, split_of
from rethink_tf.data.problems import REPAIRED
from rethink_tf.errors import UserError

ROBOFLOW = '_annotations.coco.json'
NAME, TITLE = 'coco', 'COCO json'
BRUSHED = 'a mask with iscrowd = 1, as CVAT writes every mask that is drawn with its brush (taken for an object)'
NOT_LISTED = 'of an image that is not listed'
UNKNOWN_CATEGORY = 'of an unknown category'
BAD_OUTLINE = 'with a malformed segmentation (its box is used)'
AGAIN = 'image listed a second time'
TWICE = 'of an image that is listed a second time'
_FIELDS = {'images', 'annotations', 'categories'}
_OTHER_TASKS = ('person_keypoints', 'captions', 'panoptic', 'stuff', 'image_info')
_EXAMINED = 60  # JSON files whose contents are looked at
_SAMPLED = 200  # images by which their folder is found
_KEPT = ('id', 'bbox', 'area', 'iscrowd', 'ignore', 'keypoints', 'num_keypoints', 'box_mask', 'without_mask')


class _File(NamedTuple):
  """The content of one annotation file."""

  name: str
  split: str | None
  images: list[Any]
  annotations: dict[Any, list[bytes]]  # image id -> JSON objects
  keys: dict[int, int]  # category id in this file -> key of the reading
  folder: str  # of its images
  unassigned: list[Any]  # entries of "annotations" without an image or a category


def annotation_files(folder: SourceFolder) -> list[str]:
  """Return the COCO json files of a folder; those of other tasks only if there is no other one."""
  files = sorted(folder.with_suffix('.json'), key=lambda file: (
    posixpath.basename(file) != ROBOFLOW, 'instances' not in file, 'annotation' not in file, file.count('/'), file))
  found = [file for file in files[:_EXAMINED]
           if isinstance(shape := folder.json_shape(file), JsonShape) and set(shape.keys) >= _FIELDS]
  return sorted(file for file in found if not posixpath.basename(file).startswith(_OTHER_TASKS)) or sorted(found)


def recognize(folder: SourceFolder) -> str | None:
  """Return the annotation files if the folder has any."""
  files = annotation_files(folder)
  roboflow = [file for file in files if posixpath.basename(file) == ROBOFLOW]
  exports = sorted({posixpath.dirname(posixpath.dirname(file)) or '.' for file in roboflow})
  if len(exports) > 1:
    return f'{len(exports)} Roboflow exports: {folder.describe(exports)}'
  return f"{'Roboflow export: ' if roboflow else ''}{folder.describe(roboflow or files)}" if files else None


def read(folder: SourceFolder, options: Options) -> Reading:
  """Read all annotation files; categories of different files are matched by id and name, or by name."""
  files = annotation_files(folder)
  if options.annotation_file:
    if options.annotation_file not in folder:
      raise UserError(f'{folder.path(options.annotation_file)}: no such file: --annotation_file is relative to the '
                      'source')
    files = [options.annotation_file]
  else:  # an export has a folder for each split
    refuse_several(folder, [posixpath.dirname(file) for file in files if posixpath.basename(file) == ROBOFLOW],
                   'exports of Roboflow', nested=True)
  by_split = defaultdict(list)
  for file in files:
    by_split[split_of(file)].append(file)
  for split, several in by_split.items():
    if len(several) > 1 or split is None and len(by_split) > 1:
      raise UserError(f'{folder.root}: {folder.describe(files, 5)} are several COCO json files '
                      f'{"of one split" if split else "without the name of a split"}: name one with --annotation_file')
  categories: dict[int, dict[str, Any]] = {}
  contents = [_load(folder, file, categories) for file in files]
  reading = Reading(TITLE, iter(()), sum(len(content.images) for content in contents), categories)
  if not reading.total:
    raise UserError(f'{folder.root}: {folder.describe(files)}: "images" is empty')
  reading.superfluous = superfluous(categories.values())
  reading.images = _images(folder, contents, reading, options)
  return reading


def superfluous(categories: Any) -> set[int]:
  """Return the ids of Roboflow's project categories: without a parent, but parents of others."""
  above = {name for entry in categories if isinstance(name := entry.get('supercategory'), str)}
  return {entry['id'] for entry in categories if entry['id'] == 0 and entry.get('supercategory') == 'none' and
          entry['name'] in above}


def _load(folder: SourceFolder, file: str, categories: dict[int, dict[str, Any]]) -> _File:
  path, annotations, used = folder.path(file), defaultdict(list), set()

  def store(entry: dict[str, Any]) -> Any:
    if 'image_id' in entry and 'category_id' in entry:
      key = entry['image_id']
      used.add(entry['category_id'] if isinstance(entry['category_id'], int) else None)
      annotations[key if isinstance(key, int) else shorten(key)].append(json.dumps(entry).encode())
      return None
    return entry

  content = load_json(path, store)
  for name in ('images', 'annotations', 'categories'):
    if not isinstance(content, dict) or not isinstance(content.get(name), list):
      raise UserError(f'{path}: "{name}" should be a list of COCO json')
  if content['annotations'] and all(isinstance(entry, dict) and 'segments_info' in entry
                                    for entry in content['annotations']):
    raise UserError(f'{path}: is of panoptic segmentation, which is not read: use the instances_*.json beside it, or '
                    'export the instances as COCO json')
  parsed = parse_categories(content['categories'], path, quiet=True)
  dropped = superfluous(content['categories']) - used
  warn_of_names([category for category in parsed if category.id not in dropped], path)
  keys = _match(parsed, content['categories'], categories)
  ids: set[int] = set()
  for i, entry in enumerate(content['images']):
    if not isinstance(entry, dict) or type(entry.get('id')) is not int:
      raise UserError(f'{path}: images[{i}] should be an object with an integer id, is {shorten(entry)}')
    if entry['id'] in ids:
      raise UserError(f'{path}: image id {entry["id"]} is used by more than one image: renumber them')
    ids.add(entry['id'])
  return _File(file, split_of(file), content['images'], annotations, keys,
               _image_folder(folder, file, content['images']),
               [entry for entry in content['annotations'] if entry is not None])


def _match(parsed: Any, entries: list[dict[str, Any]], categories: dict[int, dict[str, Any]]) -> dict[int, int]:
  """Add the categories of a file to those of earlier files; return {id in the file: key}."""
  raw = {entry['id']: entry for entry in entries}
  named = defaultdict(list)
  for id_, entry in categories.items():
    named[entry['name']].append(id_)
  keys = {}
  for category in parsed:
    if categories.get(category.id, {}).get('name') == category.name:
      keys[category.id] = category.id
    elif len(named[category.name]) == 1:
      keys[category.id] = named[category.name][0]
    else:
      keys[category.id] = category.id if category.id not in categories else max(categories) + 1
      categories[keys[category.id]] = {
        **{field: raw[category.id][field] for field in ('supercategory', 'keypoints', 'skeleton', 'keypoint_pairs')
           if raw[category.id].get(field) is not None}, 'id': keys[category.id], 'name': category.name}
  return keys


def _image_folder(folder: SourceFolder, file: str, images: list[Any]) -> str:
  """Return the folder of a file's images: the one below which most of the first ones are found."""
  own = posixpath.dirname(file)
  if posixpath.basename(file) == ROBOFLOW:
    return own
  above, split = posixpath.dirname(own), posixpath.splitext(posixpath.basename(file))[0].rpartition('_')[2]
  candidates = [posixpath.normpath(posixpath.join(*parts)) for base in (own, above) for parts in (
    (base, 'images', split), (base, split), (base, 'images'), (base,))]
  candidates = ['' if candidate == '.' else candidate for candidate in dict.fromkeys(candidates)]

  def found(candidate: str) -> int:
    return sum(posixpath.normpath(posixpath.join(candidate, str(_name(entry)).replace('\\', '/'))) in folder
               for entry in images[:_SAMPLED])
  best = max(candidates, key=found)
  return best if found(best) else ''


def _images(folder: SourceFolder, contents: list[_File], reading: Reading,
            options: Options) -> Iterator[LabelledImage]:
  named: set[str] = set()
  for content in contents:
    used: set[str] = set()
    for entry in content.images:
      stored = content.annotations.pop(entry['id'], [])
      name = _name(entry)
      file = _find(folder, content, name)
      where = shorten(name)
      if file is None or file in used:
        reading.problems.add(AGAIN if file else NO_IMAGE, 1, where)
        reading.leave_out(TWICE if file else MISSING, where, len(stored))
        continue
      used.add(file)
      instances = [instance for text in stored
                   if (instance := _instance(json.loads(text), content.keys, file, reading, options)) is not None]
      size = numbers([entry.get('height'), entry.get('width')])
      yield LabelledImage(file, output_name(posixpath.relpath(file, content.folder or '.')), content.split,
                          instances, (int(size[0]), int(size[1])) if size and min(size) > 0 else None, id=entry['id'])
    for entry in content.unassigned:
      fields = entry if isinstance(entry, dict) else {}
      reading.leave_out(NO_CLASS if 'image_id' in fields else NOT_LISTED,
                        f'{content.name}, annotation {shorten(fields.get("id", entry))}')
    for key, left in content.annotations.items():
      reading.leave_out(NOT_LISTED, f'{content.name}, image_id {key}', len(left))
    named |= used
  count_unannotated(folder, named, reading, NOT_NAMED)


def _name(entry: dict[str, Any]) -> Any:
  """Return the file name of an image; LVIS only has its address."""
  return entry.get('file_name') or entry.get('coco_url')


def _find(folder: SourceFolder, content: _File, name: Any) -> str | None:
  if not isinstance(name, str):
    return None
  exact = posixpath.normpath(posixpath.join(content.folder, name.replace('\\', '/')))
  if exact in folder and is_below(exact, content.folder):
    return exact
  return folder.find_image(name, content.folder, content.name, content.split)


def _instance(entry: dict[str, Any], keys: dict[int, int], file: str, reading: Reading,
              options: Options) -> dict[str, Any] | None:
  """Return the fields of an annotation that are kept, repaired where they can be; None if it is left out."""
  where = f'{file}, annotation {shorten(entry.get("id"))}'
  category = entry['category_id']
  if not isinstance(category, int) or category not in keys:
    reading.leave_out(UNKNOWN_CATEGORY, where)
    return None
  instance = {field: entry[field] for field in _KEPT if entry.get(field) is not None}
  instance['category'] = keys[category]
  segmentation = _segmentation(entry.get('segmentation'), where, reading)
  instance['segmentation'] = segmentation or []
  bbox = numbers(entry['bbox']) if isinstance(entry.get('bbox'), list) else None
  if bbox is None or len(bbox) != 4:
    instance.pop('bbox', None)
    if not segmentation:
      reading.leave_out(NOT_FINITE, where)
      return None
  elif not segmentation and (degrees := rotation(entry)):
    x, y, width, height = turned_box(*bbox, degrees)
    instance['bbox'] = box(x, y, x + width, y + height)
    reading.leave_out(ROTATED, where, outcome=REPAIRED)
  for field, largest in (('area', MAX_COORDINATE ** 2), ('iscrowd', MAX_COORDINATE)):
    if field in instance and numbers([instance[field]], largest) is None:
      del instance[field]
  if instance.get('iscrowd') and isinstance(segmentation, dict) and options.crowds != 'keep':
    attributes = entry.get('attributes')
    if options.crowds == 'objects' or isinstance(attributes, dict) and 'occluded' in attributes:
      instance['iscrowd'] = 0
      reading.leave_out(BRUSHED, where, outcome=REPAIRED)
  return instance


def _segmentation(value: Any, where: str, reading: Reading) -> Any:
  """Return polygons or run lengths; None without usable ones."""
  try:
    found = in_coco_format(value)
    if isinstance(found, dict):
      size, counts = found.get('size'), found.get('counts')
      if isinstance(counts, bytes):
        found = found | {'counts': counts.decode()}
      if not isinstance(size, list) or numbers(size) is None or not isinstance(counts, str | bytes | list):
        raise ValueError
      return {'size': found['size'], 'counts': found['counts']}
    if found is None:
      return None
    polygons = [polygon for polygon in found if isinstance(polygon, list) and len(polygon) >= 6 and
                len(polygon) % 2 == 0 and numbers(polygon) is not None]
  except (ValueError, TypeError, KeyError, IndexError):
    reading.leave_out(BAD_OUTLINE, where, outcome=REPAIRED)
    return None
  if len(polygons) < len(found):
    reading.leave_out(BAD_OUTLINE if not polygons else 'with an outline that is malformed or has fewer than three '
                      'points (its other ones are used)', where, outcome=REPAIRED)
  return polygons or None
