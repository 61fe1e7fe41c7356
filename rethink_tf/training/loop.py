"""Training from where a run stands to the end of its schedule."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras
from absl import logging

from rethink_tf import gin_files
from rethink_tf.distributed import strategy as distribute
from rethink_tf.distributed.coordination import StopTogether
from rethink_tf.distributed.workers import Workers
from rethink_tf.errors import UserError
from rethink_tf.storage.checkpoints import ON_DEMAND, RunCheckpoints
from rethink_tf.storage.run_folder import RunFolder, write_schedule
from rethink_tf.training.callbacks import ProgressAndMetrics, SaveCheckpoints, StopOnNonFinite
from rethink_tf.training.ema import OnAverages
from rethink_tf.training.preemption import Interruption
from rethink_tf.training.trainer import Trainer
from rethink_tf.visualization import curves


class Devices(NamedTuple):
  """How a global batch is spread."""

  replicas: int
  micro_batches: int  # parts of a replica's batch whose gradients are accumulated
  images: int  # images of a micro-batch


class _Built(NamedTuple):
  """What training needs of a configuration, once it is built."""

  folder: RunFolder
  workers: Workers
  strategy: tf.distribute.Strategy
  devices: Devices
  trainer: Trainer
  inputs: Any  # the input of training
  averages: Any
  trackables: dict[str, Any]
  checkpoints: RunCheckpoints
  score: Any  # the evaluator
  total_steps: int
  intervals: dict[str, int]
  own_evaluation: bool

  def batches(self, step: int):
    """What `fit` iterates over, from a step on."""
    if self.strategy.num_replicas_in_sync == 1:
      return self.inputs.dataset(step)
    return self.strategy.distribute_datasets_from_function(lambda context: self.inputs.dataset(step, context))

  def due(self, step: int) -> bool:
    """Whether this job evaluates after a step."""
    return self.own_evaluation and self.score.due(step)

  def evaluated(self, step: int) -> bool:
    """Whether some job does."""
    apart = not self.own_evaluation and step % self.intervals['checkpoint_every'] == 0
    return step == self.total_steps or self.due(step) or apart


def spread(batch_size: int, images_per_device: int, replicas: int) -> Devices:
  """Cuts a global batch: evenly over the replicas, then into micro-batches of at most `images_per_device`."""
  if batch_size % replicas:
    raise UserError(f'BATCH_SIZE = {batch_size} is no multiple of the {replicas} devices that share it')
  share = batch_size // replicas
  images = max(n for n in range(1, min(share, images_per_device) + 1) if share % n == 0)
  return Devices(replicas, share // images, images)


def initialise(trainer: Trainer, initial_weights, folder: RunFolder):
  """The start of a run that has no checkpoint yet: pre-trained weights, if any, and what they were, for the record.

  Weights that continue another run's schedule bring the iteration along at which they stand.
  """
  loaded = initial_weights(trainer.detector) if initial_weights is not None else None
  refuse_frozen_random_layers(trainer.detector, loaded.variables if loaded is not None else frozenset())
  if loaded is not None:
    folder.write_text('initial_weights.json', json.dumps(loaded.record(), indent=2) + '\n')
    trainer.optimizer.iterations.assign(loaded.step)
  return loaded


def refuse_frozen_random_layers(detector: tf_keras.layers.Layer, loaded: frozenset[int] = frozenset()) -> None:
  """A layer that does not train must hold trained weights (projects/GN/README.md: it cost Detectron 3.3 AP).

  loaded: the id of each variable that comes from a weight file.
  """
  frozen = [layer for layer in detector.submodules if isinstance(layer, tf_keras.layers.Layer)
            and not layer.trainable and layer.weights and not list(_sublayers(layer))
            and not {id(variable) for variable in layer.weights} <= loaded]
  if frozen:
    raise UserError(f'{len(frozen)} layers would stay at random values (first: {frozen[0].weights[0].name}): layers '
                    'without pre-trained weights must train; set ResNet.freeze_at = 0 and a norm other than '
                    '@frozen_batch_norm')


def _train(built: _Built, initial_weights, correcting: list, steps_per_execution: int):
  """From where the run folder stands to the end of the schedule; correcting: callbacks that evaluation needs."""
  folder, trainer, averages, total_steps = built.folder, built.trainer, built.averages, built.total_steps
  if averages is not None:
    correcting = [averages, *correcting, *(OnAverages(averages, each, built.evaluated) for each in correcting)]
  state = _restored_or_initialised(built, initial_weights)
  start = int(trainer.optimizer.iterations.numpy())
  distribute.check_same_step(built.workers, start)
  _check_whole_executions(steps_per_execution, start, total_steps, built.intervals, built.due)
  folder.save_provenance(sys.argv, gin_files.operative_config())
  write_schedule(folder, total_steps)
  logging.info('%d replica(s) x %d micro-batch(es) x %d image(s); %d parameters train; run folder %s', *built.devices,
               sum(int(tf.size(v)) for v in trainer.trainable_variables), folder.path)
  progress = ProgressAndMetrics(folder, total_steps, built.inputs.facts, every=built.intervals['log_every'],
                                start_state=state.get('progress'))
  interruption = Interruption(StopTogether(built.workers) if built.workers.count > 1 else None)
  saving = SaveCheckpoints(built.checkpoints, built.trackables, lambda: {'progress': progress.state()},
                           every=built.intervals['checkpoint_every'], also=built.due, interruption=interruption)
  if start < total_steps:
    logging.info('from step %d to %d; the first one takes longest: tracing and compiling, a minute or so', start,
                 total_steps)
    try:
      with _errors_of(built.inputs), distribute.report_lost_workers(built.workers), interruption:
        trainer.fit(built.batches(start), epochs=1, steps_per_epoch=total_steps - start, verbose=0,
                    callbacks=[StopOnNonFinite(built.inputs.facts), progress, *correcting, saving,
                               *[built.score] * built.own_evaluation])
    finally:
      folder.flush()
    built.checkpoints.tidy()
  else:
    logging.info('the run is complete at step %d: nothing left to train', start)
    if built.own_evaluation:
      built.score.evaluate(start, {ON_DEMAND: True})
    folder.flush()
  if folder.attempt('curves.png', lambda: curves.curves([folder], folder.join('curves.png'))):
    logging.info('curves: %s', folder.join('curves.png'))
  return built.score.last


def _restored_or_initialised(built: _Built, initial_weights) -> dict:
  """The weights of the newest checkpoint with what it says about progress, or those that a run begins with."""
  state = built.checkpoints.restore(built.trackables)
  if state is not None:
    return state
  with built.strategy.scope():
    loaded = initialise(built.trainer, initial_weights, built.folder)
    if built.averages is not None:
      built.averages.restart()
  return {'progress': loaded.progress} if loaded is not None and loaded.progress else {}


def _check_whole_executions(steps, start, total_steps, intervals, due):
  if steps < 1:
    raise UserError(f'run.steps_per_execution = {steps}: use 1 or more')
  counts = {f'run.{name}': value for name, value in intervals.items()} | {
    'the length of the schedule': total_steps, 'the step at which the run stands': start,
    'the interval of evaluation': next((step for step in range(1, total_steps) if due(step)), 0)}
  for name, value in counts.items():
    if value % steps:
      raise UserError(f'run.steps_per_execution = {steps} does not divide {name}, {value}: use a divisor of both, or 1')


def _sublayers(layer):
  return (part for part in layer.submodules if isinstance(part, tf_keras.layers.Layer))


@contextlib.contextmanager
def _errors_of(inputs):
  """Brings back an error raised in the input pipeline's threads, which TensorFlow wraps beyond recognition."""
  try:
    yield
  except tf.errors.OpError as error:
    if inputs.failure is not None:
      raise inputs.failure from error
    raise
