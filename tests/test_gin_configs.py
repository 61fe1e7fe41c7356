"""Every shipped gin file parses and builds, complete configurations take a step, axis files bind only their axis."""

import itertools
import pathlib
import re

import gin
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf import gin_files
from rethink_tf.bench.kernels import NORM_SHAPES
from rethink_tf.data.detection.input import TrainInput
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.errors import UserError
from rethink_tf.models.mask_rcnn import MASK_SLOT_STEP
from rethink_tf.models.resnet import BLOCKS
from rethink_tf.training.schedules import schedule_points
from rethink_tf.training.trainer import Trainer
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Studies bind a grid of runs: tests/study.
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'gin_configs').glob('**/*.gin')
               if path.parent.name != 'studies')
COMPLETE = [name for name in FILES if name.count('/') == 1]
PRETRAINING = [name for name in FILES if name.startswith('gin_configs/pretraining/') and 'target_' not in name]
AXES = [name for name in FILES if name not in [*COMPLETE, *PRETRAINING]]
INIT = [name for name in FILES if name.startswith('gin_configs/init/')]
# Tested elsewhere: one needs an extra, the other is refused with random weights.
NOT_BUILT = ('norms/addons_gn.gin', 'norms/frozen_bn.gin')

pytestmark = pytest.mark.usefixtures('no_configuration_is_left')


def parse(*names, params=()):
  import rethink_tf.experiment  # noqa: F401  registers what gin files name
  narrow = ('ResNet.groups = 2', 'ResNet.width_per_group = 16') if any('x1' in name for name in names) else ()
  shallow = ('ResNet.depth = 14',) if any('cbnet' in name for name in names) else ()
  single = ('VGG.width = 8', 'Anchors.sizes = (8, 16, 32, 64)') if any('vgg16' in name for name in names) else ()
  gin_files.parse(names, ["WEIGHTS = 'weights.pkl'", *tiny.GIN, *narrow, *shallow, *single, *params])


def bindings():
  """{name: value} of the parsed configuration."""
  return dict(line.split(' = ', 1) for line in gin.config_str(max_line_length=1000).splitlines() if ' = ' in line)


def build():
  """The trainer of the parsed configuration and its input of synthetic images, built as by experiment.run."""
  configured = gin.get_configurable
  tf_keras.utils.set_random_seed(0)
  source = SyntheticSource(8, image_size=(64, 64), object_size=(16, 40), num_classes=3, training=True)
  inputs = configured('TrainInput')(source, 2, 0)
  model = gin.query_parameter('run.model').configurable.wrapped
  assert model.__name__ == 'MaskRCNN'
  detector = configured('MaskRCNN')(num_classes=3, num_keypoints=source.num_keypoints)
  trainer = Trainer(detector, configured('MaskRCNNLoss')())
  trainer.compile(configured('SGD')(learning_rate=0.01))
  trainer.make_variables(inputs.dataset().element_spec)
  return trainer, inputs


SHALLOW = ['ResNet.depth = 14']
LENGTH_AND_START = r'SCHEDULE|KTimesSchedule|PretrainedWeights|run.initial_weights|coco|Resize|VocEval'
DEPTH = r'|ResNet\.(depth|groups|width_per_group|stem_width|res2_width|stride_in_1x1|padding)|MaskRCNN\.pixel_'


def signature(name, left_out):
  """The bindings of a complete configuration, except those that match `left_out`."""
  parse(name)
  return '\n'.join(line for line in gin.config_str().splitlines() if not re.match(left_out, line))


def one_of_each(left_out):
  """One configuration for each different train step: scratch_1x ... 9x differ only in the schedule."""
  names = [(signature(name, left_out), name) for name in COMPLETE if not name.endswith('base.gin')]
  gin.clear_config()
  return [next(group)[1] for _, group in itertools.groupby(sorted(names), key=lambda pair: pair[0])]


@pytest.mark.parametrize('name', COMPLETE)
def test_a_complete_configuration_parses_and_builds(name):
  parse(name)
  schedule = gin.get_configurable('KTimesSchedule')(batch_size=16)
  assert schedule.total_steps > 0
  assert isinstance(gin.get_configurable('ResNet')(), tf_keras.layers.Layer)


