"""TFRecords in the schema of tf-models-official, with random access like a folder of images.

The folder of the shards also contains `<split>-index.json`, the offsets of all records (rebuilt by a scan if it is
missing or out of date), and `<split>-categories.json`.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import gin
import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.data.categories import Category, categories_to_json, parse_categories, without_keypoints
from rethink_tf.data.detection.annotations import (
  MALFORMED,
  MARKED,
  UNMASKED,
  UNMASKED_AMONG_MASKED,
  Annotations,
  refuse_fractions,
)
from rethink_tf.data.detection.record_format import Record, category_names, decode, decode_instances, validate
from rethink_tf.data.folders import check_one_path
from rethink_tf.data.image_notes import ImageNotes
from rethink_tf.data.images import MAX_PIXELS, ImageError
from rethink_tf.data.images import decode as decode_image
from rethink_tf.data.json_files import load_json
from rethink_tf.data.keypoint_pairs import with_pairs
from rethink_tf.data.problems import Problems
from rethink_tf.data.shards import find_shards
from rethink_tf.data.subset import select
from rethink_tf.data.tfrecord import DamagedRecord, read_at, scan
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.storage import files
from rethink_tf.structures import Example, LeftOut

_READERS = 16  # threads; on gs:// they are limited by latency
_Parsed = TypeVar('_Parsed')


class Shard(NamedTuple):
  """The records of one file, as columns."""

  file: str
  bytes: int
  offsets: list[int]
  source_ids: list[str]
  heights: list[int]
  widths: list[int]
  usable: list[int]  # number of annotations that can be trained on
  visible: list[int]  # number of labelled keypoints of these
  annotations: list[int]  # number of all annotations


class Locations(NamedTuple):
  """Where the records of N images are."""

  paths: list[str]  # of the shards
  files: np.ndarray  # int32 [N] index into paths
  offsets: np.ndarray  # int64 [N] in bytes


class Index(NamedTuple):
  """Contents of <split>-index.json."""

  shards: list[Shard]
  category_ids: list[int]  # of the categories with which the annotations were validated
  problems: Problems  # of the annotations, as the conversion or a scan has found them
  left_out: list[str]  # images that are missing, unreadable or damaged
  fingerprint: str = ''  # hash of the annotations and options of the conversion
  complete: bool = True


@gin.register('records')
class RecordSource:
  """A split in TFRecords, written by `python -m rethink_tf.data.convert` or tf-models-official.

  Has the same attributes and returns the same examples as the `CocoSource` that was converted.
  """

  def __init__(self, data_dir: str, split: str = 'train2017', categories_file: str | None = None,
               keypoints: bool = False, fraction: float = 1.0, num_images: int | None = None, subset_seed: int = 0,
               training: bool = False, max_pixels: int = MAX_PIXELS,
               keypoint_pairs: Sequence[tuple[str, str]] = (), filter_empty: bool = True) -> None:
    """Read the index; images are read by `load`.

    Args:
      data_dir: folder of the shards, local or gs://.
      split: prefix of the shard names, <split>-00000-of-00032.tfrecord.
      categories_file: json with the list "categories"; default <split>-categories.json.
      keypoints, fraction, num_images, subset_seed, training, max_pixels, keypoint_pairs,
        filter_empty: as for `CocoSource`.

    Raises:
      UserError: shards are missing or not TFRecords, or as for `CocoSource`.
    """
    for name, value in (('data_dir', data_dir), ('split', split), ('categories_file', categories_file)):
      check_one_path(f'records.{name}', value)
    data_dir = os.path.expanduser(data_dir)
    self.name = f'{os.path.basename(os.path.normpath(data_dir))}/{split}'
    self.notes = ImageNotes(self.name)
    paths = find_shards(data_dir, split)
    categories = _load_categories(os.path.join(data_dir, categories_file or f'{split}-categories.json'), paths,
                                  required=categories_file is not None)
    if keypoints and not any(category.keypoints for category in categories):
      raise UserError(f'{self.name}: the categories have no keypoints: convert with --keypoints')
    self.categories = categories if keypoints else without_keypoints(categories)
    self.categories = with_pairs(self.categories, keypoint_pairs, 'records.keypoint_pairs')
    self.num_classes = len(self.categories)
    self.num_keypoints = max(len(category.keypoints) for category in self.categories)
    self._max_pixels = max_pixels
    index = _load_index(index_path(data_dir, split), paths, categories, max_pixels)
    self._note(index)
    image_ids = _number(self.name, [id_ for shard in index.shards for id_ in shard.source_ids])
    columns = {column: np.array([value for shard in index.shards for value in getattr(shard, column)], np.int64)
               for column in ('usable', 'visible', 'annotations', 'heights', 'widths')}
    if (columns['heights'] * columns['widths'] > max_pixels).any():
      raise UserError(f'{self.name}: its index lists an image of more than records.max_pixels = {max_pixels:,}: '
                      'delete the index to rebuild it')
    order = np.argsort(image_ids, kind='stable')
    chosen = order[select(self.name, image_ids[order], columns['usable'][order], training, fraction, num_images,
                          subset_seed, columns['visible'][order] if keypoints else None, filter_empty)]
    self.image_ids = image_ids[chosen]
    self.sizes = np.stack([columns['heights'], columns['widths']], axis=1)[chosen].astype(np.int32)
    self.num_instances = columns['usable'][chosen].astype(np.int32)
    self.num_visible = columns['visible'][chosen].astype(np.int32) * keypoints
    files_of = np.repeat(np.arange(len(index.shards), dtype=np.int32), [len(shard.offsets) for shard in index.shards])
    offsets = np.array([offset for shard in index.shards for offset in shard.offsets], np.int64)
    self.locations = Locations([os.path.join(data_dir, shard.file) for shard in index.shards], files_of[chosen],
                               offsets[chosen])
    self._first_ids = (1 + np.cumsum(columns['annotations']) - columns['annotations'])[chosen]
    logging.info('%s: %d images, %d instances, %d classes', self.name, len(chosen), self.num_instances.sum(),
                 self.num_classes)

  def load(self, i: int) -> Example:
    """Return image i with its usable annotations.

    Raises:
      ImageError: the record or the image in it is damaged.
    """
    record, instances = self._read(i, lambda payload: decode_instances(payload, self.categories, self.num_keypoints,
                                                                       self._max_pixels))
    image = decode_image(record.encoded, record.file_name, (record.height, record.width), self._max_pixels,
                          self.notes)
    return Example(image, *instances) if instances is not None else self._validate(i, record).example(0, image)

  def read(self, i: int) -> bytes:
    """Return the contents of the image file in record i; raises ImageError if it cannot be read."""
    return self._record(i).encoded

  def annotations(self) -> dict[str, Any]:
    """Return the COCO json of these images, crowds included. Reads every record."""
    with ThreadPoolExecutor(_READERS) as pool:
      described = list(pool.map(self._describe, range(len(self.image_ids))))
    return {'images': [image for image, _ in described],
            'annotations': [entry for _, entries in described for entry in entries],
            'categories': categories_to_json(self.categories)}

  def _note(self, index: Index) -> None:
    """Take over the index's facts about the data: problems, masks, and images that were left out."""
    self.total_bytes = sum(shard.bytes for shard in index.shards)
    self.problems = index.problems
    self.skipped = self.problems.changed()
    number = sum(sum(shard.annotations) for shard in index.shards)
    refuse_fractions(self.name, self.problems, number)
    unmasked = (UNMASKED, UNMASKED_AMONG_MASKED, MALFORMED, MARKED)
    self.has_masks = number > sum(self.problems.counts[reason] for reason in unmasked)
    examples, listed = ', '.join(index.left_out[:3]), sum(len(shard.offsets) for shard in index.shards)
    self.left_out = LeftOut({}, listed)
    if index.left_out:
      reason = f'missing, unreadable or damaged, e.g. {examples}'
      self.left_out = LeftOut({reason: len(index.left_out)}, listed + len(index.left_out))
      logging.warning('%s: %d images are missing, unreadable or damaged: %s', self.name, len(index.left_out), examples)

  def _describe(self, i: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    file_name, entries = '', []
    try:
      record = self._record(i)
      file_name, entries = record.file_name, self._validate(i, record).to_json(0)
    except ImageError as error:
      logging.warning('%s: image %d is treated as one without objects: %s', self.name, self.image_ids[i], error)
    height, width = self.sizes[i].tolist()
    return {'id': int(self.image_ids[i]), 'file_name': file_name, 'height': height, 'width': width}, entries

  def _record(self, i: int) -> Record:
    return self._read(i, lambda payload: decode(payload, self._max_pixels))

  def _read(self, i: int, parse: Callable[[bytes], _Parsed]) -> _Parsed:
    path, offset = self.locations.paths[self.locations.files[i]], int(self.locations.offsets[i])
    try:
      return parse(read_at(path, offset))
    except (OSError, tf.errors.OpError, DamagedRecord, EOFError, ImageError) as error:
      reason = 'ends before the record' if isinstance(error, EOFError) else in_one_line(error)
      raise ImageError(f'{path}: {reason}') from error

  def _validate(self, i: int, record: Record) -> Annotations:
    return validate(record, int(self.image_ids[i]), self.categories, int(self._first_ids[i]))


def index_path(data_dir: str, split: str) -> str:
  """Return the path of the index of a split."""
  return os.path.join(data_dir, f'{split}-index.json')


def write_index(path: str, index: Index) -> None:
  """Write the index, one shard per line."""
  content = index._asdict() | {'problems': index.problems.to_json()}
  head = json.dumps({key: value for key, value in content.items() if key != 'shards'})
  shards = ',\n'.join(json.dumps(shard._asdict()) for shard in index.shards)
  files.write(path, f'{head[:-1]}, "shards": [\n{shards}\n]}}\n')


def read_index(path: str) -> Index | None:
  """Read an index; None if the file is missing or invalid."""
  if not tf.io.gfile.exists(path):
    return None
  try:
    content = load_json(path)
    index = Index(**{**content, 'shards': [Shard(**shard) for shard in content['shards']],
                     'problems': Problems.from_json(content['problems'])})
    for shard in index.shards:
      check_columns(shard, ('offsets', 'heights', 'widths', 'usable', 'visible', 'annotations'), ('source_ids',))
      if min((*shard.heights, *shard.widths), default=1) < 1:
        raise TypeError('an image without extent')
    if not (isinstance(index.category_ids, list)
            and all(isinstance(text, str) for text in [*index.left_out, index.fingerprint])):
      raise TypeError('a field has a wrong type')
    return index
  except (UserError, TypeError, KeyError, AttributeError) as error:
    logging.warning('%s: is not an index of records: %s', path, in_one_line(error))
    return None


def check_columns(shard: Any, numbers: Sequence[str], texts: Sequence[str]) -> None:
  """Raise TypeError unless a shard of an index has columns of equal length, of integers of at least 0 and of strings.

  Args:
    shard: named tuple with `file`, `bytes` and the columns.
    numbers, texts: names of the columns of integers and of strings.
  """
  columns = {name: getattr(shard, name) for name in (*numbers, *texts)}
  if not isinstance(shard.file, str) or type(shard.bytes) is not int or shard.bytes < 0 or \
      not all(isinstance(column, list) for column in columns.values()) or len(set(map(len, columns.values()))) > 1:
    raise TypeError('a shard without columns of equal length')
  if not all(type(value) is int and 0 <= value < 2 ** 31 for name in numbers if name != 'offsets'
             for value in columns[name]) or \
      not all(type(offset) is int and 0 <= offset < 2 ** 62 for offset in columns['offsets']) or \
      not all(isinstance(value, str) for name in texts for value in columns[name]):
    raise TypeError('a column with values other than integers of at least 0 or strings')


def scan_shard(path: str, categories: Sequence[Category],
               max_pixels: int = MAX_PIXELS) -> tuple[Shard, Problems, list[str]]:
  """Scan a file; return the index of its records, the problems of its annotations, and messages of damaged records."""
  shard = Shard(os.path.basename(path), tf.io.gfile.stat(path).length, [], [], [], [], [], [], [])
  problems = Problems()
  damaged = []
  for offset, payload in scan(path):
    try:
      if isinstance(payload, DamagedRecord):
        raise ImageError(str(payload))
      record = decode(payload, max_pixels)
      table = validate(record, 0, tuple(categories), 1)
    except ImageError as error:
      damaged.append(f'{shard.file}: {error}')
      continue
    image_id = int(record.source_id) if re.fullmatch(r'\d{1,18}', record.source_id) else None
    for reason, (outcome, cases) in table.problems.by_reason().items():
      problems.add(reason, table.problems.counts[reason], (case._replace(image_id=image_id) for case in cases), outcome)
    for column, value in zip(shard[2:], (offset, record.source_id, record.height, record.width,
                                         int(table.num_usable[0]), int(table.num_visible[0]),
                                         len(record.annotations)), strict=True):
      column.append(value)
  if damaged and not shard.offsets:
    raise UserError(f'{path}: no record can be read, is it an uncompressed TFRecord of images? {damaged[0]}')
  return shard, problems, damaged


def _load_index(path: str, paths: list[str], categories: tuple[Category, ...], max_pixels: int) -> Index:
  """Read the index, or rebuild and write it by a scan of all shards."""
  index = read_index(path)
  if index and not index.complete:
    raise UserError(f'{path}: the conversion was interrupted; run the same command again to finish it')
  category_ids = [category.id for category in categories]
  with ThreadPoolExecutor(_READERS) as pool:
    lengths = [stat.length for stat in pool.map(tf.io.gfile.stat, paths)]
    present = [(os.path.basename(shard), length) for shard, length in zip(paths, lengths, strict=True)]
    if index and present == [shard[:2] for shard in index.shards] and index.category_ids == category_ids:
      return index
    logging.warning('%s: %s; scanning %d shards', path, 'is out of date' if index else 'no valid index', len(paths))
    scanned = list(pool.map(lambda shard: scan_shard(shard, categories, max_pixels), paths))
  problems = Problems()
  for _, found, _ in scanned:
    problems.update(found)
  index = Index([shard for shard, _, _ in scanned], category_ids, problems,
                [name for _, _, damaged in scanned for name in damaged])
  _try_to_write(path, lambda: write_index(path, index))
  return index


def _load_categories(path: str, paths: list[str], required: bool) -> tuple[Category, ...]:
  """Read the categories from their file, or collect those named in the records."""
  if required or tf.io.gfile.exists(path):
    content = load_json(path)
    return parse_categories(content.get('categories') if isinstance(content, dict) else content, path)
  logging.warning('%s: no such file; using the categories that occur in the records', path)
  names: dict[int, str] = {}
  for shard in paths:
    for _, payload in scan(shard):
      try:
        names |= {} if isinstance(payload, DamagedRecord) else category_names(payload)
      except ImageError:
        continue  # reported by the scan for the index
  categories = tuple(Category(id_, names[id_]) for id_ in sorted(names))
  if not categories:
    raise UserError(f'{path}: no such file, and the records name no category')
  _try_to_write(path, lambda: files.write(path, json.dumps({'categories': categories_to_json(categories)})))
  return categories


def _try_to_write(path: str, write: Callable[[], None]) -> None:
  try:
    write()
  except tf.errors.OpError as error:  # a data set on read-only storage
    logging.warning('%s: cannot be saved for later runs: %s', path, in_one_line(error))


def _number(name: str, source_ids: list[str]) -> np.ndarray:
  """Return int64 image ids: the source ids if they are unique integers of at least 0, else 1, 2, ..."""
  try:
    ids = np.array([int(source_id) for source_id in source_ids], np.int64)
    if len(np.unique(ids)) == len(ids) and ids.min(initial=0) >= 0:
      return ids
  except (ValueError, OverflowError):
    pass
  logging.warning('%s: the source ids of the records are not unique integers; images are numbered 1 to %d', name,
                  len(source_ids))
  return np.arange(1, len(source_ids) + 1)
