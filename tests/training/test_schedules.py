"""The schedules of the paper and of pre-training: drops, ends, and the rate step by step."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.training.schedules import EpochSchedule, KTimesSchedule, SchedulePoints, SteppedHalving, schedule_points

# Section 4 of the paper and the published configs: k -> first drop, second drop, end at batch 16.
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
def test_points_are_those_of_the_paper(k, batch_size):
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
def test_schedule_arguments_out_of_range(arguments):
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


def test_the_rate_is_the_same_in_a_graph_and_compiled():
  schedule = KTimesSchedule(k=2)
  for step in (0, 3, 500, 119_999, 120_000, 179_999):
    variable = tf.Variable(step, dtype=tf.int64)
    eager = schedule(variable)
    assert eager.dtype == tf.float32 and eager.shape == ()
    np.testing.assert_array_equal(tf.function(schedule)(variable), eager)
    np.testing.assert_allclose(tf.function(schedule, jit_compile=True)(tf.constant(step)), eager, rtol=1e-6)


def test_custom_points():
  schedule = KTimesSchedule(batch_size=8, boundaries=(10, 20, 30), total=40, warmup_steps=0, decay_factor=.5)
  assert schedule.total_steps == 40 and schedule.points == (10, 20, 30, 40)
  np.testing.assert_allclose([schedule(step) for step in (0, 9, 10, 20, 30, 39)],
                             [.01, .01, .005, .0025, .00125, .00125])
  scaled = {batch: KTimesSchedule(batch_size=batch, boundaries=(40_000, 53_333), total=60_000, points_batch=16)
            for batch in (8, 16, 64)}
  assert {batch: one.points for batch, one in scaled.items()} == {
    8: (80_000, 106_666, 120_000), 16: (40_000, 53_333, 60_000), 64: (10_000, 13_333, 15_000)}
  small = KTimesSchedule(batch_size=4, boundaries=(30_000,), total=60_000, points_batch=16, unit=90, warmup_steps=0)
  assert small.points == (120, 240)
  constant = KTimesSchedule(boundaries=(), total=5, warmup_steps=0)
  np.testing.assert_allclose([constant(0), constant(4)], .02)
  ends = KTimesSchedule(boundaries=(2, 3), total=4, warmup_steps=2, warmup_factor=0, decay_factor=1, stop_k=1 / 90_000)
  assert [float(ends(step)) for step in range(4)] == pytest.approx([0, .01, .02, .02]) and ends.total_steps == 1


@pytest.mark.parametrize('batch_size', [8, 16])
def test_a_run_that_stops_early_has_the_rates_of_the_whole_schedule(batch_size):
  whole, stopped = (KTimesSchedule(k=9, batch_size=batch_size, stop_k=stop) for stop in (None, 6))
  assert stopped.total_steps == 540_000 * 16 // batch_size and stopped.points == whole.points
  np.testing.assert_array_equal(stopped(stopped.total_steps - 1), whole(0) * 3)  # after the warm-up, before a drop
  assert KTimesSchedule(k=9, batch_size=batch_size, stop_k=9).total_steps == whole.total_steps


@pytest.mark.parametrize('unit, steps', [(90_000, 500), (900, 300), (9, 3)])
def test_a_long_warm_up_is_limited_to_a_fraction_of_the_first_phase(unit, steps):
  schedule = KTimesSchedule(unit=unit, warmup_limit=0.5)
  np.testing.assert_allclose([schedule(0), schedule(steps)], [.02 / 3, .02], rtol=1e-6)
  assert schedule(steps - 1) < schedule(steps)
  assert KTimesSchedule.from_config(schedule.get_config())(1) == schedule(1)


@pytest.mark.parametrize('arguments, message', [
  ({'warmup_limit': 1.5}, 'warmup_limit = 1.5'), ({'warmup_limit': -0.1}, 'warmup_limit = -0.1'),
  ({'k': 2, 'stop_k': 3}, 'stop_k = 3 is outside'), ({'stop_k': 0}, 'stop_k = 0 is outside'),
  ({'unit': 90}, 'warmup_steps = 500 is longer than the first phase of the schedule, 60 iterations'),
  ({'boundaries': (5, 3), 'total': 9, 'warmup_steps': 0}, 'must increase'),
  ({'boundaries': (5, 9), 'total': 9, 'warmup_steps': 0}, 'stay below total = 9'),
  ({'boundaries': (5,)}, 'go together'),
  ({'total': 5}, 'go together'),
  ({'base_rate': -0.02}, 'base_rate = -0.02: use a number above 0'), ({'base_rate': float('inf')}, 'base_rate = inf'),
  ({'base_rate': float('nan')}, 'base_rate = nan'), ({'warmup_steps': -5}, 'warmup_steps = -5: use 0 or more'),
  ({'decay_factor': 10}, 'decay_factor = 10: use a fraction'), ({'warmup_factor': -1}, 'warmup_factor = -1: use'),
])
def test_inconsistent_schedules(arguments, message):
  with pytest.raises(UserError, match=message):
    KTimesSchedule(**arguments)


def test_config_round_trip():
  schedule = KTimesSchedule(k=3, batch_size=32, warmup_factor=.001)
  again = KTimesSchedule.from_config(schedule.get_config())
  assert again.points == schedule.points
  np.testing.assert_array_equal(again(7), schedule(7))


IMAGENET = 1_281_167


@pytest.mark.parametrize('batch_size, rate, steps, drops', [
  (256, 0.1, 450_410, (150_137, 300_274, 400_365)),  # the reference of Goyal et al.
  (8192, 3.2, 14_075, (4_692, 9_384, 12_511)),  # ImageNet in one hour
])
def test_imagenet_at_two_batch_sizes(batch_size, rate, steps, drops):
  schedule = EpochSchedule(IMAGENET, batch_size)
  assert schedule.total_steps == steps
  for number, drop in enumerate(drops):
    np.testing.assert_allclose(schedule(drop - 1), rate / 10 ** number, rtol=1e-5)
    np.testing.assert_allclose(schedule(drop), rate / 10 ** (number + 1), rtol=1e-5)
  np.testing.assert_allclose(schedule(steps), rate / 1000, rtol=1e-5)


def test_the_warm_up_is_linear_over_five_epochs():
  schedule = EpochSchedule(IMAGENET, 8192)
  end = round(5 * IMAGENET / 8192)
  rates = np.array([schedule(step) for step in range(end + 2)])
  np.testing.assert_allclose(rates[[0, end, end + 1]], [0.1, 3.2, 3.2], rtol=1e-5)
  np.testing.assert_allclose(np.diff(rates[:end + 1]), 3.1 / end, rtol=1e-3)
  np.testing.assert_allclose(EpochSchedule(IMAGENET, 8064)(782 + 30), 3.15, rtol=1e-4)  # Mahajan et al.'s batch


@pytest.mark.parametrize('batch_size', [32, 256])
def test_a_batch_that_is_not_scaled_up_needs_no_warm_up(batch_size):
  schedule = EpochSchedule(1000, batch_size)
  np.testing.assert_allclose([schedule(step) for step in (0, 3, 10)], 0.1 * batch_size / 256, rtol=1e-6)
  np.testing.assert_allclose(EpochSchedule(1000, batch_size, warmup_rate=1e-3)(0), 1e-3, rtol=1e-5)


def test_custom_epochs():
  schedule = EpochSchedule(100, 30, epochs=4, drops=(1.5, 3), decay_factor=0.5, base_rate=1.0, base_batch=30,
                           warmup_epochs=0)
  assert schedule.total_steps == 13  # 13.3
  np.testing.assert_allclose([schedule(step) for step in (0, 4, 5, 9, 10, 12)], [1, 1, 0.5, 0.5, 0.25, 0.25])
  assert EpochSchedule(3, 256, epochs=1, drops=(), warmup_epochs=0).total_steps == 1  # at least one step
  variable = tf.Variable(5, dtype=tf.int64)
  np.testing.assert_array_equal(tf.function(schedule)(variable), schedule(5))


@pytest.mark.parametrize('arguments, message', [
  ({'num_images': 0}, '0 images'), ({'batch_size': 0}, 'batch_size = 0'), ({'epochs': 80}, 'stay below epochs = 80'),
  ({'drops': (60, 30)}, 'must increase'), ({'drops': (0, 30)}, 'must increase'),
  ({'warmup_epochs': 31}, 'warmup_epochs = 31'), ({'warmup_epochs': -1}, 'warmup_epochs = -1'),
  ({'base_rate': 0}, 'base_rate = 0'), ({'base_batch': 0}, 'base_batch = 0'),
  ({'epochs': 0, 'drops': (), 'warmup_epochs': 0}, 'epochs = 0'),
  ({'decay_factor': -0.1}, '^EpochSchedule.decay_factor = -0.1: use a fraction, 0 to 1'),
])
def test_inconsistent_epochs(arguments, message):
  with pytest.raises(UserError, match=message) as error:
    EpochSchedule(**{'num_images': 1000} | arguments)
  assert '\n' not in str(error.value)


def test_config_round_trip_of_epochs():
  schedule = EpochSchedule(1000, 512, epochs=100, drops=(30, 60, 90))
  again = EpochSchedule.from_config(schedule.get_config())
  assert again.total_steps == schedule.total_steps and again.get_config() == schedule.get_config()
  np.testing.assert_array_equal(again(7), schedule(7))


def test_the_k_times_rule_does_not_depend_on_the_size_of_the_data_set():
  assert KTimesSchedule(k=2, num_images=10_000).points == KTimesSchedule(k=2).points


def test_the_instagram_recipe_halves_at_equal_intervals():
  """Batches of 8,064 images: 0.1 -> 0.1 / 256 * 8064 = 3.15, then halved every 3.6e9 / 21 images."""
  schedule = SteppedHalving()
  assert schedule.total_steps == 446_429
  warmup = round(5 * IMAGENET / 8064)
  np.testing.assert_allclose([schedule(0), schedule(warmup)], [0.1, 3.15], rtol=1e-5)
  np.testing.assert_allclose(schedule(warmup // 2), 0.1 + 3.05 * (warmup // 2) / warmup, rtol=1e-5)
  drops = [round(3.6e9 / 21 * phase / 8064) for phase in range(1, 21)]
  for phase, drop in enumerate(drops):
    np.testing.assert_allclose([schedule(drop - 1), schedule(drop)], [3.15 / 2 ** phase, 3.15 / 2 ** (phase + 1)],
                               rtol=1e-5)
  np.testing.assert_allclose(schedule(schedule.total_steps), 3.15 / 2 ** 20, rtol=1e-5)


def test_the_length_is_counted_in_images():
  for batch_size in (10, 40):
    schedule = SteppedHalving(4000, 3, batch_size, warmup_images=400, num_images=77)
    assert schedule.total_steps == 4000 // batch_size
    rate = 0.1 * batch_size / 256
    np.testing.assert_allclose([schedule(step // batch_size) for step in (400, 960, 1000, 2000, 3000, 3960)],
                               [rate, rate, rate / 2, rate / 4, rate / 8, rate / 8], rtol=1e-5)
    np.testing.assert_allclose(schedule(0), rate, rtol=1e-5)  # a batch that is not scaled up needs no warm-up
  assert SteppedHalving(5, 0, 8, warmup_images=0).total_steps == 1
  again = SteppedHalving.from_config(schedule.get_config())
  assert again.get_config() == schedule.get_config() and again.total_steps == schedule.total_steps


@pytest.mark.parametrize('arguments, message', [
  ({'images': 0}, 'images = 0'), ({'batch_size': 0}, 'batch_size = 0'), ({'base_rate': 0}, 'base_rate = 0'),
  ({'halvings': -1}, 'halvings = -1'), ({'warmup_images': -1}, 'warmup_images = -1'),
  ({'images': 80_640, 'warmup_images': 0}, 'halvings = 20 needs'), ({'images': 1e8}, 'is longer than the first phase')])
def test_inconsistent_halvings(arguments, message):
  with pytest.raises(UserError, match=message) as error:
    SteppedHalving(**arguments)
  assert '\n' not in str(error.value)
