"""Infinite training batches of images with hashtags, read from shards in memory that does not grow with their number.

Each epoch visits the shards in a new random order. Consecutive shards with at least `shuffle_buffer` images form a
group, whose images are shuffled. An image is repeated according to its tags (`hashtags.replication`). The position of
every image follows from seed, epoch and one sum per shard, so that a resume starts at any step in constant time: no
earlier step is simulated or read, and only the columns of two or three groups are in memory.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import gin
import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.data.batching import BatchedInput, StepFacts, aligned_zeros, count_from
from rethink_tf.data.classification.hashtag_shards import HashtagSource, ShardColumns
from rethink_tf.data.classification.input import random_crop, resize
from rethink_tf.data.classification.vocabulary import image_replication, replication
from rethink_tf.data.images import ImageError
from rethink_tf.data.keyed_random import keyed_bits, keyed_uniform
from rethink_tf.errors import UserError
from rethink_tf.structures import LabelledImages

_ONE = 1 << 20  # factors are integer multiples of 2^-20, so that their sums are exact on every machine
_CACHED_GROUPS = 3  # the current one, the next one, and one for readers of earlier steps
_COPIES = 1 << 40  # the random keys of the copies of an image differ by multiples of it
_READERS = 16  # threads; on gs:// they are limited by latency


class Drawn(NamedTuple):
  """Consecutive images of the stream, as columns."""

  epochs: np.ndarray  # int64 [n]
  shards: np.ndarray  # int64 [n] number of the shard
  images: np.ndarray  # int64 [n] position in the shard
  copies: np.ndarray  # int64 [n] 0 for the first occurrence in an epoch, 1 for the second ...
  ids: np.ndarray  # int64 [n] of the source


class _Group(NamedTuple):
  drawn: Drawn  # in the order of the stream
  columns: dict[int, ShardColumns]


class _Epoch(NamedTuple):
  order: np.ndarray  # [S] shards in the order of the epoch
  ends: np.ndarray  # [S] cumulative number of images drawn from them
  groups: np.ndarray  # [g + 1] start of each group in `order`, and the end


class StreamPlan:
  """The infinite sequence of images that one host reads.

  An image of factor r occurs floor(r) or ceil(r) times in an epoch, r times on average: the factors of a shard are
  summed from a random start, and an image occurs once for each integer that its factor passes (systematic sampling).
  The number of images drawn from a shard therefore follows from the sum of its factors.

  Args:
    source: the shards.
    shards: numbers of the shards that this host reads.
    sampling, threshold: as for `hashtags.replication`.
    shuffle_buffer: images that are shuffled together, at least one shard.
    seed: of order and resampling.

  Raises:
    UserError: the shards of this host hold no image, or as for `hashtags.replication`.
  """

  def __init__(self, source: HashtagSource, shards: Sequence[int], sampling: str, threshold: float | None,
               shuffle_buffer: int, seed: int) -> None:
    self._source, self._shards = source, np.array(shards, np.int64)
    self._buffer, self._seed = shuffle_buffer, seed
    factors = replication(source.tag_counts, sampling, threshold)
    self._tag_factors = np.rint(factors * _ONE).astype(np.int64)
    self._sums = self._sum_shards()  # int64 [S]
    if not self._sums.any():
      raise UserError(f'{source.name}: none of the {len(shards)} shards of this host holds an image')
    self._before = [0]  # images drawn before each epoch
    self._lock = threading.RLock()  # otherwise several threads would read the same columns
    self._epoch = functools.lru_cache(maxsize=2)(self._plan_epoch)
    self._group = functools.lru_cache(maxsize=_CACHED_GROUPS)(self._draw_group)

  @property
  def mean_epoch(self) -> float:
    """Mean number of images drawn in an epoch."""
    return float(self._sums.sum()) / _ONE

  def draw(self, start: int, count: int) -> tuple[Drawn, dict[int, ShardColumns]]:
    """Return images start .. start + count of the stream, and the columns of their shards."""
    chunks, columns = [], {}
    with self._lock:
      while count:
        epoch = self.epoch_of(start)
        plan = self._epoch(epoch)
        offset = start - self.before(epoch)
        shard = int(np.searchsorted(plan.ends, offset, side='right'))
        number = int(np.searchsorted(plan.groups, shard, side='right')) - 1
        skipped = offset - (int(plan.ends[plan.groups[number] - 1]) if number else 0)
        group = self._group(epoch, number)
        chunk = Drawn(*(column[skipped:skipped + count] for column in group.drawn))
        columns |= {shard: group.columns[shard] for shard in np.unique(chunk.shards).tolist()}
        chunks.append(chunk)
        start, count = start + len(chunk.ids), count - len(chunk.ids)
    return Drawn(*(np.concatenate(column) for column in zip(*chunks, strict=True))), columns

  def epoch_of(self, position: int) -> int:
    """Return the epoch of the image at a position of the stream."""
    while self.before(len(self._before) - 1) <= position:
      self.before(len(self._before))
    return int(np.searchsorted(self._before, position, side='right')) - 1

  def before(self, epoch: int) -> int:
    """Return the number of images drawn before an epoch begins."""
    while len(self._before) <= epoch:
      last = len(self._before) - 1
      self._before.append(self._before[last] + int(self._count_drawn(last, self._shards, self._sums).sum()))
    return self._before[epoch]

  def copies(self, epoch: int, shard: int, columns: ShardColumns) -> np.ndarray:
    """Return how often each image of a shard occurs in an epoch -> int64 [n]."""
    sums = np.cumsum(self._image_factors(columns)) + self._start(epoch, shard)
    return np.diff(sums // _ONE, prepend=0)

  def _start(self, epoch: int, shards: np.ndarray | int) -> np.ndarray:
    """Return the random start of the sum of factors: uniform in [0, 1), in units of 2^-20."""
    return (keyed_bits(self._seed, 'resample', epoch, shards) % np.uint64(_ONE)).astype(np.int64)

  def _count_drawn(self, epoch: int, shards: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Return the number of images drawn from each shard in an epoch: int64 [S]."""
    return (sums + self._start(epoch, shards)) // _ONE

  def _image_factors(self, columns: ShardColumns) -> np.ndarray:
    return image_replication(self._tag_factors, columns.tags, columns.starts)

  def _sum_shards(self) -> np.ndarray:
    """Return the sum of the factors of each shard; reads all columns once, unless every image occurs once."""
    images = np.array([self._source.shards[i].images for i in self._shards], np.int64)
    if (self._tag_factors == _ONE).all():
      return images * _ONE
    with ThreadPoolExecutor(_READERS) as pool:
      sums = pool.map(lambda i: int(self._image_factors(self._source.columns(i)).sum()), self._shards.tolist())
      return np.array(list(sums), np.int64)

  def _plan_epoch(self, epoch: int) -> _Epoch:
    rank = np.argsort(keyed_bits(self._seed, 'shards', epoch, self._shards), kind='stable')
    order = self._shards[rank]
    drawn = self._count_drawn(epoch, order, self._sums[rank])
    groups, size = [0], 0
    for i, count in enumerate(drawn.tolist()):
      size += count
      if size >= self._buffer or i == len(drawn) - 1:
        groups.append(i + 1)
        size = 0
    return _Epoch(order, np.cumsum(drawn), np.array(groups))

  def _draw_group(self, epoch: int, group: int) -> _Group:
    """Return all images of a group, shuffled."""
    plan = self._epoch(epoch)
    first, last = plan.groups[group:group + 2].tolist()
    rows = []
    columns = {shard: self._source.columns(shard) for shard in plan.order[first:last].tolist()}
    for shard in columns:
      counts = self.copies(epoch, shard, columns[shard])
      images = np.repeat(np.arange(len(counts)), counts)
      copies = np.arange(len(images)) - np.repeat(np.cumsum(counts) - counts, counts)
      rows.append((np.full(len(images), shard), images, copies, images + self._source.first_images[shard]))
    shards, images, copies, ids = (np.concatenate(column) for column in zip(*rows, strict=True))
    order = np.argsort(keyed_bits(self._seed, 'order', epoch, ids + copies * _COPIES), kind='stable')
    drawn = Drawn(np.full(len(order), epoch), shards[order], images[order], copies[order], ids[order])
    return _Group(drawn, columns)


