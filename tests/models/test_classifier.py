"""The classifier: shapes, arithmetic, and the same backbone as in the detector."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.models.classifier import Classifier
from rethink_tf.models.norms import group_norm, no_norm, sync_batch_norm
from rethink_tf.models.resnet import ResNet


def network(norm=group_norm, **arguments):
  tf_keras.utils.set_random_seed(0)
  backbone = ResNet(14, norm=norm, stem_width=32, res2_width=32, width_per_group=32, **arguments)
  return Classifier(5, backbone)


def random_images(count=3, side=64):
  return tf.constant(np.random.default_rng(0).integers(0, 256, (count, side, side, 3)), tf.uint8)


SIZES = tf.fill([3, 2], 64.0)


def test_logits_are_a_linear_map_of_the_mean_of_the_last_stage():
  model = network()
  images = random_images()
  outputs = model(images, SIZES)
  assert outputs.logits.shape == (3, 5) and outputs.logits.dtype == tf.float32
  assert outputs.features['C5'].shape == (3, 2, 2, 256)
  pooled = outputs.features['C5'].numpy().astype(np.float64).mean((1, 2))
  kernel, bias = (v.numpy().astype(np.float64) for v in model.linear.weights)
  np.testing.assert_allclose(outputs.logits, pooled @ kernel + bias, rtol=1e-4, atol=1e-5)
  assert outputs.predictions is outputs.logits


def test_pixels_are_normalised_as_in_a_detector():
  model = network(no_norm)
  features = model(random_images(), SIZES).features
  expected = model.backbone(tf.cast(random_images(), tf.float32) - [122.7717, 115.9465, 102.9801])
  np.testing.assert_allclose(features['C2'], expected['C2'], rtol=1e-5, atol=1e-4)


def test_initialisation_of_the_linear_layer():
  model = Classifier(1000, network().backbone)
  model(random_images(), SIZES)
  kernel, bias = model.linear.weights
  assert kernel.shape == (256, 1000) and abs(float(tf.math.reduce_std(kernel)) - 0.01) < 2e-4
  assert not bias.numpy().any()
  assert {v.name.split('/')[-1] for v in model.linear.weights} == {'kernel:0', 'bias:0'}  # used by the optimizer


def test_training_updates_statistics_and_every_variable_has_a_gradient():
  model = network(sync_batch_norm)
  with tf.GradientTape() as tape:
    outputs = model(random_images(), SIZES, training=True)
    loss = tf.reduce_sum(outputs.logits ** 2)
  before = [v.numpy() for v in model.non_trainable_variables]
  assert all(g is not None and np.isfinite(g).all() for g in tape.gradient(loss, model.trainable_variables))
  model(random_images(), SIZES, training=True)
  assert not all(np.array_equal(a, v) for a, v in zip(before, model.non_trainable_variables, strict=True))
  after = [v.numpy() for v in model.non_trainable_variables]
  model(random_images(), SIZES)
  assert all(np.array_equal(a, v) for a, v in zip(after, model.non_trainable_variables, strict=True))


def test_a_block_with_zero_gamma_is_its_shortcut():
  images = tf.cast(random_images(), tf.float32)
  zero, one = (network(zero_init_residual=flag).backbone for flag in (True, False))
  x = zero.stem(images)
  block = zero.stages[0][0]
  np.testing.assert_array_equal(block(x), tf.nn.relu(block.shortcut(x)))
  block = one.stages[0][0]
  x = one.stem(images)
  assert not np.array_equal(block(x), tf.nn.relu(block.shortcut(x)))


@pytest.mark.parametrize('policy', ['mixed_bfloat16'])
def test_logits_are_float32_under_a_mixed_policy(policy):
  tf_keras.mixed_precision.set_global_policy(policy)
  try:
    outputs = network()(random_images(), SIZES)
  finally:
    tf_keras.mixed_precision.set_global_policy('float32')
  assert outputs.logits.dtype == tf.float32 and outputs.features['C5'].dtype == tf.bfloat16
