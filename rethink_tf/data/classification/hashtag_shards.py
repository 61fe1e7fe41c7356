"""Images with hashtags in sharded TFRecords, as `python -m rethink_tf.data.hashtags_convert` writes them.

A shard is three files' worth of knowledge: `<split>-00000-of-00064.tfrecord` holds the photographs, `….tfrecord.npz`
its columns (where each record begins, and its tags), `<split>-tags-index.json` how many images each shard has. Only
the last one and the vocabulary stay in memory: columns are read when their shard's turn comes.
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
import re
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import gin
import numpy as np
import tensorflow as tf
from absl import logging
from google.protobuf.message import DecodeError

from rethink_tf.data.categories import as_text, shorten
from rethink_tf.data.classification.hashtags import Vocabulary
from rethink_tf.data.images import MAX_PIXELS, ImageError, decode
from rethink_tf.data.json_files import load_json
from rethink_tf.data.tfrecord import DamagedRecord, read_record
from rethink_tf.errors import UserError
from rethink_tf.storage import files

_READERS = 16  # threads; on gs:// they mostly wait
_MAX_TAGS = 100_000  # of an image
_COLUMNS_KEPT = 8  # shards whose columns stay in memory for `load`


class TagRecord(NamedTuple):
  """One image as it lies in a record."""

  row: int  # line of the json-lines file, from 0
  file_name: str
  encoded: bytes  # the file
  classes: tuple[int, ...]  # of the vocabulary, ascending


class ShardColumns(NamedTuple):
  """What stands in a shard, without the photographs."""

  offsets: np.ndarray  # int64 [n] where each record begins
  starts: np.ndarray  # int64 [n + 1], tags[starts[i]:starts[i + 1]] are those of image i
  tags: np.ndarray  # int32 [m]
  bytes: int  # length of the file
  left_out: int  # images that could not be read
  fingerprint: str


class StreamShard(NamedTuple):
  """What the index knows of a shard."""

  file: str
  bytes: int
  images: int
  most_tags: int  # of an image


class StreamIndex(NamedTuple):
  """What stands in <split>-tags-index.json; without shards while the conversion goes on."""

  fingerprint: str
  vocabulary: str  # Vocabulary.digest
  shards: list[StreamShard] = []
  tag_counts: list[int] = []  # [L] images of each tag
  left_out: int = 0

  @property
  def num_images(self) -> int:
    return sum(shard.images for shard in self.shards)

  def _check(self) -> None:
    """TypeError unless every field is what it should be; a shard's file lies beside the index."""
    counts = [self.left_out, *self.tag_counts, *(count for shard in self.shards for count in shard[1:])]
    if not (all(isinstance(text, str) for text in (self.fingerprint, self.vocabulary))
            and isinstance(self.tag_counts, list) and all(type(n) is int and 0 <= n < 2 ** 62 for n in counts)
            and all(shard.most_tags <= _MAX_TAGS for shard in self.shards)):
      raise TypeError('a field of another type')
    for shard in self.shards:
      if not isinstance(shard.file, str) or not re.fullmatch(r'[\w.=+@ -]+', shard.file) or shard.file in ('.', '..'):
        raise TypeError(f'the file {shorten(shard.file)}')

  @classmethod
  def load(cls, path: str) -> StreamIndex:
    """Reads the index; UserError where it is none."""
    content = load_json(path)
    try:
      index = cls(**{**content, 'shards': [StreamShard(**shard) for shard in content['shards']]})
      index._check()
      return index
    except (TypeError, KeyError) as error:
      raise UserError(f'{path}: is not an index of hashtag shards ({error}): convert again into an empty '
                      'folder') from error


def stream_index_path(data_dir: str, split: str) -> str:
  return os.path.join(data_dir, f'{split}-tags-index.json')


def vocabulary_path(data_dir: str, split: str) -> str:
  return os.path.join(data_dir, f'{split}-vocabulary.json')


def columns_path(shard: str) -> str:
  return shard + '.npz'


def write_stream_index(path: str, index: StreamIndex) -> None:
  """Writes the index, a shard a line."""
  head = json.dumps({key: value for key, value in index._asdict().items() if key != 'shards'})
  shards = ',\n'.join(json.dumps(shard._asdict()) for shard in index.shards)
  files.write(path, f'{head[:-1]}, "shards": [\n{shards}\n]}}\n')


