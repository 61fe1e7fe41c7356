"""From a source of annotated photographs to padded batches: the two inputs, for training and for evaluation.

A batch is assembled in NumPy as a pure function of its number (`batch(step)`): the pictures are read, flipped and
resized by a pool of threads straight into their places in the batch, whose memory is aligned as TensorFlow likes it.
tf.data only counts steps and keeps a few batches ahead.
"""

import abc
import atexit
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import gin
import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.data import augment
from rethink_tf.data.augment import Resize
from rethink_tf.data.buckets import assign, canvas_shapes, padding_waste
from rethink_tf.data.images import ImageError
from rethink_tf.data.plan import SamplingPlan
from rethink_tf.errors import UserError
from rethink_tf.structures import MASK_CROP, Batch, Example

_LOGGED = 10  # occurrences that are logged one by one; later ones at each power of ten
_GREY = 127  # what stands for a picture that cannot be read
_ALIGNMENT = 64  # bytes; TensorFlow takes over arrays that begin at a multiple of it without a copy
_BATCHES_AT_ONCE = 2  # so that the pool has work while the last pictures of a batch are finished

_in_flight: set[object] = set()  # calls from TensorFlow's threads into Python


@atexit.register
def _settle() -> None:
  """Waits, when Python ends, until tf.data has filled its buffers and none of its threads is in Python.

  Python kills such a thread as it takes itself down, and the iterator would wait for the dead one for ever.
  """
  quiet = 0
  while quiet < 5:
    time.sleep(0.01)
    quiet = 0 if _in_flight else quiet + 1


class StepFacts(NamedTuple):
  """What a training step sees, for counters and messages."""

  epoch: int  # in which the batch is complete
  image_ids: np.ndarray  # int64 [B]
  instances: int
  pixels: int  # of the resized pictures
  padded_pixels: int  # of the canvases they lie on


