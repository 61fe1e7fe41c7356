"""Images with annotations in COCO's json format, in the standard folder layout or any other."""

import os
import posixpath
import re
from collections.abc import Collection, Sequence
from typing import Any

import gin
import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.data import in_place
from rethink_tf.data.categories import (
  Category,
  is_text,
  parse_categories,
  shorten,
  without_keypoints,
)
from rethink_tf.data.detection.annotation_reader import KEYPOINTS_ELSEWHERE, NO_ID, AnnotationReader, FieldError
from rethink_tf.data.detection.annotations import AnnotatedImages, Annotations, refuse_fractions
from rethink_tf.data.folders import check_one_path, find_files
from rethink_tf.data.image_notes import ImageNotes
from rethink_tf.data.images import MAX_PIXELS, decode, read_file
from rethink_tf.data.json_files import load_json
from rethink_tf.data.keypoint_pairs import with_pairs
from rethink_tf.data.prepare import recognition
from rethink_tf.data.prepare.coco_json import ROBOFLOW
from rethink_tf.data.subset import select
from rethink_tf.errors import UserError
from rethink_tf.structures import Example, LeftOut

_STORED = object()  # replaces, in the parsed json, an annotation that is already stored in the columns


@gin.register('coco')
class CocoSource(AnnotatedImages):
  """A split of COCO (section 4), or of any data set with the same json.

  Attributes:
    name: data set and split, for messages.
    categories: class k of 1..K is categories[k - 1].
    num_classes, num_keypoints: K, and P (0 without keypoints).
    image_ids: int64 [N], ascending; sizes: int32 [N, 2] height, width; file_names: [N].
    num_instances: int32 [N] usable boxes: not crowds, with positive area.
    num_visible: int32 [N] labelled keypoints of these.
    problems: annotations of the whole file that were repaired, left out or look wrong.
    notes: what is unusual about the image files read so far.
    left_out: images that are not among the N, since their file is missing; missing: the names of these files.
    has_masks: whether any usable object of the file has a mask.
  """

  def __init__(self, data_dir: str, split: str = 'train2017', annotation_file: str | None = None,
               image_dir: str | None = None, keypoints: bool = False, keypoints_file: str | None = None,
               fraction: float = 1.0, num_images: int | None = None, subset_seed: int = 0,
               training: bool = False, max_pixels: int = MAX_PIXELS,
               keypoint_pairs: Sequence[tuple[str, str]] = (), filter_empty: bool = True) -> None:
    """Read the annotation file; images are read by `load`.

    Args:
      data_dir: folder of the data set, local or gs://; the other paths may be relative to it.
      split: determines the defaults of the following paths.
      annotation_file: default annotations/instances_<split>.json, or Roboflow's <split>/_annotations.coco.json.
      image_dir: default <split>, or the folder of Roboflow's file.
      keypoints: load keypoints too.
      keypoints_file: file with the keypoints; by default the annotation file if its categories have keypoints, else
        annotations/person_keypoints_<split>.json. Matched by annotation id, image and name of the category.
      fraction, num_images, subset_seed: a seeded, nested subset, see `subset.subset`.
      training: drop images without a usable box or, with `keypoints`, without a visible keypoint.
      max_pixels: limit of height x width of an image in the annotation file.
      filter_empty: False trains on images without a usable box or visible keypoint too: all of them is background.
      keypoint_pairs: names of keypoints that a horizontal flip exchanges, where 'left' and 'right' do not show it.

    Raises:
      UserError: files are missing, or are not COCO json; the message names the file, field and index.
    """
    for name, value in (('data_dir', data_dir), ('split', split), ('annotation_file', annotation_file),
                        ('image_dir', image_dir), ('keypoints_file', keypoints_file)):
      check_one_path(f'coco.{name}', value)
    data_dir = os.path.expanduser(data_dir)
    file, beside = _locate(data_dir, annotation_file, split)
    self.name = f'{os.path.basename(os.path.normpath(data_dir))}/{split}'
    self.notes = ImageNotes(self.name)
    images, reader, self.categories = _read_annotation_file(file, keypoints, data_dir, beside is not None)
    if not keypoints:
      self.categories = without_keypoints(self.categories)
    elif keypoints_file or not any(category.keypoints for category in self.categories):
      keypoints_file = _keypoints_path(file, data_dir, keypoints_file, split)
      self.categories = _merge_keypoints(reader, self.categories, keypoints_file)
    self.categories = with_pairs(self.categories, keypoint_pairs, 'coco.keypoint_pairs')
    image_ids, sizes, file_names = _parse_images(images, file, max_pixels)
    self._max_pixels = max_pixels
    self._table = Annotations(reader, image_ids, sizes, self.categories, file_names)
    refuse_fractions(file, self.problems, len(reader))
    self.num_classes, self.num_keypoints = len(self.categories), self._table.num_keypoints
    self.has_masks = self._table.has_masks

    positions = select(file, image_ids, self._table.num_usable, training, fraction, num_images, subset_seed,
                       self._table.num_visible if keypoints else None, filter_empty)
    self._folder = _join(data_dir, image_dir or beside or split)
    names = [file_names[i] for i in positions]
    found = find_files(self._folder, names)
    self.left_out = _describe_missing(self._folder, names, found)
    self.missing = [name for name, file in zip(names, found, strict=True) if file is None]
    self._positions = positions = positions[[file is not None for file in found]]
    self.image_ids, self.sizes = image_ids[positions], sizes[positions]
    self.file_names = [file for file in found if file is not None]
    self.num_instances, self.num_visible = self._table.num_usable[positions], self._table.num_visible[positions]
    if training:
      self._table.warn_of_unused_classes(self.name, positions)
    logging.info('%s: %d images, %d instances, %d classes', self.name, len(positions), self.num_instances.sum(),
                 self.num_classes)

  def load(self, i: int) -> Example:
    """Return image i with its usable annotations.

    Raises:
      ImageError: the file is missing, damaged or of another size than annotated.
    """
    image = decode(self.read(i), self.file_names[i], tuple(self.sizes[i].tolist()), self._max_pixels,
                   self.notes)
    return self.example(i, image)

  def example(self, i: int, image: np.ndarray) -> Example:
    """Return the Example of image i, given its pixels."""
    return self._table.example(self._positions[i], image)

  def path(self, i: int) -> str:
    """Return the path of the file of image i."""
    # Not _join: a name from the json is not a path given by the user, so that "~" is not expanded.
    return os.path.join(self._folder, self.file_names[i])

  def read(self, i: int) -> bytes:
    """Return the bytes of the file of image i; raises ImageError if it cannot be read."""
    return read_file(self.path(i), self.file_names[i])

  def image_annotations(self, i: int) -> list[dict[str, Any]]:
    """Return the annotations of image i, crowds included, as COCO json objects."""
    return self._table.to_json(self._positions[i])


