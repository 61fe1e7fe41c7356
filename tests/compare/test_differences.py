"""Differences between sides of saved runs, against the variances of binomial shares."""

import math

import numpy as np
import pytest

from rethink_tf.compare import groups, report
from rethink_tf.compare.differences import Differences
from rethink_tf.compare.run_summary import SCRATCH, read_runs
from tests.compare.fake_runs import HALF, share, worse, write


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """1x with two seeds, 2x and 3x with one, of which 3x has saved nothing, and 1x on fewer images."""
  folder = tmp_path_factory.mktemp('runs')
  return read_runs([write(folder / 'a', HALF), write(folder / 'b', worse(2), seed=1),
                    write(folder / 'c', worse(20), k=2, images=800),
                    write(folder / 'd', HALF, k=3, images=1200, save=False),
                    write(folder / 'e', share(50, 100), k=4, images=1600)])


def known(runs, **arguments):
  return Differences(runs, 'box/AP', report.matches_reader(runs, 'box/AP'), 1000, **arguments)


def test_ap_over_resampled_images_varies_as_a_share_of_them(runs):
  """Of 200 images half are right, in both sides 80, so that their difference varies less than either."""
  found, (one, two, *_) = known(runs), groups.sides(runs, SCRATCH)
  scores = [found.scores(side) for side in (one, two)]
  assert [score.values.tolist() for score in scores] == [[50, 49], [40]]
  for score, part in ((scores[0], 0.5), (scores[1], 0.4)):
    assert score.draws[0].std() == pytest.approx(100 * math.sqrt(part * (1 - part) / 200), rel=0.1)
  apart = scores[0].draws[0] - scores[1].draws[0]
  assert apart.std() == pytest.approx(100 * math.sqrt(0.1 * 0.9 / 200), rel=0.1)


def test_images_objects_and_schedules_of_a_side(runs):
  found, (one, two, unsaved, fewer) = known(runs), groups.sides(runs, SCRATCH)
  assert [found.num_images(side) for side in (one, two, unsaved, fewer)] == [200, 200, None, 100]
  assert [found.num_objects(side) for side in (one, two, unsaved, fewer)] == [400, 400, None, 200]
  assert found.held_out(unsaved) is None and found.held_out(fewer).num_images == 100
  assert [found.schedules(side) for side in (one, two, unsaved)] == [1, 1, 0], 'with several seeds, on the same objects'
  assert found.between(one, unsaved) is None and found.between(one, fewer) is None
  assert found.spreads(one, two) is not None and found.spreads(two, fewer) is None


def test_one_comparison_is_the_default(runs):
  found, (one, two, *_) = known(runs, seed_spread=1.0), groups.sides(runs, SCRATCH)
  assert found.between(one, two) == found.between(one, two, 1) != found.between(one, two, 2)
  difference = found.between(one, two)
  images = np.var(found.scores(one).draws.mean(0) - found.scores(two).draws[0], ddof=1) * 200 / 199
  assert difference.value == pytest.approx(9.5)
  assert difference.half == pytest.approx(1.96 * math.sqrt(images + 1 + 1 / 2), rel=0.02)
