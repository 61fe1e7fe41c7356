"""Memory that is used again and again."""

import numpy as np
import tensorflow as tf

from rethink_tf.data.batching import Shelf


def test_memory_that_was_let_go_is_used_again():
  shelf = Shelf(limit=1)
  first = shelf.take([2, 3], np.float32)
  place, view = first.ctypes.data, first[1:]
  del first
  second = shelf.take([2, 3], np.float32)
  assert second.ctypes.data != place  # a view of the first is still looked at
  del view
  third = shelf.take([6], np.float32)
  assert third.ctypes.data == place and third.shape == (6,) and place % 64 == 0


def test_no_more_is_kept_than_the_limit():
  shelf = Shelf(limit=2)
  arrays = [shelf.take([8], np.uint8) for _ in range(5)]
  places = {array.ctypes.data for array in arrays}
  del arrays
  again = [shelf.take([8], np.uint8) for _ in range(5)]
  assert len({array.ctypes.data for array in again} & places) >= 2
  assert len({array.ctypes.data for array in again}) == 5


def test_tensorflow_holds_on_to_what_it_reads():
  shelf = Shelf()

  def fill(i):
    array = shelf.take([1000], np.float32)
    array[:] = i
    return array

  dataset = tf.data.Dataset.range(6).map(lambda i: tf.numpy_function(fill, [i], tf.float32), num_parallel_calls=2)
  for i, tensor in enumerate(list(dataset.prefetch(2))):  # all alive at once
    np.testing.assert_array_equal(tensor, np.full(1000, i, np.float32))
