"""Inputs for detection: padded batches of annotated images for training, evaluation and test-time augmentation."""

from collections.abc import Sequence

import gin
import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.data import augment, keyed_random, keypoint_pairs
from rethink_tf.data.augment import LargeScaleJitter, Resize
from rethink_tf.data.batching import (
  GREY,
  WHOLE_BATCH,
  BatchedInput,
  BatchShare,
  BufferPool,
  StepFacts,
  aligned_zeros,
  every_nth,
)
from rethink_tf.data.buckets import assign, bucket_shapes, padding_waste
from rethink_tf.data.sampler import SamplingPlan
from rethink_tf.errors import UserError
from rethink_tf.structures import MASK_CROP, Batch, Example, Source, Views

NOT_SCORED = 'it and its objects are not scored'
NO_OFFSET = np.zeros(2, np.int32)


class _Input(BatchedInput):
  """Base class for training and evaluation: padded shapes, and filling of a batch.

  Attributes: those of BatchedInput, and
    padded_shapes: int32 [C, 2] height, width.
    buckets: int32 [N], index of the padded shape of each image.
    dropped_instances: instances dropped because their image has more than max_instances; each image counts once. In
      evaluation that is of no consequence: AP counts the objects of the annotations.
  """

  def __init__(self, source: Source, batch_size: int, resize: Resize | LargeScaleJitter | None, max_instances: int,
               max_unreadable: float, workers: int | None):
    if max_instances < 1:
      raise UserError(f'{type(self).__name__}: max_instances is {max_instances}; use 1 or more')
    self.max_instances = max_instances
    super().__init__(source, batch_size, max_unreadable, workers)
    self.resize = resize or Resize()
    self._buffers = BufferPool()
    self.padded_shapes = bucket_shapes(self.resize.largest, self.resize.max_side)
    sizes = self.resize.largest_sizes(source.sizes)
    self.buckets = assign(sizes, self.padded_shapes)
    if not getattr(source, 'is_placeholder', False):
      logging.info('%s: %d images in %d padded shapes, %.1f %% of the batched pixels are padding', source.name,
                   len(sizes), len(np.unique(self.buckets)),
                   100 * padding_waste(sizes, self.padded_shapes, self.buckets))
    self.dropped_instances = 0
    self._overfull: set[int] = set()  # images with more than max_instances
    self._flip_orders = keypoint_pairs.flip_orders(source.categories, source.num_keypoints)

  def _signature(self) -> Batch:
    b, g, p = self.batch_size, self.max_instances, self.source.num_keypoints
    return Batch(
        images=tf.TensorSpec([b, None, None, 3], tf.uint8), image_sizes=tf.TensorSpec([b, 2], tf.float32),
        scales=tf.TensorSpec([b, 2], tf.float32), original_sizes=tf.TensorSpec([b, 2], tf.int32),
        image_ids=tf.TensorSpec([b], tf.int64), seeds=tf.TensorSpec([b, 2], tf.int32),
        gt_boxes=tf.TensorSpec([b, g, 4], tf.float32), gt_classes=tf.TensorSpec([b, g], tf.int32),
        gt_masks=tf.TensorSpec([b, g, MASK_CROP, MASK_CROP], tf.uint8),
        gt_keypoints=tf.TensorSpec([b, g, p, 3], tf.float32))

  def _empty_batch(self, bucket: int, used: int, rows: int) -> Batch:
    """Return a batch in a bucket's padded shape, of which the first `used` rows are to be filled.

    The other rows have image_id -1, zeros, and sizes that are valid.
    """
    height, width = self.padded_shapes[bucket].tolist()
    images, *others = self._spec
    batch = Batch(self._buffers.take([rows, height, width, 3], images.dtype.as_numpy_dtype),
                  *(aligned_zeros([rows, *spec.shape[1:]], spec.dtype.as_numpy_dtype) for spec in others))
    batch.images[used:] = 0
    batch.image_sizes[:] = batch.original_sizes[:] = height, width
    batch.scales[:] = 1
    batch.image_ids[:] = -1
    return batch

  def _fill(self, batch: Batch, row: int, index: int, size: np.ndarray, example: Example | None,
            offset: np.ndarray = NO_OFFSET) -> None:
    """Write an image, resized to `size`, into a row of the batch; None stands for an unreadable one.

    An image larger than the padded shape is cropped: the row holds the resized image from `offset` (y, x) on.
    """
    batch.image_ids[row] = self.source.image_ids[index]
    batch.original_sizes[row] = self.source.sizes[index]
    visible = np.minimum(size, batch.images.shape[1:3])
    batch.image_sizes[row] = visible
    scale = size / self.source.sizes[index]
    batch.scales[row] = scale
    write_image(batch.images[row], None if example is None else example.image, size, offset)
    if example is None:
      return
    if np.any(visible < size):
      example = augment.crop_instances(example, offset / scale, (offset + visible) / scale, self.resize.tighten)
    keep = self._largest(example.boxes, index)
    count = len(keep)
    batch.gt_boxes[row, :count] = augment.resize_boxes(example.boxes[keep], scale)
    batch.gt_classes[row, :count] = example.classes[keep]
    batch.gt_masks[row, :count] = example.masks[keep]
    batch.gt_keypoints[row, :count] = augment.resize_keypoints(example.keypoints[keep], scale)

  def _largest(self, boxes: np.ndarray, index: int) -> np.ndarray:
    """Return the indices of the instances to keep, ascending: all, or the max_instances largest.

    Training says before it starts how many images have more (evaluation/ceilings.py).
    """
    surplus = len(boxes) - self.max_instances
    if surplus <= 0:
      return np.arange(len(boxes))
    with self._lock:
      self.dropped_instances += 0 if index in self._overfull else surplus
      self._overfull.add(index)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.sort(np.argsort(-areas, kind='stable')[:self.max_instances])