def write_columns(shard: str, columns: ShardColumns) -> None:
  """Writes the columns beside their place and renames them: where they are, the shard is finished."""
  buffer = io.BytesIO()
  np.savez(buffer, **columns._asdict())
  files.write(columns_path(shard), buffer.getvalue())


def read_columns(shard: str, fingerprint: str) -> ShardColumns | None:
  """The columns of a shard; None where it is not finished, not whole, or of another conversion."""
  try:
    with tf.io.gfile.GFile(columns_path(shard), 'rb') as file:
      content = _read_npz(file.read())
    columns = ShardColumns(content['offsets'], content['starts'], content['tags'], int(content['bytes']),
                           int(content['left_out']), str(content['fingerprint']))
    whole = columns.fingerprint == fingerprint and tf.io.gfile.stat(shard).length == columns.bytes
    return columns if whole and _agree(columns) else None
  except (tf.errors.OpError, ValueError, TypeError, KeyError, EOFError, OSError, RuntimeError, OverflowError,
          struct.error, zipfile.BadZipFile):
    return None


def _read_npz(data: bytes) -> dict[str, np.ndarray]:
  """What np.savez wrote. np.load would take memory for whatever size a header claims.

  Raises:
    ValueError: compressed, or an array that is no plain one and as long as its header says; or as `zipfile` raises.
  """
  arrays = {}
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    for entry in archive.infolist():
      if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > len(data):
        raise ValueError(f'{entry.filename} is compressed')
      raw = archive.read(entry)
      stream = io.BytesIO(raw)
      if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f'{entry.filename} is of another version')
      shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
      if dtype.kind not in 'iU' or len(shape) > 1 or \
          len(raw) - stream.tell() != math.prod(shape) * dtype.itemsize:
        raise ValueError(f'{entry.filename} is no column')
      arrays[entry.filename.removesuffix('.npy')] = np.frombuffer(raw, dtype, offset=stream.tell()).reshape(shape)
  return arrays


def _agree(columns: ShardColumns) -> bool:
  """Whether columns can be those of one shard: every image has its place, and its tags."""
  offsets, starts, tags = columns[:3]
  return bool(all(column.ndim == 1 and column.dtype.kind == 'i' for column in (offsets, starts, tags))
              and len(starts) == len(offsets) + 1 and starts[0] == 0 and starts[-1] == len(tags)
              and (np.diff(starts) >= 0).all() and tags.min(initial=0) >= 0 and offsets.min(initial=0) >= 0)


def encode(record: TagRecord) -> bytes:
  """A serialised tf.train.Example with official's names for the photograph, and rethink_tf/hashtags."""
  def of_bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

  features = {
    'image/encoded': of_bytes(record.encoded),
    'image/filename': of_bytes(record.file_name.encode(errors='replace')),
    'image/source_id': of_bytes(str(record.row).encode()),
    'rethink_tf/hashtags': tf.train.Feature(int64_list=tf.train.Int64List(value=record.classes)),
  }
  return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def decode_record(payload: bytes) -> TagRecord:
  """The inverse of `encode`; ImageError where it is no such example."""
  try:
    features = tf.train.Example.FromString(payload).features.feature
    encoded, name, row = (features[f'image/{key}'].bytes_list.value[0] for key in ('encoded', 'filename', 'source_id'))
    return TagRecord(int(row), as_text(name.decode()), encoded,
                     tuple(features['rethink_tf/hashtags'].int64_list.value))
  except (DecodeError, IndexError, ValueError) as error:
    raise ImageError(f'is no image with hashtags: {error}') from error


