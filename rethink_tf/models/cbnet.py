"""CBNet (Liu et al. 2020, arXiv 1909.03625): a sequence of backbones, each adding to the inputs of the next.

The last backbone is the lead, whose feature maps the detector uses; the others are its assistants. They share no
weights. Levels are numbered as in the paper: 1 is the stem's output, 2..5 are the stages', so that stage l maps the
level x^(l-1) to x^l. The input of stage l of backbone k is increased by, from levels of backbone k - 1 (section 3):

  'ahlc'  adjacent higher level   g(x^l)                       the default
  'dhlc'  dense higher level      sum of g_i(x^i) for i >= l   (also CBNetV2, arXiv 2107.00420)
  'slc'   same level              x^(l-1), unchanged
  'allc'  adjacent lower level    g(x^(l-2)), for l >= 3

g is a 1x1 convolution to the width of x^(l-1), a norm, and nearest upsampling to its size ('allc': a stride instead).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError
from rethink_tf.models import initializers
from rethink_tf.models.initializers import MakeInitializer
from rethink_tf.models.layers import ConvNorm, upsample
from rethink_tf.models.norms import MakeNorm, group_norm
from rethink_tf.models.resnet import ResNet

Backbone = tf_keras.layers.Layer  # with `widths` and `strides`

SOURCES = {  # style -> levels that are added to the input of stage l of L
  'ahlc': lambda stage, last: (stage,),
  'dhlc': lambda stage, last: tuple(range(stage, last + 1)),
  'slc': lambda stage, last: (stage - 1,),
  'allc': lambda stage, last: (stage - 2,) if stage > 2 else (),
}


@gin.register
class CBNet(tf_keras.layers.Layer):
  """images [B, H, W, 3] -> the feature maps of the lead, {'C2'…'C5'} of a ResNet; used like a single backbone.

  backbone: constructor, called `count` times with a name. A layer with `widths` and `strides` whose call takes
  `stem_output` and `before_stage` (resnet.py, vgg.py); its freeze_at applies to each.
  count: 1, 2 (Dual) or 3 (Triple), assistants included. style: see the module's docstring.
  shared_stem: False is the paper's; True, one stem for all, is mmdetection's and CBNetV2's.
  connector_*: of g. The paper has BatchNorm, its released Caffe2 code no norm but a bias (@no_norm), CBNetV2 a
  BatchNorm whose gamma starts at 0 (connector_zero_gamma), so that the lead is a plain backbone at first.
  """

  # Departure: the norm of g is BatchNorm in CBNet, whose backbones have frozen BatchNorm. Here the default is
  # GroupNorm, as everywhere in this package, so that training from scratch does not depend on the batch.
  def __init__(self, backbone: Callable[..., Backbone] = ResNet, count: int = 2, style: str = 'ahlc',
               shared_stem: bool = False, connector_norm: MakeNorm = group_norm,
               connector_initializer: MakeInitializer = initializers.xavier, connector_zero_gamma: bool = False,
               name: str = 'backbone'):
    super().__init__(name=name)
    if count not in (1, 2, 3):
      raise UserError(f'CBNet.count = {count}: use 2 (Dual) or 3 (Triple), or 1 for the backbone alone')
    if style not in SOURCES:
      raise UserError(f'CBNet.style = {style!r}: use one of {", ".join(sorted(SOURCES))}')
    names = [*(f'assistant{k}' for k in range(1, count)), 'lead']
    self.style, self.shared_stem = style, shared_stem
    self.backbones = [backbone(name=name) for name in names]
    if shared_stem:
      for other in self.backbones[1:]:
        other.stem = self.backbones[0].stem
    self.connectors = []  # between backbones k and k + 1: one dictionary per stage, {'<level>': g}
    for target in names[1:]:
      self.connectors.append([
        {str(level): self._connector(level, stage, f'{target}_stage{stage}_from{level}', connector_norm,
                                     connector_initializer, connector_zero_gamma)
         for level in SOURCES[style](stage, self.last) if style != 'slc'}
        for stage in range(2, self.last + 1)])

  @property
  def lead(self) -> Backbone:
    return self.backbones[-1]

  @property
  def last(self) -> int:
    """The highest level, 5 of a ResNet."""
    return len(self.lead.widths)

  def call(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
    features, levels = self._run(self.backbones[0], images, None, None)
    for backbone, connectors in zip(self.backbones[1:], self.connectors, strict=True):
      stem_output = levels[0] if self.shared_stem else None
      features, levels = self._run(backbone, images, stem_output, self._additions(levels, connectors))
    return features

  def _run(self, backbone: Backbone, images: tf.Tensor, stem_output: tf.Tensor | None,
           additions: Sequence[Sequence[tf.Tensor]] | None) -> tuple[dict[str, tf.Tensor], list[tf.Tensor]]:
    """Return feature maps of a backbone with additions [stage][number] to its stages' inputs, and its levels 1…last."""
    levels = []

    def before_stage(stage: int, x: tf.Tensor) -> tf.Tensor:
      levels.append(x)
      for addition in additions[stage] if additions else ():
        x = x + addition
      return tf.identity(x)  # used here and in the composite: its gradient is a sum of two (ops/roi_align.py, Pyramid)

    features = backbone(images, stem_output=stem_output, before_stage=before_stage)
    return features, [*levels, features[max(features)]]

  def _additions(self, levels: Sequence[tf.Tensor],
                 connectors: Sequence[dict[str, ConvNorm]]) -> list[list[tf.Tensor]]:
    """Return what the levels of a backbone add to the inputs of all stages of the next one."""
    additions = []
    for stage, connect in enumerate(connectors, 2):
      sources = {level: levels[level - 1] for level in SOURCES[self.style](stage, self.last)}
      connected = {level: connect[str(level)](x) if connect else x for level, x in sources.items()}
      additions.append([self._fit(x, level, stage, levels[stage - 2]) for level, x in connected.items()])
    return additions

  def _fit(self, x: tf.Tensor, level: int, stage: int, target: tf.Tensor) -> tf.Tensor:
    """Upsample a level to the size of `target`, the input of a stage; excess rows and columns of odd sizes are cut."""
    factor = self.lead.strides[level - 1] // self.lead.strides[stage - 2]
    if factor <= 1:
      return x
    shape = tf.shape(target)
    return upsample(x, factor)[:, :shape[1], :shape[2]]

  def _connector(self, level: int, stage: int, name: str, norm: MakeNorm, initializer: MakeInitializer,
                 zero_gamma: bool) -> ConvNorm:
    strides, width = self.lead.strides, self.lead.widths[stage - 2]
    return ConvNorm(width, 1, norm, initializer, max(1, strides[stage - 2] // strides[level - 1]),
                    zero_gamma=zero_gamma, name=name)
