"""Detections in original pixels: serialization. The rest is tested with the evaluators."""

import numpy as np

from rethink_tf.evaluation.postprocessing import ImageDetections, from_bytes, to_bytes


def test_from_bytes_inverts_to_bytes():
  rng = np.random.default_rng(0)
  masks = [{'size': [3, 4], 'counts': 'ab'}] * 2
  detections = [ImageDetections(7, rng.random((2, 4)), rng.random(2), np.array([1, 2]), masks, rng.random((2, 5, 3))),
                ImageDetections(8, np.zeros([0, 4]), np.zeros(0), np.zeros(0, np.int64), None)]
  received, unreadable = from_bytes(to_bytes(detections, [8]))
  assert unreadable == [8]
  for before, after in zip(detections, received, strict=True):
    for a, b in zip(before, after, strict=True):
      assert type(a) is type(b)
      np.testing.assert_array_equal(a, b)