def _join(folder: str, name: str) -> str:
  return name if '://' in name else os.path.join(folder, os.path.expanduser(name))


def _locate(data_dir: str, annotation_file: str | None, split: str) -> tuple[str, str | None]:
  """Return the annotation file, and the folder of its images if it stands beside them, as in Roboflow's export.

  There the split 'val' is in valid/, or in test/ if there is no valid/.
  """
  file = _join(data_dir, annotation_file or f'annotations/instances_{split}.json')
  if annotation_file is None and not tf.io.gfile.exists(file):
    for folder in ('valid', 'val', 'test') if split == 'val' else (split,):
      exported = _join(data_dir, f'{folder}/{ROBOFLOW}')
      if tf.io.gfile.exists(exported):
        logging.info('%s: read as it is, for the split %s', exported, split)
        return exported, folder
  return file, None


def _without_project(categories: tuple[Category, ...], reader: AnnotationReader, file: str) -> tuple[Category, ...]:
  """Return the categories without the one that Roboflow adds for the project, if no annotation has it."""
  if categories[0].id or len(categories) == 1 or 0 in reader.category_ids:
    return categories
  logging.info('%s: category 0 (%r), which Roboflow adds for the project, has no objects and is left out', file,
               categories[0].name)
  return categories[1:]


def _read_annotation_file(file: str, keypoints: bool, data_dir: str,
                          exported: bool) -> tuple[list[Any], AnnotationReader, tuple[Category, ...]]:
  """Return the image entries, the annotations as columns, and the categories. exported: by Roboflow."""
  if not tf.io.gfile.exists(file):
    raise UserError(_explain_missing(file, data_dir))
  reader = AnnotationReader(keypoints)

  def store(entry: dict[str, Any]) -> Any:
    # Annotations are stored in columns while the json is parsed: as Python objects, COCO's take 4 GB.
    if 'image_id' not in entry or 'category_id' not in entry:
      return entry
    row = len(reader)
    try:
      reader.add(entry)
    except FieldError as error:
      raise UserError(f'{file}: annotations[{row}].{error}') from None
    return _STORED

  content = load_json(file, store)
  if not isinstance(content, dict):
    raise UserError(f'{file}: should contain an object with the lists "images", "annotations" and "categories", '
                    f'contains {shorten(content) if content is not _STORED else "an annotation"}')
  for field in ('images', 'annotations', 'categories'):
    if not isinstance(content.get(field), list):
      raise UserError(f'{file}: "{field}" should be a list, is {shorten(content.get(field))}')
  for i, entry in enumerate(content['annotations']):
    if entry is not _STORED:
      raise UserError(f'{file}: annotations[{i}] should be an object with image_id, category_id and bbox, '
                      f'is {shorten(entry)}')
  if len(content['annotations']) != len(reader):
    raise UserError(f'{file}: {len(reader) - len(content["annotations"])} annotations are outside the list '
                    '"annotations"')
  categories = parse_categories(content['categories'], file)
  return content['images'], reader, _without_project(categories, reader, file) if exported else categories


