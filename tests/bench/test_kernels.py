"""Inputs of the kernel benchmarks, and equal results of the peers."""

import numpy as np
import pytest

from rethink_tf.bench import kernels


def test_random_boxes_are_within_the_image_and_of_all_sizes():
  boxes = kernels.random_boxes(500, 800, 1333)
  assert boxes.shape == (500, 4) and boxes.dtype == np.float32
  assert (boxes >= 0).all() and (boxes <= [800, 1333, 800, 1333]).all()
  side = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
  assert side.min() < 32 and side.max() > 300 and 80 < np.median(side) < 150
  np.testing.assert_array_equal(boxes, kernels.random_boxes(500, 800, 1333))


def test_blobs_are_probabilities_of_an_object():
  masks = kernels.blobs(20, np.random.default_rng(0))
  assert masks.shape == (20, 28, 28) and masks.min() >= 0 and masks.max() <= 1
  assert (0.1 < (masks > 0.5).mean(axis=(1, 2))).all()


@pytest.mark.slow
def test_suppression_equals_that_of_the_peer():
  rows = kernels.suppression(1)
  assert {row.name for row in rows} >= {'rethink_tf', 'tf-models-official'}
  assert all('True' in row.note for row in rows)
  assert all(row.timing.median > 0 for row in rows)
