"""Convolutions with Detectron's symmetric padding or TensorFlow's 'same', which may be asymmetric."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
import tf_keras
from tensorflow.python.util import _pywrap_util_port

from rethink_tf.models.initializers import MakeInitializer
from rethink_tf.models.norms import MakeNorm, NoNorm


class Convolution(tf_keras.layers.Conv2D):
  """Keras' convolution, with grouped convolutions computed by oneDNN where available.

  Keras compiles every grouped convolution with XLA, because on a CPU without oneDNN there is no gradient of it. On a
  CPU that is 17 to 60 times slower (ResNeXt-152 8x32d, forward and backward).
  """

  def _jit_compiled_convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    if _pywrap_util_port.IsMklEnabled():
      return self.convolution_op(inputs, kernel)
    return super()._jit_compiled_convolution_op(inputs, kernel)


class ConvNorm(tf_keras.layers.Layer):
  """Convolution, norm, optional ReLU: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), filters].

  The convolution has a bias only without a norm. used: [B], 1 for rows that are not padding, for norms with batch
  statistics. padding: 'symmetric' pads all four sides equally, 'same' is TensorFlow's, with more at the bottom and
  right; they differ at stride 2.
  """

  def __init__(self, filters: int, kernel_size: int, norm: MakeNorm, initializer: MakeInitializer, stride: int = 1,
               groups: int = 1, relu: bool = False, zero_gamma: bool = False, padding: str = 'symmetric',
               name: str | None = None):
    super().__init__(name=name)
    self.padding = kernel_size // 2 if stride > 1 and padding == 'symmetric' else 0  # at stride 1 both are the same
    self.norm = norm(name='norm', zero_gamma=zero_gamma)
    self.conv = Convolution(
      filters, kernel_size, stride, padding='valid' if self.padding else 'same', groups=groups,
      use_bias=isinstance(self.norm, NoNorm), kernel_initializer=initializer(), name='conv')
    self.relu = relu

  def call(self, x: tf.Tensor, used: tf.Tensor | None = None) -> tf.Tensor:
    x = self.conv(pad(x, self.padding))
    x = self.norm(x, used=used) if getattr(self.norm, 'over_batch', False) else self.norm(x)
    return tf.nn.relu(x) if self.relu else x


def unchanged(stage: int, x: tf.Tensor) -> tf.Tensor:
  """Return the input of a stage, for a backbone that is not in a composite."""
  del stage
  return x


def pad(x: tf.Tensor, padding: int) -> tf.Tensor:
  """Zero-pad feature maps [B, H, W, C] on all four sides."""
  return tf.pad(x, [[0, 0], [padding, padding], [padding, padding], [0, 0]]) if padding else x


def upsample(x: tf.Tensor, factor: int = 2) -> tf.Tensor:
  """Nearest upsampling of maps [B, H, W, C], by broadcasting: XLA cannot compile the gradient of UpSampling2D."""
  @tf.custom_gradient
  def repeat(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    def gradient(dy: tf.Tensor) -> tf.Tensor:  # the sum over the copies: eight times as fast as tf.reduce_sum
      return tf.cast(tf.nn.avg_pool2d(tf.cast(dy, tf.float32), factor, factor, 'VALID') * factor**2, dy.dtype)

    shape = tf.shape(x)
    batch, height, width, channels = shape[0], shape[1], shape[2], x.shape[-1]
    cells = tf.reshape(x, [batch, height, 1, width, 1, channels])  # TensorFlow Lite has no slices of six dimensions
    y = tf.broadcast_to(cells, [batch, height, factor, width, factor, channels])
    return tf.reshape(y, [batch, factor * height, factor * width, channels]), gradient

  return x if factor == 1 else repeat(x)