# One configuration for each different train step at depth 14. By default other tests take steps with their parts:
# tests/training/test_trainer.py, tests/models/ and the runs of tests/test_experiment.py and tests/test_old_run.py.
KINDS = ('keypoints_pretrain_2x', 'cbnet_dual_r50', 'vgg16_pretrain_9x', 'voc_pretrain', 'pretrain_6x_cbnet_dual_r50',
         'scratch_9x_cbnet_triple_x152_cascade', 'scratch_9x_r101_cascade', 'pretrain_6x_r101_cascade', 'pretrain_10k',
         'pretrain_2x_x101_32x16d_wsl', 'bench', 'demo', 'lsj_scratch_100ep_r101_syncbn', 'cbnet_triple_x152_cascade',
         'scratch_350ep_r50_syncbn_640', 'ssj_scratch_270k_r50_syncbn', 'copy_paste_scratch_270k_r50_syncbn',
         'copy_paste_lsj_scratch_270k_r101_syncbn')
# The same where the depth counts.
DEEP = (*KINDS, 'pretrain_6x_r101', 'pretrain_6x_x152_aug', 'pretrain_6x_x152_cascade', 'scratch_9x_x152_cascade',
        'scratch_6x_syncbn', 'pretrain_6x_syncbn', 'lsj_scratch_100ep_r50_syncbn',
        'copy_paste_lsj_scratch_270k_r50_syncbn')


def test_the_lists_hold_one_configuration_of_each_kind():
  path = 'gin_configs/{}.gin'.format
  assert sorted(one_of_each(LENGTH_AND_START + DEPTH)) == sorted(map(path, KINDS))
  assert sorted(one_of_each(LENGTH_AND_START)) == sorted(map(path, DEEP))


@pytest.mark.slow
@pytest.mark.parametrize('name', KINDS)
def test_every_kind_of_configuration_takes_a_step(name):
  takes_a_step(f'gin_configs/{name}.gin', SHALLOW)


@pytest.mark.slow
@pytest.mark.parametrize('name', DEEP)
def test_every_configuration_takes_a_step_at_its_own_depth(name):
  takes_a_step(f'gin_configs/{name}.gin')


def takes_a_step(name, params=()):
  parse(name, params=params)
  trainer, inputs = build()
  before = [v.numpy() for v in trainer.detector.trainable_variables]
  # A block that starts as the identity has gradients within it from the second step on.
  steps = 2 if bindings().get('ResNet.zero_init_residual') == 'True' else 1
  history = trainer.fit(inputs.dataset(), steps_per_epoch=steps, verbose=0).history
  assert all(np.isfinite(values).all() for values in history.values())
  after = [v.numpy() for v in trainer.detector.trainable_variables]
  changed = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
  moving = [np.any(velocity) for velocity in trainer.optimizer.variables[1:]]  # the first counts steps
  # Gradients may be so small at first that 1 + its share is 1.
  assert sum(map(any, zip(changed, moving, strict=True))) > 0.9 * len(before) and sum(changed) > 0.8 * len(before)


@pytest.mark.parametrize('name', [name for name in AXES if not name.endswith(NOT_BUILT)])
def test_an_axis_file_switches_a_complete_configuration(name):
  parse('gin_configs/scratch_3x.gin')
  plain = set(gin.config_str().splitlines())
  parse('gin_configs/scratch_3x.gin', name)
  switched = set(gin.config_str().splitlines())
  already_chosen = name.endswith(('norms/gn.gin', 'models/r50.gin', 'data/coco.gin', 'init/scratch.gin'))
  assert (switched == plain) == already_chosen
  schedule = 4 if name.endswith('target_low_resolution.gin') else 3  # it is a run of its own; others leave this axis
  assert gin.query_parameter('KTimesSchedule.k').scoped_configurable_fn() == schedule


@pytest.mark.parametrize('name', PRETRAINING)
def test_a_pre_training_configuration_parses_and_builds(name):
  parse_whole(name)
  assert isinstance(gin.get_configurable('ResNet')(), tf_keras.layers.Layer)
  assert gin.query_parameter('run.model').configurable.wrapped.__name__ == 'Classifier'


