"""Runs of one process that share a traced trainer; each sets its own weights, optimizer state and learning rates.

Tracing a small detector and compiling its kernels takes as long as hundreds of its steps. Runs that differ in
seed, schedule, initial weights, data or evaluation have the same graph. A run does not depend on those before it: its
trainer is built as in a process of its own, and its variables are copied into the traced one.
"""

from __future__ import annotations

import gc
import os
import re
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras
from absl import logging

from rethink_tf import gin_files
from rethink_tf.storage import checkpoints, settings
from rethink_tf.training.trainer import Trainer

# Settings that do not enter the graph of a step or of a prediction. What the data decides (numbers of classes, slots,
# images in a batch) shows in the shapes of variables and batches.
_OUTSIDE = re.compile(
  r'run\.(seed|initial_weights|log_every|checkpoint_every|keep_\w+|own_evaluation|evaluator|train_source|eval_source|'
  r'task|model_dir|checkpoint|follow_minutes|deterministic|schedule)$|\w*Schedule\.|SteppedHalving\.|'
  r'(Coco|Voc|TopK)Evaluator\.|PretrainedWeights\.|PlainRun\.|'
  r'.*\.(fraction|num_images|subset_seed|data_dir|\w+_file|\w+_dir|workers|max_unreadable|max_pixels|filter_empty)$|'
  r'(train/|eval/)*(synthetic|coco|voc|records|image_folder|image_records)\.')
# Settings of a whole process: TensorFlow cannot change them, or not back.
_OF_A_PROCESS = re.compile(r'run\.(deterministic|precision|strategy)$|strategy\.')


def graph_key(configuration: str) -> str:
  """Return a key of the settings that shape the graph: equal for runs that can share one.

  configuration: text of a gin file, which gin must have parsed: settings at the defaults of their signatures are left
  out.
  """
  found = settings.parse(configuration)
  return repr(sorted((name, str(value)) for name, value in found.items()
                     if not _OUTSIDE.match(name) and not _is_default(name, value)))


def process_key(configuration: str) -> str:
  """Return a key of the settings that hold for a whole process: runs with different keys need different processes."""
  found = settings.parse(configuration)
  imports = re.findall(r'^(?:import|from) .*$', configuration, flags=re.MULTILINE)
  return repr((imports, sorted((name, str(value)) for name, value in found.items()
                               if _OF_A_PROCESS.match(name) and not _is_default(name, value))))


def obstacle(configuration: str) -> str:
  """Return the reason why runs with this configuration cannot share a process, '' if they can."""
  found = settings.parse(configuration)
  foreign = re.search(r'^(?:import|from) (?!rethink_tf\b)([\w.]+)', configuration, flags=re.MULTILINE)
  if foreign:
    return f'{foreign.group(1)} may draw random numbers within the graph'
  if found.get('run.precision') == 'mixed_float16':
    return 'the loss scale is part of the graph (mixed_float16)'
  if found.get('strategy.kind') == 'multi_worker' or os.environ.get('TF_CONFIG'):
    return 'several workers train it'
  if found.get('MaskRCNN.xla') is True or found.get('strategy.kind') == 'tpu':
    return 'XLA compiles the step of each run (MaskRCNN.xla, TPU)'
  return ''


