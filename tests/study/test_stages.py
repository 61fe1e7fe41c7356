"""Shared iterations of schedules: order of stages, forks, total images."""

import pytest

from rethink_tf.study import stages as staging
from rethink_tf.study.grid import Trial, TrialConfig
from rethink_tf.training.schedules import KTimesSchedule, schedule_points


def trial(name):
  return Trial(name, {}, (), ())


def config(k, kind='a', explicit=False):
  points = schedule_points(k)
  return TrialConfig(points.end, 16, None if explicit else points.first_drop, 90_000, kind, ())


def test_figure_1_shares_its_prefixes():
  names = (2, 3, 6)
  stages = staging.plan([trial(f'{k}x') for k in names], [config(k) for k in names])
  assert [(s.trial.name, s.start, s.end, s.fork_of.name if s.fork_of else None) for s in stages] == [
    ('6x', 0, 120_000, None), ('2x', 120_000, 180_000, '6x'), ('6x', 120_000, 210_000, None),
    ('3x', 210_000, 270_000, '6x'), ('6x', 210_000, 540_000, None)]
  assert [s.partial for s in stages] == [True, False, True, False, False]
  assert staging.images(stages) == 16 * (540_000 + 60_000 + 60_000)


@pytest.mark.parametrize('short, long', [(1, 2), (2, 6), (1, 9), (0.25, 3)])
def test_rates_before_a_fork_equal_those_of_the_longer_schedule(short, long):
  one, other = KTimesSchedule(short), KTimesSchedule(long)
  drop = schedule_points(short).first_drop
  for step in (0, 100, 499, drop // 2, drop - 1):
    assert float(one(step)) == float(other(step))
  assert float(one(drop)) < float(other(drop))


def test_other_kinds_and_explicit_boundaries_share_nothing():
  stages = staging.plan([trial('a'), trial('b')], [config(2, 'a'), config(6, 'b')])
  assert [(s.trial.name, s.start, s.fork_of) for s in stages] == [('a', 0, None), ('b', 0, None)]
  stages = staging.plan([trial('a'), trial('b')], [config(2, explicit=True), config(6, explicit=True)])
  assert all(s.fork_of is None and s.start == 0 and not s.partial for s in stages)
  stages = staging.plan([trial('a'), trial('b')], [config(2), config(6)], share_prefixes=False)
  assert staging.images(stages) == 16 * 8 * 90_000


def test_runs_of_equal_length_share_iterations():
  """Two runs of one kind and one length."""
  stages = staging.plan([trial('a'), trial('b')], [config(2), config(2)])
  assert staging.images(stages) == 16 * (180_000 + 60_000)


def test_the_table_names_forks_and_continued_runs():
  rows = staging.table(staging.plan([trial('2x'), trial('6x')], [config(2), config(6)]))
  assert rows[1] == ['6x', '0-120000', '1920000', 'continued below']
  assert rows[2] == ['2x', '120000-180000', '960000', 'up to 120000 from 6x']