@gin.register
class StreamedTrainInput(BatchedInput):
  """Weakly supervised training batches: resampled tags, scale and aspect crop, flip (Mahajan et al. 2018).

  Args:
    source: constructed with training=True.
    batch_size: of the global batch; the default is the paper's on 336 devices.
    seed: of order, resampling and augmentation.
    sampling: 'square_root' (the paper's), 'natural' or 'uniform'.
    threshold: tags with more images are not replicated; None is the count of the most frequent tag.
    shuffle_buffer: images that are shuffled together on each host; at least one shard.
    crop_size, area, aspect, flip: as for `ClassificationTrainInput`.
    max_unreadable: tolerated fraction of missing and unreadable images; one always is, unless this is 0. An unreadable
      image is replaced by the next one of its shard, the same in every run.
    workers: threads that read images; None is one per core.

  Raises:
    UserError: an argument out of range.
  """

  def __init__(self, source: HashtagSource, batch_size: int = 8064, seed: int = 0, sampling: str = 'square_root',
               threshold: float | None = None, shuffle_buffer: int = 65536, crop_size: int = 224,
               area: tuple[float, float] = (0.08, 1.0), aspect: tuple[float, float] = (3 / 4, 4 / 3), flip: bool = True,
               max_unreadable: float = 0.1, workers: int | None = None) -> None:
    if seed < 0 or crop_size < 1 or shuffle_buffer < 1:
      raise UserError(f'StreamedTrainInput: seed is {seed}, crop_size {crop_size} and shuffle_buffer '
                      f'{shuffle_buffer}; use 0 or more for the seed, 1 or more for the others')
    if not (0 < area[0] <= area[1] <= 1 and 0 < aspect[0] <= aspect[1]):
      raise UserError(f'StreamedTrainInput: area is {tuple(area)} and aspect {tuple(aspect)}; use a minimum '
                      'and a maximum above 0, an area of at most 1')
    self._failures: list[Exception] = []  # shared by the per-host copies of this input
    self._planning = threading.Lock()
    self.crop_size, self.seed, self.flip = crop_size, seed, flip
    self.area, self.aspect = tuple(area), tuple(aspect)
    super().__init__(source, batch_size, max_unreadable, workers)
    self._plan_of = functools.partial(StreamPlan, source, sampling=sampling, threshold=threshold,
                                      shuffle_buffer=shuffle_buffer, seed=seed)
    self._attempts = 0
    self._plan: StreamPlan | None = None
    self._host, self._hosts = 0, 1
    self._local: tuple[StreamedTrainInput, int] = self, batch_size  # input of this host, and its images per step

  @property
  def failure(self) -> Exception | None:
    """The exception that ended the data set, None so far."""
    return self._failures[0] if self._failures else None

  @failure.setter
  def failure(self, error: Exception | None) -> None:
    """Record the first exception."""
    if error is not None and not self._failures:
      self._failures.append(error)

  @property
  def plan(self) -> StreamPlan:
    """The plan of all shards, or of those of this host; created on first use, by one thread."""
    with self._planning:
      if self._plan is None:
        shards = range(self._host, len(self.source.shards), self._hosts)
        self._plan = self._plan_of(shards)
        logging.info('%s: an epoch draws %.0f images from %d shards', self.source.name, self._plan.mean_epoch,
                     len(shards))
      return self._plan

  def dataset(self, start_step: int = 0, context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
    """Return batches of steps start_step, start_step + 1, ...: the same in a resumed run as in an uninterrupted one.

    With a context of `strategy.distribute_datasets_from_function`, yields batches of one replica, read only from the
    shards of this host: host h of H has the shards h, h + H, h + 2H ...

    Raises:
      UserError: fewer shards than hosts.
    """
    if context is None:
      return self._dataset(count_from(start_step))
    share = self.share(context.input_pipeline_id, context.num_input_pipelines,
                       context.get_per_replica_batch_size(self.batch_size))
    replicas = context.num_replicas_in_sync // context.num_input_pipelines
    self._local = share, replicas * share.batch_size
    self._batches_a_step = replicas
    return share._dataset(count_from(start_step * replicas))

  def share(self, host: int, hosts: int, batch_size: int) -> StreamedTrainInput:
    """Return a copy of this input that reads the shards host, host + hosts, ...; failures are counted jointly."""
    if hosts > len(self.source.shards):
      raise UserError(f'{self.source.name}: has {len(self.source.shards)} shards for {hosts} hosts; convert into at '
                      f'least --shards={hosts}')
    share = copy.copy(self)
    share._host, share._hosts, share.batch_size = host, hosts, batch_size
    share._plan, share._planning, share._spec = None, threading.Lock(), share._signature()
    return share

  def batch(self, step: int) -> LabelledImages:
    """Return the batch of a step: a pure function of seed and step, if the same images are readable."""
    drawn, columns = self.plan.draw(step * self.batch_size, self.batch_size)
    batch = LabelledImages(*(aligned_zeros(spec.shape.as_list(), spec.dtype.as_numpy_dtype) for spec in self._spec))
    batch.image_sizes[:] = self.crop_size
    batch.classes[:] = -1
    keys = drawn.ids + drawn.copies * _COPIES
    flipped = (keyed_uniform(self.seed, 'flip', drawn.epochs, keys) < 0.5) & self.flip
    crops = keyed_bits(self.seed, 'crop', drawn.epochs, keys)

    def fill(row: int, _: int) -> None:
      shard = int(drawn.shards[row])
      used, image = self._readable(shard, int(drawn.images[row]), columns[shard])
      batch.image_ids[row] = self.source.first_images[shard] + used
      tags = columns[shard].tags[columns[shard].starts[used]:columns[shard].starts[used + 1]]
      batch.classes[row, :len(tags)] = tags
      rng = np.random.Generator(np.random.Philox(key=[int(crops[row]), 0]))
      y, x, height, width = random_crop(image.shape[:2], self.area, self.aspect, rng)
      crop = resize(image[y:y + height, x:x + width], self.crop_size, self.crop_size)
      batch.images[row] = crop[:, ::-1] if flipped[row] else crop

    self._fill_rows(fill, drawn.ids)
    return batch

  def facts(self, step: int) -> StepFacts:
    """Describe the global batch of a step without reading its images; every image counts as one instance.

    The epoch is that of this host, and the ids of images on other hosts are -1.
    """
    reader, count = self._local
    drawn, _ = reader.plan.draw(step * count, count)
    ids = np.concatenate([drawn.ids, np.full(self.batch_size - count, -1)])
    pixels = self.batch_size * self.crop_size ** 2
    return StepFacts(epoch=int(drawn.epochs[-1]), image_ids=ids, instances=self.batch_size, pixels=pixels,
                     padded_shape=(self.crop_size,) * 2)

  def _readable(self, shard: int, image: int, columns: ShardColumns) -> tuple[int, np.ndarray]:
    """Return an image of a shard and its position there, or the next readable one."""
    count = len(columns.offsets)
    for other in range(image, image + count):
      pixels = self._load_at(shard, other % count, int(columns.offsets[other % count]))
      if pixels is not None:
        return other % count, pixels
    raise UserError(f'{self.source.name}: none of the {count} images of {self.source.shards[shard].file} can be read')

  def _load_at(self, shard: int, image: int, offset: int) -> np.ndarray | None:
    """Read an image; None if it is unreadable, which is counted and logged.

    Raises:
      UserError: too many unreadable images.
    """
    self._attempts += 1  # a count; the set of BatchedInput would grow with the number of images
    try:
      return self.source.load_at(shard, offset)
    except ImageError as error:
      message = f'{error}; it is replaced by another image'
    self._report(self.unreadable, int(self.source.first_images[shard]) + image, message)
    self._check_unreadable(min(self._attempts, len(self.source.image_ids)), message)
    return None

  def _signature(self) -> LabelledImages:
    b, s = self.batch_size, self.crop_size
    return LabelledImages(
      images=tf.TensorSpec([b, s, s, 3], tf.uint8), image_sizes=tf.TensorSpec([b, 2], tf.float32),
      image_ids=tf.TensorSpec([b], tf.int64), classes=tf.TensorSpec([b, self.source.most_tags], tf.int32))
