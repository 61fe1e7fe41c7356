"""The time of a study: what a short run measures, and what is counted."""

import pytest

from rethink_tf.study import estimate as estimating
from rethink_tf.study.estimate import Speed, evaluations
from rethink_tf.study.execution import Calibration
from rethink_tf.study.grid import Length, Trial
from rethink_tf.study.stages import Stage


def length(steps=100, every=0, kind='', data_dir=None):
  return Length(steps, 4, 60, 100, kind, (), every, 'CocoEvaluator.every', data_dir)


def lines(seconds, eval_seconds=()):
  train = [{'kind': 'train', 'step': i, 'seconds': one} for i, one in enumerate(seconds, start=1)]
  return [*train, *({'kind': 'eval', 'eval_seconds': one} for one in eval_seconds)]


def test_tracing_is_part_of_the_start_and_not_of_the_speed():
  calibration = Calibration(100.0, lines((30, 30.5, 31, 51, 51.5, 52), (12.0, 4.0)), 0)  # two shapes are traced
  assert Speed.of(calibration) == Speed(100 - 6 * 0.5 - 2 * 4, 0.5, 4.0)
  assert Speed(10, 0.5, 4).seconds(100, 3) == 72 and Speed(10, 0.5, 4).seconds(0, 0) == 0
  assert estimating.seconds_per_step(lines([30])) == 30


@pytest.mark.parametrize('start, end, every, begin, number', [
  (0, 100, 0, 0, 1), (0, 60, 0, 0, 0),  # the end of the run, and of a stage that is continued later
  (0, 100, 30, 0, 4), (0, 100, 50, 0, 2), (60, 100, 30, 60, 2), (0, 60, 30, 0, 2), (0, 100, 30, 95, 1)])
def test_evaluations_of_a_stage(start, end, every, begin, number):
  assert evaluations(Stage(Trial('a', {}, (), ()), length(every=every), start, end), begin) == number


class Short:
  """A Runner that measures 1 s to start, 0.1 s a step and 2 s an evaluation; a norm is twice as slow."""

  def __init__(self):
    self.timed = []

  def reached(self, stage):
    return 50 if stage.trial.name == 'half' else 0

  def calibrate(self, stage):
    self.timed.append(stage.trial)
    step = 0.2 if 'syncbn' in stage.length.kind else 0.1
    return Calibration(1 + 4 * step + 4, lines([step, 2 * step, 3 * step, 4 * step], (2, 2)), 0)

  def calibrate_pretraining(self, path, files, params, more):
    return Calibration(1 + 0.4, lines([0.1, 0.2, 0.3, 0.4]), 1000)


def test_a_study_counts_pre_training_stages_and_what_is_done():
  weights = "WEIGHTS = '/pretraining/shapes'"
  stages = [
    Stage(Trial('half', {}, (), (weights,)), length(kind=f'{weights}\nrun.seed = 1\nn = @group_norm'), 0, 100),
    Stage(Trial('whole', {}, (), ()), length(kind='# comment\nn = @group_norm'), 0, 100),
    Stage(Trial('slow', {}, (), (weights,)), length(kind='n = @syncbn'), 0, 100)]
  runner = Short()
  found = estimating.estimate(runner, stages, {'/pretraining/shapes': ((), ())}, ())
  assert found.pretraining == {'/pretraining/shapes': pytest.approx(101)}
  assert found.stages == pytest.approx((1 + 5 + 2) + (1 + 10 + 2) + (1 + 20 + 2))
  assert [trial.name for trial in runner.timed] == ['whole', 'slow']  # the first needs weights that are not there yet
  assert runner.timed[1].params == (weights, 'run.initial_weights = None')
  assert 'about 2 min 25 s, with evaluations' in str(found)