def parse_whole(*names, weights="'weights.pkl'"):
  """Parse as shipped, without the bindings that make it small."""
  import rethink_tf.experiment  # noqa: F401
  gin_files.parse(names, [] if weights is None else [f'WEIGHTS = {weights}'])


def axis(name):
  """Names that a file binds, with those of the files that it includes."""
  text = (ROOT / name).read_text()
  included = (axis(other) for other in re.findall(r"^include '(.+)'$", text, re.MULTILINE))
  return set(re.findall(r'^([\w./]+) = ', text, re.MULTILINE)).union(*included)


@pytest.mark.parametrize('pretrained, scratch, init', [
  *((f'pretrain_{k}x', [f'scratch_{k}x.gin'], 'imagenet') for k in range(1, 7)),
  ('pretrain_6x_r101', ['scratch_6x_r101.gin'], 'imagenet'),
  ('keypoints_pretrain_2x', ['keypoints_scratch_2x.gin'], 'imagenet'),
  ('pretrain_6x_syncbn', ['scratch_6x_syncbn.gin'], 'imagenet_torchvision'),
  ('pretrain_2x_x101_32x8d', ['scratch_2x.gin', 'models/x101_32x8d.gin', 'norms/syncbn.gin'], 'imagenet_torchvision'),
  *((f'pretrain_2x_x101_32x{width}d_wsl', ['scratch_2x.gin', f'models/x101_32x{width}d.gin', 'norms/syncbn.gin'], 'wsl')
    for width in (8, 16, 32, 48))])
def test_a_pre_trained_row_is_the_scratch_row_with_other_initial_weights(pretrained, scratch, init):
  parse_whole(f'gin_configs/{pretrained}.gin')
  ours = bindings()
  parse_whole(*(f'gin_configs/{name}' for name in scratch), weights=None)
  theirs = bindings()
  differing = {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)}
  assert {'WEIGHTS', 'run.initial_weights'} <= differing <= axis(f'gin_configs/init/{init}.gin')
  assert ours['ResNet.freeze_at'] == '0'  # all layers are fine-tuned, as in the paper
  parse_whole(f'gin_configs/{pretrained}.gin', 'gin_configs/init/scratch.gin', weights=None)
  assert bindings() == theirs


@pytest.mark.parametrize('pretrained, scratch, own', [
  ('pretrain_35k', 'scratch_35k', set()),
  *((f'pretrain_{size}', f'scratch_{size}', {'KTimesSchedule.boundaries', 'KTimesSchedule.total'})
    for size in ('10k', '3500', '1k')),
  ('voc_pretrain', 'voc_scratch', {'SCHEDULE', 'VocEvaluator.competition'}),
  ('pretrain_6x_r101_aug', 'scratch_9x_r101_aug', {'SCHEDULE'}),
  ('pretrain_6x_x152_aug', 'scratch_9x_x152_aug', {'SCHEDULE'})])
def test_a_pre_trained_row_of_little_data_or_with_scale_jitter_also_has_another_length(pretrained, scratch, own):
  parse_whole(f'gin_configs/{pretrained}.gin')
  ours = bindings()
  parse_whole(f'gin_configs/{scratch}.gin', weights=None)
  theirs = bindings()
  differing = {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)}
  assert {'WEIGHTS', 'run.initial_weights', *own} <= differing <= axis('gin_configs/init/imagenet.gin') | own


@pytest.mark.parametrize('network', ['r101', 'x152'])
def test_a_pre_trained_cascade_is_there_from_the_start(network):
  """It is the scratch one but for its start and length: that one continues a plain run (section 5.1)."""
  parse_whole(f'gin_configs/pretrain_6x_{network}_cascade.gin')
  ours = bindings()
  parse_whole(f'gin_configs/scratch_9x_{network}_cascade.gin')
  theirs = bindings()
  differing = {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)}
  start = {'run.initial_weights', 'PlainRun.path', 'PlainRun.heads'}
  assert {'SCHEDULE', *start} <= differing <= {'SCHEDULE', *start} | axis('gin_configs/init/detector.gin')
  assert ours['MaskRCNN.cascade'] == '@Cascade' and ours['SCHEDULE'] == '6'
  assert (ours['ResNet.depth'], ours['ResNet.groups']) == {'r101': ('101', '1'), 'x152': ('152', '8')}[network]


