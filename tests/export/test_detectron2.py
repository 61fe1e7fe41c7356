"""Detectron2 checkpoints: reading restores the model that was written, and shapes are Detectron2's."""

import functools
import json
import pickle
import pickletools

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.export import detectron2 as writer
from rethink_tf.models.heads import BoxHead
from rethink_tf.models.norms import frozen_batch_norm, group_norm, no_norm, sync_batch_norm
from rethink_tf.models.resnet import ResNet
from rethink_tf.weights import detectron2
from tests import tiny


@functools.cache
def model(norm=group_norm, **parts):
  built = tiny.detector(norm=norm, **parts)
  batch = tiny.batch(1)
  tf.function(lambda b: built(b.images, b.image_sizes, labels=b, training=True),
              autograph=False).get_concrete_function(batch)
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
  pytest.param(functools.partial(model, no_norm), id='none', marks=pytest.mark.slow),
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
  assert sorted(one.name for one in tmp_path.iterdir()) == ['model.pkl', 'model.yaml']  # no temporary files


def test_settings():
  lines = writer.settings(resnext(), 'bgr').splitlines()
  settings = {name.strip(): json.loads(value) for name, value in (
    line.split(': ', 1) for line in lines if ': ' in line and 'FORMAT' not in line)}
  assert settings['NUM_GROUPS'] == 4 and settings['WIDTH_PER_GROUP'] == 8 and settings['DEPTH'] == 14
  assert settings['PIXEL_MEAN'] == [102.9801, 115.9465, 122.7717]
  assert settings['OFFSET'] == 0.5 and settings['POOLER_TYPE'] == 'ROIAlign'
  assert settings['BBOX_REG_WEIGHTS'] == [10.0, 10.0, 5.0, 5.0] and settings['NUM_CLASSES'] == 3
  assert settings['NUM_CONV'] == 1 and settings['NUM_FC'] == 2 and settings['FC_DIM'] == 48
  assert '  FORMAT: BGR' in lines


def test_bad_arguments(tmp_path):
  with pytest.raises(UserError, match="'bgr'"):
    writer.arrays_of(model(), 'BGR')
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot be written'):
    writer.save(model(), str(tmp_path / 'file' / 'model.pkl'))
