"""Exponential moving averages of the weights, which are evaluated beside the raw ones.

Of the two at hand neither fits: tf-models-official's is a wrapper of legacy optimizers, which SGD is not, and Keras'
`use_ema` leaves out what does not train (statistics of norms), does not warm up and cannot be taken back.
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


@gin.register
class ExponentialMovingAverage(tf_keras.callbacks.Callback):
  """After each step: average = decay · average + (1 - decay) · weights, of all variables of the detector.

  A step is one of the optimizer: accumulated gradients count once. The first average is the weights the run starts
  with. Moving statistics of norms are averaged like the weights they belong to; PreciseStatistics, where they are
  configured, are computed for the averaged weights and take their place. Training itself never sees an average. With
  steps_per_execution = k only every k-th step's weights are averaged, with decay to the power of k.

  Args:
    trainer: its detector has all its variables; made in the scope of its strategy.
    decay: 0.9999 averages over the last 10,000 steps or so.
    warm_up: the n-th update takes min(decay, (1 + n) / (10 + n)), so that the random start is soon forgotten.

  Attributes:
    state: what a checkpoint holds.

  Raises:
    UserError: decay outside [0, 1).
  """

  def __init__(self, trainer: Any, decay: float = 0.9999, warm_up: bool = True):
    super().__init__()
    if not 0 <= decay < 1:
      raise UserError(f'ExponentialMovingAverage.decay = {decay} must lie in [0, 1)')
    self._strategy, self._decay, self._warm_up = trainer.distribute_strategy, decay, warm_up
    self._variables = [variable for variable in trainer.detector.variables if variable.dtype.is_floating]
    self.state = tf.Module('ema')
    self.state.updates = tf.Variable(0, dtype=tf.int64, trainable=False, name='updates')
    self.state.averages = [tf.Variable(variable.read_value(), trainable=False, name='average')
                           for variable in self._variables]
    self._update = tf.function(self._update_all, autograph=False)
    self._exchange = tf.function(self._exchange_all, autograph=False)

  def restart(self) -> None:
    """Takes the weights as they are for the average: those a run starts with are in place after this was made."""
    self.state.updates.assign(0)
    for average, variable in zip(self.state.averages, self._variables, strict=True):
      average.assign(variable.read_value())

  def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
    self._step = iterations(self.model.optimizer)

  def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
    before, self._step = self._step, iterations(self.model.optimizer)
    self._update(tf.constant(self._step - before, tf.int64))

  @contextlib.contextmanager
  def applied(self):
    """Inside, the detector has the averages, and the averages hold its weights; afterwards each has its own again."""
    self._exchange()
    try:
      yield
    finally:
      self._exchange()

  def _update_all(self, steps):
    count = tf.cast(self.state.updates.assign_add(steps), tf.float32)
    decay = tf.minimum(self._decay, (1 + count) / (10 + count)) if self._warm_up else tf.constant(self._decay)
    decay = decay ** tf.cast(steps, tf.float32)
    for average, variable in zip(self.state.averages, self._variables, strict=True):
      self._strategy.extended.update(
        average, lambda old, new: old.assign_sub((1 - decay) * (old - tf.convert_to_tensor(new))), args=(variable,))

  def _exchange_all(self):
    for average, variable in zip(self.state.averages, self._variables, strict=True):
      self._strategy.extended.update(variable, _swap, args=(average,))


class OnAverages(tf_keras.callbacks.Callback):
  """Lets a callback of `fit` see the averages in place of the weights, at the steps that are due and at the end.

  averages: what holds them. callback: PreciseStatistics, an evaluator. due: step -> whether it has something to do.
  """

  def __init__(self, averages: ExponentialMovingAverage, callback: tf_keras.callbacks.Callback,
               due: Callable[[int], bool]):
    super().__init__()
    self._averages, self._callback, self._due = averages, callback, due

  def set_model(self, model: tf_keras.Model) -> None:
    super().set_model(model)
    self._callback.set_model(model)

  def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
    with self._averages.applied():
      self._callback.on_train_begin(logs)

  def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
    if self._due(iterations(self.model.optimizer)):
      with self._averages.applied():
        self._callback.on_train_batch_end(batch, logs)

  def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
    with self._averages.applied():
      self._callback.on_train_end(logs)


class EvaluationOfBoth(tf_keras.callbacks.Callback):
  """An evaluator of the weights and one of their averages, as one. What is asked of an evaluator, the first answers.

  evaluator, of_averages: the same but for their run folder: the second one's is RunFolder.part(NAME).
  averages: what holds them.

  Attributes:
    last: the figures of both, those of the averages as 'ema/box/AP', ….
  """

  NAME = 'ema'

  def __init__(self, evaluator: Any, of_averages: Any, averages: ExponentialMovingAverage):
    super().__init__()
    self._evaluator, self._of_averages, self._averages = evaluator, of_averages, averages
    self._callbacks = (evaluator, OnAverages(averages, of_averages, evaluator.due))
    self.main_metric, self.due = evaluator.main_metric, evaluator.due

  @property
  def evaluated_step(self) -> int:
    return self._evaluator.evaluated_step

  @property
  def last(self) -> dict[str, float]:
    return {**self._evaluator.last, **{f'{self.NAME}/{name}': value for name, value in self._of_averages.last.items()}}

  def evaluate(self, step: int, extra: Mapping[str, Any] | None = None) -> dict[str, float]:
    self._evaluator.evaluate(step, extra)
    with self._averages.applied():
      self._of_averages.evaluate(step, extra)
    return self.last

  def set_model(self, model: tf_keras.Model) -> None:
    for callback in self._callbacks:
      callback.set_model(model)

  def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
    for callback in self._callbacks:
      callback.on_train_begin(logs)

  def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
    for callback in self._callbacks:
      callback.on_train_batch_end(batch, logs)

  def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
    for callback in self._callbacks:
      callback.on_train_end(logs)


@contextlib.contextmanager
def restored(parts: Any, model_dir: str, averaged: bool, step: int | None = None) -> Iterator[None]:
  """Inside, the detector of experiment.run's Parts has the weights of a checkpoint, or the averages of them.

  averaged: what --averages says. step: None for the newest sound checkpoint.

  Raises:
    UserError: the run keeps no averages, or has no such checkpoint.
  """
  wanted = {'detector': parts.trainer.detector}
  if averaged:
    if parts.averages is None:
      raise UserError('--averages is given, but the run keeps none (run.ema is not set): leave it out, for the weights '
                      'themselves')
    wanted['ema'] = parts.averages.state
  if parts.checkpoints.restore(wanted, step) is None:
    raise UserError(f'no checkpoint in {model_dir}: train first, or check --model_dir')
  with parts.averages.applied() if averaged else contextlib.nullcontext():
    yield


def _swap(variable, average):
  old = tf.identity(variable)
  with tf.control_dependencies([old]):
    taken = variable.assign(tf.convert_to_tensor(average), read_value=False)
  with tf.control_dependencies([taken] if taken is not None else []):
    average.assign(old)
