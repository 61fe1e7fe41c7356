"""Comparisons of run folders: known verdicts, missing files, the report on disk."""

import csv
import json
import pathlib
import re
import shutil
import types

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rethink_tf.compare import copies, differences, groups, looks, plots, report, verdict
from rethink_tf.compare.differences import Differences
from rethink_tf.compare.intervals import Interval
from rethink_tf.compare.report import compare
from rethink_tf.compare.run_summary import read_runs
from rethink_tf.errors import UserError
from rethink_tf.storage import identity
from rethink_tf.storage.run_folder import RunFolder, write_schedule
from rethink_tf.study import sequential
from rethink_tf.study.seeds import UntilSettled
from tests.compare.fake_runs import HALF, better, detections, share, truth, worse, write


def run(tmp_path, scratch, pretrained=HALF, **options):
  paths = [write(tmp_path / 'scratch', scratch, k=6, images=1200),
           write(tmp_path / 'pre', pretrained, k=2, init='R50.pkl')]
  return compare(paths, str(tmp_path / 'out'), draws=100, **{'seed_spread': 0.0, **options})


@pytest.fixture
def without_files(monkeypatch):
  """Leaves out page and plots, which take seconds to draw."""
  monkeypatch.setattr(report, '_write', lambda *content: '')


def judge(paths, seed_spread=None, margin=0.5):
  """The verdicts, without the cost of a report."""
  runs = copies.independent(read_runs(paths))
  found = Differences(runs, 'box/AP', report.matches_reader(runs, 'box/AP'), 50, seed_spread=seed_spread)
  return verdict.verdicts(runs, found, margin)


@pytest.mark.parametrize('scratch, relation, words', [
  (HALF, verdict.EQUAL, 'Scratch catches up'),
  (better(40), verdict.BETTER, 'Scratch catches up'),
  (worse(40), verdict.WORSE, 'does not catch up by 6x'),
  (share(98, seed=9), verdict.UNSURE, 'Too noisy to say'),
])
def test_known_verdicts(tmp_path, scratch, relation, words):
  only, = judge([write(tmp_path / 'scratch', scratch, k=6, images=1200),
                 write(tmp_path / 'pre', HALF, k=2, init='R50.pkl')], 0.0)
  assert only.steps[0].relation == relation and words in only.words


def test_the_confidence_keeps_its_digits(tmp_path, without_files):
  assert '99.9 % confidence' in run(tmp_path, worse(60), confidence=0.999).text


def test_costs_as_in_figure_2(tmp_path, without_files):
  """Pixels: 1,200 images against 400 of 10,000 each; pre-training adds 100 epochs of ImageNet."""
  comparison = run(tmp_path, HALF)
  only = comparison.verdicts[0]
  assert only.cost in comparison.text and '6x from scratch costs 3 x the compute of fine-tuning for 2x' in only.cost
  assert 'less than 0.01 x when pre-training is counted' in only.cost  # 1.2e7 / (128,116,700 * 224 ** 2 + 4e6)
  assert '5 min 0 s from scratch, 1 min 40 s of fine-tuning' in only.cost
  assert only.caught_up.side.seen == (1200, 3600, 12e6)


@pytest.mark.parametrize('scratch, pretrained', [(0, 0), (0, 2), (2, 2)])
def test_sides_that_have_not_learned_are_not_equal(tmp_path, without_files, scratch, pretrained):
  """1 % of the images: to be within half a point of half a point says nothing."""
  only, = judge([write(tmp_path / f'{name}{seed}', share(count, 400), k=2, seed=seed, init=init) for seed in (0, 1)
                 for name, count, init in (('s', scratch, None), ('p', pretrained, 'w'))])
  assert only.answer == verdict.OPEN and only.headline.startswith('Cannot tell yet: AP is too low (')
  assert 'within 0.5 points says nothing' in only.words
  assert only.need.longer and only.need.chance == 0 and only.need.even.seeds is None  # seeds are not added in vain


def test_a_few_objects_that_both_sides_find_are_no_certainty(tmp_path):
  all_found = np.ones(6, bool)
  only, = judge([write(tmp_path / f'{name}{seed}', all_found, k=2, seed=seed, init=init) for seed in (0, 1)
                 for name, init in (('s', None), ('p', 'w'))])
  assert only.steps[0].relation == verdict.UNSURE and only.steps[0].difference.half > 10


def test_differences_that_cannot_be_are_not_claimed(tmp_path):
  """Three held-out images: the interval without limits is [-44, +111]."""
  paths = [write(tmp_path / name, np.array(found, bool), k=2, seed=seed, init=init) for name, found, seed, init in (
    ('s0', (1, 1, 0), 0, None), ('s1', (1, 0, 1), 1, None), ('p0', (1, 0, 0), 0, 'w'), ('p1', (0, 0, 1), 1, 'w'))]
  comparison = compare(paths, str(tmp_path / 'out'), draws=100)
  difference = comparison.verdicts[0].steps[0].difference
  assert difference.high == 100 > difference.value > 0 > difference.low and difference.half > 70
  assert 'The interval ends where differences do, and 33.8 points to either side would settle' in comparison.text
  numbers = [float(number) for number in re.findall(r'[-+]\d+\.\d+', comparison.text)]
  assert len(numbers) > 10 and max(map(abs, numbers)) == 100
  only, = compare([paths[0], paths[3]], str(tmp_path / 'alone'), draws=100).verdicts
  assert only.steps[0].difference.resolved <= 100


@pytest.mark.parametrize('margin, cure', [(0.5, 'AP is too low (0.5); train longer'), (
  5.0, 'a margin of 5 points is too wide for AP of 8.0; choose a smaller one, or train longer')])
def test_a_margin_as_wide_as_ap_is_not_called_a_low_ap(tmp_path, without_files, margin, cure):
  of = 2 if margin < 1 else 32
  only, = judge([write(tmp_path / f'{name}{seed}', share(of, 400), k=2, seed=seed, init=init) for seed in (0, 1)
                 for name, init in (('s', None), ('p', 'w'))], margin=margin)
  assert only.headline == f'Cannot tell yet: {cure}' and only.need.chance == 0


@pytest.mark.parametrize('draws, warned', [(10, True), (200, False)])
def test_intervals_of_few_draws_are_said_to_vary(tmp_path, without_files, caplog, draws, warned):
  compare([write(tmp_path / 's', HALF), write(tmp_path / 'p', worse(9), init='w')], str(tmp_path / 'out'), draws=draws)
  assert ('--draws=10: other draws would make the intervals wider or narrower by about 24 %' in caplog.text) == warned


