"""Training batches without Python: a tf.data graph over records, for hosts on which this program does not run.

Of a TPU slice of several hosts, one runs the program. What it sends to the others is numbers only, a table with a row
for each image of each step: which record, how large, flipped or not, which padded shape, which seeds. They are the
numbers of `TrainInput.batch`: functions of seed and step, so that any step of a resumed run, on any number of hosts,
has the same images. The host of an image reads, decodes, flips, resizes and pads it in operations of TensorFlow.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.python.data.ops import dataset_ops  # wraps raw_ops.TFRecordDatasetV2: no public function has offsets

from rethink_tf.data.augment import LargeScaleJitter
from rethink_tf.data.batching import WHOLE_BATCH, BatchShare
from rethink_tf.data.detection import graph_crop, graph_record
from rethink_tf.data.tfrecord import DamagedRecord, read_at
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.structures import Batch

if TYPE_CHECKING:
  from rethink_tf.data.detection.input import TrainInput

_READERS = 16  # threads
_READ_BUFFER = 1 << 18  # bytes; most records are smaller
_ROWS_AT_A_TIME = 1 << 20  # of the tables, while they are made


def numbers(inputs: TrainInput, start: int, stop: int, share: slice) -> np.ndarray:
  """Return the numbers that determine the images of steps start to stop - 1 in `share` of the global batch, in order.

  int32 [rows, 10]: index into the source; flipped; resized height, width; origin of the crop; padded height, width;
  seeds.
  """
  chunk = max(_ROWS_AT_A_TIME // inputs.batch_size, 1)
  return np.concatenate([_numbers(inputs, step, min(step + chunk, stop), share)
                         for step in range(start, stop, chunk)])


def _numbers(inputs: TrainInput, start: int, stop: int, share: slice) -> np.ndarray:
  indices, epochs, buckets = inputs.plan.steps(start, stop)
  indices, epochs = indices[:, share], epochs[:, share]
  padded = np.repeat(inputs.padded_shapes[buckets], indices.shape[1], axis=0)
  flipped, sizes, offsets, seeds = inputs.sample(indices.ravel(), epochs.ravel())
  columns = [indices.reshape(-1, 1), flipped[:, None], sizes, offsets, padded, seeds]
  return np.concatenate(columns, axis=1).astype(np.int32)


def check(inputs: TrainInput) -> None:
  """Check that a graph can make the batches of an input.

  Raises:
    UserError: the source is not of records, the records of a shard are of another converter or an earlier version, or
      images are recoloured or joined.
  """
  source = inputs.source
  for name, component in (('colours', inputs.colours), ('mix', inputs.mix)):
    if component is not None:
      raise UserError(f'TrainInput.{name} = @{type(component).__name__}() works on images in Python, which runs on one '
                      'host of this TPU only: leave it out, or use a TPU of one host (up to 8 cores)')
  if not hasattr(source, 'locations'):
    raise UserError(f'{source.name}: is read by Python, which runs on one host of this TPU only: convert it with '
                    '`python -m rethink_tf.data.convert` and train from the records '
                    '(--gin_file=gin_configs/data/coco_records.gin)')
  paths, files, offsets = source.locations
  shards, first = np.unique(files, return_index=True)  # a shard is written by one converter
  with ThreadPoolExecutor(_READERS) as pool:
    for _ in pool.map(_check_record, [paths[shard] for shard in shards], offsets[first].tolist()):
      pass


def _check_record(path: str, offset: int) -> None:
  try:
    features = tf.train.Example.FromString(read_at(path, offset)).features.feature
  except (OSError, tf.errors.OpError, DamagedRecord, EOFError, DecodeError) as error:
    raise UserError(f'{path}: {in_one_line(error)}') from error
  if graph_record.CROPS not in features:
    raise UserError(f'{path}: its records have no masks that TensorFlow can read ({graph_record.CROPS}), as those of '
                    'other converters and earlier versions: write them again with `python -m rethink_tf.data.convert`')


def dataset(inputs: TrainInput, start: int, steps: int, context: tf.distribute.InputContext | None = None
            ) -> tf.data.Dataset:
  """Return the batches of steps start to start + steps - 1, as `TrainInput.dataset` does; all of it is a graph.

  Images may differ from the Python input's by one level of 256, nothing else does. An image that cannot be read ends
  the data set: converted records have been read once, and a graph cannot choose another image.
  """
  replicas, local, host = 1, 1, 0
  if context is not None:
    replicas, host = context.num_replicas_in_sync, context.input_pipeline_id
    local = replicas // context.num_input_pipelines
  shares = [BatchShare(host * local + i, replicas) if replicas > 1 else WHOLE_BATCH for i in range(local)]
  rows = slice(shares[0].rows(inputs.batch_size).start, shares[-1].rows(inputs.batch_size).stop)
  make = _Rows(inputs)
  images = tf.data.Dataset.from_tensor_slices(numbers(inputs, start, start + steps, rows))
  images = images.map(make, num_parallel_calls=tf.data.AUTOTUNE)
  options = tf.data.Options()
  options.deterministic = True
  options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
  batches = images.batch(inputs.batch_size // replicas, drop_remainder=True)
  return batches.prefetch(2).with_options(options)


class _Rows:
  """Makes one row of a batch from its numbers, in operations of TensorFlow alone."""

  def __init__(self, inputs: TrainInput):
    source = inputs.source
    paths, files, offsets = source.locations
    self._paths, self._files, self._offsets = tf.constant(paths), tf.constant(files), tf.constant(offsets)
    self._ids, self._sizes = tf.constant(source.image_ids), tf.constant(source.sizes)
    self._flip_orders = tf.constant(inputs.flip_orders.astype(np.int32))
    self._categories, self._num_keypoints = source.categories, source.num_keypoints
    self._slots = inputs.max_instances
    self._cropped = isinstance(inputs.resize, LargeScaleJitter)
    self._tighten = self._cropped and inputs.resize.tighten

  def __call__(self, row: tf.Tensor) -> Batch:
    """Return the row of an image; row: of `numbers`."""
    index, flipped, size, offset, padded, seeds = row[0], row[1] > 0, row[2:4], row[4:6], row[6:8], row[8:]
    found = graph_record.parse(self._read(index), self._categories, self._num_keypoints)
    original = self._sizes[index]
    image = graph_record.decode_pixels(found.encoded)
    image = tf.ensure_shape(tf.cond(flipped, lambda: tf.reverse(image, [1]), lambda: image), [None, None, 3])
    image = resize(image, size)
    found = tf.cond(flipped, lambda: self._flip(found, original[1]), lambda: found)
    visible, scale = tf.minimum(size, padded), tf.cast(size, tf.float64) / tf.cast(original, tf.float64)
    if self._cropped:
      end = offset + visible
      image = image[offset[0]:end[0], offset[1]:end[1]]
      low, high = (tf.cast(corner, tf.float64) / scale for corner in (offset, end))
      found = tf.cond(tf.reduce_any(visible < size),
                      lambda: graph_crop.crop_instances(found, low, high, self._tighten), lambda: found)
    kept, scale = self._largest(found.boxes), tf.cast(scale, tf.float32)
    boxes, classes, masks, keypoints = (tf.gather(column, kept) for column in found[1:])
    return Batch(
      images=pad(image, padded), image_sizes=tf.cast(visible, tf.float32), scales=scale, original_sizes=original,
      image_ids=self._ids[index], seeds=seeds, gt_boxes=self._slotted(boxes * tf.tile(scale, [2])),
      gt_classes=self._slotted(classes), gt_masks=self._slotted(masks),
      gt_keypoints=self._slotted(resize_keypoints(keypoints, scale)))

  def _flip(self, found: graph_record.Instances, width: tf.Tensor) -> graph_record.Instances:
    keypoints = found.keypoints
    if self._num_keypoints:
      keypoints = flip_keypoints(keypoints, width, tf.gather(self._flip_orders, found.classes - 1))
    return found._replace(boxes=flip_boxes(found.boxes, width), masks=found.masks[:, :, ::-1], keypoints=keypoints)

  def _read(self, index: tf.Tensor) -> tf.Tensor:
    """Read a record at its offset, verifying its checksum."""
    record = tf.raw_ops.TFRecordDatasetV2(
      filenames=self._paths[self._files[index]][None], compression_type='', buffer_size=_READ_BUFFER,
      byte_offsets=self._offsets[index][None])
    return dataset_ops._VariantDataset(record, tf.TensorSpec([], tf.string)).take(1).get_single_element()

  def _largest(self, boxes: tf.Tensor) -> tf.Tensor:
    """Return the indices of the instances to keep, ascending: all, or the max_instances largest."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return tf.sort(tf.argsort(-areas, stable=True)[:self._slots])

  def _slotted(self, values: tf.Tensor) -> tf.Tensor:
    """Pad [n, ...] with zeros to [G, ...]."""
    missing = self._slots - tf.shape(values)[0]
    padded = tf.pad(values, [[0, missing]] + [[0, 0]] * (values.shape.rank - 1))
    return tf.ensure_shape(padded, [self._slots, *values.shape[1:]])


