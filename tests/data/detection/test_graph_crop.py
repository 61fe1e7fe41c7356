"""Cropping of instances in TensorFlow's operations: that of NumPy and OpenCV, bit by bit."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.data import augment
from rethink_tf.data.detection.graph_crop import crop_instances
from rethink_tf.data.detection.graph_record import Instances
from rethink_tf.structures import NO_MASK, Example


def instances(rng, number=30, height=90, width=120):
  corners = rng.uniform(0, 1, [number, 2, 2]) * [height, width]
  boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1) + 0.01], axis=1).astype(np.float32)
  masks = np.zeros([number, 112, 112], np.uint8)
  for mask in masks:
    y, x = np.sort(rng.integers(0, 112, [2, 2]), axis=1)
    mask[y[0]:y[1] + 1, x[0]:x[1] + 1] = rng.integers(0, 2, [y[1] - y[0] + 1, x[1] - x[0] + 1])
  masks[:3] = NO_MASK
  keypoints = (rng.uniform(-5, 125, [number, 2, 3]) * [1, 1, 0] + [0, 0, 1]).astype(np.float32)
  keypoints[:, 1] *= rng.integers(0, 2, [number, 1])
  return Example(np.zeros([height, width, 3], np.uint8), boxes, np.arange(1, number + 1, dtype=np.int32), masks,
                 keypoints)


@pytest.mark.parametrize('tighten', [True, False])
def test_equals_the_python_form(tighten):
  rng = np.random.default_rng(0)
  dropped = 0
  for _ in range(12):
    example = instances(rng)
    low = np.floor(rng.uniform(0, 60, 2)) / rng.uniform(0.1, 2.0, 2)
    high = low + rng.uniform(5, 60, 2)
    expected = augment.crop_instances(example, low, high, tighten)
    ours = crop_instances(Instances(None, *map(tf.constant, example[1:])), tf.constant(low), tf.constant(high), tighten)
    dropped += len(example.boxes) - len(expected.boxes)
    for name, one, other in zip(Example._fields[1:], ours[1:], expected[1:], strict=True):
      assert one.dtype.as_numpy_dtype == other.dtype and np.array_equal(one, other), name
  assert 12 * 30 > dropped > 0


def test_nothing_may_remain():
  none = instances(np.random.default_rng(0), 0)
  ours = crop_instances(Instances(None, *map(tf.constant, none[1:])), tf.constant([0.0, 0.0], tf.float64),
                        tf.constant([5.0, 5.0], tf.float64), True)
  assert [tuple(each.shape) for each in ours[1:]] == [(0, 4), (0,), (0, 112, 112), (0, 2, 3)]