def test_what_takes_long_is_said_with_the_time_left(tmp_path, without_files, caplog, monkeypatch):
  monkeypatch.setattr(differences, '_LOG_SECONDS', 0.0)
  with caplog.at_level('INFO'):
    run(tmp_path, HALF)
  for work in ('matching the detections', 'resampling the images'):
    assert re.search(rf'{work} of (scratch|pre), run 2 of 2, ETA \d+ s', caplog.text)


def test_a_copy_of_a_run_is_no_further_seed_and_the_page_says_so(tmp_path, without_files):
  paths = [write(tmp_path / name, HALF, init=init) for name, init in (('s', None), ('p', 'w'))]
  shutil.copytree(paths[0], tmp_path / 'copy/s')
  text = compare([*paths, str(tmp_path / 'copy/s')], str(tmp_path / 'out'), draws=20).text
  assert re.search(r'^\S+ and copy/s have the same configuration and the same seed \(run.seed = 0\): only the first '
                   r'counts in the verdict\.$', text, re.MULTILINE) and 'seeds a schedule: 1 scratch' in text
  assert 'only the first' not in compare(paths, str(tmp_path / 'out'), draws=20).text


def test_a_copy_that_was_continued_with_another_seed_is_no_further_seed(tmp_path, without_files):
  """Its losses are those of the first run up to step 50."""
  runs = [('s0', HALF, None, 0), ('s1', better(9), None, 1), ('p0', HALF, 'w', 0), ('p1', better(9), 'w', 1)]
  paths = [write(tmp_path / name, detected, init=init, seed=seed) for name, detected, init, seed in runs]
  assert 'seeds a schedule: 2 scratch, 2 pre' in compare(paths, str(tmp_path / 'out'), draws=20).text
  lines, own = ((tmp_path / name / 'metrics.jsonl').read_text().splitlines() for name in ('s0', 's1'))
  (tmp_path / 's1/metrics.jsonl').write_text('\n'.join(lines[:3] + own[3:]))
  text = compare(paths, str(tmp_path / 'out'), draws=20).text
  assert ('s0 and s1 have the same losses up to step 50, to the last digit, though their seeds differ (run.seed = 0 '
          'and 1)') in text and 'seeds a schedule: 1 scratch, 2 pre-trained' in text


def test_detections_of_another_evaluation_are_not_counted(tmp_path, without_files):
  """Files of the last step that could not be replaced: the metrics are of a later evaluation of it."""
  paths = [write(tmp_path / 's', HALF), write(tmp_path / 'p', HALF, init='w')]
  saved = tmp_path / 's/eval/step-00000100/bbox.json'
  saved.write_text(json.dumps(detections(truth(), worse(60))))
  comparison = compare(paths, str(tmp_path / 'out'), draws=20, seed_spread=0.0)
  assert comparison.verdicts[0].steps[0].difference is None and comparison.verdicts[0].answer == verdict.OPEN
  assert 's: its saved detections have box AP 20.8 and its last evaluation 50.0: they are of another one' in (
    comparison.text)
  # Another evaluation may have nearly the same AP.
  saved.write_text(json.dumps(detections(truth(), worse(1))))
  assert 'of another one' not in compare(paths, str(tmp_path / 'out'), draws=20, seed_spread=0.0).text
  (tmp_path / 's/eval/step-00000100/ground_truth.json').write_text(json.dumps({**truth(), 'evaluated': 1.5}))
  assert 'of another one' in compare(paths, str(tmp_path / 'out'), draws=20, seed_spread=0.0).text
  lines = tmp_path / 's/metrics.jsonl'
  kept = lines.read_text()
  lines.write_text(kept.replace('"box/AP": 50.0', '"box/AP": 49.52'))
  assert 'have box AP 49.50 and its last evaluation 49.52: they are of another one' in (
    compare(paths, str(tmp_path / 'out'), draws=20, seed_spread=0.0).text)
  lines.write_text(kept)
  with open(tmp_path / 's/metrics.jsonl', 'a') as file:
    file.write(json.dumps({'kind': 'eval', 'step': 100, 'box/AP': 50.0, 'time': 1.5}) + '\n')
  assert 'of another one' not in compare(paths, str(tmp_path / 'out'), draws=20, seed_spread=0.0).text


@pytest.mark.parametrize('rules, same', [
  ({'max_detections': {'bbox': 10}}, False), ({'max_detections': {'bbox': 100, 'keypoints': 30}}, True),
  ({'keypoint_sigmas': [0.1]}, True)], ids=str)
def test_evaluations_by_other_rules_are_not_paired(tmp_path, without_files, rules, same):
  paths = [write(tmp_path / 's', HALF), write(tmp_path / 'p', HALF, init='w')]
  (tmp_path / 's/eval/step-00000100/ground_truth.json').write_text(json.dumps(truth() | rules))
  comparison = compare(paths, str(tmp_path / 'out'), draws=20, seed_spread=0.0)
  assert (comparison.verdicts[0].steps[0].difference is not None) == same
  assert ('s; p: scored against different ground truth' in comparison.text) == (not same)


def test_an_evaluation_with_other_settings_is_not_compared_with_one_without(tmp_path, without_files):
  """As of one side with test-time augmentation, by `evaluate`. Both sides with it are."""
  paths = [write(tmp_path / 's', better(60)), write(tmp_path / 'p', HALF, init='w')]
  for path, ap, compared in zip(paths, (80.0, 50.0), (False, True), strict=True):
    note = 'evaluated with other settings than those of the run: run.test_augmentation None -> @TestTimeAugmentation()'
    with open(f'{path}/metrics.jsonl', 'a') as file:
      file.write(json.dumps({'kind': 'eval', 'step': 100, 'box/AP': ap, 'notes': [note]}) + '\n')
    comparison = compare(paths, str(tmp_path / 'out'), draws=20, seed_spread=0.0)
    assert (comparison.verdicts[0].answer == verdict.SCRATCH_SUFFICES) == compared
    assert ('s; p: scored with different settings of the evaluation: no interval and no verdict compares them' in (
      comparison.text)) == (not compared)


def test_a_shorter_schedule_that_is_ahead_is_not_passed_over(tmp_path):
  only, = judge([write(tmp_path / 's2', better(40), k=2), write(tmp_path / 's4', worse(40), k=4, images=800),
                 write(tmp_path / 'p', HALF, k=2, init='w')], 0.0)
  assert [step.relation for step in only.steps] == [verdict.BETTER, verdict.WORSE]
  assert only.answer == verdict.OPEN
  assert only.headline == 'Cannot tell yet: scratch is behind at 4x, but not at 2x'
  assert 'scratch 4x (box AP 30.0) is behind' in only.words and 'scratch 2x (box AP 70.0) is above' in only.words


