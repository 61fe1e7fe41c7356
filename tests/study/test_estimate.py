"""The time of a study: what is timed, and what is counted."""

import math

import pytest

from rethink_tf.errors import UserError
from rethink_tf.study import estimate as estimating
from rethink_tf.study.grid import Trial, TrialConfig
from rethink_tf.study.stages import Stage, evaluations


def config(steps=100, every=0, kind='', data_dir=None):
  return TrialConfig(steps, 4, 60, 100, kind, (), every, 'CocoEvaluator.every', data_dir)


@pytest.mark.parametrize('start, end, every, begin, number', [
  (0, 100, 0, 0, 1), (0, 60, 0, 0, 0),  # the end of the run, and of a stage that is continued later
  (0, 100, 30, 0, 4), (0, 100, 50, 0, 2), (60, 100, 30, 60, 2), (0, 60, 30, 0, 2), (0, 100, 30, 95, 1)])
def test_evaluations_of_a_stage(start, end, every, begin, number):
  assert evaluations(Stage(Trial('a', {}, (), ()), config(every=every), start, end), begin) == number


class Short:
  """A Runner that takes note of what is timed."""

  def __init__(self):
    self.timed = []

  def calibrate(self, stage):
    self.timed.append(stage.trial)

  def calibrate_pretraining(self, path, files, params, data_dir):
    return 101.0

  def remaining(self, stages):
    return 44.0 * bool(stages)


def test_a_study_counts_pre_training_and_times_each_kind():
  weights = "WEIGHTS = '/pretraining/shapes'"
  stages = [
    Stage(Trial('half', {}, (), (weights,)), config(kind=f'{weights}\nrun.seed = 1\nn = @group_norm'), 0, 100),
    Stage(Trial('whole', {}, (), ()), config(kind='# comment\nn = @group_norm'), 0, 100),
    Stage(Trial('slow', {}, (), (weights,)), config(kind='n = @syncbn'), 0, 100)]
  runner = Short()
  found = estimating.estimate(runner, stages, {'/pretraining/shapes': ((), (), None)})
  assert found.pretraining == {'/pretraining/shapes': 101.0} and found.stages == 44
  # The first stage needs weights that are not there yet; its kind is timed last, so that its graph is used again.
  assert [trial.name for trial in runner.timed] == ['slow', 'whole']
  assert runner.timed[0].params == (weights, 'run.initial_weights = None')
  assert 'about 2 min 25 s, with evaluations' in str(found)


def test_of_many_kinds_those_with_the_most_images_are_timed():
  """By the images that remain; the kind of the first stage last, whatever its name."""
  def stage(name, start, end, batch_size):
    return Stage(Trial(name, {}, (), ()), config(kind=f'n = {name}')._replace(batch_size=batch_size), start, end)

  stages = [stage('z', 900, 1000, 8), stage('c', 900, 1000, 1), stage('b', 0, 90, 4), stage('x', 0, 50, 16),
            stage('a', 0, 300, 1), stage('c', 0, 150, 1)]  # 800, 100 + 150, 360, 800 and 300 images
  runner = Short()
  estimating.estimate(runner, stages, {})
  assert [trial.name for trial in runner.timed] == ['x', 'b', 'z']


def test_an_unknown_time_is_not_zero():
  runner = Short()
  runner.remaining = lambda stages: math.nan
  with pytest.raises(UserError, match='too short to be timed'):
    estimating.estimate(runner, [Stage(Trial('a', {}, (), ()), config(), 0, 100)], {})
