"""Group normalisation with a closed-form gradient (Wu and He, ECCV 2018, equations 1-4).

tf_keras' layer uses a transposed reduction in the input's precision, which takes more than half of a convolutional
network's step. Here sums are matrix products with ones (row by row, for short float32 accumulations), statistics are
two-pass float32 for every input type, and forward and backward pass are small XLA clusters that keep only the input.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf


def group_norm(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, groups: int, epsilon: float,
               xla: bool = True, landscape: bool = False) -> tf.Tensor:
  """Normalise x [N, H, W, C] over groups of consecutive channels of each image; the result has x's shape and type.

  gamma, beta: float32 [C]. C must be a multiple of `groups`. Statistics are float32.
  xla: compile both passes; False, and in a TensorFlow without XLA, the same operations one by one: slower.
  landscape: treat portrait maps as landscape ones of the same pixels, so that XLA compiles one shape for both; costs
    nothing, but sums their pixels in another order.
  """
  if landscape:
    shape = tf.shape(x)
    sides = tf.minimum(shape[1], shape[2]), tf.maximum(shape[1], shape[2])
    y = group_norm(tf.reshape(x, [shape[0], *sides, x.shape[3]]), gamma, beta, groups, epsilon, xla)
    return tf.ensure_shape(tf.reshape(y, shape), x.shape)
  return group_norm_with_statistics(x, gamma, beta, groups, epsilon, xla)[0]


def group_norm_with_statistics(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, groups: int, epsilon: float,
                               xla: bool = True) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Return the result of `group_norm`, and mean and 1 / standard deviation float32 [N, C], which have no gradient."""
  return _group_norm(groups, epsilon, x.shape[3], x.dtype, xla and tf.test.is_built_with_xla())(x, gamma, beta)


@functools.cache
def _group_norm(groups: int, epsilon: float, channels: int, dtype: tf.DType,
                xla: bool) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
  """Return the layer for one number of channels: traced once for images of any size, compiled once for each."""
  images, statistics = tf.TensorSpec([None, None, None, channels], dtype), tf.TensorSpec([None, channels])
  parameter = tf.TensorSpec([channels])
  forward = tf.function(functools.partial(_forward, groups, epsilon), [images, parameter, parameter],
                        autograph=False, jit_compile=xla)
  backward = tf.function(functools.partial(_backward, groups), [images, parameter, statistics, statistics, images],
                         autograph=False, jit_compile=xla)

  @tf.custom_gradient
  def normalise(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor):
    y, mean, inverse_std = forward(x, gamma, beta)

    def gradient(dy: tf.Tensor, *_: tf.Tensor):
      dx, dgamma, dbeta = backward(x, gamma, mean, inverse_std, dy)
      dx.set_shape(x.shape)  # known again: a function for any size returns [?, ?, ?, C]
      return dx, dgamma, dbeta

    y.set_shape(x.shape)
    return (y, mean, inverse_std), gradient

  return normalise


