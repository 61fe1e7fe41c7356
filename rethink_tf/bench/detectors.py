"""Whole steps of a detector: training and prediction, by part, and beside tf-models-official's."""

from __future__ import annotations

import functools
import glob
import itertools
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras

from rethink_tf.bench import peers, work
from rethink_tf.bench.measure import Row, in_turns
from rethink_tf.experiment import Parts
from rethink_tf.structures import Batch

# Scopes in which the operations of a step are named, and the part they are counted with.
PARTS = {
  'backbone': 'backbone', 'fpn': 'FPN', 'rpn_head': 'RPN', 'proposals': 'RPN', 'samples': 'sampling',
  'roi_align': 'RoIAlign', 'box_head': 'box head', 'box_predictor': 'box head', 'mask_head': 'mask head',
  'mask_predictor': 'mask head', 'SGD': 'optimizer',
}
COMPILED = 'ThunkExecutor::Execute'  # a cluster that XLA compiled, which has no scopes: here these are the norms alone


def train(parts: Parts, rounds: int, with_peers: bool) -> list[Row]:
  """The real train step on the configuration's first batches, one line for each padded shape met."""
  rows = []
  for shape, batch, example in first_batches(parts.training_input(), shapes=1 if with_peers else 3):
    step = tf.function(parts.trainer.train_step, autograph=False)
    steps = {'rethink_tf': functools.partial(step, batch)}
    if with_peers:
      number = parts.trainer.detector.num_classes
      steps |= {f'tf-models-official (BN) {policy}': peers.train_step(example, shape[1:3], number, policy)
                for policy in ('float32', 'mixed_bfloat16')}
    timings = in_turns(steps, rounds)
    images = batch.images.shape[0]
    gflop = work.train_step(parts.trainer, batch)
    note = tf_keras.mixed_precision.global_policy().name
    rows += [Row(title('train', shape), name, timing, images, gflop if name == 'rethink_tf' else 0.0,
                 note if name == 'rethink_tf' else '') for name, timing in timings.items()]
  return rows


def predict(parts: Parts, rounds: int) -> list[Row]:
  """Detections of the configuration's first held-out batches, masks included, pasting not."""
  rows = []
  for shape, batch, _ in first_batches(parts.scoring, shapes=3):
    timing = in_turns({'rethink_tf': functools.partial(parts.trainer.predict_batch, batch)}, rounds)['rethink_tf']
    rows.append(Row(title('predict', shape), 'rethink_tf', timing, batch.images.shape[0],
                    work.predict_step(parts.trainer, batch)))
  return rows


def by_part(parts: Parts) -> dict[str, float]:
  """Share of one train step's computing time that each part takes, forward and backward, largest first."""
  _, batch, _ = next(first_batches(parts.training_input(), shapes=1))
  step = tf.function(parts.trainer.train_step, autograph=False)
  step(batch)
  with tempfile.TemporaryDirectory() as folder:
    tf.profiler.experimental.start(folder)
    tf.nest.map_structure(lambda x: x.numpy(), step(batch))
    tf.profiler.experimental.stop()
    seconds: dict[str, float] = {}
    for name, duration in _operations(folder):
      part = part_of(name)
      seconds[part] = seconds.get(part, 0.0) + duration
  total = sum(seconds.values())
  return {part: value / total for part, value in sorted(seconds.items(), key=lambda item: -item[1])}


def part_of(operation: str) -> str:
  """Part that an operation of the step, named by its scopes, is counted with; norms are counted apart."""
  scopes = operation.split(':')[0].split('/')
  if 'norm' in scopes or operation == COMPILED:
    return 'norms'
  return next((PARTS[scope] for scope in scopes if scope in PARTS), 'the rest')


def _operations(folder: str) -> Iterator[tuple[str, float]]:
  """(name:type, seconds) of every operation in a profile."""
  from tensorflow.tsl.profiler.protobuf import xplane_pb2

  space = xplane_pb2.XSpace()
  with open(glob.glob(f'{folder}/**/*.xplane.pb', recursive=True)[0], 'rb') as file:
    space.ParseFromString(file.read())
  for plane in space.planes:
    for event in itertools.chain.from_iterable(line.events for line in plane.lines):
      name = plane.event_metadata[event.metadata_id].name
      if name == COMPILED or re.fullmatch(r'[^:]+:\w+', name):  # 'scope/operation:Type'; the rest is the executor's
        yield name, event.duration_ps / 1e12


def first_batches(inputs: Any, shapes: int) -> Iterator[tuple[tuple[int, ...], Batch, Any]]:
  """(shape, batch, its examples) of the first `shapes` padded shapes that the input gives."""
  met = set()
  steps = range(min(200, -(-len(inputs.source.image_ids) // inputs.batch_size)))
  for step in steps:
    batch = inputs.batch(step)
    shape = batch.images.shape
    if shape not in met:
      met.add(shape)
      yield shape, tf.nest.map_structure(tf.constant, batch), batch
    if len(met) == shapes:
      return


def title(task: str, shape: tuple[int, ...]) -> str:
  return f'{task} {shape[0]} x {shape[1]} x {shape[2]}'
