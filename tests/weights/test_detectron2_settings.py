"""Detectron2's configuration beside a detector, the model zoo's without one, and the parts that its arrays imply."""

import ast
import inspect
import pickle
import re
import shlex

import numpy as np
import pytest
import yaml

from rethink_tf.errors import UserError
from rethink_tf.export import detectron2 as writer
from rethink_tf.models.heads import RPNHead
from rethink_tf.models.rois import Anchors, RoIPooler
from rethink_tf.weights import compared, detectron2_settings, formats, options, settings_files
from rethink_tf.weights.contents import COCO_CLASSES
from rethink_tf.weights.pretrained import PretrainedWeights
from tests import tiny
from tests.weights import reference

BOX, RPN, MASK = 'roi_heads.box_head', 'proposal_generator.rpn_head', 'roi_heads.mask_head'


def arrays(norm='bn', rpn=1, convs=0, fcs=2, head='', cascade=False, mask=True, classes=3):
  """Names and shapes of a detector's arrays; head: norm of the FPN and of the heads' convolutions."""
  found = {f'backbone.bottom_up.{name}': array for name, array in reference.random_arrays(norm).items()
           if not name.startswith('linear')}

  def layer(name, *shape, with_norm=False):
    found[f'{name}.weight'] = np.zeros(shape, np.float32)
    for part in {'': (), 'gn': ('weight', 'bias'), 'bn': ('weight', 'bias', 'running_mean', 'running_var')}[
        head if with_norm else '']:
      found[f'{name}.norm.{part}'] = np.zeros(shape[:1], np.float32)

  for level in (2, 3, 4, 5):
    layer(f'backbone.fpn_lateral{level}', 256, 8, 1, 1, with_norm=True)
    layer(f'backbone.fpn_output{level}', 256, 256, 1, 1, with_norm=True)
  for i in range(rpn):
    layer(f'{RPN}.conv' if rpn == 1 else f'{RPN}.conv.conv{i}', 256, 8, 1, 1)
  layer(f'{RPN}.objectness_logits', 3, 8, 1, 1)
  for stage in ('.0', '.1', '.2') if cascade else ('',):
    for i in range(convs):
      layer(f'{BOX}{stage}.conv{i + 1}', 256, 8, 1, 1, with_norm=True)
    for i in range(fcs):
      layer(f'{BOX}{stage}.fc{i + 1}', 1024, 8)
    layer(f'roi_heads.box_predictor{stage}.cls_score', classes + 1, 8)
  if mask:
    for i in range(4):
      layer(f'{MASK}.mask_fcn{i + 1}', 256, 8, 1, 1, with_norm=True)
    layer(f'{MASK}.deconv', 8, 256, 1, 1)
  return found


def read(folder, config=None, **kinds):
  path = folder / 'model_final.pkl'
  path.write_bytes(pickle.dumps({'model': arrays(**kinds), '__author__': 'x'}))
  if config is not None:
    (folder / 'config.yaml').write_text(config if isinstance(config, str) else yaml.safe_dump(config))
  return formats.read(str(path))


CONFIG = {
  'MODEL': {
    'PIXEL_MEAN': [103.53, 116.28, 123.675], 'PIXEL_STD': [57.375, 57.12, 58.395],
    'RESNETS': {'STRIDE_IN_1X1': False, 'NUM_GROUPS': 1},
    'ANCHOR_GENERATOR': {'SIZES': [[8], [16], [32], [64], [128]], 'ASPECT_RATIOS': [[1.0, 2.0]], 'OFFSET': 0.5},
    'ROI_HEADS': {'NAME': 'StandardROIHeads', 'SCORE_THRESH_TEST': 0.2},
    'ROI_BOX_HEAD': {'POOLER_TYPE': 'ROIAlign', 'POOLER_SAMPLING_RATIO': 2, 'BBOX_REG_WEIGHTS': [1.0, 2.0, 3.0, 4.0]}},
  'INPUT': {'FORMAT': 'BGR'}}


