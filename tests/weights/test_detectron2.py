"""Detectron2 checkpoints: layout rules, strict names, and loading of everything or nothing.

tests/test_golden.py compares the results of whole models with Detectron2's.
"""

import functools
import pickle

import numpy as np
import pytest
import tf_keras

from rethink_tf.errors import UserError
from rethink_tf.models.norms import frozen_batch_norm, group_norm, no_norm, sync_batch_norm
from rethink_tf.weights import detectron2
from tests import tiny


@functools.cache
def model():
  return tiny.built()


def checkpoint(tiny_model, seed=0):
  """Random arrays by Detectron2's names and layout, for a model; shapes are independent of the reader."""
  rng = np.random.default_rng(seed)
  arrays = {}
  for name, entry in detectron2.table(tiny_model).items():
    shape = tuple(entry.variable.shape)
    if len(shape) == 4:
      shape = shape[3], shape[2], shape[0], shape[1]
    arrays[name] = rng.normal(size=shape[::-1] if len(shape) == 2 else shape).astype(np.float16)
  return arrays


def write(tmp_path, arrays, **extra):
  path = tmp_path / 'model.pkl'
  path.write_bytes(pickle.dumps({'model': arrays, '__author__': 'test', **extra}, protocol=4))
  return str(path)


def values(tiny_model):
  return [v.numpy() for v in tiny_model.variables]


@pytest.mark.parametrize('norm, per_norm', [
  (group_norm, 2), pytest.param(no_norm, 0, marks=pytest.mark.slow),
  pytest.param(sync_batch_norm, 4, marks=pytest.mark.slow),
  pytest.param(frozen_batch_norm, 4, marks=pytest.mark.slow)])
def test_every_variable_has_a_name(norm, per_norm):
  entries = detectron2.table(model() if norm is group_norm else tiny.built(norm=norm))
  stem = {name for name in entries if name.startswith('backbone.bottom_up.stem.conv1.norm.')}
  assert len(stem) == per_norm
  assert ('backbone.bottom_up.stem.conv1.bias' in entries) == (norm is no_norm)
  assert 'roi_heads.mask_head.deconv.bias' in entries and 'backbone.fpn_lateral2.weight' in entries
  assert 'proposal_generator.rpn_head.conv.norm.weight' not in entries
  assert len({id(entry.variable) for entry in entries.values()}) == len(entries)


def test_a_whole_file_is_loaded(tmp_path):
  arrays = checkpoint(model())
  cells = 'proposal_generator.anchor_generator.cell_anchors.0'
  constants = {'pixel_mean': np.zeros([3, 1, 1]), cells: np.zeros([3, 4]),
               'backbone.bottom_up.stem.conv1.norm.num_batches_tracked': np.int64(3)}
  loaded = detectron2.load(model(), write(tmp_path, arrays | constants), channels='rgb')
  assert set(loaded) == set(arrays)
  entries = detectron2.table(model())
  for name, array in arrays.items():
    assert np.isclose(np.abs(entries[name].variable).sum(), np.abs(np.float32(array)).sum(), rtol=1e-4), name
  stem = entries['backbone.bottom_up.stem.conv1.weight'].variable.numpy()
  weight = arrays['backbone.bottom_up.stem.conv1.weight']
  assert stem[1, 2, 0, 5] == weight[5, 0, 1, 2]
  detectron2.load(model(), write(tmp_path, arrays), channels='bgr')
  flipped = entries['backbone.bottom_up.stem.conv1.weight'].variable.numpy()
  np.testing.assert_array_equal(flipped, stem[:, :, ::-1])


def test_differences_are_listed_and_nothing_is_loaded(tmp_path):
  arrays = checkpoint(model())
  kernel = arrays.pop('backbone.fpn_output3.weight')
  arrays['backbone.fpn_output9.weight'] = kernel
  arrays['roi_heads.box_predictor.cls_score.weight'] = np.zeros([81, 32], np.float16)
  arrays['roi_heads.box_head.fc1.weight'] = np.zeros([32, 31], np.float16)  # matches no feature map
  before = values(model())
  with pytest.raises(UserError) as error:
    detectron2.load(model(), write(tmp_path, arrays), channels='rgb')
  message = str(error.value)
  for text in ('1 (backbone.fpn_output3.weight) missing', '1 (backbone.fpn_output9.weight) not in the model',
               'cls_score.weight (81, 32) for (32, 4)', 'fc1.weight (32, 31) for'):
    assert text in message
  assert '\n' not in message
  for a, b in zip(before, values(model()), strict=True):
    np.testing.assert_array_equal(a, b)


