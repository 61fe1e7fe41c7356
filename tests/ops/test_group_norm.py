"""Group normalisation against float64: values and gradients, in float32 and bfloat16, also with a large mean."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.doctor.references import group_norm as reference
from rethink_tf.ops.group_norm import group_norm, portable_group_norm

EPSILON = 1e-5


def compute(x, gamma, beta, groups, dy, dtype=tf.float32, landscape=False):
  x, dy = tf.cast(x, dtype), tf.cast(dy, dtype)
  gamma, beta = tf.cast(gamma, tf.float32), tf.cast(beta, tf.float32)
  with tf.GradientTape() as tape:
    tape.watch([x, gamma, beta])
    y = group_norm(x, gamma, beta, groups, EPSILON, landscape=landscape)
  return (y, *tape.gradient(y, [x, gamma, beta], dy))


def draw(shape, mean=0.0, seed=0):
  rng = np.random.default_rng(seed)
  channels = shape[-1]
  x = rng.normal(size=shape) + mean
  return x, rng.uniform(0.5, 1.5, channels), rng.normal(size=channels), rng.normal(size=shape)


def errors(ours, expected):
  return [np.abs(np.float64(a) - b).max() / np.abs(b).max() for a, b in zip(ours, expected, strict=True)]


@pytest.mark.parametrize('shape, groups', [
  ((2, 25, 42, 64), 32), ((1, 100, 168, 64), 32), ((3, 7, 7, 256), 32), ((2, 14, 14, 64), 32), ((2, 17, 16, 6), 1),
  ((2, 5, 9, 6), 6), ((1, 2, 3, 64), 32),
])
def test_float32_is_accurate_to_1e6(shape, groups):
  x, gamma, beta, dy = draw(shape)
  x = np.float32(x)
  y, dx, dgamma, dbeta = errors(compute(x, gamma, beta, groups, dy), reference(x, np.float32(gamma), np.float32(beta),
                                                                              groups, np.float32(dy)))
  assert y < 1e-6
  assert dx < 3e-6 and dgamma < 3e-6 and dbeta < 3e-6


@pytest.mark.parametrize('shape', [(2, 50, 84, 64), (4, 14, 14, 64), (4, 7, 7, 64)])
def test_a_mean_of_thirty_deviations_is_as_accurate(shape):
  """One-pass statistics have an error of 2e-4 here."""
  x, gamma, beta, dy = draw(shape, mean=30.0)
  x = np.float32(x)
  y, dx, dgamma, dbeta = errors(compute(x, gamma, beta, 32, dy), reference(x, np.float32(gamma), np.float32(beta), 32,
                                                                          np.float32(dy)))
  assert y < 1e-6 and dx < 3e-6 and dbeta < 3e-6
  assert dgamma < 3e-5  # a sum over x_hat, whose rounding errors share a sign


@pytest.mark.parametrize('mean', [0.0, 30.0])
def test_bfloat16_has_float32_statistics(mean):
  """The error is the rounding of the output (2^-9); gradients of the parameters are float32."""
  x, gamma, beta, dy = draw((2, 50, 84, 64), mean)
  x, dy = tf.cast(x, tf.bfloat16), tf.cast(dy, tf.bfloat16)
  ours = compute(x, gamma, beta, 32, dy, tf.bfloat16)
  assert [v.dtype for v in ours] == [tf.bfloat16, tf.bfloat16, tf.float32, tf.float32]
  expected = reference(tf.cast(x, tf.float32), np.float32(gamma), np.float32(beta), 32, tf.cast(dy, tf.float32))
  y, dx, dgamma, dbeta = errors(ours, expected)
  assert y < 4e-3 and dx < 4e-3
  assert dgamma < 3e-5 and dbeta < 3e-6
  if mean:  # tf_keras computes statistics in bfloat16
    import tf_keras
    layer = tf_keras.layers.GroupNormalization(32, epsilon=EPSILON, dtype='mixed_bfloat16')
    layer.build(x.shape)
    layer.set_weights([np.float32(gamma), np.float32(beta)])
    assert errors([layer(x)], expected[:1])[0] > 4 * y


def test_images_are_normalised_separately():
  x, gamma, beta, dy = draw((3, 20, 30, 32))
  together = compute(x, gamma, beta, 32, dy)[:2]
  alone = compute(x[1:2], gamma, beta, 32, dy[1:2])[:2]
  for a, b in zip(together, alone, strict=True):
    np.testing.assert_allclose(a[1:2], b, rtol=1e-5, atol=1e-6)


def test_constant_groups_are_finite():
  x, gamma, beta, dy = draw((1, 20, 20, 32))
  x[..., :16] = 5.0
  y, dx, _, _ = compute(x, gamma, beta, 2, dy)
  np.testing.assert_allclose(y[..., :16], np.broadcast_to(np.float32(beta[:16]), (1, 20, 20, 16)),
                             atol=3e-4)  # one unit in the last place of 5, over sqrt(epsilon)
  assert np.isfinite(dx).all()


@pytest.mark.parametrize('jit_compile', [False, True])
def test_graphs_with_unknown_shapes(jit_compile):
  x, gamma, beta, dy = draw((2, 33, 20, 64))
  specification = tf.TensorSpec([None, None, None, 64])
  run = tf.function(functools.partial(lambda x, dy: compute(x, gamma, beta, 32, dy)), jit_compile=jit_compile,
                    input_signature=[specification, specification])
  for a, b in zip(run(np.float32(x), np.float32(dy)), reference(x, gamma, beta, 32, dy), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_results_are_bit_identical():
  arguments = draw((2, 60, 80, 64))
  first = compute(*arguments[:3], 32, arguments[3])
  for _ in range(3):
    for a, b in zip(first, compute(*arguments[:3], 32, arguments[3]), strict=True):
      np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('dtype', [tf.float32, tf.bfloat16])
def test_without_xla_it_is_the_same(dtype):
  x, gamma, beta, dy = draw((2, 9, 8, 64), mean=3.0)
  x, dy = tf.cast(x, dtype), tf.cast(dy, dtype)
  parameters = [tf.constant(v, tf.float32) for v in (gamma, beta)]
  results = []
  for xla in (True, False):
    with tf.GradientTape() as tape:
      tape.watch([x, *parameters])
      y = group_norm(x, *parameters, 32, EPSILON, xla=xla)
    results.append([y, *tape.gradient(y, [x, *parameters], dy)])
  rounding = 1e-6 if dtype == tf.float32 else 2.0**-8  # of an output that lies between two values
  assert max(errors(results[1][:2], [np.float64(v) for v in results[0][:2]])) <= rounding
  assert max(errors(results[1][2:], [np.float64(v) for v in results[0][2:]])) <= 1e-6


def test_without_xla_nothing_is_compiled(monkeypatch):
  compiled, function = [], tf.function
  monkeypatch.setattr(tf, 'function', lambda *args, **kwargs: compiled.append(kwargs['jit_compile']) or
                      function(*args, **kwargs))
  x = tf.zeros([1, 2, 2, 6])
  group_norm(x, tf.ones([6]), tf.zeros([6]), 3, 1e-4)
  assert compiled == [True] * 2
  compiled.clear()
  group_norm(x, tf.ones([6]), tf.zeros([6]), 3, 1e-4, xla=False)
  monkeypatch.setattr(tf.test, 'is_built_with_xla', lambda: False)
  group_norm(x, tf.ones([6]), tf.zeros([6]), 2, 1e-4)
  assert compiled == [False] * 4


@pytest.mark.parametrize('dtype', [tf.float32, tf.bfloat16])
def test_the_portable_form_is_the_same(dtype):
  x, gamma, beta, _ = draw((2, 25, 42, 64), mean=100.0)
  arguments = tf.cast(x, dtype), tf.constant(gamma, tf.float32), tf.constant(beta, tf.float32), 32, EPSILON
  ours, theirs = portable_group_norm(*arguments), group_norm(*arguments)
  assert ours.dtype == dtype and ours.shape == x.shape
  np.testing.assert_allclose(np.float64(ours), np.float64(theirs), atol=1e-4 if dtype == tf.float32 else 0.04)


def test_portrait_maps_are_normalised_as_landscape_ones():
  inputs = [np.float32(one) for one in draw((2, 21, 13, 64))]
  spec, parameter = tf.TensorSpec([2, None, None, 64]), tf.TensorSpec([64])
  found = tf.function(lambda x, gamma, beta, dy: compute(x, gamma, beta, 32, dy, landscape=True),
                      [spec, parameter, parameter, spec], autograph=False)(*inputs)
  assert found[0].shape == found[1].shape == inputs[0].shape
  assert max(errors(found, reference(*inputs[:3], 32, inputs[3], EPSILON))) < 3e-6
  wide = [inputs[0].reshape(2, 13, 21, 64), *inputs[1:3], 32, inputs[3].reshape(2, 13, 21, 64)]
  for one, other in zip(found, compute(*wide), strict=True):
    np.testing.assert_array_equal(np.reshape(one, other.shape), other)
