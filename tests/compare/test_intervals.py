"""Intervals: known variances, given and pooled spreads, and coverage in simulated studies."""

import math

import numpy as np
import pytest

from rethink_tf.compare import intervals
from rethink_tf.compare.intervals import SideScores
from tools import coverage


def side(values, image_deviation=0.0, seed=0, draws=4000):
  """Runs whose bootstrap draws deviate together."""
  values = np.asarray(values, float)
  return SideScores(values, values[:, None] + np.random.default_rng(seed).normal(0, image_deviation, (1, draws)))


def test_the_interval_of_one_seed_is_that_of_the_images_and_says_what_it_cannot_resolve():
  interval = intervals.difference(side([42.0], 1.0, 1), side([40.0], 1.0, 2), None, 101)
  assert interval.value == 2.0 and interval.half == pytest.approx(1.984 * math.sqrt(2) * math.sqrt(101 / 100), rel=0.05)
  assert interval.resolved > 2 * math.sqrt(2) * 2.3  # half as many images as measured, so a larger spread


def test_a_given_spread_is_added():
  spread = intervals.given_spread(2.0)
  interval = intervals.difference(side([42.0, 42.0], 1.0, 1), side([40.0], 1.0, 1), spread, 10 ** 6)
  assert interval.half == pytest.approx(1.96 * math.sqrt(4 * 1.5), rel=0.01) and interval.resolved is None


def test_the_spread_is_pooled_over_all_sides():
  sides = [side([40.0, 42.0]), side([50.0, 53.0, 56.0]), side([60.0])]
  spread = intervals.seed_spread(sides, 100)
  assert spread.degrees == 3 and spread.variance == pytest.approx((2 + 18) / 3) and spread.of_images == 0
  assert intervals.seed_spread(sides[2:], 100) is None
  half = intervals.difference(sides[1], sides[2], spread, 100).half
  assert half == pytest.approx(3.182 * math.sqrt(20 / 3 * 4 / 3), rel=0.001)  # t with 3 degrees of freedom


def test_what_images_add_to_the_spread_of_seeds_is_counted_once():
  """Two runs that differ by nothing but the images drawn: their spread and the draws measure the same variance."""
  noise = np.random.default_rng(0)
  sides = [SideScores(noise.normal(42, 1, 50), 42 + noise.normal(0, 1, (50, 2000))) for _ in range(2)]
  spread = intervals.seed_spread(sides, 1000)
  assert spread.of_images == pytest.approx(1.0, rel=0.05) and spread.variance == pytest.approx(1.0, rel=0.3)
  images = intervals.variance_over_images(*sides, 1000)
  assert images == pytest.approx(2 / 50, rel=0.15)
  assert intervals.variance(images, spread, 2 / 50) < 1.4 * images  # not twice


def test_an_interval_is_never_shorter_than_that_of_images_or_of_seeds():
  spread = intervals.SeedSpread(1.0, 5.0, 4)
  assert intervals.variance(0.5, spread, 0.5) == 0.5 == intervals.variance(0.1, spread, 0.5)
  assert intervals.degrees(0.0, intervals.SeedSpread(0.0, 0.0, 4), 0.5, 10) >= 1e6


def test_several_comparisons_take_wider_intervals():
  spread = intervals.given_spread(1.0)
  one, three = (intervals.difference(side([42.0]), side([40.0]), spread, 100, comparisons=n) for n in (1, 3))
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
