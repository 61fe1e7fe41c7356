"""RoIAlign over the levels of a feature pyramid (Mask R-CNN, section 3; FPN, equation 1).

A bin is the mean of `sampling_ratio`² bilinear samples, hence a sparse linear map of the feature maps. Its taps (pixel
indices and weights) are computed once, then applied as one sparse matrix product over all images and levels (`csr`:
exact and bit-deterministic in forward and backward pass; the gradient of tf.image.crop_and_resize has a data race on a
multi-threaded CPU), or as a gather (`gather`: for XLA).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from rethink_tf.ops import boxes as box_ops


def assign_levels(boxes: tf.Tensor, min_level: int, max_level: int) -> tf.Tensor:
  """Return the pyramid level int32 [...] of boxes [..., 4]: P4 for an area of 224² (FPN, equation 1)."""
  size = tf.sqrt(box_ops.area(boxes))
  level = tf.floor(4.0 + tf.math.log(size / 224.0 + 1e-8) / tf.math.log(2.0))
  return tf.cast(tf.clip_by_value(level, min_level, max_level), tf.int32)


class Pyramid(NamedTuple):
  """Feature maps of consecutive levels as one list of pixels, shared by all RoI heads.

  Flattened once, a map is used here and in the RPN, so that its gradient is a sum of two. A sum of three or more
  (AddN) is not deterministic: TensorFlow adds in the order of free buffers, and runs differ in the last bit.
  """

  pixels: tf.Tensor  # [pixels of all levels and images, C]
  heights: tf.Tensor  # int32 [levels]
  widths: tf.Tensor  # int32 [levels]
  min_level: int = 2


def flatten(features: Sequence[tf.Tensor], min_level: int = 2) -> Pyramid:
  """Concatenate the pixels of maps [B, H / 2^l, W / 2^l, C] of consecutive levels l = min_level, …"""
  pixels = tf.concat([tf.reshape(f, [-1, f.shape[-1]]) for f in features], axis=0)
  return Pyramid(pixels, *(tf.stack([tf.shape(f)[axis] for f in features]) for axis in (1, 2)), min_level)


def roi_align(
  pyramid: Pyramid,
  boxes: tf.Tensor,
  size: int,
  min_level: int = 2,
  sampling_ratio: int = 2,
  aligned: bool = False,
  method: str = 'csr',
) -> tf.Tensor:
  """Return features [B, R, size, size, C] of boxes [B, R, 4], each from the level of its area.

  pyramid: `flatten` of levels min_level, min_level + 1, …; boxes in input pixels.
  aligned: False is Detectron's grid (RoIs at least one cell wide), True shifts by half a cell (Detectron2).
  method: 'csr' or 'gather' (XLA); both give the same values, in the features' type.
  """
  pixels = pyramid.pixels
  index, weight = _taps(pyramid, boxes, size, min_level, sampling_ratio, aligned)  # [B, R, size, size, taps]
  if method == 'gather':
    pooled = _gathered_product(tf.cast(pixels, tf.float32), tf.stop_gradient(index), tf.stop_gradient(weight))
    return tf.cast(pooled, pixels.dtype)
  if method != 'csr':
    raise ValueError(f"roi_align: method must be 'csr' or 'gather', not {method!r}")
  pooled = _sparse_product(tf.cast(pixels, tf.float32), tf.stop_gradient(index), tf.stop_gradient(weight))
  pooled = pooled[:tf.size(index) // index.shape[-1]]
  return tf.cast(tf.reshape(pooled, [tf.shape(boxes)[0], -1, size, size, pixels.shape[-1]]), pixels.dtype)


def _taps(pyramid: Pyramid, boxes: tf.Tensor, size: int, min_level: int, sampling_ratio: int,
          aligned: bool) -> tuple[tf.Tensor, tf.Tensor]:
  """Return flat pixel indices int32 and weights float32 [B, R, size, size, (2 sampling_ratio)²] of every bin."""
  batch = tf.shape(boxes)[0]
  heights, widths = pyramid.heights, pyramid.widths
  starts = tf.cumsum(batch * heights * widths, exclusive=True)  # first row of each level in the flat list
  level = assign_levels(boxes, min_level, min_level + heights.shape[0] - 1)  # [B, R]
  stride = tf.pow(2.0, tf.cast(level, tf.float32))
  height, width = tf.gather(heights, level - min_level), tf.gather(widths, level - min_level)
  y0, x0, y1, x1 = tf.unstack(boxes / stride[..., None] - (0.5 if aligned else 0.0), axis=-1)
  y_index, y_weight = _axis_taps(y0, y1 - y0, height, size, sampling_ratio, aligned)  # [B, R, size, 2 ratio]
  x_index, x_weight = _axis_taps(x0, x1 - x0, width, size, sampling_ratio, aligned)
  image = tf.range(batch)[:, None] * height * width + tf.gather(starts, level - min_level)  # [B, R]
  rows = y_index * width[..., None, None] + image[..., None, None]
  index = rows[:, :, :, None, :, None] + x_index[:, :, None, :, None, :]  # [B, R, size, size, 2 ratio, 2 ratio]
  weight = y_weight[:, :, :, None, :, None] * x_weight[:, :, None, :, None, :]
  taps = (2 * sampling_ratio) ** 2
  shape = tf.concat([tf.shape(boxes)[:2], [size, size, taps]], 0)
  return tf.reshape(index, shape), tf.reshape(weight, shape)


def _axis_taps(start: tf.Tensor, length: tf.Tensor, limit: tf.Tensor, size: int, sampling_ratio: int,
               aligned: bool) -> tuple[tf.Tensor, tf.Tensor]:
  """Return cells and weights [B, R, size, 2 * sampling_ratio] of samples along an axis, as in Caffe2's RoIAlign."""
  if not aligned:
    length = tf.maximum(length, 1.0)
  steps = (tf.range(size * sampling_ratio, dtype=tf.float32) + 0.5) / (size * sampling_ratio)
  position = start[..., None] + length[..., None] * steps  # [B, R, size * ratio]
  limit = limit[..., None]
  inside = (position >= -1.0) & (position <= tf.cast(limit, tf.float32))
  position = tf.clip_by_value(position, 0.0, tf.cast(limit - 1, tf.float32))
  low = tf.cast(tf.floor(position), tf.int32)
  fraction = position - tf.cast(low, tf.float32)
  weight = tf.stack([1.0 - fraction, fraction], axis=-1) / sampling_ratio * tf.cast(inside, tf.float32)[..., None]
  index = tf.stack([low, tf.minimum(low + 1, limit - 1)], axis=-1)
  shape = tf.concat([tf.shape(low)[:-1], [size, 2 * sampling_ratio]], 0)
  return tf.reshape(index, shape), tf.reshape(weight, shape)


