"""Settings of config.gin: parsed, compared, and sorted by what a change does to a run that continues."""

import gin
import pytest

from rethink_tf import gin_files
from rethink_tf.storage import settings
from rethink_tf.storage.settings import FREE, LENGTH, MEANING
from rethink_tf.training.schedules import KTimesSchedule


def test_macros_are_resolved_and_long_values_joined():
  found = settings.parse('# Macros:\nBATCH_SIZE = 4\nNORM = @group_norm\n# Parameters:\nrun.batch_size = %BATCH_SIZE\n'
                         'FPN.norm = %NORM\nResize.short_side = \\\n    (64,\n     80)\n'
                         'train/synthetic.num_images = 8\n')
  assert found == {'run.batch_size': 4, 'FPN.norm': '@group_norm', 'Resize.short_side': (64, 80),
                   'train/synthetic.num_images': 8}


@pytest.mark.parametrize('text, value', [
  ('x.y = ' + '[' * 100_000, '[' * 100_000), ('x.y = %x.y', '%x.y'), ('\x00', None), ('x.y =', ''),
  ('A = %B\nB = %A\nx.y = %A', '%A')], ids=range(5))
def test_values_that_are_no_literals_stay_text(text, value):
  assert settings.parse(text).get('x.y') == value


@pytest.mark.parametrize('name, kind', [
  ('run.batch_size', MEANING), ('KTimesSchedule.unit', MEANING), ('KTimesSchedule.base_rate', MEANING),
  ('run.schedule', MEANING), ('SGD.momentum', MEANING), ('SGD.weight_decay', MEANING), ('run.model', MEANING),
  ('FPN.norm', MEANING), ('group_norm.groups', MEANING), ('run.seed', MEANING), ('run.ema', MEANING),
  ('ExponentialMovingAverage.decay', MEANING), ('run.precision', MEANING), ('run.initial_weights', MEANING),
  ('coco.fraction', MEANING), ('train/synthetic.num_images', MEANING), ('TrainInput.resize', MEANING),
  ('KTimesSchedule.k', LENGTH), ('KTimesSchedule.stop_k', LENGTH), ('EpochSchedule.epochs', LENGTH),
  ('SteppedHalving.images', LENGTH),
  ('strategy.kind', FREE), ('run.log_every', FREE), ('run.images_per_device', FREE), ('CocoEvaluator.every', FREE),
  ('eval/synthetic.num_images', FREE), ('coco.data_dir', FREE), ('coco.annotation_file', FREE),
  ('PretrainedWeights.path', FREE), ('DetectionGenerator.score_threshold', FREE), ('TrainInput.workers', FREE),
])
def test_kinds(name, kind):
  assert settings.kind_of(name) == kind


def test_changes_name_both_values_and_begin_with_those_of_a_step():
  was = {'run.log_every': 20, 'run.batch_size': 16, 'KTimesSchedule.k': 2, 'SGD.momentum': 0.9, 'old.only': 1}
  now = {'run.log_every': 50, 'run.batch_size': 32, 'KTimesSchedule.k': 2.0, 'SGD.momentum': 0.9, 'new.only': 1}
  found = settings.changes(was, now)
  assert [str(change) for change in found] == ['run.batch_size 16 -> 32', 'run.log_every 20 -> 50']
  lines = settings.table(found).splitlines()
  assert lines[0].split() == ['setting', 'was', 'is', 'now'] and lines[1].split() == ['run.batch_size', '16', '32']


def test_tuples_equal_the_lists_of_json():
  assert settings.changes({'Resize.short_side': [64, 80]}, {'Resize.short_side': (64, 80)}) == []


@pytest.mark.parametrize('name, of_it', [
  ('MaskRCNN.pixel_mean', True), ('group_norm.groups', True), ('Anchors.offset', True), ('RoIPooler.aligned', True),
  ('run.model', True), ('ResNet.freeze_at', False), ('coco.split', False), ('SGD.momentum', False),
  ('DetectionGenerator.nms_iou', False), ('run.precision', False), ('MaskRCNN.xla', False), ('MaskRCNN.nms', False)])
def test_settings_of_the_network(name, of_it):
  assert settings.of_the_network(name) == of_it


def test_an_operative_configuration_equals_itself():
  gin_files.parse([], ['KTimesSchedule.k = 2'])
  gin.get_configurable(KTimesSchedule)()
  text = gin_files.operative_config()
  gin.clear_config()
  found = settings.parse(text)
  assert found['KTimesSchedule.k'] == 2 and found['KTimesSchedule.unit'] == 90_000
  assert settings.changes(found, settings.parse(text)) == []


@pytest.mark.parametrize('name, of_them', [
  ('MaskRCNN.pixel_mean', True), ('DetectionGenerator.score_threshold', True), ('eval/EvalInput.resize', True),
  ('Resize.short_side', True), ('VocEvaluator.rule', True), ('run.test_augmentation', True), ('run.precision', True),
  ('ProposalGenerator.post_nms_test', True), ('ProposalGenerator.post_nms_train', False), ('EvalInput.workers', False),
  ('CocoEvaluator.every', False), ('CocoEvaluator.num_pictures', False), ('eval/coco.data_dir', False),
  ('SGD.weight_decay', False), ('run.images_per_device', False), ('DetectionGenerator.nms', False)])
def test_settings_of_the_scores(name, of_them):
  assert settings.of_the_scores(name) == of_them


def test_changes_in_a_line():
  found = settings.changes({f'a.b{k}': 1 for k in range(5)}, {f'a.b{k}': 2 for k in range(5)})
  assert settings.listed(found) == 'a.b0 1 -> 2, a.b1 1 -> 2, a.b2 1 -> 2 and 2 more'
  assert settings.listed(found[:1]) == 'a.b0 1 -> 2'
