"""Inputs for detection: padded batches of annotated images for training and evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

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
  EachImageOnce,
  StepFacts,
  aligned_zeros,
)
from rethink_tf.data.buckets import assign, padding_waste
from rethink_tf.data.colours import ColourJitter
from rethink_tf.data.detection import graph_input
from rethink_tf.data.mixing import Buffers, CopyPaste, Mosaic, select
from rethink_tf.data.sampler import PlannedBatch, SamplingPlan
from rethink_tf.data.shared_reads import SharedReads
from rethink_tf.errors import UserError
from rethink_tf.structures import MASK_CROP, Batch, Example, Source

NOT_SCORED = 'it and its objects are not scored'
NO_OFFSET = np.zeros(2, np.int32)


class _Input(BatchedInput):
  """Base class for training and evaluation: padded shapes, and filling of a batch.

  Attributes: those of BatchedInput, and
    padded_shapes: int32 [C, 2] height, width.
    buckets: int32 [N], index of the padded shape of each image.
    dropped_instances: instances dropped because their image has more than max_instances; each image counts once. In
      evaluation that is of no consequence: AP counts the objects of the annotations.
    flip_orders: int [K, P], source index of each keypoint in a flip.
  """

  def __init__(self, source: Source, batch_size: int, resize: Resize | LargeScaleJitter | None, max_instances: int,
               max_unreadable: float, workers: int | None):
    if max_instances < 1:
      raise UserError(f'{type(self).__name__}: max_instances is {max_instances}; use 1 or more')
    self.max_instances = max_instances
    super().__init__(source, batch_size, max_unreadable, workers)
    self.resize = resize or Resize()
    self._buffers = BufferPool()
    self.padded_shapes = self.resize.padded_shapes
    sizes = self.resize.largest_sizes(source.sizes)
    self.buckets = assign(sizes, self.padded_shapes)
    if not getattr(source, 'is_placeholder', False):
      logging.info('%s: %d images in %d padded shapes, %.1f %% of the batched pixels are padding', source.name,
                   len(sizes), len(np.unique(self.buckets)),
                   100 * padding_waste(sizes, self.padded_shapes, self.buckets))
    self.dropped_instances = 0
    self._overfull: set[int] = set()  # images with more than max_instances
    self.flip_orders = keypoint_pairs.flip_orders(source.categories, source.num_keypoints)

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

    The other rows have image_id -1, zeros, and sizes that are valid. Images and masks of the first are undefined.
    """
    height, width = self.padded_shapes[bucket].tolist()
    small = {name: aligned_zeros([rows, *spec.shape[1:]], spec.dtype.as_numpy_dtype)
             for name, spec in self._spec._asdict().items() if name not in ('images', 'gt_masks')}
    batch = Batch(images=self._buffers.take([rows, height, width, 3], np.uint8),
                  gt_masks=self._buffers.take([rows, *self._spec.gt_masks.shape[1:]], np.uint8), **small)
    batch.images[used:] = batch.gt_masks[used:] = 0
    batch.image_sizes[:] = batch.original_sizes[:] = height, width
    batch.scales[:] = 1
    batch.image_ids[:] = -1
    return batch

  def _fill(self, batch: Batch, row: int, index: int, size: np.ndarray, example: Example | None,
            offset: np.ndarray = NO_OFFSET) -> None:
    """Write an image, resized to `size`, into a row of the batch; None stands for an unreadable one.

    An image larger than the padded shape is cropped: the row holds the resized image from `offset` (y, x) on.
    """
    visible = np.minimum(size, batch.images.shape[1:3])
    scale = self._describe(batch, row, index, size, visible)
    write_image(batch.images[row], None if example is None else example.image, size, offset)
    if example is None:
      batch.gt_masks[row] = 0
      return
    if np.any(visible < size):
      example = augment.crop_instances(example, offset / scale, (offset + visible) / scale, self.resize.tighten)
    example = select(example, self._largest(example.boxes, index))
    write_instances(batch, row, example._replace(boxes=augment.resize_boxes(example.boxes, scale),
                                                 keypoints=augment.resize_keypoints(example.keypoints, scale)))

  def _describe(self, batch: Batch, row: int, index: int, size: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Write id and sizes of an image that is resized to `size` into a row of the batch; return its scale [2]."""
    batch.image_ids[row] = self.source.image_ids[index]
    batch.original_sizes[row] = self.source.sizes[index]
    batch.image_sizes[row] = visible
    batch.scales[row] = scale = size / self.source.sizes[index]
    return scale

  def _largest(self, boxes: np.ndarray, index: int) -> np.ndarray | slice:
    """Return which instances to keep: all, or the indices of the max_instances largest, ascending.

    Training says before it starts how many images have more (evaluation/object_limits.py).
    """
    surplus = len(boxes) - self.max_instances
    if surplus <= 0:
      return slice(None)  # no copy
    with self._lock:
      self.dropped_instances += 0 if index in self._overfull else surplus
      self._overfull.add(index)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.sort(np.argsort(-areas, kind='stable')[:self.max_instances])


def write_instances(batch: Batch, row: int, example: Example) -> None:
  """Write the instances of an example, in pixels of the padded shape, into a row of the batch."""
  for field, values in zip((batch.gt_boxes, batch.gt_classes, batch.gt_masks, batch.gt_keypoints), example[1:],
                           strict=True):
    field[row, :len(values)] = values
  batch.gt_masks[row, len(example.masks):] = 0  # the buffer holds an earlier batch


def write_image(out: np.ndarray, image: np.ndarray | None, size: np.ndarray, offset: np.ndarray = NO_OFFSET) -> None:
  """Write an image, resized to `size` and cropped from `offset` on, into a padded uint8 [H, W, 3]; grey for None."""
  height, width = np.minimum(size, out.shape[:2]).tolist()
  out[height:] = out[:height, width:] = 0  # the buffer holds an earlier batch
  if image is None:
    out[:height, :width] = GREY
  else:
    augment.resize_window(image, out[:height, :width], size, offset)


class _Sampled(NamedTuple):
  """The augmentation of N images in their epochs."""

  flipped: np.ndarray  # bool [N]
  sizes: np.ndarray  # int32 [N, 2] of the resized image
  offsets: np.ndarray  # int32 [N, 2] origin of the crop in it
  seeds: np.ndarray  # int32 [N, 2] for the model's own randomness


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
    colours: @ColourJitter(); None leaves colours as they are.
    mix: @CopyPaste() or @Mosaic(), joins each image with the next ones of its batch; None keeps images apart.

  Raises:
    UserError: no images, sizes below 1, a negative seed, or copy-paste on data without masks.
  """

  def __init__(self, source: Source, batch_size: int = 16, seed: int = 0,
               resize: Resize | LargeScaleJitter | None = None, max_instances: int = 100,
               flip: bool = True, max_unreadable: float = 0.1, workers: int | None = None,
               colours: ColourJitter | None = None, mix: CopyPaste | Mosaic | None = None):
    super().__init__(source, batch_size, resize, max_instances, max_unreadable, workers)
    if seed < 0:
      raise UserError(f'TrainInput: seed is {seed}; use 0 or more')
    if mix is not None and mix.needs_masks and not getattr(source, 'has_masks', True):
      raise UserError(f'{source.name}: copy-paste needs masks, and no object has one: leave out TrainInput.mix = '
                      f'@{type(mix).__name__}(), or use gin_configs/augment/mosaic.gin')
    self.seed = seed
    self.flip = flip
    self.colours = colours
    self.mix = mix
    self._mix_buffers = Buffers(self.padded_shapes.max(axis=0))
    self.is_graph = False  # whether TensorFlow reads the images, for its errors
    if flip and source.num_keypoints:
      keypoint_pairs.warn_of_unpaired(source.name, source.categories)
    self.plan = SamplingPlan(self.buckets, batch_size, seed)

  def dataset(self, start_step: int = 0, context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
    """Return batches of steps start_step, start_step + 1, ...: the same in a resumed run as in an uninterrupted one.

    With a context of `strategy.distribute_datasets_from_function`, yields the shares of this host's replicas in turn.
    """
    return self._endless(start_step, context)

  def graph_dataset(self, start_step: int, steps: int, context: tf.distribute.InputContext | None = None
                    ) -> tf.data.Dataset:
    """Return `steps` of these batches as a graph that hosts without this program can run; raises as `check_graph`."""
    if not self.is_graph:  # once: each host asks
      self.check_graph()
    self.is_graph = True
    return graph_input.dataset(self, start_step, steps, context)

  def check_graph(self) -> None:
    """Raise UserError unless `graph_dataset` can read the source."""
    graph_input.check(self)

  def batch(self, step: int, share: BatchShare = WHOLE_BATCH) -> Batch:
    """Return the batch of a training step: a pure function of seed and step, if the same images are readable."""
    rows = share.rows(self.batch_size)
    planned = [each._replace(indices=each.indices[rows], epochs=each.epochs[rows]) for each in self._planned(step)]
    indices, epochs, bucket = planned[0]
    batch = self._empty_batch(bucket, len(indices), len(indices))
    sampled = [self.sample(each.indices, each.epochs, purpose) for each, purpose in zip(planned, self._purposes,
                                                                                         strict=True)]
    mixed = self._mixed(indices, epochs)
    needed = [[int(each.indices[row]) for each in (planned if mixed[row] else planned[:1])]
              for row in range(len(indices))]

    # Made here, in one go, since each takes five times as long between the images.
    generators = [self._generator(*key) if mix else None for *key, mix in
                  zip(indices.tolist(), epochs.tolist(), mixed.tolist(), strict=True)]

    def prepared(k: int, row: int, images: dict[int, tuple[int, Example]]) -> tuple[int, Example, _Sampled]:
      index, epoch = needed[row][k], int(planned[k].epochs[row])
      used, example = images[index]
      drawn = _Sampled(*(each[row] for each in sampled[k]))
      if used != index:
        drawn = _Sampled(*(each[0] for each in self.sample([used], np.array([epoch]), self._purposes[k])))
      return used, self._recolour(augment.flip(example, self.flip_orders) if drawn.flipped else example, epoch,
                                  int(self.source.image_ids[used]), self._purposes[k]), drawn

    def fill(row: int, images: dict[int, tuple[int, Example]]) -> None:
      used, example, drawn = prepared(0, row, images)
      batch.seeds[row] = drawn.seeds
      if mixed[row]:
        others = [prepared(k, row, images)[1:] for k in range(1, len(planned))]
        rng = generators[row] if used == indices[row] else self._generator(used, int(epochs[row]))
        self._fill_mixed(batch, row, used, rng, [(example, drawn), *others])
      else:
        self._fill(batch, row, used, drawn.sizes, example, drawn.offsets)

    reads = SharedReads(needed, self._readable, fill)
    self._fill_rows(reads, reads.indices)
    return batch

  def _generator(self, index: int, epoch: int) -> np.random.Generator:
    """Return the generator for how an image is joined with others in an epoch."""
    return keyed_random.keyed_generator(self.seed, 'mix', epoch, int(self.source.image_ids[index]))

  def _fill_mixed(self, batch: Batch, row: int, index: int, rng: np.random.Generator,
                  images: Sequence[tuple[Example, _Sampled]]) -> None:
    """Write an image joined with others into a row of the batch."""
    examples, drawn = zip(*images, strict=True)
    padded = batch.images[row]
    shape, sizes = np.array(padded.shape[:2]), np.array([each.sizes for each in drawn])
    windows = self.mix.windows(sizes, np.array([each.offsets for each in drawn]), shape, rng)
    extent = self.mix.extents(np.minimum(sizes, shape)[None], shape)[0]
    self._describe(batch, row, index, windows[0].size, extent)
    height, width = extent.tolist()
    padded[height:] = padded[:height, width:] = 0
    joined = self.mix.join(padded[:height, :width], self._mix_buffers, examples, windows, self.resize.tighten, rng)
    write_instances(batch, row, select(joined, self._largest(joined.boxes, index)))

  def facts(self, step: int) -> StepFacts:
    """Describe the batch of a step without reading its images.

    Unreadable images, instances that large-scale jitter crops away, and those that are pasted, covered or joined in a
    mosaic, are therefore not accounted for.
    """
    planned = self._planned(step)
    indices, epochs, bucket = planned[0]
    shape = self.padded_shapes[bucket]
    visible = np.stack([np.minimum(self.sample(each.indices, each.epochs, purpose).sizes, shape)
                        for each, purpose in zip(planned, self._purposes, strict=True)], axis=1)  # [B, images, 2]
    sizes = visible[:, 0]
    if self.mix is not None:
      sizes = np.where(self._mixed(indices, epochs)[:, None], self.mix.extents(visible, shape), sizes)
    instances = np.minimum(self.source.num_instances[indices], self.max_instances)
    return StepFacts(epoch=self.plan.epoch(step), image_ids=self.source.image_ids[indices],
                     instances=int(instances.sum()), pixels=int(sizes.astype(np.int64).prod(axis=1).sum()),
                     padded_shape=tuple(shape.tolist()))

  @property
  def _purposes(self) -> list[str]:
    """Prefixes of the keys of the images that are joined: an image is sampled anew for each place that it takes."""
    return ['', *(f'mix {k} ' for k in range(1, self.mix.others + 1))] if self.mix is not None else ['']

  def _planned(self, step: int) -> list[PlannedBatch]:
    """Return the images of a step, and for each place of the mix the other images that are joined with them.

    These are the next rows of the global batch, the first after the last; those of the next steps for batches too small
    to hold different ones.
    """
    first = self.plan[step]
    count, rows = len(self._purposes), np.arange(self.batch_size)
    planned = [first]
    for k in range(1, count):
      if self.batch_size >= count:
        planned.append(PlannedBatch(np.roll(first.indices, -k), np.roll(first.epochs, -k), first.bucket))
      else:
        steps, others = np.divmod(rows + k, self.batch_size)
        places = [(self.plan[step + further], row) for further, row in zip(steps.tolist(), others, strict=True)]
        planned.append(PlannedBatch(np.array([each.indices[row] for each, row in places]),
                                    np.array([each.epochs[row] for each, row in places]), first.bucket))
    return planned

  def _mixed(self, indices: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """Return which of N images are joined with others, bool [N]."""
    if self.mix is None:
      return np.zeros(len(indices), bool)
    ids = self.source.image_ids[indices]
    return keyed_random.keyed_uniform(self.seed, 'mixed', epochs, ids) < self.mix.probability

  def _recolour(self, example: Example, epoch: int, image_id: int, purpose: str) -> Example:
    """Change the colours of an image for an epoch."""
    if self.colours is None:
      return example
    uniform = keyed_random.keyed_generator(self.seed, f'{purpose}colours', epoch, image_id).random(5)
    return example._replace(image=self.colours(example.image, uniform))

  def sample(self, indices: np.ndarray | list[int], epochs: np.ndarray, purpose: str = '') -> _Sampled:
    """Sample the augmentation of N images in their epochs; purpose: prefix of the keys."""
    ids = self.source.image_ids[indices]

    def uniform(what: str) -> np.ndarray:
      return keyed_random.keyed_uniform(self.seed, f'{purpose}{what}', epochs, ids)

    sizes = self.resize.sizes(self.source.sizes[indices], uniform('scale'))
    return _Sampled((uniform('flip') < 0.5) & self.flip, sizes, self.resize.offsets(sizes, uniform('y'), uniform('x')),
                    keyed_random.keyed_seeds(self.seed, epochs, ids))

  def _readable(self, index: int) -> tuple[int, Example]:
    """Return an image and its index, or the next readable one of its bucket."""
    example = self._load(index, 'it is replaced by another image')
    if example is not None:
      return index, example
    members = np.flatnonzero(self.buckets == self.buckets[index])
    for other in np.roll(members, -1 - np.searchsorted(members, index))[:-1].tolist():
      example = self._load(other, 'it is replaced by another image')
      if example is not None:
        return other, example
    raise UserError(f'{self.source.name}: none of the {len(members)} images of a padded shape can be read')


@gin.register
class EvalInput(EachImageOnce, _Input):
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
    self.num_batches = len(self._batches)
    self._sizes = self.resize.largest_sizes(source.sizes)

  def batch(self, step: int) -> Batch:
    """Return batch number `step` of num_batches."""
    bucket, indices = self._batches[step]
    batch = self._empty_batch(bucket, len(indices), self.batch_size)
    batch.seeds[:len(indices)] = keyed_random.keyed_seeds(0, 0, self.source.image_ids[indices])

    def fill(row: int, index: int) -> None:
      self._fill(batch, row, index, self._sizes[index], self._load(index, NOT_SCORED))

    self._fill_rows(fill, indices)
    return batch