@gin.register('hashtags')
class HashtagSource:
  """A split of images with several tags each, in shards.

  Attributes:
    name: data set and split, for messages.
    categories: class k of 0..L - 1 is the tag categories[k]; num_classes: L.
    image_ids: [N], an image's place in the order of shards and records, from 0: a range, or int64 for evaluation.
    tag_counts: int64 [L], images of each tag in this split.
    most_tags: T, of an image; shards: what the index knows of each.
  """

  def __init__(self, data_dir: str, split: str = 'train', vocabulary: str | None = None,
               training: bool = False, max_pixels: int = MAX_PIXELS) -> None:
    """Reads the index and the vocabulary; columns and photographs are read when they are needed.

    Args:
      data_dir: folder of the shards, local or gs://.
      split: first part of their names.
      vocabulary: file that the shards must have been written with; by default the one beside them.
      training: read in streams only (`StreamedTrainInput`): nothing that grows with the number of images is held.
      max_pixels: height x width that the file may claim of an image.

    Raises:
      UserError: shards missing, unfinished or of another vocabulary.
    """
    data_dir = os.path.expanduser(data_dir)
    self.name = f'{os.path.basename(os.path.normpath(data_dir))}/{split}'
    path = stream_index_path(data_dir, split)
    if not tf.io.gfile.exists(path):
      raise UserError(f'{path}: is not there; `python -m rethink_tf.data.hashtags_convert --json=… --vocabulary=… '
                      f'--split={split} --out={data_dir}` makes it with the shards')
    index = StreamIndex.load(path)
    if not index.shards:
      raise UserError(f'{path}: the conversion was interrupted; the same command finishes it')
    tags = Vocabulary.load(os.path.expanduser(vocabulary) if vocabulary else vocabulary_path(data_dir, split))
    if tags.digest() != index.vocabulary or len(index.tag_counts) != len(tags):
      raise UserError(f'{tags.path}: the {len(tags)} tags of this vocabulary are not those that the shards of '
                      f'{self.name} were written with: convert again with it, or set hashtags.vocabulary = None')
    self.shards = index.shards
    self.categories, self.num_classes = tags.categories(), len(tags)
    self.tag_counts = np.array(index.tag_counts, np.int64)
    self.first_images = np.cumsum([0] + [shard.images for shard in self.shards])  # [S + 1]
    self.most_tags = max(shard.most_tags for shard in self.shards)
    self._paths = [os.path.join(data_dir, shard.file) for shard in self.shards]
    self._fingerprint, self._max_pixels = index.fingerprint, max_pixels
    self._columns = functools.lru_cache(maxsize=_COLUMNS_KEPT)(self.columns)
    self._check_files()
    self.image_ids = range(index.num_images) if training else np.arange(index.num_images)
    logging.info('%s: %d images in %d shards, %d tags', self.name, index.num_images, len(self.shards),
                 self.num_classes)

  @functools.cached_property
  def classes(self) -> np.ndarray:
    """int32 [N, T], padded with -1: the tags of all images, for evaluation."""
    rows = np.full((len(self.image_ids), self.most_tags), -1, np.int32)
    for shard in range(len(self.shards)):
      columns = self.columns(shard)
      lengths = np.diff(columns.starts)
      image = np.repeat(np.arange(len(lengths)), lengths)
      rows[self.first_images[shard] + image, np.arange(len(columns.tags)) - columns.starts[image]] = columns.tags
    return rows

  def columns(self, shard: int) -> ShardColumns:
    """The columns of a shard, from its file.

    Raises:
      UserError: they are gone, damaged, or the shard was changed.
    """
    columns = read_columns(self._paths[shard], self._fingerprint)
    if columns is None or len(columns.offsets) != self.shards[shard].images or \
        np.diff(columns.starts).max(initial=0) > self.most_tags or columns.tags.max(initial=0) >= self.num_classes:
      raise UserError(f'{columns_path(self._paths[shard])}: is missing, damaged or not of this shard; delete it and '
                      'give the command of the conversion again: it writes this shard anew')
    return columns

  def load(self, i: int) -> np.ndarray:
    """Image i, uint8 [h, w, 3] RGB; ImageError where the record or the photograph in it is damaged."""
    shard = int(np.searchsorted(self.first_images, i, side='right')) - 1
    return self.load_at(shard, int(self._columns(shard).offsets[i - self.first_images[shard]]))

  def load_at(self, shard: int, offset: int) -> np.ndarray:
    """The image whose record begins at `offset` of a shard; as `load`."""
    path = self._paths[shard]
    try:
      with tf.io.gfile.GFile(path, 'rb') as file:
        record = decode_record(read_record(file, offset)[0])
    except (tf.errors.OpError, DamagedRecord, EOFError, ImageError) as error:
      raise ImageError(f'{path}: the record at byte {offset} cannot be read: {error}') from error
    return decode(record.encoded, record.file_name, max_pixels=self._max_pixels)

  def _check_files(self) -> None:
    def length(path: str) -> int | None:
      try:
        return tf.io.gfile.stat(path).length
      except tf.errors.OpError:
        return None

    with ThreadPoolExecutor(_READERS) as pool:
      for path, shard, found in zip(self._paths, self.shards, pool.map(length, self._paths), strict=True):
        if found != shard.bytes:
          problem = 'is missing' if found is None else f'has {found} bytes instead of {shard.bytes}'
          raise UserError(f'{path}: {problem}; the command of the conversion writes this shard anew')
