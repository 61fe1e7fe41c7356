"""From a gin file to figures and back: train, evaluate, continue, and the refusals."""

import json
import pathlib

import gin
import numpy as np
import pytest
import tensorflow as tf

from rethink_tf import experiment, gin_files
from rethink_tf.errors import UserError
from rethink_tf.run_folder import RunFolder
from tests import tiny

PARAMS = (
  *tiny.GIN, 'train/synthetic.num_images = 8', 'eval/synthetic.num_images = 3', 'ResNet.depth = 14',
  "strategy.kind = 'one_device'", 'synthetic.image_size = (64, 64)', 'synthetic.object_size = (16, 40)',
  'BATCH_SIZE = 2', 'KTimesSchedule.unit = 0.5',  # 0.5 steps of 16 images are 4 of 2
  'CocoEvaluator.every = 2', 'run.log_every = 1', 'run.checkpoint_every = 2',
)


@pytest.fixture(autouse=True)
def no_configuration_is_left():
  yield
  gin.clear_config()


def configure(*params, files=('gin_configs/demo.gin',)):
  gin_files.parse(files, [*PARAMS, *params])


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A run of four steps, and what it returned."""
  path = tmp_path_factory.mktemp('run')
  configure()
  figures = experiment.run('train', str(path))
  gin.clear_config()
  return path, figures


def test_training_leaves_everything_in_the_run_folder(trained):
  path, figures = trained
  for name in ('config.gin', 'command.json', 'metrics.jsonl', 'curves.png', 'checkpoints', 'tensorboard', 'eval'):
    assert (path / name).exists(), name
  lines = RunFolder(path, create=False).read_metrics()
  training = [line for line in lines if line['kind'] == 'train']
  assert [line['step'] for line in training] == [1, 2, 3, 4]
  assert [line['images'] for line in training] == [2, 4, 6, 8]
  assert all(np.isfinite(line['loss/total']) for line in training)
  scored = [line for line in lines if line['kind'] == 'eval']
  assert [line['step'] for line in scored] == [2, 4]
  assert {'box/AP', 'box/AP50', 'box/APs', 'box/AR100', 'mask/AP', 'mask/AP75'} <= set(scored[-1])
  assert figures['box/AP'] == scored[-1]['box/AP']
  results = json.loads(next((path / 'eval').glob('*4/bbox.json')).read_text())
  assert all(set(result) == {'image_id', 'category_id', 'bbox', 'score'} for result in results)


def test_the_saved_configuration_describes_the_same_run(trained):
  path, figures = trained
  gin_files.parse([str(path / 'config.gin')])
  again = experiment.run('evaluate', str(path))
  assert again == pytest.approx(figures, abs=1e-6)


def test_a_complete_run_is_not_trained_again(trained):
  path, figures = trained
  configure()
  before = sorted(p.name for p in (path / 'checkpoints').iterdir())
  assert experiment.run('train', str(path)) == pytest.approx(figures, abs=1e-6)
  assert sorted(p.name for p in (path / 'checkpoints').iterdir()) == before


def test_a_longer_schedule_continues_with_the_counters(trained):
  path, _ = trained
  configure('KTimesSchedule.unit = 0.75')
  experiment.run('train', str(path))
  last = [line for line in RunFolder(path, create=False).read_metrics() if line['kind'] == 'train'][-1]
  assert (last['step'], last['images'], last['epoch']) == (6, 12, 1)


def test_not_a_number_stops_the_run_and_names_loss_step_and_images(tmp_path):
  configure('KTimesSchedule.base_rate = 1e30', 'CocoEvaluator.every = 0')
  with pytest.raises(UserError, match=r'loss/.* step \d') as error:
    experiment.run('train', str(tmp_path))
  assert 'image' in error.value.line()
  steps = [int(p.name.split('-')[-1]) for p in pathlib.Path(tmp_path, 'checkpoints').glob('step-*')] \
    if (tmp_path / 'checkpoints').exists() else []
  for step in steps:
    reader = tf.train.load_checkpoint(str(next((tmp_path / 'checkpoints').glob(f'*{step}'))))
    assert all(np.isfinite(reader.get_tensor(name)).all() for name in reader.get_variable_to_shape_map()
               if reader.get_variable_to_dtype_map()[name].is_floating)


def test_another_network_does_not_continue_a_run(trained):
  path, _ = trained
  configure('FPN.channels = 64')
  with pytest.raises(UserError, match='checkpoint') as error:
    experiment.run('train', str(path))
  assert 'checkpoint' in error.value.line()


@pytest.mark.parametrize('binding, said', [
  ('ResNet.freeze_at = 2', 'freeze_at'),
  ('NORM = @frozen_batch_norm', 'frozen_batch_norm'),
])
def test_a_frozen_layer_with_random_weights_is_refused(binding, said, tmp_path):
  configure(binding)
  with pytest.raises(UserError, match=said):
    experiment.run('train', str(tmp_path))


@pytest.mark.parametrize('binding, said', [
  ("run.precision = 'float8'", 'run.precision'),
  ('ResNet.depth = 51', 'ResNet.depth'),
  ('synthetic.num_images = 0', 'num_images'),
])
def test_a_value_out_of_range_is_one_line(binding, said, tmp_path):
  configure(binding, *(['train/' + binding] if 'synthetic' in binding else []))
  with pytest.raises(UserError, match=said) as error:
    experiment.run('train', str(tmp_path))
  assert said in error.value.line()


def test_evaluating_without_a_checkpoint_says_so(tmp_path):
  configure()
  with pytest.raises(UserError, match='no checkpoint'):
    experiment.run('evaluate', str(tmp_path))


def test_batches_are_cut_evenly():
  assert experiment.spread(16, 2, 8) == (8, 1, 2)
  assert experiment.spread(16, 2, 1) == (1, 8, 2)
  assert experiment.spread(16, 3, 2) == (2, 4, 2)  # 8 images a device: parts of 2, since 3 does not divide them
  assert experiment.spread(3, 2, 1) == (1, 3, 1)
  with pytest.raises(UserError, match='BATCH_SIZE = 15'):
    experiment.spread(15, 2, 2)


def test_the_two_data_sets_must_have_the_same_classes(tmp_path):
  configure('eval/synthetic.num_classes = 2')
  with pytest.raises(UserError, match='categories'):
    experiment.run('train', str(tmp_path))
