"""PreciseStatistics: recomputes the statistics of SyncBatchNorm before each evaluation.

A moving average lags behind changing weights, and an average of variances leaves out the variance between batches. Here
mean and variance are those of all elements of many training batches together ("population statistics" of Wu and Johnson
2021, Rethinking "Batch" in BatchNorm, section 3; TEST.PRECISE_BN of Detectron2).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import gin
import numpy as np
import tensorflow as tf
import tf_keras
from absl import logging

from rethink_tf.errors import UserError
from rethink_tf.models.norms import Statistics, SyncBatchNorm, recorded_statistics
from rethink_tf.storage.checkpoints import iterations
from rethink_tf.structures import Batch
from rethink_tf.training.callbacks import Logs
from rethink_tf.training.trainer import Trainer

Data = tf.data.Dataset | tf.distribute.DistributedDataset


class Moments:
  """Running mean and variance over batches, in float64 (Chan et al. 1979)."""

  def __init__(self):
    self.count, self.mean, self._squares = 0.0, np.float64(0.0), np.float64(0.0)

  def add(self, mean: np.ndarray, unbiased_variance: np.ndarray, count: float) -> None:
    """Add a batch of `count` elements; ignore an empty batch and one that has overflowed in float16."""
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
    """Mean squared distance from the mean: variance within batches and between them."""
    return self._squares / self.count


@gin.register
class PreciseStatistics(tf_keras.callbacks.Callback):
  """Replaces the moving statistics of every trainable SyncBatchNorm before each evaluation.

  The forward pass is that of training: the same replicas and micro-batches, normalised by their own batch statistics,
  without padded RoIs, on the batches of the next steps. Weights, optimizer and batches of training are not affected.
  The new statistics are kept, as in Detectron2: the checkpoint holds the weights that were scored, and the moving
  averages continue from there. In `fit` it comes before SaveCheckpoints.
  A norm that is not trainable keeps its statistics; so does one without any element (a mask head without foreground).

  Args:
    trainer: its detector, micro_batches and distribution strategy are used.
    training_batches: (step, number) -> data set of at least `number` training batches from that step on, distributed
      as for `fit`.
    due: step -> whether it is evaluated.
    batches: number of training batches (Detectron2: 200).

  Raises:
    UserError: batches below 1.
  """

  def __init__(self, trainer: Trainer, training_batches: Callable[[int, int], Data], due: Callable[[int], bool],
               batches: int = 200):
    super().__init__()
    if batches < 1:
      raise UserError(f'PreciseStatistics.batches = {batches}: use 1 or more, or run.precise_statistics = None')
    self._trainer, self._training_batches, self._due, self._batches = trainer, training_batches, due, batches
    self._layers = [layer for layer in trainer.detector.submodules
                    if isinstance(layer, SyncBatchNorm) and layer.trainable]
    self._statistics: Callable[..., list[list[Statistics]]] | None = None  # one graph for all padded shapes

  def on_train_begin(self, logs: Logs | None = None) -> None:
    if not self._layers:
      logging.info('precise statistics: no SyncBatchNorm is trainable, so there is nothing to compute')

  def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
    step = iterations(self._trainer.optimizer)
    if self._layers and self._due(step):
      self.compute(step)

  def compute(self, step: int) -> None:
    """Set the statistics of the layers to those over the batches of `step`, `step` + 1, …."""
    start, moments = time.monotonic(), [Moments() for _ in self._layers]
    data = self._training_batches(step, self._batches)
    if self._statistics is None:
      signature = [data.element_spec, tf.TensorSpec([], tf.int32)]
      self._statistics = tf.function(self._of_all_replicas, autograph=False, input_signature=signature)
    for batch in itertools.islice(data, self._batches):
      for index in range(self._trainer.micro_batches):
        for moment, calls in zip(moments, self._statistics(batch, tf.constant(index)), strict=True):
          for mean, variance, count in calls:
            moment.add(mean.numpy(), variance.numpy(), count.numpy())
    computed = [(layer, moment) for layer, moment in zip(self._layers, moments, strict=True) if moment.count]
    for layer, moment in computed:
      layer.moving_mean.assign(np.float32(moment.mean))
      layer.moving_variance.assign(np.float32(moment.variance))
    empty = len(moments) - len(computed)
    logging.info('precise statistics of %d norms over %d training batches at step %d: %.1f s%s', len(computed),
                 self._batches, step, time.monotonic() - start,
                 f'; {empty} received no elements and keep their moving averages' if empty else '')

  def _of_all_replicas(self, batch: Batch, index: tf.Tensor) -> list[list[Statistics]]:
    strategy = self._trainer.distribute_strategy
    shared = strategy.run(self._of_micro_batch, (batch, index))
    return tf.nest.map_structure(lambda x: strategy.experimental_local_results(x)[0], shared)  # equal on all of them

  def _of_micro_batch(self, batch: Batch, index: tf.Tensor) -> list[list[Statistics]]:
    """Return the statistics of each call of each layer, over this micro-batch of all replicas."""
    if self._trainer.micro_batches > 1:
      batch = tf.nest.map_structure(lambda x: x[index], self._trainer.cut(batch))
    with recorded_statistics() as found:
      self._trainer.detector(batch.images, batch.image_sizes, labels=batch, training=True)
    return [found.get(layer, []) for layer in self._layers]
