"""The graph of an export: from an image of any size to detections in its pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from rethink_tf.data.augment import Resize
from rethink_tf.data.buckets import assign, resized_size
from rethink_tf.models.mask_rcnn import MaskRCNN
from rethink_tf.ops import portable
from rethink_tf.ops.paste import paste_by_products, paste_pixels
from rethink_tf.ops.resize import resize_uint8
from rethink_tf.structures import Detections

Tensors = dict[str, tf.Tensor]


def find(detector: MaskRCNN, resize: Resize, image: tf.Tensor, threshold: tf.Tensor) -> Tensors:
  """Return the detections in an image, uint8 [h, w, 3], before masks are pasted.

  boxes float64 [n, 4] in its pixels (float32 in a portable graph), scores [n], classes [n]; where the detector has
  them, masks over the boxes and keypoints float32 [n, P, 3].
  """
  size, resized, padded_shape = input_sizes(resize, image)
  padding = tf.concat([tf.stack([[0, 0], padded_shape - resized], axis=1), [[0, 0]]], 0)
  # TensorFlow Lite does not pad uint8.
  pixels = tf.pad(tf.cast(resize_uint8(image, resized, portable.chosen()), tf.int32), padding)
  if isinstance(padded_shape, np.ndarray):
    pixels.set_shape([*padded_shape, 3])

  generator = detector.detection_generator
  configured, generator.score_threshold = generator.score_threshold, threshold
  detections = detector(pixels[None], tf.cast(resized, tf.float32)[None], training=False).detections
  generator.score_threshold = configured
  detections = Detections(*(None if field is None else field[0] for field in detections))

  # As evaluation.postprocessing.restore in TensorFlow.
  real = tf.float32 if portable.chosen() else tf.float64
  height_width = tf.cast(size, real)
  scales = tf.cast(tf.cast(tf.cast(resized, real) / height_width, tf.float32), real)
  boxes = tf.cast(detections.boxes, real) / tf.tile(scales, [2])
  boxes = tf.minimum(tf.maximum(boxes, tf.constant(0.0, real)), tf.tile(height_width, [2]))
  used = ((detections.scores > 0) & (detections.classes > 0) & (boxes[:, 2] > boxes[:, 0])
          & (boxes[:, 3] > boxes[:, 1]))
  fields = {'boxes': boxes, 'scores': detections.scores, 'classes': detections.classes, 'masks': detections.masks}
  if detections.keypoints is not None:
    positions = (tf.cast(detections.keypoints[..., :2], real) + 0.5) / scales - 0.5  # indices of pixel centres
    fields['keypoints'] = tf.concat([tf.cast(positions, tf.float32), detections.keypoints[..., 2:]], axis=-1)
  return {name: tf.boolean_mask(field, used) for name, field in fields.items() if field is not None}


def detect(find_one: Callable[..., Tensors], image: tf.Tensor, threshold: tf.Tensor | float) -> Tensors:
  """Return the detections in one image, highest score first: boxes [n, 4], scores, classes, masks [n, h, w], ..."""
  fields = find_one(image, threshold)
  if 'masks' in fields:
    paste = paste_by_products if portable.chosen() else paste_pixels
    fields['masks'] = paste(fields['masks'], fields['boxes'], tf.shape(image)[0], tf.shape(image)[1])
  return {**fields, 'boxes': tf.cast(fields['boxes'], tf.float32), 'num_detections': tf.shape(fields['scores'])[0]}


def input_sizes(resize: Resize, image: tf.Tensor) -> tuple[tf.Tensor | np.ndarray, ...]:
  """Return the size of an image, its size after resizing, and the padded shape: int32 [2]; arrays where static."""
  padded_shapes = resize.padded_shapes
  if image.shape[:2].is_fully_defined():
    size = np.array(image.shape[:2], np.int32)
    resized = np.array(resized_size(*size, resize.largest, resize.max_side), np.int32)
    return size, resized, padded_shapes[assign(resized[None], padded_shapes)[0]]
  # As data/buckets.py in TensorFlow: the padded shape matters, since norms see the padding.
  size = tf.shape(image)[:2]
  resized = (resized_in_integers if portable.chosen() else _resized)(resize, size)
  fits = tf.reduce_all(resized <= padded_shapes, axis=1)
  return size, resized, tf.gather(padded_shapes, tf.argmax(tf.cast(fits, tf.int32)))  # the first that the image fits in


def _resized(resize: Resize, size: tf.Tensor) -> tf.Tensor:
  height_width = tf.cast(size, tf.float64)
  short, long = tf.reduce_min(height_width), tf.reduce_max(height_width)
  scale = resize.largest / short
  scale = tf.where(tf.round(scale * long) > resize.max_side, resize.max_side / long, scale)
  return tf.cast(tf.maximum(tf.round(height_width * scale), 1.0), tf.int32)


def resized_in_integers(resize: Resize, sizes: tf.Tensor) -> tf.Tensor:
  """Return sizes int32 [..., 2] after resizing, as data/buckets.resized_sizes: TensorFlow Lite has no float64.

  Where a side is halfway between two pixels, which float64 rounds by its own error, it may be the other one: of one
  size in 26,000.
  """
  short, long = (reduce(sizes, axis=-1, keepdims=True) for reduce in (tf.reduce_min, tf.reduce_max))
  too_long = _rounded_ratio(long * resize.largest, short) > resize.max_side
  target, side = tf.where(too_long, resize.max_side, resize.largest), tf.where(too_long, long, short)
  return tf.maximum(_rounded_ratio(sizes * target, side), 1)


def _rounded_ratio(numerator: tf.Tensor, denominator: tf.Tensor) -> tf.Tensor:
  """Return the quotient of positive integers, rounded half to even."""
  dividend, divisor = 2 * numerator + denominator, 2 * denominator
  quotient = dividend // divisor
  tie_to_odd = (dividend - quotient * divisor == 0) & (quotient % 2 == 1)
  return quotient - tf.cast(tie_to_odd, tf.int32)
