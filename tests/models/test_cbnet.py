"""CBNet: zero connections give the lead, each style equals its formula, every variable has a gradient."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.bench import costs as complexity
from rethink_tf.errors import UserError
from rethink_tf.models.cbnet import CBNet
from rethink_tf.models.norms import frozen_batch_norm, group_norm, no_norm, sync_batch_norm
from rethink_tf.models.resnet import ResNet
from rethink_tf.models.vgg import VGG
from tests import tiny

STYLES = ('ahlc', 'dhlc', 'slc', 'allc')
small = functools.partial(ResNet, 14, stem_width=32, res2_width=32, width_per_group=32)


def images(height=32, width=64):
  return tf.random.stateless_normal([1, height, width, 3], [1, 2])


def composite(backbone=small, **arguments):
  tf_keras.utils.set_random_seed(5)
  made = CBNet(backbone, **arguments)
  made(images(32, 32))
  return made


def assert_same(a, b, tolerance=0.0):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=tolerance, atol=tolerance, err_msg=name)


def zero_connections(made):
  for variable in made.variables:
    if 'from' in variable.name and 'kernel' in variable.name:
      variable.assign(tf.zeros_like(variable))


@pytest.mark.parametrize('count, style, backbone, norm', [
  (2, 'ahlc', small, group_norm), pytest.param(2, 'dhlc', small, sync_batch_norm, marks=pytest.mark.slow),
  pytest.param(2, 'allc', small, group_norm, marks=pytest.mark.slow),
  pytest.param(3, 'ahlc', small, no_norm, marks=pytest.mark.slow),
  (3, 'dhlc', functools.partial(VGG, 11, width=4), no_norm),
], ids=['dual', 'dual dense', 'dual lower', 'triple', 'triple dense vgg'])
def test_zero_connections_give_the_lead(count, style, backbone, norm):
  made = composite(backbone, count=count, style=style, connector_norm=norm)
  whole, lead = made(images()), made.lead(images())
  assert any(not np.allclose(whole[name], lead[name], atol=1e-3) for name in lead)
  zero_connections(made)
  assert_same(made(images()), lead)


def test_zero_gamma_starts_as_the_lead():
  made = composite(connector_zero_gamma=True)
  assert_same(made(images()), made.lead(images()))


def test_a_count_of_one_is_the_backbone():
  made = composite(count=1)
  assert_same(made(images()), made.lead(images()))
  assert len(made.variables) == len(made.lead.variables) and not made.connectors


def levels_of(backbone, x, additions=(0, 0, 0, 0)):
  """Levels 1 to 5 of a ResNet, stage by stage, with additions to the stages' inputs."""
  levels = [backbone.begin(x) if x.shape[-1] == 3 else x]
  for blocks, addition in zip(backbone.stages, additions, strict=True):
    y = levels[-1] + addition
    for block in blocks:
      y = block(y)
    levels.append(y)
  return levels


