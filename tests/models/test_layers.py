"""Grouped convolutions against a convolution with a block-diagonal kernel."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.util import _pywrap_util_port

from rethink_tf.models.layers import Convolution

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