def test_exceptions_are_not_loaded(tmp_path):
  arrays = checkpoint(model(), seed=1)
  arrays['roi_heads.box_predictor.cls_score.weight'] = np.zeros([81, 32], np.float16)
  del arrays['roi_heads.box_predictor.cls_score.bias']
  arrays['roi_heads.keypoint_head.score_lowres.weight'] = np.zeros([2, 2])
  path = write(tmp_path, arrays)
  with pytest.raises(UserError):
    detectron2.load(model(), path, channels='rgb', exceptions=['roi_heads.keypoint_head.*'])
  classes = detectron2.table(model())['roi_heads.box_predictor.cls_score.weight'].variable
  before = classes.numpy()
  loaded = detectron2.load(model(), path, channels='rgb',
                           exceptions=['roi_heads.keypoint_head.*', 'roi_heads.box_predictor.cls_score.*'])
  assert len(loaded) == len(detectron2.table(model())) - 2
  np.testing.assert_array_equal(classes, before)


@pytest.mark.slow
def test_group_norm_weights_in_a_batch_norm_model(tmp_path):
  path = write(tmp_path, checkpoint(model()))
  with pytest.raises(UserError, match='running_mean'):
    detectron2.load(tiny.built(norm=sync_batch_norm), path, channels='rgb')


@pytest.mark.parametrize('content', [{'blobs': {}}, [1], {'model': [1]}, {'model': {'w': 'text'}},
                                     {'model': {3: np.zeros(2)}}])
def test_other_files_are_refused(tmp_path, content):
  path = tmp_path / 'other.pkl'
  path.write_bytes(pickle.dumps(content, protocol=4))
  with pytest.raises(UserError, match='not a Detectron2 checkpoint'):
    detectron2.read(str(path))


def test_unknown_channel_order():
  with pytest.raises(UserError, match="'rgb' or 'bgr'"):
    detectron2.load(model(), 'unread.pkl', channels='BGR')


def test_fully_connected_layers_after_flattened_maps():
  """W times a map flattened as C, H, W equals the converted W times the same map flattened as H, W, C."""
  rng = np.random.default_rng(0)
  w, x = rng.normal(size=(6, 5 * 9)), rng.normal(size=(5, 3, 3))  # C = 5
  np.testing.assert_allclose(x.transpose(1, 2, 0).ravel() @ detectron2.flattened(w, 3), w @ x.ravel(), atol=1e-12)


def test_deltas_and_classes_are_reordered():
  rows = np.array([f'{box}{delta}' for box in 'ab' for delta in ('dx', 'dy', 'dw', 'dh')])
  assert detectron2.swap_deltas(rows).tolist() == ['ady', 'adx', 'adh', 'adw', 'bdy', 'bdx', 'bdh', 'bdw']
  assert detectron2.background_first(np.array(['cat', 'dog', 'background'])).tolist() == ['background', 'cat', 'dog']


def test_deconvolution_is_that_of_torch():
  """out[o, 2y + i, 2x + j] = sum over c of in[c, y, x] · w[c, o, i, j]."""
  rng = np.random.default_rng(0)
  w, x = rng.normal(size=(3, 4, 2, 2)).astype('f'), rng.normal(size=(3, 5, 6)).astype('f')
  layer = tf_keras.layers.Conv2DTranspose(4, 2, 2, use_bias=False)
  layer.build([1, 5, 6, 3])
  layer.set_weights([detectron2.kernel(w)])
  expected = np.einsum('cyx,coij->yixjo', x, w).reshape(10, 12, 4)
  np.testing.assert_allclose(layer(x.transpose(1, 2, 0)[None])[0], expected, atol=1e-5)
