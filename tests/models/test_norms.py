"""Norms: their contract, float64 references, padding and replicas."""

import importlib.util
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError
from rethink_tf.models import norms

ADDONS = bool(importlib.util.find_spec('tensorflow_addons'))
ALL = (norms.group_norm, norms.sync_batch_norm, norms.frozen_batch_norm, norms.no_norm)


@pytest.fixture
def x():
  return np.random.default_rng(0).normal(3.0, 2.0, (4, 6, 5, 32)).astype(np.float32)


@pytest.fixture
def policy(request):
  tf_keras.mixed_precision.set_global_policy(request.param)
  yield request.param
  tf_keras.mixed_precision.set_global_policy('float32')


@pytest.fixture
def mixed_bfloat16():
  tf_keras.mixed_precision.set_global_policy('mixed_bfloat16')
  yield
  tf_keras.mixed_precision.set_global_policy('float32')


def make(norm, x, **arguments):
  layer = norm(name='norm', **arguments)
  layer(x)
  rng = np.random.default_rng(1)
  for variable in layer.variables:
    variable.assign(rng.uniform(0.5, 1.5, variable.shape))
  return layer


def reference(x, layer, rows=slice(None)):
  """Batch normalisation with the statistics of some rows in float64, their mean and unbiased variance."""
  used = np.float64(x)[rows]
  mean, variance = used.mean((0, 1, 2)), used.var((0, 1, 2))
  number = used[..., 0].size
  y = (x - mean) / np.sqrt(variance + norms.EPSILON) * np.float64(layer.gamma) + np.float64(layer.beta)
  return y, mean, variance * number / (number - 1)


@pytest.mark.parametrize('norm', ALL)
def test_contract(norm, x):
  layer = norm(name='norm', zero_gamma=False)
  y = layer(x)
  assert layer.name == 'norm' and y.shape == x.shape
  names = sorted(v.name.split('/')[-1] for v in layer.trainable_variables)
  assert names == (['beta:0', 'gamma:0'] if norm in ALL[:2] else [])
  if norm in ALL[:2]:
    assert not np.any(norm(name='norm', zero_gamma=True)(x))


@pytest.mark.parametrize('norm', ALL[:3])
@pytest.mark.usefixtures('mixed_bfloat16')
def test_parameters_are_float32_under_mixed_precision(norm, x):
  layer = norm(name='norm')
  assert layer(x, training=True).dtype == tf.bfloat16
  assert all(v.dtype == tf.float32 for v in layer.variables)


