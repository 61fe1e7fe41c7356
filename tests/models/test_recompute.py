"""Recomputation gives the same results and gradients: on one or two replicas, in bfloat16, under XLA."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError
from rethink_tf.models.norms import frozen_batch_norm, no_norm, sync_batch_norm
from rethink_tf.models.recompute import recomputed
from rethink_tf.models.resnet import ResNet
from rethink_tf.training.losses import MaskRCNNLoss
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.trainer import Trainer
from tests import tiny

BLOCKS = 4  # of depth 14


def backbone(recompute, depth=14, **changes):
  return ResNet(depth, stem_width=32, res2_width=32, width_per_group=32, recompute=recompute, **changes)


def trainer(recompute, batch, xla=False, **changes):
  tf_keras.utils.set_random_seed(7)
  made = Trainer(tiny.detector(xla=xla, backbone=backbone(recompute, **changes)), MaskRCNNLoss())
  made.compile(SGD(0.05, weight_decay=0.0))
  made.make_variables(batch)
  return made


def losses_and_gradients(recompute, batch, jit=False, **changes):
  made = trainer(recompute, batch, xla=jit, **changes)
  step = tf.function(lambda: made.gradients(batch), autograph=False, jit_compile=jit)
  losses, gradients = step()
  names = [v.name for v in made.detector.trainable_variables]
  return losses, dict(zip(names, (g.numpy() for g in gradients), strict=True))


def assert_equal(a, b, tolerance=0.0):
  for name in a[0]:
    np.testing.assert_allclose(b[0][name], a[0][name], rtol=tolerance)
  assert a[1].keys() == b[1].keys()
  for name, gradient in a[1].items():
    np.testing.assert_allclose(b[1][name], gradient, rtol=0, atol=tolerance * np.abs(gradient).max(), err_msg=name)


@pytest.fixture
def bfloat16():
  tf_keras.mixed_precision.set_global_policy('mixed_bfloat16')
  yield
  tf_keras.mixed_precision.set_global_policy('float32')


@pytest.fixture(scope='module')
def two():
  return tiny.batch(2)


@pytest.fixture(scope='module')
def images(two):
  return tf.cast(two.images, tf.float32) / 128.0 - 1.0


def backbone_gradients(recompute, images, jit=False, **changes):
  """Losses and gradients of the mean squares of a backbone's feature maps."""
  tf_keras.utils.set_random_seed(7)
  model = backbone(recompute, **changes)

  @tf.function(jit_compile=jit, autograph=False)
  def step(x):
    with tf.GradientTape() as tape:
      maps = model(x)
      losses = {name: tf.reduce_mean(tf.cast(y, tf.float32) ** 2) for name, y in maps.items()}
      total = tf.add_n(list(losses.values()))
    return losses, tape.gradient(total, model.trainable_variables)

  model(images[:, :32, :32])
  losses, gradients = step(images)
  assert len(gradients) == len(model.trainable_variables) > 5
  return losses, {v.name: g.numpy() for v, g in zip(model.trainable_variables, gradients, strict=True)}


@pytest.fixture(autouse=True, scope='module')
def optimised_graphs():
  """Tests do without Grappler (tests/replicas.py); without it, both forms round differently."""
  tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': False})
  yield
  tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': True})


@pytest.mark.parametrize('changes', [
  {}, *(pytest.param(each, marks=pytest.mark.slow)
        for each in ({'norm': no_norm}, {'norm': frozen_batch_norm}, {'freeze_at': 3}))])
def test_gradients_are_bit_identical(images, changes):
  assert_equal(*(backbone_gradients(recompute, images, **changes) for recompute in (False, True)))


@pytest.mark.slow
def test_gradients_under_xla(images):
  """Equal up to rounding: XLA may fuse the second computation differently."""
  assert_equal(*(backbone_gradients(recompute, images, jit=True) for recompute in (False, True)), tolerance=1e-5)


@pytest.mark.slow
def test_losses_and_gradients_of_a_detector_are_bit_identical(two):
  assert_equal(*(losses_and_gradients(recompute, two) for recompute in (False, True)))


@pytest.mark.slow
def test_losses_and_gradients_of_a_detector_in_bfloat16(two, bfloat16):
  assert_equal(*(losses_and_gradients(recompute, two) for recompute in (False, True)))


@pytest.mark.slow
def test_losses_and_gradients_of_a_compiled_detector(two):
  assert_equal(*(losses_and_gradients(recompute, two, jit=True) for recompute in (False, True)), tolerance=1e-5)


@pytest.mark.slow
def test_two_replicas_have_the_same_weights_after_a_step(two, two_replicas):
  after = []
  for recompute in (False, True):
    with two_replicas.scope():
      made = trainer(recompute, two)
    made.fit(tf.data.Dataset.from_tensors(two).repeat(), steps_per_epoch=1, verbose=0)
    after.append([v.numpy() for v in made.detector.trainable_variables])
  for plain, recomputing in zip(*after, strict=True):
    np.testing.assert_array_equal(recomputing, plain)


@pytest.mark.slow
def test_eager_gradients_are_the_same(two):
  tf_keras.utils.set_random_seed(1)
  block = backbone(False)
  x = tf.random.stateless_normal([1, 64, 64, 3], [1, 2])
  block(x)
  results = []
  for function in (lambda v: block(v)['C5'], recomputed(lambda v: block(v)['C5'])):
    with tf.GradientTape() as tape:
      tape.watch(x)
      loss = tf.reduce_sum(function(x) ** 2)
    results.append([loss, *tape.gradient(loss, [x, *block.trainable_variables])])
  for plain, recomputing in zip(*results, strict=True):
    np.testing.assert_array_equal(recomputing, plain)


def convolutions(recompute, images):
  """Number of convolutions and matrix products in XLA's optimized module of the backbone's gradient."""
  model = backbone(recompute)
  model(images)

  @tf.function(jit_compile=True, autograph=False)
  def step(x):
    with tf.GradientTape() as tape:
      loss = tf.reduce_sum(model(x)['C5'] ** 2)
    return tape.gradient(loss, model.trainable_variables)

  text = step.experimental_get_compiler_ir(images)(stage='optimized_hlo')
  return text.count(' convolution(') + text.count(' dot(')


@pytest.mark.slow
def test_xla_does_not_merge_the_second_computation_with_the_first(images):
  # At depth 14 each block has four convolutions; the last of a branch need not be repeated.
  assert convolutions(True, images) >= convolutions(False, images) + 2 * BLOCKS


def test_sync_batch_norm_is_refused():
  with pytest.raises(UserError, match='recompute'):
    backbone(True, norm=sync_batch_norm)
