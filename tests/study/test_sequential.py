"""Rounds of a study that stops early: when it stops, what it skips, and that a restart gets no free look."""

import shutil
import types

import numpy as np
import pytest

from rethink_tf.compare import copies, groups, looks, report, verdict
from rethink_tf.compare.differences import Differences
from rethink_tf.compare.report import Comparison
from rethink_tf.compare.run_summary import read_runs
from rethink_tf.errors import UserError
from rethink_tf.study import sequential
from rethink_tf.study.grid import Trial, TrialConfig
from rethink_tf.study.seeds import UntilSettled
from tests.compare.fake_runs import share, write


class Study:
  """A study whose runs detect as many objects of 200 as `found` says, by cell."""

  def __init__(self, path, found, most=4, least_chance=0.0, metric=None):
    self.path, self.found, self.trained, self.compared = path, found, [], 0
    self.log = []
    trials = [Trial(f'{cell}_seed{seed}', {'cell': cell, 'seed': f'seed{seed}'}, (), ())
              for cell in found for seed in range(most)]
    self.plan = types.SimpleNamespace(
      output=str(path), trials=trials, configs=[TrialConfig(100, 4, None, 100, trial.name, ()) for trial in trials],
      share_prefixes=True, until_settled=UntilSettled(most, least_chance=least_chance), seed_axis='seed', metric=metric)

  def folder(self, name):
    return str(self.path / name)

  def evaluated(self, name):
    return (self.path / name).exists()

  def run(self, stages):
    for stage in stages:
      cell, seed = stage.trial.choice['cell'], int(stage.trial.choice['seed'][4:])
      if not self.evaluated(stage.trial.name):
        init, k = cell.split('_')
        write(self.path / stage.trial.name, share(self.found[cell] + seed % 2, seed=seed), k=float(k[:-1]),
              init='w' if init == 'p' else None, seed=seed, images=int(400 * float(k[:-1])))
        self.trained.append(stage.trial.name)
    return []

  def compare(self, folders):
    self.compared += 1
    runs = copies.independent(read_runs(folders))
    differences = Differences(runs, 'box/AP', report.matches_reader(runs, 'box/AP'), 50,
                              look=looks.of_runs(folders).strictest.look)
    return Comparison(tuple(runs), 'box/AP', tuple(verdict.verdicts(runs, differences)), '', '')

  def go(self):
    return sequential.Rounds(self.plan, self, self.compare, self.log.append).run()


def test_it_stops_after_two_seeds_where_two_tell_and_a_restart_has_nothing_to_do(tmp_path):
  study = Study(tmp_path, {'s_1x': 40, 'p_1x': 120})
  failures, comparison = study.go()
  assert not failures and comparison.verdicts[0].answer == verdict.PRETRAIN
  assert len(study.trained) == 4 and study.log[-1] == 'settled after 2 of at most 4 seeds'
  assert 'Look 1 of at most 3: settled early, after 2 of at most 4 seeds' in comparison.verdicts[0].words
  record = looks.read(str(tmp_path))
  assert [one.seeds for one in record.taken] == [2] and record.taken[0].more == () and record.max_seeds == 4
  again = Study(tmp_path, study.found)
  assert again.go()[1].verdicts[0].answer == verdict.PRETRAIN and not again.trained
  assert looks.read(str(tmp_path)) == record


def test_it_adds_seeds_to_the_most_where_the_sides_are_alike_and_resumes(tmp_path):
  study = Study(tmp_path, {'s_1x': 99, 'p_1x': 100}, most=3)
  comparison = study.go()[1]
  assert comparison.verdicts[0].answer == verdict.OPEN and comparison.verdicts[0].need is not None
  assert len(study.trained) == 6 and 'not settled with 3 seeds' in study.log[-1]
  assert [one.seeds for one in looks.read(str(tmp_path)).taken] == [2, 3]
  again = Study(tmp_path, study.found, most=3)
  again.go()
  assert again.compared == 1 and not again.trained  # the report alone is made again
  with pytest.raises(UserError, match='planned for at most 3 seeds'):
    sequential.check_record(Study(tmp_path, study.found, most=6).plan)
  sequential.check_record(again.plan)
  again.plan.until_settled = None
  with pytest.raises(UserError, match='a study that stops early was begun here'):
    sequential.check_record(again.plan)


