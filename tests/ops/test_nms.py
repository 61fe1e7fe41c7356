"""All forms of suppression against a greedy loop in float64, and tf-models-official on a single group."""

import contextlib

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


def run(boxes, scores, valid, *limits, form=None, jit_compile=False):
  def call(boxes, scores, valid):
    return nms.grouped_nms(boxes, scores, valid, *limits, form=form)
  call = tf.function(call, jit_compile=True) if jit_compile else call
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


@pytest.mark.parametrize('form, jit_compile', [*((form, False) for form in nms.FORMS), ('batched', True)])
@pytest.mark.parametrize('limits', [(0.7, 50, 60), (0.5, 5, 100), (0.3, 200, 10)])
def test_all_forms_equal_the_greedy_loop(form, jit_compile, limits):
  boxes = draw(0, 2, 120, 3)
  check(run(*boxes, *limits, form=form, jit_compile=jit_compile), *boxes, *limits)


@pytest.mark.parametrize('form', nms.FORMS)
def test_scores_below_minus_one(form):
  """TensorFlow's fused kernel pads its groups with -1, which must not rank above lower logits."""
  boxes = draw(1, 2, 60, 2, shift=-20.0)
  assert (boxes[1] < -1).mean() > 0.9
  check(run(*boxes, 0.5, 100, 80, form=form), *boxes, 0.5, 100, 80)


@pytest.mark.parametrize('form', nms.FORMS)
def test_boxes_shared_by_all_groups(form):
  boxes = draw(2, 2, 60, 4, shared=True)
  check(run(*boxes, 0.5, 20, 50, form=form), *boxes, 0.5, 20, 50)


@pytest.mark.parametrize('form', nms.FORMS)
def test_of_equal_scores_the_first_is_kept(form):
  boxes = np.zeros((1, 4, 1, 4), np.float32)
  boxes[0, :, 0] = [[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60], [0, 1, 10, 11]]
  scores, valid = np.full((1, 4, 1), 0.5, np.float32), np.ones((1, 4, 1), bool)
  kept_boxes, _, _, kept = run(boxes, scores, valid, 0.5, 4, 4, form=form)
  assert kept.sum() == 2
  np.testing.assert_array_equal(kept_boxes[0, :2], boxes[0, [0, 2], 0])


@pytest.mark.parametrize('form', nms.FORMS)
def test_without_valid_boxes(form):
  boxes, scores, valid = draw(3, 2, 10, 2)
  valid[1] = False
  result = run(boxes, scores, valid, 0.5, 10, 30, form=form)
  check(result, boxes, scores, valid, 0.5, 10, 30)
  assert not result[3][1].any()


@pytest.mark.parametrize('form, case', [*(('per_group', case) for case in range(6)), ('batched', 5), *(
  pytest.param('batched', case, marks=pytest.mark.slow) for case in range(5))])
def test_forms_equal_the_combined_one_bit_by_bit(form, case):
  """Few distinct scores and whole coordinates: many ties, within and between groups, and IoUs at the threshold."""
  rng = np.random.default_rng(case)
  images, number, groups = rng.integers(1, 4), rng.integers(1, 60), (1, 2, 5)[case % 3]
  boxes, scores, valid = draw(case, images, number, groups, shared=case % 2 == 1)
  boxes, scores = np.round(boxes / 20) * 20, np.round(scores / 5)  # some boxes are empty
  boxes[:, 0], valid[0] = 0.0, valid[0] & (case != 4)  # a point at the origin; nothing in one image
  limits = (0.5, int(rng.integers(1, 70)), int(rng.integers(1, 150)))
  expected = run(boxes, scores, valid, *limits, form='combined')
  for ours, golden in zip(run(boxes, scores, valid, *limits, form=form), expected, strict=True):
    np.testing.assert_array_equal(ours, golden)


