"""Losses against float64 NumPy: values, normalisers, empty slots."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.structures import (
  BoxOutputs,
  ClassifierOutputs,
  KeypointOutputs,
  LabelledImages,
  MaskOutputs,
  Outputs,
  Proposals,
  RoISamples,
  RPNOutputs,
)
from rethink_tf.training import losses


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def constants(*arrays):
  return [tf.constant(a, tf.float32 if np.asarray(a).dtype.kind == 'f' else tf.int32) for a in arrays]


def smooth_l1(difference, beta):
  magnitude = np.abs(difference)
  return np.where(magnitude < beta, 0.5 * magnitude**2 / beta, magnitude - beta / 2) if beta else magnitude


def softplus(x):
  return np.logaddexp(0, x)


@pytest.mark.parametrize('beta', [0, 1 / 9, 1.0])
def test_smooth_l1_equals_its_formula(beta):
  difference = np.linspace(-3, 3, 101)
  ours = losses.smooth_l1(tf.constant(difference, tf.float32), beta)
  np.testing.assert_allclose(ours, smooth_l1(difference, beta), rtol=1e-5, atol=1e-7)


def rpn_outputs(rng, used=(6, 3)):
  """Two images of 10 anchors and 8 slots, of which `used` are filled."""
  logits, deltas, targets = rng.normal(size=(2, 10)), rng.normal(size=(2, 10, 4)), rng.normal(size=(2, 8, 4))
  weights = np.float32([[slot < number for slot in range(8)] for number in used])
  labels = np.float32([[slot < 2 for slot in range(8)]] * 2) * weights
  sampled = np.array([rng.permutation(10)[:8] for _ in range(2)])
  outputs = RPNOutputs(*constants(logits, deltas, np.zeros([10, 4]), sampled, labels, weights, targets))
  return outputs, (logits, deltas, sampled, labels, weights, targets)


@pytest.mark.parametrize('beta, divisor', [(1 / 9, 'sampled'), (0, 'batch_size')])
def test_rpn_losses_equal_their_formulas(rng, beta, divisor):
  outputs, (logits, deltas, sampled, labels, weights, targets) = rpn_outputs(rng)
  objectness, box = [], []
  for i in range(2):
    x = logits[i, sampled[i]]
    objectness.append(np.sum((softplus(x) - labels[i] * x) * weights[i]) / 8)
    number = weights[i].sum() if divisor == 'sampled' else 8
    box.append(np.sum(smooth_l1(deltas[i, sampled[i]] - targets[i], beta) * labels[i][:, None]) / number)
  ours = losses.rpn_losses(outputs, beta, divisor)
  np.testing.assert_allclose(ours['rpn/objectness'], np.mean(objectness), rtol=1e-5)
  np.testing.assert_allclose(ours['rpn/box'], np.mean(box), rtol=1e-5)


def box_outputs(rng, agnostic, classes=((3, 1, 0, 0), (2, 0, 0, 0)), weights=((1, 1, 1, 1), (1, 1, 0, 0))):
  logits, deltas = rng.normal(size=(2, 4, 4)), rng.normal(size=(2, 4, 1 if agnostic else 3, 4))
  targets = rng.normal(size=(2, 4, 4))
  rois = RoISamples(*constants(np.zeros([2, 4, 4]), np.array(classes), np.zeros([2, 4], int), np.float32(weights),
                               targets))
  return BoxOutputs(*constants(logits, deltas), rois), logits, deltas, targets


@pytest.mark.parametrize('agnostic', [False, True])
def test_box_losses_divide_by_all_rois_in_use(rng, agnostic):
  outputs, logits, deltas, targets = box_outputs(rng, agnostic)
  entropy, regression = 0, 0
  for i, r, k in ((0, 0, 3), (0, 1, 1), (0, 2, 0), (0, 3, 0), (1, 0, 2), (1, 1, 0)):
    entropy += np.log(np.exp(logits[i, r]).sum()) - logits[i, r, k]
    if k:
      regression += smooth_l1(deltas[i, r, 0 if agnostic else k - 1] - targets[i, r], 1.0).sum()
  ours = losses.box_losses(outputs, 1.0)
  np.testing.assert_allclose(ours, [entropy / 6, regression / 6], rtol=1e-5)


def test_mask_loss_is_a_mean_over_foreground_cells(rng):
  logits, targets = rng.normal(size=(2, 3, 5, 5)), rng.integers(0, 2, (2, 3, 5, 5)).astype('f')
  weights = np.float32([[1, 1, 0], [1, 0, 0]])
  entropy = (softplus(logits) - targets * logits).mean((2, 3))
  ours = losses.mask_loss(MaskOutputs(*constants(logits, targets, weights)))
  np.testing.assert_allclose(ours, (entropy * weights).sum() / 3, rtol=1e-5)


def keypoint_outputs(rng, visible=((1, 1, 0), (1, 0, 0))):
  """Two images of two RoIs with three keypoints on maps of 4 x 4; the second RoI of each has nothing visible."""
  logits, targets = rng.normal(0, 3, (2, 2, 3, 4, 4)), rng.integers(0, 16, (2, 2, 3))
  weights = np.float32([[image, (0, 0, 0)] for image in visible])
  outputs = KeypointOutputs(*constants(logits, targets, weights))
  flat = logits.reshape(2, 2, 3, 16)
  entropy = np.log(np.exp(flat).sum(-1)) - np.take_along_axis(flat, targets[..., None], -1)[..., 0]
  return outputs, (entropy * weights).sum(), weights.sum()


def test_keypoint_loss_is_a_mean_over_visible_keypoints(rng):
  outputs, total, number = keypoint_outputs(rng)
  np.testing.assert_allclose(losses.keypoint_loss(outputs, min_keypoints=0), total / number, rtol=1e-5)
  np.testing.assert_allclose(losses.keypoint_loss(outputs, divisor=10.0, min_keypoints=3), total / 20, rtol=1e-5)
  assert losses.keypoint_loss(outputs, min_keypoints=4) == 0  # fewer than min_keypoints
  nothing, _, _ = keypoint_outputs(rng, visible=((0, 0, 0), (0, 0, 0)))
  assert losses.keypoint_loss(nothing, min_keypoints=0) == 0


def test_without_objects_losses_are_zero_and_gradients_finite(rng):
  logits = tf.Variable(rng.normal(size=(1, 3, 5, 5)), dtype=tf.float32)
  rpn, _ = rpn_outputs(rng, used=(0, 0))
  boxes, *_ = box_outputs(rng, False, np.zeros([2, 4], int), np.zeros([2, 4]))
  with tf.GradientTape() as tape:
    mask = losses.mask_loss(MaskOutputs(logits, tf.zeros([1, 3, 5, 5]), tf.zeros([1, 3])))
  assert mask == 0 and not np.any(tape.gradient(mask, logits))
  assert all(value == 0 for value in losses.rpn_losses(rpn, 0).values())
  assert all(value == 0 for value in losses.box_losses(boxes, 0))


@pytest.mark.parametrize('stages, names', [
  (1, {'box/class', 'box/regression'}),
  (2, {'box/class/stage1', 'box/regression/stage1', 'box/class/stage2', 'box/regression/stage2'}),
])
def test_names_of_the_losses(rng, stages, names):
  outputs = Outputs({}, rpn_outputs(rng)[0], Proposals(None, None, None), (box_outputs(rng, False)[0],) * stages)
  ours = losses.MaskRCNNLoss()(outputs, None)
  assert set(ours) == {'rpn/objectness', 'rpn/box'} | names
  assert all(value.dtype == tf.float32 and value.shape == () for value in ours.values())


def test_unknown_divisor():
  with pytest.raises(UserError, match="rpn_box_divisor = 'anchors'"):
    losses.MaskRCNNLoss(rpn_box_divisor='anchors')


def k_hot_entropy(logits, classes, smoothing):
  """Softmax cross-entropy with the full table of targets, float64, mean over labelled images."""
  shifted = logits - logits.max(1, keepdims=True)
  log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
  targets = np.zeros(logits.shape)
  for row, labels in enumerate(classes):
    own = labels[labels >= 0]
    targets[row, own] = 1 / max(len(own), 1)
  targets = (1 - smoothing) * targets + smoothing / logits.shape[1]
  labelled = (classes >= 0).any(1)
  return -(targets * log_probabilities).sum(1)[labelled].sum() / max(labelled.sum(), 1)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('classes', [
  [[3], [0], [6], [3]], [[3, -1, -1], [0, 5, -1], [1, 2, 6], [-1, 4, -1]], [[3, 1], [-1, -1], [2, -1], [-1, -1]],
  [[-1], [-1], [-1], [-1]]], ids=['single', 'several', 'unlabelled', 'none'])
def test_cross_entropy_with_several_labels(rng, classes, smoothing):
  logits, classes = rng.normal(0, 4, (4, 7)), np.array(classes, np.int32)
  batch = LabelledImages(None, None, None, tf.constant(classes))
  outputs = ClassifierOutputs({}, tf.constant(logits, tf.float32))
  found = losses.ClassificationLoss(smoothing)(outputs, batch)
  assert list(found) == ['class']
  np.testing.assert_allclose(found['class'], k_hot_entropy(logits, classes, smoothing), rtol=1e-5, atol=1e-7)


def test_gradient_of_cross_entropy_is_probability_minus_target():
  classes = tf.constant([[1, 4, -1], [2, -1, -1]])
  logits = tf.constant(np.random.default_rng(1).normal(size=(2, 5)), tf.float32)
  with tf.GradientTape() as tape:
    tape.watch(logits)
    loss = losses.classification_loss(logits, classes)
  targets = np.array([[0, 0.5, 0, 0, 0.5], [0, 0, 1, 0, 0]])
  np.testing.assert_allclose(tape.gradient(loss, logits), (tf.nn.softmax(logits) - targets) / 2, atol=1e-6)


def test_extreme_logits_stay_finite():
  logits = tf.constant([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
  np.testing.assert_allclose(losses.classification_loss(logits, tf.constant([[0], [0]])), 1e4, rtol=1e-6)


@pytest.mark.parametrize('smoothing', [-0.1, 1.0])
def test_label_smoothing_out_of_range(smoothing):
  with pytest.raises(UserError, match='label_smoothing'):
    losses.ClassificationLoss(smoothing)
