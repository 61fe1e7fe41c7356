"""The schedule table of the paper, and the rate step by step."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.schedules import KTimesSchedule, SchedulePoints, schedule_points

# Section 4 and the published configs: k -> first drop, second drop, end at batch 16.
BATCH_16 = {
  1: (60_000, 80_000, 90_000),  # Detectron
  2: (120_000, 160_000, 180_000),
  3: (210_000, 250_000, 270_000),
  4: (300_000, 340_000, 360_000),
  5: (390_000, 430_000, 450_000),
  6: (480_000, 520_000, 540_000),
  7: (570_000, 610_000, 630_000),
  8: (660_000, 700_000, 720_000),
  9: (750_000, 790_000, 810_000),
}
PUBLISHED = {
  (9, 64): (187_500, 197_500, 202_500),  # detectron2, scratch_mask_rcnn_R_50_FPN_9x_gn
  (1, 8): (120_000, 160_000, 180_000),  # tensorpack
  (2, 8): (240_000, 320_000, 360_000),
  (6, 8): (960_000, 1_040_000, 1_080_000),
  (9, 8): (1_500_000, 1_580_000, 1_620_000),
  (4, 32): (150_000, 170_000, 180_000),
}


@pytest.mark.parametrize('batch_size', [8, 16, 32, 64])
@pytest.mark.parametrize('k', list(BATCH_16))
def test_points_are_the_papers(k, batch_size):
  expected = tuple(point * 16 // batch_size for point in BATCH_16[k])
  assert schedule_points(k, batch_size) == expected
  assert PUBLISHED.get((k, batch_size), expected) == expected


def test_unit_scales_all_points():
  assert schedule_points(6, unit=900) == SchedulePoints(4800, 5200, 5400)
  assert schedule_points(1, batch_size=4, unit=90) == SchedulePoints(240, 320, 360)


def test_fractional_k_is_monotonic_and_has_growing_tails():
  points = [schedule_points(k) for k in np.arange(.25, 4, .25)]
  for earlier, later in zip(points, points[1:], strict=False):
    assert all(a < b for a, b in zip(earlier, later, strict=True))
    assert later.end - later.first_drop >= earlier.end - earlier.first_drop
  assert schedule_points(2.5) == SchedulePoints(165_000, 205_000, 225_000)


@pytest.mark.parametrize('arguments', [{'k': 0}, {'k': -1}, {'k': 1, 'batch_size': 0}, {'k': 1, 'unit': 0},
                                       {'k': 1, 'unit': .1}])
def test_points_that_make_no_schedule(arguments):
  with pytest.raises(UserError, match='schedule: k = '):
    schedule_points(**arguments)


def test_rate_step_by_step():
  schedule = KTimesSchedule(k=6, batch_size=16)
  assert schedule.total_steps == 540_000
  expected = {0: .02 / 3, 250: .02 * 2 / 3, 499: .02 * (1 / 3 + 2 / 3 * .998), 500: .02, 479_999: .02,
              480_000: .002, 519_999: .002, 520_000: .0002, 540_000: .0002}
  for step, rate in expected.items():
    np.testing.assert_allclose(schedule(step), rate, rtol=1e-6, err_msg=f'step {step}')


@pytest.mark.parametrize('batch_size', [1, 8, 64])
def test_batch_size_scales_rate_and_iterations_but_not_the_warm_up(batch_size):
  schedule = KTimesSchedule(k=1, batch_size=batch_size)
  np.testing.assert_allclose(schedule(500), .02 * batch_size / 16, rtol=1e-6)
  np.testing.assert_allclose(schedule(499) / schedule(500), 1 / 3 + 2 / 3 * .998, rtol=1e-6)
  assert schedule.points.first_drop == 60_000 * 16 // batch_size


def test_same_in_a_graph_and_compiled_and_in_float32():
  schedule = KTimesSchedule(k=2)
  for step in (0, 3, 500, 119_999, 120_000, 179_999):
    variable = tf.Variable(step, dtype=tf.int64)
    eager = schedule(variable)
    assert eager.dtype == tf.float32 and eager.shape == ()
    np.testing.assert_array_equal(tf.function(schedule)(variable), eager)
    np.testing.assert_allclose(tf.function(schedule, jit_compile=True)(tf.constant(step)), eager, rtol=1e-6)


def test_other_points():
  schedule = KTimesSchedule(batch_size=8, boundaries=(10, 20, 30), total=40, warmup_steps=0, decay_factor=.5)
  assert schedule.total_steps == 40 and schedule.points == (10, 20, 30, 40)
  np.testing.assert_allclose([schedule(step) for step in (0, 9, 10, 20, 30, 39)],
                             [.01, .01, .005, .0025, .00125, .00125])
  constant = KTimesSchedule(boundaries=(), total=5, warmup_steps=0)
  np.testing.assert_allclose([constant(0), constant(4)], .02)


@pytest.mark.parametrize('arguments, message', [
  ({'unit': 90}, 'warmup_steps = 500 is longer than the first phase of the schedule, 60 iterations'),
  ({'boundaries': (5, 3), 'total': 9, 'warmup_steps': 0}, 'must increase'),
  ({'boundaries': (5, 9), 'total': 9, 'warmup_steps': 0}, 'stay below total = 9'),
  ({'boundaries': (5,)}, 'go together'),
  ({'total': 5}, 'go together'),
])
def test_inconsistent_schedules(arguments, message):
  with pytest.raises(UserError, match=message):
    KTimesSchedule(**arguments)


def test_config_makes_the_same_schedule():
  schedule = KTimesSchedule(k=3, batch_size=32, warmup_factor=.001)
  again = KTimesSchedule.from_config(schedule.get_config())
  assert again.points == schedule.points
  np.testing.assert_array_equal(again(7), schedule(7))
