"""Conversion of images with hashtags, listed in JSON Lines, to sharded TFRecords: the work of data.hashtags_convert.

First the rows are distributed among the shards as text files, round by round, in a new random order of the shards each
round: every shard is a random sample of the file, even if that is sorted. Then the shards are written in parallel and
atomically, with a buffer of rows and one image per thread in memory. To finish an interrupted conversion, run the same
command again: finished shards are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.console import Progress
from rethink_tf.data.categories import shorten
from rethink_tf.data.classification.hashtag_shards import (
  ShardColumns,
  StreamIndex,
  StreamShard,
  TagRecord,
  columns_path,
  encode,
  read_columns,
  stream_index_path,
  vocabulary_path,
  write_columns,
  write_stream_index,
)
from rethink_tf.data.classification.vocabulary import Vocabulary, read_rows
from rethink_tf.data.folders import inside
from rethink_tf.data.images import ImageError, read_file
from rethink_tf.data.images import decode as decode_image
from rethink_tf.data.keyed_random import keyed_bits
from rethink_tf.data.problems import Problems
from rethink_tf.data.shards import refuse_other_shards, shard_path
from rethink_tf.data.tfrecord import FOOTER, HEADER
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.storage import files

IMAGES_PER_SHARD = 8192
_BUFFER = 32 << 20  # bytes of rows that are buffered before they are written


def convert_hashtags(json_file: str, vocabulary: Vocabulary, output_dir: str, split: str = 'train',
                     image_dir: str | None = None, num_shards: int | None = None, max_tags: int = 64, seed: int = 0,
                     num_workers: int | None = None) -> StreamIndex:
  """Write all images that have a tag of the vocabulary, and the index that `HashtagSource` reads.

  Missing and unreadable images are dropped, and counted in the index.

  Args:
    json_file: one image per line, {"image": path, "tags": [...]}.
    vocabulary: defines the classes; copied to output_dir.
    output_dir: local or gs://; created if it does not exist.
    split: prefix of the file names.
    image_dir: folder of the images: the paths in the file are relative to it, and may not lead out of it. By default
      the folder of the file.
    num_shards: number of files; by default one for 8192 images of the vocabulary. At least one per host of a training.
    max_tags: maximum number of tags of an image; beyond it, those that come first in the vocabulary are kept.
    seed: of the distribution among the shards.
    num_workers: threads; by default two per core.

  Raises:
    UserError: the file cannot be read, contains no usable image, or the folder cannot be written to or contains another
      conversion.
  """
  if num_shards is None:
    num_shards = -(-vocabulary.num_images // IMAGES_PER_SHARD)
  if num_shards < 1 or max_tags < 1:
    raise UserError(f'num_shards = {num_shards} and max_tags = {max_tags} should be at least 1')
  image_dir = os.path.dirname(json_file) if image_dir is None else os.path.expanduser(image_dir)
  try:
    tf.io.gfile.makedirs(output_dir)
    fingerprint = _fingerprint(json_file, vocabulary, num_shards, max_tags, seed)
    paths = [shard_path(output_dir, split, i, num_shards) for i in range(num_shards)]
    done = [read_columns(path, fingerprint) for path in paths]
    todo = [i for i, columns in enumerate(done) if columns is None]
    begun = _check_fingerprint(output_dir, split, fingerprint)
    refuse_other_shards(output_dir, split, paths if begun else ())
    write_stream_index(stream_index_path(output_dir, split), StreamIndex(fingerprint, vocabulary.digest()))
    vocabulary.save(vocabulary_path(output_dir, split))
    if len(todo) < num_shards:
      logging.info('%s: %d of %d shards exist already, %d remain', output_dir, num_shards - len(todo), num_shards,
                   len(todo))
    if todo:
      rows = _ShardRows(_rows_dir(output_dir, split, fingerprint), num_shards)
      rows.distribute(json_file, vocabulary, max_tags, seed, todo)
      _write_shards(rows, paths, todo, image_dir, fingerprint, num_workers)
      rows.remove()
    return _finish(output_dir, split, paths, fingerprint, vocabulary)
  except (OSError, tf.errors.OpError) as error:
    raise UserError(f'{output_dir}: cannot be written: {in_one_line(error)}; {files.OTHER_FOLDER}') from error


def _fingerprint(json_file: str, vocabulary: Vocabulary, num_shards: int, max_tags: int, seed: int) -> str:
  """Return a hash of everything that determines the contents of the shards."""
  try:
    stat = tf.io.gfile.stat(json_file)
  except tf.errors.OpError as error:
    raise UserError(f'{json_file}: cannot be read: {in_one_line(error)}') from error
  options = f'{stat.length} {stat.mtime_nsec} {vocabulary.digest()} {num_shards} {max_tags} {seed}'
  return hashlib.sha256(options.encode()).hexdigest()


def _check_fingerprint(output_dir: str, split: str, fingerprint: str) -> bool:
  """Return whether this conversion was begun there; raises UserError if another one was."""
  path = stream_index_path(output_dir, split)
  if not tf.io.gfile.exists(path):
    return False
  index = StreamIndex.load(path)
  if index.fingerprint != fingerprint:
    raise UserError(f'{path}: belongs to a conversion of another file or vocabulary or with other options; use another '
                    '--out or delete that folder')
  return True


def _rows_dir(output_dir: str, split: str, fingerprint: str) -> str:
  """Return a local folder for the rows: inside output_dir, or a temporary one if that is remote."""
  parent = tempfile.gettempdir() if '://' in output_dir else output_dir
  return os.path.join(parent, f'{split}-rows-{fingerprint[:16]}')


class _ShardRows:
  """The rows of each shard, in a text file: [line number, image, [class, ...]]."""

  def __init__(self, folder: str, num_shards: int) -> None:
    self._folder, self._num_shards = folder, num_shards

  def path(self, shard: int) -> str:
    """Return the path of the rows of a shard."""
    return os.path.join(self._folder, f'{shard:05d}.jsonl')

  def count(self, shards: list[int]) -> int:
    """Return the number of rows of some shards."""
    with open(self._manifest()) as file:
      counts = json.load(file)
    return sum(counts[i] for i in shards)

  def rows(self, shard: int) -> Iterator[tuple[int, str, list[int]]]:
    """Yield the rows of a shard."""
    with open(self.path(shard), 'rb') as file:
      yield from map(json.loads, file)

  def distribute(self, json_file: str, vocabulary: Vocabulary, max_tags: int, seed: int, shards: list[int]) -> None:
    """Write the rows of all shards, unless those of `shards` exist."""
    if os.path.exists(self._manifest()) and all(os.path.exists(self.path(i)) for i in shards):
      return
    self.remove()
    os.makedirs(self._folder)
    problems = Problems()
    buffers: list[list[bytes]] = [[] for _ in range(self._num_shards)]
    counts = [0] * self._num_shards
    size, order, total = 0, [], 0
    for number, image, classes in self._usable(json_file, vocabulary, max_tags, problems):
      if not order:  # a new round: a new random order of all shards
        turn = total // self._num_shards
        order = np.argsort(keyed_bits(seed, 'deal', turn, np.arange(self._num_shards))).tolist()
      shard = order.pop()
      total += 1
      if total % 1_000_000 == 0:
        logging.info('%s: %d images are distributed among the shards', json_file, total)
      line = json.dumps([number, image, classes]).encode() + b'\n'
      buffers[shard].append(line)
      counts[shard] += 1
      size += len(line)
      if size > _BUFFER:
        self._flush(buffers)
        size = 0
    self._flush(buffers)
    problems.log(json_file)
    if not any(counts):
      raise UserError(f'{json_file}: no image has a tag of the vocabulary {vocabulary.path}; was it built from another '
                      'file?')
    files.write(self._manifest(), json.dumps(counts))

  def remove(self) -> None:
    """Delete the rows of all shards."""
    shutil.rmtree(self._folder, ignore_errors=True)

  def _usable(self, json_file: str, vocabulary: Vocabulary, max_tags: int,
              problems: Problems) -> Iterator[tuple[int, str, list[int]]]:
    for row in read_rows(json_file, problems):
      classes = vocabulary.classes(row.tags)
      if not classes:
        problems.add('images without a tag of the vocabulary', 1, row.image)
        continue
      if len(classes) > max_tags:
        problems.add(f'images with more than max_tags = {max_tags} tags', 1, row.image)
      yield row.number, row.image, classes[:max_tags]

  def _flush(self, buffers: list[list[bytes]]) -> None:
    for shard, lines in enumerate(buffers):
      with open(self.path(shard), 'ab') as file:
        file.writelines(lines)
      lines.clear()

  def _manifest(self) -> str:
    return os.path.join(self._folder, 'counts.json')


def _write_shards(rows: _ShardRows, paths: list[str], todo: list[int], image_dir: str, fingerprint: str,
                  num_workers: int | None) -> None:
  """Write the missing shards, one per thread; an error or an interrupt stops all threads at their next image."""
  progress = Progress('images', rows.count(todo), sys.stderr)
  stop = threading.Event()
  with ThreadPoolExecutor(num_workers or 2 * (os.cpu_count() or 1)) as pool:
    try:
      futures = [pool.submit(_write_shard, rows.rows(i), paths[i], image_dir, fingerprint, progress, stop)
                 for i in todo]
      for future in as_completed(futures):
        future.result()
    finally:
      stop.set()
  progress.close()


def _write_shard(rows: Iterator[tuple[int, str, list[int]]], path: str, image_dir: str, fingerprint: str,
                 progress: Progress, stop: threading.Event) -> None:
  """Write one file, and then its columns, which mark it as finished."""
  offsets, starts, tags, left_out, size = [], [0], [], 0, 0
  with files.replacing(path) as temporary, tf.io.TFRecordWriter(temporary) as writer:
    for number, name, classes in rows:
      if stop.is_set():
        raise InterruptedError('stopped')
      progress.count()
      try:
        file = inside(image_dir, name)
        if file is None:
          raise ImageError(f'{shorten(name)}: is not in the folder {image_dir} (--image_dir)')
        encoded = read_file(file, shorten(file))
        decode_image(encoded, name)
      except ImageError as error:
        left_out += 1
        if left_out <= 3:
          logging.warning('%s: image dropped: %s', os.path.basename(path), error)
        continue
      payload = encode(TagRecord(number, name, encoded, tuple(classes)))
      writer.write(payload)
      offsets.append(size)
      tags += classes
      starts.append(len(tags))
      size += HEADER + len(payload) + FOOTER
  write_columns(path, ShardColumns(np.array(offsets, np.int64), np.array(starts, np.int64), np.array(tags, np.int32),
                                   size, left_out, fingerprint))


def _finish(output_dir: str, split: str, paths: list[str], fingerprint: str, vocabulary: Vocabulary) -> StreamIndex:
  """Summarise the columns of all shards in the index, and write it."""
  counts = np.zeros(len(vocabulary), np.int64)
  shards, left_out = [], 0
  for path in paths:
    columns = read_columns(path, fingerprint)
    if columns is None:
      raise UserError(f'{columns_path(path)}: was deleted or damaged; run the same command again to continue')
    counts += np.bincount(columns.tags, minlength=len(vocabulary))
    shards.append(StreamShard(os.path.basename(path), columns.bytes, len(columns.offsets),
                              int(np.diff(columns.starts).max(initial=0))))
    left_out += columns.left_out
  if left_out:
    logging.warning('%s: %d missing or unreadable images were dropped', output_dir, left_out)
  if not sum(shard.images for shard in shards):
    raise UserError(f'{output_dir}: none of the {left_out} images can be read; check --image_dir')
  index = StreamIndex(fingerprint, vocabulary.digest(), shards, counts.tolist(), left_out)
  write_stream_index(stream_index_path(output_dir, split), index)
  return index
