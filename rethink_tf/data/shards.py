"""Names of the shards of a data set: <split>-00000-of-00032.tfrecord."""

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import tensorflow as tf
from absl import logging

from rethink_tf.data.folders import list_names
from rethink_tf.data.tfrecord import DamagedRecord, scan
from rethink_tf.errors import UserError, in_one_line


def shard_path(data_dir: str, split: str, shard: int, num_shards: int) -> str:
  """Return the path of a shard."""
  return os.path.join(data_dir, f'{split}-{shard:05d}-of-{num_shards:05d}.tfrecord')


def find_shards(data_dir: str, split: str) -> list[str]:
  """Return the paths of all shards of a split, in order.

  Raises:
    UserError: there are none, some are missing, there are two sets, or one has a number beyond their total.
  """
  shards = _list_shards(data_dir, split)
  if not shards:
    raise UserError(f'{data_dir}: no shards {split}-00000-of-….tfrecord there; write them from a COCO json with '
                    f'`python -m rethink_tf.data.convert --data_dir=… --split={split} --output_dir={data_dir}`')
  sets = sorted({(shard.total, shard.suffix) for shard in shards})
  if len(sets) > 1:
    raise UserError(f'{data_dir}: contains two sets of shards of {split}, '
                    f'{" and ".join(f"…-of-{total:05d}{suffix}" for total, suffix in sets)}: delete one')
  names, total = {shard.number: shard.name for shard in shards}, sets[0][0]
  beyond = [name for number, name in names.items() if number >= total]
  if beyond:
    raise UserError(f'{os.path.join(data_dir, beyond[0])}: {total} shards have numbers from 00000 to {total - 1:05d}: '
                    'it was renamed or is of another conversion; remove it, or restore its name')
  missing = [number for number in range(total) if number not in names]
  if missing:
    raise UserError(f'{data_dir}: {len(missing)} of the {total} shards of {split} are missing, '
                    f'e.g. {missing[0]:05d}; if the conversion was interrupted, run the same command again to finish '
                    'it')
  return [os.path.join(data_dir, names[number]) for number in range(total)]


def refuse_other_shards(output_dir: str, split: str, paths: Collection[str]) -> None:
  """Check that a folder has no shards of a split but those of a conversion that was begun there.

  Raises:
    UserError: it has; a conversion would replace them, or leave two sets that cannot be read.
  """
  own = set(map(os.path.basename, paths))
  others = [shard.name for shard in _list_shards(output_dir, split) if shard.name not in own]
  if others:
    raise UserError(f'{output_dir}: contains shards that this conversion has not written ({others[0]}'
                    f'{f" and {len(others) - 1} more" if others[1:] else ""}): choose another folder, or delete them')


def length_of(path: str) -> int:
  """Return the bytes of a shard; raises UserError if it cannot be read."""
  with _readable(path):
    if tf.io.gfile.isdir(path):
      raise IsADirectoryError('it is a folder')
    return tf.io.gfile.stat(path).length


def scan_readable(path: str) -> Iterator[tuple[int, bytes | DamagedRecord]]:
  """Scan a shard as `tfrecord.scan`; raises UserError if it cannot be read."""
  with _readable(path):
    yield from scan(path)


def warn_of_empty(lengths: Sequence[tuple[str, int]], where: str) -> None:
  """Log shards, given with their bytes, that are empty."""
  empty = [name for name, length in lengths if not length]
  if empty:
    logging.warning('%s: %d shards are empty, e.g. %s: if they were truncated, images are missing', where, len(empty),
                    empty[0])


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
  try:
    yield
  except (OSError, tf.errors.OpError) as error:
    raise UserError(f'{path}: cannot be read: {in_one_line(error)}') from error


class _Named(NamedTuple):
  name: str
  number: int
  total: int
  suffix: str


def _list_shards(data_dir: str, split: str) -> list[_Named]:
  names = list_names(data_dir) if tf.io.gfile.isdir(data_dir) else []
  pattern = re.compile(rf'{re.escape(split)}-(\d{{5}})-of-(\d{{5}})(\.tfrecords?)?')
  found = [match for match in map(pattern.fullmatch, sorted(names)) if match]
  return [_Named(match[0], int(match[1]), int(match[2]), match[3] or '') for match in found]
