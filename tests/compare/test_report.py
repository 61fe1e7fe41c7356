"""From run folders to a verdict: known answers, missing pieces, and what is written."""

import csv
import json
import re

import numpy as np
import pytest

from rethink_tf.compare import run_summary, verdict
from rethink_tf.compare.report import compare
from rethink_tf.errors import UserError
from tests.compare.fake_runs import share, write

HALF = share(100)


def worse(by):
  found = HALF.copy()
  found[np.flatnonzero(found)[:by]] = False
  return found


def better(by):
  found = HALF.copy()
  found[np.flatnonzero(~found)[:by]] = True
  return found


def run(tmp_path, scratch, pretrained=HALF, **options):
  paths = [write(tmp_path / 'scratch', scratch, k=6, images=1200),
           write(tmp_path / 'pre', pretrained, k=2, init='R50.pkl')]
  return compare(paths, str(tmp_path / 'out'), draws=200, **options)


@pytest.mark.parametrize('scratch, relation, words', [
  (HALF, verdict.EQUAL, 'Scratch catches up'),
  (better(40), verdict.BETTER, 'Scratch catches up'),
  (worse(40), verdict.WORSE, 'does not catch up by 6x'),
  (share(98, seed=9), verdict.UNSURE, 'Too noisy to say'),
])
def test_known_answers(tmp_path, scratch, relation, words):
  found = run(tmp_path, scratch)
  assert found.verdicts[0].steps[0].relation == relation
  assert words in found.verdicts[0].words and found.verdicts[0].words in found.text


def test_the_costs_are_those_of_figure_2(tmp_path):
  """Pixels: 1,200 images against 400, at 10,000 a picture; with 100 epochs of ImageNet on the other side."""
  found = run(tmp_path, HALF).verdicts[0]
  assert 'costs 3 x the compute' in found.words
  before = 128_116_700 * 224 ** 2
  assert f'{1.2e7 / (before + 4e6):.2g} x when pre-training is counted' in found.words
  assert found.caught_up.side.seen == (1200, 3600, 12e6)


def test_the_shortest_schedule_that_is_enough_is_named(tmp_path):
  paths = [write(tmp_path / f's{k}', found, k=k, images=200 * k) for k, found in
           ((2, worse(60)), (3, worse(20)), (6, HALF), (9, HALF))]
  found = compare([*paths, write(tmp_path / 'p', HALF, k=2, init='w')], str(tmp_path / 'out'), draws=100)
  assert [step.relation for step in found.verdicts[0].steps] == ['worse', 'worse', 'equal', 'equal']
  assert found.verdicts[0].caught_up.side.schedule == '6x'


def test_advice_when_longer_training_still_helps_and_when_it_has_stopped(tmp_path):
  def words(name, longest):
    paths = [write(tmp_path / name / 's2', worse(80), k=2), write(tmp_path / name / 's6', longest, k=6, images=1200),
             write(tmp_path / name / 'p', HALF, k=2, init='w')]
    return compare(paths, str(tmp_path / name / 'out'), draws=100).verdicts[0].words
  assert 'still gains' in words('a', worse(50))
  assert 'stopped helping' in words('b', worse(80))


def test_seeds_are_one_side(tmp_path):
  paths = [write(tmp_path / f's{seed}', share(100, seed=seed), k=6, seed=seed) for seed in (1, 2, 3)]
  found = compare([*paths, write(tmp_path / 'p', HALF, k=2, init='w')], str(tmp_path / 'out'), draws=50)
  assert len(found.verdicts[0].steps) == 1
  assert '3 seeds' in found.verdicts[0].words


def test_no_verdict_between_runs_that_differ_in_more(tmp_path):
  paths = [write(tmp_path / 's', HALF, rate=0.02), write(tmp_path / 'p', HALF, rate=0.01, init='w')]
  found = compare(paths, str(tmp_path / 'out'), draws=50)
  assert not found.verdicts and 'differ in more than' in found.text
  assert re.search(r'KTimesSchedule.base_rate +0.02 +0.01', found.text)
  alone = compare(paths[:1], str(tmp_path / 'out'), draws=50)
  assert 'add a run that is pre-trained' in alone.text


