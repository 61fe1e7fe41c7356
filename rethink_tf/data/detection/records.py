"""TFRecords in the schema of tf-models-official, with random access like a folder of images.

The folder of the shards also contains `<split>-index.json`, the offsets of all records (rebuilt by a scan if it is
missing or out of date), and `<split>-categories.json`.
"""

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import gin
import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.data.categories import Category, categories_to_json, parse_categories, shorten, without_keypoints
from rethink_tf.data.detection.annotations import (
  MALFORMED,
  MARKED,
  UNMASKED,
  UNMASKED_AMONG_MASKED,
  Annotations,
  refuse_fractions,
)
from rethink_tf.data.detection.record_format import Record, decode, decode_instances, identify, validate
from rethink_tf.data.detection.record_index import READERS, Index, index_path, load_index, names_in, try_to_write
from rethink_tf.data.folders import check_one_path
from rethink_tf.data.image_notes import ImageNotes
from rethink_tf.data.images import MAX_PIXELS, ImageError
from rethink_tf.data.images import decode as decode_image
from rethink_tf.data.json_files import load_json
from rethink_tf.data.keypoint_pairs import with_pairs
from rethink_tf.data.shards import find_shards
from rethink_tf.data.subset import select
from rethink_tf.data.tfrecord import DamagedRecord, read_at
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.storage import files
from rethink_tf.structures import Example, LeftOut

_Instances = TypeVar('_Instances')


class Locations(NamedTuple):
  """Where the records of N images are."""

  paths: list[str]  # of the shards
  files: np.ndarray  # int32 [N] index into paths
  offsets: np.ndarray  # int64 [N] in bytes


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
    names_file = os.path.join(data_dir, categories_file or f'{split}-categories.json')
    categories = _load_categories(names_file, paths, required=categories_file is not None)
    if keypoints and not any(category.keypoints for category in categories):
      raise UserError(f'{self.name}: the categories have no keypoints: convert with --keypoints')
    self.categories = categories if keypoints else without_keypoints(categories)
    self.categories = with_pairs(self.categories, keypoint_pairs, 'records.keypoint_pairs')
    self.num_classes = len(self.categories)
    self.num_keypoints = max(len(category.keypoints) for category in self.categories)
    self._max_pixels = max_pixels
    index = load_index(index_path(data_dir, split), paths, categories, max_pixels, names_file)
    # The records of earlier versions and of other converters do not tell whether their shard belongs to the index.
    self._checked, self._names = bool(index.conversion), {category.id: category.name for category in categories}
    self._note(index)
    source_ids = [id_ for shard in index.shards for id_ in shard.source_ids]
    image_ids = _number(self.name, source_ids)
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
    self._source_ids = [source_ids[i] for i in chosen]
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
    with ThreadPoolExecutor(READERS) as pool:
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
    return self._read(i, lambda payload: (decode(payload, self._max_pixels), None))[0]

  def _read(self, i: int, parse: Callable[[bytes], tuple[Record, _Instances]]) -> tuple[Record, _Instances]:
    path, offset = self.locations.paths[self.locations.files[i]], int(self.locations.offsets[i])
    try:
      payload = read_at(path, offset)
      record, instances = parse(payload)
      if record.source_id != self._source_ids[i]:
        raise ImageError(f'the record at byte {offset} is image {shorten(record.source_id)}, in the index '
                         f'{shorten(self._source_ids[i])}: delete the index to rebuild it')
      if not self._checked:
        self._check_names(payload, offset)
      return record, instances
    except (OSError, tf.errors.OpError, DamagedRecord, EOFError, ImageError) as error:
      reason = 'ends before the record' if isinstance(error, EOFError) else in_one_line(error)
      raise ImageError(f'{path}: {reason}') from error

  def _check_names(self, payload: bytes, offset: int) -> None:
    """Check the classes of a record whose shard may be that of another conversion; other spellings are accepted."""
    for label, name in identify(payload).names.items():
      own = self._names.get(label, name)
      if name not in (own, '', str(label)) and name in self._names.values():  # labels without a name have their number
        raise ImageError(f'in the record at byte {offset} {label} is the label of {shorten(name)}, in the categories '
                         f'that of {shorten(own)}: the shard is of another conversion; replace it')

  def _validate(self, i: int, record: Record) -> Annotations:
    return validate(record, int(self.image_ids[i]), self.categories, int(self._first_ids[i]))


def _load_categories(path: str, paths: list[str], required: bool) -> tuple[Category, ...]:
  """Read the categories from their file, or collect those named in the records."""
  if required or tf.io.gfile.exists(path):
    content = load_json(path)
    return parse_categories(content.get('categories') if isinstance(content, dict) else content, path)
  logging.warning('%s: no such file; using the categories that occur in the records', path)
  names = names_in(paths)
  categories = tuple(Category(id_, names[id_]) for id_ in sorted(names))
  if not categories:
    raise UserError(f'{path}: no such file, and the records name no category')
  try_to_write(path, lambda: files.write(path, json.dumps({'categories': categories_to_json(categories)})))
  return categories


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