def test_the_published_settings_of_tf_models():
  parse_whole('gin_configs/scratch_350ep_r50_syncbn_640.gin', weights=None)
  schedule = gin.get_configurable('KTimesSchedule')(batch_size=256)
  assert schedule.points == (148_160, 157_420, 162_050) and 162_050 * 256 / 118_287 == pytest.approx(350, abs=1)
  np.testing.assert_allclose([schedule(0), schedule(2000), schedule(150_000), schedule(160_000)],
                             [0.0067, 0.32, 0.032, 0.0032], rtol=1e-4)
  assert gin.get_configurable('Resize')().sizes(np.array([[480, 640], [960, 600]]), np.zeros(2)).tolist() == [
    [480, 640], [640, 400]]
  jitter = gin.get_configurable('LargeScaleJitter')()
  assert (jitter.side, jitter.scales) == (640, (0.5, 2.0))
  assert gin.get_configurable('sync_batch_norm')('norm').epsilon == 0.001


@pytest.mark.parametrize('batch_size', [8, 16, 64])
@pytest.mark.parametrize('name', ['scratch_35k', 'pretrain_35k', 'scratch_10k', 'pretrain_10k', 'scratch_3500',
                                  'pretrain_3500', 'scratch_1k', 'pretrain_1k', 'voc_scratch', 'voc_pretrain'])
def test_the_run_sheet_of_a_row_of_little_data_states_its_steps(name, batch_size):
  parse_whole(f'gin_configs/{name}.gin')
  first, second, end = gin.get_configurable('KTimesSchedule')(batch_size=16).points
  sheet = (ROOT / f'gin_configs/{name}.gin').read_text()
  assert f'{end:,} steps of 16 images' in sheet and f'the rate drops at {first:,} and {second:,}' in sheet
  scaled = gin.get_configurable('KTimesSchedule')(batch_size=batch_size).points
  np.testing.assert_allclose(scaled, np.array([first, second, end]) * 16 / batch_size, atol=0.51)


def test_the_published_settings_of_little_data():
  parse_whole('gin_configs/scratch_35k.gin', weights=None)
  schedule = gin.get_configurable('KTimesSchedule')(batch_size=16)
  np.testing.assert_allclose([schedule(1000), schedule(480_000)], [0.04, 0.0008], rtol=1e-6)
  resize = gin.get_configurable('Resize')()
  assert resize.from_range and resize.short_sides == (512, 800)
  lengths = {'voc_pretrain': 18_000, 'voc_scratch': 144_000, 'pretrain_10k': 60_000, 'scratch_10k': 220_000}
  for name, end in lengths.items():
    parse_whole(f'gin_configs/{name}.gin')
    assert gin.get_configurable('KTimesSchedule')(batch_size=16).total_steps == end


def test_voc_is_faster_r_cnn():
  parse('gin_configs/voc_scratch.gin')
  trainer, _ = build()
  assert not [v.name for v in trainer.detector.variables if 'mask_head' in v.name or 'mask_predictor' in v.name]
  assert 'loss/mask' not in trainer.loss_means and 'loss/box/class' in trainer.loss_means


@pytest.mark.parametrize('name', ['keypoints_scratch_2x', 'keypoints_scratch_3x', 'keypoints_pretrain_2x'])
def test_keypoint_rows_keep_the_checkpoint_with_the_best_keypoint_ap(name):
  parse_whole(f'gin_configs/{name}.gin')
  assert gin.query_parameter('run.keep_best') == 'keypoint/AP'
  parse_whole('gin_configs/scratch_2x.gin', weights=None)
  assert 'run.keep_best' not in bindings()  # the evaluator's main metric: box AP


def test_all_init_files_bind_the_same_names():
  assert len(INIT) == 16
  names = {name.partition('/init/')[2].removesuffix('.gin'): frozenset(axis(name)) for name in INIT}
  detectors = [names.pop(name) for name in ('detector', 'detector_new_classes', 'target_pretraining')]
  detectron2 = [names.pop(f'detector_detectron2{which}') for which in ('', '_new_classes')]
  assert len({*detectors}) == len({*detectron2}) == len({*names.values()}) == 1
  assert detectron2[0] - detectors[0] == {'Anchors.offset', 'RoIPooler.aligned', 'RoIPooler.sampling_ratio'}
  assert detectors[0] - names['scratch'] == {'PretrainedWeights.match_classes', 'PretrainedWeights.file_classes'}


