"""The buffer pool of the inputs, and their limit of missing and unreadable images."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.data import batching
from rethink_tf.data.augment import Resize
from rethink_tf.data.batching import BufferPool
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.input import EvalInput, TrainInput
from rethink_tf.data.detection.views import ViewsInput
from rethink_tf.errors import UserError
from tests import small_coco

SMALL = Resize((32,), 48)


def coco_without(folder, images, missing, training):
  entries = [small_coco.image(i, 30, 40) for i in range(1, images + 1)]
  objects = [small_coco.annotation(i, i, (5, 5, 10, 10)) for i in range(1, images + 1)]
  small_coco.write(folder, entries, objects, split='train2017')
  for entry in entries[:missing]:
    (folder / 'train2017' / entry['file_name']).unlink()
  return CocoSource(str(folder), training=training)


@pytest.mark.parametrize('make', [TrainInput, EvalInput])
def test_missing_images_have_the_limit_of_unreadable_ones(tmp_path, make):
  source = coco_without(tmp_path, 20, 19, make is TrainInput)
  with pytest.raises(UserError, match=rf'19 of 20 images cannot be used \(19 missing, e.g. 000001.jpg, .*\), more than '
                                      rf'{make.__name__}.max_unreadable = 0.1') as error:
    make(source, batch_size=2, resize=SMALL)
  assert '\n' not in str(error.value)
  assert len(make(source, batch_size=2, resize=SMALL, max_unreadable=0.95).source.image_ids) == 1


def test_one_image_may_be_missing_unless_the_limit_is_0(tmp_path):
  source = coco_without(tmp_path, 6, 1, False)
  inputs = EvalInput(source, 2, SMALL)
  with pytest.raises(UserError, match='1 of 6 images cannot be used .* EvalInput.max_unreadable = 0:'):
    EvalInput(source, 2, SMALL, max_unreadable=0)
  # Missing and unreadable images count together, in test-time augmentation too.
  (tmp_path / 'train2017/000002.jpg').write_bytes(b'no image')
  for one in (inputs, ViewsInput(EvalInput(source, 2, SMALL), [SMALL])):
    with pytest.raises(UserError, match='1 of the first . images cannot be read, and 1 are missing, more than '
                                        'EvalInput.max_unreadable = 0.1'):
      for number in range(one.num_batches):
        one.batch(number)


def test_a_read_that_does_not_end_is_reported_and_awaited_in_python(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(batching, 'WAITING_SECONDS', 0.05)
  source = coco_without(tmp_path, 8, 0, True)
  load, begun, released = source.load, threading.Event(), threading.Event()
  stuck = int(TrainInput(source, batch_size=2, resize=SMALL).facts(2).image_ids[0])

  def load_or_wait(i):
    if source.image_ids[i] == stuck:
      begun.set()
      assert released.wait(300)
    return load(i)

  monkeypatch.setattr(source, 'load', load_or_wait)
  inputs = TrainInput(source, batch_size=2, resize=SMALL)
  batches = iter(inputs.dataset())
  next(batches)
  assert inputs.wait_for_step(1, 30)
  next(batches)
  with ThreadPoolExecutor(1) as pool:
    third = pool.submit(next, batches)  # asks for it, whether or not tf.data reads ahead
    try:
      assert begun.wait(60), f'step 2 is not read: {inputs.failure!r}, {inputs._assembling}'
      for _ in range(600):
        assert not inputs.wait_for_step(2, 0.1)
        if 'waiting for data: ' in caplog.text:
          break
      assert 'waiting for data: ' in caplog.text and f'image {stuck}: is their storage available?' in caplog.text
    finally:
      released.set()
    assert inputs.wait_for_step(2, 30) and stuck in third.result(30).image_ids.numpy()


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


def reading(folder, strategy):
  """Return a weak reference to an input, and an iterator of its batches."""
  inputs = TrainInput(coco_without(folder, 6, 0, True), 2, 0, SMALL)
  dataset = (inputs.dataset() if strategy is None else
             strategy.distribute_datasets_from_function(lambda context: inputs.dataset(0, context)))
  return weakref.ref(inputs), iter(dataset)


@pytest.mark.parametrize('two', [False, True])
def test_an_input_lives_as_long_as_what_reads_it(tmp_path, two, request):
  """TensorFlow keeps the functions of tf.numpy_function to the end of the process."""
  inputs, iterator = reading(tmp_path, request.getfixturevalue('two_replicas') if two else None)
  for _ in range(5):
    next(iterator)
  inputs().wait_for_step(10**9, 60)
  del iterator
  gc.collect()
  assert inputs() is None
