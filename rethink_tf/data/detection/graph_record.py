"""What a record holds for inputs that are TensorFlow graphs, without Python: instances as arrays, masks as crops.

The annotations of a record are JSON, which no TensorFlow operation reads, and masks have to be rasterised. The
converter therefore stores beside them what `Source.load` returns:

  rethink_tf/box         float32 [n * 4] y0 x0 y1 x1, clipped to the image
  rethink_tf/category    int64 [n], ids
  rethink_tf/mask_crops  uint8 [n, 112, 112] 0/1 or NO_MASK, compressed with zlib
  rethink_tf/keypoint    float32 [n * P * 3] y, x, visibility
  rethink_tf/image       the image as PNG where TensorFlow reads the file differently or not at all, else empty
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow as tf

from rethink_tf.data.categories import Category
from rethink_tf.structures import MASK_CROP, Example

CROPS = 'rethink_tf/mask_crops'
_BOX, _CATEGORY, _KEYPOINT, _IMAGE = (f'rethink_tf/{name}' for name in ('box', 'category', 'keypoint', 'image'))


class Instances(NamedTuple):
  """Tensors of one record: `structures.Example` with the image file in place of its pixels."""

  encoded: tf.Tensor  # string, for decode_pixels
  boxes: tf.Tensor  # float32 [n, 4]
  classes: tf.Tensor  # int32 [n]
  masks: tf.Tensor  # uint8 [n, 112, 112]
  keypoints: tf.Tensor  # float32 [n, P, 3]


def features(example: Example, encoded: bytes, categories: Sequence[Category]) -> dict[str, tf.train.Feature]:
  """Return the features of an annotated image. encoded: the contents of its file."""
  def floats(values: np.ndarray) -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=values.ravel().tolist()))

  def text(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

  ids = [categories[class_ - 1].id for class_ in example.classes.tolist()]
  return {_BOX: floats(example.boxes), _KEYPOINT: floats(example.keypoints),
          _CATEGORY: tf.train.Feature(int64_list=tf.train.Int64List(value=ids)),
          CROPS: text(zlib.compress(np.ascontiguousarray(example.masks).tobytes())),
          _IMAGE: text(b'' if _is_plain(encoded, example.image) else _png(example.image))}


def parse(payload: tf.Tensor, categories: Sequence[Category], num_keypoints: int) -> Instances:
  """Parse a serialised record; instances of other categories are left out. categories: in the order of classes."""
  many: dict[str, Any] = {name: tf.io.FixedLenSequenceFeature([], kind, allow_missing=True)
                          for name, kind in ((_BOX, tf.float32), (_CATEGORY, tf.int64), (_KEYPOINT, tf.float32))}
  one = {name: tf.io.FixedLenFeature([], tf.string) for name in ('image/encoded', CROPS, _IMAGE)}
  found = tf.io.parse_single_example(payload, many | one)
  matches = found[_CATEGORY][:, None] == tf.constant([category.id for category in categories], tf.int64)  # [n, K]
  known = tf.reduce_any(matches, axis=1)
  count = tf.shape(known)[0]
  masks = tf.io.decode_raw(tf.io.decode_compressed(found[CROPS], 'ZLIB'), tf.uint8)
  keypoints = (tf.reshape(found[_KEYPOINT], [count, num_keypoints, 3]) if num_keypoints
               else tf.zeros([count, 0, 3], tf.float32))
  encoded = tf.where(tf.strings.length(found[_IMAGE]) > 0, found[_IMAGE], found['image/encoded'])
  return Instances(encoded, *(tf.boolean_mask(column, known) for column in (
    tf.reshape(found[_BOX], [count, 4]), 1 + tf.argmax(matches, axis=1, output_type=tf.int32),
    tf.reshape(masks, [count, MASK_CROP, MASK_CROP]), keypoints)))


def decode_pixels(encoded: tf.Tensor) -> tf.Tensor:
  """Decode a JPEG or PNG file to uint8 [h, w, 3] RGB; the pixels of a JPEG are those of `images.decode`."""
  return tf.cond(tf.io.is_jpeg(encoded),
                 lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method='INTEGER_ACCURATE'),
                 lambda: tf.io.decode_png(encoded, channels=3))


def _is_plain(encoded: bytes, image: np.ndarray) -> bool:
  """Whether `decode_pixels` reads a file as `images.decode` does: not turned, CMYK, of 16 bits or another format."""
  try:
    return np.array_equal(decode_pixels(tf.constant(encoded)).numpy(), image)
  except tf.errors.OpError:
    return False


def _png(image: np.ndarray) -> bytes:
  return cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
