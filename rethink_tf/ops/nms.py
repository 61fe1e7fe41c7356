"""Non-maximum suppression: per level for proposals, per class for detections.

Three forms with the same result, also of equal scores: 'combined' is TensorFlow's fused kernel, which exists for CPUs
only and is 5-9 times faster there than a loop over levels; 'per_group' runs NonMaxSuppressionV4 once for each group of
each image: it has a kernel for GPUs, and counterparts in ONNX and TensorFlow Lite; 'batched' is a loop over all images
and groups together that XLA compiles, for TPUs.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import tensorflow as tf

from rethink_tf.ops.devices import device_of, kind

Form = Literal['combined', 'per_group', 'batched']
FORMS: tuple[Form, ...] = get_args(Form)

_NEVER = -1e9  # score of a slot that must not be kept
_FLOOR = -1e8
_EXACT = 2**24  # integers up to it are exact in float32
_UNROLLED = 128  # groups of all images that get a node each in the graph; more become a loop


def grouped_nms(
  boxes: tf.Tensor,
  scores: tf.Tensor,
  valid: tf.Tensor,
  iou_threshold: float,
  max_per_group: int,
  max_total: int,
  form: Form | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
  """Suppress within each group (a level, a class); return the best `max_total` boxes of all groups, sorted by score.

  boxes: [B, N, Q, 4] for Q groups, or [B, N, 1, 4] shared by all; scores: [B, N, Q]; valid: bool [B, N, Q].
  form: see above; None is that of the device (`form_on`).
  Returns boxes [B, max_total, 4], scores, group int32 and valid bool [B, max_total]; empty slots are zero. Of equal
  scores the first of the box's and then of the group's index is the best.
  """
  scores = tf.where(valid, tf.cast(scores, tf.float32), _NEVER)
  suppress = {'combined': _combined, 'per_group': _per_group, 'batched': _batched}[
    form or form_on(device_of(scores))]
  return suppress(boxes, scores, iou_threshold, max_per_group, max_total)


def form_on(device: str) -> Form:
  """Return the form for a device by its name."""
  return 'per_group' if kind(device) == 'GPU' else 'combined'


def _ranked(scores: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Return ranks float32 [B, N, Q], sorted scores [B, N * Q] and their indices in n * Q + q.

  A rank is `_highest(N * Q)` for the highest score of an image, one less for the next, and 0 for one that is never
  kept: also for those beyond the first 2^24, as of eighteen views with a thousand proposals and a thousand classes.
  """
  batch, groups = tf.shape(scores)[0], scores.shape[2]
  flat = tf.reshape(scores, [batch, -1])  # [B, N * Q]
  number = tf.shape(flat)[1]
  ordered = tf.math.top_k(flat, number)
  image = tf.broadcast_to(tf.range(batch)[:, None], tf.shape(flat))
  descending = tf.cast(tf.maximum(_highest(number) - tf.range(number), 0), tf.float32)
  descending = tf.broadcast_to(descending[None], tf.shape(flat))
  ranks = tf.scatter_nd(tf.stack([image, ordered.indices], axis=-1), descending, tf.shape(flat))
  ranks = tf.where(flat > _FLOOR, ranks, 0.0)
  return tf.reshape(ranks, [batch, -1, groups]), ordered.values, ordered.indices


def _highest(number: tf.Tensor) -> tf.Tensor:
  """Return the rank of the highest of `number` scores; the position of a score is this minus its rank."""
  return tf.minimum(number, _EXACT)


