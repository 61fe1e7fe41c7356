"""Timing in fair conditions: everything compared runs in turns in one process, and medians are taken.

Machines differ and share their cores: what travels is a ratio of two medians taken in turns, or a rate against the
matrix product that the same process measured.
"""

from __future__ import annotations

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

PEAK_SIDE = 4096  # of the matrix product whose rate counts as the machine's peak
_PROGRESS_SECONDS = 5.0


class Timing(NamedTuple):
  """Seconds of one call."""

  median: float
  fastest: float
  slowest: float
  rounds: int


class Row(NamedTuple):
  """One line of a benchmark's table."""

  group: str  # what is compared with each other
  name: str
  timing: Timing
  images: int = 0  # in one call, where images are what is counted
  gflop: float = 0.0  # of one call: a multiply-add is two
  note: str = ''
  parameters: int = 0  # that train
  memory: float = 0.0  # MB in use at the peak of a call, where it can be told


def in_turns(functions: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1) -> dict[str, Timing]:
  """Calls each function once a round, in an order that turns, and times it to its result on the host.

  functions: return tensors, arrays or None; tensors are waited for. The warm-up calls (tracing, compilation) are not
  counted.
  """
  names = list(functions)
  seconds: dict[str, list[float]] = {name: [] for name in names}
  told = time.monotonic()
  for turn in range(-warm_up, rounds):
    gc.collect(1)  # here, so that Python's rubbish is collected on nobody's time
    for name in names[turn % len(names):] + names[:turn % len(names)]:
      began = time.perf_counter()
      wait(functions[name]())
      if turn >= 0:
        seconds[name].append(time.perf_counter() - began)
    if time.monotonic() - told > _PROGRESS_SECONDS:
      print(f'  round {turn + 1 + warm_up} of {rounds + warm_up}', file=sys.stderr, flush=True)
      told = time.monotonic()
  return {name: Timing(statistics.median(s), min(s), max(s), rounds) for name, s in seconds.items()}


def matmul_peak(dtype: str = 'float32', rounds: int = 5) -> float:
  """GFLOP/s of this machine's matrix product of two 4096² matrices, the fastest of `rounds`."""
  a = tf.cast(tf.random.stateless_normal([PEAK_SIDE, PEAK_SIDE], [0, 1]), dtype)
  product = tf.function(lambda: tf.matmul(a, a))
  fastest = in_turns({'matmul': product}, rounds)['matmul'].fastest
  return 2 * PEAK_SIDE**3 / fastest / 1e9


def peak_memory() -> float:
  """Largest resident memory of this process so far, in MB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != 'darwin' else 1024**2)


def current_memory() -> float:
  """Resident memory of this process now, in MB."""
  with open('/proc/self/statm') as file:
    return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def memory_growth(function: Callable[[], Any]) -> float | None:
  """MB that TensorFlow's allocator hands out during a call, at its peak, beyond what is in use before.

  Of the first GPU, or the CPU; None where its allocator keeps no count, as that of builds without oneDNN.
  """
  device = 'GPU:0' if tf.config.list_physical_devices('GPU') else 'CPU:0'
  gc.collect()
  try:
    tf.config.experimental.reset_memory_stats(device)
    before = tf.config.experimental.get_memory_info(device)['current']
  except ValueError:
    return None
  wait(function())
  return (tf.config.experimental.get_memory_info(device)['peak'] - before) / 2**20


def wait(result: Any) -> None:
  """Nothing is timed before its numbers are there."""
  for tensor in tf.nest.flatten(result):
    if isinstance(tensor, tf.Tensor) and tensor.dtype.is_numpy_compatible:
      tensor.numpy() if tensor.shape.rank == 0 else np.asarray(tf.reshape(tensor, [-1])[:1])