def _keypoints_path(file: str, data_dir: str, given: str | None, split: str) -> str:
  """Return the path of the file with the keypoints of an annotation file that has none."""
  path = _join(data_dir, given or f'annotations/person_keypoints_{split}.json')
  if not given and not tf.io.gfile.exists(path):
    raise UserError(f'{file}: no category has keypoints, and there is no {path} with them: name one with '
                    'train/coco.keypoints_file and eval/coco.keypoints_file, or train without keypoints')
  return path


def _explain_missing(file: str, data_dir: str) -> str:
  folder = os.path.dirname(file)
  others = sorted(tf.io.gfile.glob(os.path.join(folder, '*.json')))[:5]
  found = ' (found: ' + ', '.join(os.path.basename(name) for name in others) + ')' if others else ''
  held = recognition.describe(data_dir) if '://' not in data_dir else None
  cures = [] if held is None else [held]
  of_coco = re.search('(train|val)20[0-9]{2}', os.path.basename(file)) and not in_place.is_readable(data_dir)
  if held is None or of_coco:
    cures.append('For COCO, unpack train2017.zip, val2017.zip and annotations_trainval2017.zip from '
                 'https://cocodataset.org/#download into the data folder (--data_dir); for your own images, use python '
                 '-m rethink_tf.data.prepare; to try without any data, add '
                 '--gin_file=gin_configs/data/synthetic.gin')
  cures.append('Other names: train/coco.annotation_file, eval/coco.annotation_file and coco.image_dir')
  return f'{file}: no such annotation file{found}. {". ".join(cures)}'


