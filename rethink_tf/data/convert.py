"""COCO json and photographs -> TFRecords in the schema of tf-models-official.

  python -m rethink_tf.data.convert --data_dir=~/coco --split=train2017 --output_dir=gs://bucket/coco --num_shards=256

Shards are written in parallel, a photograph at a time, beside their place and then renamed. An interrupted conversion
is finished by the same command: shards that are done are kept.
"""

import hashlib
import json
import os
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

import numpy as np
import tensorflow as tf
from absl import app, flags, logging

from rethink_tf.console import Progress
from rethink_tf.data.categories import categories_to_json
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.record_format import Record, encode
from rethink_tf.data.detection.records import Index, Shard, index_path, read_index, write_index
from rethink_tf.data.images import ImageError
from rethink_tf.data.images import decode as decode_image
from rethink_tf.data.shards import shard_path
from rethink_tf.data.tfrecord import FOOTER, HEADER
from rethink_tf.errors import UserError, as_command
from rethink_tf.storage import files


def convert(source: CocoSource, output_dir: str, split: str, num_shards: int = 32, png_masks: bool = True,
            num_workers: int | None = None) -> Index:
  """Writes all photographs of a source, in the order of their ids, and the index that `RecordSource` reads.

  A photograph that is missing or unreadable is left out, with a warning.

  Args:
    source: what to convert, made with training=False.
    output_dir: local or gs://; made if need be.
    split: first part of the file names.
    num_shards: number of files; no more than there are photographs.
    png_masks: write official's masks too; `RecordSource` does not need them.
    num_workers: threads; by default two a core.

  Raises:
    UserError: nothing can be written there, or another conversion has begun there.
  """
  if num_shards < 1:
    raise UserError(f'num_shards = {num_shards} should be at least 1')
  num_shards = min(num_shards, len(source.image_ids))
  parts = np.array_split(np.arange(len(source.image_ids)), num_shards)
  paths = [shard_path(output_dir, split, i, num_shards) for i in range(num_shards)]
  try:
    tf.io.gfile.makedirs(output_dir)
    journal = _Journal(index_path(output_dir, split), source, png_masks, num_shards)
    todo = [i for i in range(num_shards) if not journal.has(paths[i])]
    if len(todo) < num_shards:
      logging.info('%s: %d of %d shards are there already, %d to do', output_dir, num_shards - len(todo), num_shards,
                   len(todo))
    files.write(os.path.join(output_dir, f'{split}-categories.json'),
               json.dumps({'categories': categories_to_json(source.categories)}))
    progress = Progress('images', sum(len(parts[i]) for i in todo), sys.stderr)
    stop = threading.Event()
    with ThreadPoolExecutor(num_workers or 2 * (os.cpu_count() or 1)) as pool:
      try:
        futures = [pool.submit(_write_shard, source, parts[i], paths[i], png_masks, progress, stop) for i in todo]
        _collect(futures, journal, stop)
      finally:  # also when interrupted: what is in work ends at its next photograph
        stop.set()
    progress.close()
    return journal.finish(paths)
  except tf.errors.OpError as error:
    raise UserError(f'{output_dir}: cannot be written: {error.message}') from error


class _Journal:
  """The index file while it grows: a shard that it lists is finished."""

  def __init__(self, path: str, source: CocoSource, png_masks: bool, num_shards: int) -> None:
    options = f'{source.digest()} {png_masks} {num_shards} {source.num_keypoints}'
    fingerprint = hashlib.sha256(options.encode()).hexdigest()
    index = read_index(path)
    if index and index.fingerprint != fingerprint:
      raise UserError(f'{path}: is of a conversion of other annotations or with other options; take another '
                      '--output_dir or delete that one')
    self._path = path
    self._index = index or Index([], [category.id for category in source.categories], source.skipped, [], fingerprint)
    self._shards = {shard.file: shard for shard in self._index.shards}

  def has(self, path: str) -> bool:
    shard = self._shards.get(os.path.basename(path))
    return shard is not None and tf.io.gfile.exists(path) and tf.io.gfile.stat(path).length == shard.bytes

  def add(self, shard: Shard, left_out: list[str]) -> None:
    self._shards[shard.file] = shard
    self._index = self._index._replace(left_out=sorted({*self._index.left_out, *left_out}))
    self._write(complete=False)

  def finish(self, paths: list[str]) -> Index:
    if self._index.left_out:
      logging.warning('%d photographs were left out, missing or unreadable: %s', len(self._index.left_out),
                      '; '.join(self._index.left_out[:3]))
    self._shards = {os.path.basename(path): self._shards[os.path.basename(path)] for path in paths}  # in order
    self._write(complete=True)
    return self._index

  def _write(self, complete: bool) -> None:
    self._index = self._index._replace(shards=list(self._shards.values()), complete=complete)
    write_index(self._path, self._index)


