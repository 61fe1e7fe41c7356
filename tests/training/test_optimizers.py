"""SGD against its formula in float64, and two replicas against one."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.schedules import KTimesSchedule

SHAPES = {'conv/kernel': (3, 3, 2, 4), 'conv/bias': (4,), 'norm/gamma': (4,), 'norm/beta': (4,), 'scale': (2, 2)}
# (multiple of the rate, decay) of each variable
RULES = {
  'detectron': {'conv/kernel': (1, 1e-2), 'conv/bias': (2, 0), 'norm/gamma': (1, 0), 'norm/beta': (2, 0),
                'scale': (1, 1e-2)},
  'detectron2': {'conv/kernel': (1, 1e-2), 'conv/bias': (1, 1e-2), 'norm/gamma': (1, 0), 'norm/beta': (1, 0),
                 'scale': (1, 1e-2)},
}


def variables_and_gradients(steps):
  random = np.random.default_rng(0)
  values = {name: random.normal(size=shape) for name, shape in SHAPES.items()}
  gradients = [{name: random.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(steps)]
  return values, gradients


@pytest.mark.parametrize('bias_rule', ['detectron', 'detectron2'])
@pytest.mark.parametrize('jit_compile', [False, True])
def test_formula_across_a_rate_drop(bias_rule, jit_compile):
  values, gradients = variables_and_gradients(steps=8)
  variables = {name: tf.Variable(value, dtype=tf.float32, name=name) for name, value in values.items()}
  schedule = KTimesSchedule(base_rate=.1, boundaries=(4,), total=8, warmup_steps=2)
  optimizer = SGD(schedule, weight_decay=1e-2, bias_rule=bias_rule)
  optimizer.build(list(variables.values()))

  @tf.function(jit_compile=jit_compile)
  def apply(step_gradients):
    optimizer.apply_gradients([(step_gradients[name], variables[name]) for name in variables])

  velocities = {name: np.zeros(shape) for name, shape in SHAPES.items()}
  rates = [.1 / 3, .1 * 2 / 3, .1, .1, .01, .01, .01, .01]
  for rate, step_gradients in zip(rates, gradients, strict=True):
    apply({name: tf.constant(gradient, tf.float32) for name, gradient in step_gradients.items()})
    np.testing.assert_allclose(optimizer.learning_rate, rate, rtol=1e-6)
    for name in SHAPES:
      multiple, decay = RULES[bias_rule][name]
      velocities[name] = .9 * velocities[name] + step_gradients[name] + decay * values[name]
      values[name] = values[name] - multiple * rate * velocities[name]
      np.testing.assert_allclose(variables[name], values[name], rtol=1e-5, atol=1e-6, err_msg=name)
  assert int(optimizer.iterations) == 8


def test_clip_norm_bounds_all_gradients_together():
  variables = [tf.Variable([0., 0.], name='a/kernel'), tf.Variable([0.], name='b/kernel')]
  optimizer = SGD(1., momentum=0., weight_decay=0., clip_norm=2.6)
  optimizer.apply_gradients(zip([tf.constant([3., 4.]), tf.constant([12.])], variables, strict=True))  # norm 13
  np.testing.assert_allclose(variables[0], [-.6, -.8], rtol=1e-6)
  np.testing.assert_allclose(variables[1], [-2.4], rtol=1e-6)


def test_gradients_are_unscaled_before_clipping():
  variables = [tf.Variable([0., 0.], name='a/kernel'), tf.Variable([0.], name='b/kernel')]
  optimizer = tf_keras.mixed_precision.LossScaleOptimizer(
    SGD(1., momentum=0., weight_decay=0., clip_norm=2.6), initial_scale=2.**10)
  scaled = [2.**10 * tf.constant([3., 4.]), 2.**10 * tf.constant([12.])]  # norm 13 once unscaled
  optimizer.get_scaled_loss(tf.constant(1.))
  optimizer.apply_gradients(zip(optimizer.get_unscaled_gradients(scaled), variables, strict=True))
  np.testing.assert_allclose(variables[0], [-.6, -.8], rtol=1e-6)
  np.testing.assert_allclose(variables[1], [-2.4], rtol=1e-6)


def test_an_overflow_counts_an_iteration_without_decay_or_momentum():
  """v and w are unchanged; the rate follows the iteration."""
  schedule = KTimesSchedule(base_rate=.1, boundaries=(2,), total=4, warmup_steps=0)
  variable = tf.Variable([1., -2.], name='kernel')
  optimizer = tf_keras.mixed_precision.LossScaleOptimizer(SGD(schedule, weight_decay=.01), initial_scale=8.)
  optimizer.get_scaled_loss(tf.constant(1.))
  w, velocity = np.array([1., -2.]), np.zeros(2)
  for step, (gradient, rate) in enumerate(zip([.5, np.inf, 1.5, np.nan, 2.], [.1, .1, .01, .01, .01], strict=True)):
    scaled = optimizer.loss_scale * tf.constant([gradient, 1.])
    optimizer.apply_gradients(zip(optimizer.get_unscaled_gradients([scaled]), [variable], strict=True))
    if np.isfinite(gradient):
      velocity = .9 * velocity + np.array([gradient, 1.]) + .01 * w
      w = w - rate * velocity
    np.testing.assert_allclose(variable, w, rtol=1e-5)
    np.testing.assert_allclose(optimizer.inner_optimizer.velocities[0], velocity, rtol=1e-5)
    assert int(optimizer.iterations) == step + 1
  assert float(optimizer.loss_scale) == 2.


def test_sparse_gradients_equal_dense_ones():
  results = []
  for dense in (True, False):
    table = tf.Variable(tf.ones([5, 2]), name='embedding/kernel')
    optimizer = SGD(.1, weight_decay=.1)
    for rows in ([0, 2], [2, 2]):
      gradient = tf.IndexedSlices(tf.ones([2, 2]), tf.constant(rows), dense_shape=[5, 2])
      optimizer.apply_gradients([(tf.convert_to_tensor(gradient) if dense else gradient, table)])
    results.append(table.numpy())
  np.testing.assert_array_equal(*results)


def small_model():
  tf_keras.utils.set_random_seed(0)
  return tf_keras.Sequential([
    tf_keras.layers.Dense(8, input_shape=(4,)), tf_keras.layers.LayerNormalization(), tf_keras.layers.Dense(1)])


def train(strategy, policy='float32', steps=5):
  """Weights and velocities after a few steps on the same data under any strategy."""
  random = np.random.default_rng(0)
  inputs, targets = random.normal(size=(8, 4)).astype('f'), random.normal(size=(8, 1)).astype('f')
  with strategy.scope():
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
      model = small_model()
      sgd = optimizer = SGD(KTimesSchedule(boundaries=(3,), total=5, warmup_steps=2))
      if policy == 'mixed_float16':
        optimizer = tf_keras.mixed_precision.LossScaleOptimizer(sgd, dynamic=False, initial_scale=64)
      model.compile(optimizer, 'mse')
    finally:
      tf_keras.mixed_precision.set_global_policy('float32')
  data = tf.data.Dataset.from_tensors((inputs, targets)).unbatch().batch(8, drop_remainder=True).repeat()
  model.fit(data, steps_per_epoch=steps, verbose=0)
  assert optimizer.iterations.numpy() == steps
  assert all(velocity.dtype == tf.float32 for velocity in sgd.velocities)
  return model.get_weights(), [velocity.numpy() for velocity in sgd.velocities]


def test_two_replicas_equal_one(two_replicas):
  one, two = train(tf.distribute.get_strategy()), train(two_replicas)
  for a, b in zip(one[0] + one[1], two[0] + two[1], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('replicas', [1, 2])
def test_mixed_precision_follows_float32(replicas, two_replicas):
  strategy = two_replicas if replicas == 2 else tf.distribute.get_strategy()
  exact, mixed = train(strategy)[0], train(strategy, 'mixed_float16')[0]
  for a, b in zip(exact, mixed, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-3)


def test_velocities_are_restored(tmp_path):
  weights, velocities = [], []
  for restart in (False, True):
    variable = tf.Variable([1., 2.], name='kernel')
    optimizer = SGD(.1)
    for step in range(4):
      if restart and step == 2:
        path = tf.train.Checkpoint(variable=variable, optimizer=optimizer).save(str(tmp_path / 'checkpoint'))
        variable = tf.Variable([0., 0.], name='kernel')
        optimizer = SGD(.1)
        optimizer.build([variable])
        tf.train.Checkpoint(variable=variable, optimizer=optimizer).restore(path).assert_consumed()
      optimizer.apply_gradients([(tf.constant([.5, 1. + step]), variable)])
    weights.append(variable.numpy())
    velocities.append(optimizer.velocities[0].numpy())
    assert int(optimizer.iterations) == 4
  np.testing.assert_array_equal(*weights)
  np.testing.assert_array_equal(*velocities)


@pytest.mark.parametrize('arguments, message', [
  ({'bias_rule': 'caffe'}, "bias_rule = 'caffe' must be"), ({'momentum': 1.}, 'momentum = 1.0'),
  ({'weight_decay': -1e-4}, 'weight_decay = -0.0001'),
])
def test_arguments_out_of_range(arguments, message):
  with pytest.raises(UserError, match=message):
    SGD(**arguments)


def test_nesterov_formula():
  variable = tf.Variable([1., -2.], name='kernel')
  optimizer = SGD(.1, momentum=.9, weight_decay=.01, nesterov=True)
  w, velocity = np.array([1., -2.]), np.zeros(2)
  for step in range(5):
    gradient = np.array([.5, 1. + step])
    optimizer.apply_gradients([(tf.constant(gradient, tf.float32), variable)])
    gradient = gradient + .01 * w
    velocity = .9 * velocity + gradient
    w = w - .1 * (gradient + .9 * velocity)
  np.testing.assert_allclose(variable, w, rtol=1e-5)


def test_config_round_trip():
  optimizer = SGD(.25, momentum=.8, weight_decay=.01, bias_rule='detectron2', clip_norm=3., nesterov=True)
  again = SGD.from_config(optimizer.get_config())
  assert again.get_config() == optimizer.get_config()
  assert again.momentum == .8 and again.global_clipnorm == 3. and again.rule('a/bias:0') == (1., .01)
