"""The cost of initial weights: the samples seen in all training that led to them, in the units of Fig. 2.

A run that starts from a run of this package records the cost of that run up to the checkpoint, including the cost of
the weights that run had started from: the whole chain is counted.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from rethink_tf.errors import plain
from rethink_tf.storage import manifests
from rethink_tf.storage.files import open_regular
from rethink_tf.storage.run_folder import RunFolder

RECORD = 'initial_weights.json'
IMAGENET_IMAGES = 1_281_167 * 100  # section 3: common models are trained for about 100 epochs
IMAGENET_SIDE = 224
_MAX_BYTES = 16 << 20
_LONGEST = 500  # characters of a description


class Seen(NamedTuple):
  """Training samples seen (Fig. 2)."""

  images: float
  instances: float
  pixels: float

  def plus(self, other: Seen) -> Seen:
    return Seen(*(a + b for a, b in zip(self, other, strict=True)))


class Cost(NamedTuple):
  """The cost of weights. seen: None: not known. source: description; '' of random weights."""

  seen: Seen | None
  source: str


NOTHING = Cost(Seen(0.0, 0.0, 0.0), '')


def at_checkpoint(checkpoint: str) -> Seen | None:
  """Return the samples that a run had seen at a checkpoint, since it began; None if not recorded."""
  try:
    state = manifests.read(checkpoint)['state'].get('progress')
    found = Seen(*(float(state.get(name) or state['images']) for name in Seen._fields))
  except (OSError, ValueError, TypeError, KeyError, AttributeError, tf.errors.OpError):
    return None
  return found if all(map(math.isfinite, found)) else None


def before_run(folder: str) -> Cost:
  """Return the cost of the weights that a run started from; nothing if they were random."""
  path = os.path.join(folder, RECORD)
  if not tf.io.gfile.exists(path):
    return NOTHING
  record = read_record(path)
  return Cost(None, 'weights of unknown origin') if record is None else of_record(record)


def start_of(folder: str) -> dict[str, Any] | None:
  """Return the record of the weights that a run started from; None for random weights."""
  path = os.path.join(folder, RECORD)
  return (read_record(path) or {'format': 'run of this package'}) if tf.io.gfile.exists(path) else None


def of_run(checkpoint: str) -> tuple[Cost, Cost]:
  """Return the cost of a checkpoint's weights, in total, and that of the weights its run started from."""
  before, own = before_run(os.path.dirname(os.path.dirname(checkpoint.rstrip('/')))), at_checkpoint(checkpoint)
  whole = None if own is None or before.seen is None else own.plus(before.seen)
  return Cost(whole, before.source), before


def read_record(path: str) -> dict[str, Any] | None:
  """Return the content of initial_weights.json, None if there is none or it is damaged."""
  try:
    with open_regular(path) as file:
      record = json.loads(file.read(_MAX_BYTES))
  except (ValueError, RecursionError, tf.errors.OpError):
    return None
  return record if isinstance(record, dict) else None


def of_record(record: Mapping[str, Any]) -> Cost:
  """Return the cost of the weights that initial_weights.json describes.

  A run that continues another one (weights.plain_run) has counted that one's samples itself: only what came before it.
  """
  if 'continues' in record:
    inner = record['continues']
    if inner is None:
      return NOTHING
    return of_record(inner) if isinstance(inner, Mapping) else Cost(None, 'weights of unknown origin')
  origin = str(record.get('path', ''))
  before = f', which started from {record["before"]}' if record.get('before') else ''
  if 'seen' in record:
    seen = _seen(record['seen'])  # as it was when this run began
    if seen is not None:
      return Cost(seen, plain(f'run {origin}{before}'[:_LONGEST]))
    if record['seen'] is None:
      return Cost(None, plain(f'run {origin}{before or ", whose training is not recorded"}'[:_LONGEST]))
  published = record.get('cost')
  if isinstance(published, Mapping) and (seen := _seen(published)) is not None:
    return Cost(seen, plain(f'{record.get("name")}: {published.get("source")}'[:_LONGEST]))
  if (seen := _in_metrics(origin)) is not None:
    return Cost(seen, f'run {origin}')
  if 'run of this package' in str(record.get('format', '')):
    return Cost(None, f'run {origin}, which no longer exists')
  if str(record.get('part')).startswith('detector'):
    return Cost(None, f'{origin}, a detector whose training is not known')
  assumed = Seen(IMAGENET_IMAGES, IMAGENET_IMAGES, IMAGENET_IMAGES * float(IMAGENET_SIDE ** 2))
  return Cost(assumed, f'{origin}, assumed to be 100 epochs of ImageNet at 224 x 224 (section 3 of the paper)')


def _in_metrics(origin: str) -> Seen | None:
  """Return the samples seen by the metrics of a run folder, for records of versions that did not store them."""
  if not tf.io.gfile.exists(f'{origin.rstrip("/")}/metrics.jsonl'):
    return None
  lines = [line for line in RunFolder(origin, create=False).read_metrics() if line.get('kind') == 'train'
           and isinstance(line.get('step'), int)]
  if not lines:
    return None
  last = max(lines, key=lambda line: line['step'])
  # A classification image is one instance (caption of Fig. 2).
  images = last.get('images', 0)
  return Seen(*(float(value) if is_number(value := last.get(key) or images) else 0.0 for key in Seen._fields))


def _seen(values: Any) -> Seen | None:
  if not isinstance(values, Mapping) or not all(is_number(values.get(key)) for key in Seen._fields):
    return None
  return Seen(*(float(values[key]) for key in Seen._fields))


def is_number(value: Any) -> bool:
  """Whether a value of a file is a number that NumPy can hold."""
  return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > 1e300
