"""`augment.crop_instances` in operations of TensorFlow, for all instances of an image at once; equal bit by bit."""

from __future__ import annotations

import tensorflow as tf

from rethink_tf.data.augment import SLIVER
from rethink_tf.data.detection.graph_record import Instances
from rethink_tf.structures import MASK_CROP, NO_MASK


def crop_instances(found: Instances, low: tf.Tensor, high: tf.Tensor, tighten: bool) -> Instances:
  """Crop instances to a window [low, high), float64 [2] each, as `augment.crop_instances`."""
  boxes = tf.cast(found.boxes, tf.float64)
  corner = tf.tile(boxes[:, :2], [1, 2])
  cell = tf.tile(boxes[:, 2:] - boxes[:, :2], [1, 2]) / MASK_CROP
  clipped = tf.concat([tf.maximum(boxes[:, :2], low), tf.minimum(boxes[:, 2:], high)], 1)
  kept = tf.reduce_all(clipped[:, 2:] > clipped[:, :2], 1)
  changed = tf.reduce_any(clipped != boxes, 1)
  window = (clipped - corner) / cell  # in mask cells
  shrunk, visible = _shrink(found.masks, window)
  window = shrunk if tighten else window
  boxes = tf.where(changed[:, None], corner + window * cell, clipped) - tf.concat([low, low], 0)
  masks = tf.where((changed & (found.masks[:, 0, 0] != NO_MASK))[:, None, None], _resample(found.masks, window),
                   found.masks)
  centres = tf.cast(found.keypoints[..., :2] + 0.5, tf.float64)
  inside = tf.reduce_all((centres >= low) & (centres < high), -1, keepdims=True) & (found.keypoints[..., 2:] > 0)
  shifted = tf.concat([found.keypoints[..., :2] - tf.cast(low, tf.float32), found.keypoints[..., 2:]], -1)
  kept &= visible | ~changed
  return Instances(found.encoded, *(tf.boolean_mask(column, kept) for column in (
    tf.cast(boxes, tf.float32), found.classes, masks, tf.where(inside, shifted, 0.0))))


def _shrink(masks: tf.Tensor, windows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Shrink windows float64 [n, 4] to the extent of the masks inside; bool [n]: whether there is any."""
  cells = tf.range(MASK_CROP, dtype=tf.float64)
  first, last = tf.floor(windows[:, :2] + SLIVER), tf.math.ceil(windows[:, 2:] - SLIVER)  # [n, 2]
  within = (cells >= first[..., None]) & (cells < last[..., None])  # [n, 2, C]
  inside = (masks > 0) & within[:, 0, :, None] & within[:, 1, None, :]
  spans = []
  for axis in (2, 1):
    filled = tf.cast(tf.reduce_any(inside, axis), tf.int32)  # [n, C]
    start = tf.argmax(filled, 1)
    spans.append((start, MASK_CROP - tf.argmax(filled[:, ::-1], 1)))
  starts, ends = (tf.cast(tf.stack(pair, 1), tf.float64) for pair in zip(*spans, strict=True))
  shrunk = tf.concat([tf.maximum(windows[:, :2], starts), tf.minimum(windows[:, 2:], ends)], 1)
  return shrunk, tf.reduce_any(inside, [1, 2])


def _resample(masks: tf.Tensor, windows: tf.Tensor) -> tf.Tensor:
  """Resample windows float64 [n, 4] of masks uint8 0/1 to whole masks, bilinearly between cell centres."""
  values = tf.cast(masks, tf.float32) * 255.0
  step = (windows[:, 2:] - windows[:, :2]) / MASK_CROP
  start, step = (tf.cast(x, tf.float32) for x in (windows[:, :2] + 0.5 * step - 0.5, step))
  for axis in (1, 0):
    position = start[:, axis:axis + 1] + tf.range(MASK_CROP, dtype=tf.float32) * step[:, axis:axis + 1]  # [n, C]
    below = tf.floor(position)
    low, high = (tf.gather(values, tf.clip_by_value(tf.cast(index, tf.int32), 0, MASK_CROP - 1), axis=axis + 1,
                           batch_dims=1) for index in (below, below + 1.0))
    weight = position - below
    weight = weight[:, :, None] if axis == 0 else weight[:, None, :]
    values = low + weight * (high - low)
  return tf.cast(values >= 127.5, tf.uint8)
