"""The sampling plan: every image once per epoch, random access to any step."""

import time

import numpy as np
import pytest

from rethink_tf.data.sampler import SamplingPlan


def _simulated(buckets, batch_size, plan, epochs):
  """Yield batches by a simulation of all epochs with real queues."""
  queues = {bucket: [] for bucket in set(buckets.tolist())}
  for epoch in range(epochs):
    order = np.random.Generator(np.random.Philox(key=[plan.seed, epoch])).permutation(len(buckets))
    for index in order.tolist():
      queue = queues[buckets[index]]
      queue.append((index, epoch))
      if len(queue) == batch_size:
        yield int(buckets[index]), list(queue)
        queue.clear()


CASES = [  # images in each bucket, batch size
    ((50, 30, 21), 8), ((7,), 3), ((5, 1, 2), 4), ((1,), 4), ((10, 0, 3), 1), ((3, 2), 16), ((0, 0, 64), 16)]


@pytest.mark.parametrize(('counts', 'batch_size'), CASES)
def test_equals_a_simulation_with_queues(counts, batch_size):
  buckets = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
  plan = SamplingPlan(buckets, batch_size, seed=5)
  expected = list(_simulated(buckets, batch_size, plan, epochs=20))
  assert plan.batches_before(20) == len(expected)
  for step, (bucket, images) in enumerate(expected):
    batch = plan[step]
    assert batch.bucket == bucket
    assert list(zip(batch.indices.tolist(), batch.epochs.tolist(), strict=True)) == images
    assert plan.epoch(step) == images[-1][1]
  number = len(expected)
  for start, stop in ((number // 3, number), (1, number // 2), (number // 2, number // 2 + 1), (0, number - 1)):
    columns = plan.steps(start, stop)
    for column in columns:
      assert len(column) == stop - start
    for k, step in enumerate(range(start, stop)):
      for column, value in zip(columns, plan[step], strict=True):
        assert np.array_equal(column[k], value)


@pytest.mark.parametrize(('counts', 'batch_size'), CASES)
def test_every_image_once_per_epoch(counts, batch_size):
  buckets = np.repeat(np.arange(len(counts)), counts)
  plan = SamplingPlan(buckets, batch_size, seed=1)
  steps = plan.batches_before(40)
  seen = {}
  for step in range(steps):
    batch = plan[step]
    assert set(buckets[batch.indices]) == {batch.bucket}
    for index, epoch in zip(batch.indices.tolist(), batch.epochs.tolist(), strict=True):
      seen.setdefault(epoch, []).append(index)
  for bucket, count in enumerate(counts):
    complete = steps and 40 * count // batch_size * batch_size // max(count, 1)  # epochs that have left the queue
    for epoch in range(complete):
      assert sorted(i for i in seen[epoch] if buckets[i] == bucket) == np.flatnonzero(buckets == bucket).tolist()
  assert all(len(images) == len(set(images)) for images in seen.values())


def test_random_access():
  buckets = np.random.default_rng(0).integers(0, 5, 300)
  forward = [SamplingPlan(buckets, 16, seed=2)[step] for step in range(100)]
  plan = SamplingPlan(buckets, 16, seed=2)
  for step in np.random.default_rng(1).permutation(100).tolist():
    for a, b in zip(plan[step], forward[step], strict=True):
      np.testing.assert_array_equal(a, b)


def test_seeds_and_epochs_differ():
  buckets = np.zeros(64, int)
  plan = SamplingPlan(buckets, 64, seed=0)
  orders = [plan[0].indices, plan[1].indices, SamplingPlan(buckets, 64, seed=1)[0].indices]
  assert all(sorted(order) == list(range(64)) for order in orders)
  assert not any(np.array_equal(orders[i], orders[j]) for i in range(3) for j in range(i))


def test_end_of_a_9x_schedule_takes_no_time():
  """COCO's 118k images at step 810k (epoch 110)."""
  buckets = np.random.default_rng(0).choice(7, 118_287)
  plan = SamplingPlan(buckets, 16)
  start = time.process_time()
  batch = plan[809_999]
  assert time.process_time() - start < 1.0
  assert plan.epoch(809_999) == 109 and set(batch.epochs) == {109}
