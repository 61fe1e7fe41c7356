"""The speed of runs: what their metrics say, and what is left beside steps and evaluations."""

import math

import pytest

from rethink_tf.study import speeds
from rethink_tf.study.speeds import Speed, Speeds
from rethink_tf.study.worker import Reply


def reply(seconds, shared=False, imports=0.0):
  return Reply(seconds, imports, 100, 1, 5.0, shared, 900)


def lines(*steps, start=1000.0, trace=30.0, evaluations=()):
  """Metrics of a run with 0.5 s a step and 4 s an evaluation, which the steps wait for."""
  found, now, seconds = [], start, 0.0
  for before, step in zip((0, *steps), steps, strict=False):
    spent = (step - before) * 0.5 + (trace if not found else 0.0)
    seconds += spent
    now += spent
    found.append({'kind': 'train', 'step': step, 'seconds': seconds, 'time': now})
    if step in evaluations:
      now += 4.0
      found.append({'kind': 'eval', 'step': step, 'eval_seconds': 4.0, 'time': now})
  return found


def test_neither_tracing_nor_evaluations_are_part_of_a_step():
  assert speeds.seconds_per_step(lines(1, 10, 20, evaluations=(10, 20))) == pytest.approx(0.5)
  assert speeds.seconds_per_evaluation(lines(1, 10, 20, evaluations=(10, 20))) == 4.0


def test_checkpoints_are_part_of_a_step_and_later_evaluations_are_not_taken_off():
  """A tenth of a second a step that is neither within it nor an evaluation, of which the second one comes after."""
  found = [{'kind': 'train', 'step': 1, 'seconds': 30.0, 'time': 1000.0},
           {'kind': 'eval', 'step': 5, 'eval_seconds': 4.0, 'time': 1006.4},
           {'kind': 'train', 'step': 11, 'seconds': 35.0, 'time': 1010.0},
           {'kind': 'eval', 'step': 11, 'eval_seconds': 4.0, 'time': 1014.0}]
  assert speeds.seconds_per_step(found) == pytest.approx(0.6)
  assert speeds.seconds_per_step([*found, {'kind': 'eval', 'step': 6}]) == pytest.approx(0.6)  # of an earlier version


def test_lines_without_times_are_left_out():
  """As of earlier versions."""
  found = [{'kind': 'train', 'step': 0, 'seconds': 7.0}, *lines(1, 10, 20), {'kind': 'eval', 'step': 10}]
  assert speeds.seconds_per_step(found) == pytest.approx(0.5)
  assert math.isnan(speeds.seconds_per_evaluation(found))
  assert speeds.seconds_per_evaluation([*found, {'kind': 'eval', 'step': 20, 'eval_seconds': 3.0}]) == 3


@pytest.mark.parametrize('found', [[], lines(1), lines(1, 3)])
def test_few_steps_say_nothing(found):
  assert math.isnan(speeds.seconds_per_step(found)) and math.isnan(speeds.seconds_per_evaluation(found))


def test_the_first_evaluation_includes_tracing():
  evaluations = [{'kind': 'eval', 'step': step, 'eval_seconds': seconds} for step, seconds in ((1, 20.0), (2, 4.0))]
  assert speeds.seconds_per_evaluation(evaluations) == 4.0
  assert speeds.seconds_per_evaluation(evaluations[:1]) == 20.0


def test_the_rest_of_a_run_is_its_start():
  known = Speeds()
  known.note_run('a', lines(1, 10, 20, evaluations=(20,)), reply(60.0, imports=5.0), 20)
  assert known.of('a').first == pytest.approx(60 + 5 - 20 * 0.5 - 4) and math.isnan(known.of('a').again)
  assert known.of('a').start(shared=True) == known.of('a').first  # until a run has shared the graph
  known.note_run('a', lines(1, 10, 20, trace=0.0, evaluations=(20,)), reply(17.0, shared=True), 20)
  assert known.of('a').start(shared=True) == pytest.approx(3) and known.of('a').seconds(100, 2) == pytest.approx(58)


def test_a_short_run_keeps_the_speed_and_sets_the_start():
  known = Speeds()
  known.note_first('a', reply(50.0), 6)
  assert known.of('a') is None
  known.note_run('a', lines(7, 17, 27, evaluations=(27,)), reply(20.0, shared=True), 21)
  known.note_first('a', reply(50.0, imports=8.0), 6)
  assert known.of('a').first == pytest.approx(58 - 3 - 4) and known.of('a').step == pytest.approx(0.5)


def test_a_kind_that_was_not_measured_is_the_mean_of_the_others():
  known = Speeds()
  assert known.of('b') is None
  for kind, trace in (('a', 0.0), ('c', 0.0), ('pre-training', 0.0)):
    known.note_run(kind, lines(1, 20, trace=trace), reply(20.0 if kind == 'a' else 30.0), 20)
  known.forget('pre-training')
  assert known.of('b').first == pytest.approx(15) and math.isnan(known.of('b').again)
  assert Speed(math.nan, math.nan, 1, 1).start(False) == 0


def test_a_run_shorter_than_a_calibration_counts_as_a_whole():
  known = Speeds()
  known.note_whole('a', reply(30.0, imports=5.0))
  assert known.of('a').start(False) == 35 and known.of('a').start(True) == 30 and known.of('a').seconds(4, 1) == 0


def test_evaluations_of_a_share_of_the_images_are_scaled():
  known = Speeds()
  known.note_share('a', 0.5)
  assert known.of('a') is None
  known.note_run('a', lines(1, 20, evaluations=(20,)), reply(60.0), 20)
  first = known.of('a').first
  known.note_share('a', 0.5)
  assert known.of('a').evaluation == 8 and known.of('a').first == first