def test_a_shorter_schedule_that_may_not_be_behind_is_not_called_so(tmp_path):
  """AP falls with longer training on both sides, as of a small data set."""
  paths = [write(tmp_path / 's2', worse(1), k=2), write(tmp_path / 's3', worse(20), k=3, images=600),
           write(tmp_path / 's4', worse(40), k=4, images=800), write(tmp_path / 'p', HALF, k=2, init='w')]
  only, = compare(paths, str(tmp_path / 'out'), draws=50, seed_spread=1.0).verdicts
  assert [step.relation for step in only.steps] == [verdict.UNSURE, verdict.WORSE, verdict.WORSE]
  assert only.answer == verdict.OPEN and only.left_open is only.steps[0]
  assert only.headline == 'Cannot tell yet: scratch is behind at 4x, but may not be at 2x'
  assert 'Too noisy to say: scratch 2x (box AP 49.5) against pre-trained 2x' in only.words
  assert only.words.endswith(only.need.words)
  assert only.cost.startswith('2x from scratch')
  assert sequential.needed([only], UntilSettled(least_chance=0.0), {'s2', 's3', 's4', 'p'}) == {'s2', 's4', 'p'}


def test_what_scratch_is_behind_is_quoted(tmp_path):
  """Scratch is worse than one pre-trained schedule, and maybe not than the best, whose interval is wider."""
  runs = read_runs([write(tmp_path / 's', HALF, k=2), write(tmp_path / 'p', better(4), k=2, init='w'),
                    write(tmp_path / 'q', better(6), k=4, images=800, init='w')])
  known = {'2x': Interval(-2.0, -3.0, -1.0), '4x': Interval(-3.0, -7.0, 1.0)}
  only, = verdict.verdicts(runs, types.SimpleNamespace(metric='box/AP', look=None, between=lambda _, other, __: known[
    other.schedule]))
  assert only.pretrained.schedule == '4x' and only.answer == verdict.PRETRAIN
  assert 'stays behind pre-trained 2x (box AP 52.0): difference -2.0 [-3.0, -1.0]' in only.words


def test_scratch_runs_with_other_frozen_stages_are_other_sides(tmp_path):
  paths = [write(tmp_path / 's', better(40), k=2), write(tmp_path / 'frozen', worse(40), k=2),
           write(tmp_path / 'p', HALF, k=2, init='w')]
  for path, stages in ((paths[1], 2), (paths[2], 0)):
    with open(f'{path}/config.gin', 'a') as file:
      file.write(f'ResNet.freeze_at = {stages}\n')
  found = judge(paths, 0.0)
  assert sorted(one.answer for one in found) == [verdict.PRETRAIN, verdict.SCRATCH_SUFFICES]
  assert all('freeze_at = ' in one.headline for one in found)


def test_schedules_of_one_length_with_other_drops_are_no_seeds_of_one_side(tmp_path):
  paths = [write(tmp_path / name, HALF, seed=seed) for name, seed in (('a', 0), ('b', 1), ('c', 2))]
  for path, drops in zip(paths, ((30, 60), (30, 60), (50, 80)), strict=True):
    with open(f'{path}/config.gin', 'a') as file:
      file.write(f'KTimesSchedule.boundaries = {drops}\nKTimesSchedule.total = 100\n')
  found = groups.sides(copies.independent(read_runs(paths)), 'scratch')
  assert sorted((side.schedule, len(side.runs)) for side in found) == [('0.1k (drops at 30, 60)', 2),
                                                                       ('0.1k (drops at 50, 80)', 1)]


def test_schedules_of_epochs_are_schedules(tmp_path):
  paths = [write(tmp_path / f'{name}{epochs}{seed}', found, seed=seed, init=init, images=16 * epochs)
           for seed in (0, 1) for name, found, epochs, init in (
             ('s', worse(60), 50, None), ('s', HALF, 100, None), ('p', HALF, 50, 'w'))]
  for path, epochs in zip(paths, (50, 100, 50) * 2, strict=True):
    config = pathlib.Path(path, 'config.gin')
    text = re.sub(r'(?m)^(SCHEDULE|KTimesSchedule).*\n', '', config.read_text())
    config.write_text(f'{text}run.schedule = @EpochSchedule\nEpochSchedule.epochs = {epochs}\n'
                      f'EpochSchedule.drops = ({epochs // 2}, {epochs * 3 // 4})\n')
  only, = judge(paths)
  assert [step.side.schedule for step in only.steps] == ['50 epochs', '100 epochs']
  assert [len(step.side.runs) for step in only.steps] == [2, 2] and only.caught_up.side.schedule == '100 epochs'


def test_a_classifier_and_a_detector_have_no_metric_in_common(tmp_path):
  paths = [write(tmp_path / name, HALF) for name in 'ab']
  lines = pathlib.Path(paths[0], 'metrics.jsonl')
  lines.write_text(lines.read_text().replace('"box/AP"', '"top-1"'))
  with pytest.raises(UserError, match='b has no top-1 in .* compare detectors with detectors, and classifiers with'):
    report.common_metric(read_runs(paths), 'top-1')


@pytest.mark.slow
def test_the_shortest_schedule_that_catches_up(tmp_path):
  paths = [write(tmp_path / f's{k}', detected, k=k, images=200 * k) for k, detected in
           ((2, worse(60)), (3, worse(20)), (6, HALF), (9, HALF))]
  comparison = compare([*paths, write(tmp_path / 'p', HALF, k=2, init='w')], str(tmp_path / 'out'), draws=100,
                       seed_spread=0.0)
  assert [step.relation for step in comparison.verdicts[0].steps] == ['worse', 'worse', 'equal', 'equal']
  assert comparison.verdicts[0].caught_up.side.schedule == '6x'


@pytest.mark.slow
def test_advice_depends_on_the_gain_of_the_longest_schedule(tmp_path):
  def words(name, longest):
    paths = [write(tmp_path / name / 's2', worse(80), k=2), write(tmp_path / name / 's6', longest, k=6, images=1200),
             write(tmp_path / name / 'p', HALF, k=2, init='w')]
    return compare(paths, str(tmp_path / name / 'out'), draws=100, seed_spread=0.0).verdicts[0].words
  assert 'still gains' in words('a', worse(50))
  assert 'stopped helping' in words('b', worse(80))


@pytest.mark.slow
def test_seeds_form_one_side(tmp_path):
  paths = [write(tmp_path / f's{seed}', share(100, seed=seed), k=6, seed=seed) for seed in (1, 2, 3)]
  comparison = compare([*paths, write(tmp_path / 'p', HALF, k=2, init='w')], str(tmp_path / 'out'), draws=50)
  assert len(comparison.verdicts[0].steps) == 1
  assert '3 seeds' in comparison.verdicts[0].words