def test_without_detections_there_is_no_interval_and_it_says_so(tmp_path):
  paths = [write(tmp_path / 's', HALF), write(tmp_path / 'p', HALF, init='w', save=False)]
  found = compare(paths, str(tmp_path / 'out'), draws=50)
  assert 'no interval can be given' in found.text


def test_what_is_written(tmp_path):
  run(tmp_path, worse(40))
  out = tmp_path / 'out'
  page = (out / 'index.html').read_text()
  assert 'does not catch up' in page and '<svg' in page and 'viewport' in page
  outside = set(re.findall(r'(?:src|href)="(?!#)([^"]*)"', page)) | set(re.findall(r'url\((?!#)[^)]*\)', page))
  assert not {link for link in outside if not link.startswith('data:')}  # needs no network
  with open(out / 'curves.csv') as file:
    rows = list(csv.DictReader(file))
  assert [row['images'] for row in rows] == ['600', '1200', '200', '400']
  assert float(rows[3]['box/AP']) == 50
  assert {path.suffix for path in out.iterdir()} == {'.png', '.svg', '.html', '.csv', ''}
  assert all(path.stat().st_size > 2000 for path in out.glob('*.png'))


def test_twins_of_one_schedule_stand_side_by_side(tmp_path):
  paths = [write(tmp_path / f'{init or "s"}{k}', found, k=k, init=init, images=400 * k)
           for init, k, found in ((None, 1, worse(40)), (None, 2, HALF), ('w', 1, HALF), ('w', 3, HALF))]
  text = compare(paths, str(tmp_path / 'out'), draws=50).text
  heading = 'Scratch against pre-training at the same schedule'
  rows = text[text.index(heading):].splitlines()[1:3]
  assert rows[0].split() == ['schedule', 'scratch', 'pre-trained', 'difference', 'verdict']
  schedule, scratch, pretrained, difference = rows[1].split()[:4]
  assert (schedule, scratch, pretrained) == ('1x', '30.0', '50.0') and rows[1].endswith('worse')
  assert float(difference) == pytest.approx(-20, abs=0.5)
  assert text[text.index(heading):].splitlines()[3] == ''
  assert heading not in compare(paths[1:3], str(tmp_path / 'other'), draws=20).text


def test_names_are_no_formulas_and_no_markup(tmp_path):
  paths = [write(tmp_path / '$x_{$', HALF), write(tmp_path / '<b>&', HALF, init='w')]
  compare(paths, str(tmp_path / 'out'), draws=20)
  page = (tmp_path / 'out/index.html').read_text()
  assert '$x_{$' in page and '&lt;b&gt;&amp;' in page and '<b>' not in page


def test_the_tensorboard_log(tmp_path):
  from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
  run(tmp_path, HALF)
  log = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / 'out/tensorboard')).Reload()
  assert set(log.Runs()) == {'scratch', 'pre', 'layout'}
  for name in ('scratch', 'pre'):  # the same tags, so that they lie on the same axes
    tags = log.Runs()[name]['tensors']
    assert {'eval/box/AP', 'loss/total', 'by_images/box/AP', 'final', '_hparams_/session_start_info'} <= set(tags)
  assert {'custom_scalars__config__', '_hparams_/experiment'} <= set(log.Runs()['layout']['tensors'])
  assert [event.step for event in log.Tensors('pre', 'eval/box/AP')] == [50, 100]


def test_hyper_parameters_that_all_runs_share_are_left_out(tmp_path):
  from rethink_tf.compare import tensorboard_log

  runs = run_summary.read_runs([write(tmp_path / 'a', HALF), write(tmp_path / 'b', HALF, init='w')])
  names = {'init', 'schedule', 'norm', 'learning_rate', 'seed', 'batch_size'}
  assert names == set(tensorboard_log.hyper_parameters(runs[0]))
  tensorboard_log.write(runs, 'box/AP', str(tmp_path / 'one'))
  data = b''.join(path.read_bytes() for path in (tmp_path / 'one').rglob('events*'))
  assert b'schedule' in data and b'learning_rate' in data and b'batch_size' not in data
  other = run_summary.read_runs([write(tmp_path / 'c', HALF, seed=1), *(str(tmp_path / name) for name in 'ab')])
  tensorboard_log.write(other, 'box/AP', str(tmp_path / 'two'))
  assert b'seed' in b''.join(path.read_bytes() for path in (tmp_path / 'two').rglob('events*'))


