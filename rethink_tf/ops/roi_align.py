"""RoIAlign over the levels of a feature pyramid (Mask R-CNN, section 3; FPN, equation 1).

A bin is the mean of `sampling_ratio`² bilinear samples, hence a sparse linear map of the feature maps. Its taps (pixel
indices and weights) are computed once, then applied as one sparse matrix product over all images and levels (`csr`:
exact and bit-deterministic in forward and backward pass; the gradient of tf.image.crop_and_resize has a data race on a
multi-threaded CPU), or as a gather (`gather`: for XLA), or tap by tap (`taps`: for inference in other runtimes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from rethink_tf.errors import UserError
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
  sampling_ratio: int = 2,
  aligned: bool = False,
  method: str = 'csr',
) -> tf.Tensor:
  """Return features [B, R, size, size, C] of boxes [B, R, 4], each from the level of its area.

  pyramid: see `flatten`. boxes: in input pixels.
  sampling_ratio: samples of a bin along each axis; 0 is adaptive, its size in cells, rounded up (Detectron2; csr only).
  aligned: False is Detectron's grid (RoIs at least one cell wide), True shifts by half a cell (Detectron2).
  method: 'csr', 'gather' (XLA) or 'taps' (ONNX and TensorFlow Lite, without a gradient); all give the same values, in
    the features' type.
  """
  pixels = pyramid.pixels
  shape = tf.concat([tf.shape(boxes)[:2], [size, size, pixels.shape[-1]]], 0)
  if not sampling_ratio:
    if method != 'csr':
      raise UserError('RoIPooler.sampling_ratio = 0 (adaptive) has no static shape, which XLA, TPUs, ONNX and '
                      'TensorFlow Lite need: use 2')
    taps = tuple(map(tf.stop_gradient, _adaptive_taps(pyramid, boxes, size, aligned)))
    pooled = _sparse_product(tf.cast(pixels, tf.float32), *taps, tf.reduce_prod(shape[:-1]))
    return tf.cast(tf.reshape(pooled, shape), pixels.dtype)
  index, weight = _taps(pyramid, boxes, size, sampling_ratio, aligned)  # [B, R, size, size, taps]
  if method == 'gather':
    pooled = _gathered_product(tf.cast(pixels, tf.float32), tf.stop_gradient(index), tf.stop_gradient(weight))
    return tf.cast(pooled, pixels.dtype)
  if method == 'taps':
    return tf.cast(tf.reshape(_sum_of_taps(tf.cast(pixels, tf.float32), index, weight), shape), pixels.dtype)
  if method != 'csr':
    raise ValueError(f"roi_align: method must be 'csr', 'gather' or 'taps', not {method!r}")
  bins = tf.reduce_prod(shape[:-1])
  rows = tf.repeat(tf.range(bins), index.shape[-1])
  pooled = _sparse_product(tf.cast(pixels, tf.float32), rows, tf.stop_gradient(tf.reshape(index, [-1])),
                           tf.stop_gradient(tf.reshape(weight, [-1])), bins)
  return tf.cast(tf.reshape(pooled, shape), pixels.dtype)


class _Geometry(NamedTuple):
  """Boxes [B, R] on the maps of their levels, in cells."""

  y0: tf.Tensor
  x0: tf.Tensor
  y1: tf.Tensor
  x1: tf.Tensor
  height: tf.Tensor  # int32, of the map
  width: tf.Tensor
  first: tf.Tensor  # int32, flat index of the map's first pixel


def _geometry(pyramid: Pyramid, boxes: tf.Tensor, aligned: bool) -> _Geometry:
  batch = tf.shape(boxes)[0]
  heights, widths, min_level = pyramid.heights, pyramid.widths, pyramid.min_level
  starts = tf.cumsum(batch * heights * widths, exclusive=True)  # first row of each level in the flat list
  level = assign_levels(boxes, min_level, min_level + heights.shape[0] - 1)  # [B, R]
  stride = tf.pow(2.0, tf.cast(level, tf.float32))
  height, width = tf.gather(heights, level - min_level), tf.gather(widths, level - min_level)
  corners = tf.unstack(boxes / stride[..., None] - (0.5 if aligned else 0.0), axis=-1)
  first = tf.range(batch)[:, None] * height * width + tf.gather(starts, level - min_level)
  return _Geometry(*corners, height, width, first)


def _taps(pyramid: Pyramid, boxes: tf.Tensor, size: int, sampling_ratio: int,
          aligned: bool) -> tuple[tf.Tensor, tf.Tensor]:
  """Return flat pixel indices int32 and weights float32 [B, R, size, size, (2 sampling_ratio)²] of every bin."""
  y0, x0, y1, x1, height, width, first = _geometry(pyramid, boxes, aligned)
  y_index, y_weight = _axis_taps(y0, y1 - y0, height, size, sampling_ratio, aligned)  # [B, R, size, 2 ratio]
  x_index, x_weight = _axis_taps(x0, x1 - x0, width, size, sampling_ratio, aligned)
  rows = y_index * width[..., None, None] + first[..., None, None]
  index = _across(rows, 3, 5) + _across(x_index, 2, 4)  # [B, R, size, size, 2 ratio, 2 ratio]
  weight = _across(y_weight, 3, 5) * _across(x_weight, 2, 4)
  taps = (2 * sampling_ratio) ** 2
  shape = tf.concat([tf.shape(boxes)[:2], [size, size, taps]], 0)
  return tf.reshape(index, shape), tf.reshape(weight, shape)


def _across(values: tf.Tensor, first: int, second: int) -> tf.Tensor:
  """Insert two axes; TensorFlow Lite has no slices of six dimensions."""
  return tf.expand_dims(tf.expand_dims(values, first), second)


def _axis_taps(start: tf.Tensor, length: tf.Tensor, limit: tf.Tensor, size: int, sampling_ratio: int,
               aligned: bool) -> tuple[tf.Tensor, tf.Tensor]:
  """Return cells and weights [B, R, size, 2 * sampling_ratio] of samples along an axis, as in Caffe2's RoIAlign."""
  if not aligned:
    length = tf.maximum(length, 1.0)
  steps = (tf.range(size * sampling_ratio, dtype=tf.float32) + 0.5) / (size * sampling_ratio)
  index, weight = _bilinear(start[..., None] + length[..., None] * steps, limit[..., None])  # [B, R, size * ratio, 2]
  shape = tf.concat([tf.shape(start), [size, 2 * sampling_ratio]], 0)
  return tf.reshape(index, shape), tf.reshape(weight / sampling_ratio, shape)


