"""Detectron2 checkpoints: reading restores the model that was written, and shapes are Detectron2's."""

import contextlib
import functools
import json
import pickle
import pickletools
import runpy
import sys
import types
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.data.augment import Resize
from rethink_tf.errors import UserError
from rethink_tf.export import detectron2 as writer
from rethink_tf.models.fpn import SingleLevel
from rethink_tf.models.heads import BoxHead, RPNHead
from rethink_tf.models.norms import frozen_batch_norm, group_norm, no_norm, sync_batch_norm
from rethink_tf.models.resnet import ResNet
from rethink_tf.weights import detectron2
from tests import tiny


@functools.cache
def model(norm=group_norm, **parts):
  built = tiny.built(norm=norm, **parts)
  rng = np.random.default_rng(0)
  for variable in built.variables:
    variable.assign(rng.normal(size=variable.shape))
  return built


def resnext():
  """Grouped convolutions, and two fully connected layers, of which one follows another."""
  return model(backbone=ResNet(14, stem_width=32, res2_width=64, groups=4, width_per_group=8),
               box_head=BoxHead(0, 2, 32, 48))


@pytest.mark.parametrize('channels', ['bgr', 'rgb'])
@pytest.mark.parametrize('make', [
  pytest.param(model, id='gn'), pytest.param(functools.partial(model, frozen_batch_norm), id='frozen'),
  pytest.param(lambda: model(rpn_head=RPNHead(32, num_convs=2)), id='two_rpn_convs', marks=pytest.mark.slow),
  pytest.param(functools.partial(model, sync_batch_norm), id='syncbn', marks=pytest.mark.slow),
  pytest.param(resnext, id='resnext', marks=pytest.mark.slow)])
def test_reading_inverts_writing(make, channels, tmp_path):
  built = make()
  before = [variable.numpy() for variable in built.variables]
  path = str(tmp_path / 'new' / 'model.pkl')
  written = writer.save(built, path, channels=channels)
  assert sorted(written) == sorted(detectron2.table(built))
  for variable in built.variables:
    variable.assign(tf.zeros_like(variable))
  loaded = detectron2.load(built, path, channels=channels)
  assert sorted(loaded) == sorted(written)
  for variable, value in zip(built.variables, before, strict=True):
    np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.name)


def test_writing_inverts_reading():
  """For every array of a checkpoint, with distinct elements."""
  built = model()
  for name, entry in detectron2.table(built, 'bgr').items():
    array = np.random.default_rng(1).permutation(int(tf.size(entry.variable))).astype(np.float32)
    array = array.reshape(writer.file_shape(tuple(entry.variable.shape)))
    entry.variable.assign(entry.convert(array))
    np.testing.assert_array_equal(writer.invert(entry), array, err_msg=name)


def test_layout_is_detectron2s():
  built = model()
  arrays = writer.arrays_of(built, 'rgb')
  assert arrays['backbone.bottom_up.stem.conv1.weight'].shape == (32, 3, 7, 7)
  assert arrays['roi_heads.box_head.fc1.weight'].shape == (32, 32 * 7 * 7)
  assert arrays['roi_heads.box_predictor.cls_score.weight'].shape == (4, 32)
  assert arrays['roi_heads.box_predictor.bbox_pred.weight'].shape == (12, 32)
  assert arrays['roi_heads.mask_head.deconv.weight'].shape == (32, 32, 2, 2)
  background = built.box_predictor.classes.kernel.numpy()[:, 0]
  np.testing.assert_array_equal(arrays['roi_heads.box_predictor.cls_score.weight'][-1], background)
  dy_of_second = built.box_predictor.deltas.bias.numpy()[4]  # dy dx dh dw of each class
  assert arrays['roi_heads.box_predictor.bbox_pred.bias'][5] == dy_of_second
  stem = built.backbone.stem.conv.kernel.numpy()  # [7, 7, RGB, 32]
  red = writer.arrays_of(built, 'bgr')['backbone.bottom_up.stem.conv1.weight'][:, 2]
  np.testing.assert_array_equal(red, stem[:, :, 0].transpose(2, 0, 1))


def test_the_file_format_is_detectron2s(tmp_path):
  path = tmp_path / 'model.pkl'
  writer.save(model(), str(path))
  data = path.read_bytes()
  assert next(pickletools.genops(data))[1] == 2  # the protocol
  content = pickle.loads(data)
  assert set(content) == {'model', '__author__'}
  assert all(type(array) is np.ndarray and array.dtype == np.float32 for array in content['model'].values())
  names = ['model.pkl', 'model.yaml', 'model_backbone.py']  # no temporary files
  assert sorted(one.name for one in tmp_path.iterdir()) == names


def test_settings_are_those_of_the_network():
  lines = writer.settings(resnext(), 'bgr', Resize((640, 800), 1333)).splitlines()
  settings = {name.strip(): json.loads(value) for name, value in (
    line.split(': ', 1) for line in lines if ': ' in line and 'FORMAT' not in line)}
  assert settings['NUM_GROUPS'] == 4 and settings['WIDTH_PER_GROUP'] == 8 and settings['VERSION'] == 2
  assert settings['CONV_DIMS'] == [32] and settings['MIN_SIZE_TEST'] == 800 and settings['MAX_SIZE_TEST'] == 1333
  assert settings['PIXEL_MEAN'] == [102.9801, 115.9465, 122.7717]
  assert settings['OFFSET'] == 0.5 and settings['POOLER_TYPE'] == 'ROIAlign'
  assert settings['BBOX_REG_WEIGHTS'] == [10.0, 10.0, 5.0, 5.0] and settings['NUM_CLASSES'] == 3
  assert settings['NUM_CONV'] == 1 and settings['NUM_FC'] == 2 and settings['FC_DIM'] == 48
  assert '  FORMAT: BGR' in lines


