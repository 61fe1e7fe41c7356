"""Batch normalisation in training with exact float32 statistics and a closed-form gradient (Ioffe and Szegedy 2015)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import tensorflow as tf

from rethink_tf.ops.group_norm import channel_sums


def batch_norm(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float,
               xla: bool = True) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Normalise x [N, H, W, C] over images and pixels.

  TensorFlow's fused kernel for CPUs, that of oneDNN, adds the elements of a channel one by one in float32: variances of
  maps of 2 x 400 x 672 are off by 1e-4 to 4e-3.

  gamma, beta: float32 [C]. xla: compile both passes; False: the same operations one by one.

  Returns:
    The result, of x's shape and type, and the mean and variance (of the population) of each channel, float32 [C], which
    have no gradient.
  """
  shape = tf.shape(x)
  height, width = tf.minimum(shape[1], shape[2]), tf.maximum(shape[1], shape[2])  # one compilation for both ways
  y, mean, variance = _batch_norm(epsilon, x.shape[3], x.dtype, xla and tf.test.is_built_with_xla())(
    tf.reshape(x, [shape[0], height, width, x.shape[3]]), gamma, beta)
  return tf.ensure_shape(tf.reshape(y, shape), x.shape), mean, variance


@functools.cache
def _batch_norm(epsilon: float, channels: int, dtype: tf.DType, xla: bool) -> Callable[..., tuple[tf.Tensor, ...]]:
  """Return the layer for one number of channels: traced once for images of any size, compiled once for each."""
  images, vector = tf.TensorSpec([None, None, None, channels], dtype), tf.TensorSpec([channels])
  forward = tf.function(functools.partial(_forward, epsilon), [images, vector, vector], autograph=False,
                        jit_compile=xla)
  backward = tf.function(_backward, [images, vector, vector, vector, images], autograph=False, jit_compile=xla)

  @tf.custom_gradient
  def normalise(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor):
    y, mean, variance, inverse_std = forward(x, gamma, beta)

    def gradient(dy: tf.Tensor, *_: tf.Tensor):
      return backward(x, gamma, mean, inverse_std, dy)

    return (y, mean, variance), gradient

  return normalise


def _forward(epsilon: float, x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple[tf.Tensor, ...]:
  x32, count = tf.cast(x, tf.float32), _elements(x)
  mean = _sums(x32) / count
  variance = _sums(tf.math.squared_difference(x32, mean)) / count
  inverse_std = tf.math.rsqrt(variance + epsilon)
  return tf.cast((x32 - mean) * (inverse_std * gamma) + beta, x.dtype), mean, variance, inverse_std


def _backward(x: tf.Tensor, gamma: tf.Tensor, mean: tf.Tensor, inverse_std: tf.Tensor,
              dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  x_hat, dy32 = (tf.cast(x, tf.float32) - mean) * inverse_std, tf.cast(dy, tf.float32)
  dbeta, dgamma = _sums(dy32), _sums(dy32 * x_hat)
  # dx = gamma (dy - mean(dy) - x_hat mean(dy x_hat)) / std
  dx = (dy32 - dbeta / _elements(x) - x_hat * (dgamma / _elements(x))) * (inverse_std * gamma)
  return tf.cast(dx, x.dtype), dgamma, dbeta


def _elements(x: tf.Tensor) -> tf.Tensor:
  """Return the number of elements of a channel."""
  return tf.cast(tf.reduce_prod(tf.shape(x)[:3]), tf.float32)


def _sums(x: tf.Tensor) -> tf.Tensor:
  """Return sums [C] over the images and pixels of x [N, H, W, C]."""
  return tf.reduce_sum(channel_sums(x), 0)
