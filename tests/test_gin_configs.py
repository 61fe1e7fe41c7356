"""Every shipped gin file parses and builds; every complete configuration takes a step; files keep to their axis."""

import itertools
import pathlib
import re
import subprocess
import sys

import gin
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf import gin_files
from rethink_tf.data.pipeline import TrainInput
from rethink_tf.data.synthetic import SyntheticSource
from rethink_tf.errors import UserError
from rethink_tf.models.resnet import BLOCKS
from rethink_tf.schedules import schedule_points
from rethink_tf.trainer import Trainer
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'gin_configs').glob('**/*.gin'))
COMPLETE = [name for name in FILES if name.count('/') == 1]
AXES = [name for name in FILES if name not in COMPLETE]
# Chosen in tests of their own: one needs an extra, the other is refused from random weights.
NOT_BUILT = ('norms/addons_gn.gin', 'norms/frozen_bn.gin')


@pytest.fixture(autouse=True)
def no_configuration_is_left():
  yield
  gin.clear_config()


def parse(*names, params=()):
  import rethink_tf.experiment  # noqa: F401  registers what the files name
  gin_files.parse(names, [*tiny.GIN, *params])


def build():
  """The trainer that a parsed configuration describes, on synthetic pictures, as experiment.run makes it."""
  configured = gin.get_configurable
  tf_keras.utils.set_random_seed(0)
  source = SyntheticSource(8, image_size=(64, 64), object_size=(16, 40), num_classes=3, training=True)
  feed = configured('TrainInput')(source, 2, 0)
  model = gin.query_parameter('run.model').configurable.wrapped
  assert model.__name__ == 'MaskRCNN'
  trainer = Trainer(configured('MaskRCNN')(num_classes=3), configured('MaskRCNNLoss')())
  trainer.compile(configured('SGD')(learning_rate=0.01))
  trainer.make_variables(feed.dataset().element_spec)
  return trainer, feed


def signature(name):
  """What decides how a complete configuration computes: its operative config without the length of the schedule."""
  parse(name)
  return '\n'.join(line for line in gin.config_str().splitlines() if not re.match(r'SCHEDULE|KTimesSchedule', line))


def one_of_each():
  """One configuration of each kind of step: scratch_1x ... 9x differ in the schedule alone."""
  names = [(signature(name), name) for name in COMPLETE if not name.endswith('base.gin')]
  gin.clear_config()
  return [next(group)[1] for _, group in itertools.groupby(sorted(names), key=lambda pair: pair[0])]


@pytest.mark.parametrize('name', COMPLETE)
def test_a_complete_configuration_parses_and_its_parts_can_be_made(name):
  parse(name)
  schedule = gin.get_configurable('KTimesSchedule')(batch_size=16)
  assert schedule.total_steps > 0
  assert isinstance(gin.get_configurable('ResNet')(), tf_keras.layers.Layer)


@pytest.mark.parametrize('name', one_of_each())
def test_a_complete_configuration_takes_a_step(name):
  parse(name)
  trainer, feed = build()
  before = [v.numpy() for v in trainer.detector.trainable_variables]
  history = trainer.fit(feed.dataset(), steps_per_epoch=1, verbose=0).history
  assert all(np.isfinite(values).all() for values in history.values())
  after = [v.numpy() for v in trainer.detector.trainable_variables]
  assert sum(not np.array_equal(a, b) for a, b in zip(before, after, strict=True)) > 0.9 * len(before)


@pytest.mark.parametrize('name', [name for name in AXES if not name.endswith(NOT_BUILT)])
def test_an_axis_file_switches_a_complete_configuration(name):
  parse('gin_configs/scratch_3x.gin')
  plain = set(gin.config_str().splitlines())
  parse('gin_configs/scratch_3x.gin', name)
  switched = set(gin.config_str().splitlines())
  already_chosen = name.endswith(('norms/gn.gin', 'models/r50.gin', 'data/coco.gin', 'init/scratch.gin'))
  assert (switched == plain) == already_chosen
  assert gin.query_parameter('KTimesSchedule.k').scoped_configurable_fn() == 3  # an axis file leaves the others alone


def test_a_norm_is_one_line():
  parse('gin_configs/demo.gin', params=['NORM = @no_norm'])
  trainer, feed = build()
  assert not [v.name for v in trainer.detector.trainable_variables if 'norm' in v.name]
  assert np.isfinite(trainer.fit(feed.dataset(), steps_per_epoch=1, verbose=0).history['loss/total']).all()


@pytest.mark.parametrize('k', [1, 2, 3, 4, 5, 6, 9])
def test_a_schedule_file_names_the_steps_it_takes(k):
  """The run sheet and the code tell the same numbers."""
  name = f'gin_configs/scratch_{k}x.gin'
  parse(name)
  points = schedule_points(k)
  sheet = (ROOT / name).read_text()
  assert f'{points.end:,} steps of 16 images' in sheet
  assert f'the rate drops at {points.first_drop:,} and {points.second_drop:,}' in sheet


def test_run_sheets_open_every_complete_configuration():
  for name in COMPLETE:
    if name.endswith('base.gin'):
      continue
    text = (ROOT / name).read_text()
    for field in ('# Reproduces', '# Cost', '# Command', '# Override'):
      assert field in text, (name, field)
    assert f'--gin_file={name}' in text, name


def test_depths_of_the_models():
  for name, depth in (('scratch_6x', 50), ('scratch_6x_r101', 101)):
    parse(f'gin_configs/{name}.gin')
    assert gin.query_parameter('ResNet.depth') == depth and depth in BLOCKS


def test_a_subset_of_the_training_images_leaves_the_test_images_alone():
  parse('gin_configs/scratch_6x.gin', 'gin_configs/data/coco_10k.gin', params=['coco.fraction = 0.5'])
  assert gin.query_parameter('coco.num_images') == 10000 and gin.query_parameter('coco.fraction') == 0.5
  assert gin.query_parameter('eval/coco.num_images') is None and gin.query_parameter('eval/coco.fraction') == 1.0


@pytest.mark.parametrize('param, meant', [
  ('SCHEDUEL = 2', 'SCHEDULE'), ('ResNet.dpeth = 50', 'depth'), ('ResNett.depth = 50', 'ResNet')])
def test_a_misspelt_name_is_one_line_that_suggests_the_right_one(param, meant):
  with pytest.raises(UserError, match=rf'\b{meant}\b') as error:
    parse('gin_configs/scratch_1x.gin', params=[param])
  assert '\n' not in str(error.value)


def test_configurations_are_found_from_another_folder(tmp_path):
  (tmp_path / 'gin_configs').mkdir()  # a folder of the same name hides nothing
  code = ("import rethink_tf.experiment; from rethink_tf import gin_files; "
          "gin_files.parse(['gin_configs/scratch_6x.gin']); import gin; print(gin.query_parameter('ResNet.depth'))")
  found = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env={'PYTHONPATH': str(ROOT), 'PATH': ''},
                         capture_output=True, text=True)
  assert found.stdout.split() == ['50'], found.stderr


def test_the_input_keeps_what_gin_binds():
  parse('gin_configs/scratch_1x.gin')
  source = SyntheticSource(4, image_size=(64, 64), object_size=(16, 40))
  feed = gin.get_configurable('TrainInput')(source, 2, 0)
  assert isinstance(feed, TrainInput) and feed.resize.largest == 64
  assert tf.is_tensor(next(iter(feed.dataset())).images)
