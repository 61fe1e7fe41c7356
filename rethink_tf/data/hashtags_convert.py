"""Json-lines of (image, tags) and the photographs -> sharded TFRecords for weakly supervised pre-training.

  python -m rethink_tf.data.hashtags_convert --json=images.jsonl --vocabulary=vocabulary.json --out=gs://bucket/tags

First the rows are dealt out to the shards as text, each round of as many rows as there are shards in a random
order of its own: a shard is a random sample of the file however that is sorted. Then shards are written in parallel,
beside their place and renamed. Memory holds a buffer of rows and one photograph a thread. An interrupted conversion is
finished by the same command: shards that are done are kept.
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
from typing import Any

import numpy as np
import tensorflow as tf
from absl import app, flags, logging

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
from rethink_tf.data.classification.hashtags import Vocabulary, read_rows
from rethink_tf.data.folders import inside
from rethink_tf.data.images import ImageError, read_bounded
from rethink_tf.data.images import decode as decode_image
from rethink_tf.data.keyed_random import keyed_bits
from rethink_tf.data.problems import Problems
from rethink_tf.data.shards import shard_path
from rethink_tf.data.tfrecord import FOOTER, HEADER
from rethink_tf.errors import UserError, as_command
from rethink_tf.storage import files

IMAGES_PER_SHARD = 8192
_BUFFER = 32 << 20  # bytes of rows that are held before they are dealt out


def convert_hashtags(json_file: str, vocabulary: Vocabulary, output_dir: str, split: str = 'train',
                     image_dir: str | None = None, num_shards: int | None = None, max_tags: int = 64, seed: int = 0,
                     num_workers: int | None = None) -> StreamIndex:
  """Writes all images that carry a tag of the vocabulary, and the index that `HashtagSource` reads.

  An image that is missing or unreadable is left out, and counted in the index.

  Args:
    json_file: a line an image, {"image": path, "tags": [...]}.
    vocabulary: whose classes are written; copied beside the shards.
    output_dir: local or gs://; made if need be.
    split: first part of the file names.
    image_dir: where the images are, and nowhere else: the paths in the file are relative to it. By default the file's
      own folder.
    num_shards: number of files; by default one for each 8192 images of the vocabulary. At least one a host.
    max_tags: of an image; of more, those that come first in the vocabulary are kept.
    seed: of the dealing out.
    num_workers: threads; by default two a core.

  Raises:
    UserError: the file cannot be read, nothing in it can be used, nothing can be written, or another conversion has
      begun in that folder.
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
    _refuse_others(output_dir, split, fingerprint)
    write_stream_index(stream_index_path(output_dir, split), StreamIndex(fingerprint, vocabulary.digest()))
    vocabulary.save(vocabulary_path(output_dir, split))
    if len(todo) < num_shards:
      logging.info('%s: %d of %d shards are there already, %d to do', output_dir, num_shards - len(todo), num_shards,
                   len(todo))
    if todo:
      dealt = _Dealt(_spool_dir(output_dir, split, fingerprint), num_shards)
      dealt.deal(json_file, vocabulary, max_tags, seed, todo)
      _write_shards(dealt, paths, todo, image_dir, fingerprint, num_workers)
      dealt.remove()
    return _finish(output_dir, split, paths, fingerprint, vocabulary)
  except tf.errors.OpError as error:
    raise UserError(f'{output_dir}: cannot be written: {error.message}') from error
  except OSError as error:
    raise UserError(f'{output_dir}: cannot be written: {error}') from error


def _fingerprint(json_file: str, vocabulary: Vocabulary, num_shards: int, max_tags: int, seed: int) -> str:
  """Of what decides which image lies in which shard with which tags."""
  try:
    stat = tf.io.gfile.stat(json_file)
  except tf.errors.OpError as error:
    raise UserError(f'{json_file}: cannot be read: {error.message}') from error
  options = f'{stat.length} {stat.mtime_nsec} {vocabulary.digest()} {num_shards} {max_tags} {seed}'
  return hashlib.sha256(options.encode()).hexdigest()


