"""What a comparison will be able to tell, and what settles an open one: in as many studies as they say."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from rethink_tf.compare import intervals, planning, verdict
from rethink_tf.compare.intervals import HeldOut
from rethink_tf.compare.planning import Noise
from rethink_tf.compare.sequential import Look
from tools import advice, coverage


def test_the_noise_of_a_study_is_that_of_its_scores():
  """Over 30 studies, drawn with the noise that a plan is given."""
  study, held_out = coverage.Study(6, 300, 1.0), HeldOut.alike(300)
  noise, degrees = np.random.default_rng(0), (intervals.degrees_of_arm(2, 6),) * 2
  halves, measured = [], []
  for _ in range(30):
    weights = coverage.bootstrap.draw_weights(study.images, 200, int(noise.integers(2 ** 31))) / study.images
    sides = coverage.scores(study, noise, weights)
    spreads = coverage.spreads(sides[:2], sides[2:], 0, held_out)
    halves.append(intervals.difference(sides[1], sides[2], spreads, held_out).half)
    measured.append(_half(Noise.measured(sides[1], sides[2], spreads, held_out), degrees))
  truth = Noise(2 * coverage.OF_SIDE ** 2 / 300, coverage.OF_RUN ** 2 / 300, 1.0, held_out)
  assert _half(truth, degrees) == pytest.approx(np.mean(halves), rel=0.12)
  assert measured == pytest.approx(halves, rel=0.1)  # both sides are taken to be alike
  found = planning.found(truth, (6, 6), (2, 2), 0.025)
  assert found == pytest.approx(1.5 * _half(truth, degrees), rel=0.1)  # 1.43 if the spread were known: 80 % power


def _half(noise: Noise, degrees: tuple[float, float]) -> float:
  return float(intervals.half_width(noise.over_images((6, 6)), noise.spreads(degrees), (6, 6), noise.held_out, 0.025))


@pytest.mark.parametrize('seeds, images, spread', [(2, 5000, 2.3), (2, 100, 0.3), (3, 500, 1.0), (5, 20, 2.3)])
def test_differences_that_a_study_is_said_to_find_are_found_in_four_of_five(seeds, images, spread):
  """The whole table: results/advice.md. (Half the width plus Student's quantile: 43 % with two seeds.)"""
  one = advice.power(seeds, images, spread, 1, 2000, seed=1)
  assert 77 < one.behind < 86 and one.ahead > 77  # a standard error of 0.9


def test_a_known_spread_finds_what_normal_theory_says():
  noise = Noise.expected(100_000, 1.0)
  found = planning.found(noise, (3, 1), None, 0.025)
  assert found == pytest.approx((1.96 + 0.842) * math.sqrt(noise.variance((3, 1))), rel=0.01)


def test_more_images_more_seeds_and_fewer_comparisons_tell_more():
  base = planning.found(Noise.expected(200), (3, 3), (2, 2), 0.0125)
  for noise, seeds, schedules, tail in (
      (Noise.expected(800), 3, 2, 0.0125), (Noise.expected(200), 6, 2, 0.0125), (Noise.expected(200), 3, 2, 0.025),
      (Noise.expected(200), 3, 4, 0.0125), (Noise.expected(200, 0.3), 3, 2, 0.0125),
      (Noise.expected(200, level=5.0), 3, 2, 0.0125)):
    assert planning.found(noise, (seeds, seeds), (schedules, schedules), tail) < base
  more, twice = Noise.expected(400), Noise.expected(200).times(2)
  assert more[:3] == pytest.approx(twice[:3]) and more.held_out.num_images == twice.held_out.num_images


@pytest.mark.slow
def test_seeds_and_images_that_are_said_to_settle_it_do_so_in_as_many_studies():
  """The whole table: results/advice.md. (Taking the difference that was measured for the truth: 33 %.)"""
  found = advice.Settled.added(advice.settled(coverage.Study(seeds, images, spread, float('nan'), 1), 40, seed=1)
                               for seeds, images, spread in ((2, 5000, 2.3), (3, 5000, 2.3), (5, 100, 0.3)))
  assert found.even.seeds > 30 and 38 < 100 * found.even.settled_by_seeds / found.even.seeds < 72
  assert found.even.images > 15 and 30 < 100 * found.even.settled_by_images / found.even.images < 80


def test_the_probability_with_the_seeds_that_are_left_is_the_share_that_they_settle():
  reliability = advice.reliability(100, seed=1)
  for low, said, settled, number in reliability:
    assert number < 100 or abs(said - settled) < 10, low


@pytest.mark.parametrize('value, then, images', [(-1.5, 8, 1), (0.4, 3, 4), (1.0, 5, 2), (-0.2, 20, 1), (4.0, 4, 1)])
def test_the_probability_is_that_of_a_simulation_with_a_known_spread(value, then, images):
  """True differences around 0, this one measured with three seeds, then more of them or on more images."""
  noise, random, many = Noise.expected(400, 1.0), np.random.default_rng(0), 200_000
  before, after = noise.variance((3, 3)), noise.times(images).variance((then, then))
  true = planning.TRUE_DIFFERENCE ** 2
  true = random.normal(value * true / (true + before), math.sqrt(true * before / (true + before)), many)  # Bayes' rule
  added = random.normal(true, math.sqrt(1 / (1 / after - 1 / before)))  # the data that make the variance smaller
  found = (value / before + added * (1 / after - 1 / before)) * after
  half = 1.96 * math.sqrt(after)
  settled = np.mean((found + half < 0) | (found - half > -0.5))  # worse, or not worse by the margin
  degrees = (math.inf, math.inf)
  said = planning.chance(value, noise, (3, 3), (then, then), images, degrees, degrees, 0.025, 0.5)
  assert said == pytest.approx(settled, abs=0.01)


def test_what_is_settled_has_the_relation_of_its_probability():
  """A difference that is large against all noise, and one that is 0."""
  known = Noise.expected(5000, 0.3), (3, 3), (3, 3), 25.0, (4.0, 4.0), (4.0, 4.0), 0.025, 0.5
  assert verdict.relation(intervals.Interval(-20, -21, -19), 0.5) == verdict.WORSE
  assert planning.chance(-20.0, *known) > 0.99 and planning.chance(np.array([-20.0, 0.3]), Noise(
    *(np.full(2, part) for part in known[0][:3]), known[0].held_out), *known[1:]).shape == (2,)


@pytest.mark.parametrize('share, words', [
  (0.0, 'less than 1 %'), (0.004, 'less than 1 %'), (0.3, 'about 30 %'), (0.99, 'about 99 %'), (1.0, 'more than 99 %')])
def test_an_estimated_probability_is_no_certainty(share, words):
  known = SimpleNamespace(chance=lambda *_: share)
  assert planning._left(known, Look(2, 4)) == (
    share, f' With all 4 seeds it would be settled with a probability of {words}.')
  assert planning._left(known, Look(4, 4)) == (share, '')
