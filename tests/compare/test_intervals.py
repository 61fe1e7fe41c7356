"""Intervals: known variances, given and pooled spreads, and coverage in simulated studies."""

import math

import numpy as np
import pytest
from scipy import stats

from rethink_tf.compare import intervals
from rethink_tf.compare.intervals import HeldOut, SideScores
from tools import coverage


def side(values, image_deviation=0.0, seed=0, draws=4000):
  """Runs whose bootstrap draws deviate together."""
  values = np.asarray(values, float)
  return SideScores(values, values[:, None] + np.random.default_rng(seed).normal(0, image_deviation, (1, draws)))


def twice(spread):
  return spread, spread


def test_the_interval_of_one_seed_is_that_of_the_images_and_says_what_it_cannot_resolve():
  interval = intervals.difference(side([42.0], 1.0, 1), side([40.0], 1.0, 2), None, HeldOut.alike(101))
  assert interval.value == 2.0 and interval.half == pytest.approx(1.984 * math.sqrt(2) * math.sqrt(101 / 100), rel=0.05)
  alone = intervals.difference(side([42.0]), side([40.0]), None, HeldOut.alike(800))
  assert alone.half == 0 and alone.resolved == pytest.approx(2 * math.sqrt(2) * 2.3 / 2)  # 4 x the measured images
  assert interval.resolved == pytest.approx(2 * math.sqrt((interval.half / 1.984) ** 2 + 2 * 2.3 ** 2 * 200 / 101),
                                            rel=1e-3)


def test_a_given_spread_is_added():
  spreads = twice(intervals.given_spread(2.0))
  interval = intervals.difference(side([42.0, 42.0], 1.0, 1), side([40.0], 1.0, 1), spreads, HeldOut.alike(10 ** 6))
  assert interval.half == pytest.approx(1.96 * math.sqrt(4 * 1.5), rel=0.01) and interval.resolved is None


def test_the_spread_is_pooled_over_the_schedules_of_a_side_and_not_below_its_own():
  arm, held_out = [side([40.0, 42.0]), side([50.0, 53.0, 56.0]), side([60.0])], HeldOut.alike(100)
  pooled = intervals.seed_spread(arm, arm[0], held_out)
  assert pooled.variance == pytest.approx((2 + 18) / 3) and pooled.of_images == 0
  assert pooled.degrees == 3
  assert intervals.seed_spread(arm, arm[2], held_out) == pooled  # one run: that of the other schedules
  assert intervals.seed_spread(arm, arm[1], held_out)[::2] == (9, 3)
  assert intervals.seed_spread(arm[2:], arm[2], held_out) is None


@pytest.mark.parametrize('own, least, most', [(1.0, 6, 6), (1.5, 3, 5.9), (5.0, 2, 2.7)])
def test_seeds_that_spread_more_at_one_schedule_have_fewer_degrees_of_freedom_there(own, least, most):
  arm = [side([40.0, 42.0, 44.0]), side([44.0, 46.0, 48.0]), side([50 - 2 * own, 50.0, 50 + 2 * own])]
  found = intervals.seed_spread(arm, arm[2], HeldOut.alike(100))
  assert least <= found.degrees <= most and found.variance == pytest.approx((2 * own) ** 2)
  assert intervals.seed_spread(arm, arm[0], HeldOut.alike(100)).degrees == 6
  fewer = intervals.seed_spread([*arm[:2], side([20.0, 80.0])], side([20.0, 80.0]), HeldOut.alike(100))
  assert fewer.degrees == 1  # of its own two seeds, not of the three of the others


def test_seeds_that_may_add_nothing_to_images_are_not_counted_in_full():
  alike, apart, known = (twice(intervals.SeedSpread(variance, 1.0, degrees))
                         for variance, degrees in ((1.5, 1), (50.0, 1), (1.5, math.inf)))
  assert intervals.variance(2.0, alike, (2, 2)) == pytest.approx(2.0 + 0.5 / 2)  # 0.5 beyond, 1 by images
  assert intervals.variance(2.0, apart, (2, 2)) == pytest.approx(2.0 + 49.0, rel=0.01)
  assert intervals.variance(2.0, known, (2, 2)) == 2.5


@pytest.mark.parametrize('of_images', [0.0, 0.1, 0.6])
def test_seeds_that_spread_more_never_make_an_interval_narrower(of_images):
  def half(spread):
    return intervals.half_width(np.ones(len(spread.variance)), (spread, intervals.SeedSpread(1.0, of_images, 3.0)),
                                (2, 2), HeldOut.alike(100), 0.025)

  alone = np.linspace(0, 6, 601)
  of_one = half(intervals.SeedSpread(alone, of_images, 1.0))
  pooled = half(intervals.SeedSpread.observed(alone, 1.0, of_images, (1, 3)))
  assert (np.diff(of_one) >= -1e-3).all() and of_one[-1] > 2 * of_one[0]
  assert (np.diff(pooled) >= -1e-3).all() and pooled[-1] > 2 * pooled[0]


def test_two_sides_have_spreads_of_their_own():
  """Welch's interval: scipy's, for one schedule a side and no variance over images."""
  first, second = side([40.0, 43.0, 45.0]), side([50.0, 50.2, 50.1, 50.4])
  held_out = HeldOut.alike(10 ** 6)
  found = intervals.difference(first, second, tuple(intervals.seed_spread([one], one, held_out)
                                                    for one in (first, second)), held_out)
  expected = stats.ttest_ind(first.values, second.values, equal_var=False).confidence_interval(0.95)
  assert (found.low, found.high) == pytest.approx(expected, rel=1e-6)