class NormalisedMaps(NamedTuple):
  """Maps that a network normalises: their shape and type, and the arguments of `group_norm`."""

  shape: tuple[int, int, int, int]  # [N, H, W, C]
  dtype: tf.DType
  groups: int
  epsilon: float
  landscape: bool

  def passes(self) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a function of maps, of any size, that runs forward and backward pass in a graph.

    What XLA compiles for it is reused by every other graph for maps of the same shape. Run eagerly, the passes would
    have other names, and be compiled again.
    """
    return _passes(self.groups, self.epsilon, self.shape[3], self.dtype, self.landscape)


@functools.cache
def _passes(groups: int, epsilon: float, channels: int, dtype: tf.DType,
            landscape: bool) -> Callable[[tf.Tensor], tf.Tensor]:
  def both(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = group_norm(x, gamma, beta, groups, epsilon, landscape=landscape)
    return tape.gradient(y, x)

  parameter = tf.TensorSpec([channels])
  traced = tf.function(both, [tf.TensorSpec([None, None, None, channels], dtype), parameter, parameter],
                       autograph=False).get_concrete_function()
  return lambda x: traced(x, tf.ones([channels]), tf.zeros([channels]))


def _forward(groups: int, epsilon: float, x: tf.Tensor, gamma: tf.Tensor,
             beta: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  x32 = tf.cast(x, tf.float32)
  count = _elements(x, groups)
  mean = _group_sums(x32, groups) / count  # [N, C], equal inside a group
  variance = _group_sums(tf.math.squared_difference(x32, mean[:, None, None, :]), groups) / count
  inverse_std = tf.math.rsqrt(variance + epsilon)
  scale = inverse_std * gamma
  y = (x32 - mean[:, None, None, :]) * scale[:, None, None, :] + beta  # x·scale first would lose precision
  return tf.cast(y, x.dtype), mean, inverse_std


def _backward(groups: int, x: tf.Tensor, gamma: tf.Tensor, mean: tf.Tensor, inverse_std: tf.Tensor,
              dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  x32, dy32 = tf.cast(x, tf.float32), tf.cast(dy, tf.float32)
  x_hat = (x32 - mean[:, None, None, :]) * inverse_std[:, None, None, :]
  sum_dy, sum_dy_x = channel_sums(dy32), channel_sums(dy32 * x_hat)  # [N, C]
  count = _elements(x, groups)
  mean_dy = _sum_groups(sum_dy * gamma, groups) / count
  mean_dy_x = _sum_groups(sum_dy_x * gamma, groups) / count
  # dx = (gamma dy - mean(gamma dy) - x_hat mean(gamma dy x_hat)) / std
  dx = (dy32 * gamma - mean_dy[:, None, None, :] - x_hat * mean_dy_x[:, None, None, :])
  dx = dx * inverse_std[:, None, None, :]
  return tf.cast(dx, x.dtype), tf.reduce_sum(sum_dy_x, axis=0), tf.reduce_sum(sum_dy, axis=0)


def portable_group_norm(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, groups: int, epsilon: float) -> tf.Tensor:
  """Normalise as `group_norm` by means over rows and columns, for other runtimes; no gradient of its own.

  Converters move the transposition between their layout and TensorFlow's through means, but not through matrix
  products.
  """
  x32, channels = tf.cast(x, tf.float32), x.shape[3]

  def group_means(values: tf.Tensor) -> tf.Tensor:  # [N, H, W, C] -> [N, 1, 1, C]
    means = tf.reduce_mean(tf.reduce_mean(values, axis=2, keepdims=True), axis=1, keepdims=True)
    grouped = tf.reduce_mean(tf.reshape(means, [-1, groups, channels // groups]), axis=2, keepdims=True)
    return tf.reshape(grouped * tf.ones([1, 1, channels // groups]), [-1, 1, 1, channels])

  centred = x32 - group_means(x32)
  scale = tf.math.rsqrt(group_means(centred * centred) + epsilon) * gamma
  return tf.cast(centred * scale + beta, x.dtype)


def _elements(x: tf.Tensor, groups: int) -> tf.Tensor:
  """Return the number of elements in a group."""
  shape = tf.shape(x)
  return tf.cast(shape[1] * shape[2] * (shape[3] // groups), tf.float32)


def _group_sums(x: tf.Tensor, groups: int) -> tf.Tensor:
  return _sum_groups(channel_sums(x), groups)


def channel_sums(x: tf.Tensor) -> tf.Tensor:
  """Return sums [N, C] over the pixels of x [N, H, W, C]: a matrix product per row, then a short sum over the rows."""
  ones = tf.ones(tf.concat([tf.shape(x)[:2], [1], tf.shape(x)[2:3]], 0), tf.float32)  # [N, H, 1, W]
  return tf.reduce_sum(tf.matmul(ones, x), axis=[1, 2])


def _sum_groups(sums: tf.Tensor, groups: int) -> tf.Tensor:
  """Sum the channels [N, C] of each group, and return the group's sum for every channel."""
  channels = sums.shape[1]
  grouped = tf.reduce_sum(tf.reshape(sums, [-1, groups, channels // groups]), axis=2, keepdims=True)
  return tf.reshape(tf.repeat(grouped, channels // groups, axis=2), [-1, channels])
