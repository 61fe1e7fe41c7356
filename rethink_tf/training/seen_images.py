"""Held-out images that initial weights were trained on: AP is then not that of unseen images.

Each run records short hashes of its training images (data/digest.py), so that it is known without the data of earlier
runs, which may be elsewhere by now.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from rethink_tf.data import digest
from rethink_tf.errors import UserError
from rethink_tf.storage import identity
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.structures import Source
from rethink_tf.weights import costs

FIELD = 'held_out_seen'  # of initial_weights.json
_LONGEST = 20  # chain of runs that start from one another


class SeenImages(NamedTuple):
  """The number of held-out images that the initial weights, or the weights those started from, were trained on."""

  run: str  # its folder
  count: int
  of: int  # held-out images

  def __str__(self) -> str:
    return (f'initial weights come from {self.run}, which was trained on {self.count} of the {self.of} held-out images '
            '(the same files), so that AP is not that of unseen images: hold out others, or start from other weights')


def find(weights: str, held_out: Source) -> SeenImages | None:
  """Return the run behind some weights that was trained on the most held-out images, None if none is known.

  weights: a run folder or one of its checkpoints; None also for any other file.
  """
  recorded = [(run, train) for run in _runs(weights) if (train := _training_data(run))]
  if not recorded:
    return None
  own, total = digest.summarize(held_out), len(held_out.image_ids)
  found = [SeenImages(run, count, total) for run, train in recorded if (count := digest.same_images(train, own))]
  return max(found, key=lambda one: one.count, default=None)


def read(record: Any) -> SeenImages | None:
  """Return what initial_weights.json (`record`, its content) says, None if that is nothing or malformed."""
  try:
    found = SeenImages(str(record[FIELD]['run']), int(record[FIELD]['count']), int(record[FIELD]['of']))
  except (TypeError, ValueError, KeyError):
    return None
  return found if 0 < found.count <= found.of else None


def _runs(weights: str) -> Iterator[str]:
  """Yield the run folder of some weights, then that of the weights which that run started from, and so on."""
  for _ in range(_LONGEST):
    path = weights.rstrip('/')
    folder = os.path.dirname(path)
    if os.path.basename(folder) == 'checkpoints':
      path = os.path.dirname(folder)
    if not tf.io.gfile.exists(os.path.join(path, identity.FILE)):
      return
    yield path
    weights = (costs.read_record(os.path.join(path, costs.RECORD)) or {}).get('path')
    if not isinstance(weights, str):
      return


def _training_data(run: str) -> dict[str, Any] | None:
  try:
    own = identity.read(RunFolder(run, create=False))
  except UserError:  # damaged
    return None
  return own.data.get('train') if own is not None else None