def test_depths_that_detectron2_does_not_build():
  """It looks the name up in its registry: without the module, an error."""
  settings = writer.settings(model())
  assert 'NAME: "build_resnet14_fpn_backbone"' in settings and 'DEPTH' not in settings
  code = writer.backbone_module(14)
  assert 'def build_resnet14_fpn_backbone(cfg, input_shape):' in code and 'enumerate((1, 1, 1, 1))' in code
  compile(code, 'model_backbone.py', 'exec')


def test_the_backbone_module_makes_the_convolutions_of_the_file(tmp_path, monkeypatch):
  """Detectron2 itself has no convolution in the shortcut of its first block where stem and res2 have one width."""
  def stage(block, number, stride_per_block, in_channels, out_channels, **sizes):
    inputs = (in_channels, *[out_channels] * (number - 1))
    return [types.SimpleNamespace(shortcut=None if one == out_channels else (one, out_channels)) for one in inputs]

  fakes = {
    '': {}, '.layers': {'Conv2d': lambda low, high, **_: (low, high), 'get_norm': lambda *_: None},
    '.modeling': {
      'BACKBONE_REGISTRY': types.SimpleNamespace(register=lambda: lambda made: made),
      'FPN': lambda stages, *_: stages, 'ResNet': mock.Mock(side_effect=lambda stem, stages, **_: stages)},
    '.modeling.backbone': {}, '.modeling.backbone.fpn': {'LastLevelMaxPool': mock.Mock()},
    '.modeling.backbone.resnet': {'BasicStem': mock.Mock(), 'BottleneckBlock': None}}
  fakes['.modeling']['ResNet'].make_stage = stage
  for name, content in fakes.items():
    monkeypatch.setitem(sys.modules, f'detectron2{name}', types.SimpleNamespace(**content))
  built = model()
  writer.save(built, str(tmp_path / 'model.pkl'))
  build = runpy.run_path(str(tmp_path / 'model_backbone.py'))['build_resnet14_fpn_backbone']
  cfg = mock.Mock()
  cfg.MODEL.RESNETS = types.SimpleNamespace(STEM_OUT_CHANNELS=32, RES2_OUT_CHANNELS=32, NUM_GROUPS=1, NORM='GN',
                                            WIDTH_PER_GROUP=32, STRIDE_IN_1X1=False, OUT_FEATURES=[])
  made = {f'backbone.bottom_up.res{number}.{i}.shortcut.weight': block.shortcut for number, blocks in
          enumerate(build(cfg, mock.Mock()), 2) for i, block in enumerate(blocks) if block.shortcut}
  written = {name: array.shape[1::-1] for name, array in writer.arrays_of(built).items() if '.shortcut.weight' in name}
  assert made == written and len(made) == 4


def test_a_depth_of_detectron2_with_a_stem_as_wide_as_res2():
  narrow, usual = (types.SimpleNamespace(depth=50, stem_width=64, res2_width=width) for width in (64, 256))
  assert writer._backbone_name(usual) == 'build_resnet_fpn_backbone'
  assert writer._backbone_name(narrow) == 'build_resnet50_fpn_backbone'


def test_names_of_two_convolutions_of_the_rpn():
  head = RPNHead(4, num_convs=2)
  head(np.zeros([1, 2, 2, 4], np.float32))
  names = {name.removeprefix('rpn.') for name in detectron2._rpn(head, 'rpn') if name.startswith('rpn.conv')}
  assert names == {'conv.conv0.weight', 'conv.conv0.bias', 'conv.conv1.weight', 'conv.conv1.bias'}


@contextlib.contextmanager
def changed(thing, **values):
  """Other values of attributes for a while."""
  before = {name: getattr(thing, name) for name in values}
  for name, value in values.items():
    setattr(thing, name, value)
  yield
  for name, value in before.items():
    setattr(thing, name, value)


def test_what_detectron2_computes_differently_is_refused(tmp_path):
  built = model()
  stem, box = built.backbone.stem, built.box_head.convs[0]
  for thing, values, message in [
      (built.backbone, {'padding': 'same'}, "ResNet.padding = 'same', there symmetric"),
      (stem.norm, {'epsilon': 1e-3}, 'ResNet: epsilon 0.001 of its norm, there 1e-05'),
      (box.norm, {'groups': 16}, 'BoxHead: 16 groups of its norm, there 32'),
      (stem, {'norm': no_norm('norm')}, 'without the biases')]:
    with changed(thing, **values), pytest.raises(UserError, match=message):
      writer._check(built)
  writer._check(built)


def test_a_detector_that_detectron2_does_not_have_names_other_formats():
  built = model()
  with changed(built, fpn=SingleLevel(4)), pytest.raises(UserError, match='has no SingleLevel: .*--format=onnx'):
    writer.arrays_of(built)


class OwnHead(BoxHead):
  """The variables of the box head, and another computation."""


def test_parts_of_the_users_own_are_refused():
  built = model()
  for thing, values, name in [
      (built, {'box_head': OwnHead(0, 1, 32, 48)}, 'OwnHead'),
      (built.fpn.outputs[1], {'norm': tf_keras.layers.LayerNormalization()}, 'LayerNormalization')]:
    with changed(thing, **values), pytest.raises(UserError, match=f'Detectron2 has no {name}: export a SavedModel'):
      writer.arrays_of(built)


def test_bad_arguments(tmp_path):
  with pytest.raises(UserError, match="'bgr'"):
    writer.arrays_of(model(), 'BGR')
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot be written'):
    writer.save(model(), str(tmp_path / 'file' / 'model.pkl'))
