"""Exponential moving averages of the weights, evaluated beside the weights themselves.

Neither existing implementation fits: tf-models-official's wraps legacy optimizers, and Keras' `use_ema` leaves out
statistics of norms, has no warm-up and cannot swap the weights back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError
from rethink_tf.storage.checkpoints import iterations
from rethink_tf.structures import AVERAGES, Evaluator, Experiment
from rethink_tf.training.callbacks import Logs
from rethink_tf.training.trainer import Trainer


@gin.register
class ExponentialMovingAverage(tf_keras.callbacks.Callback):
  """After each step: average = decay · average + (1 - decay) · weights, of all variables of the detector.

  A step is one update of the optimizer, with accumulated gradients too. The averages start at the initial weights.
  Moving statistics of norms are averaged as well; PreciseStatistics, if configured, replace them with statistics of the
  averaged weights. Training does not depend on the averages. With steps_per_execution = k only the weights of every
  k-th step are averaged, with decay to the power of k.

  Args:
    trainer: its detector has all its variables, created in the scope of its strategy.
    decay: 0.9999 averages over about the last 10,000 steps.
    warm_up: the n-th update uses min(decay, (1 + n) / (10 + n)), so that the random initial weights soon vanish.

  Attributes:
    state: the variables that a checkpoint saves.

  Raises:
    UserError: decay outside [0, 1).
  """

  def __init__(self, trainer: Trainer, decay: float = 0.9999, warm_up: bool = True):
    super().__init__()
    if not 0 <= decay < 1:
      raise UserError(f'ExponentialMovingAverage.decay = {decay} must lie in [0, 1)')
    self._strategy, self._decay, self._warm_up = trainer.distribute_strategy, decay, warm_up
    self._variables = [variable for variable in trainer.detector.variables if variable.dtype.is_floating]
    self.state = tf.Module(AVERAGES)
    self.state.updates = tf.Variable(0, dtype=tf.int64, trainable=False, name='updates')
    self.state.averages = [tf.Variable(variable.read_value(), trainable=False, name='average')
                           for variable in self._variables]
    self._update = tf.function(self._update_all, autograph=False)
    self._exchange = tf.function(self._exchange_all, autograph=False)

  def restart(self) -> None:
    """Set the averages to the current weights: initial weights are loaded after the averages are created."""
    self.state.updates.assign(0)
    for average, variable in zip(self.state.averages, self._variables, strict=True):
      average.assign(variable.read_value())

  def on_train_begin(self, logs: Logs | None = None) -> None:
    self._step = iterations(self.model.optimizer)

  def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
    before, self._step = self._step, iterations(self.model.optimizer)
    self._update(tf.constant(self._step - before, tf.int64))

  def apply(self) -> None:
    """Exchange the weights of the detector and the averages."""
    self._exchange()

  @contextlib.contextmanager
  def applied(self) -> Iterator[None]:
    """Exchange the weights of the detector and the averages within this context."""
    self._exchange()
    try:
      yield
    finally:
      self._exchange()

  def _update_all(self, steps: tf.Tensor) -> None:
    count = tf.cast(self.state.updates.assign_add(steps), tf.float32)
    decay = tf.minimum(self._decay, (1 + count) / (10 + count)) if self._warm_up else tf.constant(self._decay)
    decay = decay ** tf.cast(steps, tf.float32)
    for average, variable in zip(self.state.averages, self._variables, strict=True):
      self._strategy.extended.update(
        average, lambda old, new: old.assign_sub((1 - decay) * (old - tf.convert_to_tensor(new))), args=(variable,))

  def _exchange_all(self) -> None:
    for average, variable in zip(self.state.averages, self._variables, strict=True):
      self._strategy.extended.update(variable, _swap, args=(average,))


class OnAverages(tf_keras.callbacks.Callback):
  """Runs a callback of `fit` on the averages in place of the weights.

  callback: PreciseStatistics or an evaluator. due: step -> whether the callback acts after it; it is also called when
  training begins and ends.
  """

  def __init__(self, averages: ExponentialMovingAverage, callback: tf_keras.callbacks.Callback,
               due: Callable[[int], bool]):
    super().__init__()
    self._averages, self._callback, self._due = averages, callback, due

  def set_model(self, model: tf_keras.Model) -> None:
    super().set_model(model)
    self._callback.set_model(model)

  def on_train_begin(self, logs: Logs | None = None) -> None:
    with self._averages.applied():
      self._callback.on_train_begin(logs)

  def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
    if self._due(iterations(self.model.optimizer)):
      with self._averages.applied():
        self._callback.on_train_batch_end(batch, logs)

  def on_train_end(self, logs: Logs | None = None) -> None:
    with self._averages.applied():
      self._callback.on_train_end(logs)


class EvaluatorWithAverages(tf_keras.callbacks.Callback):
  """An evaluator of the weights and one of their averages, used as one (structures.Evaluator).

  evaluator, of_averages: equal but for their run folders: that of the second is RunFolder.subfolder(AVERAGES).

  Attributes:
    last: metrics of both, those of the averages as 'ema/box/AP', ….
    main_metric, due, evaluated_step: those of the first evaluator.
  """

  def __init__(self, evaluator: Evaluator, of_averages: Evaluator, averages: ExponentialMovingAverage):
    super().__init__()
    self._evaluator, self._of_averages, self._averages = evaluator, of_averages, averages
    self._callbacks = (evaluator, OnAverages(averages, of_averages, evaluator.due))
    self.main_metric, self.due = evaluator.main_metric, evaluator.due

  @property
  def evaluated_step(self) -> int:
    return self._evaluator.evaluated_step

  @property
  def last(self) -> dict[str, float]:
    return {**self._evaluator.last, **{f'{AVERAGES}/{name}': value for name, value in self._of_averages.last.items()}}

  def evaluate(self, step: int, extra: Mapping[str, Any] | None = None) -> dict[str, float]:
    self._evaluator.evaluate(step, extra)
    with self._averages.applied():
      self._of_averages.evaluate(step, extra)
    return self.last

  def settle(self, seconds: float) -> None:
    """Wait, at most so long for each, until both evaluations have been scored in their threads."""
    for each in (self._evaluator, self._of_averages):
      each.settle(seconds)

  def set_model(self, model: tf_keras.Model) -> None:
    for callback in self._callbacks:
      callback.set_model(model)

  def on_train_begin(self, logs: Logs | None = None) -> None:
    for callback in self._callbacks:
      callback.on_train_begin(logs)

  def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
    for callback in self._callbacks:
      callback.on_train_batch_end(batch, logs)

  def on_train_end(self, logs: Logs | None = None) -> None:
    for callback in self._callbacks:
      callback.on_train_end(logs)


def restore(experiment: Experiment, averaged: bool = False, step: int | None = None) -> None:
  """Restore the detector of an experiment from a checkpoint, or, with `averaged`, the averages of its weights.

  step: None for the newest intact checkpoint.

  Raises:
    UserError: the run has no averages, or no such checkpoint.
  """
  trackables = {'detector': experiment.trainer.detector}
  if averaged:
    if experiment.averages is None:
      raise UserError('--averages is given, but the run has none (run.ema is not set): without it, the weights '
                      'themselves are used')
    trackables[AVERAGES] = experiment.averages.state
  if experiment.checkpoints.restore(trackables, step) is None:
    raise UserError(f'no checkpoint in {experiment.folder.path}: train first, or check --model_dir')
  if averaged:
    experiment.averages.apply()


def _swap(variable: tf.Variable, average: tf.Variable) -> None:
  old = tf.identity(variable)
  with tf.control_dependencies([old]):
    taken = variable.assign(tf.convert_to_tensor(average), read_value=False)
  with tf.control_dependencies([taken] if taken is not None else []):
    average.assign(old)
