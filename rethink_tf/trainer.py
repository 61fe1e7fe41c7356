"""The train step: forward, losses, division by the number of replicas, gradients, apply. What `fit` needs."""

from __future__ import annotations

import tensorflow as tf
import tf_keras

from rethink_tf.structures import Batch, Detections, LabelledImages

_CANVAS = 128  # side of the images on which variables are made: nothing depends on it


class Trainer(tf_keras.Model):
  """A detector with its losses, as the model that `fit` trains.

  detector: models.MaskRCNN, models.Classifier or any `model(images, image_sizes, labels, training)` whose outputs have
  `predictions` for an evaluator.
  losses: `losses(outputs, batch) -> {name: scalar}`, means over this replica's micro-batch.
  micro_batches: parts into which a replica's batch is cut; their gradients are accumulated, so that a device that
  holds two images trains with a batch of 16. Normalisers are those of a micro-batch: eight of two images on one
  device compute what eight devices of two images compute.
  """

  def __init__(self, detector: tf_keras.layers.Layer, losses, micro_batches: int = 1):
    super().__init__(name='trainer', autocast=False)  # boxes stay float32 under every precision policy
    self.detector, self.loss_function, self.micro_batches = detector, losses, micro_batches
    self.loss_means: dict[str, tf_keras.metrics.Mean] = {}
    self._predict = tf.function(self.predict_step, autograph=False)

  @tf.autograph.experimental.do_not_convert  # nothing here needs AutoGraph, which takes longer than the tracing
  def train_step(self, batch: Batch) -> dict[str, tf.Tensor]:
    losses, gradients = self.accumulate(batch)
    self.optimizer.apply_gradients(zip(gradients, self.detector.trainable_variables, strict=True))
    for name, value in losses.items():
      self.loss_means[name].update_state(value)
    return {name: mean.result() for name, mean in self.loss_means.items()}

  def gradients(self, batch: Batch) -> tuple[dict[str, tf.Tensor], list[tf.Tensor]]:
    """Losses of a micro-batch, and its share of the gradient of the mean over micro-batches and replicas."""
    with tf.GradientTape() as tape:
      outputs = self.detector(batch.images, batch.image_sizes, labels=batch, training=True)
      losses = self.loss_function(outputs, batch)
      total = tf.add_n(list(losses.values()))
      # Gradients are summed over replicas and micro-batches: this is the one place that makes the sum a mean.
      share = total / (self.distribute_strategy.num_replicas_in_sync * self.micro_batches)
      scaled = self.optimizer.get_scaled_loss(share) if self.scales_loss else share
    gradients = tape.gradient(scaled, self.detector.trainable_variables, unconnected_gradients='zero')
    if self.scales_loss:
      gradients = self.optimizer.get_unscaled_gradients(gradients)
    return {'loss/total': total} | {f'loss/{name}': value for name, value in losses.items()}, gradients

  def accumulate(self, batch: Batch) -> tuple[dict[str, tf.Tensor], list[tf.Tensor]]:
    """Losses and gradients of a replica's batch, micro-batch by micro-batch."""
    if self.micro_batches == 1:
      return self.gradients(batch)
    parts = self.cut(batch)

    def add(i, losses, gradients):
      micro_losses, micro_gradients = self.gradients(tf.nest.map_structure(lambda part: part[i], parts))
      losses = {name: losses[name] + value / self.micro_batches for name, value in micro_losses.items()}
      return i + 1, losses, [a + b for a, b in zip(gradients, micro_gradients, strict=True)]

    start = (0, dict.fromkeys(self.loss_means, 0.0), [tf.zeros_like(v) for v in self.detector.trainable_variables])
    _, losses, gradients = tf.while_loop(lambda i, *_: i < self.micro_batches, add, start, parallel_iterations=1)
    return losses, gradients

  def cut(self, batch: Batch) -> Batch:
    """A replica's batch in micro-batches: [B, …] -> [micro_batches, B / micro_batches, …]."""
    parts = self.micro_batches
    return tf.nest.map_structure(
      lambda x: tf.reshape(x, tf.concat([[parts, x.shape[0] // parts], tf.shape(x)[1:]], 0)), batch)

  def predict_step(self, batch: Batch | LabelledImages) -> Detections | tf.Tensor:
    return self.detector(batch.images, batch.image_sizes, training=False).predictions

  def predict_batch(self, batch: Batch | LabelledImages) -> Detections | tf.Tensor:
    """Detections, or logits of a classifier, of one batch, its images shared out among the replicas."""
    return self.join(self.run_step(self._predict, self.share_out(batch)))

  def share_out(self, batch):
    """Any structure of tensors [B, …] for run_step: each replica has its share of the rows."""
    strategy = self.distribute_strategy
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
      return batch

    def shares(x):
      rows = x.shape[0] // replicas
      return strategy.experimental_distribute_values_from_function(
        lambda context: x[context.replica_id_in_sync_group * rows:][:rows])

    return tf.nest.map_structure(shares, batch)

  def run_step(self, function, *arguments):
    """Calls a tf.function on every replica, with arguments from share_out or from another step."""
    strategy = self.distribute_strategy
    return function(*arguments) if strategy.num_replicas_in_sync == 1 else strategy.run(function, arguments)

  def join(self, shared):
    """The results of run_step, the rows of all replicas together."""
    strategy = self.distribute_strategy
    if strategy.num_replicas_in_sync == 1:
      return shared

    def rows(x):  # a detector without masks has None there
      return None if x is None else tf.concat(strategy.experimental_local_results(x), 0)

    return tf.nest.map_structure(rows, shared)

  def make_variables(self, batch: Batch) -> None:
    """Creates all variables, in a fixed order, from the shapes of a batch; nothing is computed."""
    traced = tf.function(self._losses_of, autograph=False).get_concrete_function(tf.nest.map_structure(_spec, batch))
    names = ['loss/total', *(f'loss/{name}' for name in traced.structured_outputs)]
    self.loss_means = {name: tf_keras.metrics.Mean(name) for name in names}
    self.optimizer.build(self.detector.trainable_variables)
    self.built = True

  @property
  def metrics(self) -> list[tf_keras.metrics.Metric]:
    return list(self.loss_means.values())

  @property
  def scales_loss(self) -> bool:
    return isinstance(self.optimizer, tf_keras.mixed_precision.LossScaleOptimizer)

  def call(self, batch: Batch, training: bool = False):
    return self.detector(batch.images, batch.image_sizes, labels=batch, training=training)

  def _losses_of(self, batch):
    return self.loss_function(self(batch, training=True), batch)


def _spec(x):
  return tf.TensorSpec(x.shape, x.dtype)
