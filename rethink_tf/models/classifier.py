"""Image classifier with a detector's backbone (He et al. 2016, table 1), for pre-training."""

from __future__ import annotations

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.errors import check_positive
from rethink_tf.models import initializers
from rethink_tf.models.resnet import ResNet
from rethink_tf.structures import ClassifierOutputs, LabelledImages


@gin.register
class Classifier(tf_keras.layers.Layer):
  """backbone -> global average pooling of its last stage -> `linear` layer.

  model(images uint8 [B, H, W, 3], image_sizes [B, 2], labels=LabelledImages, training=...) -> ClassifierOutputs.
  image_sizes are unused, since crops have no padding; so are labels.
  pixel_mean, pixel_std: as in MaskRCNN, so that the backbone has the same input in the detector.
  linear_stddev: of the last layer's weights (Goyal et al., section 5.1); its bias starts at 0.
  """

  def __init__(
    self,
    num_classes: int,
    backbone: ResNet | None = None,
    pixel_mean: tuple[float, float, float] = (122.7717, 115.9465, 102.9801),  # Detectron's, in RGB order
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0),
    linear_stddev: float = 0.01,
    name: str = 'classifier',
  ):
    super().__init__(name=name, autocast=False)
    self.num_classes = num_classes
    self.backbone = backbone or ResNet()
    self.linear = tf_keras.layers.Dense(num_classes, kernel_initializer=initializers.gaussian(linear_stddev),
                                        dtype='float32', name='linear')
    check_positive('Classifier', pixel_std=pixel_std)
    self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)

  @tf.autograph.experimental.do_not_convert  # as in MaskRCNN
  def call(self, images: tf.Tensor, image_sizes: tf.Tensor, labels: LabelledImages | None = None,
           training: bool = False) -> ClassifierOutputs:
    del image_sizes, labels, training
    x = (tf.cast(images, tf.float32) - tf.constant(self.pixel_mean)) / tf.constant(self.pixel_std)
    features = self.backbone(x)
    last = features[max(features)]  # 'C5', of stride 32
    pooled = tf.reduce_mean(tf.cast(last, tf.float32), axis=[1, 2])  # [B, h, w, C] -> [B, C]
    return ClassifierOutputs(features, self.linear(pooled))
