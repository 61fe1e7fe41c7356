"""Loading is strict, and only into a model that matches the file: each mismatch is one line with the fix."""

import functools
import pickle

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.models.cbnet import CBNet
from rethink_tf.models.norms import frozen_batch_norm, group_norm, no_norm, sync_batch_norm
from rethink_tf.models.resnet import ResNet
from rethink_tf.weights.pretrained import Loaded, PretrainedWeights, sha256
from tests import tiny
from tests.weights import files, reference
from tests.weights.test_detectron2 import checkpoint


def pkl(tmp_path, norm, groups=1, author='x', prefix='', **extra):
  """A Detectron2 backbone file."""
  arrays = {prefix + name: array for name, array in reference.random_arrays(norm, groups).items()} | extra
  path = tmp_path / 'backbone.pkl'
  path.write_bytes(pickle.dumps({'model': arrays, '__author__': author}))
  return str(path)


def folded(tmp_path):
  path = tmp_path / 'R-50.pkl'
  path.write_bytes(files.python_2_pickle(files.detectron_names(reference.random_arrays('folded'), 'bn', 'fc1000')))
  return str(path)


def refused(weights, model, message):
  before = [v.numpy() for v in model.variables]
  with pytest.raises(UserError, match=message) as error:
    weights(model)
  assert '\n' not in str(error.value) and weights.path in str(error.value)
  for a, b in zip(before, model.variables, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('file, norm, message', [
  ('folded', sync_batch_norm, 'folded BatchNorm.*frozen_batch_norm.*unfolded'), ('folded', group_norm, 'folded'),
  ('bn', group_norm, 'syncbn.gin'), ('bn', no_norm, 'BatchNorm'), ('gn', sync_batch_norm, 'gn.gin|group_norm'),
])
def test_norms_that_do_not_match(tmp_path, file, norm, message):
  path = folded(tmp_path) if file == 'folded' else pkl(tmp_path, file)
  model = reference.detector(norm, stride_in_1x1=True)
  options = dict(channels='bgr', stride_in_1x1=True, norm='gn' if file == 'gn' else None)
  refused(PretrainedWeights(path, **options), model, message)


def test_norms_without_statistics_are_asked_for(tmp_path):
  """GroupNorm and folded BatchNorm have the same names: the wrong one changes every feature."""
  options, model = dict(channels='bgr', stride_in_1x1=False), reference.detector()
  for author in ('x', 'torchvision'):
    refused(PretrainedWeights(pkl(tmp_path, 'gn', author=author), **options), model,
            "PretrainedWeights.norm = 'gn'.*'folded'")
  refused(PretrainedWeights(pkl(tmp_path, 'gn'), norm='folded', **options), model, 'folded BatchNorm')
  refused(PretrainedWeights(pkl(tmp_path, 'bn'), norm='gn', **options), model, "of the kind 'bn'")


def test_folded_batch_norm_is_exact_in_a_frozen_one(tmp_path):
  image, arrays = reference.random_image(), reference.random_arrays('folded')
  expected = reference.features(arrays, image, norm='folded', stride_in_1x1=True, **reference.BGR)
  model = reference.detector(frozen_batch_norm, stride_in_1x1=True)
  loaded = reference.check(folded(tmp_path), model, expected, image)
  assert {id(v) for v in model.backbone.variables} == loaded.variables  # statistics too


def test_detectron2_files_record_no_channel_order_and_strides(tmp_path):
  path, model = pkl(tmp_path, 'bn'), reference.detector(sync_batch_norm)
  refused(PretrainedWeights(path), model, 'PretrainedWeights.channels')
  refused(PretrainedWeights(path, channels='bgr'), model, 'PretrainedWeights.stride_in_1x1')
  image, arrays = reference.random_image(), reference.random_arrays('bn')
  expected = reference.features(arrays, image, norm='bn', **reference.BGR)
  reference.check(path, model, expected, image, channels='bgr', stride_in_1x1=False)


def test_the_mean_in_a_detectron2_file_gives_its_channel_order(tmp_path):
  path = pkl(tmp_path, 'gn', pixel_mean=np.float32([103.53, 116.28, 123.675]).reshape(3, 1, 1),
             pixel_std=np.float32([57.375, 57.12, 58.395]).reshape(3, 1, 1))
  image = reference.random_image()
  source = dict(channels='bgr', mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395))
  expected = reference.features(reference.random_arrays('gn'), image, norm='gn', **source)
  model = reference.detector(group_norm, source['mean'][::-1], source['std'][::-1])
  reference.check(path, model, expected, image, stride_in_1x1=False, norm='gn')


@pytest.mark.slow
def test_strides_pixels_and_widths_are_compared(tmp_path):
  path = folded(tmp_path)
  weights = PretrainedWeights(path)
  refused(weights, reference.detector(frozen_batch_norm), 'strides on the 1x1: set ResNet.stride_in_1x1 = True')
  refused(weights, reference.detector(frozen_batch_norm, std=(58.0, 58.0, 58.0), stride_in_1x1=True),
          r'MaskRCNN.pixel_std = \(1.0, 1.0, 1.0\)')
  refused(weights, reference.detector(frozen_batch_norm, mean=reference.BGR['mean'], stride_in_1x1=True),
          r'MaskRCNN.pixel_mean = \(122.7717, 115.9465, 102.9801\)')
  refused(weights, reference.detector(frozen_batch_norm, depth=26), 'ResNet.depth = 14 .*26')
  refused(weights, reference.detector(frozen_batch_norm, groups=2, width_per_group=16), 'ResNet.groups = 1')
  refused(weights, reference.detector(frozen_batch_norm, res2_width=64), 'ResNet.res2_width = 32')


