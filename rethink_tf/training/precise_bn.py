"""PreciseStatistics: what SyncBatchNorm normalises by in evaluation, made anew before each.

A moving average lags behind weights that change, and one of variances leaves out how batches differ. Here mean and
variance are those of all elements of many training batches taken together ("population statistics" of Wu and Johnson
2021, Rethinking "Batch" in BatchNorm, section 3; TEST.PRECISE_BN of Detectron2).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gin
import numpy as np
import tensorflow as tf
import tf_keras
from absl import logging

from rethink_tf.errors import UserError
from rethink_tf.models.norms import SyncBatchNorm, recorded_statistics
from rethink_tf.storage.checkpoints import iterations


class Moments:
  """Mean and variance of all elements that were added, batch by batch, in float64 (Chan et al. 1979)."""

  def __init__(self):
    self.count, self.mean, self._squares = 0.0, np.float64(0.0), np.float64(0.0)

  def add(self, mean: np.ndarray, unbiased_variance: np.ndarray, count: float) -> None:
    """A batch of `count` elements; none changes nothing, and neither does one that has overflowed in float16."""
    if not count or not np.isfinite(mean).all():
      return
    difference = np.float64(mean) - self.mean
    total = self.count + float(count)
    self._squares = (self._squares + np.float64(unbiased_variance) * (float(count) - 1)
                     + difference**2 * (self.count * float(count) / total))
    self.mean = self.mean + difference * (float(count) / total)
    self.count = total

  @property
  def variance(self) -> np.ndarray:
    """Mean squared distance from the mean: variance inside batches and between them."""
    return self._squares / self.count


@gin.register
class PreciseStatistics(tf_keras.callbacks.Callback):
  """Replaces the moving statistics of every SyncBatchNorm that trains, right before an evaluation and at the end.

  The forward pass is that of training: the same replicas and micro-batches, normalised by their own batch statistics,
  padded RoIs left out. The batches are those of the steps to come. Weights, optimizer and batches of training stay as
  they would be without it; training does not read the statistics, which are *kept* (as Detectron2 keeps them), so that
  a checkpoint holds what was scored, and move on from there. In `fit` it stands before SaveCheckpoints.
  A network without SyncBatchNorm is left alone. So is a norm that does not train, and one that met no element (a mask
  head without foreground).

  Args:
    trainer: its detector, micro_batches and distribution strategy are used.
    training_batches: step -> data set of the training batches from that step on, distributed as for `fit`.
    due: step -> whether it is evaluated.
    batches: training batches that are averaged over (Detectron2: 200).

  Raises:
    UserError: batches below 1.
  """

  def __init__(self, trainer: Any, training_batches: Callable[[int], Iterable], due: Callable[[int], bool],
               batches: int = 200):
    super().__init__()
    if batches < 1:
      raise UserError(f'PreciseStatistics.batches = {batches}: use 1 or more, or run.precise_statistics = None')
    self._trainer, self._training_batches, self._due, self._batches = trainer, training_batches, due, batches
    self._layers = [layer for layer in trainer.detector.submodules
                    if isinstance(layer, SyncBatchNorm) and layer.trainable]
    self._statistics: Callable | None = None  # one graph for all padded shapes, made when first needed

  def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
    if not self._layers:
      logging.info('precise statistics: no SyncBatchNorm trains, so there is nothing to compute')

  def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
    step = iterations(self._trainer.optimizer)
    if self._layers and self._due(step):
      self.compute(step)

  def compute(self, step: int) -> None:
    """Averages over the batches of the steps `step`, `step` + 1, …, and puts the result into the layers."""
    begin, moments = time.monotonic(), [Moments() for _ in self._layers]
    data = self._training_batches(step)
    if self._statistics is None:
      signature = [data.element_spec, tf.TensorSpec([], tf.int32)]
      self._statistics = tf.function(self._of_all_replicas, autograph=False, input_signature=signature)
    for batch in itertools.islice(data, self._batches):
      for part in range(self._trainer.micro_batches):
        for moment, calls in zip(moments, self._statistics(batch, tf.constant(part)), strict=True):
          for mean, variance, count in calls:
            moment.add(mean.numpy(), variance.numpy(), count.numpy())
    met = [(layer, moment) for layer, moment in zip(self._layers, moments, strict=True) if moment.count]
    for layer, moment in met:
      layer.moving_mean.assign(np.float32(moment.mean))
      layer.moving_variance.assign(np.float32(moment.variance))
    logging.info('precise statistics of %d norms over %d training batches at step %d: %.1f s%s', len(met),
                 self._batches, step, time.monotonic() - begin,
                 f'; {len(moments) - len(met)} met no element and keep theirs' if len(met) < len(moments) else '')

  def _of_all_replicas(self, batch, part):
    strategy = self._trainer.distribute_strategy
    shared = strategy.run(self._of_micro_batch, (batch, part))
    return tf.nest.map_structure(lambda x: strategy.experimental_local_results(x)[0], shared)  # equal on all of them

  def _of_micro_batch(self, batch, part):
    """For each layer its calls: (mean [C], unbiased variance [C], elements) over this micro-batch of all replicas."""
    if self._trainer.micro_batches > 1:
      batch = tf.nest.map_structure(lambda x: x[part], self._trainer.cut(batch))
    with recorded_statistics() as found:
      self._trainer.detector(batch.images, batch.image_sizes, labels=batch, training=True)
    return [found.get(layer, []) for layer in self._layers]