class SettableRates(tf_keras.optimizers.schedules.LearningRateSchedule):
  """The learning rates of a schedule as variables, so that another run with the same graph can set its own.

  schedule: has `changes`, the steps from which on its rate is another one.
  """

  def __init__(self, schedule: tf_keras.optimizers.schedules.LearningRateSchedule):
    super().__init__()
    steps, rates = self._table(schedule)
    self._steps = tf.Variable(steps, trainable=False, shape=[None], dtype=tf.int64, name='rate_steps')
    self._rates = tf.Variable(rates, trainable=False, shape=[None], dtype=tf.float32, name='rates')
    self._schedule = schedule

  def set(self, schedule: tf_keras.optimizers.schedules.LearningRateSchedule) -> None:
    """Take over the rates of another schedule."""
    steps, rates = self._table(schedule)
    self._steps.assign(steps)
    self._rates.assign(rates)
    self._schedule = schedule

  def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
    """Return the rate at iteration `step` (from 0), float32 scalar."""
    phase = tf.reduce_sum(tf.cast(tf.cast(step, tf.int64) >= self._steps, tf.int32)) - 1
    return tf.gather(self._rates, phase)

  def get_config(self) -> dict[str, Any]:
    return self._schedule.get_config()

  @staticmethod
  def _table(schedule: tf_keras.optimizers.schedules.LearningRateSchedule) -> tuple[list[int], list[float]]:
    """Return the steps at which the rate changes, and the rates from then on, to the last bit those of a train step."""
    rate = tf.function(schedule.__call__, input_signature=[tf.TensorSpec([], tf.int64)], autograph=False)
    return schedule.changes, [float(rate(tf.constant(step, tf.int64))) for step in schedule.changes]


class _Kept(NamedTuple):
  key: tuple[str, ...]
  trainer: Trainer
  rates: SettableRates


class SharedGraphs:
  """The traced trainer of the latest run of this process, for the next one with the same graph.

  Attributes:
    shared: whether the latest run uses the graph of an earlier one.
  """

  def __init__(self) -> None:
    self.shared = False
    self._kept: _Kept | None = None
    self._rates: SettableRates | None = None

  def rates(self, schedule: tf_keras.optimizers.schedules.LearningRateSchedule
            ) -> tf_keras.optimizers.schedules.LearningRateSchedule:
    """Return a schedule for the optimizer of a run whose rates are not part of the graph. Call it before `share`."""
    reason = obstacle(gin_files.text())
    if not reason and not hasattr(schedule, 'changes'):
      reason = f'{type(schedule).__name__} has no attribute `changes`, the steps at which its rate changes'
    if reason:
      logging.info('the graph of this run is not shared with other runs: %s', reason)
    self._rates = None if reason else SettableRates(schedule)
    self._schedule = schedule
    return self._rates or schedule

  def share(self, trainer: Trainer, shapes: Any) -> Trainer:
    """Return the kept trainer, set to the variables of a new one, if their graphs are equal; else the new one.

    trainer: the new one, with all its variables. shapes: of its batches and micro-batches.
    """
    text = gin_files.text()
    key = (graph_key(text), process_key(text), str(shapes), type(trainer).__name__)
    kept = self._kept
    self.shared = (self._rates is not None and kept is not None and kept.key == key
                   and kept.trainer.distribute_strategy is trainer.distribute_strategy and _copy(trainer, kept.trainer))
    if self.shared:
      kept.rates.set(self._schedule)
      logging.info('the graph of an earlier run is used again')
      return kept.trainer
    self._kept = None if self._rates is None else _Kept(key, trainer, self._rates)
    gc.collect()  # the earlier trainer, which is full of reference cycles
    return trainer


def _is_default(name: str, value: Any) -> bool:
  default = gin_files.default(name)
  return '/' not in name and _as_text(default) == _as_text(value)


def _as_text(value: Any) -> str:
  return repr(list(value)) if isinstance(value, (list, tuple)) else repr(value)


def _copy(source: Trainer, target: Trainer) -> bool:
  """Copy the values of all variables of a trainer to another; return False, with nothing copied, if they differ."""
  new, old = (checkpoints.variables(tf.train.Checkpoint(detector=one.detector, optimizer=one.optimizer))
              for one in (source, target))
  if {name: (one.shape, one.dtype) for name, one in new.items()} != \
      {name: (one.shape, one.dtype) for name, one in old.items()}:
    return False
  copied = {id(variable) for variable in old.values()}
  if any(id(variable) not in copied for variable in target.detector.variables):
    return False
  for name, variable in new.items():
    old[name].assign(variable.read_value())
  target.reset_metrics()
  return True
