"""Verdicts against the definitions of their words, over random intervals and schedules."""

import itertools

import numpy as np
import pytest

from rethink_tf.compare import verdict
from rethink_tf.compare.intervals import Interval
from rethink_tf.compare.run_summary import read_runs
from rethink_tf.errors import UserError
from tests.compare.fake_runs import better, share, worse, write

ENDS = (-3.0, -0.5, -0.2, 0.0, 0.2, 0.5, 3.0)


@pytest.mark.parametrize('margin', [0.0, 0.5])
def test_the_relation_is_what_holds_of_every_difference_in_the_interval(margin):
  for low, high in itertools.combinations_with_replacement(ENDS, 2):
    inside = np.linspace(low, high, 301)
    found = verdict.relation(Interval((low + high) / 2, low, high), margin)
    if (np.abs(inside) <= margin).all():
      assert found == verdict.EQUAL
    elif (inside > 0).all() or (inside < 0).all():
      assert found == (verdict.BETTER if low > 0 else verdict.WORSE)
    else:
      assert found == (verdict.NOT_WORSE if margin and (inside >= -margin).all() else verdict.UNSURE)
    assert verdict.relation(Interval(0.0, low, high, resolved=2.0), margin) == verdict.ONE_SEED


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Three schedules from scratch, two pre-trained ones of which 2x has the higher AP; AP of scratch rises."""
  folder = tmp_path_factory.mktemp('runs')
  sides = [(f's{k}', worse(20 - 5 * k), k, None) for k in (1, 2, 3)]
  sides += [('p1', better(2), 1, 'w'), ('p2', better(4), 2, 'w')]
  return read_runs([write(folder / name, found, k=k, init=init, images=400 * k) for name, found, k, init in sides])


class Known:
  """Differences that are given; notes how many comparisons each is one of."""

  metric, look = 'box/AP', None

  def __init__(self, intervals):
    self.intervals, self.asked = intervals, set()

  def between(self, first, second, comparisons=1):
    self.asked.add(comparisons)
    return self.intervals[first.schedule, second.schedule]


RELATIONS = {verdict.EQUAL: (-0.1, 0.1), verdict.BETTER: (0.6, 2.0), verdict.WORSE: (-2.0, -0.6),
             verdict.NOT_WORSE: (-0.1, 2.0)}


@pytest.mark.parametrize('of_steps', itertools.product(RELATIONS, repeat=3))
def test_scratch_has_caught_up_from_the_shortest_schedule_after_which_all_have(runs, of_steps):
  """Each schedule against both pre-trained ones: it has caught up if it has with each of them."""
  random = np.random.default_rng(0)
  known = {}
  for k, relation in enumerate(of_steps, 1):
    other = relation if relation == verdict.WORSE else (*RELATIONS,)[random.integers(4)]
    if relation != verdict.WORSE and other == verdict.WORSE:
      other = verdict.EQUAL
    for schedule, one in (('1x', other), ('2x', relation)):
      low, high = RELATIONS[one]
      known[f'{k}x', schedule] = Interval((low + high) / 2, low, high)
  differences = Known(known)
  only, = verdict.verdicts(runs, differences, 0.5)
  assert only.pretrained.schedule == '2x' and differences.asked == {2}
  assert [step.relation for step in only.steps] == list(of_steps)
  behind = [k for k, relation in enumerate(of_steps, 1) if relation == verdict.WORSE]
  shortest = max(behind, default=0) + 1
  if shortest <= 3:
    assert (only.answer, only.caught_up.side.schedule) == (verdict.SCRATCH_SUFFICES, f'{shortest}x')
    assert only.headline == f'You do not need pre-training (w) from {shortest}x on'
  else:
    assert only.caught_up is None
    assert only.answer == (verdict.PRETRAIN if len(behind) == 3 else verdict.OPEN)
    if only.answer == verdict.OPEN:
      ahead = max(k for k in (1, 2) if k not in behind)
      assert only.headline == f'Cannot tell yet: scratch is behind at 3x, but not at {ahead}x'


def test_a_schedule_is_compared_with_all_pre_trained_ones_together():
  """It is behind if it is behind one, it may be behind if it may be behind one; else the best one counts."""
  given = {relation: Interval(sum(ends) / 2, *ends) for relation, ends in RELATIONS.items()}
  given |= {verdict.UNSURE: Interval(0, -2, 2), verdict.ONE_SEED: Interval(0, -2, 2, resolved=3.0)}
  for best, other in itertools.product(given, repeat=2):
    found = verdict.joint_relation([given[other], given[best]], given[best], 0.5)
    first = next((one for one in (verdict.ONE_SEED, verdict.WORSE, verdict.UNSURE) if one in (best, other)), best)
    assert found == first, (best, other)


def test_one_pre_trained_schedule_that_is_ahead_is_enough_to_be_behind(runs):
  """However level scratch is with the best one; the one that it is furthest behind is quoted."""
  known = {(f'{k}x', schedule): Interval(-1, low, high) for k in (1, 2, 3)
           for schedule, low, high in (('1x', -1.5, -0.5 - k), ('2x', -0.1, 0.1))}
  only, = verdict.verdicts(runs, Known(known), 0.5)
  assert {step.relation for step in only.steps} == {verdict.WORSE} and only.answer == verdict.PRETRAIN
  assert all(step.against.schedule == '1x' for step in only.steps)
  assert ('It still gains (2x to 3x: +2.5): a longer schedule may close the gap (twice as long: 10 min 0 s of training)'
          in only.words)  # 300 steps of a second
  known = {key: one if key != ('3x', '2x') else Interval(-4, -5, -4.5) for key, one in known.items()}
  assert verdict.verdicts(runs, Known(known), 0.5)[0].steps[-1].against.schedule == '2x'


def test_a_negative_margin_is_refused(runs):
  for margin in (-0.5, float('nan')):
    with pytest.raises(UserError, match='must not be negative'):
      verdict.verdicts(runs, Known({}), margin)


@pytest.mark.parametrize('of', [1, 5])
def test_an_ap_of_twice_the_margin_says_nothing(tmp_path, of):
  """An AP of 1 with a margin of 0.5; of 5 it does."""
  found = share(of, 100)
  runs = read_runs([write(tmp_path / 's', found), write(tmp_path / 'p', found, init='w')])
  only, = verdict.verdicts(runs, Known({('1x', '1x'): Interval(0, -0.1, 0.1)}), 0.5)
  assert only.answer == (verdict.OPEN if of == 1 else verdict.SCRATCH_SUFFICES)
