"""ResNet and ResNeXt backbones (He et al. 2016, table 1; Xie et al. 2017), with the norm as an argument."""

from __future__ import annotations

from collections.abc import Callable

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError, check_at_least
from rethink_tf.models import initializers
from rethink_tf.models.initializers import MakeInitializer
from rethink_tf.models.layers import ConvNorm, pad, unchanged
from rethink_tf.models.norms import MakeNorm, group_norm
from rethink_tf.models.recompute import recomputed

PADDINGS = ('symmetric', 'same')
# Bottleneck blocks of res2..res5 by depth. 14 and 26 are small networks of the same pattern, for laptops.
BLOCKS = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@gin.register
class ResNet(tf_keras.layers.Layer):
  """Stem and four stages of bottleneck blocks.

  images [B, H, W, 3] -> {'C2': [B, H/4, W/4, res2_width], …, 'C5': [B, H/32, W/32, 8 res2_width]}.
  norm: see norms.py. stride_in_1x1: False has strides on the 3x3 (the GN baselines), True on the first 1x1 (MSRA
  weights). zero_init_residual: the last gamma of a block starts at 0; Detectron2 found this worse for GN from scratch.
  groups, width_per_group: ResNeXt g x d. freeze_at: 0 trains everything, n freezes the stem and n - 1 stages; with
  random weights only 0 is allowed (Detectron's projects/GN/README.md: 2 silently cost 3.3 AP).
  padding: of stride-2 convolutions and pooling. 'symmetric' is Detectron's; 'same' is TensorFlow's, for weights that
  were trained with it (tf-models-official): even sizes are padded at the bottom and right only.
  recompute: True keeps only the input of each block for the backward pass, which recomputes the rest: less memory,
  the same gradients.
  """

  def __init__(self, depth: int = 50, norm: MakeNorm = group_norm, initializer: MakeInitializer = initializers.msra,
               stride_in_1x1: bool = False, zero_init_residual: bool = False, groups: int = 1,
               width_per_group: int = 64, stem_width: int = 64, res2_width: int = 256, freeze_at: int = 0,
               recompute: bool = False, padding: str = 'symmetric', name: str = 'backbone'):
    super().__init__(name=name)
    if depth not in BLOCKS:
      raise UserError(f'ResNet.depth = {depth} is not known: use one of {sorted(BLOCKS)}')
    check_at_least('ResNet', 1, groups=groups, width_per_group=width_per_group, stem_width=stem_width,
                   res2_width=res2_width)
    if not 0 <= freeze_at <= 5:
      raise UserError(f'ResNet.freeze_at = {freeze_at}: use 0 (train all) to 5 (freeze the whole backbone)')
    if padding not in PADDINGS:
      raise UserError(f"ResNet.padding = {padding!r}: use 'symmetric', or 'same' for weights of tf-models-official")
    self.freeze_at, self.recompute, self.padding = freeze_at, recompute, padding
    self.depth, self.groups, self.width_per_group, self.stride_in_1x1 = depth, groups, width_per_group, stride_in_1x1
    self.stem_width, self.res2_width = stem_width, res2_width
    self.stem = ConvNorm(stem_width, 7, norm, initializer, stride=2, relu=True, padding=padding, name='stem')
    self.stages = []
    for stage, blocks in enumerate(BLOCKS[depth]):
      width = res2_width * 2**stage
      inner = groups * width_per_group * 2**stage
      self.stages.append([
        Bottleneck(width, inner, norm, initializer, stride=2 if stage and not block else 1, shortcut=not block,
                   groups=groups, stride_in_1x1=stride_in_1x1, zero_gamma=zero_init_residual,
                   padding=padding, name=f'res{stage + 2}_{block}')
        for block in range(blocks)])
    if recompute and any(getattr(layer, 'over_batch', False) for layer in self.submodules):
      raise UserError('ResNet.recompute = True would count every batch twice in the moving statistics of '
                      'ResNet.norm = @sync_batch_norm: use recompute = False, or @group_norm')
    for layers in [[self.stem], *self.stages][:freeze_at]:
      for layer in layers:
        layer.trainable = False

  @property
  def widths(self) -> tuple[int, ...]:
    """Channels of the output of the stem and of each stage."""
    return self.stem_width, *(self.res2_width * 2**stage for stage in range(len(self.stages)))

  @property
  def strides(self) -> tuple[int, ...]:
    """Strides of the same outputs, in pixels."""
    return 4, *(4 * 2**stage for stage in range(len(self.stages)))

  def call(self, images: tf.Tensor, stem_output: tf.Tensor | None = None,
           before_stage: Callable[[int, tf.Tensor], tf.Tensor] = unchanged) -> dict[str, tf.Tensor]:
    """Return the feature maps.

    stem_output: replaces the output of the stem. before_stage(stage, x) -> x: applied to the input of each stage, from
    0, by a composite (cbnet.py).
    """
    x = self.begin(images) if stem_output is None else stem_output
    features = {}
    for stage, blocks in enumerate(self.stages):
      x = before_stage(stage, x)
      for block in blocks:
        x = recomputed(block)(x) if self.recompute else block(x)
      features[f'C{stage + 2}'] = x  # [B, H / 2^(stage + 2), W / 2^(stage + 2), res2_width * 2^stage]
    return features

  def begin(self, images: tf.Tensor) -> tf.Tensor:
    """Stem and pooling: [B, H, W, 3] -> [B, H/4, W/4, stem_width]."""
    x = self.stem(images)
    if self.padding == 'same':
      return tf.nn.max_pool2d(x, 3, 2, 'SAME')
    return tf.nn.max_pool2d(pad(x, 1), 3, 2, 'VALID')  # zero padding is exact after a ReLU


class Bottleneck(tf_keras.layers.Layer):
  """1x1, 3x3 and 1x1 convolutions, and a shortcut, which is a convolution where the shape changes."""

  def __init__(self, width: int, inner: int, norm: MakeNorm, initializer: MakeInitializer, stride: int, shortcut: bool,
               groups: int, stride_in_1x1: bool, zero_gamma: bool, padding: str, name: str):
    super().__init__(name=name)
    first, second = (stride, 1) if stride_in_1x1 else (1, stride)
    self.conv1 = ConvNorm(inner, 1, norm, initializer, first, relu=True, name='conv1')
    self.conv2 = ConvNorm(inner, 3, norm, initializer, second, groups=groups, relu=True,
                          padding=padding, name='conv2')
    self.conv3 = ConvNorm(width, 1, norm, initializer, zero_gamma=zero_gamma, name='conv3')
    self.shortcut = ConvNorm(width, 1, norm, initializer, stride, name='shortcut') if shortcut else None

  def call(self, x: tf.Tensor) -> tf.Tensor:
    residual = self.conv3(self.conv2(self.conv1(x)))
    return tf.nn.relu(residual + (x if self.shortcut is None else self.shortcut(x)))
