"""Batch normalisation in training with exact float32 statistics and a closed-form gradient (Ioffe and Szegedy 2015)."""

from __future__ import annotations

import tensorflow as tf

from rethink_tf.ops.group_norm import group_norm_with_statistics


def batch_norm(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float,
               xla: bool = True) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Normalise x [N, H, W, C] over images and pixels: group normalisation of one tall image, a channel a group.

  TensorFlow's fused kernel for CPUs, that of oneDNN, adds the elements of a channel one by one in float32: variances of
  maps of 2 x 400 x 672 are off by 1e-4 to 4e-3.

  gamma, beta: float32 [C]. xla: compile both passes; False: the same operations one by one.

  Returns:
    The result, of x's shape and type, and the mean and variance (of the population) of each channel, float32 [C], which
    have no gradient.
  """
  shape, channels = tf.shape(x), x.shape[3]
  height, width = tf.minimum(shape[1], shape[2]), tf.maximum(shape[1], shape[2])  # one compilation for both ways
  tall = tf.reshape(x, [1, shape[0] * height, width, channels])
  y, mean, inverse_std = group_norm_with_statistics(tall, gamma, beta, channels, epsilon, xla)
  variance = tf.maximum(tf.math.square(1.0 / inverse_std[0]) - epsilon, 0.0)  # of a plain channel 0, but for rounding
  return tf.ensure_shape(tf.reshape(y, shape), x.shape), mean[0], variance