def test_what_images_add_to_the_spread_of_seeds_is_counted_once():
  """Two runs that differ by nothing but the images drawn: their spread and the draws measure the same variance."""
  noise, held_out = np.random.default_rng(0), HeldOut.alike(1000)
  sides = [SideScores(noise.normal(42, 1, 50), 42 + noise.normal(0, 1, (50, 2000))) for _ in range(2)]
  spreads = tuple(intervals.seed_spread([one], one, held_out) for one in sides)
  assert spreads[0].of_images == pytest.approx(1.0, rel=0.05) and spreads[0].variance == pytest.approx(1.0, rel=0.4)
  images = intervals.variance_over_images(*sides, held_out)
  assert images == pytest.approx(2 / 50, rel=0.15)
  assert intervals.variance(images, spreads, (50, 50)) < 1.4 * images  # not twice


def test_an_interval_is_never_shorter_than_that_of_images_or_of_seeds():
  spreads = twice(intervals.SeedSpread(1.0, 5.0, 4))
  assert intervals.variance(0.5, spreads, (4, 4)) == 0.5 == intervals.variance(0.1, spreads, (4, 4))
  none = twice(intervals.SeedSpread(0.0, 0.0, 4))
  assert intervals.degrees(0.0, none, (4, 4), HeldOut.alike(10)) >= 1e6


def test_what_held_out_images_can_tell():
  alike = HeldOut.of([np.ones(20, int), np.full(20, 2)])
  assert alike[:3] == pytest.approx(HeldOut.alike(20)[:3])
  assert alike.least == pytest.approx(1e4 / (4 * 60) * (1 / 20 + 1 / 40))
  assert HeldOut.of([np.ones(50, int)]).least == pytest.approx(2.0 ** 2)  # one object of 50: two points of AP
  rare = np.zeros(20, int)
  rare[:2] = 1
  with_rare = HeldOut.of([np.ones(20, int), rare])
  # Two images tell 10/11 of the variance, V² / (V1² / 19 + V2² / 1), and as much of it is missing.
  assert with_rare.degrees == pytest.approx(1 / ((1 / 11) ** 2 / 19 + (10 / 11) ** 2))
  assert with_rare.inflation == pytest.approx(1 / 11 * 20 / 19 + 10 / 11 * 2)
  single = HeldOut.of([np.ones(20, int), np.eye(1, 20, dtype=int)[0]])
  assert np.isfinite(single).all() and single.degrees < with_rare.degrees
  more = with_rare.times(4)
  assert more.num_images == 80 and more.degrees == 4 * with_rare.degrees and more.least == with_rare.least / 16


def test_sides_that_agree_in_all_objects_are_no_more_certain_than_one_object():
  held_out = HeldOut.of([np.ones(10, int)])
  sides = [side([50.0, 50.0]), side([50.0, 50.0])]
  interval = intervals.difference(*sides, tuple(intervals.seed_spread([one], one, held_out) for one in sides), held_out)
  assert interval.value == 0 and interval.half > 20


def test_several_comparisons_take_wider_intervals():
  spreads = twice(intervals.given_spread(1.0))
  one, three = (intervals.difference(side([42.0]), side([40.0]), spreads, HeldOut.alike(100), comparisons=n)
                for n in (1, 3))
  assert three.half / one.half == pytest.approx(2.394 / 1.96, rel=0.001)


@pytest.mark.parametrize('study', [coverage.Study(2, 20, 0.3), coverage.Study(2, 100, 2.3),
                                   coverage.Study(3, 100, 2.3)], ids=str)
def test_coverage_and_wrong_verdicts_in_small_studies(study):
  """The whole table: results/coverage.md. 250 studies: 95 % have a standard error of 1.4."""
  new = coverage.rates(study, 250, seed=1)
  assert 91 <= new.covered <= 99.6 and new.wrong <= 8
  assert coverage.rates(study._replace(seeds=1), 20, seed=1).claimed == 0


def test_differences_that_are_there_are_found():
  assert coverage.rates(coverage.Study(3, 500, 0.3, 5.0), 40, seed=2).claimed > 90


@pytest.mark.parametrize('study', [
  coverage.Study(3, 5000, 1.0, schedules=1, ratio=5.0),
  coverage.Study(3, 5000, 1.0, schedules=3, ratio=3.0, correlation=0.5),
  coverage.Study(3, 5000, 1.0, schedules=3, longest=2.0, correlation=0.5),
  coverage.Study(2, 5000, 1.0, schedules=3, longest=3.0, correlation=0.5)], ids=str)
def test_spreads_that_differ_between_sides_and_schedules_give_few_false_verdicts(study):
  """4,000 studies: 8 % have a standard error of 0.4. With one spread for all these are 9 to 17 %."""
  assert coverage.drawn_rates(study, 4000, seed=1).covered >= 92


@pytest.mark.parametrize('study', [
  coverage.Study(2, 20, 0.3, schedules=1), coverage.Study(2, 500, 2.3, schedules=1), coverage.Study(2, 5000, 2.3),
  coverage.Study(5, 500, 0.3)], ids=str)
def test_equal_spreads_are_covered_neither_too_rarely_nor_too_often(study):
  """The studies nearest to either end of 93 to 98 %. 40,000 of each have a standard error of 0.1."""
  assert 95 <= coverage.drawn_rates(study, 40_000, seed=1).covered <= 98.05


def test_studies_by_which_nothing_was_chosen_are_covered_as_well():
  """The whole line: results/coverage.md. 4,000 of each have a standard error of 0.2 to 0.4."""
  found = [coverage.covered(study, 4000, i) for i, study in enumerate(coverage.other_studies(24, seed=1))]
  assert 93 <= min(found) and max(found) <= 98.4
