"""Detectron's pickles: backbones compute the features of their source; the background of detectors is moved."""

import numpy as np
import pytest

from rethink_tf.models.norms import frozen_batch_norm, group_norm
from rethink_tf.weights import detectron, formats
from rethink_tf.weights.contents import BACKBONE
from rethink_tf.weights.pretrained import PretrainedWeights
from tests import tiny
from tests.weights import files, reference


def write(path, blobs, **wrapped):
  content = {'blobs': blobs, **wrapped} if wrapped else blobs
  path.write_bytes(files.python_2_pickle(content))
  return str(path)


@pytest.mark.parametrize('norm, classifier, stride_in_1x1', [
  ('folded', 'fc1000', True), ('folded', 'pred', False), ('gn', 'pred', False)])
def test_a_backbone_gives_the_features_of_its_source(tmp_path, norm, classifier, stride_in_1x1):
  arrays = reference.random_arrays(norm)
  path = write(tmp_path / 'R.pkl', files.detectron_names(arrays, 'gn' if norm == 'gn' else 'bn', classifier))
  image = reference.random_image()
  expected = reference.features(arrays, image, norm=norm, stride_in_1x1=stride_in_1x1, **reference.BGR)
  model = reference.detector(group_norm if norm == 'gn' else frozen_batch_norm, stride_in_1x1=stride_in_1x1)
  reference.check(path, model, expected, image)
  contents = formats.read(path)
  assert (contents.norm, contents.stride_in_1x1, contents.channels) == (norm, stride_in_1x1, 'bgr')
  assert contents.ignored == ('conv1_w_momentum',) and 'CC BY-SA' in contents.licence


def detector_blobs(classes=4):
  """A whole detector of depth 14 with GroupNorm, by Detectron's names, with random values."""
  rng = np.random.default_rng(3)
  blobs = files.detectron_names({name: array for name, array in reference.random_arrays('gn').items()
                                 if not name.startswith('linear')}, 'gn')

  def layer(name, *shape, gn=False):
    blobs[f'{name}_w'] = rng.normal(size=shape).astype('f')
    if gn:
      blobs[f'{name}_gn_s'], blobs[f'{name}_gn_b'] = rng.normal(size=[2, shape[0]]).astype('f')
    else:
      blobs[f'{name}_b'] = rng.normal(size=shape[1] if name == 'conv5_mask' else shape[0]).astype('f')

  for stage in (2, 3, 4, 5):
    tail = '' if stage == 5 else '_lateral'
    layer(f'fpn_inner_res{stage}_0_sum{tail}', 32, 32 * 2**(stage - 2), 1, 1, gn=True)
    layer(f'fpn_res{stage}_0_sum', 32, 32, 3, 3, gn=True)
  layer('conv_rpn_fpn2', 32, 32, 3, 3)
  layer('rpn_cls_logits_fpn2', 3, 32, 1, 1)
  layer('rpn_bbox_pred_fpn2', 12, 32, 1, 1)
  layer('head_conv1', 32, 32, 3, 3, gn=True)
  layer('fc6', 32, 32 * 49)
  layer('cls_score', classes, 32)
  layer('bbox_pred', 4 * classes, 32)
  layer('_[mask]_fcn1', 32, 32, 3, 3, gn=True)
  layer('conv5_mask', 32, 32, 2, 2)
  layer('mask_fcn_logits', classes, 32, 1, 1)
  return blobs


def test_a_whole_detector_has_its_background_first(tmp_path):
  blobs = detector_blobs()
  path = write(tmp_path / 'model_final.pkl', blobs, cfg='RESNETS:\n  STRIDE_1X1: false\n')
  contents = formats.read(path)
  assert (contents.kind, contents.norm, contents.stride_in_1x1) == ('detector', 'gn', False)
  model = tiny.built()
  loaded = PretrainedWeights(path, part='detector')(model)
  assert len(loaded.names) == len(model.variables) and loaded.variables == {id(v) for v in model.variables}
  predictor = model.box_predictor  # class 0 is the background here too, so rows are not moved
  np.testing.assert_array_equal(predictor.classes.kernel.numpy(), blobs['cls_score_w'].T)
  np.testing.assert_array_equal(predictor.classes.bias.numpy(), blobs['cls_score_b'])
  deltas = blobs['bbox_pred_w'][4:].reshape(3, 4, 32)[:, [1, 0, 3, 2]].reshape(12, 32)  # no background; dx first -> dy
  np.testing.assert_array_equal(predictor.deltas.kernel.numpy(), deltas.T)
  np.testing.assert_array_equal(model.mask_predictor.conv.kernel.numpy()[0, 0],
                                blobs['mask_fcn_logits_w'][1:, :, 0, 0].T)
  np.testing.assert_array_equal(model.fpn.laterals[3].conv.kernel.numpy()[0, 0],
                                blobs['fpn_inner_res5_0_sum_w'][:, :, 0, 0].T)


@pytest.mark.parametrize('config, outputs, named', [
  ("TRAIN:\n  DATASETS: ('coco_2014_train', 'coco_2014_valminusminival')", 81, True),
  ("TRAIN:\n  DATASETS: ('coco_2014_train',)", 4, False), ("TRAIN:\n  DATASETS: ('mine',)", 81, False)])
def test_classes_of_a_detector_of_coco(config, outputs, named):
  found = detectron.contents({'blobs': detector_blobs(outputs), 'cfg': config}, 'm.pkl')
  assert (found.classes is not None) == named


@pytest.mark.parametrize('config, expected', [('  STRIDE_1X1: true\n', True), ('x', None), (None, None)])
def test_strides_of_a_detector_are_in_its_configuration(tmp_path, config, expected):
  blobs = {name.replace('_gn_', '_bn_'): array for name, array in detector_blobs().items()}
  content = {'blobs': blobs, 'cfg': config} if config else {'blobs': blobs}
  path = tmp_path / 'm.pkl'
  path.write_bytes(files.python_2_pickle({key: value for key, value in content.items() if value is not None}))
  assert formats.read(str(path)).stride_in_1x1 is expected


@pytest.mark.parametrize('name, canonical', [
  ('res4_22_branch2c_bn_riv', f'{BACKBONE}res4.22.conv3.norm.running_var'),
  ('res_conv1_bn_s', f'{BACKBONE}stem.conv1.norm.weight'), ('conv1_gn_b', f'{BACKBONE}stem.conv1.norm.bias'),
  ('fpn_inner_res4_22_sum_lateral_gn_s', 'backbone.fpn_lateral4.norm.weight'),
  ('kps_score_lowres_w', 'roi_heads.keypoint_head.score_lowres.weight'),
  ('_[mask]_fcn4_w', 'roi_heads.mask_head.mask_fcn4.weight'), ('fc7_b', 'roi_heads.box_head.fc2.bias'),
  ('what_is_this', 'what_is_this')])
def test_names_become_canonical_ones(name, canonical):
  assert detectron.canonical(name) == canonical
