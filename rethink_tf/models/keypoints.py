"""Keypoint head (Mask R-CNN, section 5): one heat map per keypoint, with one target cell."""

from __future__ import annotations

import gin
import numpy as np
import tensorflow as tf
import tf_keras

from rethink_tf.errors import check_at_least
from rethink_tf.models import initializers
from rethink_tf.models.heads import merge_rois, split_rois
from rethink_tf.models.initializers import MakeInitializer
from rethink_tf.models.layers import ConvNorm
from rethink_tf.models.norms import MakeNorm, no_norm

HEATMAP_SIZE = 56


@gin.register
class KeypointHead(tf_keras.layers.Layer):
  """RoI features [B, M, 14, 14, C] -> [B, M, 14, 14, channels]: eight convolutions.

  norm: none, as in every released keypoint model; the paper does not state its own. used: as for the box head.
  """

  def __init__(self, num_convs: int = 8, channels: int = 512, norm: MakeNorm = no_norm,
               initializer: MakeInitializer = initializers.msra, name: str = 'keypoint_head'):
    super().__init__(name=name)
    check_at_least('KeypointHead', 0, num_convs=num_convs)
    check_at_least('KeypointHead', 1, channels=channels)
    self.convs = [ConvNorm(channels, 3, norm, initializer, relu=True, name=f'conv{i + 1}') for i in range(num_convs)]

  def call(self, pooled: tf.Tensor, used: tf.Tensor | None = None) -> tf.Tensor:
    x, batch = merge_rois(pooled)
    used = None if used is None else tf.reshape(used, [-1])
    for conv in self.convs:
      x = conv(x, used)
    return split_rois(x, batch)


class KeypointPredictor(tf_keras.layers.Layer):
  """[B, M, 14, 14, C] -> float32 logits [B, M, P, 56, 56]: a 4x4 deconvolution to 28x28, bilinear upsampling to 56x56.

  Departure: Detectron upsamples by a fixed deconvolution with zero padding at the border; here, as in Detectron2,
  border cells are repeated.
  """

  def __init__(self, num_keypoints: int, name: str = 'keypoint_predictor'):
    super().__init__(name=name, dtype='float32')
    self.deconv = tf_keras.layers.Conv2DTranspose(num_keypoints, 4, 2, padding='same', dtype='float32',
                                                  kernel_initializer=initializers.msra(), name='deconv')

  def call(self, x: tf.Tensor) -> tf.Tensor:
    x, batch = merge_rois(x)
    maps = self.deconv(x)  # [B * M, 28, 28, P]
    # By a constant matrix: XLA has no gradient of tf.image.resize.
    upsample = tf.constant(bilinear(maps.shape[1]))
    return split_rois(tf.einsum('ay,nyxp,bx->npab', upsample, maps, upsample), batch)


def bilinear(side: int) -> np.ndarray:
  """Return the matrix [2 side, side] of bilinear upsampling along one axis: pixel centres, border cells repeated."""
  centres = np.clip((np.arange(2 * side) + 0.5) / 2 - 0.5, 0, side - 1)
  return np.maximum(1 - np.abs(centres[:, None] - np.arange(side)), 0).astype(np.float32)
