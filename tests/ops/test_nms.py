"""Both implementations of suppression against a greedy loop in float64, and tf-models-official on a single group."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.doctor.references import suppress as reference
from rethink_tf.ops import nms


def draw(seed, images, number, groups, shared=False, shift=0.0):
  rng = np.random.default_rng(seed)
  shape = (images, number, 1 if shared else groups)
  centres, sizes = rng.uniform(0, 200, (*shape, 2)), rng.uniform(20, 80, (*shape, 2))
  boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=-1).astype(np.float32)
  scores = rng.normal(size=(images, number, groups)).astype(np.float32) * 5 + shift
  return boxes, scores, rng.uniform(size=scores.shape) < 0.8


def run(boxes, scores, valid, *limits, xla=False, jit_compile=False):
  call = tf.function(lambda b, s, v: nms.grouped_nms(b, s, v, *limits, xla=xla), jit_compile=jit_compile)
  return [x.numpy() for x in call(tf.constant(boxes), tf.constant(scores), tf.constant(valid))]


def check(result, boxes, scores, valid, *limits):
  for i in range(len(boxes)):
    expected = reference(boxes[i], scores[i], valid[i], *limits)
    kept_boxes, kept_scores, kept_groups, kept = (x[i] for x in result)
    number = len(expected)
    assert kept.sum() == number and kept[:number].all()
    np.testing.assert_array_equal(kept_scores[:number], [item[0] for item in expected])
    np.testing.assert_array_equal(kept_groups[:number], [item[1] for item in expected])
    np.testing.assert_array_equal(kept_boxes[:number], np.reshape([item[2] for item in expected], [-1, 4]))
    assert not kept_boxes[number:].any() and not kept_scores[number:].any() and not kept_groups[number:].any()


@pytest.mark.parametrize('xla, jit_compile', [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize('limits', [(0.7, 50, 60), (0.5, 5, 100), (0.3, 200, 10)])
def test_both_implementations_equal_the_greedy_loop(xla, jit_compile, limits):
  boxes = draw(0, 2, 120, 3)
  check(run(*boxes, *limits, xla=xla, jit_compile=jit_compile), *boxes, *limits)


@pytest.mark.parametrize('xla', [False, True])
def test_scores_below_minus_one(xla):
  """TensorFlow's fused kernel pads its groups with -1, which must not rank above lower logits."""
  boxes = draw(1, 2, 60, 2, shift=-20.0)
  assert (boxes[1] < -1).mean() > 0.9
  check(run(*boxes, 0.5, 100, 80, xla=xla), *boxes, 0.5, 100, 80)


@pytest.mark.parametrize('xla', [False, True])
def test_boxes_shared_by_all_groups(xla):
  boxes = draw(2, 2, 60, 4, shared=True)
  check(run(*boxes, 0.5, 20, 50, xla=xla), *boxes, 0.5, 20, 50)


@pytest.mark.parametrize('xla', [False, True])
def test_of_equal_scores_the_first_is_kept(xla):
  boxes = np.zeros((1, 4, 1, 4), np.float32)
  boxes[0, :, 0] = [[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60], [0, 1, 10, 11]]
  scores, valid = np.full((1, 4, 1), 0.5, np.float32), np.ones((1, 4, 1), bool)
  kept_boxes, _, _, kept = run(boxes, scores, valid, 0.5, 4, 4, xla=xla)
  assert kept.sum() == 2
  np.testing.assert_array_equal(kept_boxes[0, :2], boxes[0, [0, 2], 0])


@pytest.mark.parametrize('xla', [False, True])
def test_without_valid_boxes(xla):
  boxes, scores, valid = draw(3, 2, 10, 2)
  valid[1] = False
  result = run(boxes, scores, valid, 0.5, 10, 30, xla=xla)
  check(result, boxes, scores, valid, 0.5, 10, 30)
  assert not result[3][1].any()


def test_boxes_equal_official():
  from official.vision.ops import nms as official
  boxes, scores, valid = draw(4, 2, 100, 1)
  scores, valid = np.exp(scores), np.ones_like(valid)
  order = np.argsort(-scores[..., 0], axis=1)
  theirs_scores, theirs_boxes = official.sorted_non_max_suppression_padded(
    tf.constant(np.take_along_axis(scores[..., 0], order, 1)),
    tf.constant(np.take_along_axis(boxes[:, :, 0], order[..., None], 1)), 30, 0.5)
  ours_boxes, ours_scores, _, _ = run(boxes, scores, valid, 0.5, 30, 30)
  np.testing.assert_array_equal(ours_scores, theirs_scores)
  np.testing.assert_array_equal(ours_boxes, theirs_boxes)