class _Input(abc.ABC):
  """What training and evaluation share: canvases, reading, filling a batch, counting what goes wrong.

  Attributes:
    canvases: int32 [C, 2], the padded shapes in use.
    unreadable: indices of pictures that could not be read.
    cut_instances: instances left out because their picture has more than max_instances, counted once.
    failure: the exception that ended the data set, None so far. TensorFlow wraps it into an OpError of many lines;
      callers raise this one instead.
  """

  def __init__(self, source: Any, batch_size: int, resize: Resize | None, max_instances: int, max_unreadable: float,
               workers: int | None):
    if batch_size < 1 or max_instances < 1:
      raise UserError(f'{type(self).__name__}: batch_size is {batch_size} and max_instances {max_instances}; '
                      'use 1 or more')
    if len(source.sizes) == 0:
      raise UserError(f'{source.name}: there are no images in this data set')
    self.source = source
    self.batch_size = batch_size
    self.resize = resize or Resize()
    self.max_instances = max_instances
    self.max_unreadable = max_unreadable
    self.canvases = canvas_shapes(self.resize.largest, self.resize.max_side)
    sizes = self.resize.largest_sizes(source.sizes)
    self.buckets = assign(sizes, self.canvases)
    logging.info('%s: %d images in %d padded shapes, %.1f %% of the batched pixels are padding', source.name,
                 len(sizes), len(np.unique(self.buckets)), 100 * padding_waste(sizes, self.canvases, self.buckets))
    self.unreadable: set[int] = set()
    self.cut_instances = 0
    self._crowded: set[int] = set()
    self.failure: Exception | None = None
    self._tried: set[int] = set()
    self._lock = threading.Lock()
    self._pool = ThreadPoolExecutor(workers or os.cpu_count(), thread_name_prefix='input')
    names = [c.keypoints for c in source.categories if len(c.keypoints) == source.num_keypoints]
    self._flip_order = augment.flip_order(names[0]) if names else np.arange(source.num_keypoints)
    self._spec = self._signature()
    cv2.setNumThreads(1)  # the pool works on several pictures at once; OpenCV's own threads would only get in its way

  @abc.abstractmethod
  def batch(self, step: int) -> Batch:
    """Batch number `step` in NumPy arrays."""

  def _dataset(self, steps: tf.data.Dataset) -> tf.data.Dataset:
    """Batches of the given steps, in this order whatever the threads do."""
    def assemble(step: tf.Tensor) -> Batch:
      tensors = tf.numpy_function(self._assemble, [step], [spec.dtype for spec in self._spec])
      return Batch(*(tf.ensure_shape(tensor, spec.shape) for tensor, spec in zip(tensors, self._spec, strict=True)))

    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return steps.map(assemble, num_parallel_calls=_BATCHES_AT_ONCE).prefetch(1).with_options(options)

  def _assemble(self, step: np.int64) -> tuple[np.ndarray, ...]:
    call = object()
    _in_flight.add(call)
    try:
      return tuple(self.batch(int(step)))
    except Exception as error:
      self.failure = self.failure or error
      raise
    finally:
      _in_flight.discard(call)

  def _signature(self) -> Batch:
    b, g, p = self.batch_size, self.max_instances, self.source.num_keypoints
    return Batch(
        images=tf.TensorSpec([b, None, None, 3], tf.uint8), image_sizes=tf.TensorSpec([b, 2], tf.float32),
        scales=tf.TensorSpec([b, 2], tf.float32), original_sizes=tf.TensorSpec([b, 2], tf.int32),
        image_ids=tf.TensorSpec([b], tf.int64), seeds=tf.TensorSpec([b, 2], tf.int32),
        gt_boxes=tf.TensorSpec([b, g, 4], tf.float32), gt_classes=tf.TensorSpec([b, g], tf.int32),
        gt_masks=tf.TensorSpec([b, g, MASK_CROP, MASK_CROP], tf.uint8),
        gt_keypoints=tf.TensorSpec([b, g, p, 3], tf.float32))

  def _empty_batch(self, bucket: int) -> Batch:
    """Zeros on a bucket's canvas; rows that stay so have image_id -1 and harmless sizes."""
    height, width = self.canvases[bucket].tolist()
    images, *others = self._spec
    batch = Batch(_aligned_zeros([self.batch_size, height, width, 3], images.dtype.as_numpy_dtype),
                  *(_aligned_zeros(spec.shape.as_list(), spec.dtype.as_numpy_dtype) for spec in others))
    batch.image_sizes[:] = batch.original_sizes[:] = height, width
    batch.scales[:] = 1
    batch.image_ids[:] = -1
    return batch

  def _fill(self, batch: Batch, row: int, index: int, size: np.ndarray, example: Example | None) -> None:
    """Puts a picture, resized to `size`, into a row of the batch; None stands for one that cannot be read."""
    height, width = size.tolist()
    batch.image_ids[row] = self.source.image_ids[index]
    batch.original_sizes[row] = self.source.sizes[index]
    batch.image_sizes[row] = size
    scale = size / self.source.sizes[index]
    batch.scales[row] = scale
    window = batch.images[row, :height, :width]
    if example is None:
      window[:] = _GREY
      return
    augment.resize_image(example.image, window)
    keep = self._largest(example.boxes, index)
    count = len(keep)
    batch.gt_boxes[row, :count] = augment.resize_boxes(example.boxes[keep], scale)
    batch.gt_classes[row, :count] = example.classes[keep]
    batch.gt_masks[row, :count] = example.masks[keep]
    batch.gt_keypoints[row, :count] = augment.resize_keypoints(example.keypoints[keep], scale)

  def _largest(self, boxes: np.ndarray, index: int) -> np.ndarray:
    """The instances that find a slot, in their order: all, or the max_instances largest."""
    surplus = len(boxes) - self.max_instances
    if surplus <= 0:
      return np.arange(len(boxes))
    if self._report(self._crowded, index, f'image {self.source.image_ids[index]} has {len(boxes)} instances, the '
                    f'{self.max_instances} largest are kept (max_instances)'):
      with self._lock:
        self.cut_instances += surplus
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.sort(np.argsort(-areas, kind='stable')[:self.max_instances])

  def _load(self, index: int, consequence: str) -> Example | None:
    """Reads a picture; None when it cannot be read, which is counted and logged with its consequence.

    Raises:
      UserError: too many pictures of the data set cannot be read.
    """
    self._tried.add(index)
    try:
      return self.source.load(index)
    except ImageError as error:
      message = f'{error}; {consequence}'
    self._report(self.unreadable, index, message)
    count, tried = len(self.unreadable), len(self._tried)
    # A share of the first hundred at least, so that one bad picture in the first batch ends nothing.
    if count > self.max_unreadable * max(tried, min(100, len(self.source.sizes))):
      raise UserError(f'{self.source.name}: {count} of the first {tried} images cannot be read, more than '
                      f'max_unreadable = {self.max_unreadable:g}; mend or remove them, the last was: {message}')
    return None

  def _report(self, found: set[int], index: int, message: str) -> bool:
    """Notes an image once and logs it: the first ones, then how many they are. False if it was known."""
    with self._lock:
      if index in found:
        return False
      found.add(index)
      count = len(found)
    if count <= _LOGGED:
      logging.warning('%s: %s', self.source.name, message)
    elif str(count).strip('0') == '1':
      logging.warning('%s: %d images like this so far: %s', self.source.name, count, message)
    return True

  def _together(self, fill: Callable[[int, int], None], indices: np.ndarray) -> None:
    """Calls fill(row, index) for each row of a batch, on the pool; the first exception is raised here.

    Raises:
      UserError: as the rows raise it.
      RuntimeError: anything unforeseen, naming the picture.
    """
    def named(row: int, index: int) -> None:
      try:
        fill(row, index)
      except UserError:
        raise
      except Exception as error:
        raise RuntimeError(f'{self.source.name}: reading image {self.source.image_ids[index]} failed: '
                           f'{type(error).__name__}: {error}') from error

    for _ in self._pool.map(named, range(len(indices)), indices.tolist()):
      pass