def test_runs_that_are_moved_keep_the_looks_that_were_taken(tmp_path):
  study = Study(tmp_path / 'study', {'s_1x': 40, 'p_1x': 120})
  study.go()
  within = looks.of_runs([study.folder(name) for name in study.trained])
  paths = [shutil.copytree(study.folder(name), tmp_path / 'kept' / name) for name in study.trained]
  moved = looks.of_runs([str(path) for path in paths])
  assert within.strictest == moved.strictest == looks.read(str(study.path)) and moved.others == 0
  assert not looks.cautions(moved) and list(moved.records) == [str(study.path)]
  mixed = looks.of_runs([study.folder(study.trained[0]), *map(str, paths[1:]), str(write(tmp_path / 'x', share(9)))])
  assert (len(mixed.records), mixed.runs, mixed.others) == (1, 4, 1)
  later = Study(tmp_path / 'kept', {'s_1x': 40, 'p_1x': 120}, most=3)  # no new start of the looks
  later.go()
  assert looks.of_runs([str(paths[0])]).records.keys() == {str(study.path), str(tmp_path / 'kept')}


@pytest.mark.parametrize('found, message', [
  ({'s_1x': 99, 's_2x': 130, 'p_1x': 100}, 'without s_2x_seed0'), ({'p_1x': 100, 's_2x': 130}, 'with s_1x_seed0')])
def test_other_runs_than_were_looked_at_are_another_study(tmp_path, found, message):
  """A schedule that is added once the looks are used up would be one more look."""
  study = Study(tmp_path, {'s_1x': 99, 'p_1x': 100}, most=3)
  study.go()
  sequential.check_record(study.plan)
  with pytest.raises(UserError, match=f'looks.json: this study was looked at {message}: .* choose another --output'):
    sequential.check_record(Study(tmp_path, found, most=3).plan)


def test_it_gives_up_where_the_seeds_that_are_left_would_not_settle_it(tmp_path):
  study = Study(tmp_path, {'s_1x': 99, 'p_1x': 100}, least_chance=0.3)
  verdicts = study.go()[1].verdicts
  assert verdicts[0].need.chance < 0.3 and 'With all 4 seeds it would be settled with a probability of' in verdicts[
    0].words
  assert len(study.trained) == 4 and 'further ones are unlikely to settle it' in study.log[-1]


def test_a_look_that_was_interrupted_is_concluded_and_a_changed_run_refused(tmp_path):
  study = Study(tmp_path, {'s_1x': 40, 'p_1x': 120})
  study.compare = lambda folders: (_ for _ in ()).throw(KeyboardInterrupt)
  with pytest.raises(KeyboardInterrupt):
    study.go()
  assert looks.read(str(tmp_path)).taken[0].more is None  # recorded before it was looked at
  assert Study(tmp_path, study.found).go()[1] is not None
  lines = (tmp_path / 's_1x_seed0/metrics.jsonl').read_text().replace('"box/AP": 20.0', '"box/AP": 21.0')
  (tmp_path / 's_1x_seed0/metrics.jsonl').write_text(lines)
  with pytest.raises(UserError, match='s_1x_seed0 had 20.0000 at an earlier look'):
    Study(tmp_path, study.found).go()


def test_schedules_that_are_behind_get_no_further_seeds(tmp_path):
  study = Study(tmp_path, {'s_1x': 20, 's_2x': 99, 'p_1x': 100}, most=3)
  study.go()
  assert [name for name in study.trained if name.endswith('seed2')] == ['s_2x_seed2', 'p_1x_seed2']


def test_a_comparison_before_the_first_look_is_remembered(tmp_path):
  study = Study(tmp_path, {'s_1x': 40, 'p_1x': 120})
  study.run(sequential.stages_of(study.plan, [t for t in study.plan.trials if t.choice['seed'] in ('seed0', 'seed1')]))
  (tmp_path / 'report').mkdir()
  (tmp_path / 'report/index.html').write_text('')
  study.go()
  assert looks.read(str(tmp_path)).before == 2


def test_no_look_is_taken_while_a_run_is_missing(tmp_path):
  study = Study(tmp_path, {'s_1x': 40, 'p_1x': 120})
  study.run = lambda stages: ['p_1x_seed0: failed']
  assert study.go() == (['p_1x_seed0: failed'], None) and looks.read(str(tmp_path)) is None