def test_pre_training_at_low_resolution_keeps_the_detector():
  """Half the sides and a rate that never drops; the network and its data are those of the configuration."""
  parse_whole('gin_configs/scratch_1x.gin', weights=None)
  plain = bindings()
  parse_whole('gin_configs/scratch_1x.gin', 'gin_configs/pretraining/target_low_resolution.gin', weights=None)
  resize, low = gin.get_configurable('Resize')(), bindings()
  assert (resize.short_sides, resize.max_side) == ((400,), 666)
  schedule = gin.get_configurable('KTimesSchedule')(batch_size=64)
  assert schedule.total_steps == 90_000 and float(schedule(89_999)) == float(schedule(600)) == pytest.approx(0.08)
  differing = {name for name in {*plain, *low} if plain.get(name) != low.get(name)}
  assert differing <= axis('gin_configs/pretraining/target_low_resolution.gin')
  gin_files.parse(['gin_configs/scratch_1x.gin', 'gin_configs/pretraining/target_low_resolution.gin'],
                  ['SCHEDULE = 0.25'])
  assert gin.get_configurable('KTimesSchedule')(batch_size=64).total_steps == 90_000


def test_a_pre_trained_row_requires_weights():
  with pytest.raises(UserError, match='WEIGHTS must be given'):
    parse_whole('gin_configs/pretrain_3x.gin', weights=None)


@pytest.mark.parametrize('width', [8, 16, 32, 48])
def test_widths_of_resnext(width):
  parse_whole(f'gin_configs/pretrain_2x_x101_32x{width}d_wsl.gin')
  backbone = gin.get_configurable('ResNet')()
  assert (backbone.depth, backbone.groups, backbone.width_per_group) == (101, 32, width)


def test_a_norm_is_one_binding():
  parse('gin_configs/demo.gin', params=['NORM = @no_norm'])
  trainer, _ = build()
  assert not [v.name for v in trainer.detector.trainable_variables if 'norm' in v.name]


@pytest.mark.parametrize('k', [1, 2, 3, 4, 5, 6, 9])
def test_the_run_sheet_of_a_schedule_states_its_steps(k):
  name = f'gin_configs/scratch_{k}x.gin'
  parse(name)
  points = schedule_points(k)
  sheet = (ROOT / name).read_text()
  assert f'{points.end:,} steps of 16 images' in sheet
  assert f'the rate drops at {points.first_drop:,} and {points.second_drop:,}' in sheet