def test_detectors_and_backbones_are_distinguished(tmp_path):
  model = tiny.built()
  path = tmp_path / 'detector.pkl'
  path.write_bytes(pickle.dumps({'model': checkpoint(model), '__author__': 'x'}))
  options = dict(channels='rgb', stride_in_1x1=False)
  refused(PretrainedWeights(str(path), **options), model, "whole detector: set PretrainedWeights.part = 'detector'")
  refused(PretrainedWeights(pkl(tmp_path, 'gn'), part='detector', **options), model, 'a backbone and no detector')
  refused(PretrainedWeights(pkl(tmp_path, 'gn'), part='classifier', norm='gn', **options), model, 'has no classifier')
  loaded = PretrainedWeights(str(path), part='detector_backbone', **options)(model)
  assert loaded.variables == {id(v) for v in model.backbone.variables}


def test_names_that_differ_are_errors_unless_excepted(tmp_path):
  path = pkl(tmp_path, 'gn', **{'stem.attention.weight': np.zeros(3, 'f')})
  model, options = reference.detector(), dict(channels='bgr', stride_in_1x1=False, norm='gn')
  refused(PretrainedWeights(path, **options), model, r'1 \(stem.attention.weight\) not in the model')
  PretrainedWeights(path, ignore=['stem.attention.*'], **options)(model)
  refused(PretrainedWeights(path, ignore=['stem.atention.*'], **options), model, 'matches no name')
  initial = model.backbone.stem.conv.kernel.numpy() + 1
  model.backbone.stem.conv.kernel.assign(initial)
  loaded = PretrainedWeights(path, new=['stem.*'], **options)(model)
  np.testing.assert_array_equal(model.backbone.stem.conv.kernel, initial)
  assert not any(name.startswith('stem') for name in loaded.names)


def test_non_finite_values_are_refused(tmp_path):
  path = pkl(tmp_path, 'gn', **{'res2.0.conv1.norm.bias': np.full(32, np.nan, 'f')})
  with pytest.raises(UserError, match='res2.0.conv1.norm.bias holds non-finite values'):
    PretrainedWeights(path, channels='bgr', stride_in_1x1=False, norm='gn')(reference.detector())


@pytest.mark.parametrize('wrong, message', [
  (dict(part='head'), 'part'), (dict(channels='BGR'), 'channels'), (dict(norm='bn'), "use 'gn' or 'folded'"),
  (dict(prefix=3), 'PretrainedWeights.prefix = 3'), (dict(path=None), '--weights=FILE')])
def test_wrong_arguments_are_refused(wrong, message):
  with pytest.raises(UserError, match=message):
    PretrainedWeights(**(dict(path='x') | wrong))


def test_the_record_has_the_checksum_of_the_file(tmp_path):
  (tmp_path / 'x').write_bytes(b'abc')
  assert sha256(str(tmp_path / 'x')) == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'


def test_the_record_holds_no_password():
  loaded = Loaded('https://me:secret-42@host.example/w.pkl?sig=a1b2', 'torchvision', 'BSD', 'ab', ['x'], frozenset())
  assert loaded.record() == {'path': 'https://***@host.example/w.pkl?sig=***', 'format': 'torchvision', 'arrays': 1,
                             'licence': 'BSD', 'sha256': 'ab'}
  plain = 'gs://bucket/runs@2026/6x'
  assert loaded._replace(path=plain).record()['path'] == plain


@pytest.mark.parametrize('count, shared', [(2, False), (3, True)])
def test_every_backbone_of_a_composite_loads_the_same_file(tmp_path, count, shared):
  """The connectors are not loaded: with them at zero, the lead computes the features of the file."""
  image, arrays = reference.random_image(), reference.random_arrays('gn')
  expected = reference.features(arrays, image, norm='gn', **reference.RGB)
  single = functools.partial(ResNet, 14, stem_width=32, res2_width=32, width_per_group=32)
  model = tiny.detector(backbone=CBNet(single, count=count, shared_stem=shared), pixel_mean=reference.RGB['mean'],
                        pixel_std=reference.RGB['std'])
  model.backbone(tf.zeros([1, 64, 64, 3]))
  connectors = [v for v in model.backbone.variables if '_from' in v.name]
  before = [v.numpy() for v in connectors]
  path = pkl(tmp_path, 'gn', author='torchvision')
  loaded = PretrainedWeights(path, norm='gn')(model)
  assert loaded.variables == {id(v) for v in model.backbone.variables} - {id(v) for v in connectors}
  for variable, value in zip(connectors, before, strict=True):
    np.testing.assert_array_equal(variable, value)
    variable.assign(np.zeros_like(value))
  for level, x in reference.computed(model, image).items():
    np.testing.assert_allclose(x, expected[level], atol=2e-4 * np.abs(expected[level]).max(), err_msg=level)
  other = {'res2.0.conv9.weight': arrays['linear.bias']}
  refused(PretrainedWeights(pkl(tmp_path, 'gn', author='torchvision', **other), norm='gn'),
          model, 'not in the model')
