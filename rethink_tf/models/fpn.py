"""Feature pyramid network (Lin et al. 2017, section 3) with a norm after both of its convolutions."""

from __future__ import annotations

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError, check_at_least
from rethink_tf.models import initializers
from rethink_tf.models.initializers import MakeInitializer
from rethink_tf.models.layers import ConvNorm, upsample
from rethink_tf.models.norms import MakeNorm, group_norm


@gin.register
class FPN(tf_keras.layers.Layer):
  """{'C2'..'C5'} -> {'P2'..'P6'}, each [B, H / 2^l, W / 2^l, channels]; P6 is P5 subsampled with stride 2.

  Lateral 1x1 and output 3x3 convolutions without bias, norm after both, no activation (Detectron's GN baselines).

  Raises:
    UserError: when it is called, for a backbone without one of these levels, as VGG.
  """

  def __init__(self, channels: int = 256, norm: MakeNorm = group_norm,
               initializer: MakeInitializer = initializers.xavier, name: str = 'fpn'):
    super().__init__(name=name)
    check_at_least('FPN', 1, channels=channels)
    levels = ('2', '3', '4', '5')
    self.laterals = [ConvNorm(channels, 1, norm, initializer, name=f'lateral{level}') for level in levels]
    self.outputs = [ConvNorm(channels, 3, norm, initializer, name=f'output{level}') for level in levels]

  def call(self, features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    if missing := [level for level in ('C2', 'C3', 'C4', 'C5') if level not in features]:
      raise UserError(f'MaskRCNN.fpn = @FPN(): the backbone has no {", ".join(missing)}, only '
                      f'{", ".join(sorted(features))}: use MaskRCNN.fpn = @SingleLevel(), as models/vgg16.gin')
    merged = self.laterals[3](features['C5'])
    pyramid = {'P5': self.outputs[3](merged)}
    for i in (2, 1, 0):
      merged = self.laterals[i](features[f'C{i + 2}']) + upsample(merged)
      pyramid[f'P{i + 2}'] = self.outputs[i](merged)
    pyramid['P6'] = pyramid['P5'][:, ::2, ::2]
    pyramid['P5'] = tf.identity(pyramid['P5'])  # its gradient is a sum of two (ops/roi_align.py, Pyramid)
    return {level: pyramid[level] for level in sorted(pyramid)}


@gin.register
class SingleLevel(tf_keras.layers.Layer):
  """{'C4'…} -> {'P4': the same map}: Faster R-CNN without a pyramid (Ren et al. 2017, section 3).

  RPN and RoIs use a single feature map of stride 2^level, with anchors of all sizes.
  """

  def __init__(self, level: int = 4, name: str = 'fpn'):
    super().__init__(name=name)
    self.level = level

  def call(self, features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    if f'C{self.level}' not in features:
      raise UserError(f'SingleLevel.level = {self.level}: the backbone has no C{self.level}, only '
                      f'{", ".join(sorted(features))}')
    return {f'P{self.level}': features[f'C{self.level}']}
