"""Names of the shards of a data set: <split>-00000-of-00032.tfrecord."""

import os
import re

import tensorflow as tf

from rethink_tf.data.folders import list_names
from rethink_tf.errors import UserError


def shard_path(data_dir: str, split: str, shard: int, num_shards: int) -> str:
  """Return the path of a shard."""
  return os.path.join(data_dir, f'{split}-{shard:05d}-of-{num_shards:05d}.tfrecord')


def find_shards(data_dir: str, split: str) -> list[str]:
  """Return the paths of all shards of a split, in order.

  Raises:
    UserError: there are none, some are missing, or there are two sets.
  """
  names = list_names(data_dir) if tf.io.gfile.isdir(data_dir) else []
  pattern = re.compile(rf'{re.escape(split)}-(\d{{5}})-of-(\d{{5}})(\.tfrecords?)?')
  shards = {match.groups(): match.string for match in map(pattern.fullmatch, names) if match}
  if not shards:
    raise UserError(f'{data_dir}: no shards {split}-00000-of-….tfrecord there; write them from a COCO json with '
                    f'`python -m rethink_tf.data.convert --data_dir=… --split={split} --output_dir={data_dir}`')
  totals = sorted({(total, suffix or '') for _, total, suffix in shards})
  if len(totals) > 1:
    raise UserError(f'{data_dir}: contains two sets of shards of {split}, '
                    f'{" and ".join(f"…-of-{total}{suffix}" for total, suffix in totals)}: delete one')
  if len(shards) < int(totals[0][0]):
    raise UserError(f'{data_dir}: {int(totals[0][0]) - len(shards)} of the {int(totals[0][0])} shards of {split} are '
                    'missing; if the conversion was interrupted, run the same command again to finish it')
  return [os.path.join(data_dir, shards[key]) for key in sorted(shards, key=lambda key: key[0])]
