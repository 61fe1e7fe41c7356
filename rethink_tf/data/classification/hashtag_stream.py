"""Endless training batches of images with hashtags, from shards, in memory that does not grow with their number.

An epoch goes through the shards in an order of its own. As many of them as hold `shuffle_buffer` images form a group,
whose images are mixed. An image comes as often as its tags ask (`hashtags.replication`). What stands where follows
from seed, epoch and the shards' sums alone, so that any step is reached at once, for a resume: nothing is simulated or
read on the way, and only the columns of two or three groups are held.
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
from rethink_tf.data.classification.hashtags import image_replication, replication
from rethink_tf.data.classification.input import random_crop, resized
from rethink_tf.data.images import ImageError
from rethink_tf.data.keyed_random import keyed_bits, keyed_uniform
from rethink_tf.errors import UserError
from rethink_tf.structures import LabelledImages

_ONE = 1 << 20  # factors are whole multiples of 2^-20: their sums are exact, on every machine
_GROUPS_KEPT = 3  # the one in use, the next one, and one for whoever looks back
_COPIES = 1 << 40  # an image's copies are keyed apart by multiples of it
_READERS = 16  # threads; on gs:// they mostly wait


class Drawn(NamedTuple):
  """Some images of the stream, a column each."""

  epochs: np.ndarray  # int64 [n]
  shards: np.ndarray  # int64 [n] number of the shard
  images: np.ndarray  # int64 [n] place in the shard
  copies: np.ndarray  # int64 [n] 0 for the first time in an epoch, 1 for the second ...
  ids: np.ndarray  # int64 [n] of the source


class _Group(NamedTuple):
  drawn: Drawn  # in the order of the stream
  columns: dict[int, ShardColumns]


class _Epoch(NamedTuple):
  order: np.ndarray  # [S] the shards in their order
  ends: np.ndarray  # [S] images drawn after each of them
  groups: np.ndarray  # [g + 1] where the groups begin in `order`, and the end


class StreamPlan:
  """The endless sequence of images that one host reads.

  An image of factor r comes floor(r) or ceil(r) times an epoch, r times in the mean: the factors of a shard are
  added up from a random start, and an image comes once for each whole number that its own passes (systematic
  sampling). The number drawn from a shard is then known from the sum of its factors.

  Args:
    source: HashtagSource.
    shards: numbers of those that this host reads.
    sampling, threshold: as for `hashtags.replication`.
    shuffle_buffer: images that are mixed, at least one shard.
    seed: of everything.
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
    self._lock = threading.RLock()  # otherwise all threads would read the same columns
    self._epoch = functools.lru_cache(maxsize=2)(self._plan_epoch)
    self._group = functools.lru_cache(maxsize=_GROUPS_KEPT)(self._draw_group)

  @property
  def mean_epoch(self) -> float:
    """Images drawn in an epoch, in the mean."""
    return float(self._sums.sum()) / _ONE

  def draw(self, start: int, count: int) -> tuple[Drawn, dict[int, ShardColumns]]:
    """Images start .. start + count of the stream, and the columns of their shards."""
    parts, columns = [], {}
    with self._lock:
      while count:
        epoch = self.epoch_of(start)
        plan = self._epoch(epoch)
        offset = start - self.before(epoch)
        shard = int(np.searchsorted(plan.ends, offset, side='right'))
        number = int(np.searchsorted(plan.groups, shard, side='right')) - 1
        skipped = offset - (int(plan.ends[plan.groups[number] - 1]) if number else 0)
        group = self._group(epoch, number)
        part = Drawn(*(column[skipped:skipped + count] for column in group.drawn))
        columns |= {shard: group.columns[shard] for shard in np.unique(part.shards).tolist()}
        parts.append(part)
        start, count = start + len(part.ids), count - len(part.ids)
    return Drawn(*(np.concatenate(column) for column in zip(*parts, strict=True))), columns

  def epoch_of(self, place: int) -> int:
    """The epoch of an image of the stream."""
    while self.before(len(self._before) - 1) <= place:
      self.before(len(self._before))
    return int(np.searchsorted(self._before, place, side='right')) - 1

  def before(self, epoch: int) -> int:
    """Images drawn before an epoch begins."""
    while len(self._before) <= epoch:
      last = len(self._before) - 1
      self._before.append(self._before[last] + int(self._drawn(last, self._shards, self._sums).sum()))
    return self._before[epoch]

  def copies(self, epoch: int, shard: int, columns: ShardColumns) -> np.ndarray:
    """How often each image of a shard comes in an epoch -> int64 [n]."""
    sums = np.cumsum(self._image_factors(columns)) + self._start(epoch, shard)
    return np.diff(sums // _ONE, prepend=0)

  def _start(self, epoch: int, shards: np.ndarray | int) -> np.ndarray:
    """Where the sum of factors begins: uniform on the multiples of 2^-20 in [0, 1), in these units."""
    return (keyed_bits(self._seed, 'resample', epoch, shards) % np.uint64(_ONE)).astype(np.int64)

  def _drawn(self, epoch: int, shards: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Images that an epoch draws from each shard: int64 [S]."""
    return (sums + self._start(epoch, shards)) // _ONE

  def _image_factors(self, columns: ShardColumns) -> np.ndarray:
    return image_replication(self._tag_factors, columns.tags, columns.starts)

  def _sum_shards(self) -> np.ndarray:
    """The sum of the factors of each shard's images; read once from all columns, unless every image comes once."""
    images = np.array([self._source.shards[i].images for i in self._shards], np.int64)
    if (self._tag_factors == _ONE).all():
      return images * _ONE
    with ThreadPoolExecutor(_READERS) as pool:
      sums = pool.map(lambda i: int(self._image_factors(self._source.columns(i)).sum()), self._shards.tolist())
      return np.array(list(sums), np.int64)

  def _plan_epoch(self, epoch: int) -> _Epoch:
    rank = np.argsort(keyed_bits(self._seed, 'shards', epoch, self._shards), kind='stable')
    order = self._shards[rank]
    drawn = self._drawn(epoch, order, self._sums[rank])
    groups, held = [0], 0
    for i, count in enumerate(drawn.tolist()):
      held += count
      if held >= self._buffer or i == len(drawn) - 1:
        groups.append(i + 1)
        held = 0
    return _Epoch(order, np.cumsum(drawn), np.array(groups))

  def _draw_group(self, epoch: int, group: int) -> _Group:
    """All images of a group, mixed."""
    plan = self._epoch(epoch)
    first, last = plan.groups[group:group + 2].tolist()
    parts = []
    columns = {shard: self._source.columns(shard) for shard in plan.order[first:last].tolist()}
    for shard in columns:
      times = self.copies(epoch, shard, columns[shard])
      images = np.repeat(np.arange(len(times)), times)
      copies = np.arange(len(images)) - np.repeat(np.cumsum(times) - times, times)
      parts.append((np.full(len(images), shard), images, copies, images + self._source.first_images[shard]))
    shards, images, copies, ids = (np.concatenate(column) for column in zip(*parts, strict=True))
    mixed = np.argsort(keyed_bits(self._seed, 'order', epoch, ids + copies * _COPIES), kind='stable')
    drawn = Drawn(np.full(len(mixed), epoch), shards[mixed], images[mixed], copies[mixed], ids[mixed])
    return _Group(drawn, columns)


@gin.register
class StreamedTrainInput(BatchedInput):
  """Weakly supervised training batches: resampled tags, scale and aspect crop, flip (Mahajan et al. 2018).

  Args:
    source: HashtagSource, constructed with training=True.
    batch_size: of the global batch; the paper's on 336 devices.
    seed: of order, resampling and augmentation.
    sampling: 'square_root' (the paper's), 'natural' or 'uniform'.
    threshold: tags with more images come as they are; None is the most frequent tag's count.
    shuffle_buffer: images that are mixed with one another, on each host; never less than a shard.
    crop_size, area, aspect, flip: as for `ClassificationTrainInput`.
    max_unreadable: share of unreadable images that is put up with. One that cannot be read is replaced by the next
      one of its shard, the same in every run.
    workers: threads that read images; None is one per core.

  Raises:
    UserError: an argument out of range.
  """

  def __init__(self, source: HashtagSource, batch_size: int = 8064, seed: int = 0, sampling: str = 'square_root',
               threshold: float | None = None, shuffle_buffer: int = 65536, crop_size: int = 224,
               area: Sequence[float] = (0.08, 1.0), aspect: Sequence[float] = (3 / 4, 4 / 3), flip: bool = True,
               max_unreadable: float = 0.1, workers: int | None = None) -> None:
    if seed < 0 or crop_size < 1 or shuffle_buffer < 1:
      raise UserError(f'StreamedTrainInput: seed is {seed}, crop_size {crop_size} and shuffle_buffer '
                      f'{shuffle_buffer}; use 0 or more for the seed, 1 or more for the others')
    if not (0 < area[0] <= area[1] <= 1 and 0 < aspect[0] <= aspect[1]):
      raise UserError(f'StreamedTrainInput: area is {tuple(area)} and aspect {tuple(aspect)}; use a least and a '
                      'largest value above 0, an area of at most 1')
    self._failures: list[Exception] = []  # shared with the hosts' shares of this input
    self._planning = threading.Lock()
    self.crop_size, self.seed, self.flip = crop_size, seed, flip
    self.area, self.aspect = tuple(area), tuple(aspect)
    super().__init__(source, batch_size, max_unreadable, workers)
    self._plan_of = functools.partial(StreamPlan, source, sampling=sampling, threshold=threshold,
                                      shuffle_buffer=shuffle_buffer, seed=seed)
    self._attempts = 0
    self._plan: StreamPlan | None = None
    self._host, self._hosts = 0, 1
    self._here: tuple[StreamedTrainInput, int] = self, batch_size  # what this host reads, and how much of it a step

  @property
  def failure(self) -> Exception | None:
    return self._failures[0] if self._failures else None

  @failure.setter
  def failure(self, error: Exception | None) -> None:
    if error is not None and not self._failures:
      self._failures.append(error)

  @property
  def plan(self) -> StreamPlan:
    """Of all shards, or of those that this share reads; made when it is first needed, by one thread."""
    with self._planning:
      if self._plan is None:
        shards = range(self._host, len(self.source.shards), self._hosts)
        self._plan = self._plan_of(shards)
        logging.info('%s: an epoch draws %.0f images from %d shards', self.source.name, self._plan.mean_epoch,
                     len(shards))
      return self._plan

  def dataset(self, start_step: int = 0, context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
    """Batches of steps start_step, start_step + 1, ...: the same whether the run began there or before.

    With a context, as `strategy.distribute_datasets_from_function` gives it, batches of one replica, read from the
    shards of this host alone: host h of H has the shards h, h + H, h + 2H ...

    Raises:
      UserError: fewer shards than hosts.
    """
    if context is None:
      return self._dataset(count_from(start_step))
    share = self.share(context.input_pipeline_id, context.num_input_pipelines,
                       context.get_per_replica_batch_size(self.batch_size))
    replicas = context.num_replicas_in_sync // context.num_input_pipelines
    self._here = share, replicas * share.batch_size
    return share._dataset(count_from(start_step * replicas))

  def share(self, host: int, hosts: int, batch_size: int) -> StreamedTrainInput:
    """This input over the shards host, host + hosts, ... alone; what goes wrong is counted in common."""
    if hosts > len(self.source.shards):
      raise UserError(f'{self.source.name}: has {len(self.source.shards)} shards for {hosts} hosts; convert into at '
                      f'least --shards={hosts}')
    share = copy.copy(self)
    share._host, share._hosts, share.batch_size = host, hosts, batch_size
    share._plan, share._planning, share._spec = None, threading.Lock(), share._signature()
    return share

  def batch(self, step: int) -> LabelledImages:
    """The batch of a step, a pure function of seed and step, as long as the same images can be read."""
    drawn, columns = self.plan.draw(step * self.batch_size, self.batch_size)
    batch = LabelledImages(*(aligned_zeros(spec.shape.as_list(), spec.dtype.as_numpy_dtype) for spec in self._spec))
    batch.image_sizes[:] = self.crop_size
    batch.classes[:] = -1
    keys = drawn.ids + drawn.copies * _COPIES
    flipped = (keyed_uniform(self.seed, 'flip', drawn.epochs, keys) < 0.5) & self.flip
    crops = keyed_bits(self.seed, 'crop', drawn.epochs, keys)

    def fill(row: int, _: int) -> None:
      shard = int(drawn.shards[row])
      found, image = self._readable(shard, int(drawn.images[row]), columns[shard])
      batch.image_ids[row] = self.source.first_images[shard] + found
      tags = columns[shard].tags[columns[shard].starts[found]:columns[shard].starts[found + 1]]
      batch.classes[row, :len(tags)] = tags
      chance = np.random.Generator(np.random.Philox(key=[int(crops[row]), 0]))
      y, x, height, width = random_crop(image.shape[:2], self.area, self.aspect, chance)
      crop = resized(image[y:y + height, x:x + width], self.crop_size, self.crop_size)
      batch.images[row] = crop[:, ::-1] if flipped[row] else crop

    self._together(fill, drawn.ids)
    return batch

  def facts(self, step: int) -> StepFacts:
    """What the global batch of a step holds, without reading an image: an instance is an image.

    The epoch is this host's, and the ids of images that other hosts read are -1.
    """
    reader, count = self._here
    drawn, _ = reader.plan.draw(step * count, count)
    ids = np.concatenate([drawn.ids, np.full(self.batch_size - count, -1)])
    pixels = self.batch_size * self.crop_size ** 2
    return StepFacts(epoch=int(drawn.epochs[-1]), image_ids=ids, instances=self.batch_size, pixels=pixels,
                     padded_pixels=pixels)

  def _readable(self, shard: int, image: int, columns: ShardColumns) -> tuple[int, np.ndarray]:
    """An image of a shard and its place there, or the next one that can be read."""
    count = len(columns.offsets)
    for other in range(image, image + count):
      pixels = self._load_at(shard, other % count, int(columns.offsets[other % count]))
      if pixels is not None:
        return other % count, pixels
    raise UserError(f'{self.source.name}: none of the {count} images of {self.source.shards[shard].file} can be read')

  def _load_at(self, shard: int, image: int, offset: int) -> np.ndarray | None:
    """Reads an image; None when it cannot be read, which is counted and logged.

    Raises:
      UserError: too many images cannot be read.
    """
    self._attempts += 1  # a number, where `Feed` keeps a set: it would grow with the images
    try:
      return self.source.load_at(shard, offset)
    except ImageError as error:
      message = f'{error}; another image takes its place'
    self._report(self.unreadable, int(self.source.first_images[shard]) + image, message)
    count = len(self.unreadable)
    tried = min(self._attempts, len(self.source.image_ids))
    if count > self.max_unreadable * max(tried, min(100, len(self.source.image_ids))):
      raise UserError(f'{self.source.name}: {count} of the first {tried} images cannot be read, more than '
                      f'max_unreadable = {self.max_unreadable:g}; convert again, the last was: {message}')
    return None

  def _signature(self) -> LabelledImages:
    b, s = self.batch_size, self.crop_size
    return LabelledImages(
      images=tf.TensorSpec([b, s, s, 3], tf.uint8), image_sizes=tf.TensorSpec([b, 2], tf.float32),
      image_ids=tf.TensorSpec([b], tf.int64), classes=tf.TensorSpec([b, self.source.most_tags], tf.int32))
