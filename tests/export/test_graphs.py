"""The graph of an export: sizes as in the input pipeline, whether they are static or not."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.data.augment import Resize
from rethink_tf.data.buckets import assign, bucket_shapes, resized_sizes
from rethink_tf.export import graphs

RESIZE = Resize((64,), 96)


@pytest.fixture(scope='module')
def dynamic():
  def sizes(image):
    return graphs.input_sizes(RESIZE, image)

  return tf.function(sizes, [tf.TensorSpec([None, None, 3], tf.uint8)], autograph=False)


@pytest.mark.parametrize('size', [(60, 97), (97, 60), (64, 64), (1, 500), (333, 222), (480, 640), (720, 1280)])
def test_sizes_equal_those_of_the_input(dynamic, size):
  resized = resized_sizes(np.array([size]), RESIZE.largest, RESIZE.max_side)
  padded_shapes = bucket_shapes(RESIZE.largest, RESIZE.max_side)
  expected = [size, resized[0], padded_shapes[assign(resized, padded_shapes)[0]]]
  image = np.zeros([*size, 3], np.uint8)
  np.testing.assert_array_equal([value.numpy() for value in dynamic(image)], expected)
  found = graphs.input_sizes(RESIZE, tf.constant(image))
  assert all(isinstance(value, np.ndarray) for value in found)
  np.testing.assert_array_equal(found, expected)


def test_integers_resize_as_float64():
  """Except for sides halfway between two pixels, by one pixel."""
  rng = np.random.default_rng(0)
  resize = Resize((800,), 1333)
  sizes = np.concatenate([rng.integers(1, 6000, (200_000, 2)), rng.integers(1, 1000, (200_000, 2))]).astype(np.int32)
  found = graphs.resized_in_integers(resize, tf.constant(sizes)).numpy()
  apart = np.abs(found - resized_sizes(sizes, 800, 1333)).max(1)
  assert apart.max() <= 1 and (apart > 0).mean() < 1e-4
