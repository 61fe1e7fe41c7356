"""The kernels of a train step, each beside its counterpart in tf_keras or tf-models-official."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from pycocotools import mask as coco_mask

from rethink_tf.bench.measure import Row, in_turns
from rethink_tf.errors import needs_models
from rethink_tf.models import norms
from rethink_tf.models.resnet import ResNet
from rethink_tf.ops import masks, nms
from rethink_tf.ops.roi_align import flatten, roi_align

# [N, H, W, C] of the norms of R50-FPN with its heads on one 800 x 1344 image, with their number.
NORM_SHAPES = {
  (1, 400, 672, 64): 1, (1, 200, 336, 64): 6, (1, 200, 336, 256): 6, (1, 200, 336, 128): 1, (1, 100, 168, 128): 7,
  (1, 100, 168, 512): 5, (1, 100, 168, 256): 3, (1, 50, 84, 256): 13, (1, 50, 84, 1024): 7, (1, 50, 84, 512): 1,
  (1, 25, 42, 512): 5, (1, 25, 42, 2048): 4, (1, 25, 42, 256): 2, (512, 7, 7, 256): 4, (128, 14, 14, 256): 4,
}
BACKBONE_INPUT = (2, 512, 512, 3)

Step = Callable[[], list[tf.Tensor]]


def group_norm(rounds: int) -> list[Row]:
  """Measure all norms of the network, forward and backward, and a ResNet-50 with different norms."""
  rows = []
  for dtype, policy in (('float32', 'float32'), ('bfloat16', 'mixed_bfloat16')):
    tf_keras.mixed_precision.set_global_policy(policy)
    ours = {shape: _norm_step(norms.group_norm('gn'), shape, dtype) for shape in NORM_SHAPES}
    theirs = {shape: _norm_step(_keras_norm('gn'), shape, dtype) for shape in NORM_SHAPES}
    tf_keras.mixed_precision.set_global_policy('float32')
    timings = in_turns({'rethink_tf': lambda ours=ours: _all(ours), 'tf_keras': lambda theirs=theirs: _all(theirs)},
                       rounds)
    note = f'{sum(NORM_SHAPES.values())} norms of R50-FPN at 800x1344, forward + backward'
    rows += [Row(f'GroupNorm {dtype}', name, timing, note=note) for name, timing in timings.items()]
  networks = {'GN, rethink_tf': norms.group_norm, 'frozen BN': norms.frozen_batch_norm, 'GN, tf_keras': _keras_norm}
  timings = in_turns({name: _network_step(norm) for name, norm in networks.items()}, rounds)
  note = 'forward + backward, 2 x 512 x 512'
  return rows + [Row('ResNet-50', name, timing, images=2, note=note) for name, timing in timings.items()]


def _keras_norm(name: str, zero_gamma: bool = False) -> tf_keras.layers.Layer:
  return tf_keras.layers.GroupNormalization(32, epsilon=1e-5, name=name)


def _norm_step(layer: tf_keras.layers.Layer, shape: Sequence[int], dtype: str) -> Step:
  x = tf.cast(tf.random.stateless_normal(shape, [1, 2], 1.0, 2.0), dtype)
  upstream = tf.cast(tf.random.stateless_normal(shape, [3, 4]), dtype)
  layer.build(shape)

  @tf.function(autograph=False)
  def step() -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = layer(x)
    with tf.control_dependencies([y]):  # else forward and backward of a linear layer overlap
      return tape.gradient(y, [x, *layer.trainable_variables], tf.identity(upstream))
  return step


def _all(steps: Mapping[tuple[int, ...], Step]) -> list[tf.Tensor]:
  """Run each step as often as the network has such a norm."""
  for shape, step in steps.items():
    for _ in range(NORM_SHAPES[shape]):
      result = step()
  return result


def _network_step(norm: norms.MakeNorm) -> Step:
  backbone = ResNet(50, norm=norm)
  images = tf.random.stateless_uniform(BACKBONE_INPUT, [5, 6], -100.0, 100.0)
  backbone(images[:1, :64, :64])
  variables = backbone.trainable_variables

  @tf.function(autograph=False)
  def step() -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
      loss = tf.reduce_sum(backbone(images)['C5'])
    return tape.gradient(loss, variables)
  return step


def roi_alignment(rounds: int) -> list[Row]:
  """Measure RoIAlign of 512 boxes to 7 x 7 on an image of 832 x 1344, forward and backward, sampling ratio 2."""
  with needs_models('this comparison'):
    from official.vision.ops import spatial_transform_ops

  levels = {str(level): tf.random.stateless_normal([1, 832 >> level, 1344 >> level, 256], [level, 0])
            for level in range(2, 6)}
  boxes = tf.constant(random_boxes(512, 832, 1344)[None])
  maps = list(levels.values())

  # Its op takes one sample per bin; 14 x 14 bins, averaged by 2 x 2, are the paper's four samples.
  def official(features: list[tf.Tensor]) -> tf.Tensor:
    crops = spatial_transform_ops.multilevel_crop_and_resize(dict(zip(levels, features, strict=True)), boxes, 14, 0.5)
    pooled = tf.nn.avg_pool2d(tf.reshape(crops, [-1, 14, 14, 256]), 2, 2, 'VALID')
    return tf.reshape(pooled, [1, 512, 7, 7, 256])

  forms = {
    'rethink_tf': lambda f: roi_align(flatten(f), boxes, 7),
    'rethink_tf, XLA version': lambda f: roi_align(flatten(f), boxes, 7, method='gather'),
    'rethink_tf, XLA version, compiled': lambda f: roi_align(flatten(f), boxes, 7, method='gather'),
    'tf-models-official': official,
    'tf-models-official, compiled': official,
  }
  steps = {name: _gradient_step(form, maps, [1, 512, 7, 7, 256], 'compiled' in name) for name, form in forms.items()}
  error = float(tf.reduce_max(tf.abs(forms['rethink_tf'](maps) - official(maps))))
  note = f'512 boxes of 7x7, forward + backward; largest difference from tf-models-official {error:.1e}'
  return [Row('RoIAlign', name, timing, note=note) for name, timing in in_turns(steps, rounds).items()]


def _gradient_step(form: Callable[[list[tf.Tensor]], tf.Tensor], maps: list[tf.Tensor], shape: Sequence[int],
                   compiled: bool) -> Step:
  upstream = tf.random.stateless_normal(shape, [9, 9])

  @tf.function(autograph=False, jit_compile=compiled)
  def step() -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
      tape.watch(maps)
      y = form(maps)
    with tf.control_dependencies([y]):
      return tape.gradient(y, maps, tf.identity(upstream))
  return step


def suppression(rounds: int) -> list[Row]:
  """Measure NMS of proposals: 5 levels of 2000 boxes each -> 1000, IoU 0.7."""
  with needs_models('this comparison'):
    from official.vision.ops import nms as official_nms

  rng = np.random.default_rng(0)
  boxes = np.stack([random_boxes(2000, 800, 1333, seed=level) for level in range(5)], axis=1)[None]  # [1, 2000, 5, 4]
  scores = np.sort(rng.uniform(0, 1, [1, 2000, 5]).astype(np.float32), axis=1)[:, ::-1]
  boxes, scores = tf.constant(boxes), tf.constant(scores.copy())
  valid = tf.ones_like(scores, tf.bool)

  def ours(form: nms.Form) -> tuple[tf.Tensor, tf.Tensor]:
    return nms.grouped_nms(boxes, scores, valid, 0.7, 1000, 1000, form)[:2]

  def official() -> tuple[tf.Tensor, tf.Tensor]:
    kept_scores, kept_boxes = [], []
    for level in range(5):
      s, b = official_nms.sorted_non_max_suppression_padded(scores[:, :, level], boxes[:, :, level], 1000, 0.7)
      kept_scores.append(s)
      kept_boxes.append(b)
    best = tf.math.top_k(tf.concat(kept_scores, 1), 1000)
    return tf.gather(tf.concat(kept_boxes, 1), best.indices, batch_dims=1), best.values

  forms = {'rethink_tf': (lambda: ours('combined'), False),
           'rethink_tf, version for GPUs': (lambda: ours('per_group'), False),
           'rethink_tf, XLA version, compiled': (lambda: ours('batched'), True),
           'tf-models-official': (official, False), 'tf-models-official, compiled': (official, True)}
  same = bool(tf.reduce_all(ours('combined')[1] == official()[1]))
  steps = {name: tf.function(form, autograph=False, jit_compile=xla) for name, (form, xla) in forms.items()}
  note = f'5 levels x 2000 -> 1000; same result as tf-models-official: {same}'
  return [Row('Proposal NMS', name, timing, images=1, note=note) for name, timing in in_turns(steps, rounds).items()]


def pasting(rounds: int) -> list[Row]:
  """Measure pasting 100 masks of 28 x 28 into 800 x 1333 and encoding them as run lengths."""
  with needs_models('this comparison'):
    from official.vision.ops import mask_ops

  rng = np.random.default_rng(0)
  probabilities, boxes = blobs(100, rng), random_boxes(100, 800, 1333, seed=7)
  xywh = np.concatenate([boxes[:, 1::-1], boxes[:, 3:1:-1] - boxes[:, 1::-1]], axis=1)

  def official(paste: Callable[..., np.ndarray]) -> list[dict[str, Any]]:
    return [coco_mask.encode(np.asfortranarray(m.astype(np.uint8))) for m in paste(probabilities, xywh, 800, 1333)]

  functions = {
    'rethink_tf': lambda: masks.paste(probabilities, boxes, 800, 1333) and None,
    'tf-models-official': lambda: official(mask_ops.paste_instance_masks) and None,
    'tf-models-official, exact (v2)': lambda: official(mask_ops.paste_instance_masks_v2) and None,
  }
  reference = official(mask_ops.paste_instance_masks_v2)
  same = sum(a['counts'] == b['counts'] for a, b in zip(masks.paste(probabilities, boxes, 800, 1333), reference,
                                                        strict=True))
  note = f'100 masks at 800x1333 with run lengths; {same} of 100 identical to the exact version'
  return [Row('Mask pasting', name, timing, images=1, note=note)
          for name, timing in in_turns(functions, rounds).items()]


def random_boxes(number: int, height: int, width: int, seed: int = 0) -> np.ndarray:
  """Return float32 [number, 4] y0 x0 y1 x1 within an image; sides are about 110 pixels, with the spread of COCO."""
  rng = np.random.default_rng(seed)
  extent = np.exp(rng.normal(np.log(110), 0.9, [number, 1]) + rng.normal(0, 0.3, [number, 2]))
  extent = np.clip(extent, 8, [height - 1, width - 1])
  low = rng.uniform(0, 1, [number, 2]) * ([height, width] - extent)
  return np.concatenate([low, low + extent], axis=1).astype(np.float32)


def blobs(number: int, rng: np.random.Generator) -> np.ndarray:
  """Return probabilities float32 [number, 28, 28] of irregular ellipses, like the outputs of a mask head."""
  y, x = np.mgrid[:28, :28] / 27.0 - 0.5
  waves = tf.image.resize(rng.normal(size=[number, 5, 5, 1]), [28, 28], 'bicubic')[..., 0].numpy()
  axes, angle = rng.uniform(0.3, 0.55, [2, number, 1, 1]), rng.uniform(0, np.pi, [number, 1, 1])
  along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
  distance = (along / axes[0]) ** 2 + (across / axes[1]) ** 2 + 0.3 * waves
  return (1 / (1 + np.exp(8 * (distance - 1)))).astype(np.float32)