def _combined(boxes: tf.Tensor, scores: tf.Tensor, iou_threshold: float, max_per_group: int,
              max_total: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
  # The kernel pads its groups with scores of -1, which would rank above lower logits. Ranks replace the scores, since
  # they are positive and exact.
  ranks, ordered, _ = _ranked(scores)
  kept = tf.image.combined_non_max_suppression(
    boxes, ranks, max_per_group, max_total, iou_threshold, score_threshold=0.0, clip_boxes=False)
  valid = tf.range(max_total)[None, :] < kept.valid_detections[:, None]
  position = tf.where(valid, _highest(tf.shape(ordered)[1]) - tf.cast(kept.nmsed_scores, tf.int32), 0)
  scores = tf.where(valid, tf.gather(ordered, position, batch_dims=1), 0.0)
  return kept.nmsed_boxes, scores, tf.cast(kept.nmsed_classes, tf.int32), valid


def _per_group(boxes: tf.Tensor, scores: tf.Tensor, iou_threshold: float, max_per_group: int,
               max_total: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
  ranks, _, indices = _ranked(scores)  # without equal ones, of which kernels do not keep the same
  batch, number, groups = tf.shape(scores)[0], tf.shape(scores)[1], scores.shape[2]
  shared, rows = boxes.shape[2] == 1, None if scores.shape[0] is None else scores.shape[0] * groups
  boxes_of_rows = tf.reshape(tf.transpose(_solid(boxes), [0, 2, 1, 3]), [-1, number, 4])  # [B * Q or B, N, 4]
  ranks_of_rows = tf.reshape(tf.transpose(ranks, [0, 2, 1]), [-1, number])  # [B * Q, N]

  def suppress(row: int | tf.Tensor) -> tf.Tensor:
    ranks = ranks_of_rows[row]
    index, used = tf.raw_ops.NonMaxSuppressionV4(
      boxes=boxes_of_rows[row // groups if shared else row], scores=ranks, max_output_size=max_per_group,
      iou_threshold=iou_threshold, score_threshold=0.0, pad_to_max_output_size=True)
    return tf.where(tf.range(max_per_group) < used, tf.gather(ranks, index), 0.0)

  if rows and rows <= _UNROLLED:
    kept = tf.stack([suppress(row) for row in range(rows)])
  else:
    kept = tf.map_fn(suppress, tf.range(batch * groups), fn_output_signature=tf.TensorSpec([max_per_group]))
  shortage = max(max_total - groups * max_per_group, 0)
  kept = tf.pad(tf.reshape(kept, [batch, groups * max_per_group]), [[0, 0], [0, shortage]])
  kept = tf.math.top_k(kept, max_total).values
  valid = kept > 0.0
  position = tf.where(valid, _highest(number * groups) - tf.cast(kept, tf.int32), 0)
  return _take(boxes, scores, tf.gather(indices, position, batch_dims=1), valid)


def _batched(boxes: tf.Tensor, scores: tf.Tensor, iou_threshold: float, max_per_group: int,
             max_total: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
  batch, number, groups = scores.shape
  max_per_group = min(max_per_group, number)
  above = float(np.nextafter(np.float32(iou_threshold), np.float32(2)))  # it suppresses at >=, the others at >
  index, used = tf.image.non_max_suppression_padded(
    tf.broadcast_to(tf.transpose(_solid(boxes), [0, 2, 1, 3]), [batch, groups, number, 4]),
    tf.transpose(scores, [0, 2, 1]), max_per_group, above, _FLOOR, pad_to_max_output_size=True)  # [B, Q, M], [B, Q]
  index = tf.where(tf.range(max_per_group) < used[..., None], index * groups + tf.range(groups)[:, None],
                   number * groups)
  shortage = max(max_total - groups * max_per_group, 0)
  index = tf.pad(tf.reshape(index, [batch, -1]), [[0, 0], [0, shortage]], constant_values=number * groups)
  index = tf.sort(index)  # top_k takes the first of equal scores
  flat = tf.pad(tf.reshape(scores, [batch, -1]), [[0, 0], [0, 1]], constant_values=_NEVER)
  top = tf.math.top_k(tf.gather(flat, index, batch_dims=1), max_total)
  valid = top.values > _FLOOR
  return _take(boxes, scores, tf.where(valid, tf.gather(index, top.indices, batch_dims=1), 0), valid)


def _solid(boxes: tf.Tensor) -> tf.Tensor:
  """Replace boxes without a finite, non-zero area, on which kernels differ, by a point, which suppresses nothing."""
  area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
  return tf.where((tf.math.is_finite(area) & (area != 0.0))[..., None], boxes, 1.0)


def _take(boxes: tf.Tensor, scores: tf.Tensor, index: tf.Tensor,
          valid: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
  """Return the results for indices [B, max_total] in n * Q + q."""
  batch, groups = tf.shape(scores)[0], scores.shape[2]
  rows = index // groups if boxes.shape[2] == 1 else index
  kept = tf.gather(tf.reshape(boxes, [batch, -1, 4]), rows, batch_dims=1)
  kept_scores = tf.gather(tf.reshape(scores, [batch, -1]), index, batch_dims=1)
  return (tf.where(valid[..., None], kept, 0.0), tf.where(valid, kept_scores, 0.0),
          tf.where(valid, index % groups, 0), valid)
