"""Run folders that a study finds: used with the same configuration, never with another one."""

import gin
import pytest

from rethink_tf import experiment, gin_files
from rethink_tf.data import digest
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.errors import UserError
from rethink_tf.storage import identity
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.study import reuse
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.schedules import EpochSchedule
from tests import small_coco

FILES = ['gin_configs/pretraining/shapes.gin']


@pytest.fixture
def trained(tmp_path):
  """Folder of a pre-training with a batch of 64."""
  assert experiment.run  # registers what gin files name
  gin_files.parse(FILES, ['BATCH_SIZE = 64'])
  gin.get_configurable(EpochSchedule)(num_images=8000, batch_size=64)
  gin.get_configurable(SGD)()
  text = gin_files.operative_config() + '\nBATCH_SIZE = 64\nrun.batch_size = %BATCH_SIZE\nrun.log_every = 50\n'
  gin.clear_config()
  path = str(tmp_path / 'shapes')
  identity.write(RunFolder(path), None, identity.of([], text, {}), 0)
  return path


def test_a_pre_training_of_another_configuration_gets_a_folder_of_its_own(trained):
  assert reuse.pretraining_folder(trained, FILES, ['BATCH_SIZE = 64', 'run.log_every = 10']) == trained
  other = reuse.pretraining_folder(trained, FILES, ['BATCH_SIZE = 32'])
  assert other.startswith(f'{trained}-') and len(other) == len(trained) + 9
  longer = ['BATCH_SIZE = 64', 'EpochSchedule.epochs = 24', 'EpochSchedule.drops = (16, 21)']
  assert reuse.pretraining_folder(trained, FILES, longer) not in (trained, other)
  assert reuse.pretraining_folder(trained, FILES, ['BATCH_SIZE = 32']) == other


def test_defaults_count_as_well(trained):
  found = reuse.differences(trained, FILES, ['BATCH_SIZE = 64', 'SGD.momentum = 0.5'])
  assert [str(change) for change in found] == ['SGD.momentum 0.9 -> 0.5']


def test_there_is_no_difference_from_nothing(tmp_path):
  assert reuse.pretraining_folder(str(tmp_path / 'new'), FILES, []) == str(tmp_path / 'new')
  (tmp_path / 'empty').mkdir()
  assert reuse.pretraining_folder(str(tmp_path / 'empty'), FILES, []) == str(tmp_path / 'empty')


def test_a_complete_run_of_other_settings_is_not_reused(trained):
  reuse.check_done(trained, 'scratch_1x', FILES, ['BATCH_SIZE = 64'], None, True)
  with pytest.raises(UserError, match='scratch_1x: was trained with other settings: .*run.batch_size 64 -> 32'):
    reuse.check_done(trained, 'scratch_1x', FILES, [], None, True)
  longer = ['BATCH_SIZE = 64', 'EpochSchedule.epochs = 24', 'EpochSchedule.drops = (16, 21)']
  reuse.check_done(trained, 'scratch_1x', FILES, longer, None, False)
  with pytest.raises(UserError, match='EpochSchedule.epochs 16 -> 24'):
    reuse.check_done(trained, 'scratch_1x', FILES, longer, None, True)


@pytest.mark.parametrize('setting, was, now, told', [
  ('eval/synthetic.num_images', 40, 50, True), ('DetectionGenerator.score_threshold', 0.05, 0.2, True),
  ('EvalInput.max_unreadable', 0, 3, False), ('CocoEvaluator.every', 100, 50, False)])
def test_a_complete_run_that_was_scored_in_another_way_is_not_reused(tmp_path, setting, was, now, told):
  """As of a study that was stopped half-way and continued with fewer held-out images."""
  path = str(tmp_path / 'run')
  identity.write(RunFolder(path), None, identity.of([], f'{setting} = {was}\n', {}), 0)
  files, params = ['gin_configs/demo.gin'], [f'{setting} = {now}']
  reuse.check_done(path, 'run', files, params, None, False)
  assert reuse.differences(path, files, params) == [], 'the weights are the same'
  if not told:
    reuse.check_done(path, 'run', files, params, None, True)
    return
  with pytest.raises(UserError, match=f'run: was evaluated with other settings: {setting} {was} -> {now}: leave them'):
    reuse.check_done(path, 'run', files, params, None, True)


def test_a_study_that_is_moved_finds_its_data_in_another_folder(tmp_path):
  """As on another machine, with --data_dir of a copy; other data there is another study."""
  files, path = ['gin_configs/demo.gin', 'gin_configs/data/own.gin'], str(tmp_path / 'run')
  for place, object_of_train in (('here', 1), ('copy', 1), ('other', 2)):
    for split, images in (('train', (1, 2)), ('val', (3, 4))):
      small_coco.write(tmp_path / place, [small_coco.image(i) for i in images],
                       [small_coco.annotation(1, images[object_of_train - 1])], split=split)
  summaries = {name: digest.summarize(CocoSource(str(tmp_path / 'here'), split, training=split == 'train'))
               for name, split in (('train', 'train'), ('held_out', 'val'))}
  settings = f"coco.data_dir = '{tmp_path / 'here'}'\nrun.seed = 0\n"
  identity.write(RunFolder(path), None, identity.of([{'name': 'thing'}], settings, summaries), 0)
  for place in ('here', 'copy'):
    reuse.check_done(path, 'run', files, [], str(tmp_path / place), True)
    assert reuse.pretraining_folder(path, files, [], str(tmp_path / place)) == path
  for place in ('other', 'missing'):
    with pytest.raises(UserError, match='run: was trained with other settings: coco.data_dir'):
      reuse.check_done(path, 'run', files, [], str(tmp_path / place), True)
