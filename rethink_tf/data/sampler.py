"""The sampling plan: which images form batch number `step`, as a pure function of seed, buckets and batch size.

Each epoch is a seeded permutation of all images. Images join the queue of their bucket (their padded shape); a batch is
emitted whenever a queue holds `batch_size` images. Images left in a queue wait for the next epoch, so that none is
dropped and each occurs exactly once per epoch. Since an image has the same bucket in every epoch, the k-th entry of a
queue is known without simulating the earlier ones: any step is available in constant time, after a resume or on another
host.
"""

import functools
from typing import NamedTuple

import numpy as np


class PlannedBatch(NamedTuple):
  """Images of one batch, each with its epoch: a queue can hold the end of one epoch and the start of the next."""

  indices: np.ndarray  # int64 [B] into the source
  epochs: np.ndarray  # int64 [B]
  bucket: int  # index of their padded shape


class _Epoch(NamedTuple):
  queues: list[np.ndarray]  # for each bucket, the images that join its queue, in order
  batches: np.ndarray  # int64 [batches, 2] bucket, number of the batch within the bucket; in the order of emission


class SamplingPlan:
  """Infinite sequence of batches, each of images of one bucket.

  Args:
    buckets: int [N], bucket of each image (buckets.assign).
    batch_size: images of the global batch.
    seed: of the permutations.
  """

  def __init__(self, buckets: np.ndarray, batch_size: int, seed: int = 0):
    self.batch_size = batch_size
    self.seed = seed
    self._buckets = np.asarray(buckets)
    self._counts = np.bincount(self._buckets).astype(np.int64)  # [buckets] number of images
    self._epoch = functools.lru_cache(maxsize=8)(self._plan_epoch)  # 2 MB an epoch for COCO

  def __getitem__(self, step: int) -> PlannedBatch:
    """Return the batch of a step, counted from 0."""
    epoch = self.epoch(step)
    bucket, number = self._epoch(epoch).batches[step - self.batches_before(epoch)].tolist()
    positions = number * self.batch_size + np.arange(self.batch_size)  # in the infinite queue of the bucket
    epochs, ranks = np.divmod(positions, self._counts[bucket])
    indices = np.empty(self.batch_size, np.int64)
    for e in np.unique(epochs).tolist():
      here = epochs == e
      indices[here] = self._epoch(e).queues[bucket][ranks[here]]
    return PlannedBatch(indices, epochs, bucket)

  def steps(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the batches of many steps: indices and epochs int64 [steps, B], and buckets int64 [steps]."""
    batches = []
    for epoch in range(self.epoch(start), self.epoch(stop - 1) + 1):
      before = self.batches_before(epoch)
      batches.append(self._epoch(epoch).batches[max(start - before, 0):stop - before])
    buckets, numbers = np.concatenate(batches).T
    positions = numbers[:, None] * self.batch_size + np.arange(self.batch_size)
    epochs, ranks = np.divmod(positions, self._counts[buckets][:, None])
    indices = np.empty_like(epochs)
    for epoch in np.unique(epochs).tolist():
      queues = self._epoch(epoch).queues
      for bucket in np.unique(buckets).tolist():
        here = (epochs == epoch) & (buckets == bucket)[:, None]
        indices[here] = queues[bucket][ranks[here]]
    return indices, epochs, buckets

  def epoch(self, step: int) -> int:
    """Return the epoch in which the batch of a step is completed."""
    epoch = step * self.batch_size // len(self._buckets)  # a lower bound: queues only delay batches
    while self.batches_before(epoch + 1) <= step:
      epoch += 1
    return epoch

  def batches_before(self, epoch: int) -> int:
    """Return the number of batches that are completed before an epoch begins."""
    return int((epoch * self._counts // self.batch_size).sum())

  def _plan_epoch(self, epoch: int) -> _Epoch:
    order = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(len(self._buckets))
    buckets_in_order = self._buckets[order]
    queues, batches, positions = [], [], []
    for bucket, count in enumerate(self._counts.tolist()):
      members = np.flatnonzero(buckets_in_order == bucket)
      queues.append(order[members])
      numbers = np.arange(epoch * count // self.batch_size, (epoch + 1) * count // self.batch_size)
      last = (numbers + 1) * self.batch_size - 1 - epoch * count  # rank of the image that completes the batch
      positions.append(members[last])
      batches.append(np.stack([np.full(len(numbers), bucket), numbers], axis=1))
    return _Epoch(queues, np.concatenate(batches)[np.argsort(np.concatenate(positions))])