@pytest.mark.parametrize('sets, kinds, known', [
  (['coco_2017_train'], {'classes': 80}, True),
  (['coco_2014_train', 'coco_2014_valminusminival'], {'classes': 80, 'cascade': True}, True),
  (['coco_2017_train'], {'classes': 3}, False),  # the default of a configuration whose data set is registered elsewhere
  (['coco_2017_train', 'mine'], {'classes': 80}, False), ([], {'classes': 80}, False),
  ('coco_2017_train', {'classes': 80}, False), (None, {'classes': 80}, False)])
def test_classes_are_those_of_coco_where_it_is_the_training_set(tmp_path, sets, kinds, known):
  found = read(tmp_path, CONFIG | {'DATASETS': {'TRAIN': sets}}, **kinds)
  assert found.classes == (COCO_CLASSES if known else None)


def test_the_configuration_beside_a_detector(tmp_path):
  found = read(tmp_path, CONFIG)
  assert (found.channels, found.stride_in_1x1) == ('bgr', False)
  assert found.pixel_mean == (123.675, 116.28, 103.53) and found.pixel_std == (58.395, 57.12, 57.375)
  assert found.settings == {
    'Anchors.offset': 0.5, 'Anchors.sizes': (8, 16, 32, 64, 128), 'Anchors.ratios': (1.0, 2.0),
    'RoIPooler.aligned': False, 'RoIPooler.sampling_ratio': 2, 'RoISampler.box_weights': (2.0, 1.0, 4.0, 3.0),
    'DetectionGenerator.score_threshold': 0.2}
  line = ' '.join(options.command_line(found))
  assert 'init/detector.gin' in line and "'MaskRCNN.pixel_std = (58.395, 57.12, 57.375)'" in line
  assert "'Anchors.sizes = (8, 16, 32, 64, 128)'" in line and 'PretrainedWeights.channels' not in line


@pytest.mark.parametrize('ratio', [0, 2, 4])
@pytest.mark.parametrize('kind', ['ROIAlign', 'ROIAlignV2'])
@pytest.mark.parametrize('offset', [0.0, 0.5])
def test_the_printed_options_bind_the_grids_of_the_configuration(tmp_path, ratio, kind, offset):
  found = read(tmp_path, {'MODEL': {
    'RESNETS': {'STRIDE_IN_1X1': True}, 'ANCHOR_GENERATOR': {'OFFSET': offset},
    'ROI_BOX_HEAD': {'POOLER_TYPE': kind, 'POOLER_SAMPLING_RATIO': ratio}}})
  printed = [shlex.split(option)[0].split('=', 1) for option in options.command_line(found)]
  init = next(value for name, value in printed if name == '--gin_file' and '/init/' in value)
  bound = {name: value for part in (Anchors, RoIPooler) for name, value in (
    (f'{part.__name__}.{one.name}', one.default) for one in inspect.signature(part).parameters.values())}
  bound |= options.bindings_of(init.split('/')[-1].removesuffix('.gin'))
  bound |= {name: ast.literal_eval(value) for name, value in
            (value.split(' = ', 1) for name, value in printed if name == '--gin_param')}
  assert {name: bound[name] for name in ('Anchors.offset', 'RoIPooler.aligned', 'RoIPooler.sampling_ratio')} == {
    'Anchors.offset': offset, 'RoIPooler.aligned': kind == 'ROIAlignV2', 'RoIPooler.sampling_ratio': ratio}