def test_one_seed_a_side_gives_no_verdict(tmp_path, without_files):
  """However far apart they are: the spread between seeds is not known."""
  comparison = run(tmp_path, worse(60), seed_spread=None)
  only = comparison.verdicts[0]
  assert only.steps[0].relation == verdict.ONE_SEED and only.caught_up is None
  assert only.words.startswith('One seed a side: no interval without the spread between seeds. ')
  assert '--seed_spread' in only.words and not re.search(r'[-+]\d+\.\d+ \[', comparison.text), 'nor in a table'
  assert only.headline == 'Cannot tell yet: one seed a side; train each side with two or more'
  assert not {verdict.BETTER, verdict.WORSE, verdict.EQUAL} & set(re.findall(r'\w+$', comparison.text, re.MULTILINE))


def test_the_spread_of_one_side_does_not_tell_that_of_the_other(tmp_path):
  paths = [write(tmp_path / 's1', worse(61), k=2, seed=1), write(tmp_path / 's2', worse(59), k=2, seed=2),
           write(tmp_path / 'p', HALF, k=2, init='w'), write(tmp_path / 'copy', HALF, k=2, init='w')]
  only, = judge(paths)
  assert only.steps[0].relation == verdict.ONE_SEED
  assert only.headline == 'Cannot tell yet: one seed pre-trained; train that side with two or more'
  assert len(only.pretrained.runs) == 1  # the copy has the same seed: it is no independent run
  longer = [write(tmp_path / f'l{seed}', better(seed), k=4, images=800, init='w', seed=seed) for seed in (1, 2)]
  only, = judge([*paths, *longer])  # another schedule of the same weights tells it
  assert only.steps[0].relation == verdict.WORSE and '2 seeds' in only.words


def test_weights_of_another_origin_are_another_side(tmp_path):
  paths = [write(tmp_path / 's1', HALF, k=2, seed=1), write(tmp_path / 's2', HALF, k=2, seed=2),
           *(write(tmp_path / f'{name}{seed}', detected, k=2, init=init, seed=seed) for seed in (1, 2)
             for name, detected, init in (('p', worse(40), '/a/moco.pth'), ('q', HALF, 'r50.pkl')))]
  first, second = judge(paths)
  assert 'pre-trained (moco.pth) 2x' in first.words and first.steps[0].relation == verdict.BETTER
  assert 'pre-trained (r50.pkl) 2x' in second.words and second.steps[0].relation == verdict.EQUAL


def test_checkpoints_of_several_pretrainings_are_several_sides(tmp_path):
  """Whose folders have the same name, step-00000100."""
  paths = [write(tmp_path / f'{name}{seed}', detected, k=2, init=init, seed=seed) for seed in (1, 2)
           for name, detected, init in (('s', HALF, None), ('p', worse(40), 'runs/a/checkpoints/step-00000100'),
                                        ('q', HALF, '/mnt/runs/b/checkpoints/step-00000100/'))]
  assert sorted(one.headline for one in judge(paths)) == [
    f'You do not need pre-training ({run}/step-00000100) from 2x on' for run in 'ab']


@pytest.mark.parametrize('lost, apart, words', [
  (4, 1, r'with about \d+ more held-out images it is settled in half of the cases\.$'),
  (4, 2, r'with \d more seeds of each side it is settled in half of the cases\. In training time'),
  (1, 1, 'neither 30 seeds nor 25 times the images would settle it in half of the cases')])  # nearer to 0 than noise
def test_what_would_settle_it(tmp_path, lost, apart, words):
  """Scratch detects the objects of `lost` images less, and runs of a side differ in `apart` images."""
  paths = [write(tmp_path / f'{side}{seed}', worse(by + apart * seed), k=2, seed=seed, init=init)
           for side, init, by in (('s', None, lost), ('p', 'w', 0)) for seed in (1, 2, 3)]
  only = judge(paths)[0]
  assert re.search(f'Too noisy to say: .* stays as it is. It may not: {words}', only.words), only.words
  assert ('may settle it' in only.headline) == (lost > 1) == (only.need.even != (None, None))
  assert bool(re.search(r': scratch may be up to [\d.]+ points behind, or up to [\d.]+ ahead$', only.headline)) == (
    lost == 1), only.headline


def test_one_quantity_is_rounded_in_one_way(tmp_path):
  """Below a point with two digits, in the interval and in the sentence on its width."""
  all_found = share(600, 1200)

  def without(by):
    return all_found & ~np.isin(np.arange(1200), np.flatnonzero(all_found)[:by])

  only, = judge([write(tmp_path / f'{init}{seed}', without(by + seed), seed=seed, init=init)
                 for init, by in ((None, 6), ('w', 0)) for seed in range(4)])
  found = re.search(r'difference (\S+) \[(\S+), (\S+)\].* interval is (\S+) points to either side', only.words)
  value, low, high, half = map(float, found.groups())
  assert len(found[4]) == len('0.78') and half < 1 < -low
  assert half == pytest.approx(high - value, abs=0.011) and half == round(only.steps[0].difference.half, 2)


def test_a_seed_that_may_have_diverged_is_said_and_counts(tmp_path, without_files):
  paths = [write(tmp_path / f'{init or "s"}{seed}', worse(lost), seed=seed, init=init)
           for init, seed, lost in ((None, 0, 0), (None, 1, 97), (None, 2, 1), ('w', 0, 3), ('w', 1, 5))]
  comparison = compare(paths, str(tmp_path / 'out'), draws=20)
  assert 's1: box AP 1.5, where other seeds of scratch 1x have 49.5 to 50.0: look at its losses' in comparison.text
  assert 'w1:' not in comparison.text and len(comparison.verdicts[0].steps[0].side.runs) == 3


@pytest.mark.slow
def test_no_verdict_counts_a_run_before_its_end(tmp_path, without_files):
  """A third seed that is being trained has the name of its schedule, and would lower its side."""
  paths = [write(tmp_path / 'scratch', HALF, k=6, images=1200), write(tmp_path / 'pre', HALF, k=2, init='R50.pkl')]
  begun = write(tmp_path / 'begun', worse(60), k=6, images=800, seed=1)
  write_schedule(RunFolder(begun), 300)
  alone, whole = (compare(each, f'{tmp_path}/out', draws=20, seed_spread=0.0) for each in (paths, [*paths, begun]))
  assert alone.verdicts[0].words == whole.verdicts[0].words and 'of 300' not in alone.text
  assert 'begun: its last evaluation is of step 200 of 300: no verdict counts it.' in whole.text
  assert re.search(r'begun +scratch +66 % of 6x', whole.text) and re.search(r'begun .* not complete\n', whole.text)