def resize(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
  """Resize a uint8 image bilinearly to size int32 [2]; one of this size stays as it is."""
  # Departure: TensorFlow interpolates in float32, OpenCV with 11 bits a weight: of the pixels of COCO's images,
  # 11 % differ from those of the other inputs, by one level of 256 (results/slices.md).
  resized = tf.raw_ops.ResizeBilinear(images=image[None], size=size, half_pixel_centers=True)[0]
  return tf.cast(resized + 0.5, tf.uint8)


def pad(image: tf.Tensor, padded: tf.Tensor) -> tf.Tensor:
  """Pad an image with zeros at the bottom and right."""
  bottom, right = tf.unstack(padded - tf.shape(image)[:2])
  return tf.pad(image, [[0, bottom], [0, right], [0, 0]])


def flip_boxes(boxes: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
  """Flip boxes as `augment.flip_boxes`."""
  y0, x0, y1, x1 = tf.unstack(boxes, axis=1)
  width = tf.cast(width, tf.float32)
  return tf.stack([y0, width - x1, y1, width - x0], axis=1)


def flip_keypoints(keypoints: tf.Tensor, width: tf.Tensor, order: tf.Tensor) -> tf.Tensor:
  """Flip keypoints [n, P, 3] as `augment.flip_keypoints`; order: int32 [n, P]."""
  y, x, visible = tf.unstack(tf.gather(keypoints, order, axis=1, batch_dims=1), axis=2)
  return tf.stack([y, tf.where(visible > 0, tf.cast(width - 1, tf.float32) - x, 0.0), visible], axis=2)


def resize_keypoints(keypoints: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
  """Scale keypoints [n, P, 3] as `augment.resize_keypoints`."""
  positions = tf.where(keypoints[..., 2:] > 0, (keypoints[..., :2] + 0.5) * scale - 0.5, 0.0)
  return tf.concat([positions, keypoints[..., 2:]], axis=2)
