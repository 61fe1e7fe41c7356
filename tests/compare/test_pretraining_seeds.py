"""Pre-trainings that differ in their seed alone."""

import json

import pytest

from rethink_tf.compare import copies, groups, report, verdict
from rethink_tf.compare.report import compare
from rethink_tf.compare.run_summary import PRETRAINED, read_runs
from tests.compare.fake_runs import HALF, better, write


def pretrained(folder, detected, weights, seed, recipe='r', weights_seeds=None):
  """A run from a pre-training; weights_seeds: of that."""
  path = write(folder, detected, init=weights, seed=seed)
  record = {'path': weights, 'sha256': weights, 'format': 'run of this package', 'recipe': recipe,
            'seeds': weights_seeds or [int(weights[-1])]}
  (folder / 'initial_weights.json').write_text(json.dumps(record))
  return path


def arms(paths):
  return [(side.arm, len(side.runs)) for side in groups.sides(copies.independent(read_runs(paths)), PRETRAINED)]


def test_each_seed_with_a_pre_training_of_its_own_is_one_arm(tmp_path, monkeypatch):
  paths = [*(write(tmp_path / f's{seed}', better(40 + seed), seed=seed) for seed in (0, 1)),
           *(pretrained(tmp_path / f'p{seed}', HALF, f'runs/pre{seed}', seed) for seed in (0, 1))]
  assert arms(paths) == [('', 2)]
  pages = []
  monkeypatch.setattr(report, '_write', lambda *content: pages.append(content[3]) or '')
  comparison = compare(paths, str(tmp_path / 'out'), draws=50)
  only, = comparison.verdicts
  assert only.answer == verdict.SCRATCH_SUFFICES and '(pre0, pre1)' in only.headline
  assert 'one seed' not in comparison.text and 'they count as one side' not in comparison.text
  words = 'pre0, pre1: weights whose pre-training differs only in its seed count as one arm'
  assert any(words in line for line in pages[0].notes)


def test_the_same_seed_of_training_after_two_pre_trainings_is_no_repetition(tmp_path):
  paths = [pretrained(tmp_path / f'p{seed}', HALF, f'runs/pre{seed}', 0) for seed in (0, 1)]
  assert arms(paths) == [('', 2)]
  copy = pretrained(tmp_path / 'copy', HALF, 'elsewhere/pre1', 0)
  assert arms([*paths, copy]) == [('', 2)]


@pytest.mark.parametrize('other', [
  {'recipe': 'longer'}, {'weights_seeds': [0]}, {'recipe': None}, {'recipe': ['r']}, {'weights_seeds': 'many'}],
                         ids=str)
def test_other_pre_trainings_are_other_arms(tmp_path, other):
  paths = [pretrained(tmp_path / 'a', HALF, 'runs/pre0', 0), pretrained(tmp_path / 'b', HALF, 'runs/pre1', 1, **other)]
  assert arms(paths) == [('pre0', 1), ('pre1', 1)]


def test_several_runs_from_each_pre_training_are_no_independent_seeds_of_one_arm(tmp_path):
  paths = [pretrained(tmp_path / f'p{weights}{seed}', HALF, f'runs/pre{weights}', seed) for weights in (0, 1)
           for seed in (0, 1)]
  assert arms(paths) == [('pre0', 2), ('pre1', 2)]