def test_no_verdict_counts_a_run_that_was_trained_beyond_its_schedule(tmp_path, without_files):
  """A run of 400 steps that was started again with a schedule of 200, and had nothing left to train."""
  paths = [write(tmp_path / 's', HALF, k=2, images=800), write(tmp_path / 'p', HALF, k=2, init='w', images=800)]
  longer = write(tmp_path / 'longer', worse(60), k=2, images=1600, seed=1)
  for path in (*paths, longer):
    write_schedule(RunFolder(path), 200)
  alone, whole = (compare(each, f'{tmp_path}/out', draws=20, seed_spread=0.0) for each in (paths, [*paths, longer]))
  assert alone.verdicts[0].words == whole.verdicts[0].words
  assert ('longer: its last evaluation is of step 400 and its schedule ends at 200, since it was made shorter than '
          'what had been trained: no verdict counts it.') in whole.text
  write_schedule(RunFolder(paths[0]), 0)
  assert read_runs(paths)[0].planned is None, 'of a damaged file'


def test_what_all_runs_have_in_common_is_said_once(tmp_path, without_files):
  """As after more held-out images, on which each run was evaluated again."""
  paths = [write(tmp_path / name, HALF, seed=k) for k, name in enumerate('abc')]
  for path, notes in zip(paths, (['more images'], ['more images', 'a limit'], ['more images', 'a limit']), strict=True):
    with open(f'{path}/metrics.jsonl', 'a') as file:
      file.write(json.dumps({'kind': 'eval', 'step': 100, 'box/AP': 50.0, 'notes': notes}) + '\n')
  text = compare(paths, f'{tmp_path}/out', draws=20).text
  assert '\n\nAll runs: more images.\n\nb, c: a limit.\n\n' in text


def test_runs_of_which_none_is_complete_have_no_verdict(tmp_path, without_files):
  paths = [write(tmp_path / 'scratch', HALF, k=6), write(tmp_path / 'pre', HALF, k=6, init='R50.pkl')]
  for path in paths:
    write_schedule(RunFolder(path), 600)
  comparison = compare(paths, f'{tmp_path}/out', draws=20)
  assert comparison.text.startswith('Cannot tell yet: 2 of 2 runs are not complete') and not comparison.verdicts
  assert report.noise(paths) is None


@pytest.mark.parametrize('silent', ['run.own_evaluation = False', 'run.follow_minutes = 5.0', "run.checkpoint = 'best'",
                                    'EvalInput.max_unreadable = 0.5', 'CocoEvaluator.every = 7'])
def test_settings_that_weights_and_scores_do_not_depend_on(tmp_path, silent):
  """As of a side that another machine has evaluated."""
  paths = [write(tmp_path / 's', HALF), write(tmp_path / 'p', HALF, init='w')]
  for path, line in zip(paths, (silent, f'{silent.partition("=")[0]}= 1'), strict=True):
    with open(f'{path}/config.gin', 'a') as config:
      config.write(line + '\n')
  assert len(judge(paths)) == 1


def test_what_is_open_is_said_of_the_schedule_that_leaves_it_open(tmp_path):
  """Not of the best one, from which scratch is known to differ by less than the margin: one seed is less certain."""
  seeds = [*enumerate((0, 2, 4, 2))]
  paths = [write(tmp_path / f'{init}{seed}', worse(k), k=2, seed=seed, init=init, images=800)
           for init in (None, 'w') for seed, k in seeds] + [write(tmp_path / 'one', worse(3), k=1, init='w')]
  only, = judge(paths, margin=1.8)
  best = only.steps[0].difference
  assert only.pretrained.schedule == '2x' and verdict.relation(best, 1.8) == verdict.EQUAL
  assert only.answer == verdict.OPEN and 'against pre-trained 1x (box AP 48.5): difference +0.50 [-' in only.words
  found = re.search(r'The interval is (\S+) points to either side, and (\S+) would', only.words)
  width, target = map(float, found.groups())
  assert best.half < target < width


def test_no_verdict_if_other_settings_differ(tmp_path):
  paths = [write(tmp_path / 's', HALF, rate=0.02), write(tmp_path / 'p', HALF, rate=0.01, init='w')]
  comparison = compare(paths, str(tmp_path / 'out'), draws=50)
  assert not comparison.verdicts and 'differ in more than' in comparison.text
  assert re.search(r'KTimesSchedule.base_rate +0.02 +0.01', comparison.text)
  alone = compare(paths[:1], str(tmp_path / 'out'), draws=50)
  assert 'add a run that is pre-trained' in alone.text


def test_without_detections_there_is_no_interval(tmp_path, without_files):
  paths = [write(tmp_path / 's', HALF), write(tmp_path / 'p', HALF, init='w', save=False)]
  comparison = compare(paths, str(tmp_path / 'out'), draws=50)
  assert 'no interval can be given' in comparison.text


def test_other_objects_under_the_same_image_ids_have_no_verdict(tmp_path, without_files):
  """As of two data sets that number their images from 1: the images of the sides are not paired."""
  paths = [write(tmp_path / 's1', worse(61), k=2, seed=1), write(tmp_path / 's2', worse(59), k=2, seed=2),
           write(tmp_path / 'p1', HALF, k=2, init='w', seed=1), write(tmp_path / 'p2', HALF, k=2, init='w', seed=2)]
  paired = compare(paths, str(tmp_path / 'out'), draws=20)
  assert paired.verdicts[0].answer == verdict.PRETRAIN and 'ground truth' not in paired.text
  for name in ('p1', 'p2'):
    for path in (tmp_path / name).glob('eval/*/*.json'):
      path.write_text(path.read_text().replace('[10, 10, 40, 40]', '[20, 30, 40, 40]'))
  comparison = compare(paths, str(tmp_path / 'out'), draws=20)
  only, = comparison.verdicts
  assert only.answer == verdict.OPEN and only.steps[0].difference is None
  assert ('s1, s2; p1, p2: scored against different ground truth under the same image ids (other boxes, masks, '
          'keypoints, crowds, classes or sizes of images; or by other limits, sigmas or rules of VOC): no interval and '
          'no verdict compares them; evaluate them on the same data.') in comparison.text
  assert re.search(r'^p1 .* no interval: .* of other images or objects', comparison.text, re.MULTILINE)
  mixed = compare([*paths[:3], write(tmp_path / 'p3', HALF, k=2, init='w', seed=3)], str(tmp_path / 'out'), draws=20)
  assert mixed.verdicts[0].answer == verdict.OPEN, 'runs of one side that differ in their data are none'


