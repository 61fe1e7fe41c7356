"""The training data in a record: instances as arrays, masks as crops.

The annotations of a record are JSON, which no TensorFlow operation reads, and masks have to be rasterised. The
converter therefore stores beside them what `Source.load` returns, for inputs that are graphs and for those in Python:

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
from rethink_tf.structures import MASK_CROP, NO_MASK, Example

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


def read(stored: Any, size: tuple[int, int], categories: Sequence[Category], num_keypoints: int
         ) -> tuple[np.ndarray, ...] | None:
  """Return boxes, classes, masks and keypoints, as in structures.Example; None where a record lacks any of them.

  Instances of other categories are left out.

  Args:
    stored: the features of a tf.train.Example.
    size: height, width of the image.
    categories: in the order of classes.
    num_keypoints: P of the source; 0 leaves keypoints out.

  Raises:
    ValueError: arrays that do not fit each other or the image.
  """
  if CROPS not in stored:
    return None
  ids = stored[_CATEGORY].int64_list.value
  points = np.array(stored[_KEYPOINT].float_list.value if num_keypoints else (), np.float32)
  if len(points) != len(ids) * num_keypoints * 3:
    return None
  boxes = np.array(stored[_BOX].float_list.value, np.float32)
  masks = _inflate(stored[CROPS].bytes_list.value, len(ids) * MASK_CROP ** 2)
  if len(boxes) != 4 * len(ids) or masks.max(initial=0) > NO_MASK:
    raise ValueError(f'{len(ids)} categories, {len(boxes)} edges of boxes and their masks do not belong together')
  low, high = boxes.reshape(-1, 2, 2).swapaxes(0, 1)
  if not (np.all(low >= 0) and np.all(high > low) and np.all(high <= size)):
    raise ValueError('a box has no area, or leaves the image')
  class_of = {category.id: k for k, category in enumerate(categories, 1)}
  classes = np.array([class_of.get(id_, 0) for id_ in ids], np.int32)
  columns = (boxes.reshape(-1, 4), classes, masks.reshape(-1, MASK_CROP, MASK_CROP),
             points.reshape(len(ids), num_keypoints, 3))
  return columns if classes.all() else tuple(column[classes > 0] for column in columns)


def _inflate(stored: Sequence[bytes], size: int) -> np.ndarray:
  """Return the `size` bytes of masks, uint8; raises ValueError if they are not as many."""
  try:
    masks = zlib.decompressobj().decompress(stored[0], size + 1)
  except (zlib.error, IndexError, TypeError) as error:
    raise ValueError(f'masks cannot be read: {error}') from error
  if len(masks) != size:
    raise ValueError(f'{len(masks)} bytes of masks or more in place of {size}')
  return np.frombuffer(masks, np.uint8)


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
  """Whether `decode_pixels` reads a file like `images.decode`: not rotated, CMYK, of 16 bits or of another format."""
  try:
    return np.array_equal(decode_pixels(tf.constant(encoded)).numpy(), image)
  except tf.errors.OpError:
    return False


def _png(image: np.ndarray) -> bytes:
  return cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
