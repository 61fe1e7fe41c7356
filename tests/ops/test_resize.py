"""Resizing in TensorFlow operations is bit-identical to OpenCV's."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.ops.resize import resize_uint8


@pytest.fixture(scope='module')
def resized():
  return tf.function(resize_uint8, autograph=False, input_signature=[
    tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([2], tf.int32)])


def compare(resized, image, height, width):
  expected = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
  np.testing.assert_array_equal(resized(image, [height, width]).numpy(), expected)


@pytest.mark.parametrize('size, new', [
  ((480, 640), (800, 1067)), ((1200, 900), (1067, 800)), ((64, 48), (32, 24)), ((37, 53), (37, 53)), ((1, 1), (7, 5)),
  ((1, 300), (32, 9)), ((300, 1), (299, 1)), ((3, 3), (1, 1)),
], ids=str)
def test_given_sizes_equal_opencv(resized, size, new):
  compare(resized, np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8), *new)


def test_random_sizes_equal_opencv(resized):
  rng = np.random.default_rng(1)
  for _ in range(60):
    height, width, new_height, new_width = rng.integers(1, 300, 4).tolist()
    compare(resized, rng.integers(0, 256, (height, width, 3)).astype(np.uint8), new_height, new_width)


def test_white_stays_white(resized):
  assert (resized(np.full((31, 17, 3), 255, np.uint8), [97, 45]).numpy() == 255).all()


def test_without_float64_few_values_differ_by_one():
  rng, different, values = np.random.default_rng(2), 0, 0
  for _ in range(40):
    height, width, new_height, new_width = rng.integers(1, 300, 4).tolist()
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    expected = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    apart = np.abs(resize_uint8(image, [new_height, new_width], True).numpy().astype(int) - expected)
    assert apart.max() <= 1
    different, values = different + (apart > 0).sum(), values + apart.size
  assert different < 1e-4 * values