def test_schedules_are_in_order_without_lines_of_training(tmp_path, without_files):
  """As of runs whose metrics.jsonl was removed before an evaluation; paths in the order of names."""
  paths = [write(tmp_path / f'{init or "s"}_{k}x_seed{seed}', worse(seed + 60 * (k < 10) * (init is None)), k=k,
                 init=init, seed=seed, images=400 * k) for init in (None, 'w') for k in (1, 10, 2) for seed in (1, 2)]
  logged = compare(paths, str(tmp_path / 'out'), draws=20)
  for path in map(pathlib.Path, paths):
    lines = (path / 'metrics.jsonl').read_text().splitlines(keepends=True)
    (path / 'metrics.jsonl').write_text(''.join(line for line in lines if '"train"' not in line))
  without = compare(paths, str(tmp_path / 'out'), draws=20)
  assert without.verdicts[0].headline == logged.verdicts[0].headline
  assert [step.side.schedule for step in without.verdicts[0].steps] == ['1x', '2x', '10x']
  assert 'is not known: lines of training are missing' in without.verdicts[0].cost
  assert re.search(r'^scratch 10x, .* \?  +\?$', without.text, re.MULTILINE) and 'nan' not in without.text


def test_other_masks_of_the_same_boxes_have_no_verdict_on_masks(tmp_path, without_files):
  paths = [write(tmp_path / f'{init or "s"}{seed}', worse(60 * (init is None)), init=init, seed=seed)
           for init in (None, 'w') for seed in (1, 2)]
  mask = {'size': [100, 100], 'counts': [0, 5000, 5000]}
  for path in map(pathlib.Path, paths):
    metrics = path / 'metrics.jsonl'
    metrics.write_text(metrics.read_text().replace('"box/AP": ', '"mask/AP": 100, "box/AP": '))
    folder = path / 'eval/step-00000100'
    gt, boxes = (json.loads((folder / name).read_text()) for name in ('ground_truth.json', 'bbox.json'))
    for one in gt['annotations']:
      one['segmentation'] = mask if path.name[0] == 's' else [[0, 0, 50, 0, 50, 100, 0, 100]]
    (folder / 'ground_truth.json').write_text(json.dumps(gt))
    rle = coco_mask.frPyObjects(mask, 100, 100)
    (folder / 'segm.json').write_text(json.dumps([
      {key: one[key] for key in ('image_id', 'category_id', 'score')} | {
        'segmentation': {'size': [100, 100], 'counts': rle['counts'].decode()}} for one in boxes]))
  masks = compare(paths, str(tmp_path / 'out'), 'mask/AP', draws=20)
  assert masks.verdicts[0].steps[0].difference is not None and 'ground truth' not in masks.text, 'the same pixels'
  for path in paths[2:]:
    truth = pathlib.Path(path) / 'eval/step-00000100/ground_truth.json'
    truth.write_text(truth.read_text().replace('[0, 0, 50, 0, 50, 100, 0, 100]', '[0, 0, 60, 0, 60, 90, 0, 90]'))
    metrics = pathlib.Path(path) / 'metrics.jsonl'
    metrics.write_text(metrics.read_text().replace('"mask/AP": 100', '"mask/AP": 60'))  # IoU 0.76
  masks, boxes = (compare(paths, str(tmp_path / 'out'), metric, draws=20) for metric in ('mask/AP', 'box/AP'))
  assert masks.verdicts[0].steps[0].difference is None and 's1, s2; w1, w2: scored against different' in masks.text
  assert boxes.verdicts[0].answer == verdict.PRETRAIN and 'ground truth' not in boxes.text


def test_one_more_run_does_not_narrow_the_intervals_of_a_look(tmp_path, without_files):
  paths = [write(tmp_path / 'study' / f'{init or "s"}{seed}', share(100 + 9 * (init is not None) + seed, seed=7),
                 init=init, seed=seed) for init in (None, 'w') for seed in (1, 2)]
  looks.write(str(tmp_path / 'study'), looks.Record(5, (looks.Taken(2, {}, None),)))
  other = write(tmp_path / 'other', HALF, rate=0.01)
  alone, more = (compare(each, str(tmp_path / 'out'), draws=20) for each in (paths, [*paths, other]))
  assert alone.verdicts[0].steps[0].difference == more.verdicts[0].steps[0].difference
  assert '4 of 5 runs are of studies that stop early' in more.text and 'are of studies' not in alone.text
  (tmp_path / 'study/looks.json').unlink()
  assert compare(paths, str(tmp_path / 'out'), draws=20).verdicts[0].steps[0].difference.half < 0.9 * (
    more.verdicts[0].steps[0].difference.half)


def test_one_held_out_image_has_no_interval(tmp_path, without_files):
  paths = [write(tmp_path / f'{init or "s"}{seed}', np.array([seed == 0]), init=init, seed=seed)
           for init in (None, 'w') for seed in (0, 1)]
  comparison = compare(paths, str(tmp_path / 'out'), draws=20)
  assert comparison.verdicts[0].answer == verdict.OPEN
  assert len(re.findall('no interval: one held-out image says nothing about others', comparison.text)) == 3
  assert comparison.verdicts[0].headline == 'Cannot tell yet: one held-out image says nothing about others'
  assert 'Detections are missing' not in comparison.text


def test_files_of_the_report(tmp_path):
  run(tmp_path, worse(40))
  out = tmp_path / 'out'
  page = (out / 'index.html').read_text()
  head, folded = page.split('<details>', 1)
  order = ['<title>Scratch or pre-training: box AP on', 'aria-label="arrow up"',
           'Use pre-training (R50.pkl): scratch is behind up to 6x', 'does not catch up', '<figure class="plot"',
           'Cost</strong>', 'Held-out images</dt><dd>200', 'Held-out objects</dt><dd>400',
           'Seeds a schedule</dt><dd>1 scratch, 1 pre', 'Pre-training</dt><dd>R50.pkl<']
  assert sorted(order, key=head.index) == order, 'the answer, one chart, its cost, what it rests on'
  assert head.count('<figure') == 1 and 'From scratch: 6x 30.0. Pre-trained: 2x 50.0. Differences' in head
  assert folded.count('<li>') == 2, 'one legend'
  assert 'medium\n' not in folded and '400 objects' in folded, 'AP by size with its n'
  outside = set(re.findall(r'(?:src|href)="(?!#)([^"]*)"', page)) | set(re.findall(r'url\((?!#)[^)]*\)', page))
  assert not {link for link in outside if not link.startswith('data:')}  # no external links
  with open(out / 'curves.csv') as file:
    rows = list(csv.DictReader(file))
  assert [row['images'] for row in rows] == ['600', '1200', '200', '400']
  assert float(rows[3]['box/AP']) == 50
  with open(out / 'runs.csv') as file:
    rows = list(csv.DictReader(file))
  assert (rows[0]['box/AP'], rows[0]['pixels']) == ('30.0000', '12000000'), 'to compute with'
  assert {path.suffix for path in out.iterdir()} == {'.png', '.svg', '.html', '.csv', ''}
  assert all(path.stat().st_size > 2000 for path in out.glob('*.png'))


