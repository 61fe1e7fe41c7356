"""Keypoints and heat maps: encoding as cells of a RoI's heat map, and decoding (Mask R-CNN, section 5).

Keypoints are [..., 3] y, x and visibility or score; y and x are indices of pixel centres, which differ by 0.5 from the
continuous coordinates of boxes.
"""

from __future__ import annotations

import tensorflow as tf

_CUBIC = -0.75  # the coefficient of Detectron's (OpenCV's) and Detectron2's (PyTorch's) bicubic kernel


def heatmap_targets(keypoints: tf.Tensor, rois: tf.Tensor, size: int = 56) -> tuple[tf.Tensor, tf.Tensor]:
  """Return the target cell of each keypoint in its RoI.

  Args:
    keypoints: [..., P, 3] y, x, visibility: above 0 if labelled.
    rois: [..., 4] y0 x0 y1 x1.
    size: cells along a side of the heat map.

  Returns:
    int32 [..., P] row * size + column, and bool [..., P]: labelled and inside the RoI. Other cells are 0.
  """
  points = keypoints[..., :2] + 0.5  # [..., P, 2] continuous
  low, high = rois[..., None, :2], rois[..., None, 2:]
  extent = high - low
  cells = tf.floor((points - low) * tf.math.divide_no_nan(float(size), extent))
  cells = tf.where(points == high, size - 1.0, cells)  # the far edge belongs to the last cell
  inside = tf.reduce_all((cells >= 0) & (cells < size) & (extent > 0), axis=-1)
  valid = inside & (keypoints[..., 2] > 0)
  cells = tf.cast(tf.where(valid[..., None], cells, 0.0), tf.int32)
  return cells[..., 0] * size + cells[..., 1], valid


def decode_heatmaps(logits: tf.Tensor, boxes: tf.Tensor, limit: tuple[int, int] | None = None) -> tf.Tensor:
  """Return keypoints at the maximum of each heat map after bicubic resizing to its box's size in pixels.

  Maps are resized by two small matrix products, box by box.

  Args:
    logits: [n, P, S, S].
    boxes: [n, 4] y0 x0 y1 x1 in pixels; sides are at least one pixel.
    limit: height and width that no box exceeds, to which all maps are resized, for XLA's static shapes; None resizes
      each to its own box.

  Returns:
    float32 [n, P, 3] y, x, and the probability of that pixel in the softmax over the S x S cells (Detectron2's score).
  """
  side = logits.shape[-1]

  def decode(inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    maps, box = inputs
    extent = tf.maximum(box[2:] - box[:2], 1.0)
    pixels = tf.math.ceil(extent)  # height, width of the resized map
    counts = limit or tf.unstack(tf.cast(pixels, tf.int32))
    border = tf.clip_by_value(tf.range(-2, side + 2), 0, side - 1)  # border cells are repeated
    maps_with_border = tf.gather(tf.gather(maps, border, axis=1), border, axis=2)  # [P, S + 4, S + 4]
    rows, columns = (_bicubic(counts[axis], pixels[axis], side) for axis in (0, 1))
    resized = tf.einsum('hy,pyx,wx->phw', rows, maps_with_border, columns)
    exists = (tf.range(counts[0])[:, None] < tf.cast(pixels[0], tf.int32)) & (
      tf.range(counts[1])[None, :] < tf.cast(pixels[1], tf.int32))
    resized = tf.reshape(tf.where(exists, resized, resized.dtype.min), [maps.shape[0], -1])  # [P, h * w]
    best = tf.argmax(resized, axis=1, output_type=tf.int32)
    maximum = tf.reduce_max(resized, axis=1)
    score = 1.0 / tf.reduce_sum(tf.exp(maps - maximum[:, None, None]), axis=[1, 2])
    position = tf.stack([best // counts[1], best % counts[1]], axis=1)  # [P, 2]
    position = (tf.cast(position, tf.float32) + 0.5) * (extent / pixels) + box[:2] - 0.5
    return tf.concat([position, score[:, None]], axis=1)

  return tf.map_fn(decode, (logits, boxes), fn_output_signature=tf.TensorSpec([logits.shape[1], 3], tf.float32))


def _bicubic(count: int | tf.Tensor, pixels: tf.Tensor, side: int) -> tf.Tensor:
  """Return weights [count, side + 4] of the cells -2 … side + 1 at the centres of `pixels` pixels along a side."""
  centres = (tf.range(count, dtype=tf.float32) + 0.5) * (side / pixels) - 0.5
  centres = tf.minimum(centres, float(side))  # rows beyond `pixels` are unused, but must be finite
  distance = tf.abs(centres[:, None] - tf.range(-2.0, side + 2.0))
  near = ((_CUBIC + 2.0) * distance - (_CUBIC + 3.0)) * distance * distance + 1.0
  far = ((_CUBIC * distance - 5.0 * _CUBIC) * distance + 8.0 * _CUBIC) * distance - 4.0 * _CUBIC
  return tf.where(distance <= 1.0, near, tf.where(distance < 2.0, far, 0.0))