def connect(made, pair, stage, level, x):
  """g of a level in NumPy: a matrix product over channels, a group norm, repeated pixels."""
  g = made.connectors[pair][stage - 2][str(level)]
  step = g.conv.strides[0]
  y = np.einsum('byxc,cd->byxd', x.numpy()[:, ::step, ::step], g.conv.kernel.numpy()[0, 0], dtype=np.float64)
  groups = y.reshape(*y.shape[:3], 32, -1)
  y = (groups - groups.mean((1, 2, 4), keepdims=True)) / np.sqrt(groups.var((1, 2, 4), keepdims=True) + 1e-5)
  y = y.reshape(*y.shape[:3], -1)
  strides = (4, 4, 8, 16, 32)
  factor = max(1, strides[level - 1] // strides[stage - 2])
  return y.repeat(factor, 1).repeat(factor, 2).astype(np.float32)


def additions_of(made, style, pair, levels):
  """The formulas of the module's docstring, from the levels [1..5] of the previous backbone."""
  x = dict(enumerate(levels, 1))
  stages = (2, 3, 4, 5)
  if style == 'ahlc':
    return [connect(made, pair, stage, stage, x[stage]) for stage in stages]
  if style == 'dhlc':
    return [sum(connect(made, pair, stage, i, x[i]) for i in range(stage, 6)) for stage in stages]
  if style == 'slc':
    return [x[stage - 1] for stage in stages]
  return [0, *(connect(made, pair, stage, stage - 2, x[stage - 2]) for stage in stages[1:])]


@pytest.mark.parametrize('count, style, shared', [
  *((2, style, False) for style in STYLES), (2, 'slc', True), (3, 'ahlc', True),
  pytest.param(3, 'ahlc', False, marks=pytest.mark.slow), (3, 'dhlc', False)])
def test_each_style_equals_its_formula(count, style, shared):
  made, x = composite(count=count, style=style, shared_stem=shared), images()
  levels = levels_of(made.backbones[0], x)
  stem = levels[0]
  for pair, backbone in enumerate(made.backbones[1:]):
    levels = levels_of(backbone, stem if shared else x, additions_of(made, style, pair, levels))
  expected = {f'C{level}': levels[level - 1] for level in (2, 3, 4, 5)}
  assert_same(made(x), expected, 2e-4)


def test_odd_sizes_are_resized_to_nearest():
  """33 x 47 pixels: stages of 9 x 12, 5 x 6, 3 x 3 and 2 x 2 cells."""
  made = composite(style='ahlc')
  x = images(33, 47)
  maps = made(x)
  assert [tuple(y.shape[1:3]) for y in maps.values()] == [(9, 12), (5, 6), (3, 3), (2, 2)]
  source, target = tf.random.stateless_normal([1, 5, 6, 4], [3, 4]), tf.zeros([1, 9, 12, 4])
  nearest = source.numpy()[:, np.arange(9) * 5 // 9][:, :, np.arange(12) * 6 // 12]
  np.testing.assert_array_equal(made._fit(source, 3, 3, target), nearest)


@pytest.mark.parametrize('count, style, unused', [
  pytest.param(2, 'ahlc', (), marks=pytest.mark.slow), pytest.param(3, 'ahlc', (), marks=pytest.mark.slow),
  pytest.param(2, 'dhlc', (), marks=pytest.mark.slow),
  pytest.param(2, 'slc', ('res5_0',), marks=pytest.mark.slow), (2, 'allc', ('res4_0', 'res5_0'))])
def test_gradients_reach_every_variable(count, style, unused):
  """Except for stages of the assistants whose outputs the style does not use."""
  made = composite(count=count, style=style)
  with tf.GradientTape() as tape:
    loss = tf.add_n([tf.reduce_mean(y ** 2) for y in made(images()).values()])
  gradients = tape.gradient(loss, made.trainable_variables)
  without = {tuple(v.name.split('/')[1:3]) for v, g in zip(made.trainable_variables, gradients, strict=True)
             if g is None or not np.isfinite(g).all() or not np.any(g)}
  assert without == {('assistant1', stage) for stage in unused}
  assert len({v.name for v in made.variables}) == len(made.variables)


@pytest.mark.slow
@pytest.mark.parametrize('style', STYLES)
def test_xla_gives_the_same_results(style):
  made = composite(style=style)

  def step(x):
    with tf.GradientTape() as tape:
      loss = tf.add_n([tf.reduce_mean(y ** 2) for y in made(x).values()])
    return loss, tape.gradient(loss, made.backbones[0].stem.conv.kernel)

  def close(one, other, tolerance):
    return all(np.allclose(a, b, rtol=0, atol=tolerance * np.abs(a).max()) for a, b in zip(one, other, strict=True))

  plain, compiled = (tf.function(step, autograph=False, jit_compile=jit) for jit in (False, True))
  for seed in range(8):
    x = tf.random.stateless_normal([1, 32, 64, 3], [1, seed])
    if close(expected := plain(x), plain(x * (1 + 1e-6)), 1e-4):  # else rounding decides at a ReLU or a maximum
      break
  assert close(expected, compiled(x), 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('norm, extra', [(group_norm, 2 * 1856), (sync_batch_norm, 2 * 1856), (no_norm, 1856)])
def test_parameters_of_the_connectors(norm, extra):
  """2,768,896 weights for a ResNet-50, by the public code."""
  pair = complexity.count(lambda: CBNet(connector_norm=norm), [1, 224, 224, 3])
  single = complexity.count(ResNet, [1, 224, 224, 3])
  assert pair.parameters - 2 * single.parameters == 2_768_896 + extra
  cells = 56 * 56 * 256 * 64 + 28 * 28 * 512 * 256 + 14 * 14 * 1024 * 512 + 7 * 7 * 2048 * 1024
  assert pair.multiply_adds - 2 * single.multiply_adds == cells


def test_a_shared_stem_is_one_stem():
  made = composite(count=3, shared_stem=True)
  stems = [v.name for v in made.variables if '/stem/' in v.name]
  assert len(stems) == 3 and all('assistant1' in name for name in stems)
  assert all(backbone.stem is made.backbones[0].stem for backbone in made.backbones)


def test_freezing_applies_to_each_backbone():
  made = composite(functools.partial(small, freeze_at=2))
  frozen = {v.name for v in made.variables} - {v.name for v in made.trainable_variables}
  assert {tuple(name.split('/')[1:3]) for name in frozen} == {
    (backbone, layer) for backbone in ('assistant1', 'lead') for layer in ('stem', 'res2_0')}


@pytest.mark.slow
def test_recomputation_gives_the_same_gradients():
  results = []
  for recompute in (False, True):
    made = composite(functools.partial(small, recompute=recompute))
    with tf.GradientTape() as tape:
      loss = tf.add_n([tf.reduce_mean(y ** 2) for y in made(images()).values()])
    results.append([loss, *tape.gradient(loss, made.trainable_variables)])
  for plain, recomputed in zip(*results, strict=True):
    np.testing.assert_allclose(recomputed, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('count', [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_detector_with_a_composite_backbone(count):
  detector, batch = tiny.detector(backbone=CBNet(small, count=count), mask_head=None), tiny.batch(1)
  outputs = detector(batch.images, batch.image_sizes, labels=batch, training=True)
  assert outputs.features['P2'].shape == (1, 16, 16, 32)
  assert detector.variables == detector.trainable_variables


@pytest.mark.parametrize('arguments, message', [
  ({'count': 4}, 'CBNet.count = 4'), ({'style': 'hlc'}, 'CBNet.style'),
  ({'connector_norm': no_norm, 'connector_zero_gamma': True}, 'CBNet.connector_zero_gamma')])
def test_invalid_arguments(arguments, message):
  with pytest.raises(UserError, match=message):
    CBNet(small, **arguments)


def test_connectors_without_a_norm_have_biases():
  made = composite(functools.partial(small, norm=frozen_batch_norm), connector_norm=no_norm)
  assert not [v.name for v in made.variables if 'from' in v.name and 'norm' in v.name]
  assert len([v.name for v in made.variables if 'from' in v.name and 'bias' in v.name]) == 4
