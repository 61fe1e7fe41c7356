"""Grouped convolutions against a block-diagonal kernel; upsampling; the predictions of the RPN in one convolution."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.util import _pywrap_util_port

from rethink_tf.models.heads import RPNHead
from rethink_tf.models.layers import Convolution, upsample

GROUPS, CHANNELS = 4, 16


def block_diagonal(kernel):
  """Kernel [k, k, C / G, C] of a grouped convolution -> [k, k, C, C] of an equivalent one without groups."""
  size = CHANNELS // GROUPS
  blocks = []
  for start in range(0, CHANNELS, size):
    padding = [[0, 0], [0, 0], [start, CHANNELS - size - start], [0, 0]]
    blocks.append(tf.pad(kernel[..., start:start + size], padding))
  return tf.concat(blocks, -1)


@pytest.mark.parametrize('stride', [1, 2])
def test_groups_and_their_gradients(stride):
  layer = Convolution(CHANNELS, 3, stride, padding='valid', groups=GROUPS, use_bias=False)
  x = tf.random.stateless_normal([2, 9, 11, CHANNELS], [0, 1])
  layer(x)

  @tf.function
  def values(convolve):
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = convolve(x)
      loss = tf.reduce_sum(y**2)
    return y, *tape.gradient(loss, [x, layer.kernel])

  ours = values(layer)
  expected = values(lambda x: tf.nn.conv2d(x, block_diagonal(layer.kernel), stride, 'VALID'))
  for one, other in zip(ours, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


def test_groups_are_compiled_only_without_onednn():
  """Compiled with XLA, they take many times as long."""
  layer = Convolution(CHANNELS, 3, padding='same', groups=GROUPS)
  layer.build([None, None, None, CHANNELS])
  graph = tf.function(lambda x: layer(x)).get_concrete_function(tf.TensorSpec([2, 9, 11, CHANNELS])).graph
  direct = 'Conv2D' in {op.type for op in graph.get_operations()}  # not inside a nested function
  assert direct == _pywrap_util_port.IsMklEnabled()


@pytest.mark.parametrize('factor', [1, 2, 4])
def test_upsampling_repeats_and_its_gradient_is_the_sum_over_the_copies(factor):
  x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
  upstream = np.random.default_rng(1).normal(size=(2, 3 * factor, 5 * factor, 4)).astype(np.float32)
  variable = tf.Variable(x)
  with tf.GradientTape() as tape:
    y = upsample(variable, factor)
  np.testing.assert_array_equal(y, x.repeat(factor, axis=1).repeat(factor, axis=2))
  copies = upstream.reshape(2, 3, factor, 5, factor, 4).astype(np.float64)
  np.testing.assert_allclose(tape.gradient(y, variable, upstream), copies.sum((2, 4)), atol=1e-5)


def test_the_rpns_predictions_are_those_of_its_two_layers():
  head = RPNHead(channels=8)
  x = tf.random.stateless_normal((2, 3, 5, 8), [0, 1])
  logits, deltas = head(x)
  head.objectness.bias.assign([1.0, 2.0, 3.0])
  head.deltas.bias.assign(tf.range(12.0))
  logits, deltas = head(x)  # in one convolution, also after its variables have changed
  hidden = head.conv(x)
  np.testing.assert_allclose(logits, tf.reshape(head.objectness(hidden), [2, -1]), atol=1e-5)
  np.testing.assert_allclose(deltas, tf.reshape(head.deltas(hidden), [2, -1, 4]), atol=1e-5)