def _collect(futures: list[Future], journal: _Journal, stop: threading.Event) -> None:
  """Notes each shard as it is finished; after an error notes those that still finish, then raises it."""
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


def _write_shard(source: CocoSource, positions: np.ndarray, path: str, png_masks: bool, progress: Progress,
                 stop: threading.Event) -> tuple[Shard, list[str]]:
  """One file; returns its index, and which photographs are not in it."""
  shard = Shard(os.path.basename(path), 0, [], [], [], [], [], [], [])
  left_out = []
  size = 0
  _check(stop)
  with files.replacing(path) as temporary, tf.io.TFRecordWriter(temporary) as writer:
    for i in positions:
      _check(stop)
      height, width = source.sizes[i].tolist()
      try:
        encoded = source.read(i)
        decode_image(encoded, source.file_names[i], (height, width))  # a damaged one would stop official's reader
      except ImageError as error:
        left_out.append(str(error))
        progress.count()
        continue
      record = Record(str(source.image_ids[i]), source.file_names[i], height, width, encoded,
                      source.image_annotations(i))
      payload = encode(record, source.categories, png_masks)
      writer.write(payload)
      for column, value in zip(shard[2:], (size, record.source_id, height, width, int(source.num_instances[i]),
                                           int(source.num_visible[i]), len(record.annotations)), strict=True):
        column.append(value)
      size += HEADER + len(payload) + FOOTER
      progress.count()
  return shard._replace(bytes=size), left_out


def _check(stop: threading.Event) -> None:
  if stop.is_set():
    raise InterruptedError




def main(argv: list[str]) -> None:
  """The command line."""
  args = flags.FLAGS
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().setFormatter(None)  # plain lines, without the prefix of a server log

  def work():
    source = CocoSource(args.data_dir, args.split, args.annotation_file, args.image_dir, args.keypoints,
                        args.keypoints_file)
    index = convert(source, os.path.expanduser(args.output_dir), args.split, args.num_shards, args.png_masks,
                    args.num_workers)
    print(f'{sum(len(shard.offsets) for shard in index.shards)} photographs in {len(index.shards)} shards in '
          f'{args.output_dir}; read them with @records(), records.data_dir and records.split = {args.split!r}')

  as_command(work, argv, 'stopped; the same command continues')


if __name__ == '__main__':
  flags.DEFINE_string('data_dir', None, 'folder of the data set', required=True)
  flags.DEFINE_string('split', 'train2017', 'names the shards, and the defaults of the two following')
  flags.DEFINE_string('annotation_file', None, 'COCO json; default annotations/instances_<split>.json')
  flags.DEFINE_string('image_dir', None, 'folder of the photographs; default <split>')
  flags.DEFINE_bool('keypoints', False, 'carry person keypoints along')
  flags.DEFINE_string('keypoints_file', None, 'json with them; default annotations/person_keypoints_<split>.json')
  flags.DEFINE_string('output_dir', None, 'where to write, local or gs://', required=True)
  flags.DEFINE_integer('num_shards', 32, 'number of files', lower_bound=1)
  flags.DEFINE_bool('png_masks', True, "write tf-models-official's PNG masks too")
  flags.DEFINE_integer('num_workers', None, 'threads; default two a core', lower_bound=1)
  app.run(main)
