"""What a comparison will be able to tell: the half-widths that its intervals then have."""

import numpy as np
import pytest

from rethink_tf.compare import intervals
from rethink_tf.compare.planning import Noise, precision
from tools import coverage


def test_the_plan_of_a_study_is_what_its_intervals_become():
  """Over 30 studies, drawn with the noise that the plan is given."""
  study = coverage.Study(4, 300, 1.0)
  noise = np.random.default_rng(0)
  halves, measured = [], []
  for _ in range(30):
    weights = coverage.bootstrap.draw_weights(study.images, 200, int(noise.integers(2 ** 31))) / study.images
    sides = coverage.scores(study, noise, weights)
    spread = intervals.seed_spread(sides, study.images)
    halves.append(intervals.difference(sides[0], sides[2], spread, study.images).half)
    measured.append(precision(Noise.measured(sides[0], sides[2], spread, study.images), (4, 4), spread.degrees,
                              0.025).half)
  truth = Noise(2 * coverage.OF_SIDE ** 2 / 300, coverage.OF_RUN ** 2 / 300, 1.0, 300)
  plan = precision(truth, (4, 4), 12, 0.025)
  assert plan.half == pytest.approx(np.mean(halves), rel=0.1)
  assert measured == pytest.approx(halves, rel=0.02)
  assert plan.found == pytest.approx(1.42 * plan.half, rel=0.05)  # 80 % power: 1.96 + 0.84 standard errors


def test_more_images_more_seeds_and_fewer_comparisons_tell_more():
  base = precision(Noise.expected(200), (3, 3), 8, 0.0125).found
  for noise, seeds, degrees, tail in (
      (Noise.expected(800), 3, 8, 0.0125), (Noise.expected(200), 6, 20, 0.0125), (Noise.expected(200), 3, 8, 0.025),
      (Noise.expected(200, 0.3), 3, 8, 0.0125), (Noise.expected(200, level=5.0), 3, 8, 0.0125)):
    better = precision(noise, (seeds, seeds), degrees, tail)
    assert better.found < base
  assert Noise.expected(400) == pytest.approx(Noise.expected(200).times(2))
