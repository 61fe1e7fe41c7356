"""Timing in turns."""

import time

import tensorflow as tf

from rethink_tf.benchmarks import measure


def test_everything_is_called_once_a_round_and_in_turns():
  calls = []
  timings = measure.in_turns({'a': lambda: calls.append('a'), 'b': lambda: calls.append('b')}, rounds=4, warm_up=2)
  assert calls.count('a') == calls.count('b') == 6
  assert {tuple(calls[i:i + 2]) for i in range(0, 12, 2)} == {('a', 'b'), ('b', 'a')}  # nobody is always first
  assert all(t.rounds == 4 and t.fastest <= t.median <= t.slowest for t in timings.values())


def test_the_warm_up_is_not_counted(monkeypatch):
  clock, waits = [0.0], iter([30.0, 2.0, 1.0, 6.0])
  monkeypatch.setattr(measure.time, 'perf_counter', lambda: clock[0])

  def call():
    clock[0] += next(waits)

  assert measure.in_turns({'slow start': call}, rounds=3)['slow start'] == (2.0, 1.0, 6.0, 3)


def test_tensors_are_waited_for():
  fetched = []

  def compute(x):
    time.sleep(0.05)
    fetched.append(True)
    return x

  step = tf.function(lambda: tf.numpy_function(compute, [tf.ones([3])], tf.float32))
  timing = measure.in_turns({'step': step}, rounds=1, warm_up=0)['step']
  assert fetched and timing.fastest >= 0.05


def test_peaks_are_plausible(monkeypatch):
  monkeypatch.setattr(measure, 'PEAK_SIDE', 256)
  assert 0.1 < measure.matmul_peak(rounds=1) < 1e5
  assert measure.peak_memory() > 50
