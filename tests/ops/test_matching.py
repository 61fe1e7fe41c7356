"""Matching against a loop in NumPy; samples have no duplicates, the given shares, and are reproducible."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.doctor.references import anchor_labels as reference_labels
from rethink_tf.ops import matching


def test_anchor_labels_follow_the_rule():
  rng = np.random.default_rng(0)
  overlaps = np.round(rng.uniform(0, 1, (4, 60, 5)) ** 2, 1).astype(np.float32)  # rounded: many ties
  overlaps[0, :, 1] *= 0.2  # a box without an IoU above 0.2
  overlaps[1, :, 2] = 0  # a box without any overlap
  gt_valid = rng.uniform(size=(4, 5)) < 0.7
  gt_valid[2] = False  # an image without objects
  usable = rng.uniform(size=(4, 60)) < 0.8
  labels, matched = matching.match_anchors(tf.constant(overlaps), tf.constant(gt_valid), tf.constant(usable))
  for i in range(4):
    np.testing.assert_array_equal(labels[i], reference_labels(overlaps[i], gt_valid[i], usable[i]))
  hidden = np.where(gt_valid[:, None], overlaps, -1)
  positive = labels.numpy() == 1
  np.testing.assert_array_equal(matched.numpy()[positive], hidden.argmax(2)[positive])
  assert not positive[2].any() and (labels.numpy()[2] == np.where(usable[2], 0, -1)).all()


def test_ties_of_the_best_anchor_are_positive_and_boxes_without_overlap_force_none():
  overlaps = tf.constant([[[0.2, 0.0], [0.2, 0.0], [0.1, 0.0], [0.0, 0.0]]])
  both = tf.constant([[True, True]])
  labels, _ = matching.match_anchors(overlaps, both, tf.ones([1, 4], tf.bool))
  np.testing.assert_array_equal(labels, [[1, 1, 0, 0]])
  # The best anchors are not usable: the next best one is positive.
  labels, _ = matching.match_anchors(overlaps, both, tf.constant([[False, False, True, True]]))
  np.testing.assert_array_equal(labels, [[-1, -1, 1, 0]])


def test_proposals_are_foreground_at_an_iou_of_one_half():
  overlaps = tf.constant([[[0.5, 0.4], [0.49, 0.2], [0.1, 0.9], [0.9, 0.9], [0.8, 0.0]]])
  labels, matched = matching.match_proposals(overlaps, tf.constant([[True, True]]),
                                             tf.constant([[True, True, True, True, False]]))
  np.testing.assert_array_equal(labels, [[1, 0, 1, 1, -1]])
  np.testing.assert_array_equal(matched, [[0, 0, 1, 0, 0]])
  labels, _ = matching.match_proposals(overlaps, tf.constant([[False, False]]), tf.ones([1, 5], tf.bool))
  np.testing.assert_array_equal(labels, [[0] * 5])


def draw(labels, size, fraction, seeds=None, stream=1):
  labels = np.atleast_2d(labels)
  seeds = [[7, i] for i in range(len(labels))] if seeds is None else seeds
  indices, used = matching.sample(tf.constant(labels, tf.int32), tf.constant(seeds, tf.int32), stream, size,
                                  int(size * fraction))
  return indices.numpy(), used.numpy()


@pytest.mark.parametrize('positives, negatives, expected', [
  (100, 100, (8, 24)),  # a quarter of 32
  (3, 100, (3, 29)),  # too few positives: more negatives
  (100, 5, (8, 5)),  # too few negatives: not more positives
  (0, 100, (0, 32)), (0, 0, (0, 0)), (2, 3, (2, 3)),
])
def test_sample_has_the_given_shares_and_no_duplicates(positives, negatives, expected):
  labels = np.full(250, -1)
  order = np.random.default_rng(1).permutation(250)
  labels[order[:positives]], labels[order[positives:positives + negatives]] = 1, 0
  indices, used = (x[0] for x in draw(labels, 32, 0.25))
  assert used.sum() == sum(expected) and used[:used.sum()].all()
  assert (labels[indices[:expected[0]]] == 1).all() and (labels[indices[expected[0]:used.sum()]] == 0).all()
  assert len(set(indices[used])) == used.sum()
  assert not indices[~used].any()


def test_more_slots_than_candidates():
  indices, used = draw([1, 0, -1, 0], 10, 1.0)
  assert used.sum() == 3 and indices[0, 0] == 0 and set(indices[0, 1:3]) == {1, 3}
  indices, used = draw([1, 0, -1, 0], 10, 0.0)
  assert used.sum() == 2 and set(indices[0, :2]) == {1, 3}


@pytest.mark.parametrize('count', [1, 4, 10, 11, 300])
def test_a_number_of_candidates_that_changes_from_batch_to_batch(count):
  """As of anchors, in one graph for all padded shapes."""
  signature = [tf.TensorSpec([2, None], tf.int32), tf.TensorSpec([2, 2], tf.int32)]
  sample = tf.function(lambda labels, seeds: matching.sample(labels, seeds, 1, 10, 5), signature, autograph=False)
  labels, seeds = np.random.default_rng(3).integers(-1, 2, (2, count)), [[7, 0], [7, 1]]
  for found, expected in zip(sample(labels, seeds), draw(labels, 10, 0.5, seeds), strict=True):
    np.testing.assert_array_equal(found, expected)


def test_samples_depend_only_on_the_seed_of_the_image():
  labels = np.random.default_rng(2).integers(-1, 2, (3, 200))
  seeds = [[5, 1], [5, 2], [6, 1]]
  together = draw(labels, 40, 0.5, seeds)
  for i in range(3):
    alone = draw(labels[i], 40, 0.5, [seeds[i]])
    for a, b in zip(together, alone, strict=True):
      np.testing.assert_array_equal(a[i], b[0])
  same = draw(np.tile(labels[:1], (3, 1)), 40, 0.5, seeds)[0]
  assert all((same[i] != same[j]).any() for i, j in ((0, 1), (0, 2), (1, 2)))
  assert (draw(labels, 40, 0.5, seeds, stream=2)[0] != together[0]).any(axis=1).all()


def test_all_candidates_are_equally_likely():
  labels = np.array([1] * 10 + [0] * 30)
  indices, _ = draw(np.tile(labels, (2000, 1)), 16, 0.25, [[3, i] for i in range(2000)])
  counts = np.bincount(indices.ravel(), minlength=40)
  # 4 of 10 positives and 12 of 30 negatives: 800 draws each, standard deviation 22.
  assert np.abs(counts - 800).max() < 5 * 22


def test_samples_are_the_same_under_xla():
  labels = tf.constant(np.random.default_rng(4).integers(-1, 2, (2, 300)), tf.int32)
  seeds = tf.constant([[1, 2], [-3, 2**31 - 1]])
  plain, compiled = (tf.function(lambda a, b: matching.sample(a, b, 1, 64, 32), jit_compile=jit)(labels, seeds)
                     for jit in (False, True))
  for a, b in zip(plain, compiled, strict=True):
    np.testing.assert_array_equal(a, b)
