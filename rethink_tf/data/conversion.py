"""Conversion of COCO json and images to TFRecords in the schema of tf-models-official: the work of data.convert.

Shards are written in parallel and atomically, one image at a time. To finish an interrupted conversion, run the same
command again: finished shards are kept.
"""

import hashlib
import json
import os
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.console import Progress
from rethink_tf.data.categories import categories_to_json, shorten
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.graph_record import CROPS
from rethink_tf.data.detection.record_format import Record, encode
from rethink_tf.data.detection.record_index import Index, Shard, index_path, read_index, write_index
from rethink_tf.data.images import ImageError
from rethink_tf.data.images import decode as decode_image
from rethink_tf.data.shards import refuse_other_shards, shard_path
from rethink_tf.data.tfrecord import FOOTER, HEADER
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.storage import files


def convert(source: CocoSource, output_dir: str, split: str, num_shards: int = 32, png_masks: bool = True,
            num_workers: int | None = None) -> Index:
  """Write all images of a source, in the order of their ids, and the index that `RecordSource` reads.

  Missing and unreadable images are dropped, with a warning.

  Args:
    source: constructed with training=False.
    output_dir: local or gs://; created if it does not exist.
    split: prefix of the file names.
    num_shards: number of files; at most the number of images.
    png_masks: write the masks of tf-models-official too; `RecordSource` does not need them.
    num_workers: threads; by default two per core.

  Raises:
    UserError: the folder cannot be written to, or contains another conversion.
  """
  if num_shards < 1:
    raise UserError(f'num_shards = {num_shards} should be at least 1')
  num_shards = min(num_shards, len(source.image_ids))
  chunks = np.array_split(np.arange(len(source.image_ids)), num_shards)  # images of each shard
  paths = [shard_path(output_dir, split, i, num_shards) for i in range(num_shards)]
  try:
    tf.io.gfile.makedirs(output_dir)
    journal = _Journal(index_path(output_dir, split), source, png_masks, num_shards)
    refuse_other_shards(output_dir, split, paths if journal.begun else ())
    journal.begin()
    todo = [i for i in range(num_shards) if not journal.has(paths[i])]
    if len(todo) < num_shards:
      logging.info('%s: %d of %d shards exist already, %d remain', output_dir, num_shards - len(todo), num_shards,
                   len(todo))
    files.write(os.path.join(output_dir, f'{split}-categories.json'),
                json.dumps({'categories': categories_to_json(source.categories)}))
    progress = Progress('images', sum(len(chunks[i]) for i in todo), sys.stderr)
    stop = threading.Event()
    with ThreadPoolExecutor(num_workers or 2 * (os.cpu_count() or 1)) as pool:
      try:
        futures = [pool.submit(_write_shard, source, chunks[i], paths[i], png_masks, journal.conversion, progress, stop)
                   for i in todo]
        _collect(futures, journal, stop)
      finally:  # also when interrupted: threads stop at their next image
        stop.set()
    progress.close()
    return journal.finish(paths)
  except tf.errors.OpError as error:
    raise UserError(f'{output_dir}: cannot be written: {in_one_line(error)}; {files.OTHER_FOLDER}') from error


