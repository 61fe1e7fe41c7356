"""Levels of looks: they spend what they may, and a single look is an ordinary interval."""

import numpy as np
import pytest
from scipy import special

from rethink_tf.compare import intervals, sequential
from rethink_tf.compare.intervals import HeldOut, SideScores
from rethink_tf.compare.sequential import Look


@pytest.mark.parametrize('alpha', [0.05, 0.05 / 3])
def test_the_error_of_independent_seeds_is_what_has_been_spent(alpha):
  noise = np.random.default_rng(0)
  sums = noise.normal(size=(100_000, 6)).cumsum(1)
  wrong = np.zeros(len(sums), bool)
  for seeds, level in zip(range(2, 7), sequential.levels(6, alpha), strict=True):
    wrong |= np.abs(sums[:, seeds - 1]) > -special.ndtri(level / 2) * np.sqrt(seeds)
    assert wrong.mean() == pytest.approx(sequential.spent(seeds, 6, alpha), rel=0.15, abs=2e-4)
  assert sequential.spent(6, 6, alpha) == pytest.approx(0.7 * alpha)
  assert sequential.spent(3, 6, alpha) == pytest.approx(0.7 * alpha / 4)  # (n / N)²


def test_later_looks_have_shorter_intervals_and_one_look_is_none():
  levels = sequential.levels(5, 0.05)
  assert list(levels) == sorted(levels) and len(levels) == 4 and levels[-1] < 0.05
  assert sequential.levels(2, 0.05) == (0.05,) and Look(2, 2).tail(0.95, 2) == pytest.approx(0.0125)
  assert (Look(3, 5).number, Look(3, 5).planned) == (2, 4)
  assert Look(3, 5).tail(0.95) == pytest.approx(levels[1] / 2)


def test_an_interval_of_a_look_is_wider():
  sides = [SideScores(np.full(3, ap), np.full((3, 2), ap)) for ap in (42.0, 40.0)]
  spreads = (intervals.given_spread(1.0),) * 2
  alone, first, last = (intervals.difference(*sides, spreads, HeldOut.alike(100), look=look).half
                        for look in (None, Look(2, 5), Look(5, 5)))
  assert alone < last < first