def test_all_tables_judge_by_the_same_margin(tmp_path, without_files):
  paths = [write(tmp_path / (init or 's'), HALF, init=init) for init in (None, 'w')]
  lines = compare(paths, str(tmp_path / 'out'), draws=20, seed_spread=0.01).text.splitlines()
  judged = [line for line in lines if '[-0.4' in line and not line.startswith('Scratch')]
  assert len(judged) == 3 and all(re.search(r'\bequal\b', line) for line in judged), judged


@pytest.mark.slow
def test_table_of_equal_schedules(tmp_path):
  paths = [write(tmp_path / f'{init or "s"}{k}', detected, k=k, init=init, images=400 * k)
           for init, k, detected in ((None, 1, worse(40)), (None, 2, HALF), ('w', 1, HALF), ('w', 3, HALF))]
  text = compare(paths, str(tmp_path / 'out'), draws=50, seed_spread=0.0).text
  heading = 'Scratch against pre-training at the same schedule'
  rows = text[text.index(heading):].splitlines()[1:3]
  assert rows[0].split() == ['schedule', 'scratch', 'pre-trained', 'difference', 'verdict']
  schedule, scratch, pretrained, difference = rows[1].split()[:4]
  assert (schedule, scratch, pretrained) == ('1x', '30.0', '50.0') and rows[1].endswith('worse')
  assert float(difference) == pytest.approx(-20, abs=0.5)
  assert text[text.index(heading):].splitlines()[3] == ''
  assert heading not in compare(paths[1:3], str(tmp_path / 'other'), draws=20).text


def test_several_answers_are_said_to_hold_each_by_itself(tmp_path, monkeypatch):
  pages = []
  monkeypatch.setattr(report, '_write', lambda *content: pages.append(content[3]) or '')
  paths = [write(tmp_path / (init or 's'), HALF, init=init) for init in (None, 'v', 'w')]
  for several in (paths, paths[:2]):
    compare(several, str(tmp_path / 'out'), draws=20, seed_spread=1.0)
  assert ['2 answers holds with 95 % confidence by itself' in ' '.join(one.notes) for one in pages] == [True, False]


def test_several_groups_say_which_settings_they_are_of(tmp_path):
  paths = [write(tmp_path / f'{init or "s"}{rate}', HALF, rate=rate, init=init) for rate in (0.02, 0.01)
           for init in (None, 'w')]
  runs = copies.independent(read_runs(paths))
  found = Differences(runs, 'box/AP', report.matches_reader(runs, 'box/AP'), 50, seed_spread=0.0)
  answers = report._answers(runs, verdict.verdicts(runs, found), 0.5)
  assert [one.about for one in answers] == ['base_rate = 0.02', 'base_rate = 0.01']
  assert groups.labels(groups.groups(runs[:2])) == ['']
  # The parameters of a component that one side does not have are those of the choice that names it.
  mixed = [runs[0]._replace(settings={**runs[0].settings, 'TrainInput.flip': True, **more}) for more in (
    {}, {'TrainInput.mix': '@CopyPaste()', 'CopyPaste.probability': 1.0, 'CopyPaste.max_pasted': 100})]
  assert groups.labels([[run] for run in mixed]) == ['mix = default', 'mix = @CopyPaste()']


def test_tables_and_plots_of_several_groups_name_each(tmp_path, monkeypatch):
  paths = [write(tmp_path / f'{init}{rate}{k}', HALF, k=k, rate=rate, init=init)
           for rate in (0.02, 0.01) for init in (None, 'a', 'b') for k in (1, 2)]
  runs = read_runs(paths)
  axes, = plots.end_points(runs, 'box/AP').axes
  lines = list(axes.containers)
  assert [line.get_label() for line in lines] == [
    f'{init}, base_rate = {rate}' for rate in (0.02, 0.01)
    for init in ('scratch', 'pre-trained (a)', 'pre-trained (b)')]
  assert all(len(line[0].get_xdata()) == 2 for line in lines)
  monkeypatch.setattr(report, '_write', lambda *content: '')
  text = compare(paths, str(tmp_path / 'out'), draws=20, seed_spread=0.0).text
  for first in ('1x a, base_rate = 0.02', '1x b, base_rate = 0.01', 'scratch 1x, base_rate = 0.01'):
    assert f'\n{first} ' in text


def test_of_several_kinds_of_pre_training_the_one_that_is_needed_comes_first(tmp_path):
  paths = [write(tmp_path / name, detected, k=k, init=name if k == 2 else None) for name, detected, k in (
    ('scratch', HALF, 6), ('lower', worse(40), 2), ('zealous', better(40), 2), ('noisy', share(99, seed=9), 2))]
  found = judge(paths, 0.0)
  assert [(one.pretrained.runs[0].weights_name, one.answer) for one in found] == [
    ('zealous', verdict.PRETRAIN), ('noisy', verdict.OPEN), ('lower', verdict.SCRATCH_SUFFICES)]
  assert 'Other weights than lower, noisy, zealous were not tried here.' in found[-1].words


def test_weights_of_one_name_that_are_used_in_two_ways_are_two_kinds(tmp_path):
  paths = [write(tmp_path / name, detected, init=init) for name, detected, init in (
    ('scratch', HALF, None), ('whole', better(40), 'w'), ('part', worse(40), 'w'))]
  for name, part in (('whole', 'detector'), ('part', 'backbone')):
    with open(tmp_path / name / 'config.gin', 'a') as config:
      config.write(f"PretrainedWeights.part = '{part}'\n")
  assert [(one.pretrained.arm, one.answer) for one in judge(paths, 0.0)] == [
    ('w, part = detector', verdict.PRETRAIN), ('w, part = backbone', verdict.SCRATCH_SUFFICES)]


def test_names_are_neither_formulas_nor_markup(tmp_path):
  paths = [write(tmp_path / '$x_{$', HALF), write(tmp_path / '<b>&', HALF, init='w'),
           write(tmp_path / '=1+1\x1b[2J\n', HALF, init='w')]
  text = compare(paths, str(tmp_path / 'out'), draws=20).text
  assert '\x1b' not in text and '=1+1\\x1b[2J\\n ' in text
  assert "\n'=1+1\\x1b[2J\\n,pre-trained," in (tmp_path / 'out/runs.csv').read_text()
  page = (tmp_path / 'out/index.html').read_text()
  assert '$x_{$' in page and '&lt;b&gt;&amp;' in page and '<b>' not in page