def _refuse_others(output_dir: str, split: str, fingerprint: str) -> None:
  path = stream_index_path(output_dir, split)
  if not tf.io.gfile.exists(path):
    return
  index = StreamIndex.load(path)
  if index.fingerprint != fingerprint:
    raise UserError(f'{path}: is of a conversion of another file or vocabulary or with other options; take another '
                    '--out or delete that folder')


def _spool_dir(output_dir: str, split: str, fingerprint: str) -> str:
  """A local folder for the rows: in the output, or where that is not local among the temporary files."""
  parent = tempfile.gettempdir() if '://' in output_dir else output_dir
  return os.path.join(parent, f'{split}-rows-{fingerprint[:16]}')


class _Dealt:
  """The rows of every shard as a text file: [number of the line, image, [class, ...]]."""

  def __init__(self, folder: str, num_shards: int) -> None:
    self._folder, self._num_shards = folder, num_shards

  def path(self, shard: int) -> str:
    return os.path.join(self._folder, f'{shard:05d}.jsonl')

  def count(self, shards: list[int]) -> int:
    """Rows of these shards."""
    with open(self._manifest()) as file:
      counts = json.load(file)
    return sum(counts[i] for i in shards)

  def rows(self, shard: int) -> Iterator[tuple[int, str, list[int]]]:
    with open(self.path(shard), 'rb') as file:
      yield from map(json.loads, file)

  def deal(self, json_file: str, vocabulary: Vocabulary, max_tags: int, seed: int, shards: list[int]) -> None:
    """Makes the files of all shards, unless those that are needed are there."""
    if os.path.exists(self._manifest()) and all(os.path.exists(self.path(i)) for i in shards):
      return
    self.remove()
    os.makedirs(self._folder)
    problems = Problems()
    waiting: list[list[bytes]] = [[] for _ in range(self._num_shards)]
    counts = [0] * self._num_shards
    size, order, dealt_out = 0, [], 0
    for number, image, classes in self._usable(json_file, vocabulary, max_tags, problems):
      if not order:  # a round is over: a new random order of all shards
        turn = dealt_out // self._num_shards
        order = np.argsort(keyed_bits(seed, 'deal', turn, np.arange(self._num_shards))).tolist()
      shard = order.pop()
      dealt_out += 1
      if dealt_out % 1_000_000 == 0:
        logging.info('%s: %d images are dealt out to the shards', json_file, dealt_out)
      line = json.dumps([number, image, classes]).encode() + b'\n'
      waiting[shard].append(line)
      counts[shard] += 1
      size += len(line)
      if size > _BUFFER:
        self._flush(waiting)
        size = 0
    self._flush(waiting)
    problems.log(json_file)
    if not any(counts):
      raise UserError(f'{json_file}: no image has a tag of the vocabulary {vocabulary.path}: is it of another file?')
    with open(self._manifest(), 'w') as file:
      json.dump(counts, file)

  def remove(self) -> None:
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

  def _flush(self, waiting: list[list[bytes]]) -> None:
    for shard, lines in enumerate(waiting):
      with open(self.path(shard), 'ab') as file:
        file.writelines(lines)
      lines.clear()

  def _manifest(self) -> str:
    return os.path.join(self._folder, 'counts.json')


def _write_shards(dealt: _Dealt, paths: list[str], todo: list[int], image_dir: str, fingerprint: str,
                  num_workers: int | None) -> None:
  """All shards that are missing, a thread each; an error or an interrupt stops the others at their next image."""
  progress = Progress('images', dealt.count(todo), sys.stderr)
  stop = threading.Event()
  with ThreadPoolExecutor(num_workers or 2 * (os.cpu_count() or 1)) as pool:
    try:
      futures = [pool.submit(_write_shard, dealt.rows(i), paths[i], image_dir, fingerprint, progress, stop)
                 for i in todo]
      for future in as_completed(futures):
        future.result()
    finally:
      stop.set()
  progress.close()