def _aligned_zeros(shape: list[int], dtype: np.dtype) -> np.ndarray:
  """Zeros that begin at a multiple of _ALIGNMENT bytes."""
  size = int(np.prod(shape)) * np.dtype(dtype).itemsize
  buffer = np.zeros(size + _ALIGNMENT, np.uint8)
  start = -buffer.ctypes.data % _ALIGNMENT
  return buffer[start:start + size].view(dtype).reshape(shape)


@gin.register
class TrainInput(_Input):
  """Endless training batches: short side 800, long side <= 1333, horizontal flip (recipe, "Data").

  Args:
    source: constructed with training=True.
    batch_size: of the global batch.
    seed: of order and augmentation.
    resize: @Resize(); None is the paper's 800 / 1333.
    max_instances: ground-truth slots of an image, G. Of an image with more, the largest are kept.
    flip: mirror each image with probability 0.5, anew in each epoch.
    max_unreadable: share of unreadable pictures that is put up with. One that cannot be read is replaced by the next
      of its bucket, the same in every run.
    workers: threads that read pictures; None is one per core.

  Raises:
    UserError: no images, sizes below 1, or a negative seed.
  """

  def __init__(self, source: Any, batch_size: int = 16, seed: int = 0, resize: Resize | None = None,
               max_instances: int = 100, flip: bool = True, max_unreadable: float = 0.1, workers: int | None = None):
    super().__init__(source, batch_size, resize, max_instances, max_unreadable, workers)
    if seed < 0:
      raise UserError(f'TrainInput: seed is {seed}; use 0 or more')
    self.seed = seed
    self.flip = flip
    self.plan = SamplingPlan(self.buckets, batch_size, seed)

  def dataset(self, start_step: int = 0) -> tf.data.Dataset:
    """Batches of steps start_step, start_step + 1, ...: the same whether the run began there or before."""
    return self._dataset(tf.data.Dataset.range(start_step, tf.int64.max))

  def batch(self, step: int) -> Batch:
    """The batch of a training step, a pure function of seed and step, as long as the same pictures can be read."""
    planned = self.plan[step]
    batch = self._empty_batch(planned.bucket)
    drawn = self._draw(planned.indices, planned.epochs)

    def fill(row: int, index: int) -> None:
      found, example = self._readable(index, planned.bucket)
      flipped, size, batch.seeds[row] = (each[row] for each in drawn)
      if found != index:
        flipped, size, batch.seeds[row] = (each[0] for each in self._draw([found], planned.epochs[row:row + 1]))
      self._fill(batch, row, found, size, augment.flip(example, self._flip_order) if flipped else example)

    self._together(fill, planned.indices)
    return batch

  def facts(self, step: int) -> StepFacts:
    """What the batch of a step holds, without reading it (nor knowing which pictures will prove unreadable)."""
    planned = self.plan[step]
    _, sizes, _ = self._draw(planned.indices, planned.epochs)
    instances = np.minimum(self.source.num_instances[planned.indices], self.max_instances)
    return StepFacts(epoch=self.plan.epoch(step), image_ids=self.source.image_ids[planned.indices],
                     instances=int(instances.sum()), pixels=int(sizes.astype(np.int64).prod(axis=1).sum()),
                     padded_pixels=self.batch_size * int(self.canvases[planned.bucket].prod()))

  def _draw(self, indices: np.ndarray | list[int], epochs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What chance decides for images in epochs -> flipped bool [N], resized size int32 [N, 2], seeds int32 [N, 2]."""
    ids = self.source.image_ids[indices]
    flipped = (augment.keyed_uniform(self.seed, 'flip', epochs, ids) < 0.5) & self.flip
    sizes = self.resize.sizes(self.source.sizes[indices], augment.keyed_uniform(self.seed, 'scale', epochs, ids))
    return flipped, sizes, augment.keyed_seeds(self.seed, epochs, ids)

  def _readable(self, index: int, bucket: int) -> tuple[int, Example]:
    """The picture, or the next one of its bucket that can be read."""
    example = self._load(index, 'another image takes its place')
    if example is not None:
      return index, example
    members = np.flatnonzero(self.buckets == bucket)
    for other in np.roll(members, -1 - np.searchsorted(members, index))[:-1].tolist():
      example = self._load(other, 'another image takes its place')
      if example is not None:
        return other, example
    raise UserError(f'{self.source.name}: none of the {len(members)} images of a padded shape can be read')


@gin.register
class EvalInput(_Input):
  """Batches for evaluation: every image once, unflipped, at the largest short side.

  A batch holds images of one canvas; the last of each canvas is filled up with rows of image_id -1. A picture that
  cannot be read is an empty grey one of its listed size, so that its objects count as missed.

  Args: as in TrainInput.

  Raises:
    UserError: no images, or sizes below 1.
  """

  def __init__(self, source: Any, batch_size: int = 16, resize: Resize | None = None, max_instances: int = 100,
               max_unreadable: float = 0.1, workers: int | None = None):
    super().__init__(source, batch_size, resize, max_instances, max_unreadable, workers)
    self._batches = [(bucket, members[start:start + batch_size])
                     for bucket, members in ((b, np.flatnonzero(self.buckets == b)) for b in range(len(self.canvases)))
                     for start in range(0, len(members), batch_size)]
    self._sizes = self.resize.largest_sizes(source.sizes)

  @property
  def num_batches(self) -> int:
    return len(self._batches)

  def dataset(self) -> tf.data.Dataset:
    """All batches, in a fixed order."""
    return self._dataset(tf.data.Dataset.range(self.num_batches))

  def batch(self, step: int) -> Batch:
    """Batch number `step` of num_batches."""
    bucket, indices = self._batches[step]
    batch = self._empty_batch(bucket)
    batch.seeds[:len(indices)] = augment.keyed_seeds(0, 0, self.source.image_ids[indices])

    def fill(row: int, index: int) -> None:
      self._fill(batch, row, index, self._sizes[index], self._load(index, 'its objects count as missed'))

    self._together(fill, indices)
    return batch
