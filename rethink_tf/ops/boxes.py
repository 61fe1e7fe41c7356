"""Box geometry: IoU, encoding and decoding, clipping (Faster R-CNN, section 3.1.2). Pure float32 functions of tensors.

Boxes are [..., 4] y0 x0 y1 x1 in pixels, with widths x1 - x0 (Detectron adds 1); deltas are dy dx dh dw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

MAX_LOG_SCALE = math.log(1000.0 / 16.0)  # Detectron's BBOX_XFORM_CLIP: exp() of a delta stays below 62.5


def area(boxes: tf.Tensor) -> tf.Tensor:
  """Return areas [...] of boxes [..., 4]; zero for inverted boxes."""
  y0, x0, y1, x1 = tf.unstack(boxes, axis=-1)
  return tf.maximum(y1 - y0, 0.0) * tf.maximum(x1 - x0, 0.0)


def iou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
  """Return the IoU [..., N, M] of all pairs of boxes a [..., N, 4] and b [..., M, 4]; 0 for empty boxes."""
  ay0, ax0, ay1, ax1 = tf.split(a, 4, axis=-1)  # [..., N, 1]
  by0, bx0, by1, bx1 = (tf.linalg.matrix_transpose(x) for x in tf.split(b, 4, axis=-1))  # [..., 1, M]
  height = tf.maximum(tf.minimum(ay1, by1) - tf.maximum(ay0, by0), 0.0)
  width = tf.maximum(tf.minimum(ax1, bx1) - tf.maximum(ax0, bx0), 0.0)
  intersection = height * width
  union = area(a)[..., :, None] + area(b)[..., None, :] - intersection
  return tf.math.divide_no_nan(intersection, union)


def encode(boxes: tf.Tensor, references: tf.Tensor,
           weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> tf.Tensor:
  """Return deltas [..., 4] from `references` to `boxes`, times `weights` (dy dx dh dw); zeros for empty boxes."""
  cy, cx, h, w = _centre_form(boxes)
  ry, rx, rh, rw = _centre_form(references)
  usable = (h > 0) & (w > 0) & (rh > 0) & (rw > 0)
  h, w, rh, rw = (tf.where(usable, x, 1.0) for x in (h, w, rh, rw))
  deltas = tf.stack([(cy - ry) / rh, (cx - rx) / rw, tf.math.log(h / rh), tf.math.log(w / rw)], axis=-1)
  return tf.where(usable[..., None], deltas * tf.constant(weights, tf.float32), 0.0)


def decode(deltas: tf.Tensor, references: tf.Tensor,
           weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> tf.Tensor:
  """Return boxes [..., 4]: the inverse of `encode`, with dh and dw clipped at log(1000 / 16)."""
  dy, dx, dh, dw = tf.unstack(deltas / tf.constant(weights, tf.float32), axis=-1)
  ry, rx, rh, rw = _centre_form(references)
  cy, cx = dy * rh + ry, dx * rw + rx
  half_h = 0.5 * tf.exp(tf.minimum(dh, MAX_LOG_SCALE)) * rh
  half_w = 0.5 * tf.exp(tf.minimum(dw, MAX_LOG_SCALE)) * rw
  return tf.stack([cy - half_h, cx - half_w, cy + half_h, cx + half_w], axis=-1)


def clip(boxes: tf.Tensor, image_sizes: tf.Tensor) -> tf.Tensor:
  """Clip boxes [B, ..., 4] to their images [B, 2] (height, width)."""
  limits = tf.concat([image_sizes, image_sizes], axis=-1)  # [B, 4]
  limits = tf.reshape(limits, [-1] + [1] * (boxes.shape.rank - 2) + [4])
  return tf.clip_by_value(boxes, 0.0, limits)


def _centre_form(boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
  """Return centres y, x and sizes h, w."""
  y0, x0, y1, x1 = tf.unstack(boxes, axis=-1)
  h, w = y1 - y0, x1 - x0
  return y0 + 0.5 * h, x0 + 0.5 * w, h, w
