"""Settings that differ between runs, and numbers that do not contradict the words beside them."""

from types import SimpleNamespace

import pytest

from rethink_tf.compare import planning, verdict
from rethink_tf.compare.intervals import Interval
from rethink_tf.compare.run_summary import read_runs
from rethink_tf.compare.tables import (
  curves_table,
  differences_table,
  different_settings,
  runs_table,
  steps_table,
  twins_table,
)
from rethink_tf.storage.run_folder import write_schedule
from tests.compare.fake_runs import HALF, better, share, write


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


@pytest.fixture
def runs(tmp_path):
  return read_runs([write(tmp_path / 's', HALF), write(tmp_path / 'p', better(4), init='w')])


def test_rows_of_runs_and_of_their_evaluations(runs):
  _, scratch, pretrained = runs_table(runs, ['box/AP', 'mask/AP'])
  assert scratch == ['s', 'scratch', '1x', '0', '100', '400', '4e+06', '-', '50.0', '-']
  assert pretrained[1:] == ['pre-trained', '1x', '0', '100', '400', '4e+06', '6.43e+12', '52.0', '-']
  exact = runs_table(runs, ['box/AP'], exact=True)[2]
  assert exact[6:] == ['4000000', f'{128_116_700 * 224 ** 2}', '52.0000']
  header, first, last, *others = curves_table(runs)
  assert header == ['run', 'iterations', 'images', 'instances', 'pixels', 'seconds', 'box/AP', 'box/APl', 'box/APm',
                    'box/APs']
  assert first == ['s', '50', '200', '600', '2000000', '50', '25.0000', '', '', '']
  assert last == ['s', '100', '400', '1200', '4000000', '100', '50.0000', '', '50.0000', ''] and len(others) == 2


@pytest.mark.parametrize('interval, images, twins, difference', [
  (Interval(-2.0, -3.0, -1.0), 200, ['1x', '50.0', '52.0', '-2.0 [-3.0, -1.0]', 'worse'], '-2.0 [-3.0, -1.0]'),
  (None, 1, ['1x', '50.0', '52.0', '-', '-'], '+2.0'), (None, None, ['1x', '50.0', '52.0', '-', '-'], '+2.0')])
def test_rows_of_differences(runs, interval, images, twins, difference):
  known = SimpleNamespace(metric='box/AP', between=lambda *_: interval, num_images=lambda side: images)
  assert twins_table(runs, known, 0.5)[1:] == [twins] and twins_table(runs[:1], known, 0.5) == []
  _, (name, found, words) = differences_table(runs, known, 0.5)
  assert (name, found) == ('p', difference)
  assert words.startswith('worse' if interval else 'no interval: ') and ('one held-out image' in words) == (images == 1)
  if interval:
    write_schedule(runs[0].folder, 101)
    assert differences_table(read_runs([run.folder.path for run in runs]), known, 0.5)[1][2] == 'not complete'


@pytest.mark.parametrize('of_best, of_other, relation, against', [
  ((-7.0, 1.0), (-3.0, -1.0), verdict.WORSE, '1x'), ((-0.2, 0.2), (-2.0, 1.0), verdict.UNSURE, '1x'),
  ((-2.0, 1.0), (-3.0, 1.0), verdict.UNSURE, '2x'), ((-0.2, 0.2), (-0.1, 2.0), verdict.EQUAL, '2x')])
def test_the_difference_of_a_row_is_the_one_that_its_verdict_is_of(tmp_path, monkeypatch, of_best, of_other, relation,
                                                                   against):
  """It may be behind a schedule other than the best one, whose interval is wider."""
  monkeypatch.setattr(verdict.planning, 'needed', lambda *_: planning.Need('', ''))
  runs = read_runs([write(tmp_path / 's', HALF), write(tmp_path / 'p', better(4), init='w'),
                    write(tmp_path / 'q', better(6), k=2, images=800, init='w')])
  known, asked = {'1x': Interval(sum(of_other) / 2, *of_other), '2x': Interval(sum(of_best) / 2, *of_best)}, []

  def between(_, other, comparisons=1):
    asked.append(comparisons)
    return known[other.schedule]

  differences = SimpleNamespace(metric='box/AP', look=None, between=between)
  found = verdict.verdicts(runs, differences, 0.5)
  row = steps_table(runs, found)[1]
  assert (row[1], row[4], row[5]) == (f'pre-trained {against}', str(known[against]), relation)
  assert row[3] == {'1x': '52.0', '2x': '53.0'}[against] and row[6] == {'1x': '1 x', '2x': '0.5 x'}[against]
  assert twins_table(runs, differences, 0.5)[1][3] == str(known['1x'])
  assert set(asked) == {2}, 'the interval of a pair is the same in all tables'


def test_an_ap_of_twice_the_margin_is_equal_to_nothing_in_any_table(tmp_path):
  runs = read_runs([write(tmp_path / name, share(1, 100), init=init) for name, init in (('s', None), ('p', 'w'))])
  known = SimpleNamespace(metric='box/AP', look=None, between=lambda *_: Interval(0.0, -0.1, 0.1))
  rows = [twins_table(runs, known, 0.5)[1], differences_table(runs, known, 0.5)[1]]
  assert [row[-1] for row in rows] == [verdict.UNSURE] * 2