def _parse_images(entries: list[Any], file: str, max_pixels: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
  """Parse the `images` list -> ids [N] ascending, sizes [N, 2], file names."""
  if not entries:
    raise UserError(f'{file}: "images" is empty, this split has no images')
  ids = np.zeros(len(entries), np.int64)
  sizes = np.zeros([len(entries), 2], np.int32)
  names = []
  for i, entry in enumerate(entries):
    if not isinstance(entry, dict):
      raise UserError(f'{file}: images[{i}] should be an object, is {shorten(entry)}')
    for field in ('id', 'height', 'width'):
      value = entry.get(field)
      is_id = field == 'id'  # below 0 are the rows that fill up a batch
      if type(value) is not int or not (0 <= value < 2 ** 63 if is_id else 0 < value < 2 ** 31):
        raise UserError(f'{file}: images[{i}].{field} should be an integer {"of at least 0" if is_id else "above 0"}, '
                        f'is {shorten(value)}')
    if entry['height'] * entry['width'] > max_pixels:
      raise UserError(f'{file}: images[{i}] is {entry["width"]}x{entry["height"]}, more than coco.max_pixels = '
                      f'{max_pixels:,}')
    ids[i], sizes[i] = entry['id'], (entry['height'], entry['width'])
    names.append(_check_name(entry.get('file_name'), f'{file}: images[{i}].file_name'))
  order = np.argsort(ids, kind='stable')
  ids, sizes = ids[order], sizes[order]
  repeated = np.flatnonzero(ids[1:] == ids[:-1])
  if len(repeated):
    raise UserError(f'{file}: image id {ids[repeated[0]]} is used by more than one image '
                    f'(images[{order[repeated[0]]}] and images[{order[repeated[0] + 1]}])')
  return ids, sizes, [names[i] for i in order]


def _check_name(name: Any, where: str) -> str:
  if not is_text(name) or not name:
    raise UserError(f'{where} should be a file name, is {shorten(name)}')
  normal = posixpath.normpath(name.replace('\\', '/'))
  if normal.startswith(('/', '../')) or normal == '..' or re.match(r'[\w.+-]+:/', normal):
    raise UserError(f'{where} should be a path inside the image folder, is {shorten(name)}')
  return normal


def _describe_missing(folder: str, names: list[str], found: list[str | None]) -> LeftOut:
  """Return a description of the files that were not found; raises UserError if none was."""
  missing = [name for name, file in zip(names, found, strict=True) if file is None]
  if len(missing) == len(names):
    raise UserError(f'{folder}: none of the {len(names)} images was found (e.g. {names[0]}): set their folder with '
                    'coco.image_dir')
  if not missing:
    return LeftOut({}, len(names))
  examples = ', '.join(missing[:3])
  logging.warning('%s: %d of %d images are missing and left out, e.g. %s', folder, len(missing), len(names), examples)
  return LeftOut({f'missing, e.g. {examples}': len(missing)}, len(names))


def _merge_keypoints(reader: AnnotationReader, categories: tuple[Category, ...],
                     file: str) -> tuple[Category, ...]:
  """Add the keypoints of a person_keypoints file, and return the categories with the keypoints of their names there.

  They are those of the annotation with the same id, if it is of the same image and of a category of the same name.
  """
  rows = {id_: row for row, id_ in enumerate(reader.ids) if id_ != NO_ID}
  before, reader.keypoints = reader.keypoints, {}
  category_ids: dict[int, Any] = {}  # of the added rows: the list of their names may follow in the file
  elsewhere: set[int] = set()
  absent = 0

  def store(entry: dict[str, Any]) -> Any:
    nonlocal absent
    if 'image_id' not in entry:
      return entry
    if not entry.get('num_keypoints', entry.get('keypoints')):
      return None
    row = rows.get(entry.get('id')) if isinstance(entry.get('id'), int) else None
    if row is None:
      absent += 1
    elif entry['image_id'] != reader.image_ids[row]:
      elsewhere.add(row)
    else:
      category_ids[row] = entry.get('category_id')
      reader.add_keypoints(row, entry.get('keypoints'))
    return None

  content = load_json(file, store)
  if not isinstance(content, dict):
    raise UserError(f'{file}: should contain an object with the lists "annotations" and "categories"')
  listed = parse_categories(content.get('categories'), file)
  named = {category.name: category for category in listed if category.keypoints}
  if not named:
    raise UserError(f'{file}: no category has keypoints')
  if named.keys().isdisjoint(category.name for category in categories):
    raise UserError(f'{file}: its categories with keypoints ({", ".join(sorted(named)[:5])}) are not in the annotation '
                    'file: name them alike in both, or set coco.keypoints_file to the file of the same data')
  names, own_names = ({category.id: category.name for category in each} for each in (listed, categories))
  for row, category_id in list(category_ids.items()):
    if not isinstance(category_id, int) or names.get(category_id) != own_names.get(reader.category_ids[row]):
      elsewhere.add(row)
      reader.keypoints.pop(row, None)
      del category_ids[row]
  _report_unmatched(reader, file, len(category_ids), elsewhere - category_ids.keys(), absent)
  reader.keypoints = before | reader.keypoints
  return tuple(named[category.name]._replace(id=category.id) if category.name in named else category
               for category in categories)


def _report_unmatched(reader: AnnotationReader, file: str, matched: int, elsewhere: Collection[int],
                      absent: int) -> None:
  """Count the annotations of a keypoints file that were not matched; raises UserError if none was.

  elsewhere: rows whose id is there that of another image or category. absent: number of unknown ids.
  """
  if not matched and (elsewhere or absent):
    raise UserError(f'{file}: none of its annotations with keypoints has the id, image and category of one in the '
                    'annotation file: set coco.keypoints_file to the file of the same split')
  for row in sorted(elsewhere):
    reader.note(KEYPOINTS_ELSEWHERE, row)
  if absent:
    logging.warning('%s: %d annotations with keypoints are not in the annotation file and are ignored', file, absent)
