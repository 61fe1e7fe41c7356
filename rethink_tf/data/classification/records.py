"""Images with one class each in TFRecords, in the ImageNet schema of tf-models-official, with random access.

`image/encoded` is the image file, `image/class/label` its class from 1 (0 is the unused background class of
tf-models-official), `image/class/text` the name of the class, `image/filename` the name of the file. The first use of a
split scans it and writes `<split>-classes-index.json` next to the shards: offset and class of each record.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import gin
import numpy as np
import tensorflow as tf
from absl import logging
from google.protobuf.message import DecodeError

from rethink_tf.data.categories import Category, as_text, shorten
from rethink_tf.data.class_names import check_same_names, merge_names
from rethink_tf.data.classification.image_folder import stable_ids
from rethink_tf.data.detection.record_index import check_columns
from rethink_tf.data.images import MAX_PIXELS, ImageError, decode
from rethink_tf.data.json_files import load_json
from rethink_tf.data.shards import find_shards, length_of, scan_readable, warn_of_empty
from rethink_tf.data.subset import subset, whose_images
from rethink_tf.data.tfrecord import DamagedRecord, read_at
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.storage import files
from rethink_tf.structures import LeftOut

_READERS = 16  # threads; on gs:// they are limited by latency
_INDEX = '-classes-index.json'
_MAX_LABEL = 1_000_000  # every class up to the largest label allocates memory


class LabelledShard(NamedTuple):
  """The records of one file, as columns."""

  file: str
  bytes: int
  offsets: list[int]
  labels: list[int]  # as stored in the records
  names: list[str]


class LabelIndex(NamedTuple):
  """Contents of <split>-classes-index.json."""

  shards: list[LabelledShard]
  texts: dict[str, str]  # label -> name of the class
  left_out: dict[str, int]  # reason -> number of records


@gin.register('image_records')
class ImageRecords:
  """A split in TFRecords, `<split>-00000-of-01024` with or without `.tfrecord`; attributes as for `ImageFolder`.

  The number of classes is the largest label of `class_split`, so that all splits have the same classes; if there is
  only `split` (evaluation on another machine), its largest label.
  """

  def __init__(self, data_dir: str, split: str = 'train', class_split: str = 'train', first_label: int = 1,
               fraction: float = 1.0, num_images: int | None = None, subset_seed: int = 0,
               training: bool = False, max_pixels: int = MAX_PIXELS) -> None:
    """Read or build the index; images are read by `load`.

    Args:
      data_dir: folder of the shards, local or gs://.
      split, class_split: prefixes of the shard names; train and validation in tf-models-official.
      first_label: label of class 0: 1 in the records of tf-models-official, 0 in some others.
      fraction, num_images, subset_seed: a seeded, nested subset, see `subset.subset`.
      training: reject a split with images of one class only.
      max_pixels: limit of height x width of an image.

    Raises:
      UserError: shards are missing or have another schema, or labels are not in `class_split`.
    """
    data_dir = os.path.expanduser(data_dir)
    self.name = f'{os.path.basename(os.path.normpath(data_dir))}/{split}'
    self._max_pixels = max_pixels
    index = reference = _load_index(data_dir, split)
    if class_split != split and _has_shards(data_dir, class_split):
      reference = _load_index(data_dir, class_split)
      check_same_names(_by_label(index.texts), self.name, _by_label(reference.texts), class_split)
    self.num_classes = max(max(shard.labels, default=0) for shard in reference.shards) - first_label + 1
    labels = np.array([label for shard in index.shards for label in shard.labels], np.int64) - first_label
    invalid = np.flatnonzero((labels < 0) | (labels >= self.num_classes))
    if len(invalid):
      raise UserError(f'{self.name}: {len(invalid)} labels, e.g. {labels[invalid[0]] + first_label}, are not in '
                      f'{first_label} to {self.num_classes + first_label - 1}: set image_records.first_label, 1 for '
                      'records of tf-models-official, and image_records.class_split to the split with all classes')
    self.left_out = LeftOut(index.left_out, len(labels) + sum(index.left_out.values()))
    if index.left_out:
      logging.warning('%s: %d records are dropped: %s', self.name, sum(index.left_out.values()),
                      '; '.join(f'{reason} ({count})' for reason, count in index.left_out.items()))
    names = [name for shard in index.shards for name in shard.names]
    positions = subset(stable_ids(names), fraction, num_images, subset_seed, self.name)
    if training and len(np.unique(labels[positions])) < 2:  # a subset may lack a class of the shards
      whose, fix = whose_images('image_records', len(positions), len(names))
      raise UserError(f'{self.name}: all {whose} are of one class; training needs at least two classes{fix}')
    texts = [reference.texts.get(str(k + first_label)) or f'class {k + first_label}' for k in range(self.num_classes)]
    self.categories = tuple(Category(k, text) for k, text in enumerate(texts))
    self.image_ids = positions.astype(np.int64) + 1
    self.file_names = [names[i] for i in positions]
    self.classes = labels[positions, None].astype(np.int32)
    self.num_instances = np.ones(len(positions), np.int32)
    locations = [(os.path.join(data_dir, shard.file), offset) for shard in index.shards for offset in shard.offsets]
    self._locations = [locations[i] for i in positions]
    self._labels, self._texts, self._split = labels[positions] + first_label, index.texts, split
    logging.info('%s: %d images, %d classes', self.name, len(positions), self.num_classes)

  def load(self, i: int) -> np.ndarray:
    """Return image i, uint8 [h, w, 3] RGB; raises ImageError if the record or the image in it is damaged."""
    path, offset = self._locations[i]
    try:
      features = tf.train.Example.FromString(read_at(path, offset)).features.feature
      encoded = features['image/encoded'].bytes_list.value[0]
      if problem := _difference(features, self.file_names[i], int(self._labels[i]), self._texts):
        raise ImageError(f'{path}: the record at byte {offset} {problem}: delete {self._split}{_INDEX} to rebuild it')
    except (OSError, tf.errors.OpError, DamagedRecord, DecodeError, EOFError, IndexError) as error:
      raise ImageError(f'{path}: the record at byte {offset} cannot be read: {in_one_line(error)}') from error
    return decode(encoded, self.file_names[i], max_pixels=self._max_pixels)


def _has_shards(data_dir: str, split: str) -> bool:
  return bool(tf.io.gfile.glob(os.path.join(data_dir, f'{split}-*-of-*')))


def _load_index(data_dir: str, split: str) -> LabelIndex:
  """Read the index, or build and write it by a scan of all shards."""
  if not _has_shards(data_dir, split):
    raise UserError(f'{data_dir}: no shards {split}-00000-of-….tfrecord there: set their folder with --data_dir and '
                    'the prefix of their names with image_records.split (train/… and eval/…)')
  paths = find_shards(data_dir, split)
  path = os.path.join(data_dir, f'{split}{_INDEX}')
  with ThreadPoolExecutor(_READERS) as pool:
    present = list(zip(map(os.path.basename, paths), pool.map(length_of, paths), strict=True))
    index = _read_index(path)
    if index and [shard[:2] for shard in index.shards] == present:
      problems = list(filter(None, pool.map(lambda *pair: _check_first(*pair, index.texts), paths, index.shards)))
      if not problems:
        return index
      logging.warning('%s: %s', path, problems[0])
    logging.info('%s: %s; scanning %d shards once', path, 'is out of date' if index else 'no valid index', len(paths))
    scanned = list(pool.map(_scan_shard, paths))
  warn_of_empty(present, path)
  texts = merge_names([(shard.file, _by_label(texts)) for shard, texts, _ in scanned])
  index = LabelIndex([shard for shard, _, _ in scanned], {str(label): text for label, text in texts.items()},
                     dict(sum((left_out for _, _, left_out in scanned), Counter())))
  if not any(shard.labels for shard in index.shards):
    raise UserError(f'{paths[0]}: no record has image/encoded and image/class/label '
                    f'({"; ".join(index.left_out) or "the files are empty"}): use the ImageNet schema of '
                    'tf-models-official')
  try:
    files.write(path, json.dumps(index._asdict() | {'shards': [shard._asdict() for shard in index.shards]}))
  except tf.errors.OpError as error:  # a data set on read-only storage
    logging.warning('%s: cannot be saved for later runs: %s', path, in_one_line(error))
  return index


def _check_first(path: str, shard: LabelledShard, texts: Mapping[str, str]) -> str:
  """Describe how the first record of a shard differs from the index; '' if it does not."""
  if not shard.offsets:
    return ''
  try:
    features = tf.train.Example.FromString(read_at(path, shard.offsets[0])).features.feature
  except (OSError, tf.errors.OpError, DamagedRecord, DecodeError, EOFError):
    return ''  # reported when it is loaded
  problem = _difference(features, shard.names[0], shard.labels[0], texts)
  return f'{shard.file}: its first record {problem}' if problem else ''


def _difference(features: Any, name: str, label: int, texts: Mapping[str, str]) -> str:
  """Describe how a record differs from what the index says of it; '' if it does not."""
  found = as_text(_first(features, 'image/filename').decode(errors='replace'))
  if found and found != name:
    return f'is image {shorten(found)}, in the index {shorten(name)}'
  labels, text = list(features['image/class/label'].int64_list.value), _text_of(features)
  if labels != [label]:
    return f'has label {shorten(labels[0] if labels else None)}, in the index {label}'
  if text and text != texts.get(str(label)) and text in texts.values():  # other spellings of a name are accepted
    return f'is of class {shorten(text)}, in the index of {shorten(texts.get(str(label)))}'
  return ''


def _text_of(features: Any) -> str:
  text = _first(features, 'image/class/text') or _first(features, 'image/class/synset')
  return as_text(text.decode(errors='replace'))


def _read_index(path: str) -> LabelIndex | None:
  if not tf.io.gfile.exists(path):
    return None
  try:
    content = load_json(path)
    index = LabelIndex(**{**content, 'shards': [LabelledShard(**shard) for shard in content['shards']]})
    for shard in index.shards:
      check_columns(shard, ('offsets', 'labels'), ('names',))
      if max(shard.labels, default=0) > _MAX_LABEL:
        raise TypeError(f'a label above {_MAX_LABEL}')
    if not all(isinstance(text, str) for text in [*index.texts, *index.texts.values(), *index.left_out]) or \
        not all(re.fullmatch(r'\d{1,7}', label) for label in index.texts) or \
        not all(type(count) is int for count in index.left_out.values()):
      raise TypeError('a field has a wrong type')
    return index
  except (UserError, TypeError, KeyError, AttributeError) as error:
    logging.warning('%s: is not an index of labelled records: %s', path, in_one_line(error))
    return None


def _scan_shard(path: str) -> tuple[LabelledShard, dict[str, str], Counter[str]]:
  """Scan a file; return its columns, the names of its labels, and the number of dropped records by reason."""
  shard = LabelledShard(os.path.basename(path), length_of(path), [], [], [])
  texts: dict[str, str] = {}
  left_out: Counter[str] = Counter()
  for offset, payload in scan_readable(path):
    if isinstance(payload, DamagedRecord):
      left_out['damaged' if payload.next_offset else 'truncated, with all that follow in the file'] += 1
      continue
    try:
      features = tf.train.Example.FromString(payload).features.feature
    except DecodeError:
      left_out['not a tf.train.Example'] += 1
      continue
    labels = features['image/class/label'].int64_list.value
    if len(labels) != 1 or not _first(features, 'image/encoded'):
      left_out['without image/encoded or without exactly one image/class/label'] += 1
      continue
    if not 0 <= labels[0] <= _MAX_LABEL:
      left_out[f'with a label that is not from 0 to {_MAX_LABEL}'] += 1
      continue
    name = as_text(_first(features, 'image/filename').decode(errors='replace')) or f'{shard.file}@{offset}'
    for column, value in zip(shard[2:], (offset, int(labels[0]), name), strict=True):
      column.append(value)
    texts.setdefault(str(labels[0]), _text_of(features))
  return shard, texts, left_out


def _by_label(texts: Mapping[str, str]) -> dict[int, str]:
  return {int(label): text for label, text in texts.items()}


def _first(features: Any, key: str) -> bytes:
  values = features[key].bytes_list.value if key in features else ()
  return values[0] if values else b''
