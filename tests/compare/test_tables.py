"""Settings that differ between runs, and numbers that do not contradict the words beside them."""

from types import SimpleNamespace

import pytest

from rethink_tf.compare import verdict
from rethink_tf.compare.intervals import Interval
from rethink_tf.compare.run_summary import read_runs
from rethink_tf.compare.tables import different_settings, steps_table
from tests.compare.fake_runs import HALF, write


def settings(*runs):
  return different_settings([SimpleNamespace(settings=run) for run in runs])


def test_settings_of_a_component_that_one_run_has_are_left_out_if_they_set_nothing():
  pretrained = {'run.initial_weights': '@PretrainedWeights()', 'PretrainedWeights.path': 'w', 'run.seed': 0,
                'PretrainedWeights.norm': None, 'PretrainedWeights.ignore': (), 'PretrainedWeights.new': False}
  scratch = {'run.initial_weights': None, 'run.seed': 0}
  assert settings(scratch, pretrained) == {'run.initial_weights': ['None', '@PretrainedWeights()'],
                                           'PretrainedWeights.path': ['-', 'w']}


def test_nothing_that_differs_between_runs_is_left_out():
  found = settings({'a.b': None, 'a.c': False, 'coco.data_dir': 'x'},
                   {'a.b': False, 'a.c': 3, 'coco.data_dir': 'y'}, {})
  assert found == {'a.b': ['None', 'False', '-'], 'a.c': ['False', '3', '-']}


@pytest.mark.parametrize('interval, words', [
  (Interval(6.04, -0.04, 12.0), '+6.0 [-0.04, +12.0]'), (Interval(-2.0, -4.0, 0.03), '-2.0 [-4.0, +0.03]'),
  (Interval(0.11, -0.3, 0.52), '+0.11 [-0.30, +0.52]'), (Interval(-0.0, -0.001, 0.001), '+0.00 [+0.00, +0.00]')])
def test_an_end_beside_zero_or_the_margin_is_told_from_it(interval, words):
  assert str(interval) == words


def test_the_words_of_a_comparison(tmp_path):
  """Without 1.2e+02 x, or 1 points."""
  runs = read_runs([write(tmp_path / 's', HALF, k=6, images=48_000), write(tmp_path / 'p', HALF, init='w')])
  known = SimpleNamespace(metric='box/AP', look=None, between=lambda *_: Interval(0.0, -0.04, 0.98))
  only, = verdict.verdicts(runs, known, margin=1.0)
  assert 'is within 1 point of pre-trained' in only.words and '+0.00 [-0.04, +0.98]' in only.words
  assert '120 x' in only.cost and '120 x' in steps_table(runs, [only])[1]
