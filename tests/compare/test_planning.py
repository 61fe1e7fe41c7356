"""What a comparison will be able to tell: the half-widths that its intervals then have."""

import numpy as np
import pytest

from rethink_tf.compare import intervals
from rethink_tf.compare.intervals import HeldOut
from rethink_tf.compare.planning import Noise, precision
from tools import coverage


def test_the_plan_of_a_study_is_what_its_intervals_become():
  """Over 30 studies, drawn with the noise that the plan is given."""
  study, held_out = coverage.Study(6, 300, 1.0), HeldOut.alike(300)
  noise, degrees = np.random.default_rng(0), (intervals.degrees_of_arm(2, 6),) * 2
  halves, measured = [], []
  for _ in range(30):
    weights = coverage.bootstrap.draw_weights(study.images, 200, int(noise.integers(2 ** 31))) / study.images
    sides = coverage.scores(study, noise, weights)
    spreads = coverage.spreads(sides[:2], sides[2:], 0, held_out)
    halves.append(intervals.difference(sides[1], sides[2], spreads, held_out).half)
    measured.append(precision(Noise.measured(sides[1], sides[2], spreads, held_out), (6, 6), degrees, 0.025).half)
  truth = Noise(2 * coverage.OF_SIDE ** 2 / 300, coverage.OF_RUN ** 2 / 300, 1.0, held_out)
  plan = precision(truth, (6, 6), degrees, 0.025)
  assert plan.half == pytest.approx(np.mean(halves), rel=0.12)
  assert measured == pytest.approx(halves, rel=0.1)  # the plan takes both sides to be alike
  assert plan.found == pytest.approx(1.42 * plan.half, rel=0.05)  # 80 % power: 1.96 + 0.84 standard errors


def test_more_images_more_seeds_and_fewer_comparisons_tell_more():
  base = precision(Noise.expected(200), (3, 3), (4, 4), 0.0125).found
  for noise, seeds, degrees, tail in (
      (Noise.expected(800), 3, 4, 0.0125), (Noise.expected(200), 6, 10, 0.0125), (Noise.expected(200), 3, 4, 0.025),
      (Noise.expected(200, 0.3), 3, 4, 0.0125), (Noise.expected(200, level=5.0), 3, 4, 0.0125)):
    better = precision(noise, (seeds, seeds), (degrees, degrees), tail)
    assert better.found < base
  more, twice = Noise.expected(400), Noise.expected(200).times(2)
  assert more[:3] == pytest.approx(twice[:3]) and more.held_out.num_images == twice.held_out.num_images
