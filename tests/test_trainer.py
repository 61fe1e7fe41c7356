"""The train step: micro-batches, replicas, empty images, and that every variable trains."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.losses import MaskRCNNLoss
from rethink_tf.models.norms import sync_batch_norm
from rethink_tf.optimizers import SGD
from rethink_tf.trainer import Trainer
from tests import tiny


def make(batch, micro_batches=1, **parts):
  tf_keras.utils.set_random_seed(7)
  trainer = Trainer(tiny.detector(**parts), MaskRCNNLoss(), micro_batches)
  trainer.compile(SGD(0.05, weight_decay=0.0))
  trainer.make_variables(batch)
  return trainer


def fit(trainer, batch, steps=1):
  data = tf.data.Dataset.from_tensors(batch).repeat()
  return trainer.fit(data, steps_per_epoch=steps, verbose=0).history


def weights(trainer):
  return {v.name: v.numpy() for v in trainer.detector.trainable_variables}


def largest_difference(a, b):
  assert a.keys() == b.keys()
  return max(np.abs(a[name] - b[name]).max() for name in a)


@pytest.fixture(scope='module')
def four():
  return tiny.batch(4)


@pytest.fixture(scope='module')
def one_device(four):
  """Weights after one step on four images, two at a time."""
  trainer = make(four, micro_batches=2)
  before = weights(trainer)
  history = fit(trainer, four)
  return before, weights(trainer), history


def test_every_variable_trains(one_device):
  before, after, _ = one_device
  still = [name for name in before if np.array_equal(before[name], after[name])]
  assert not still


def test_accumulated_gradient_is_the_mean_over_micro_batches(four, one_device):
  trainer = make(four)
  halves = [tf.nest.map_structure(lambda x, i=i: x[2 * i:2 * i + 2], four) for i in range(2)]
  (first, a), (second, b) = (trainer.gradients(half) for half in halves)
  trainer.micro_batches = 2
  losses, accumulated = trainer.accumulate(four)
  for name in losses:
    np.testing.assert_allclose(losses[name], (first[name] + second[name]) / 2, rtol=1e-5)
  for mean, x, y in zip(accumulated, a, b, strict=True):
    np.testing.assert_allclose(mean, (x + y) / 2, atol=1e-6 + 1e-4 * np.abs(mean).max())


def test_one_and_two_replicas_give_the_same_weights(four, one_device, two_replicas):
  with two_replicas.scope():
    trainer = make(four, micro_batches=1)
  before, after, history = one_device
  assert largest_difference(weights(trainer), before) == 0  # the same start
  split = fit(trainer, four)
  moved = largest_difference(before, after)
  assert largest_difference(weights(trainer), after) < 1e-4 * moved
  for name, values in history.items():
    np.testing.assert_allclose(split[name], values, rtol=1e-5)


@pytest.mark.slow
def test_sync_batch_norm_sees_the_batch_of_all_replicas(four, two_replicas):
  whole = make(four, norm=sync_batch_norm, mask_head=None)
  before = weights(whole)
  fit(whole, four)
  with two_replicas.scope():
    halves = make(four, norm=sync_batch_norm, mask_head=None)
  fit(halves, four)
  moving = [v for v in whole.detector.non_trainable_variables if 'backbone' in v.name and 'moving_mean' in v.name]
  other = {v.name: v for v in halves.detector.non_trainable_variables}
  assert moving
  for variable in moving:
    np.testing.assert_allclose(other[variable.name].numpy(), variable.numpy(), atol=1e-5, rtol=1e-4)
  assert largest_difference(weights(halves), weights(whole)) < 0.05 * largest_difference(before, weights(whole))


def test_images_without_objects_train_the_background_only():
  empty = tiny.batch(2, objects=0)
  trainer = make(empty)
  losses, gradients = trainer.gradients(empty)
  assert all(np.isfinite(value) for value in losses.values())
  assert losses['loss/mask'] == losses['loss/box/regression'] == losses['loss/rpn/box'] == 0
  assert losses['loss/rpn/objectness'] > 0 and losses['loss/box/class'] > 0
  for variable, gradient in zip(trainer.detector.trainable_variables, gradients, strict=True):
    assert np.isfinite(gradient).all(), variable.name
    if 'mask_head' in variable.name or 'mask_predictor' in variable.name:
      assert not np.any(gradient), variable.name


def test_prediction_is_the_same_on_one_and_two_replicas(four, two_replicas):
  alone = make(four)
  with two_replicas.scope():
    shared = make(four)
  for a, b in zip(alone.predict_batch(four), shared.predict_batch(four), strict=True):
    if a is None:
      assert b is None  # keypoints
    else:
      np.testing.assert_allclose(a, b, atol=1e-4)


def test_prediction_without_masks_on_two_replicas(four, two_replicas):
  with two_replicas.scope():
    shared = make(four, mask_head=None)
  detections = shared.predict_batch(four)
  assert detections.masks is None and detections.boxes.shape[0] == len(detections.scores) == 4


def test_a_detector_without_masks_has_no_mask_loss(four):
  losses, _ = make(four, mask_head=None).gradients(four)
  assert set(losses) == {'loss/total', 'loss/rpn/objectness', 'loss/rpn/box', 'loss/box/class', 'loss/box/regression'}


def test_gradients_repeat_to_the_last_bit():
  """Sums of three gradients did not, in one step of seven: which came first was a matter of timing."""
  two = tiny.batch(2)
  trainer = make(two)
  step = tf.function(lambda: trainer.gradients(two)[1], autograph=False)
  first = [gradient.numpy() for gradient in step()]
  for _ in range(60):
    for a, b in zip(first, step(), strict=True):
      np.testing.assert_array_equal(b.numpy(), a)
