"""OpenCV's bilinear resizing of 8-bit images in TensorFlow operations, for graphs that run without OpenCV."""

from __future__ import annotations

import tensorflow as tf

_ONE = 2048  # OpenCV's fixed point: weights have 11 bits


def resize_uint8(image: tf.Tensor, size: tf.Tensor, without_float64: bool = False) -> tf.Tensor:
  """Resize uint8 [h, w, C] to uint8 [size[0], size[1], C], bit-identical to cv2.resize(INTER_LINEAR).

  without_float64: for runtimes without float64; a value may then differ by one, at one size in forty.

  OpenCV (imgproc, resize.cpp) interpolates along rows in integers with 11-bit weights, drops the lowest 4 bits of the
  sums, and interpolates these along columns.
  """
  y, next_y, y_weight, next_y_weight = _taps(tf.shape(image)[0], size[0], without_float64)
  x, next_x, x_weight, next_x_weight = _taps(tf.shape(image)[1], size[1], without_float64)
  # At the border both neighbours are the same pixel; along rows OpenCV then gives the whole weight to one of them.
  x_weight = tf.where(x == next_x, _ONE, x_weight)
  next_x_weight = tf.where(x == next_x, 0, next_x_weight)

  def along_row(rows: tf.Tensor) -> tf.Tensor:  # int32 [n, size[1], C]
    rows = tf.cast(rows, tf.int32)
    return tf.gather(rows, x, axis=1) * x_weight[:, None] + tf.gather(rows, next_x, axis=1) * next_x_weight[:, None]

  lines = tf.bitwise.right_shift(along_row(image), 4)
  upper = tf.bitwise.right_shift(tf.gather(lines, y) * y_weight[:, None, None], 16)
  lower = tf.bitwise.right_shift(tf.gather(lines, next_y) * next_y_weight[:, None, None], 16)
  return tf.cast(tf.bitwise.right_shift(upper + lower + 2, 2), tf.uint8)


def _taps(length: tf.Tensor, new_length: tf.Tensor,
          without_float64: bool) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
  """Return both neighbours of every new pixel along an axis, and their weights in 1 / 2048: int32 [new_length] each."""
  if without_float64:  # (i + 0.5) * length / new_length - 0.5, plus 1 to be positive, as a whole number and a fraction
    numerator, denominator = (2 * tf.range(new_length) + 1) * length + new_length, 2 * new_length
    whole = numerator // denominator
    part = tf.cast(numerator - whole * denominator, tf.float32) / tf.cast(denominator, tf.float32)
    position = tf.cast(whole - 1, tf.float32) + part
  else:
    scale = tf.cast(length, tf.float64) / tf.cast(new_length, tf.float64)
    position = tf.cast((tf.range(tf.cast(new_length, tf.float64), dtype=tf.float64) + 0.5) * scale - 0.5, tf.float32)
  low = tf.floor(position)
  fraction = position - low
  low = tf.cast(low, tf.int32)
  weight, next_weight = (tf.cast(tf.round(share * _ONE), tf.int32) for share in (1.0 - fraction, fraction))
  return tf.clip_by_value(low, 0, length - 1), tf.clip_by_value(low + 1, 0, length - 1), weight, next_weight