def _write_shard(rows: Iterator[tuple[int, str, list[int]]], path: str, image_dir: str, fingerprint: str,
                 progress: Progress, stop: threading.Event) -> None:
  """One file and its columns, which say that it is finished."""
  offsets, starts, tags, left_out, size = [], [0], [], 0, 0
  with files.replacing(path) as temporary, tf.io.TFRecordWriter(temporary) as writer:
    for number, name, classes in rows:
      if stop.is_set():
        raise InterruptedError('stopped')
      progress.count()
      try:
        inner = inside(image_dir, name)
        if inner is None:
          raise ImageError(f'{shorten(name)}: is not in the folder {image_dir} (--image_dir)')
        encoded = _read(inner)
        decode_image(encoded, name)
      except ImageError as error:
        left_out += 1
        if left_out <= 3:
          logging.warning('%s: left out: %s', os.path.basename(path), error)
        continue
      payload = encode(TagRecord(number, name, encoded, tuple(classes)))
      writer.write(payload)
      offsets.append(size)
      tags += classes
      starts.append(len(tags))
      size += HEADER + len(payload) + FOOTER
  write_columns(path, ShardColumns(np.array(offsets, np.int64), np.array(starts, np.int64), np.array(tags, np.int32),
                                   size, left_out, fingerprint))


def _read(path: str) -> bytes:
  try:
    with tf.io.gfile.GFile(path, 'rb') as file:
      return read_bounded(file, path)
  except tf.errors.OpError as error:
    raise ImageError(f'{shorten(path)}: cannot be read: {error.message}') from error


def _finish(output_dir: str, split: str, paths: list[str], fingerprint: str, vocabulary: Vocabulary) -> StreamIndex:
  """Sums up the columns of all shards, one after another, in the index."""
  counts = np.zeros(len(vocabulary), np.int64)
  shards, left_out = [], 0
  for path in paths:
    columns = read_columns(path, fingerprint)
    if columns is None:
      raise UserError(f'{columns_path(path)}: is gone; the same command continues')
    counts += np.bincount(columns.tags, minlength=len(vocabulary))
    shards.append(StreamShard(os.path.basename(path), columns.bytes, len(columns.offsets),
                              int(np.diff(columns.starts).max(initial=0))))
    left_out += columns.left_out
  if left_out:
    logging.warning('%s: %d images were left out, missing or unreadable', output_dir, left_out)
  if not sum(shard.images for shard in shards):
    raise UserError(f'{output_dir}: none of the {left_out} images can be read; check --image_dir')
  index = StreamIndex(fingerprint, vocabulary.digest(), shards, counts.tolist(), left_out)
  write_stream_index(stream_index_path(output_dir, split), index)
  return index


def main(argv: list[str]) -> None:
  """The command line."""
  args: Any = flags.FLAGS
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().setFormatter(None)  # plain lines, without the prefix of a server log

  def work():
    index = convert_hashtags(os.path.expanduser(args.json), Vocabulary.load(os.path.expanduser(args.vocabulary)),
                             os.path.expanduser(args.out), args.split, args.image_dir, args.shards, args.max_tags,
                             num_workers=args.num_workers)
    print(f'{index.num_images} images in {len(index.shards)} shards in {args.out}; read them with @hashtags(), '
          f'hashtags.data_dir and hashtags.split = {args.split!r}')

  as_command(work, argv, 'stopped; the same command continues')


if __name__ == '__main__':
  flags.DEFINE_string('json', None, 'json-lines of {"image": path, "tags": [...]}, local or gs://', required=True)
  flags.DEFINE_string('vocabulary', None, 'of `python -m rethink_tf.data.classification.hashtags`', required=True)
  flags.DEFINE_string('out', None, 'folder to write to, local or gs://', required=True)
  flags.DEFINE_string('split', 'train', 'names the shards')
  flags.DEFINE_string('image_dir', None, 'folder that holds the images; default the json\'s own')
  flags.DEFINE_integer('shards', None, f'number of files; default one for each {IMAGES_PER_SHARD} images',
                       lower_bound=1)
  flags.DEFINE_integer('max_tags', 64, 'tags that an image keeps', lower_bound=1)
  flags.DEFINE_integer('num_workers', None, 'threads; default two a core', lower_bound=1)
  app.run(main)