class _Journal:
  """The index file during the conversion: it lists the finished shards."""

  def __init__(self, path: str, source: CocoSource, png_masks: bool, num_shards: int) -> None:
    options = f'{source.digest()} {png_masks} {num_shards} {source.num_keypoints} {CROPS}'
    if source.missing:  # files that have come since would change which shard an image belongs to
      options += f' {source.missing}'
    fingerprint = hashlib.sha256(options.encode()).hexdigest()
    index = read_index(path)
    if index and index.fingerprint != fingerprint:
      raise UserError(f'{path}: belongs to a conversion of other annotations or images, with other options, or by an '
                      'earlier version; use another --output_dir or delete that one')
    names = {str(category.id): category.name for category in source.categories}
    # The fingerprint, of the positions of classes, is older than this.
    if index and index.names and dict(index.names) != names:
      raise UserError(f'{path}: belongs to a conversion with other categories ({_difference(index.names, names)}); use '
                      'another --output_dir or delete that one')
    named = json.dumps([fingerprint, names, categories_to_json(source.categories)])
    self.conversion = index.conversion if index else hashlib.sha256(named.encode()).hexdigest()[:16]
    self._path = path
    self.begun = index is not None  # whether an earlier call has begun this conversion
    missing = [f'{name}: no such file' for name in source.missing]
    self._index = index or Index([], [category.id for category in source.categories], source.problems, missing,
                                 fingerprint, conversion=self.conversion)
    self._index = self._index._replace(names=names)
    self._shards = {shard.file: shard for shard in self._index.shards}

  def begin(self) -> None:
    """Write the journal if it is new: shards that no journal lists are not this conversion's to replace."""
    if not self.begun:
      self._write(complete=False)

  def has(self, path: str) -> bool:
    """Whether a shard is finished and has its recorded size."""
    shard = self._shards.get(os.path.basename(path))
    return shard is not None and tf.io.gfile.exists(path) and tf.io.gfile.stat(path).length == shard.bytes

  def add(self, shard: Shard, left_out: list[str]) -> None:
    """Record a finished shard and the messages of its dropped images."""
    self._shards[shard.file] = shard
    self._index = self._index._replace(left_out=sorted({*self._index.left_out, *left_out}))
    self._write(complete=False)

  def finish(self, paths: list[str]) -> Index:
    """Mark the index as complete, with the shards in the order of `paths`."""
    if self._index.left_out:
      logging.warning('%d missing or unreadable images were dropped: %s', len(self._index.left_out),
                      '; '.join(self._index.left_out[:3]))
    self._shards = {os.path.basename(path): self._shards[os.path.basename(path)] for path in paths}  # in order
    self._write(complete=True)
    return self._index

  def _write(self, complete: bool) -> None:
    self._index = self._index._replace(shards=list(self._shards.values()), complete=complete)
    write_index(self._path, self._index)


def _difference(was: Mapping[str, str], now: Mapping[str, str]) -> str:
  id_ = next(id_ for id_ in sorted(was.keys() | now.keys(), key=int) if was.get(id_) != now.get(id_))
  there, here = (shorten(names[id_]) if id_ in names else 'no category' for names in (was, now))
  return f'{id_} is {there} there, {here} here'


def _collect(futures: list[Future], journal: _Journal, stop: threading.Event) -> None:
  """Record each shard when it is finished; after an error, record those that still finish, then raise it."""
  first_error = None
  for future in as_completed(futures):
    error = future.exception()
    if error is None:
      journal.add(*future.result())
    elif first_error is None:
      first_error = error
      stop.set()
  if first_error is not None:
    raise first_error


def _write_shard(source: CocoSource, positions: np.ndarray, path: str, png_masks: bool, conversion: str,
                 progress: Progress, stop: threading.Event) -> tuple[Shard, list[str]]:
  """Write one file; return its index entry, and the messages of dropped images."""
  shard = Shard(os.path.basename(path), 0, [], [], [], [], [], [], [])
  left_out = []
  size = 0
  _raise_if_set(stop)
  with files.replacing(path) as temporary, tf.io.TFRecordWriter(temporary) as writer:
    for i in positions:
      _raise_if_set(stop)
      height, width = source.sizes[i].tolist()
      try:
        encoded = source.read(i)
        # Checked here, since a damaged image stops the reader of tf-models-official.
        image = decode_image(encoded, source.file_names[i], (height, width))
      except ImageError as error:
        left_out.append(str(error))
        progress.count()
        continue
      record = Record(str(source.image_ids[i]), source.file_names[i], height, width, encoded,
                      source.image_annotations(i))
      payload = encode(record, source.categories, png_masks, source.example(i, image), conversion)
      writer.write(payload)
      for column, value in zip(shard[2:], (size, record.source_id, height, width, int(source.num_instances[i]),
                                           int(source.num_visible[i]), len(record.annotations)), strict=True):
        column.append(value)
      size += HEADER + len(payload) + FOOTER
      progress.count()
  return shard._replace(bytes=size), left_out


def _raise_if_set(stop: threading.Event) -> None:
  if stop.is_set():
    raise InterruptedError('stopped')