def _bilinear(position: tf.Tensor, limit: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Return the two cells of positions on axes of `limit` cells and their weights, [..., 2]; no weight outside."""
  inside = (position >= -1.0) & (position <= tf.cast(limit, tf.float32))
  position = tf.clip_by_value(position, 0.0, tf.cast(limit - 1, tf.float32))
  low = tf.cast(tf.floor(position), tf.int32)
  fraction = position - tf.cast(low, tf.float32)
  weight = tf.stack([1.0 - fraction, fraction], axis=-1) * tf.cast(inside, tf.float32)[..., None]
  return tf.stack([low, tf.minimum(low + 1, limit - 1)], axis=-1), weight


class _AxisTaps(NamedTuple):
  """Taps of the bins of N boxes along one axis; a bin of box n has count[n] of them."""

  index: tf.Tensor  # [taps]
  weight: tf.Tensor  # [taps]
  count: tf.Tensor  # [N]
  first: tf.Tensor  # [N * size], place of a bin's first tap


def _adaptive_taps(pyramid: Pyramid, boxes: tf.Tensor, size: int,
                   aligned: bool) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Return bin, flat pixel index and weight [taps] of all taps; the number of samples of a box depends on its size."""
  y0, x0, y1, x1, height, width, first = (tf.reshape(field, [-1]) for field in
                                          _geometry(pyramid, boxes, aligned))
  y, x = _adaptive_axis(y0, y1 - y0, height, size, aligned), _adaptive_axis(x0, x1 - x0, width, size, aligned)
  counts = tf.repeat(y.count * x.count, size * size)  # [bins]
  bins = tf.repeat(tf.range(tf.size(counts)), counts)  # [taps]
  place = tf.range(tf.size(bins)) - tf.gather(tf.cumsum(counts, exclusive=True), bins)  # in the bin
  box, row = bins // size**2, bins // size  # rows of bins: box * size + y
  column = box * size + bins % size
  across = tf.gather(x.count, box)
  y_tap = tf.gather(y.first, row) + place // across
  x_tap = tf.gather(x.first, column) + place % across
  index = tf.gather(y.index, y_tap) * tf.gather(width, box) + tf.gather(x.index, x_tap) + tf.gather(first, box)
  return bins, index, tf.gather(y.weight, y_tap) * tf.gather(x.weight, x_tap)


def _adaptive_axis(start: tf.Tensor, length: tf.Tensor, limit: tf.Tensor, size: int, aligned: bool) -> _AxisTaps:
  """Return the adaptive taps of boxes along an axis of `limit` cells; start, length, limit: [N]."""
  if not aligned:
    length = tf.maximum(length, 1.0)
  step = length / size
  samples = tf.cast(tf.math.ceil(step), tf.int32)  # of a bin
  per_bin = tf.repeat(samples, size)  # [N * size]
  bins = tf.repeat(tf.range(tf.size(per_bin)), per_bin)  # [samples]
  place = tf.range(tf.size(bins)) - tf.gather(tf.cumsum(per_bin, exclusive=True), bins)
  box = bins // size
  step, number = tf.gather(step, box), tf.cast(tf.gather(samples, box), tf.float32)
  position = tf.gather(start, box) + tf.cast(bins % size, tf.float32) * step
  position += (tf.cast(place, tf.float32) + 0.5) * step / number
  index, weight = _bilinear(position, tf.gather(limit, box))  # [samples, 2]
  return _AxisTaps(tf.reshape(index, [-1]), tf.reshape(weight / number[:, None], [-1]), 2 * samples,
                   2 * tf.cumsum(per_bin, exclusive=True))


@tf.custom_gradient
def _gathered_product(flat: tf.Tensor, index: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
  """Return weighted sums [..., C] of rows of flat [pixels, C] at index [..., taps].

  TensorFlow's gradient of a gather is twice as slow under XLA as this segment sum.
  """
  def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None, None]:
    shares = upstream[..., None, :] * weight[..., None]  # [..., taps, C]
    rows = tf.reshape(shares, [-1, flat.shape[-1]])
    return tf.math.unsorted_segment_sum(rows, tf.reshape(index, [-1]), tf.shape(flat)[0]), None, None

  return tf.reduce_sum(tf.gather(flat, index) * weight[..., None], axis=-2), gradient


def _sum_of_taps(flat: tf.Tensor, index: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
  """Return weighted sums [bins, C] as `_gathered_product` does, in the memory of two results instead of all taps."""
  taps = index.shape[-1]
  index, weight = tf.reshape(index, [-1, taps]), tf.reshape(weight, [-1, taps])
  total = tf.gather(flat, index[:, 0]) * weight[:, :1]
  for tap in range(1, taps):
    total += tf.gather(flat, index[:, tap]) * weight[:, tap:tap + 1]
  return total


@tf.custom_gradient
def _sparse_product(flat: tf.Tensor, rows: tf.Tensor, index: tf.Tensor, weight: tf.Tensor,
                    bins: tf.Tensor) -> tf.Tensor:
  """Return weighted sums [bins, C] of rows of flat [pixels, C]; the gradient is the product with the transpose.

  rows, index, weight: bin, row of `flat` and weight of each tap [taps], ordered by bin.
  """
  indices = tf.transpose(tf.cast(tf.stack([rows, index]), tf.int64))  # faster than to stack them along axis 1
  added = tf.maximum(1 - bins, 0)  # without bins a row of zeros: TensorFlow's kernel divides by the number of rows
  shape = tf.stack([tf.cast(bins + added, tf.int64), tf.shape(flat, out_type=tf.int64)[0]])
  matrix = tf.raw_ops.SparseTensorToCSRSparseMatrix(
    indices=indices, values=weight, dense_shape=shape)

  def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None, None, None, None]:
    transposed = tf.raw_ops.SparseMatrixTranspose(input=matrix, type=tf.float32)
    upstream = tf.pad(upstream, [[0, added], [0, 0]])  # the gradient of the slice below costs ten times as much
    return tf.raw_ops.SparseMatrixMatMul(a=transposed, b=upstream), None, None, None, None

  return tf.raw_ops.SparseMatrixMatMul(a=matrix, b=flat)[:bins], gradient
