"""Images with hashtags in sharded TFRecords, written by `python -m rethink_tf.data.hashtags_convert`.

`<split>-00000-of-00064.tfrecord` contains the images of a shard, `….tfrecord.npz` its columns (offset and tags of each
record), `<split>-tags-index.json` the number of images of every shard. Only the index and the vocabulary stay in
memory: the columns of a shard are read when it is needed.
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
from rethink_tf.data.classification.vocabulary import Vocabulary
from rethink_tf.data.images import MAX_PIXELS, ImageError, decode
from rethink_tf.data.json_files import load_json
from rethink_tf.data.tfrecord import DamagedRecord, read_at
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.storage import files
from rethink_tf.storage.files import open_regular
from rethink_tf.structures import LeftOut

_READERS = 16  # threads; on gs:// they are limited by latency
_MAX_TAGS = 100_000  # of an image
_CACHED_COLUMNS = 8  # shards whose columns stay in memory for `load`


class TagRecord(NamedTuple):
  """One image with its tags, as stored in a record."""

  row: int  # 0-based line number in the JSON Lines file
  file_name: str
  encoded: bytes  # contents of the image file
  classes: tuple[int, ...]  # of the vocabulary, ascending


class ShardColumns(NamedTuple):
  """Contents of a shard, without the images."""

  offsets: np.ndarray  # int64 [n] of the records
  starts: np.ndarray  # int64 [n + 1], tags[starts[i]:starts[i + 1]] are those of image i
  tags: np.ndarray  # int32 [m]
  bytes: int  # length of the file
  left_out: int  # images that could not be read
  fingerprint: str


class StreamShard(NamedTuple):
  """Entry of a shard in the index."""

  file: str
  bytes: int
  images: int
  most_tags: int  # of an image


class StreamIndex(NamedTuple):
  """Contents of <split>-tags-index.json; without shards until the conversion is finished."""

  fingerprint: str
  vocabulary: str  # Vocabulary.digest
  shards: list[StreamShard] = []
  tag_counts: list[int] = []  # [L] images of each tag
  left_out: int = 0

  @property
  def num_images(self) -> int:
    """Number of images of all shards."""
    return sum(shard.images for shard in self.shards)

  def _check(self) -> None:
    """Raise TypeError unless every field is valid; the file of a shard must be in the folder of the index."""
    counts = [self.left_out, *self.tag_counts, *(count for shard in self.shards for count in shard[1:])]
    if not (all(isinstance(text, str) for text in (self.fingerprint, self.vocabulary))
            and isinstance(self.tag_counts, list) and all(type(n) is int and 0 <= n < 2 ** 62 for n in counts)
            and all(shard.most_tags <= _MAX_TAGS for shard in self.shards)):
      raise TypeError('a field has a wrong type')
    for shard in self.shards:
      if not isinstance(shard.file, str) or not re.fullmatch(r'[\w.=+@ -]+', shard.file) or shard.file in ('.', '..'):
        raise TypeError(f'invalid file name {shorten(shard.file)}')

  @classmethod
  def load(cls, path: str) -> StreamIndex:
    """Read an index; raises UserError if it is invalid."""
    content = load_json(path)
    try:
      index = cls(**{**content, 'shards': [StreamShard(**shard) for shard in content['shards']]})
      index._check()
      return index
    except (TypeError, KeyError) as error:
      raise UserError(f'{path}: is not an index of hashtag shards ({in_one_line(error)}): convert again '
                      'into an empty folder') from error


def stream_index_path(data_dir: str, split: str) -> str:
  """Return the path of the index of a split."""
  return os.path.join(data_dir, f'{split}-tags-index.json')


def vocabulary_path(data_dir: str, split: str) -> str:
  """Return the path of the vocabulary of a split."""
  return os.path.join(data_dir, f'{split}-vocabulary.json')


def columns_path(shard: str) -> str:
  """Return the path of the columns of a shard."""
  return shard + '.npz'


def write_stream_index(path: str, index: StreamIndex) -> None:
  """Write the index, one shard per line."""
  head = json.dumps({key: value for key, value in index._asdict().items() if key != 'shards'})
  shards = ',\n'.join(json.dumps(shard._asdict()) for shard in index.shards)
  files.write(path, f'{head[:-1]}, "shards": [\n{shards}\n]}}\n')


def write_columns(shard: str, columns: ShardColumns) -> None:
  """Write the columns of a shard atomically; their presence marks the shard as finished."""
  buffer = io.BytesIO()
  np.savez(buffer, **columns._asdict())
  files.write(columns_path(shard), buffer.getvalue())


def read_columns(shard: str, fingerprint: str) -> ShardColumns | None:
  """Read the columns of a shard; None if it is unfinished, damaged, or of another conversion."""
  try:
    with open_regular(columns_path(shard)) as file:
      content = _read_npz(file.read())
    columns = ShardColumns(content['offsets'], content['starts'], content['tags'], int(content['bytes']),
                           int(content['left_out']), str(content['fingerprint']))
    complete = columns.fingerprint == fingerprint and tf.io.gfile.stat(shard).length == columns.bytes
    return columns if complete and _consistent(columns) else None
  except (tf.errors.OpError, ValueError, TypeError, KeyError, EOFError, OSError, RuntimeError, OverflowError,
          struct.error, zipfile.BadZipFile):
    return None


def _read_npz(data: bytes) -> dict[str, np.ndarray]:
  """Read a file of np.savez. np.load would allocate memory of whatever size a header contains.

  Raises:
    ValueError: an array is compressed, not of plain integers or strings, or of another length than in its header.
    Also what `zipfile` raises.
  """
  arrays = {}
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    for entry in archive.infolist():
      if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > len(data):
        raise ValueError(f'{entry.filename} is compressed')
      raw = archive.read(entry)
      stream = io.BytesIO(raw)
      if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f'{entry.filename} has another version')
      shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
      if dtype.kind not in 'iU' or len(shape) > 1 or \
          len(raw) - stream.tell() != math.prod(shape) * dtype.itemsize:
        raise ValueError(f'{entry.filename} is not a column')
      arrays[entry.filename.removesuffix('.npy')] = np.frombuffer(raw, dtype, offset=stream.tell()).reshape(shape)
  return arrays


def _consistent(columns: ShardColumns) -> bool:
  """Whether the columns are valid and describe the same number of images."""
  offsets, starts, tags = columns[:3]
  return bool(all(column.ndim == 1 and column.dtype.kind == 'i' for column in (offsets, starts, tags))
              and len(starts) == len(offsets) + 1 and starts[0] == 0 and starts[-1] == len(tags)
              and (np.diff(starts) >= 0).all() and tags.min(initial=0) >= 0 and offsets.min(initial=0) >= 0)


def encode(record: TagRecord) -> bytes:
  """Serialise a record as a tf.train.Example with the image keys of tf-models-official, and rethink_tf/hashtags."""
  def bytes_feature(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

  features = {
    'image/encoded': bytes_feature(record.encoded),
    'image/filename': bytes_feature(record.file_name.encode(errors='replace')),
    'image/source_id': bytes_feature(str(record.row).encode()),
    'rethink_tf/hashtags': tf.train.Feature(int64_list=tf.train.Int64List(value=record.classes)),
  }
  return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def decode_record(payload: bytes) -> TagRecord:
  """Parse a serialised record; inverse of `encode`. Raises ImageError if it has another schema."""
  try:
    features = tf.train.Example.FromString(payload).features.feature
    encoded, name, row = (features[f'image/{key}'].bytes_list.value[0] for key in ('encoded', 'filename', 'source_id'))
    return TagRecord(int(row), as_text(name.decode()), encoded,
                     tuple(features['rethink_tf/hashtags'].int64_list.value))
  except (DecodeError, IndexError, ValueError) as error:
    raise ImageError(f'not an image with hashtags: {in_one_line(error)}') from error


@gin.register('hashtags')
class HashtagSource:
  """A split of images with several tags each, in shards.

  Attributes:
    name: data set and split, for messages.
    categories: class k of 0..L - 1 is the tag categories[k]; num_classes: L.
    image_ids: [N], 0-based position in the order of shards and records: a range, or int64 for evaluation.
    tag_counts: int64 [L], images of each tag in this split.
    most_tags: T, the largest number of tags of an image; shards: their entries in the index.
  """

  def __init__(self, data_dir: str, split: str = 'train', vocabulary: str | None = None,
               training: bool = False, max_pixels: int = MAX_PIXELS) -> None:
    """Read the index and the vocabulary; columns and images are read when they are needed.

    Args:
      data_dir: folder of the shards, local or gs://.
      split: prefix of the shard names.
      vocabulary: file with which the shards must have been written; by default the one in data_dir.
      training: only read as a stream (`StreamedTrainInput`), in memory that does not grow with the number of images.
      max_pixels: limit of height x width of an image.

    Raises:
      UserError: shards are missing, unfinished or of another vocabulary.
    """
    data_dir = os.path.expanduser(data_dir)
    self.name = f'{os.path.basename(os.path.normpath(data_dir))}/{split}'
    path = stream_index_path(data_dir, split)
    if not tf.io.gfile.exists(path):
      raise UserError(f'{path}: no such file; write it and the shards with `python -m rethink_tf.data.hashtags_convert '
                      f'--json=… --vocabulary=… --split={split} --out={data_dir}`')
    index = StreamIndex.load(path)
    if not index.shards:
      raise UserError(f'{path}: the conversion was interrupted; run the same command again to finish it')
    tags = Vocabulary.load(os.path.expanduser(vocabulary) if vocabulary else vocabulary_path(data_dir, split))
    if tags.digest() != index.vocabulary or len(index.tag_counts) != len(tags):
      raise UserError(f'{tags.path}: the {len(tags)} tags of this vocabulary are not those with which the shards of '
                      f'{self.name} were written: convert again with it, or set hashtags.vocabulary = None')
    self.shards = index.shards
    self.categories, self.num_classes = tags.categories(), len(tags)
    self.tag_counts = np.array(index.tag_counts, np.int64)
    self.first_images = np.cumsum([0] + [shard.images for shard in self.shards])  # [S + 1]
    self.most_tags = max(shard.most_tags for shard in self.shards)
    self._paths = [os.path.join(data_dir, shard.file) for shard in self.shards]
    self._fingerprint, self._max_pixels = index.fingerprint, max_pixels
    self._columns = functools.lru_cache(maxsize=_CACHED_COLUMNS)(self.columns)
    self._check_files()
    self.left_out = LeftOut({'missing or unreadable when converted': index.left_out} if index.left_out else {},
                            index.num_images + index.left_out)
    self.image_ids = range(index.num_images) if training else np.arange(index.num_images)
    logging.info('%s: %d images in %d shards, %d tags', self.name, index.num_images, len(self.shards),
                 self.num_classes)

  @functools.cached_property
  def classes(self) -> np.ndarray:
    """Tags of all images, int32 [N, T], padded with -1; for evaluation."""
    rows = np.full((len(self.image_ids), self.most_tags), -1, np.int32)
    for shard in range(len(self.shards)):
      columns = self.columns(shard)
      lengths = np.diff(columns.starts)
      image = np.repeat(np.arange(len(lengths)), lengths)
      rows[self.first_images[shard] + image, np.arange(len(columns.tags)) - columns.starts[image]] = columns.tags
    return rows

  def columns(self, shard: int) -> ShardColumns:
    """Read the columns of a shard.

    Raises:
      UserError: they are missing or damaged, or the shard was changed.
    """
    columns = read_columns(self._paths[shard], self._fingerprint)
    if columns is None or len(columns.offsets) != self.shards[shard].images or \
        np.diff(columns.starts).max(initial=0) > self.most_tags or columns.tags.max(initial=0) >= self.num_classes:
      raise UserError(f'{columns_path(self._paths[shard])}: is missing, damaged or not of this shard; delete it and '
                      'run the conversion again to rewrite this shard')
    return columns

  def load(self, i: int) -> np.ndarray:
    """Return image i, uint8 [h, w, 3] RGB; raises ImageError if the record or the image in it is damaged."""
    shard = int(np.searchsorted(self.first_images, i, side='right')) - 1
    return self.load_at(shard, int(self._columns(shard).offsets[i - self.first_images[shard]]))

  def load_at(self, shard: int, offset: int) -> np.ndarray:
    """Return the image of the record at `offset` of a shard; see `load`."""
    path = self._paths[shard]
    try:
      record = decode_record(read_at(path, offset))
    except (OSError, tf.errors.OpError, DamagedRecord, EOFError, ImageError) as error:
      raise ImageError(f'{path}: the record at byte {offset} cannot be read: {in_one_line(error)}') from error
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
          raise UserError(f'{path}: {problem}; run the conversion again to rewrite this shard')