def test_colours_tell_initial_weights_by_hue_and_length_by_shade(tmp_path):
  from matplotlib.colors import rgb_to_hsv, to_rgb

  from rethink_tf.compare import plots

  paths = [write(tmp_path / f'{init or "s"}{k}', HALF, k=k, init=init, images=int(400 * k))
           for init in (None, 'w') for k in (1, 2, 3)]
  found = plots.colours(run_summary.read_runs(paths))
  hues, _, values = np.array([rgb_to_hsv(to_rgb(found[name])) for name in ('s1', 's2', 's3', 'w1', 'w2', 'w3')]).T
  assert np.all((hues[:3] > 0.5) & (hues[:3] < 0.7)) and np.all((hues[3:] < 0.1) | (hues[3:] > 0.9))
  assert np.all(np.diff(values[:3]) < 0) and np.all(np.diff(values[3:]) < 0)  # the longer, the darker
  more = run_summary.read_runs([*paths, write(tmp_path / 'other', HALF, rate=0.3)])
  assert len(set(plots.colours(more).values())) == 7


def test_settings_are_read_with_macros_and_long_lines(tmp_path):
  path = write(tmp_path / 's', HALF, k=2.5)
  one, = run_summary.read_runs([path])
  assert one.settings['KTimesSchedule.k'] == 2.5 and one.settings['run.model'] == '@MaskRCNN'
  assert one.schedule == '2.5x' and one.init == run_summary.SCRATCH
  assert one.drops == [] and run_summary.read_runs([write(tmp_path / 'long', HALF, k=1, images=4000)])[0].drops == [800]


def test_own_pre_training_is_counted(tmp_path):
  """A run folder as initial weights: what it has seen is in its metrics."""
  (tmp_path / 'classifier').mkdir()
  (tmp_path / 'classifier/metrics.jsonl').write_text(json.dumps(
    {'kind': 'train', 'step': 10, 'images': 320, 'instances': 320, 'pixels': 1000}) + '\n')
  one, = run_summary.read_runs([write(tmp_path / 'p', HALF, init=str(tmp_path / 'classifier'))])
  assert one.pretraining == (320, 320, 1000)


@pytest.mark.parametrize('break_it, message', [
  (lambda p: (p / 'config.gin').unlink(), 'no config.gin'),
  (lambda p: (p / 'metrics.jsonl').write_text('{"kind": "train"}\n'), 'no evaluation'),
  (lambda p: (p / 'eval/step-00000100/bbox.json').write_text('[{'), 'evaluate the run again'),
  (lambda p: (p / 'eval/step-00000100/ground_truth.json').write_text('[]'), 'does not hold a json object'),
])
def test_broken_folders_are_named(tmp_path, break_it, message):
  paths = [write(tmp_path / 's', HALF), write(tmp_path / 'p', HALF, init='w')]
  break_it(tmp_path / 's')
  with pytest.raises(UserError, match=message):
    compare(paths, str(tmp_path / 'out'), draws=20)


@pytest.mark.parametrize('options, message', [
  ({'figure': 'mask/AP'}, 'scratch has no mask/AP'), ({'margin': -1}, 'negative'), ({'draws': 1}, '--draws'),
  ({'confidence': 2}, '--confidence')])
def test_options_are_checked(tmp_path, options, message):
  paths = [write(tmp_path / 'scratch', HALF), write(tmp_path / 'p', HALF, init='w')]
  with pytest.raises(UserError, match=message):
    compare(paths, str(tmp_path / 'out'), **options)


def test_the_same_folder_twice_and_none(tmp_path):
  path = write(tmp_path / 's', HALF)
  with pytest.raises(UserError, match='named twice'):
    run_summary.read_runs([path, path + '/'])
  with pytest.raises(UserError, match='no run given'):
    run_summary.read_runs([])