@pytest.mark.slow
def test_the_tensorboard_log(tmp_path):
  from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
  run(tmp_path, HALF)
  log = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / 'out/tensorboard')).Reload()
  assert set(log.Runs()) == {'01_scratch', '02_pretrain_pre'}
  for name in log.Runs():  # the same tags, to share axes
    tags = log.Runs()[name]['tensors']
    assert {'eval/box/AP', 'loss/total', 'by_images/box/AP', 'final', '_hparams_/session_start_info'} <= set(tags)
  assert {'custom_scalars__config__', '_hparams_/experiment'} <= set(log.Runs()['01_scratch']['tensors'])
  assert [event.step for event in log.Tensors('02_pretrain_pre', 'eval/box/AP')] == [50, 100]


def test_a_report_that_does_not_fit_leaves_the_earlier_one_whole(tmp_path, monkeypatch):
  resource = pytest.importorskip('resource')  # not on Windows
  monkeypatch.setattr(plots, 'render', lambda figures, kind: dict.fromkeys(figures, b'<svg/>'))
  for drawn in ('panels', 'curves', 'end_points', 'by_size', 'losses', 'answer'):
    monkeypatch.setattr(plots, drawn, lambda *of, drawn=drawn: {} if drawn == 'panels' else drawn)
  paths = [write(tmp_path / 's', HALF), *(write(tmp_path / f'p{seed}', HALF, init='w', seed=seed) for seed in (0, 1))]
  compare(paths[:2], str(tmp_path / 'out'), draws=20)
  before = {path: path.read_bytes() for path in sorted((tmp_path / 'out').rglob('*')) if path.is_file()}
  page, limit = before[tmp_path / 'out/index.html'], resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (len(page) - 1000, limit[1]))
  try:
    with pytest.raises(UserError, match='index.html: cannot be written: File too large; choose another'):
      compare(paths, str(tmp_path / 'out'), draws=20)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
  assert {path: path.read_bytes() for path in sorted((tmp_path / 'out').rglob('*')) if path.is_file()} == before
  assert sum('tensorboard/' in str(path) for path in before) == 4


def test_a_report_replaces_nothing_of_a_run(tmp_path):
  paths = [write(tmp_path / 's', HALF), write(tmp_path / 'p', HALF, init='w')]
  events = tmp_path / 's/tensorboard/events.out.tfevents.1.host'
  events.parent.mkdir()
  events.write_text('of the run')
  before = sorted(path for path in tmp_path.rglob('*'))
  for output in (paths[0], f'{paths[0]}/'):
    with pytest.raises(UserError, match='s/? is a run folder, since it holds config.gin.* --output='):
      compare(paths, output, draws=20)
  for output in ('', '/'):
    with pytest.raises(UserError, match='names no folder for the report'):
      compare(paths, output, draws=20)
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other/tensorboard').symlink_to(events.parent)
  with pytest.raises(UserError, match='other/tensorboard/events.out.tfevents.1.host: no comparison has written it'):
    compare(paths, str(tmp_path / 'other'), draws=20)
  assert events.read_text() == 'of the run'
  assert sorted(path for path in tmp_path.rglob('*') if 'other' not in path.parts) == before


def halve_config(path):
  text = (path / 'config.gin').read_text()
  (path / 'identity.json').write_text(json.dumps(identity.of([], text, {})._asdict()))
  (path / 'config.gin').write_text(text[:len(text) // 2])


@pytest.mark.parametrize('damage, message', [
  (lambda p: (p / 'config.gin').unlink(), 'no config.gin'),
  (lambda p: (p / 'config.gin').write_bytes(bytes(200)), 'config.gin: holds no settings of a run'),
  (halve_config, r'config.gin: lacks \d+ settings that identity.json has \(the first: '),
  (lambda p: (p / 'metrics.jsonl').write_text('{"kind": "train"}\n'), 'no evaluation'),
  (lambda p: (p / 'eval/step-00000100/bbox.json').write_text('[{'), 'evaluate the run again'),
  (lambda p: (p / 'eval/step-00000100/ground_truth.json').write_text('[]'), 'does not hold a JSON object'),
])
def test_broken_folders_are_reported(tmp_path, damage, message):
  paths = [write(tmp_path / 's', HALF), write(tmp_path / 'p', HALF, init='w')]
  damage(tmp_path / 's')
  with pytest.raises(UserError, match=message):
    compare(paths, str(tmp_path / 'out'), draws=20)


@pytest.mark.parametrize('name, message', [
  ('s', 's: its last evaluation, of step 100, has no finite AP or accuracy .*: training may have diverged'),
  ('p', 'p has no box/AP in its last evaluation, of step 100, though in an earlier one: training may have diverged')])
def test_a_metric_that_is_not_finite_is_said_to_be(tmp_path, name, message):
  paths = [write(tmp_path / 's', HALF), write(tmp_path / 'p', HALF, init='w')]
  file = tmp_path / name / 'metrics.jsonl'
  file.write_text(file.read_text().replace('"box/AP": 50.0', '"box/AP": NaN'))
  with pytest.raises(UserError, match=message):
    compare(paths, str(tmp_path / 'out'), draws=20)


def test_metrics_of_an_evaluator_of_the_users(tmp_path):
  paths = [write(tmp_path / 's', HALF), write(tmp_path / 'p', HALF, init='w')]
  for path in paths:
    file = pathlib.Path(path) / 'metrics.jsonl'
    file.write_text(re.sub('"(box|mask)/AP": ', r'"mine/\1": ', file.read_text()))
  with pytest.raises(UserError, match='has none of box/AP.*: choose one of its own with --metric: .*mine/box'):
    compare(paths, str(tmp_path / 'out'), draws=20)
  with pytest.raises(UserError, match=r'has no box/AP in its last evaluation: .*--metric \(available: .*mine/box'):
    compare(paths, str(tmp_path / 'out'), metric='box/AP', draws=20)
  assert compare(paths, str(tmp_path / 'out'), metric='mine/box', draws=20).text


@pytest.mark.parametrize('options, message', [
  ({'metric': 'mask/AP'}, 'scratch has no mask/AP'), ({'margin': -1}, 'negative'),
  ({'margin': 50}, 'nor above 10 points of AP'), ({'draws': 1}, '--draws'),
  ({'confidence': 2}, '--confidence'), ({'seed_spread': -1}, '--seed_spread')])
def test_options_are_checked(tmp_path, options, message):
  paths = [write(tmp_path / 'scratch', HALF), write(tmp_path / 'p', HALF, init='w')]
  with pytest.raises(UserError, match=message):
    compare(paths, str(tmp_path / 'out'), **options)
