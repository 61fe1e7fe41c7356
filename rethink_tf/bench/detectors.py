"""Steps of a detector: training and prediction, shares of components, comparison with tf-models-official."""

from __future__ import annotations

import functools
import glob
import itertools
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf
import tf_keras

from rethink_tf.bench import peers, work
from rethink_tf.bench.measure import Row, in_turns
from rethink_tf.data.detection.input import EvalInput, TrainInput
from rethink_tf.errors import UserError
from rethink_tf.structures import Batch, Experiment

# Name scopes of the operations of a step, and the component that each belongs to.
COMPONENTS = {
  'backbone': 'backbone', 'fpn': 'FPN', 'rpn_head': 'RPN', 'proposals': 'RPN', 'samples': 'sampling',
  'roi_align': 'RoIAlign', 'box_head': 'box head', 'box_predictor': 'box head', 'mask_head': 'mask head',
  'mask_predictor': 'mask head', 'SGD': 'optimizer',
}
POLICIES = ('float32', 'mixed_bfloat16')
COMPILED = 'ThunkExecutor::Execute'  # a cluster compiled by XLA, without scopes: the norms


def train(experiment: Experiment, rounds: int, with_peers: bool) -> list[Row]:
  """Measure the train step on the first batches of the configuration, one row for each padded shape."""
  rows = []
  for shape, batch, example in first_batches(experiment.train_input, shapes=1 if with_peers else 3):
    step = tf.function(experiment.trainer.train_step, autograph=False)
    steps = {'rethink_tf': functools.partial(step, batch)}
    if with_peers:
      number = experiment.trainer.detector.num_classes
      steps |= {f'tf-models-official (BN) {policy}': peers.train_step(example, shape[1:3], number, policy)
                for policy in POLICIES}
    timings = in_turns(steps, rounds)
    images = batch.images.shape[0]
    gflop = work.train_step(experiment.trainer, batch)
    note = tf_keras.mixed_precision.global_policy().name
    rows += [Row(title('train', shape), name, timing, images, gflop if name == 'rethink_tf' else 0.0,
                 note if name == 'rethink_tf' else '') for name, timing in timings.items()]
  return rows


def predict(experiment: Experiment, rounds: int) -> list[Row]:
  """Measure detection on the first held-out batches of the configuration, including masks but not their pasting."""
  rows = []
  for shape, batch, _ in first_batches(experiment.eval_input, shapes=3):
    timing = in_turns({'rethink_tf': functools.partial(experiment.trainer.predict_batch, batch)}, rounds)['rethink_tf']
    rows.append(Row(title('predict', shape), 'rethink_tf', timing, batch.images.shape[0],
                    work.predict_step(experiment.trainer, batch)))
  return rows


def predict_with_peers(make: Callable[[Sequence[str]], Experiment], rounds: int) -> list[Row]:
  """Measure detection in float32 and mixed_bfloat16 beside tf-models-official, in turns.

  All with random weights, of which each image gets the same number of proposals and detections.

  Args:
    make: bindings added to the configuration -> experiment.
    rounds: number of measurements.
  """
  bindings = ('DetectionGenerator.score_threshold = 0.0',)
  experiments = {policy: make((*bindings, f"run.precision = '{policy}'")) for policy in POLICIES}
  for policy, built in experiments.items():
    if built.trainer.detector.backbone.compute_dtype != tf_keras.mixed_precision.Policy(policy).compute_dtype:
      raise UserError('--task=predict --peers: measures both precisions: leave out the binding of run.precision')
  first = experiments[POLICIES[0]]
  shape, batch, example = next(first_batches(first.train_input, shapes=1))
  steps = {policy: functools.partial(built.trainer.predict_batch, batch) for policy, built in experiments.items()}
  found = tf.reduce_sum(tf.cast(steps[POLICIES[0]]().classes > 0, tf.int32), axis=1).numpy()
  detections, proposals = int(found.max()), first.trainer.detector.proposal_generator.post_nms[False]
  if found.min() != detections:
    raise UserError(f'--task=predict --peers: images with {found.min()} to {detections} detections cannot be compared')
  named = {f'rethink_tf {policy}': step for policy, step in steps.items()}
  named |= {f'tf-models-official (BN) {policy}': peers.predict_step(
    example, shape[1:3], first.trainer.detector.num_classes, policy, proposals, detections) for policy in POLICIES}
  gflop = work.predict_step(first.trainer, batch)
  note = f'{proposals} proposals and {detections} detections an image'
  return [Row(title('predict', shape), name, timing, shape[0], gflop if name.startswith('rethink_tf') else 0.0, note)
          for name, timing in in_turns(named, rounds).items()]


def shares(experiment: Experiment) -> dict[str, float]:
  """Return the share of each component in the computing time of a train step, largest first."""
  _, batch, _ = next(first_batches(experiment.train_input, shapes=1))
  step = tf.function(experiment.trainer.train_step, autograph=False)
  step(batch)
  with tempfile.TemporaryDirectory() as folder:
    tf.profiler.experimental.start(folder)
    tf.nest.map_structure(lambda x: x.numpy(), step(batch))
    tf.profiler.experimental.stop()
    seconds: dict[str, float] = {}
    for name, duration in _operations(folder):
      component = component_of(name)
      seconds[component] = seconds.get(component, 0.0) + duration
  total = sum(seconds.values())
  return {component: value / total for component, value in sorted(seconds.items(), key=lambda item: -item[1])}


def component_of(operation: str) -> str:
  """Return the component of an operation, given its name with scopes; norms are a component of their own."""
  scopes = operation.split(':')[0].split('/')
  if 'norm' in scopes or operation == COMPILED:
    return 'norms'
  return next((COMPONENTS[scope] for scope in scopes if scope in COMPONENTS), 'the rest')


def _operations(folder: str) -> Iterator[tuple[str, float]]:
  """Yield (name:type, seconds) of every operation in a profile."""
  from tensorflow.tsl.profiler.protobuf import xplane_pb2

  space = xplane_pb2.XSpace()
  with open(glob.glob(f'{folder}/**/*.xplane.pb', recursive=True)[0], 'rb') as file:
    space.ParseFromString(file.read())
  for plane in space.planes:
    for event in itertools.chain.from_iterable(line.events for line in plane.lines):
      name = plane.event_metadata[event.metadata_id].name
      if name == COMPILED or re.fullmatch(r'[^:]+:\w+', name):  # 'scope/operation:Type'; others are of the executor
        yield name, event.duration_ps / 1e12


def first_batches(inputs: TrainInput | EvalInput, shapes: int) -> Iterator[tuple[tuple[int, ...], Batch, Batch]]:
  """Yield (shape of the images, batch of tensors, batch of arrays) for the first `shapes` padded shapes."""
  seen = set()
  steps = range(min(200, -(-len(inputs.source.image_ids) // inputs.batch_size)))
  for step in steps:
    batch = inputs.batch(step)
    shape = batch.images.shape
    if shape not in seen:
      seen.add(shape)
      yield shape, tf.nest.map_structure(tf.constant, batch), batch
    if len(seen) == shapes:
      return


def title(task: str, shape: tuple[int, ...]) -> str:
  """Return the name of a group of rows: 'train 2 x 512 x 512'."""
  return f'{task} {shape[0]} x {shape[1]} x {shape[2]}'