def test_a_detector_alone_is_described_as_of_the_model_zoo_and_asked_for(tmp_path):
  found = read(tmp_path)
  assert found.channels is None and not found.settings
  line = ' '.join(options.command_line(found))
  for text in ('init/detector_detectron2.gin', 'norms/frozen_bn.gin', "'BoxHead.num_fcs = 2'", "channels = 'bgr'\"",
               'PretrainedWeights.stride_in_1x1 = False'):
    assert text in line, text
  known = {'channels': 'bgr', 'stride_in_1x1': False}
  weights = PretrainedWeights(found.path, part='detector', **known)
  with pytest.raises(UserError, match='the grids of its anchors and RoIAlign: add .*detector_detectron2.gin'):
    weights._with_settings(found)
  weights = PretrainedWeights(found.path, part='detector', convention='detectron2', **known)
  ours = tiny.detector(anchors=Anchors((8, 16, 32, 64, 128), offset=0.5))
  with pytest.raises(UserError, match=r'Anchors.offset = 0.0, the model has 0.5'):
    compared.check(weights._with_settings(found), ours)
  with pytest.raises(UserError, match='convention'):
    PretrainedWeights('x', convention='caffe2')


@pytest.mark.parametrize('changes, reason', [
  ({'_BASE_': 'x.yaml'}, '_BASE_'), ({'INPUT': {'FORMAT': 'YUV-BT.601'}}, 'neither BGR nor RGB'),
  ({'MODEL': {'PIXEL_STD': [1.0]}}, r'PIXEL_STD is .\[1.0\]'), ({'MODEL': {'PIXEL_STD': 'no'}}, 'PIXEL_STD'),
  ({'MODEL': {'RESNETS': {'STRIDE_IN_1X1': 'yes'}}}, 'STRIDE_IN_1X1'),
  ({'MODEL': {'RESNETS': {'NUM_GROUPS': 32}}}, 'NUM_GROUPS is 32, that of the weights 1'),
  ({'MODEL': {'ANCHOR_GENERATOR': {'OFFSET': True}}}, 'OFFSET is'),
  ({'MODEL': {'ROI_BOX_HEAD': {'POOLER_TYPE': 'ROIPool'}}}, 'neither ROIAlign nor')])
def test_other_configurations_are_ignored_with_a_warning(tmp_path, caplog, changes, reason):
  found = read(tmp_path, {'MODEL': {}} | changes)
  assert found.channels is None and not found.settings
  assert re.search(reason, caplog.text) and 'config.yaml is ignored' in caplog.text


def test_settings_that_are_not_computed_here_are_noted(tmp_path):
  heads = {'ROI_BOX_HEAD': {'POOLER_SAMPLING_RATIO': 2}, 'ROI_MASK_HEAD': {'POOLER_SAMPLING_RATIO': 0,
                                                                           'POOLER_RESOLUTION': 28}}
  notes = read(tmp_path, {'MODEL': {'FPN': {'FUSE_TYPE': 'avg'}, 'MASK_ON': True, **heads}}).notes
  assert [note.split()[0] for note in notes[-3:]] == [
    'MODEL.FPN.FUSE_TYPE', 'MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION', 'POOLER_SAMPLING_RATIO']
  assert len(read(tmp_path, {'MODEL': {'MASK_ON': False, **heads}}).notes) == 1  # the place of the configuration


@pytest.mark.parametrize('model, names', [
  ({'PROPOSAL_GENERATOR': {'MIN_SIZE': 40}}, ['MODEL.PROPOSAL_GENERATOR.MIN_SIZE']),
  ({'ANCHOR_GENERATOR': {'SIZES': [[32, 64], [128], [256], [512], [1024]]}}, ['MODEL.ANCHOR_GENERATOR.SIZES']),
  ({'ANCHOR_GENERATOR': {'SIZES': [[32], [64], [128], [256]]}}, ['MODEL.ANCHOR_GENERATOR.SIZES']),
  ({'ANCHOR_GENERATOR': {'ASPECT_RATIOS': [[1.0, 2.0]] * 4 + [[1.0, 3.0]]}}, ['MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS']),
  ({'RPN': {'IN_FEATURES': ['p3', 'p4', 'p5', 'p6']}}, ['MODEL.RPN.IN_FEATURES']),
  ({'KEYPOINT_ON': True, 'ROI_BOX_HEAD': {'POOLER_TYPE': 'ROIAlignV2'}, 'ROI_KEYPOINT_HEAD': {
    'POOLER_TYPE': 'ROIAlign', 'POOLER_RESOLUTION': 7}}, ['MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION', 'POOLER_TYPE']),
  ({'ROI_KEYPOINT_HEAD': {'POOLER_RESOLUTION': 7}}, [])])
