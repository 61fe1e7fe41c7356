"""Pasting of masks in TensorFlow operations: ops/masks.paste for graphs that run without Python."""

from __future__ import annotations

import tensorflow as tf

_TOGETHER = 8  # masks that paste_by_products pastes at a time


def paste_pixels(masks: tf.Tensor, boxes: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
  """Paste masks [D, M, M] (probabilities over each box) into an image: uint8 0/1 [D, height, width].

  The mask is sampled bilinearly at the pixel centres of the continuous box [D, 4] y0 x0 y1 x1 (pixels of the image),
  with zeros outside, and thresholded at 0.5, as by Detectron2 and `paste`'s mode 'accurate'. Masks are pasted one by
  one and only inside their boxes: besides the result, memory is that of the largest box. Float64, so that pixels near
  0.5 are those of `paste`. An empty, inverted or non-finite box gives an empty mask.
  """
  size = tf.stack([height, width])
  number = tf.shape(boxes)[0]
  dummy = tf.maximum(1 - number, 0)  # map_fn cannot stack zero results
  padded = tf.cast(tf.pad(masks, [[0, dummy], [1, 1], [1, 1]]), tf.float64)
  boxes = tf.pad(tf.cast(boxes, tf.float64), [[0, dummy], [0, 0]])
  valid = tf.reduce_all(tf.math.is_finite(boxes), 1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
  boxes = tf.where(valid[:, None], boxes, tf.constant([-9.0, -9.0, -8.0, -8.0], tf.float64))  # outside every image

  def paste_one(inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    mask, box = inputs
    first_row, row, row_weight = _samples(box[0], box[2], size[0], masks.shape[1])
    first_column, column, column_weight = _samples(box[1], box[3], size[1], masks.shape[2])
    left, right = tf.gather(mask, column, axis=1), tf.gather(mask, column + 1, axis=1)  # [M + 2, w]
    lines = left * (1.0 - column_weight) + right * column_weight
    row_weight = row_weight[:, None]
    values = tf.gather(lines, row) * (1.0 - row_weight) + tf.gather(lines, row + 1) * row_weight  # [h, w]
    begin = tf.stack([first_row, first_column])
    pixels = tf.cast(values >= 0.5, tf.uint8)
    return tf.pad(pixels, tf.stack([begin, size - begin - tf.shape(pixels)], axis=1))

  spec = tf.TensorSpec([None, None], tf.uint8)
  return tf.map_fn(paste_one, (padded, boxes), fn_output_signature=spec, parallel_iterations=1)[:number]


def paste_by_products(masks: tf.Tensor, boxes: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
  """Paste as `paste_pixels`, by matrix products in float32 and a plain loop, for other runtimes.

  Memory is that of the result and of _TOGETHER float32 images.
  """
  number = tf.shape(boxes)[0]
  loops = (number + _TOGETHER - 1) // _TOGETHER
  missing = loops * _TOGETHER - number
  padded = tf.pad(tf.cast(masks, tf.float32), [[0, missing], [0, 0], [0, 0]])
  boxes = tf.pad(tf.cast(boxes, tf.float32), [[0, missing], [0, 0]])

  def paste(i: tf.Tensor, pasted: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    rows = tf.range(_TOGETHER) + i * _TOGETHER
    some, corners = tf.gather(padded, rows), tf.gather(boxes, rows)  # [8, M, M], [8, 4]
    vertical = _weights(corners[:, 0], corners[:, 2], height, masks.shape[1])  # [8, h, M]
    horizontal = _weights(corners[:, 1], corners[:, 3], width, masks.shape[2])  # [8, w, M]
    values = tf.matmul(tf.matmul(vertical, some), horizontal, transpose_b=True)
    return i + 1, tf.concat([pasted, tf.cast(values >= 0.5, tf.uint8)], axis=0)

  none = tf.zeros([0, height, width], tf.uint8)
  shapes = [tf.TensorShape([]), tf.TensorShape([None, *none.shape[1:]])]
  _, pasted = tf.while_loop(lambda i, _: i < loops, paste, [tf.constant(0), none], shapes)
  return pasted[:number]


def _weights(low: tf.Tensor, high: tf.Tensor, length: tf.Tensor, cells: int) -> tf.Tensor:
  """Return bilinear weights [n, length, cells] of a mask's cells at the pixels of an axis; zeros outside the box."""
  low, high = low[:, None], high[:, None]  # [n, 1]
  centres = tf.cast(tf.range(length), tf.float32) + 0.5
  position = (centres - low) / tf.maximum(high - low, 1e-6) * cells - 0.5  # [n, length]
  inside = (centres >= low) & (centres <= high) & (high > low)
  weights = tf.maximum(1.0 - tf.abs(position[..., None] - tf.range(cells, dtype=tf.float32)), 0.0)
  return weights * tf.cast(inside, tf.float32)[..., None]


def _samples(low: tf.Tensor, high: tf.Tensor, length: tf.Tensor,
             cells: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Return, of the pixels along an axis with centres in the box, the first; and padded cell and fraction of each."""
  limit = tf.cast(length, tf.float64)
  first = tf.clip_by_value(tf.math.ceil(low - 0.5), 0.0, limit)
  end = tf.clip_by_value(tf.floor(high - 0.5) + 1.0, first, limit)
  position = (tf.range(first, end, dtype=tf.float64) + 0.5 - low) / (high - low) * cells + 0.5
  cell = tf.minimum(tf.floor(position), cells)
  return tf.cast(first, tf.int32), tf.cast(cell, tf.int32), position - cell