def failing(study, seed):
  """A study in which a run of some seed fails, as often as it is tried."""
  train = study.run
  def run(stages):
    return ['s_1x: failed'] if any(one.trial.choice['seed'] == seed for one in stages) else train(stages)
  study.run = run
  return study


def test_after_a_failure_the_report_is_that_of_the_latest_look(tmp_path):
  found = {'s_1x': 99, 'p_1x': 100}
  failures, comparison = failing(Study(tmp_path, found), 'seed2').go()
  record = looks.read(str(tmp_path))
  assert failures == ['s_1x: failed'] and len(comparison.runs) == 4 and [one.seeds for one in record.taken] == [2]
  assert 'Look 1 of at most 3' in comparison.verdicts[0].words
  again = failing(Study(tmp_path, found), 'seed2')
  failures, repeated = again.go()
  assert failures and repeated.verdicts[0].words == comparison.verdicts[0].words
  assert again.compared == 1 and looks.read(str(tmp_path)) == record, 'the same look, no further one'
  assert 'the report is that of 2 seeds' in again.log[-1]
  Study(tmp_path, found).go()  # the run does not fail any more
  assert len(looks.read(str(tmp_path)).taken) > 1
  lost = failing(Study(tmp_path, found), 'seed1')
  assert lost.go() == (['s_1x: failed'], None), 'a look that lacks runs is not repeated'


def test_after_a_failure_behind_several_looks_the_report_is_that_of_the_last_one(tmp_path):
  for _ in range(2):  # at first it has just been made, then it is made again
    failures, comparison = failing(Study(tmp_path, {'s_1x': 99, 'p_1x': 100}), 'seed3').go()
    assert failures and len(comparison.runs) == 6 and 'Look 2 of at most 3' in comparison.verdicts[0].words


def step(schedule, relation):
  run = types.SimpleNamespace(folder=types.SimpleNamespace(path=f'out/{schedule}'))
  return verdict.Step(groups.Side(schedule, (run,)), np.nan, relation, None, np.nan)


@pytest.mark.parametrize('relations, answer, every_schedule, needs', [
  ((verdict.WORSE, verdict.UNSURE, verdict.EQUAL), verdict.SCRATCH_SUFFICES, False, set()),
  ((verdict.WORSE, verdict.UNSURE, verdict.EQUAL), verdict.SCRATCH_SUFFICES, True, {'2x', '3x', 'p'}),
  ((verdict.UNSURE, verdict.WORSE, verdict.EQUAL), verdict.SCRATCH_SUFFICES, True, set()),
  ((verdict.UNSURE, verdict.WORSE, verdict.UNSURE), verdict.OPEN, False, {'3x', 'p'}),
  ((verdict.WORSE, verdict.UNSURE, verdict.WORSE), verdict.PRETRAIN, True, set()),
])
def test_which_runs_get_further_seeds(relations, answer, every_schedule, needs):
  steps = tuple(step(f'{k}x', relation) for k, relation in enumerate(relations, 1))
  one = verdict.Verdict('box/AP', step('p', '').side, (step('p', '').side,), steps, None, answer, '', '', '')
  assert sequential.needed([one], UntilSettled(5, every_schedule), {'1x', '2x', '3x', 'p'}) == needs


def test_looks_are_by_one_metric(tmp_path):
  study = Study(tmp_path, {'s_1x': 40, 'p_1x': 120}, metric='mask/AP')
  with pytest.raises(UserError, match='has no mask/AP in its last evaluation.*available: box/AP'):
    study.go()
  assert looks.read(str(tmp_path)) is None, 'no look was taken'
  by_boxes = Study(tmp_path, study.found, metric='box/AP')
  by_boxes.go()
  assert looks.read(str(tmp_path)).metric == 'box/AP'
  sequential.check_record(by_boxes.plan)
  for other, words in (('mask/AP', 'with --metric=mask/AP'), (None, 'with no --metric')):
    with pytest.raises(UserError, match=f'looks.json: this study was looked at with --metric=box/AP; {words}'):
      sequential.check_record(Study(tmp_path, study.found, metric=other).plan)
