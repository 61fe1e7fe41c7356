"""The train step: forward, losses, division by the number of replicas, gradients, apply. What `fit` needs."""

from __future__ import annotations

import re
from typing import Any

import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError
from rethink_tf.structures import Batch, Detections, LabelledImages

# What devices say; 'no space left' on a disk and too long a message are ResourceExhaustedErrors as well.
_OUT_OF_MEMORY = re.compile(r'OOM when allocating|out of memory|failed to allocate memory', re.IGNORECASE)
_COMPUTED = ('features', 'logits', 'deltas', 'class_logits', 'box_deltas')  # by a network; other outputs are targets


class Trainer(tf_keras.Model):
  """A detector with its losses, as the model that `fit` trains.

  detector: models.MaskRCNN, models.Classifier or any `model(images, image_sizes, labels, training)` whose outputs have
  `predictions` for an evaluator.
  losses: `losses(outputs, batch) -> {name: scalar}`, means over this replica's micro-batch.
  micro_batches: parts into which a replica's batch is cut; their gradients are accumulated, so that a device that
  holds two images trains with a batch of 16. Normalisers are those of a micro-batch: eight of two images on one
  device compute what eight devices of two images compute.

  Under a LossScaleOptimizer (mixed_float16) a step whose gradients overflow is skipped: weights and velocities stay,
  the loss scale is halved, the iteration counts and its batch is used up, so that input, counters and schedule go on
  in step. Its loss is left out of the means if it is not finite because a float16 number of the network was not; see
  `overflowed`.
  """

  def __init__(self, detector: tf_keras.layers.Layer, losses, micro_batches: int = 1):
    super().__init__(name='trainer', autocast=False)  # boxes stay float32 under every precision policy
    self.detector, self.loss_function, self.micro_batches = detector, losses, micro_batches
    self.loss_means: dict[str, tf_keras.metrics.Mean] = {}
    self.scaling_metrics: dict[str, tf_keras.metrics.Metric] = {}  # of a LossScaleOptimizer
    self._predict = tf.function(self.predict_step, autograph=False)
    # Metrics are those of all replicas already; by default Keras would add them up over several workers.
    self.distribute_reduction_method = 'first'

  @tf.autograph.experimental.do_not_convert  # nothing here needs AutoGraph, which takes longer than the tracing
  def train_step(self, batch: Batch) -> dict[str, tf.Tensor]:
    losses, gradients = self.accumulate(batch)
    scale = self.optimizer.loss_scale if self.scales_loss else None
    self.optimizer.apply_gradients(zip(gradients, self.detector.trainable_variables, strict=True))
    weight = None
    if self.scales_loss:
      losses, weight = self._judge(losses, scale)
    for name, mean in self.loss_means.items():
      mean.update_state(losses[name], weight)
    return {name: metric.result() for name, metric in (self.loss_means | self.scaling_metrics).items()}

  def gradients(self, batch: Batch) -> tuple[dict[str, tf.Tensor], list[tf.Tensor]]:
    """Losses of a micro-batch, and its share of the gradient of the mean over micro-batches and replicas.

    The gradients are multiplied by the loss scale, if there is one; `overflow` among the losses is then 1 where a
    number that the network computed is not finite.
    """
    with tf.GradientTape() as tape:
      outputs = self.detector(batch.images, batch.image_sizes, labels=batch, training=True)
      with tf.name_scope('losses'):
        losses = self.loss_function(outputs, batch)
        total = tf.add_n(list(losses.values()))
      # Gradients are summed over replicas and micro-batches: this is the one place that makes the sum a mean.
      share = total / (self.distribute_strategy.num_replicas_in_sync * self.micro_batches)
      scaled = self.optimizer.get_scaled_loss(share) if self.scales_loss else share
    gradients = tape.gradient(scaled, self.detector.trainable_variables, unconnected_gradients='zero')
    losses = {'loss/total': total} | {f'loss/{name}': value for name, value in losses.items()}
    if self.scales_loss:
      losses['overflow'] = 1.0 - tf.cast(_finite(_computed(outputs)), tf.float32)
    return losses, gradients

  def accumulate(self, batch: Batch) -> tuple[dict[str, tf.Tensor], list[tf.Tensor]]:
    """Losses and gradients of a replica's batch, micro-batch by micro-batch; unscaled, once."""
    losses, gradients = self.gradients(batch) if self.micro_batches == 1 else self._added_up(self.cut(batch))
    return losses, self.optimizer.get_unscaled_gradients(gradients) if self.scales_loss else gradients

  def _added_up(self, parts: Batch) -> tuple[dict[str, tf.Tensor], list[tf.Tensor]]:
    """Mean losses and the sum of the gradients of all micro-batches [micro_batches, B / micro_batches, …]."""

    def add(i, losses, gradients):
      micro_losses, micro_gradients = self.gradients(tf.nest.map_structure(lambda part: part[i], parts))
      losses = {name: losses[name] + value / self.micro_batches for name, value in micro_losses.items()}
      return i + 1, losses, [a + b for a, b in zip(gradients, micro_gradients, strict=True)]

    names = [*self.loss_means, *(['overflow'] if self.scales_loss else [])]
    start = (0, dict.fromkeys(names, 0.0), [tf.zeros_like(v) for v in self.detector.trainable_variables])
    _, losses, gradients = tf.while_loop(lambda i, *_: i < self.micro_batches, add, start, parallel_iterations=1)
    return losses, gradients

  def _judge(self, losses, scale):
    """After an update under a loss scale: what enters the means of the losses, and with which weight, 1 or 0."""
    after, replicas = self.optimizer.loss_scale, self.distribute_strategy.num_replicas_in_sync
    skipped = (self.optimizer.dynamic_counter == 0) & (after <= scale)  # else it counts on, or has just been doubled
    finite = _finite(list(losses.values()))
    sound = tf.cond(skipped & ~finite, lambda: _finite(self.detector.trainable_variables), lambda: True)
    overflowed = skipped & (scale > 1.0) & ~finite & (losses['overflow'] > 0.0) & sound
    # Gradients that are not finite at a scale of 1 are no matter of scaling: nothing would ever be learnt again.
    lost = skipped & (scale <= 1.0)
    # The mean over replicas is positive if one has overflowed and none has anything worse.
    self._overflow.assign(tf.where(overflowed, 1.0, tf.where(finite & ~lost, 0.0, -float(replicas))))
    self.scaling_metrics['loss_scale'].update_state(after)
    self.scaling_metrics['skipped_steps'].update_state(tf.cast(skipped, tf.float32) / replicas)
    losses = {name: tf.where(overflowed, 0.0, tf.where(lost, float('nan'), value)) for name, value in losses.items()}
    return losses, 1.0 - tf.cast(overflowed, tf.float32)

  @property
  def overflowed(self) -> bool:
    """Whether the loss of the last step is not finite on some replica because a float16 number was not.

    The step was skipped; the next ones have a smaller loss scale. False for what will not mend itself: weights that are
    not finite, a loss that is not although the network's outputs are, gradients that are not at a loss scale of 1.
    """
    return self.scales_loss and bool(self._overflow.numpy() > 0)

  def cut(self, batch: Batch) -> Batch:
    """A replica's batch in micro-batches: [B, …] -> [micro_batches, B / micro_batches, …]."""
    parts = self.micro_batches
    return tf.nest.map_structure(
      lambda x: tf.reshape(x, tf.concat([[parts, x.shape[0] // parts], tf.shape(x)[1:]], 0)), batch)

  def make_train_function(self, force: bool = False):
    """Where XLA compiles the step, one graph for each padded shape, all of it static; else Keras' one for all."""
    if not getattr(self.detector, 'xla', False):
      return super().make_train_function(force)
    strategy = self.distribute_strategy
    step = tf.function(lambda batch: strategy.run(self.train_step, (batch,)), autograph=False)

    def train(iterator):
      for _ in range(int(self._steps_per_execution.numpy())):
        logs = step(next(iterator))  # outside of the graph a batch has its shape
        self._train_counter.assign_add(1)
      return tf.nest.map_structure(lambda x: strategy.experimental_local_results(x)[0], logs)

    self.train_function = train
    return train

  def predict_step(self, batch: Batch | LabelledImages) -> Detections | tf.Tensor:
    return self.detector(batch.images, batch.image_sizes, training=False).predictions

  def predict_batch(self, batch: Batch | LabelledImages) -> Detections | tf.Tensor:
    """Detections, or logits of a classifier, of one batch, its images shared out among the replicas."""
    return self.join(self.run_step(self._predict, self.shard(batch)))

  def shard(self, batch):
    """Any structure of tensors [B, …] for run_step: each replica of this machine has its share of the rows."""
    strategy = self.distribute_strategy
    if strategy.num_replicas_in_sync == 1:
      return batch
    replicas = len(strategy.extended.worker_devices)

    def shares(x):
      rows = x.shape[0] // replicas
      return strategy.experimental_distribute_values_from_function(
        lambda context: x[context.replica_id_in_sync_group % replicas * rows:][:rows])

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
    mean = _MeanOrNone if self.scales_loss else tf_keras.metrics.Mean
    self.loss_means = {name: mean(name) for name in names}
    if self.scales_loss:
      self.scaling_metrics = {'loss_scale': tf_keras.metrics.Mean('loss_scale'),
                              'skipped_steps': tf_keras.metrics.Sum('skipped_steps')}
      self._overflow = tf.Variable(0.0, trainable=False, aggregation=tf.VariableAggregation.MEAN)
    self.optimizer.build(self.detector.trainable_variables)
    self.built = True

  @property
  def metrics(self) -> list[tf_keras.metrics.Metric]:
    return [*self.loss_means.values(), *self.scaling_metrics.values()]

  @property
  def scales_loss(self) -> bool:
    return isinstance(self.optimizer, tf_keras.mixed_precision.LossScaleOptimizer)

  def fit(self, *arguments: Any, **settings: Any) -> tf_keras.callbacks.History:
    """Keras' fit.

    Raises:
      UserError: a device has not enough memory for a step.
    """
    try:
      return super().fit(*arguments, **settings)
    except tf.errors.ResourceExhaustedError as error:
      found = _OUT_OF_MEMORY.search(error.message)
      if found is None:
        raise
      raise UserError(
        f'a device ran out of memory in a training step ({error.message[found.start():].splitlines()[0]}): lower '
        'run.images_per_device (gradients are then accumulated and the result stays the same), or add '
        '--gin_file=gin_configs/runtime/recompute.gin, which computes activations again instead of keeping them'
      ) from error

  def call(self, batch: Batch, training: bool = False):
    return self.detector(batch.images, batch.image_sizes, labels=batch, training=training)

  def _losses_of(self, batch):
    return self.loss_function(self(batch, training=True), batch)


class _MeanOrNone(tf_keras.metrics.Mean):
  """NaN, where Keras' is 0, when every step was left out."""

  def result(self):
    return tf.math.truediv(self.total, self.count)


def _finite(tensors):
  return tf.reduce_all([tf.reduce_all(tf.math.is_finite(x)) for x in tensors])


def _computed(outputs):
  """What a network itself has computed, wherever in its outputs."""
  if isinstance(outputs, tuple) and not hasattr(outputs, '_fields'):
    return [x for part in outputs for x in _computed(part)]
  fields = outputs._asdict() if hasattr(outputs, '_fields') else {}
  return [x for name, value in fields.items()
          for x in (tf.nest.flatten(value) if name in _COMPUTED else _computed(value))]


def _spec(x):
  return tf.TensorSpec(x.shape, x.dtype)