@pytest.mark.parametrize('used', [None, [1, 0, 1, 1]])
def test_batch_norm_in_training(x, used):
  layer = make(norms.sync_batch_norm, x)
  moving = layer.moving_mean.numpy(), layer.moving_variance.numpy()
  y, mean, variance = reference(x, layer, slice(None) if used is None else np.flatnonzero(used))
  np.testing.assert_allclose(layer(x, used=used, training=True), y, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(layer.moving_mean, 0.9 * moving[0] + 0.1 * mean, rtol=1e-5)
  np.testing.assert_allclose(layer.moving_variance, 0.9 * moving[1] + 0.1 * variance, rtol=1e-5)


def test_batch_norm_gradients_of_all_implementations(x):
  """The fused kernel, the general implementation with all rows in use, and tf_keras' layer."""
  layer = make(norms.sync_batch_norm, x)
  keras = tf_keras.layers.BatchNormalization(epsilon=norms.EPSILON)
  keras.build(x.shape)
  keras.gamma.assign(layer.gamma)
  keras.beta.assign(layer.beta)
  upstream = tf.constant(np.random.default_rng(2).normal(size=x.shape), tf.float32)

  def gradients(call, variables):
    inputs = tf.constant(x)
    with tf.GradientTape() as tape:
      tape.watch(inputs)
      y = call(inputs)
    return tape.gradient(y, [inputs, *variables], upstream)

  expected = gradients(lambda inputs: keras(inputs, training=True), [keras.gamma, keras.beta])
  for used in (None, tf.ones([4])):
    ours = gradients(lambda inputs, used=used: layer(inputs, used=used, training=True), [layer.gamma, layer.beta])
    for a, b in zip(ours, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_batch_norm_without_rows_has_no_effect(x):
  layer = make(norms.sync_batch_norm, x)
  before = [v.numpy() for v in layer.variables]
  with tf.GradientTape() as tape:
    y = layer(x, used=tf.zeros([4]), training=True)
    loss = tf.reduce_sum(y * 0.0)
  assert np.isfinite(y).all()
  assert not any(np.any(g) for g in tape.gradient(loss, layer.trainable_variables))
  for a, b in zip(before, layer.variables, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('frozen', [False, True])
def test_batch_norm_outside_training_uses_moving_statistics(x, frozen):
  layer = make(norms.sync_batch_norm, x)
  layer.trainable = not frozen
  moving = layer.moving_mean.numpy(), layer.moving_variance.numpy()
  expected = (x - moving[0]) / np.sqrt(moving[1] + norms.EPSILON) * layer.gamma.numpy() + layer.beta.numpy()
  np.testing.assert_allclose(layer(x, training=frozen), expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(layer.moving_mean, moving[0])


@pytest.mark.parametrize('used', [None, [1, 1, 1, 1]])
@pytest.mark.usefixtures('mixed_bfloat16')
def test_batch_norm_of_bfloat16_has_float32_statistics(x, used):
  layer = make(norms.sync_batch_norm, x)
  far = tf.cast(x + 60, tf.bfloat16)  # mean / standard deviation about 30
  layer.moving_mean.assign(tf.zeros([32]))
  y = layer(far, used=used, training=True)
  assert y.dtype == tf.bfloat16
  expected, mean, _ = reference(tf.cast(far, tf.float32).numpy(), layer)
  assert np.abs(tf.cast(y, tf.float32) - expected).max() < 4e-3 * np.abs(expected).max()
  np.testing.assert_allclose(layer.moving_mean, 0.1 * mean, rtol=1e-5)


UNEQUAL = ([[1, 1, 1, 0], [0, 0, 1, 0]], [[0, 0, 0, 0], [1, 0, 1, 1]])  # rows in use on the two replicas


def on_replicas(strategy, function, *arrays):
  """Run a function with row i of each array [replicas, ...] on replica i; return the results of each replica."""
  shared = [strategy.experimental_distribute_values_from_function(
    lambda context, array=array: tf.constant(array[context.replica_id_in_sync_group])) for array in arrays]
  results = tf.function(lambda *x: strategy.run(function, x), autograph=False)(*shared)
  return [strategy.experimental_local_results(result) for result in results]


@pytest.mark.parametrize('used', UNEQUAL)
def test_replicas_are_weighted_by_their_rows(x, two_replicas, used):
  """With different numbers of rows in use on each replica, the result is that of a single device."""
  used = np.float32(used)
  inputs = np.stack([x, x[::-1] + 5])
  alone = make(norms.sync_batch_norm, x)
  expected, mean, variance = reference(inputs.reshape(8, *x.shape[1:]), alone, np.flatnonzero(used))
  with two_replicas.scope():
    layer = make(norms.sync_batch_norm, x)
  moving = layer.moving_mean.numpy(), layer.moving_variance.numpy()
  outputs, = on_replicas(two_replicas, lambda a, b: [layer(a, used=b, training=True)], inputs, used)
  np.testing.assert_allclose(np.concatenate(outputs), expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(layer.moving_mean.numpy(), 0.9 * moving[0] + 0.1 * mean, rtol=1e-5)
  np.testing.assert_allclose(layer.moving_variance.numpy(), 0.9 * moving[1] + 0.1 * variance, rtol=1e-5)


@pytest.mark.parametrize('used', UNEQUAL)
def test_gradients_of_unequal_replicas_are_those_of_one_batch(x, two_replicas, used):
  inputs, used = np.stack([x, x[::-1] + 5]), np.float32(used)
  upstream = np.random.default_rng(2).normal(size=inputs.shape).astype(np.float32) * used[..., None, None, None]

  def gradients(layer, x, used, upstream):
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = layer(x, used=used, training=True)
    return tape.gradient(y, [x, layer.gamma, layer.beta], upstream)

  whole = gradients(make(norms.sync_batch_norm, x),
                    *(tf.constant(np.concatenate(array)) for array in (inputs, used, upstream)))
  with two_replicas.scope():
    layer = make(norms.sync_batch_norm, x)
  dx, *parameters = on_replicas(two_replicas, lambda *a: gradients(layer, *a), inputs, used, upstream)
  np.testing.assert_allclose(np.concatenate(dx), whole[0], rtol=1e-4, atol=1e-5)
  for ours, expected in zip(parameters, whole[1:], strict=True):  # the trainer sums over replicas
    np.testing.assert_allclose(np.sum(ours, 0), expected, rtol=1e-4, atol=1e-4)


def test_replicas_without_rows_have_no_effect(x, two_replicas):
  with two_replicas.scope():
    layer = make(norms.sync_batch_norm, x)
  moving = layer.moving_mean.numpy(), layer.moving_variance.numpy()
  outputs, = on_replicas(two_replicas, lambda a, b: [layer(a, used=b, training=True)], np.stack([x, x]),
                         np.zeros([2, 4], np.float32))
  assert np.isfinite(outputs).all()
  np.testing.assert_array_equal(layer.moving_mean.numpy(), moving[0])
  np.testing.assert_array_equal(layer.moving_variance.numpy(), moving[1])


@pytest.mark.parametrize('used', [None, [1, 0, 1, 1], [0, 0, 0, 0]])
def test_recorded_statistics_do_not_change_the_moving_ones(x, used):
  layer = make(norms.sync_batch_norm, x)
  before = [v.numpy() for v in layer.variables]
  with norms.recorded_statistics() as found:
    layer(x, used=used, training=True)
    layer(x, used=used)  # not recorded outside training
  for a, b in zip(before, layer.variables, strict=True):
    np.testing.assert_array_equal(a, b)
  (mean, variance, count), = found[layer]
  assert count == 30 * (4 if used is None else sum(used))
  if count > 0:
    _, *expected = reference(x, layer, slice(None) if used is None else np.flatnonzero(used))
    np.testing.assert_allclose([mean, variance], expected, rtol=1e-5)
  layer(x, training=True)
  assert len(found[layer]) == 1 and np.any(layer.moving_mean != before[-2])


def test_frozen_batch_norm_is_an_affine_map(x):
  layer = make(norms.frozen_batch_norm, x)
  gamma, beta, mean, variance = (v.numpy() for v in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance))
  expected = (x - mean) / np.sqrt(variance + norms.EPSILON) * gamma + beta
  for training in (False, True):
    np.testing.assert_allclose(layer(x, training=training), expected, rtol=1e-5, atol=1e-5)


def test_group_norm_equals_tf_keras_with_our_epsilon(x):
  layer = make(norms.group_norm, x, groups=8)
  keras = tf_keras.layers.GroupNormalization(8, epsilon=1e-5)
  keras.build(x.shape)
  keras.set_weights(layer.get_weights())
  np.testing.assert_allclose(layer(x), keras(x), rtol=1e-4, atol=1e-5)


def test_invalid_arguments(x):
  with pytest.raises(UserError, match='groups = 24 does not divide the 32 channels of norm'):
    norms.group_norm('norm', groups=24)(x)
  with pytest.raises(UserError, match='zero_init_residual = False'):
    norms.no_norm('norm', zero_gamma=True)


@pytest.mark.skipif(not ADDONS, reason="the extra '.[addons]' is not installed")
def test_addons_group_norm_equals_ours(x):
  theirs, ours = make(norms.addons_group_norm, x), make(norms.group_norm, x)
  theirs.set_weights(ours.get_weights())
  np.testing.assert_allclose(theirs(x), ours(x), rtol=1e-4, atol=1e-5)


@pytest.fixture(params=['addons', 'keras'])
def addons(request, monkeypatch):
  """tensorflow-addons, or its successor, tf_keras' layer of the same interface."""
  if request.param == 'keras':
    layers = types.SimpleNamespace(GroupNormalization=tf_keras.layers.GroupNormalization)
    monkeypatch.setitem(sys.modules, 'tensorflow_addons', types.SimpleNamespace(layers=layers))
    monkeypatch.setitem(sys.modules, 'tensorflow_addons.layers', layers)
  elif not ADDONS:
    pytest.skip("the extra '.[addons]' is not installed")


@pytest.mark.parametrize('policy', ['float32', 'mixed_bfloat16', 'mixed_float16'], indirect=True)
@pytest.mark.parametrize('eager', [True, False], ids=['eager', 'graph'])
@pytest.mark.usefixtures('addons')
def test_addons_group_norm_computes_in_float32(policy, eager, x):
  """The variance of a deviation of 400 overflows in float16, and the mean exceeds the digits of bfloat16."""
  dtype = tf.float32 if policy == 'float32' else tf.as_dtype(policy.removeprefix('mixed_'))
  inputs = tf.cast(200 * x, dtype)
  layer = make(norms.addons_group_norm, inputs, groups=8)
  assert layer.name == 'norm' and {v.dtype for v in layer.variables} == {tf.float32}

  def both(inputs, upstream):
    with tf.GradientTape() as tape:
      tape.watch(inputs)
      y = layer(inputs, training=True)
    return y, tape.gradient(y, [inputs, *layer.trainable_variables], upstream)

  upstream = tf.cast(np.random.default_rng(2).normal(size=x.shape), dtype)
  y, gradients = (both if eager else tf.function(both))(inputs, upstream)
  assert y.dtype == gradients[0].dtype == dtype and {g.dtype for g in gradients[1:]} == {tf.float32}
  wide = np.float64(inputs).reshape(4, 6, 5, 8, 4)
  axes = (1, 2, 4)
  scaled = (wide - wide.mean(axes, keepdims=True)) / np.sqrt(wide.var(axes, keepdims=True) + norms.EPSILON)
  expected = scaled.reshape(x.shape) * np.float64(layer.gamma) + np.float64(layer.beta)
  rounding = {tf.float32: 1e-6, tf.bfloat16: 2 ** -8, tf.float16: 2 ** -11}[dtype]  # of y, once
  np.testing.assert_allclose(np.float64(y), expected, rtol=1.01 * rounding, atol=1e-5)
  np.testing.assert_allclose(gradients[1], (np.float64(upstream) * scaled.reshape(x.shape)).sum((0, 1, 2)), rtol=1e-4,
                             atol=1e-3)
  assert not np.any(norms.addons_group_norm('norm', zero_gamma=True)(inputs))


@pytest.mark.skipif(ADDONS, reason="the extra '.[addons]' is installed")
def test_a_missing_extra():
  with pytest.raises(UserError, match=r"NORM = @addons_group_norm needs the extra: pip install -e '\.\[addons\]'"):
    norms.addons_group_norm('norm')


@pytest.mark.parametrize('make', [norms.group_norm, norms.sync_batch_norm, norms.frozen_batch_norm])
def test_a_layer_that_is_built_by_hand_keeps_its_variables_when_called(make):
  layer = make('norm')
  layer.build(tf.TensorShape([None, 2, 2, 32]))
  layer.gamma.assign(tf.fill([32], 2.0))
  layer(tf.ones([1, 2, 2, 32]))
  np.testing.assert_array_equal(layer.gamma, 2.0)