@pytest.mark.parametrize('form', ['combined', 'per_group'])
def test_a_batch_of_any_size(form):
  boxes = draw(7, 2, 30, 2)
  call = tf.function(lambda b, s, v: nms.grouped_nms(b, s, v, 0.5, 10, 15, form), [
    tf.TensorSpec([None, 30, 2, 4]), tf.TensorSpec([None, 30, 2]), tf.TensorSpec([None, 30, 2], tf.bool)])
  check([x.numpy() for x in call(*map(tf.constant, boxes))], *boxes, 0.5, 10, 15)
  assert [x.shape[0] for x in call(*(tf.constant(x[:0]) for x in boxes))] == [0, 0, 0, 0]


@pytest.mark.parametrize('form', nms.FORMS)
def test_boxes_that_are_not_numbers_suppress_nothing(form):
  boxes, scores, valid = draw(8, 1, 20, 1)
  boxes[0, 17:], valid[:] = [[[np.nan] * 4], [[0, 0, np.inf, 10]], [[5, 5, 5, 50]]], True
  kept_boxes, kept_scores, _, kept = run(boxes, scores, valid, 0.5, 20, 20, form=form)
  expected = reference(boxes[0, :17], scores[0, :17], valid[0, :17], 0.5, 20, 20)
  expected += [(score, 0, box[0]) for score, box in zip(scores[0, 17:, 0], boxes[0, 17:], strict=True)]
  expected = sorted(expected, key=lambda item: -item[0])
  np.testing.assert_array_equal(kept_scores[kept], [item[0] for item in expected])
  np.testing.assert_array_equal(kept_boxes[kept], [item[2] for item in expected])


@pytest.mark.parametrize('device, form', [
  ('/GPU:0', 'per_group'), ('/job:localhost/replica:0/task:0/device:GPU:3', 'per_group'), ('/CPU:0', 'combined'),
  ('', 'per_group' if tf.config.list_physical_devices('GPU') else 'combined')])
@pytest.mark.parametrize('within', [True, False], ids=['within the graph', 'around it'])
def test_the_form_is_that_of_the_device(device, form, within):
  """A graph that is traced for a GPU, which need not exist."""
  def suppress(*inputs):
    with tf.device(device) if within else contextlib.nullcontext():
      return nms.grouped_nms(*inputs, 0.5, 4, 4)

  specs = [tf.TensorSpec([1, 4, 2, 4]), tf.TensorSpec([1, 4, 2]), tf.TensorSpec([1, 4, 2], tf.bool)]
  with contextlib.nullcontext() if within else tf.device(device):
    graph = tf.function(suppress, autograph=False).get_concrete_function(*specs).graph
  found = {operation.type for operation in graph.get_operations()}
  assert ('NonMaxSuppressionV4' in found) == (form == 'per_group') != ('CombinedNonMaxSuppression' in found)


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


@pytest.mark.slow
@pytest.mark.parametrize('form', ['combined', 'per_group'])
def test_more_candidates_than_float32_counts(form):
  """As of test-time augmentation of a data set of a thousand classes."""
  number = 2**23 + 1000  # times two groups
  places = ((5, 0), (number - 2, 1), (1000, 1), (77, 0), (number // 2, 1))
  scores, boxes = np.zeros((1, number, 2), np.float32), np.zeros((1, number, 1, 4), np.float32)
  for i, (box, group) in enumerate(places):
    scores[0, box, group] = 0.9 - 0.1 * i
    boxes[0, box, 0] = 20 * i, 0, 20 * i + 10, 10
  found, found_scores, groups, valid = nms.grouped_nms(
    tf.constant(boxes), tf.constant(scores), tf.constant(scores > 0), 0.5, 5, 6, form)
  assert valid[0].numpy().tolist() == [True] * 5 + [False]
  np.testing.assert_array_equal(found[0, :5, 0], 20 * np.arange(5))
  np.testing.assert_allclose(found_scores[0, :5], 0.9 - 0.1 * np.arange(5), rtol=1e-6)
  assert groups[0, :5].numpy().tolist() == [group for _, group in places]
