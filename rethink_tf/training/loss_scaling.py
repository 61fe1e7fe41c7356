"""Training in float16 with a loss scale: steps whose gradients overflow are skipped; divergence is detected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from rethink_tf.structures import Batch
from rethink_tf.training.trainer import Losses, Trainer

_COMPUTED = ('features', 'logits', 'deltas', 'class_logits', 'box_deltas')  # by a network; other outputs are targets


class LossScaleTrainer(Trainer):
  """A Trainer whose optimizer is a LossScaleOptimizer (mixed_float16).

  A step whose gradients overflow is skipped: weights and velocities are unchanged, the loss scale is halved, and the
  iteration is counted, so that input, counters and schedule stay in step. Its loss is left out of the means if it is
  not finite because of an overflow in the network; see `overflowed`.
  """

  @tf.autograph.experimental.do_not_convert
  def train_step(self, batch: Batch) -> Losses:
    losses, gradients = self.gradients(batch) if self.micro_batches == 1 else self.accumulated_gradients(batch)
    scale = self.optimizer.loss_scale
    self.optimizer.apply_gradients(zip(self.unscaled(gradients), self.detector.trainable_variables, strict=True))
    losses, weight = self._classify(losses, scale)
    for name, mean in self.loss_means.items():
      mean.update_state(losses[name], weight)
    return {metric.name: metric.result() for metric in self.metrics}

  def scaled(self, loss: tf.Tensor) -> tf.Tensor:
    return self.optimizer.get_scaled_loss(loss)

  def unscaled(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    return self.optimizer.get_unscaled_gradients(gradients)

  def diagnostics(self, outputs: Any) -> Losses:
    """Return `overflow`: 1 if any output that the network computed is not finite."""
    return {'overflow': 1.0 - tf.cast(_finite(_computed(outputs)), tf.float32)}

  @property
  def logged(self) -> list[str]:
    return [*self.loss_means, 'overflow']

  def _classify(self, losses: Losses, scale: tf.Tensor) -> tuple[Losses, tf.Tensor]:
    """Return the losses after an update and their weight in the means, 1 or 0. scale: the loss scale before it."""
    after, replicas = self.optimizer.loss_scale, self.distribute_strategy.num_replicas_in_sync
    skipped = (self.optimizer.dynamic_counter == 0) & (after <= scale)  # a completed step increments or doubles
    finite = _finite(list(losses.values()))
    sound = tf.cond(skipped & ~finite, lambda: _finite(self.detector.trainable_variables), lambda: True)
    overflowed = skipped & (scale > 1.0) & ~finite & (losses['overflow'] > 0.0) & sound
    # A lower scale cannot help gradients that are not finite at a scale of 1: no step would succeed again.
    diverged = skipped & (scale <= 1.0)
    # The mean over replicas is positive if one has overflowed and none has diverged.
    self._overflow.assign(tf.where(overflowed, 1.0, tf.where(finite & ~diverged, 0.0, -float(replicas))))
    self.scaling_metrics['loss_scale'].update_state(after)
    self.scaling_metrics['skipped_steps'].update_state(tf.cast(skipped, tf.float32) / replicas)
    losses = {name: tf.where(overflowed, 0.0, tf.where(diverged, float('nan'), value))
              for name, value in losses.items()}
    return losses, 1.0 - tf.cast(overflowed, tf.float32)

  @property
  def overflowed(self) -> bool:
    """Whether the loss of the last step is not finite on some replica because of an overflow in the network.

    The step was skipped; the next ones have a smaller loss scale. False for divergence: non-finite weights, a
    non-finite loss of finite outputs, or non-finite gradients at a loss scale of 1.
    """
    return bool(self._overflow.numpy() > 0)

  def make_metrics(self, names: Sequence[str]) -> None:
    self.loss_means = {name: _MeanOrNaN(name) for name in names}
    self.scaling_metrics = {'loss_scale': tf_keras.metrics.Mean('loss_scale'),
                            'skipped_steps': tf_keras.metrics.Sum('skipped_steps')}
    self._overflow = tf.Variable(0.0, trainable=False, aggregation=tf.VariableAggregation.MEAN)

  @property
  def metrics(self) -> list[tf_keras.metrics.Metric]:
    return [*self.loss_means.values(), *getattr(self, 'scaling_metrics', {}).values()]


class _MeanOrNaN(tf_keras.metrics.Mean):
  """A mean that is NaN, where Keras' is 0, when every step was left out."""

  def result(self) -> tf.Tensor:
    return tf.math.truediv(self.total, self.count)


def _finite(tensors: Iterable[tf.Tensor]) -> tf.Tensor:
  return tf.reduce_all([tf.reduce_all(tf.math.is_finite(x)) for x in tensors])


def _computed(outputs: Any) -> list[tf.Tensor]:
  """Return the tensors that the network has computed, at any depth of its outputs."""
  if isinstance(outputs, tuple) and not hasattr(outputs, '_fields'):
    return [x for item in outputs for x in _computed(item)]
  fields = outputs._asdict() if hasattr(outputs, '_fields') else {}
  return [x for name, value in fields.items()
          for x in (tf.nest.flatten(value) if name in _COMPUTED else _computed(value))]