def write_image(out: np.ndarray, image: np.ndarray | None, size: np.ndarray, offset: np.ndarray = NO_OFFSET) -> None:
  """Write an image, resized to `size` and cropped from `offset` on, into a padded uint8 [H, W, 3]; grey for None."""
  height, width = np.minimum(size, out.shape[:2]).tolist()
  out[height:] = out[:height, width:] = 0  # the buffer holds an earlier batch
  window = out[:height, :width]
  if image is None:
    window[:] = GREY
  elif (height, width) == tuple(size.tolist()):
    augment.resize_image(image, window)
  else:
    top, left = offset.tolist()
    whole = np.empty([*size.tolist(), 3], np.uint8)
    augment.resize_image(image, whole)
    window[:] = whole[top:top + height, left:left + width]


@gin.register
class TrainInput(_Input):
  """Endless training batches: short side 800, long side <= 1333, horizontal flip (section 4; Detectron).

  Args:
    source: constructed with training=True.
    batch_size: of the global batch.
    seed: of order and augmentation.
    resize: @Resize() or @LargeScaleJitter(); None is the paper's 800 / 1333.
    max_instances: ground-truth slots of an image, G. Of an image with more, the largest are kept.
    flip: flip each image horizontally with probability 0.5, sampled again in each epoch.
    max_unreadable: tolerated fraction of missing and unreadable images; one always is, unless this is 0. An unreadable
      image is replaced by the next one of its bucket, the same in every run.
    workers: threads that read images; None is one per core.

  Raises:
    UserError: no images, sizes below 1, or a negative seed.
  """

  def __init__(self, source: Source, batch_size: int = 16, seed: int = 0,
               resize: Resize | LargeScaleJitter | None = None, max_instances: int = 100,
               flip: bool = True, max_unreadable: float = 0.1, workers: int | None = None):
    super().__init__(source, batch_size, resize, max_instances, max_unreadable, workers)
    if seed < 0:
      raise UserError(f'TrainInput: seed is {seed}; use 0 or more')
    self.seed = seed
    self.flip = flip
    if flip and source.num_keypoints:
      keypoint_pairs.warn_of_unpaired(source.name, source.categories)
    self.plan = SamplingPlan(self.buckets, batch_size, seed)

  def dataset(self, start_step: int = 0, context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
    """Return batches of steps start_step, start_step + 1, ...: the same in a resumed run as in an uninterrupted one.

    With a context of `strategy.distribute_datasets_from_function`, yields the shares of this host's replicas in turn.
    """
    return self._endless(start_step, context)

  def batch(self, step: int, share: BatchShare = WHOLE_BATCH) -> Batch:
    """Return the batch of a training step: a pure function of seed and step, if the same images are readable."""
    planned = self.plan[step]
    rows = share.rows(self.batch_size)
    planned = planned._replace(indices=planned.indices[rows], epochs=planned.epochs[rows])
    batch = self._empty_batch(planned.bucket, len(planned.indices), len(planned.indices))
    sampled = self._sample(planned.indices, planned.epochs)

    def fill(row: int, index: int) -> None:
      used, example = self._readable(index, planned.bucket)
      flipped, size, offset, batch.seeds[row] = (each[row] for each in sampled)
      if used != index:
        replacement = self._sample([used], planned.epochs[row:row + 1])
        flipped, size, offset, batch.seeds[row] = (each[0] for each in replacement)
      self._fill(batch, row, used, size, augment.flip(example, self._flip_orders) if flipped else example, offset)

    self._fill_rows(fill, planned.indices)
    return batch

  def facts(self, step: int) -> StepFacts:
    """Describe the batch of a step without reading its images.

    Unreadable images, and instances that large-scale jitter crops away, are therefore not accounted for.
    """
    planned = self.plan[step]
    sizes = np.minimum(self._sample(planned.indices, planned.epochs)[1], self.padded_shapes[planned.bucket])
    instances = np.minimum(self.source.num_instances[planned.indices], self.max_instances)
    return StepFacts(epoch=self.plan.epoch(step), image_ids=self.source.image_ids[planned.indices],
                     instances=int(instances.sum()), pixels=int(sizes.astype(np.int64).prod(axis=1).sum()),
                     padded_pixels=self.batch_size * int(self.padded_shapes[planned.bucket].prod()))

  def _sample(self, indices: np.ndarray | list[int], epochs: np.ndarray) -> tuple[np.ndarray, ...]:
    """Sample the augmentation of N images in their epochs.

    Returns flipped bool [N], resized size int32 [N, 2], origin of the crop in it int32 [N, 2], seeds int32 [N, 2].
    """
    ids = self.source.image_ids[indices]
    flipped = (keyed_random.keyed_uniform(self.seed, 'flip', epochs, ids) < 0.5) & self.flip
    sizes = self.resize.sizes(self.source.sizes[indices], keyed_random.keyed_uniform(self.seed, 'scale', epochs, ids))
    offsets = self.resize.offsets(sizes, *(keyed_random.keyed_uniform(self.seed, axis, epochs, ids) for axis in 'yx'))
    return flipped, sizes, offsets, keyed_random.keyed_seeds(self.seed, epochs, ids)

  def _readable(self, index: int, bucket: int) -> tuple[int, Example]:
    """Return an image and its index, or the next readable one of its bucket."""
    example = self._load(index, 'it is replaced by another image')
    if example is not None:
      return index, example
    members = np.flatnonzero(self.buckets == bucket)
    for other in np.roll(members, -1 - np.searchsorted(members, index))[:-1].tolist():
      example = self._load(other, 'it is replaced by another image')
      if example is not None:
        return other, example
    raise UserError(f'{self.source.name}: none of the {len(members)} images of a padded shape can be read')


@gin.register
class EvalInput(_Input):
  """Batches for evaluation: every image once, not flipped, at the largest short side.

  A batch holds images of one padded shape; the last one of each shape is filled up with rows of image_id -1. An
  unreadable image is replaced by a grey one of its annotated size; evaluators leave it out, with its objects.

  Args: as in TrainInput.

  Raises:
    UserError: no images, or sizes below 1.
  """

  def __init__(self, source: Source, batch_size: int = 16, resize: Resize | None = None, max_instances: int = 100,
               max_unreadable: float = 0.1, workers: int | None = None):
    super().__init__(source, batch_size, resize, max_instances, max_unreadable, workers)
    by_bucket = ((b, np.flatnonzero(self.buckets == b)) for b in range(len(self.padded_shapes)))
    self._batches = [(bucket, members[start:start + batch_size]) for bucket, members in by_bucket
                     for start in range(0, len(members), batch_size)]
    self._sizes = self.resize.largest_sizes(source.sizes)

  @property
  def num_batches(self) -> int:
    """Number of batches of an evaluation."""
    return len(self._batches)

  def dataset(self, share: tuple[int, int] = (0, 1)) -> tf.data.Dataset:
    """Return all batches in a fixed order; with a share (k, n) every n-th from k on, for worker k of n."""
    return self._dataset(every_nth(self.num_batches, share))

  def batch(self, step: int) -> Batch:
    """Return batch number `step` of num_batches."""
    bucket, indices = self._batches[step]
    batch = self._empty_batch(bucket, len(indices), self.batch_size)
    batch.seeds[:len(indices)] = keyed_random.keyed_seeds(0, 0, self.source.image_ids[indices])

    def fill(row: int, index: int) -> None:
      self._fill(batch, row, index, self._sizes[index], self._load(index, NOT_SCORED))

    self._fill_rows(fill, indices)
    return batch


class ViewsInput(BatchedInput):
  """Batches for test-time augmentation: every image once, resized from the original to several sizes.

  Args:
    inputs: input of the plain evaluation, which provides source, batch size, workers and max_unreadable.
    resizes: one for each view. The images of a batch have the same padded shape in every view.

  Raises:
    UserError: no views.
  """

  def __init__(self, inputs: EvalInput, resizes: Sequence[Resize]):
    if not resizes:
      raise UserError('ViewsInput: there are no views; use one size or more')
    self._num_views = len(resizes)
    super().__init__(inputs.source, inputs.batch_size, inputs.max_unreadable, inputs.workers)
    self._sizes = [resize.largest_sizes(inputs.source.sizes) for resize in resizes]  # V of [N, 2]
    self._padded_shapes = [bucket_shapes(resize.largest, resize.max_side) for resize in resizes]
    buckets = np.stack([assign(*pair) for pair in zip(self._sizes, self._padded_shapes, strict=True)], axis=1)  # [N, V]
    combinations, members = np.unique(buckets, axis=0, return_inverse=True)
    self._batches = [(combinations[i], images[start:start + inputs.batch_size])
                     for i, images in ((i, np.flatnonzero(members.ravel() == i)) for i in range(len(combinations)))
                     for start in range(0, len(images), inputs.batch_size)]
    self._buffers = BufferPool()

  @property
  def num_batches(self) -> int:
    """Number of batches of an evaluation."""
    return len(self._batches)

  def dataset(self, share: tuple[int, int] = (0, 1)) -> tf.data.Dataset:
    """Return all batches in a fixed order; with a share (k, n) every n-th from k on, for worker k of n."""
    return self._dataset(every_nth(self.num_batches, share))

  def batch(self, step: int) -> Views:
    """Return batch number `step` of num_batches."""
    buckets, indices = self._batches[step]
    shapes = [shapes[bucket].tolist() for shapes, bucket in zip(self._padded_shapes, buckets, strict=True)]
    b, used = self.batch_size, len(indices)
    image_ids, original_sizes = aligned_zeros([b], np.int64) - 1, aligned_zeros([b, 2], np.int32)
    image_ids[:used], original_sizes[:used] = self.source.image_ids[indices], self.source.sizes[indices]
    original_sizes[used:] = shapes[0]
    views = Views(image_ids, original_sizes,
                  images=tuple(self._buffers.take([b, *shape, 3], np.uint8) for shape in shapes),
                  image_sizes=tuple(np.tile(np.array(shape, np.float32), (b, 1)) for shape in shapes),
                  view_scales=tuple(np.ones([b, 2], np.float32) for _ in shapes))
    for images, image_sizes, scales, sizes in zip(*views[2:], self._sizes, strict=True):
      images[used:] = 0
      image_sizes[:used] = sizes[indices]
      scales[:used] = sizes[indices] / self.source.sizes[indices]

    def fill(row: int, index: int) -> None:
      example = self._load(index, NOT_SCORED)
      for images, sizes in zip(views.images, self._sizes, strict=True):
        write_image(images[row], None if example is None else example.image, sizes[index])

    self._fill_rows(fill, indices)
    return views

  @property
  def _limited_by(self) -> str:
    return 'EvalInput'

  def _signature(self) -> Views:
    def views(shape: list[int | None], dtype: tf.DType) -> tuple[tf.TensorSpec, ...]:
      return tuple(tf.TensorSpec([self.batch_size, *shape], dtype) for _ in range(self._num_views))

    return Views(tf.TensorSpec([self.batch_size], tf.int64), tf.TensorSpec([self.batch_size, 2], tf.int32),
                 views([None, None, 3], tf.uint8), views([2], tf.float32), views([2], tf.float32))
