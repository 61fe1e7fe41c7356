"""Timing of alternating functions, memory, and peak rates."""

import os
import pathlib
import subprocess
import sys
import time

import pytest
import tensorflow as tf

from rethink_tf.bench import measure

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_functions_are_called_once_per_round_in_a_rotating_order():
  calls = []
  timings = measure.in_turns({'a': lambda: calls.append('a'), 'b': lambda: calls.append('b')}, rounds=4, warm_up=2)
  assert calls.count('a') == calls.count('b') == 6
  assert {tuple(calls[i:i + 2]) for i in range(0, 12, 2)} == {('a', 'b'), ('b', 'a')}  # none is always first
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


MEMORY = '''
import tensorflow as tf
from rethink_tf.bench import measure

call = lambda megabytes: tf.reduce_sum(tf.ones([megabytes, 2**18]) + 1.0)
held = tf.ones([30, 2**18])
print(*(measure.memory_growth(lambda: call(megabytes)) for megabytes in (20, 60)),
      measure.memory_growth(lambda: tf.reduce_sum(held)))
'''


@pytest.mark.slow
def test_memory_growth_is_the_peak_that_a_call_adds():
  """In a process with oneDNN, whose allocator keeps statistics."""
  ran = subprocess.run([sys.executable, '-c', MEMORY], cwd=ROOT, capture_output=True, text=True,
                       env={**os.environ, 'TF_ENABLE_ONEDNN_OPTS': '1', 'PYTHONPATH': str(ROOT)})
  assert ran.returncode == 0, ran.stderr
  if 'None' in ran.stdout:
    pytest.skip('the allocator of this build keeps no statistics')
  small, large, none = map(float, ran.stdout.split())
  assert large - small == pytest.approx(80, rel=0.2) and none < 1  # a tensor and its sum, in chunks of the allocator


def test_memory_growth_is_none_without_statistics(monkeypatch):
  def refuse(device):
    raise ValueError(f'no statistics of {device}')

  monkeypatch.setattr(measure.gc, 'collect', lambda: 0)  # of all tests before: seconds
  monkeypatch.setattr(tf.config.experimental, 'reset_memory_stats', refuse)
  assert measure.memory_growth(lambda: None) is None


def test_peak_rate_and_memory_are_plausible(monkeypatch):
  monkeypatch.setattr(measure, 'PEAK_SIDE', 256)
  assert 0.1 < measure.matmul_peak(rounds=1) < 1e5
  assert measure.peak_memory() > 50