def test_anchors_proposals_and_keypoint_heads_that_are_not_computed_here_are_noted(tmp_path, model, names):
  assert [note.split()[0] for note in read(tmp_path, {'MODEL': model}).notes[1:]] == names


def test_anchors_of_all_levels_as_one_list_or_one_of_each(tmp_path):
  """Detectron2 takes one list for all levels."""
  found = read(tmp_path, {'MODEL': {'ANCHOR_GENERATOR': {'SIZES': [[48]], 'ASPECT_RATIOS': [[0.3, 1.0]] * 5}}})
  assert found.settings['Anchors.sizes'] == (48,) * 5 and found.settings['Anchors.ratios'] == (0.3, 1.0)
  assert len(found.notes) == 1  # the place of the configuration


def test_several_anchor_sizes_of_a_level(tmp_path):
  """[[16, 32]] is both sizes at each level."""
  found = read(tmp_path, {'MODEL': {'ANCHOR_GENERATOR': {'SIZES': [[16, 32]], 'ASPECT_RATIOS': [[1.0]]}}})
  assert found.settings['Anchors.sizes'] == ((16, 32),) * 5 and len(found.notes) == 1
  model = tiny.detector(anchors=Anchors([[16, 32]] * 5, [1.0], 0.0), rpn_head=RPNHead(32, 2),
                        roi_pooler=lambda size: RoIPooler(size, 0, True))
  compared.check(found, model)
  tree = yaml.safe_load(writer.settings(model))
  assert settings_files.get(tree, 'MODEL.ANCHOR_GENERATOR.SIZES') == [[16, 32]] * 5


def test_a_configuration_of_something_else_is_not_mentioned(tmp_path, caplog):
  assert not read(tmp_path, {'model': {'_target_': 'x'}}).settings and not caplog.text


@pytest.mark.parametrize('kinds, files, bindings', [
  ({}, ['norms/frozen_bn.gin'], {'BoxHead.num_convs': 0, 'BoxHead.num_fcs': 2}),
  ({'norm': 'gn', 'head': 'gn', 'convs': 4, 'fcs': 1}, ['norms/gn.gin'], {}),
  ({'head': 'bn', 'convs': 4, 'fcs': 1, 'rpn': 2}, ['norms/syncbn.gin'], {'RPNHead.num_convs': 2}),
  ({'cascade': True, 'fcs': 1, 'convs': 4}, ['models/cascade.gin', 'norms/frozen_bn.gin'], {}),
  ({'mask': False, 'fcs': 1, 'convs': 4}, ['models/faster_rcnn.gin', 'norms/frozen_bn.gin'], {})])
def test_parts_by_the_arrays(tmp_path, kinds, files, bindings):
  assert detectron2_settings.parts(read(tmp_path, **kinds)) == (files, bindings)


def test_an_export_is_read_with_its_own_settings(tmp_path):
  """The .yaml that this package writes beside its .pkl, by the name of the file."""
  model = tiny.detector(anchors=Anchors((8, 16, 32, 64, 128), (1.0,), 0.0),
                        roi_pooler=lambda size: RoIPooler(size, 0, True))
  (tmp_path / 'mine.yaml').write_text(writer.settings(model, 'rgb'))
  contents = read(tmp_path)._replace(path=str(tmp_path / 'mine.pkl'))
  found = detectron2_settings.read(contents)
  assert found.channels == 'rgb' and found.pixel_mean == model.pixel_mean and not found.stride_in_1x1
  compared.check(found, model)
  assert found.settings['RoIPooler.sampling_ratio'] == 0 and found.settings['Anchors.ratios'] == (1.0,)
  assert settings_files.get(yaml.safe_load((tmp_path / 'mine.yaml').read_text()), 'VERSION') == 2
