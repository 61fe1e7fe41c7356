"""The buffer pool of the inputs."""

import numpy as np
import tensorflow as tf

from rethink_tf.data.batching import BufferPool


def test_released_memory_is_reused():
  pool = BufferPool(limit=1)
  first = pool.take([2, 3], np.float32)
  address, view = first.ctypes.data, first[1:]
  del first
  second = pool.take([2, 3], np.float32)
  assert second.ctypes.data != address  # a view of the first array is still alive
  del view
  third = pool.take([6], np.float32)
  assert third.ctypes.data == address and third.shape == (6,) and address % 64 == 0


def test_at_most_limit_buffers_are_kept():
  pool = BufferPool(limit=2)
  arrays = [pool.take([8], np.uint8) for _ in range(5)]
  addresses = {array.ctypes.data for array in arrays}
  del arrays
  again = [pool.take([8], np.uint8) for _ in range(5)]
  assert len({array.ctypes.data for array in again} & addresses) >= 2
  assert len({array.ctypes.data for array in again}) == 5


def test_tensorflow_keeps_a_reference_to_its_arrays():
  pool = BufferPool()

  def fill(i):
    array = pool.take([1000], np.float32)
    array[:] = i
    return array

  dataset = tf.data.Dataset.range(6).map(lambda i: tf.numpy_function(fill, [i], tf.float32), num_parallel_calls=2)
  for i, tensor in enumerate(list(dataset.prefetch(2))):  # all alive at once
    np.testing.assert_array_equal(tensor, np.full(1000, i, np.float32))