@pytest.mark.parametrize('name', COMPLETE)
def test_every_complete_configuration_can_be_shrunk_to_a_laptop(name):
  """Its schedule and its images are small."""
  parse_whole(name, 'gin_configs/runtime/laptop.gin')
  assert bindings()['BATCH_SIZE'] == '4' and gin.query_parameter('run.precision') == 'float32'
  schedule = gin.get_configurable('KTimesSchedule')(batch_size=4, num_images=1000)
  first = schedule.points[0]
  warmed_up = np.array([float(schedule(step)) for step in (0, min(50, first // 2), first - 1)])
  assert 1 <= first < schedule.total_steps <= 14_400  # of the longest row: 270k steps of 256 images
  assert warmed_up[0] < warmed_up[1] == warmed_up[2] > schedule(first)
  resize = gin.query_parameter('TrainInput.resize').scoped_configurable_fn()
  assert max(resize.largest, resize.max_side) <= 224


@pytest.mark.parametrize('files, expected', [((), 216), (('gin_configs/runtime/few_shapes.gin',), 52)],
                         ids=['alone', 'few_shapes'])
def test_the_number_of_shapes_that_xla_compiles_is_bounded(files, expected):
  """GroupNorm of R50-FPN at 800/1333, forward and backward, in every padded shape, with any number of mask slots."""
  parse_whole('gin_configs/scratch_1x.gin', *files, weights=None)
  def bound(name):
    try:
      return gin.query_parameter(name)
    except ValueError:
      return None
  heads = {(7, 7, 256), (14, 14, 256)}
  maps = {shape[1:] for shape in NORM_SHAPES} - heads  # at 800 x 1344
  assert len(maps) == 13
  found = {(height * h // 800, width * w // 1344, channels) for h, w, channels in maps
           for height, width in gin.get_configurable('Resize')().padded_shapes.tolist()}
  if bound('group_norm.landscape'):
    found = {(*sorted(shape[:2]), shape[2]) for shape in found}
  if bound('heads/group_norm.xla') is not False:
    found |= {(512, 7, 7, 256)} | {(slots, 14, 14, 256) for slots in range(MASK_SLOT_STEP, 129, MASK_SLOT_STEP)}
  assert 2 * len(found) == expected


@pytest.mark.parametrize('files', [('norms/{}', 'runtime/few_shapes'), ('runtime/few_shapes', 'norms/{}')], ids='ab')
@pytest.mark.parametrize('norm, expected', [('gn', 'GroupNorm'), ('syncbn', 'SyncBatchNorm'), ('none', 'NoNorm')])
def test_few_shapes_keep_the_norm_of_the_heads(files, norm, expected):
  parse_whole('gin_configs/scratch_1x.gin', *(f'gin_configs/{file.format(norm)}.gin' for file in files), weights=None)
  heads = [convolution.norm for head in ('BoxHead', 'MaskHead') for convolution in gin.get_configurable(head)().convs]
  assert {type(layer).__name__ for layer in heads} == {expected}
  assert norm != 'gn' or not any(layer.xla for layer in heads) and gin.get_configurable('ResNet')().stem.norm.xla


def test_run_sheets_open_every_complete_configuration():
  for name in COMPLETE:
    if name.endswith('base.gin'):
      continue
    text = (ROOT / name).read_text()
    for field in ('# Reproduces', '# Cost', '# Command', '# Override'):
      assert field in text, (name, field)
    assert f'--gin_file={name}' in text, name


@pytest.mark.parametrize('name, batch_size', [
  ('cbnet_dual_r50', 16), ('scratch_6x_cbnet_dual_r50', 16), ('pretrain_6x_cbnet_dual_r50', 16),
  ('cbnet_triple_x152_cascade', 8), ('scratch_9x_cbnet_triple_x152_cascade', 16), ('vgg16_scratch_11x', 16),
  ('vgg16_pretrain_9x', 16), *((f'pretrain_6x_{network}_{what}', 16) for network in ('r101', 'x152')
                               for what in ('aug', 'cascade')), ('scratch_350ep_r50_syncbn_640', 256)])
def test_the_run_sheets_of_further_rows_state_their_steps(name, batch_size):
  parse_whole(f'gin_configs/{name}.gin')
  first, second, end = gin.get_configurable('KTimesSchedule')(batch_size=batch_size).points
  sheet = (ROOT / f'gin_configs/{name}.gin').read_text()
  assert f'{end:,} steps of {batch_size} images' in sheet
  assert f'the rate drops at {first:,} and {second:,}' in sheet


@pytest.mark.parametrize('pretrained, scratch, init, own', [
  ('pretrain_6x_cbnet_dual_r50', 'scratch_6x_cbnet_dual_r50', 'imagenet', set()),
  ('vgg16_pretrain_9x', 'vgg16_scratch_11x', 'imagenet_torchvision', {'SCHEDULE'})])
def test_pre_trained_composites_and_vgg_differ_in_their_initial_weights(pretrained, scratch, init, own):
  parse_whole(f'gin_configs/{pretrained}.gin')
  ours = bindings()
  parse_whole(f'gin_configs/{scratch}.gin', weights=None)
  theirs = bindings()
  differing = {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)}
  assert {'WEIGHTS', 'run.initial_weights', *own} <= differing <= axis(f'gin_configs/init/{init}.gin') | own


def test_backbones_of_composites():
  for name, backbones, depth, cells in (('cbnet_dual_r50', 2, 50, (1, 64)),
                                        ('cbnet_triple_x152_cascade', 3, 152, (32, 8)),
                                        ('scratch_9x_cbnet_triple_x152_cascade', 3, 152, (8, 32))):
    parse_whole(f'gin_configs/{name}.gin')
    composite = gin.get_configurable('CBNet')()
    assert [(b.depth, b.groups, b.width_per_group) for b in composite.backbones] == [(depth, *cells)] * backbones
    assert len({id(b) for b in composite.backbones}) == backbones and composite.style == 'ahlc'
  rate = 0.005
  parse_whole('gin_configs/cbnet_triple_x152_cascade.gin')
  assert float(gin.get_configurable('KTimesSchedule')(batch_size=8)(1000)) == pytest.approx(rate)


def test_vgg_is_faster_r_cnn_on_one_level():
  parse('gin_configs/vgg16_scratch_11x.gin')
  trainer, inputs = build()
  assert set(trainer.detector.fpn({'C4': tf.zeros([1, 2, 2, 8])})) == {'P4'}
  assert not [v.name for v in trainer.detector.variables if 'mask_head' in v.name or '/norm/' in v.name]
  assert trainer.predict_batch(next(iter(inputs.dataset()))).masks is None


def test_depths_of_the_models():
  for name, depth in (('scratch_6x', 50), ('scratch_6x_r101', 101), ('scratch_9x_x152_cascade', 152)):
    parse(f'gin_configs/{name}.gin')
    assert gin.query_parameter('ResNet.depth') == depth and depth in BLOCKS


def test_a_subset_of_the_training_images_does_not_change_the_test_images():
  parse('gin_configs/scratch_6x.gin', 'gin_configs/data/coco_10k.gin', params=['coco.fraction = 0.5'])
  assert gin.query_parameter('coco.num_images') == 10000 and gin.query_parameter('coco.fraction') == 0.5
  assert gin.query_parameter('eval/coco.num_images') is None and gin.query_parameter('eval/coco.fraction') == 1.0


@pytest.mark.parametrize('param, meant', [
  ('SCHEDUEL = 2', 'SCHEDULE'), ('ResNet.dpeth = 50', 'depth'), ('ResNett.depth = 50', 'ResNet')])
def test_a_misspelt_name_is_one_line_with_a_suggestion(param, meant):
  with pytest.raises(UserError, match=rf'\b{meant}\b') as error:
    parse('gin_configs/scratch_1x.gin', params=[param])
  assert '\n' not in str(error.value)


def test_configurations_are_found_from_another_folder(tmp_path, monkeypatch):
  (tmp_path / 'gin_configs').mkdir()  # does not hide the shipped files
  monkeypatch.chdir(tmp_path)
  parse_whole('gin_configs/scratch_6x.gin', weights=None)
  assert gin.query_parameter('ResNet.depth') == 50


def test_gin_binds_the_input():
  parse('gin_configs/scratch_1x.gin')
  source = SyntheticSource(4, image_size=(64, 64), object_size=(16, 40))
  inputs = gin.get_configurable('TrainInput')(source, 2, 0)
  assert isinstance(inputs, TrainInput) and inputs.resize.largest == 64
  assert tf.is_tensor(next(iter(inputs.dataset())).images)


@pytest.mark.parametrize('backbone, depth', [('r50', 50), ('r101', 101)])
@pytest.mark.parametrize('epochs', [100, 200, 400])
def test_rows_of_large_scale_jitter(epochs, backbone, depth):
  name = f'gin_configs/lsj_scratch_{epochs}ep_{backbone}_syncbn.gin'
  parse_whole(name)
  schedule = gin.get_configurable('KTimesSchedule')(batch_size=64)
  first, second, end = schedule.points
  sheet = (ROOT / name).read_text()
  assert f'{end:,} steps of 64 images ({epochs} epochs)' in sheet and f'drops at {first:,} and {second:,}' in sheet
  assert round(end * 64 / 118_000) == epochs  # train2017 has 118,287 images
  np.testing.assert_allclose([schedule(0), schedule(500), schedule(first), schedule(second)],
                             [0.1 * 0.067, 0.1, 0.01, 0.001], rtol=1e-5)
  assert gin.query_parameter('ResNet.depth') == depth and bindings()['BATCH_SIZE'] == '64'
  assert gin.get_configurable('SGD')().decay == 4e-5
  jitter = gin.query_parameter('TrainInput.resize').scoped_configurable_fn()
  assert (jitter.side, jitter.scales) == (1024, (0.1, 2.0))
  assert gin.query_parameter('EvalInput.resize').scoped_configurable_fn().largest == 800
  head = gin.get_configurable('RPNHead')()
  assert len(head.further_convs) == 1 and head.further_convs[0].filters == 256
  theirs = {'ResNet.stride_in_1x1': True, 'Anchors.offset': 0.0, 'RoIPooler.aligned': True,  # configs/common/models
            'MaskRCNN.pixel_mean': (123.675, 116.28, 103.53)}
  assert {name: gin.query_parameter(name) for name in theirs} == theirs


@pytest.mark.parametrize('name, batch_size, published', [
  ('ssj_scratch_90k_r50', 64, '43.3 box AP, 39.2 mask AP'), ('ssj_scratch_270k_r50', 64, '43.5 box AP, 39.1 mask AP'),
  ('copy_paste_scratch_90k_r50', 64, '43.9 box AP, 39.2 mask AP'),
  ('copy_paste_scratch_270k_r50', 64, '45.1 box AP, 40.3 mask AP'),
  ('copy_paste_lsj_scratch_270k_r50', 256, '48.3 box AP, 42.4 mask AP'),
  ('copy_paste_lsj_scratch_270k_r101', 256, '49.8 box AP, 43.5 mask AP')])
def test_rows_of_copy_paste(name, batch_size, published):
  # mmdetection's configs/simple_copy_paste and common/ssj_270k_coco-instance.py; tensorflow/tpu's projects/copy_paste.
  path = f'gin_configs/{name}_syncbn.gin'
  parse_whole(path, weights=None)
  schedule = gin.get_configurable('KTimesSchedule')(batch_size=batch_size)
  *drops, end = schedule.points
  sheet = (ROOT / path).read_text()
  assert f'{end:,} steps of {batch_size} images ({round(end * batch_size / 118_287)} epochs)' in sheet
  assert 'drops at {:,}, {:,} and {:,}'.format(*drops) in sheet and published in sheet
  assert end == (90_000 if '90k' in name else 270_000) and drops == [0.9 * end, 0.95 * end, 0.975 * end]
  warmup, factor = {('90k', 64): (500, 0.067), ('270k', 64): (1000, 0.001), ('270k', 256): (1000, 0.01)}[
    '90k' if '90k' in name else '270k', batch_size]
  rate = {64: 0.1, 256: 0.32}[batch_size]
  np.testing.assert_allclose([schedule(step) for step in (0, warmup, *drops)],
                             [rate * factor, rate, rate / 10, rate / 100, rate / 1000], rtol=1e-5)
  assert gin.query_parameter('ResNet.depth') == (101 if 'r101' in name else 50)
  jitter = gin.query_parameter('TrainInput.resize').scoped_configurable_fn()
  assert (jitter.side, jitter.scales) == (1024, (0.1, 2.0) if 'lsj' in name else (0.8, 1.25))
  assert ('TrainInput.mix' in bindings()) == name.startswith('copy_paste')
  assert gin.query_parameter('EvalInput.resize').scoped_configurable_fn().largest == (1024 if 'lsj' in name else 800)
  assert len(gin.get_configurable('BoxHead')().fcs) == (2 if 'lsj' in name else 1)
  assert gin.query_parameter('ResNet.zero_init_residual')


@pytest.mark.parametrize('name, largest, merge, vote', [('tta_detectron', 2000, 'candidates', 0.9),
                                                        ('tta_detectron2', 4000, 'detections', None)])
def test_views_of_test_time_augmentation(name, largest, merge, vote):
  parse_whole('gin_configs/scratch_6x.gin', f'gin_configs/augment/{name}.gin', weights=None)
  chosen = gin.query_parameter('run.test_augmentation').scoped_configurable_fn()
  assert sorted(resize.largest for resize in chosen.resizes) == list(range(400, 1201, 100)) and chosen.flip
  assert {resize.max_side for resize in chosen.resizes if resize.largest != 800} == {largest}
  assert (chosen.merge, chosen.vote_iou) == (merge, vote)
