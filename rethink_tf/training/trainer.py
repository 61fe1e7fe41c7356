"""The train step: forward, losses, division by the number of replicas, gradients, update. What `fit` needs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from rethink_tf.models.norms import recorded_maps
from rethink_tf.ops import portable
from rethink_tf.ops.group_norm import NormalisedMaps
from rethink_tf.structures import Batch, Detections, LabelledImages

Losses = dict[str, tf.Tensor]

_BLANK_SIDE = 64  # the smallest side of which every level of a pyramid has a cell


class Trainer(tf_keras.Model):
  """A detector with its losses, as the model that `fit` trains. Under mixed_float16: loss_scaling.LossScaleTrainer.

  detector: models.MaskRCNN, models.Classifier or any `model(images, image_sizes, labels, training)` whose outputs have
  `predictions` for an evaluator.
  losses: `losses(outputs, batch) -> {name: scalar}`, means over this replica's micro-batch.
  micro_batches: number of slices of a replica's batch whose gradients are accumulated, so that a device that holds two
  images trains with a batch of 16. Normalisers are those of a micro-batch: eight of two images on one device compute
  what eight devices of two images compute.
  """

  def __init__(self, detector: tf_keras.layers.Layer, losses: Callable[[Any, Any], Mapping[str, tf.Tensor]],
               micro_batches: int = 1):
    super().__init__(name='trainer', autocast=False)  # boxes stay float32 under every precision policy
    self.detector, self.loss_function, self.micro_batches = detector, losses, micro_batches
    self.loss_means: dict[str, tf_keras.metrics.Metric] = {}
    # The feature maps of a blank image that are normalised, and the shape of that image, for training/compilation.py.
    self.blank_maps: tuple[NormalisedMaps, ...] = ()
    self.blank_shape: tuple[int, ...] = ()
    self._predict = tf.function(self.predict_step, autograph=False)
    # Metrics are those of all replicas already; by default Keras would add them up over several workers.
    self.distribute_reduction_method = 'first'

  # Nothing here needs AutoGraph, which takes longer than the tracing. Keras converts a layer's `call` even inside a
  # tf.function(autograph=False).
  @tf.autograph.experimental.do_not_convert
  def train_step(self, batch: Batch) -> Losses:
    """Update the weights by this replica's share of a batch; return the means of the losses since reset_metrics."""
    losses, gradients = self.gradients(batch) if self.micro_batches == 1 else self.accumulated_gradients(batch)
    self.optimizer.apply_gradients(zip(gradients, self.detector.trainable_variables, strict=True))
    for name, mean in self.loss_means.items():
      mean.update_state(losses[name])
    return {metric.name: metric.result() for metric in self.metrics}

  def gradients(self, batch: Batch) -> tuple[Losses, list[tf.Tensor]]:
    """Return the losses of a micro-batch, and its share of the mean gradient over micro-batches and replicas."""
    with tf.GradientTape() as tape:
      outputs = self.detector(batch.images, batch.image_sizes, labels=batch, training=True)
      with tf.name_scope('losses'):
        losses = self.loss_function(outputs, batch)
        total = tf.add_n(list(losses.values()))
      # Gradients are summed over replicas and micro-batches: this is the one place that makes the sum a mean.
      share = self.scaled(total / (self.distribute_strategy.num_replicas_in_sync * self.micro_batches))
    gradients = tape.gradient(share, self.detector.trainable_variables, unconnected_gradients='zero')
    losses = {'loss/total': total} | {f'loss/{name}': value for name, value in losses.items()}
    return losses | self.diagnostics(outputs), gradients

  def accumulated_gradients(self, batch: Batch) -> tuple[Losses, list[tf.Tensor]]:
    """Return the mean losses and the sum of the gradients over the micro-batches of a replica's batch."""
    micro_batches = self.cut(batch)  # [micro_batches, B / micro_batches, ...]

    def add(i, losses, gradients):
      micro_losses, micro_gradients = self.gradients(tf.nest.map_structure(lambda x: x[i], micro_batches))
      losses = {name: losses[name] + value / self.micro_batches for name, value in micro_losses.items()}
      return i + 1, losses, [a + b for a, b in zip(gradients, micro_gradients, strict=True)]

    start = (0, dict.fromkeys(self.logged, 0.0), [tf.zeros_like(v) for v in self.detector.trainable_variables])
    if not self._reduces_inside():
      _, losses, gradients = tf.while_loop(lambda i, *_: i < self.micro_batches, add, start, parallel_iterations=1)
      return losses, gradients
    state = start
    for _ in range(self.micro_batches):
      with tf.control_dependencies([tf.group(*state[2])]):  # one after the other, for the memory of one
        state = add(*state)
    _, losses, gradients = state
    return losses, gradients

  def _reduces_inside(self) -> bool:
    """Whether replicas add up statistics in the forward pass, which TensorFlow can do in a loop on TPUs only."""
    strategy = self.distribute_strategy
    return (strategy.num_replicas_in_sync > 1 and not isinstance(strategy, tf.distribute.TPUStrategy)
            and any(getattr(layer, 'over_batch', False) for layer in self.detector.submodules))

  def scaled(self, loss: tf.Tensor) -> tf.Tensor:
    """Return the loss to differentiate: with a loss scale, a multiple of `loss`."""
    return loss

  def unscaled(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """Return the gradients of the loss itself, given those of `scaled`."""
    return gradients

  def diagnostics(self, outputs: Any) -> Losses:
    """Return further scalars that a step computes from the outputs of the network."""
    return {}

  @property
  def logged(self) -> list[str]:
    """Names of all scalars that `gradients` returns."""
    return list(self.loss_means)

  def cut(self, batch: Batch) -> Batch:
    """Divide a replica's batch into micro-batches: [B, ...] -> [micro_batches, B / micro_batches, ...]."""
    n = self.micro_batches
    return tf.nest.map_structure(
      lambda x: tf.reshape(x, tf.concat([[n, x.shape[0] // n], tf.shape(x)[1:]], 0)), batch)

  def make_train_function(self, force: bool = False) -> Callable[..., Any]:
    """Return the function that `fit` calls: with XLA a static graph for each padded shape, else Keras' one for all."""
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

  @tf.autograph.experimental.do_not_convert
  def predict_step(self, batch: Batch | LabelledImages) -> Detections | tf.Tensor:
    """Return detections, or logits of a classifier [B, L], of this replica's images."""
    return self.detector(batch.images, batch.image_sizes, training=False).predictions

  def predict_batch(self, batch: Batch | LabelledImages) -> Detections | tf.Tensor:
    """Return detections, or logits of a classifier, of one batch, whose images are distributed over the replicas."""
    return self.gather(self.run_step(self._predict, self.shard(batch)))

  def shard(self, batch: Any) -> Any:
    """Distribute any structure of tensors [B, ...] over the replicas of this machine, for run_step."""
    strategy = self.distribute_strategy
    if strategy.num_replicas_in_sync == 1:
      return batch
    replicas = len(strategy.extended.worker_devices)

    def shares(x):
      rows = x.shape[0] // replicas
      return strategy.experimental_distribute_values_from_function(
        lambda context: x[context.replica_id_in_sync_group % replicas * rows:][:rows])

    return tf.nest.map_structure(shares, batch)

  def run_step(self, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a tf.function on every replica, with arguments from `shard` or from another step."""
    strategy = self.distribute_strategy
    return function(*arguments) if strategy.num_replicas_in_sync == 1 else strategy.run(function, arguments)

  def gather(self, results: Any) -> Any:
    """Concatenate the rows of all replicas in the results of `run_step`."""
    strategy = self.distribute_strategy
    if strategy.num_replicas_in_sync == 1:
      return results

    def rows(x):  # a detector without masks has None there
      return None if x is None else tf.concat(strategy.experimental_local_results(x), 0)

    return tf.nest.map_structure(rows, results)

  @tf.autograph.experimental.do_not_convert
  def make_variables(self, batch: Any) -> None:
    """Create all variables, in a fixed order, from the tf.TensorSpec of a batch.

    A tf.function that creates variables is traced twice. To avoid that, the losses of a small blank image are computed
    eagerly first, which takes less than half the time of building a graph. With XLA, whose shapes are static, and on
    TPUs, which would compile each operation, a graph is built but not run: variables are lifted out of it.
    """
    if getattr(self.detector, 'xla', False) or isinstance(self.distribute_strategy, tf.distribute.TPUStrategy):
      with tf.__internal__.FuncGraph('variables').as_default():
        placeholders = tf.nest.map_structure(lambda x: tf.compat.v1.placeholder(x.dtype, x.shape), batch)
        losses = self.loss_function(self(placeholders, training=True), placeholders)
    else:
      blank = tf.nest.map_structure(
        lambda x: tf.zeros([1, *(_BLANK_SIDE if side is None else side for side in x.shape[1:])], x.dtype), batch)
      # Portable operations, since none of them is compiled.
      with _initial_state(), portable.operations(), recorded_maps() as maps:
        losses = self.loss_function(self(blank, training=True), blank)
      self.blank_maps, self.blank_shape = tuple(maps), tuple(blank[0].shape[1:3])
    self.make_metrics(['loss/total', *(f'loss/{name}' for name in losses)])
    self.optimizer.build(self.detector.trainable_variables)
    self.built = True

  def make_metrics(self, names: Sequence[str]) -> None:
    """Create the means that are logged, one for each name that `gradients` returns, as 'loss/rpn/box'."""
    self.loss_means = {name: tf_keras.metrics.Mean(name) for name in names}

  @property
  def metrics(self) -> list[tf_keras.metrics.Metric]:
    return list(self.loss_means.values())

  def call(self, batch: Batch, training: bool = False) -> Any:
    """Return the outputs of the detector, given the labels of the batch."""
    return self.detector(batch.images, batch.image_sizes, labels=batch, training=training)


@contextlib.contextmanager
def _initial_state() -> Iterator[None]:
  """Reset variables created in this context that are not trained, as moving averages, to their initial values."""
  made = []

  def make(next_creator: Callable[..., tf.Variable], **settings: Any) -> tf.Variable:
    variable = next_creator(**settings)
    if not variable.trainable:
      made.append((variable, variable.read_value()))
    return variable

  with tf.variable_creator_scope(make):
    yield
  for variable, value in made:
    variable.assign(value)
