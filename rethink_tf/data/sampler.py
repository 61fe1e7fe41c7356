"""The sampling plan: which images make up batch number `step`, as a pure function of seed, buckets and batch size.

Each epoch is a seeded permutation of all images. Images join the queue of their bucket (the canvas that holds them);
a batch leaves whenever a queue has `batch_size`. What is left in a queue waits for the next epoch, so that nothing is
dropped and each image comes exactly once per epoch. Because a bucket is the same in every epoch, the k-th entry of a
queue is found without simulating what came before: any step is reached at once, for a resume or for another host.
"""

import functools
from typing import NamedTuple

import numpy as np


class PlannedBatch(NamedTuple):
  """Images of one batch. Each has its own epoch: a queue can hold the end of one epoch and the start of the next."""

  indices: np.ndarray  # int64 [B] into the source
  epochs: np.ndarray  # int64 [B]
  bucket: int  # the canvas they share


class _Epoch(NamedTuple):
  queues: list[np.ndarray]  # for each bucket, the images that join its queue, in order
  departures: np.ndarray  # int64 [batches, 2] bucket, number of the batch in that bucket's queue; as they leave


class SamplingPlan:
  """Endless stream of batches of one bucket each.

  Args:
    buckets: int [N], bucket of each image (buckets.assign).
    batch_size: images of the global batch.
    seed: of the permutations.
  """

  def __init__(self, buckets: np.ndarray, batch_size: int, seed: int = 0):
    self.batch_size = batch_size
    self.seed = seed
    self._buckets = np.asarray(buckets)
    self._counts = np.bincount(self._buckets).astype(np.int64)  # [buckets] images of each
    self._epoch = functools.lru_cache(maxsize=8)(self._plan_epoch)  # the last epochs, 2 MB each for COCO

  def __getitem__(self, step: int) -> PlannedBatch:
    """The batch of a step, counted from 0."""
    epoch = self.epoch(step)
    bucket, number = self._epoch(epoch).departures[step - self.batches_before(epoch)].tolist()
    places = number * self.batch_size + np.arange(self.batch_size)  # in the bucket's endless queue
    epochs, ranks = np.divmod(places, self._counts[bucket])
    indices = np.empty(self.batch_size, np.int64)
    for e in np.unique(epochs).tolist():
      here = epochs == e
      indices[here] = self._epoch(e).queues[bucket][ranks[here]]
    return PlannedBatch(indices, epochs, bucket)

  def epoch(self, step: int) -> int:
    """The epoch in which the batch of a step is complete."""
    epoch = step * self.batch_size // len(self._buckets)  # queues delay a batch, never the other way round
    while self.batches_before(epoch + 1) <= step:
      epoch += 1
    return epoch

  def batches_before(self, epoch: int) -> int:
    """Batches that are complete when an epoch begins."""
    return int((epoch * self._counts // self.batch_size).sum())

  def _plan_epoch(self, epoch: int) -> _Epoch:
    order = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(len(self._buckets))
    buckets_in_order = self._buckets[order]
    queues, departures, places = [], [], []
    for bucket, count in enumerate(self._counts.tolist()):
      arrivals = np.flatnonzero(buckets_in_order == bucket)
      queues.append(order[arrivals])
      numbers = np.arange(epoch * count // self.batch_size, (epoch + 1) * count // self.batch_size)
      last = (numbers + 1) * self.batch_size - 1 - epoch * count  # rank of the image that completes the batch
      places.append(arrivals[last])
      departures.append(np.stack([np.full(len(numbers), bucket), numbers], axis=1))
    return _Epoch(queues, np.concatenate(departures)[np.argsort(np.concatenate(places))])
