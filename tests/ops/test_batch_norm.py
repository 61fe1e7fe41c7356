"""Batch normalisation equals float64 NumPy, also of large maps, whose mean is far from zero, and of 16-bit ones."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.models import norms
from rethink_tf.ops.batch_norm import batch_norm

EPSILON = 1e-5


def reference(x, gamma, beta, dy):
  """y, mean, variance, and the gradients with respect to x, gamma and beta, in float64."""
  x, gamma, beta, dy = (np.asarray(each, np.float64) for each in (x, gamma, beta, dy))
  mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
  std = np.sqrt(variance + EPSILON)
  x_hat = (x - mean) / std
  dx = gamma / std * (dy - dy.mean((0, 1, 2)) - x_hat * (dy * x_hat).mean((0, 1, 2)))
  return x_hat * gamma + beta, mean, variance, dx, (dy * x_hat).sum((0, 1, 2)), dy.sum((0, 1, 2))


@pytest.mark.parametrize('xla', [True, False])
@pytest.mark.parametrize('shape', [(2, 7, 5, 3), (3, 5, 7, 3), (1, 1, 2, 3)])
@pytest.mark.parametrize('dtype, tolerance', [(tf.float32, 1e-5), (tf.bfloat16, 1e-2)])
def test_both_passes(shape, dtype, tolerance, xla):
  noise = np.random.default_rng(0)
  x, dy = (tf.cast(noise.normal(size=shape) + offset, dtype) for offset in (3, 0))
  gamma, beta = tf.constant(noise.uniform(0.5, 2, 3), tf.float32), tf.constant(noise.normal(size=3), tf.float32)
  with tf.GradientTape() as tape:
    tape.watch([x, gamma, beta])
    y, mean, variance = batch_norm(x, gamma, beta, EPSILON, xla)
  found = [y, mean, variance, *tape.gradient(y, [x, gamma, beta], dy)]
  assert y.dtype == found[3].dtype == dtype and {each.dtype for each in found[1:3]} == {tf.float32}
  exact = reference(tf.cast(x, tf.float64), gamma, beta, tf.cast(dy, tf.float64))
  for ours, expected in zip(found, exact, strict=True):
    scale = max(np.abs(expected).max(), 0.1)
    np.testing.assert_allclose(tf.cast(ours, tf.float64), expected, atol=tolerance * scale)


def test_sums_of_large_maps_are_exact():
  """oneDNN's fused kernel for CPUs is off by 4e-3 here: it adds the elements of a channel in one float32."""
  x = (np.random.default_rng(0).normal(size=(2, 400, 672, 2)) + 10).astype(np.float32)
  layer = norms.sync_batch_norm('norm')
  y = layer(x, training=True)
  expected, mean, variance, *_ = reference(x, np.ones(2), np.zeros(2), np.zeros_like(x))
  np.testing.assert_allclose(y, expected, atol=1e-5)
  np.testing.assert_allclose(layer.moving_mean, 0.1 * mean, rtol=1e-6)
  unbiased = variance * x[..., 0].size / (x[..., 0].size - 1)
  np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * unbiased, rtol=1e-6)
