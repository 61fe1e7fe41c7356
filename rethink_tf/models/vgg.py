"""VGG backbone (Simonyan and Zisserman 2015, configuration D), for the paper's detector without normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError, check_at_least
from rethink_tf.models import initializers
from rethink_tf.models.initializers import MakeInitializer
from rethink_tf.models.layers import ConvNorm, unchanged
from rethink_tf.models.norms import MakeNorm, no_norm

CONVOLUTIONS = {  # of conv1_x … conv5_x
  11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


@gin.register
class VGG(tf_keras.layers.Layer):
  """Five groups of 3x3 convolutions with ReLU and 2x2 max-pooling between them, not after the last: stride 16.

  images [B, H, W, 3] -> {'C2': [B, H/4, W/4, 4 width], 'C3': [B, H/8, W/8, 8 width], 'C4': [B, H/16, W/16, 8 width]},
  the last convolutions of the third, fourth and fifth group (conv3_3, conv4_3 and conv5_3).
  norm, initializer: without a norm (hence with biases), it trains with MSRA initialisation (paper, section 5.1).
  freeze_at: 0 trains everything, n freezes the first n groups; Detectron always freezes 2 (up to pool2), which is wrong
  with random weights.
  """

  def __init__(self, depth: int = 16, norm: MakeNorm = no_norm, initializer: MakeInitializer = initializers.msra,
               width: int = 64, freeze_at: int = 0, name: str = 'backbone'):
    super().__init__(name=name)
    if depth not in CONVOLUTIONS:
      raise UserError(f'VGG.depth = {depth} is not known: use one of {sorted(CONVOLUTIONS)}')
    check_at_least('VGG', 1, width=width)
    if not 0 <= freeze_at <= 5:
      raise UserError(f'VGG.freeze_at = {freeze_at}: use 0 (train all) to 5 (freeze the whole backbone)')
    self.depth, self.width, self.freeze_at = depth, width, freeze_at
    self.stem, *self.stages = [
      [ConvNorm(channels, 3, norm, initializer, relu=True, name=f'conv{group + 1}_{i + 1}')
       for i in range(CONVOLUTIONS[depth][group])]
      for group, channels in enumerate(self.widths)]  # the first group, and the others
    for group in [self.stem, *self.stages][:freeze_at]:
      for layer in group:
        layer.trainable = False

  @property
  def widths(self) -> tuple[int, ...]:
    """Channels of the output of each group."""
    return tuple(self.width * factor for factor in (1, 2, 4, 8, 8))

  @property
  def strides(self) -> tuple[int, ...]:
    """Strides of the same outputs, in pixels."""
    return 1, 2, 4, 8, 16

  def call(self, images: tf.Tensor, stem_output: tf.Tensor | None = None,
           before_stage: Callable[[int, tf.Tensor], tf.Tensor] = unchanged) -> dict[str, tf.Tensor]:
    """Return the feature maps. Arguments as of ResNet.call; stage 0 is the second group, with the pooling before it."""
    x = _apply(self.stem, images) if stem_output is None else stem_output  # [B, H, W, width]
    features = {}
    for stage, group in enumerate(self.stages):
      x = before_stage(stage, x)
      x = _apply(group, tf.nn.max_pool2d(x, 2, 2, 'VALID'))
      if stage > 0:
        features[f'C{stage + 1}'] = x  # [B, H / 2^(stage + 1), W / 2^(stage + 1), channels]
    return features


def _apply(layers: Sequence[tf_keras.layers.Layer], x: tf.Tensor) -> tf.Tensor:
  for layer in layers:
    x = layer(x)
  return x
