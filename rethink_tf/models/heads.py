"""RPN, box and mask heads (Faster R-CNN 3.1; Mask R-CNN 3; Group Normalization 4.2 for the 4conv1fc box head).

Only the convolutions of the box and mask heads have norms: the RPN, fully connected layers, the deconvolution and the
predictors have none. Predictors compute in float32 under every precision policy.
"""

from __future__ import annotations

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.errors import check_at_least
from rethink_tf.models import initializers
from rethink_tf.models.initializers import MakeInitializer
from rethink_tf.models.layers import ConvNorm
from rethink_tf.models.norms import MakeNorm, group_norm


@gin.register
class RPNHead(tf_keras.layers.Layer):
  """Shared by all levels: map [B, H, W, C] -> objectness [B, H * W * anchors], deltas [B, H * W * anchors, 4].

  num_convs: 3x3 convolutions before the predictions; Detectron2's later baselines have two.
  """

  def __init__(self, channels: int = 256, anchors_per_cell: int = 3, num_convs: int = 1, name: str = 'rpn_head'):
    super().__init__(name=name)
    check_at_least('RPNHead', 1, channels=channels, anchors_per_cell=anchors_per_cell, num_convs=num_convs)
    self.anchors_per_cell = anchors_per_cell
    convs = [tf_keras.layers.Conv2D(channels, 3, padding='same', activation='relu',
                                    kernel_initializer=initializers.gaussian(), name=f'conv{i + 1 if i else ""}')
             for i in range(num_convs)]
    self.conv, self.further_convs = convs[0], convs[1:]  # the first one's name in checkpoints is fixed
    self.objectness = tf_keras.layers.Conv2D(anchors_per_cell, 1, kernel_initializer=initializers.gaussian(),
                                             dtype='float32', name='objectness')
    self.deltas = tf_keras.layers.Conv2D(4 * anchors_per_cell, 1, kernel_initializer=initializers.gaussian(),
                                         dtype='float32', name='deltas')

  def build(self, input_shape: tf.TensorShape) -> None:
    for layer in (self.conv, *self.further_convs, self.objectness, self.deltas):  # the predictors are never called
      with tf.name_scope(layer.name):
        layer.build(input_shape)
      input_shape = [*input_shape[:-1], self.conv.filters]
    super().build(input_shape)

  def call(self, feature: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    x = self.conv(feature)
    for conv in self.further_convs:
      x = conv(x)
    predictors = self.objectness, self.deltas
    # Both in one convolution: their few channels cost as much as many.
    kernel, bias = (tf.concat([getattr(layer, name) for layer in predictors], -1) for name in ('kernel', 'bias'))
    x = tf.nn.bias_add(tf.nn.conv2d(tf.cast(x, tf.float32), kernel, 1, 'VALID'), bias)
    logits, deltas = tf.split(x, [layer.filters for layer in predictors], -1)
    batch = tf.shape(x)[0]
    return tf.reshape(logits, [batch, -1]), tf.reshape(deltas, [batch, -1, 4])


@gin.register
class BoxHead(tf_keras.layers.Layer):
  """RoI features [B, R, 7, 7, C] -> [B, R, fc_width]: 4conv1fc by default, the original 2fc with (0, 2).

  used: [B, R], 1 for RoIs that are not padding (None: all), for norms with batch statistics.
  """

  def __init__(self, num_convs: int = 4, num_fcs: int = 1, channels: int = 256, fc_width: int = 1024,
               norm: MakeNorm = group_norm, initializer: MakeInitializer = initializers.msra,
               fc_initializer: MakeInitializer = initializers.xavier, name: str = 'box_head'):
    super().__init__(name=name)
    check_at_least('BoxHead', 0, num_convs=num_convs, num_fcs=num_fcs)
    check_at_least('BoxHead', 1, channels=channels, fc_width=fc_width)
    self.convs = [ConvNorm(channels, 3, norm, initializer, relu=True, name=f'conv{i + 1}') for i in range(num_convs)]
    self.fcs = [tf_keras.layers.Dense(fc_width, 'relu', kernel_initializer=fc_initializer(), name=f'fc{i + 1}')
                for i in range(num_fcs)]

  def call(self, pooled: tf.Tensor, used: tf.Tensor | None = None) -> tf.Tensor:
    x, batch = merge_rois(pooled)
    used = None if used is None else tf.reshape(used, [-1])
    for conv in self.convs:
      x = conv(x, used)
    x = tf.reshape(x, [-1, x.shape[1] * x.shape[2] * x.shape[3]])
    for fc in self.fcs:
      x = fc(x)
    return tf.reshape(x, [batch, -1, x.shape[-1]])


class BoxPredictor(tf_keras.layers.Layer):
  """[B, R, fc_width] -> class logits [B, R, K + 1] (0 = background), deltas [B, R, K, 4] (or 1 when class-agnostic)."""

  def __init__(self, num_classes: int, class_agnostic: bool = False, name: str = 'box_predictor'):
    super().__init__(name=name, dtype='float32')
    self.boxes = 1 if class_agnostic else num_classes
    self.classes = tf_keras.layers.Dense(num_classes + 1, kernel_initializer=initializers.gaussian(0.01),
                                         dtype='float32', name='classes')
    self.deltas = tf_keras.layers.Dense(4 * self.boxes, kernel_initializer=initializers.gaussian(0.001),
                                        dtype='float32', name='deltas')

  def call(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    deltas = self.deltas(x)
    return self.classes(x), tf.reshape(deltas, tf.concat([tf.shape(deltas)[:2], [self.boxes, 4]], 0))


@gin.register
class MaskHead(tf_keras.layers.Layer):
  """RoI features [B, M, 14, 14, C] -> [B, M, 28, 28, channels]: four convolutions with norm, one deconvolution.

  used: [B, M], as for the box head.
  """

  def __init__(self, num_convs: int = 4, channels: int = 256, norm: MakeNorm = group_norm,
               initializer: MakeInitializer = initializers.msra, name: str = 'mask_head'):
    super().__init__(name=name)
    check_at_least('MaskHead', 0, num_convs=num_convs)
    check_at_least('MaskHead', 1, channels=channels)
    self.convs = [ConvNorm(channels, 3, norm, initializer, relu=True, name=f'conv{i + 1}') for i in range(num_convs)]
    self.deconv = tf_keras.layers.Conv2DTranspose(channels, 2, 2, activation='relu', kernel_initializer=initializer(),
                                                  name='deconv')

  def call(self, pooled: tf.Tensor, used: tf.Tensor | None = None) -> tf.Tensor:
    x, batch = merge_rois(pooled)
    used = None if used is None else tf.reshape(used, [-1])
    for conv in self.convs:
      x = conv(x, used)
    return split_rois(self.deconv(x), batch)


class MaskPredictor(tf_keras.layers.Layer):
  """[B, M, 28, 28, C] -> one map per class, float32 logits [B, M, 28, 28, K]."""

  def __init__(self, num_classes: int, name: str = 'mask_predictor'):
    super().__init__(name=name, dtype='float32')
    # Departure: Detectron initializes this layer by MSRA; N(0, 0.001) is Detectron2's.
    self.conv = tf_keras.layers.Conv2D(num_classes, 1, kernel_initializer=initializers.gaussian(0.001),
                                       dtype='float32', name='conv')

  def call(self, x: tf.Tensor) -> tf.Tensor:
    x, batch = merge_rois(x)
    return split_rois(self.conv(x), batch)


def merge_rois(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """[B, R, h, w, C] -> [B * R, h, w, C], and B."""
  return tf.reshape(x, [-1, *x.shape[2:]]), tf.shape(x)[0]


def split_rois(x: tf.Tensor, batch: tf.Tensor) -> tf.Tensor:
  """[B * R, h, w, C] -> [B, R, h, w, C]."""
  return tf.reshape(x, [batch, -1, *x.shape[1:]])
