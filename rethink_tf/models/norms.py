"""Normalisation as an argument: `norm(name, zero_gamma=False) -> layer` (section 3.1).

group_norm, sync_batch_norm, frozen_batch_norm, no_norm and addons_group_norm are interchangeable by one gin line:
`NORM = @group_norm`. scoped_norm is any of them with values of its own. A new norm is one function of this contract. If
its layer has batch statistics, it sets `over_batch = True` and is called as `layer(x, used=...)` on RoIs, some of which
are padding.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError, check_at_least, check_fractions
from rethink_tf.ops import portable
from rethink_tf.ops.batch_norm import batch_norm
from rethink_tf.ops.devices import device_of, kind
from rethink_tf.ops.group_norm import NormalisedMaps, channel_sums, portable_group_norm
from rethink_tf.ops.group_norm import group_norm as normalise_groups

MakeNorm = Callable[..., tf_keras.layers.Layer]  # (name, zero_gamma=False)
Statistics = tuple[tf.Tensor, tf.Tensor, tf.Tensor]  # mean [C], variance [C], number of elements

EPSILON = 1e-5  # Detectron's for every norm; Keras' default is 1e-3

_recording = threading.local()  # each replica is traced in its own thread


@contextlib.contextmanager
def recorded_maps() -> Iterator[list[NormalisedMaps]]:
  """Record the feature maps that GroupNorm would compile kernels for; the network runs with portable operations."""
  _recording.maps = maps = []
  try:
    yield maps
  finally:
    del _recording.maps


@contextlib.contextmanager
def recorded_statistics() -> Iterator[dict[tf_keras.layers.Layer, list[Statistics]]]:
  """Record batch statistics of SyncBatchNorm in this thread, instead of updating its moving statistics.

  Yields {layer: [(mean, unbiased variance, number of elements), …]}, one entry for each call in training.
  """
  _recording.found = found = {}
  try:
    yield found
  finally:
    del _recording.found


class GroupNorm(tf_keras.layers.Layer):
  """Group normalisation (Wu and He, ECCV 2018) with float32 parameters and statistics under every precision policy."""

  def __init__(self, groups: int = 32, epsilon: float = EPSILON, zero_gamma: bool = False, name: str | None = None,
               xla: bool = True, landscape: bool = False):
    super().__init__(name=name)
    check_at_least('group_norm', 1, groups=groups)
    check_at_least('group_norm', 0, epsilon=epsilon)
    self.groups, self.epsilon, self.zero_gamma, self.xla, self.landscape = groups, epsilon, zero_gamma, xla, landscape

  def build(self, input_shape: tf.TensorShape) -> None:
    channels = input_shape[-1]
    if channels % self.groups:
      raise UserError(f'group_norm.groups = {self.groups} does not divide the {channels} channels of {self.name}: '
                      'choose a divisor, or widths that are multiples of it')
    self.gamma = self.add_weight('gamma', [channels], tf.float32, 'zeros' if self.zero_gamma else 'ones',
                                 experimental_autocast=False)
    self.beta = self.add_weight('beta', [channels], tf.float32, 'zeros', experimental_autocast=False)
    super().build(input_shape)

  def call(self, x: tf.Tensor) -> tf.Tensor:
    parameters = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta), self.groups, self.epsilon
    if portable.chosen():
      if self.xla and hasattr(_recording, 'maps'):
        _recording.maps.append(NormalisedMaps(tuple(x.shape), x.dtype, *parameters[2:], self.landscape))
      return portable_group_norm(x, *parameters)
    return normalise_groups(x, *parameters, self.xla, self.landscape)


class SyncBatchNorm(tf_keras.layers.Layer):
  """Batch normalisation over the batches of all replicas; two-pass float32 statistics, float32 parameters.

  Replicas are weighted by their number of elements (Detectron2's NaiveSyncBatchNorm with stats_mode 'N'), not counting
  padded RoIs, so a replica without foreground has no effect. tf_keras' synchronised layer counts padding, uses
  one-pass variances, and sums in bfloat16 under that policy.
  """

  over_batch = True

  def __init__(self, momentum: float = 0.9, epsilon: float = EPSILON, zero_gamma: bool = False,
               name: str | None = None):
    super().__init__(name=name)
    check_fractions('sync_batch_norm', momentum=momentum)
    check_at_least('sync_batch_norm', 0, epsilon=epsilon)
    self.momentum, self.epsilon, self.zero_gamma = momentum, epsilon, zero_gamma

  def build(self, input_shape: tf.TensorShape) -> None:
    def weight(name: str, initial: str, **statistics: Any) -> tf.Variable:
      return self.add_weight(name, [input_shape[-1]], tf.float32, initial, experimental_autocast=False, **statistics)
    self.gamma, self.beta = weight('gamma', 'zeros' if self.zero_gamma else 'ones'), weight('beta', 'zeros')
    statistics = dict(trainable=False, synchronization=tf.VariableSynchronization.ON_READ,
                      aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)  # equal on all replicas
    self.moving_mean = weight('moving_mean', 'zeros', **statistics)
    self.moving_variance = weight('moving_variance', 'ones', **statistics)
    super().build(input_shape)

  def call(self, x: tf.Tensor, used: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
    """x: [N, H, W, C]; used: [N], 1 for rows that are not padding (None: all)."""
    if not (training and self.trainable):
      return self._scale(x, self.moving_mean, self.moving_variance)
    context = tf.distribute.get_replica_context()
    single = context is None or context.num_replicas_in_sync == 1
    if single and used is None:  # these kernels support neither padding nor several replicas
      return self._of_one_replica(x)
    mean, variance, count = _moments(tf.cast(x, tf.float32), used, (lambda t: t) if single else _sum_replicas)
    self._update(mean, variance * tf.math.divide_no_nan(count, count - 1.0), count)
    return self._scale(x, mean, variance)

  def _of_one_replica(self, x: tf.Tensor) -> tf.Tensor:
    count = tf.cast(tf.reduce_prod(tf.shape(x)[:3]), tf.float32)
    if kind(device_of(x)) == 'CPU':
      y, mean, variance = batch_norm(x, tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta),
                                     self.epsilon, xla=not portable.chosen())
      self._update(mean, variance * tf.math.divide_no_nan(count, count - 1.0), count)
    else:
      y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=self.gamma, offset=self.beta, mean=[], variance=[], epsilon=self.epsilon)
      self._update(mean, variance, count)
    return y

  def _scale(self, x: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
    scale = self.gamma * tf.math.rsqrt(variance + self.epsilon)
    return tf.cast(tf.cast(x, tf.float32) * scale + (self.beta - mean * scale), x.dtype)

  def _update(self, mean: tf.Tensor, variance: tf.Tensor, count: tf.Tensor) -> None:
    """Update the moving statistics, or record those of the batch."""
    found = getattr(_recording, 'found', None)
    if found is not None:
      found.setdefault(self, []).append((mean, variance, count))
      return
    for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
      step = (1.0 - self.momentum) * (tf.stop_gradient(new) - moving)
      # With float16 a step can overflow and is skipped (training/loss_scaling.py): keep its statistics out.
      moving.assign_add(tf.where((count > 0.0) & tf.math.is_finite(step), step, 0.0))


def _moments(x: tf.Tensor, used: tf.Tensor | None,
             total_of: Callable[[Sequence[tf.Tensor]], Sequence[tf.Tensor]]) -> Statistics:
  """Return mean [C], variance [C] and number of elements of float32 x [N, H, W, C] over the used rows.

  total_of: sums tensors over the replicas.
  """
  shape = tf.shape(x)
  used = tf.ones([shape[0]]) if used is None else tf.cast(used, tf.float32)
  count = tf.reduce_sum(used) * tf.cast(shape[1] * shape[2], tf.float32)
  count, total = total_of([count, tf.linalg.matvec(channel_sums(x), used, transpose_a=True)])
  mean = tf.math.divide_no_nan(total, count)
  squares = channel_sums(tf.math.squared_difference(x, mean))  # [N, C]
  squares, = total_of([tf.linalg.matvec(squares, used, transpose_a=True)])
  return mean, tf.math.divide_no_nan(squares, count), count


def _sum_replicas(tensors: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
  return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors)


class FrozenBatchNorm(tf_keras.layers.Layer):
  """Batch normalisation as a fixed affine map without trainable parameters (Detectron's AffineChannel).

  It is only meaningful with pre-trained statistics: training refuses it with random weights.
  """

  def __init__(self, epsilon: float = EPSILON, name: str | None = None):
    super().__init__(name=name, trainable=False)
    check_at_least('frozen_batch_norm', 0, epsilon=epsilon)
    self.epsilon = epsilon

  def build(self, input_shape: tf.TensorShape) -> None:
    def weight(name: str, initial: str) -> tf.Variable:
      return self.add_weight(name, [input_shape[-1]], tf.float32, initial, trainable=False,
                             experimental_autocast=False)
    self.gamma, self.beta = weight('gamma', 'ones'), weight('beta', 'zeros')
    self.moving_mean, self.moving_variance = weight('moving_mean', 'zeros'), weight('moving_variance', 'ones')
    super().build(input_shape)

  def call(self, x: tf.Tensor) -> tf.Tensor:
    scale = self.gamma * tf.math.rsqrt(self.moving_variance + self.epsilon)
    return x * tf.cast(scale, x.dtype) + tf.cast(self.beta - self.moving_mean * scale, x.dtype)


class NoNorm(tf_keras.layers.Layer):
  """Identity."""

  def call(self, x: tf.Tensor) -> tf.Tensor:
    return x


@gin.register
def group_norm(name: str, zero_gamma: bool = False, groups: int = 32, epsilon: float = EPSILON,
               xla: bool = True, landscape: bool = False) -> GroupNorm:
  """GN: 32 groups, epsilon 1e-5; independent of the number of images per device.

  xla: False does without compilation, for a GPU that XLA cannot compile for.
  landscape: True halves the compilations: a portrait shape shares that of its landscape twin, but is rounded otherwise.
  """
  return GroupNorm(groups, epsilon, zero_gamma, name, xla, landscape)


@gin.register
def sync_batch_norm(name: str, zero_gamma: bool = False, momentum: float = 0.9,
                    epsilon: float = EPSILON) -> SyncBatchNorm:
  """SyncBN: batch statistics over all replicas (torch's momentum 0.1 is Keras' 0.9)."""
  return SyncBatchNorm(momentum, epsilon, zero_gamma, name)


@gin.register
def frozen_batch_norm(name: str, zero_gamma: bool = False, epsilon: float = EPSILON) -> FrozenBatchNorm:
  """Frozen BN: fixed pre-trained statistics. `zero_gamma` has no effect: gamma is that of the weights."""
  del zero_gamma
  return FrozenBatchNorm(epsilon, name)


@gin.register
def no_norm(name: str, zero_gamma: bool = False) -> NoNorm:
  """No normalisation (section 5.1: VGG-16 trains with an appropriate initialisation only)."""
  if zero_gamma:
    raise UserError('no_norm has no gamma to start at zero: set ResNet.zero_init_residual = False, or '
                    'CBNet.connector_zero_gamma = False')
  return NoNorm(name=name)


@gin.register
def scoped_norm(name: str, zero_gamma: bool = False, norm: MakeNorm = group_norm) -> tf_keras.layers.Layer:
  """`norm` itself, with the values that are bound for it in the scope of a reference such as @heads/scoped_norm."""
  return norm(name=name, zero_gamma=zero_gamma)


@gin.register
def addons_group_norm(name: str, zero_gamma: bool = False, groups: int = 32,
                      epsilon: float = EPSILON) -> tf_keras.layers.Layer:
  """tensorflow-addons' GroupNormalization, for comparison with code that uses it (extra: `.[addons]`).

  Under a 16-bit policy it computes in float32, and its input and output are 16-bit, as with group_norm.
  """
  # The last release (0.23) predates Keras 3 and imports modules that have moved to tf_keras.
  from tf_keras.src import engine
  from tf_keras.src.engine import keras_tensor
  sys.modules.setdefault('keras.src.engine', engine)
  sys.modules.setdefault('keras.src.engine.keras_tensor', keras_tensor)
  try:
    from tensorflow_addons.layers import GroupNormalization
  except ImportError as error:
    raise UserError(f"NORM = @addons_group_norm needs the extra: pip install -e '.[addons]' ({error})") from error

  class InFloat32(GroupNormalization):
    """Float32 statistics: in the policy's type a variance overflows (float16) or has 8 bits (bfloat16)."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
      return tf.cast(super().call(tf.cast(inputs, tf.float32)), inputs.dtype)

  return InFloat32(groups=groups, epsilon=epsilon, name=name, gamma_initializer='zeros' if zero_gamma else 'ones',
                   dtype='float32', autocast=False)