@tf.custom_gradient
def _gathered_product(flat: tf.Tensor, index: tf.Tensor, weight: tf.Tensor):
  """Return weighted sums [..., C] of rows of flat [pixels, C] at index [..., taps].

  TensorFlow's gradient of a gather is twice as slow under XLA as this segment sum.
  """
  def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None, None]:
    shares = upstream[..., None, :] * weight[..., None]  # [..., taps, C]
    rows = tf.reshape(shares, [-1, flat.shape[-1]])
    return tf.math.unsorted_segment_sum(rows, tf.reshape(index, [-1]), tf.shape(flat)[0]), None, None

  return tf.reduce_sum(tf.gather(flat, index) * weight[..., None], axis=-2), gradient


@tf.custom_gradient
def _sparse_product(flat: tf.Tensor, index: tf.Tensor, weight: tf.Tensor):
  """Return weighted sums [bins, C] of rows of flat [pixels, C]; the gradient is the product with the transpose.

  Without bins, one row of zeros is returned: TensorFlow's kernel divides by the number of rows.
  """
  taps = index.shape[-1]
  bins = tf.size(index) // taps
  rows = tf.repeat(tf.range(tf.cast(bins, tf.int64)), taps)
  indices = tf.stack([rows, tf.cast(tf.reshape(index, [-1]), tf.int64)], axis=1)
  shape = tf.stack([tf.cast(tf.maximum(bins, 1), tf.int64), tf.shape(flat, out_type=tf.int64)[0]])
  matrix = tf.raw_ops.SparseTensorToCSRSparseMatrix(
    indices=indices, values=tf.reshape(weight, [-1]), dense_shape=shape)

  def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None, None]:
    transposed = tf.raw_ops.SparseMatrixTranspose(input=matrix, type=tf.float32)
    return tf.raw_ops.SparseMatrixMatMul(a=transposed, b=upstream), None, None

  return tf.raw_ops.SparseMatrixMatMul(a=matrix, b=flat), gradient
