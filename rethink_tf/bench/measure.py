"""Timing: functions that are compared alternate in one process, and medians are taken.

Machines differ and share their cores. Ratios of medians from one process are comparable between machines, and so are
rates relative to the matrix product measured in the same process.
"""

from __future__ import annotations

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

PEAK_SIDE = 4096  # of the matrix product whose rate is the machine's peak
_PROGRESS_SECONDS = 5.0


class Timing(NamedTuple):
  """Seconds of one call."""

  median: float
  fastest: float
  slowest: float
  rounds: int


class Row(NamedTuple):
  """One line of a benchmark's table."""

  group: str  # rows that are compared with each other
  name: str
  timing: Timing
  images: int = 0  # per call, 0 if images are not counted
  gflop: float = 0.0  # per call: a multiply-add is two
  note: str = ''
  parameters: int = 0  # trainable
  memory: float = 0.0  # MB in use at the peak of a call, 0 if unknown


def in_turns(functions: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1) -> dict[str, Timing]:
  """Call each function once per round, in a rotating order, and time it until its result is on the host.

  functions: return tensors, arrays or None; tensors are waited for. warm_up: rounds that are not counted (tracing,
  compilation).
  """
  names = list(functions)
  seconds: dict[str, list[float]] = {name: [] for name in names}
  reported = time.monotonic()
  for turn in range(-warm_up, rounds):
    gc.collect(1)  # here, so that no measured call collects garbage
    for name in names[turn % len(names):] + names[:turn % len(names)]:
      start = time.perf_counter()
      wait(functions[name]())
      if turn >= 0:
        seconds[name].append(time.perf_counter() - start)
    if time.monotonic() - reported > _PROGRESS_SECONDS:
      print(f'  round {turn + 1 + warm_up} of {rounds + warm_up}', file=sys.stderr, flush=True)
      reported = time.monotonic()
  return {name: Timing(statistics.median(s), min(s), max(s), rounds) for name, s in seconds.items()}


def matmul_peak(dtype: str = 'float32', rounds: int = 5) -> float:
  """Return GFLOP/s of the matrix product of two 4096² matrices on this machine, the fastest of `rounds`."""
  a = tf.cast(tf.random.stateless_normal([PEAK_SIDE, PEAK_SIDE], [0, 1]), dtype)
  product = tf.function(lambda: tf.matmul(a, a))
  fastest = in_turns({'matmul': product}, rounds)['matmul'].fastest
  return 2 * PEAK_SIDE**3 / fastest / 1e9


def peak_memory() -> float:
  """Return the peak resident memory of this process, in MB; NaN on Windows."""
  try:
    import resource
  except ImportError:
    return math.nan
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != 'darwin' else 1024**2)


def memory_growth(function: Callable[[], Any]) -> float | None:
  """Return MB that a call adds at its peak to the memory in use by TensorFlow's allocator.

  Of the first GPU, or the CPU; None if its allocator keeps no statistics, as in builds without oneDNN.
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
  """Wait until the tensors in `result` are computed."""
  for tensor in tf.nest.flatten(result):
    if isinstance(tensor, tf.Tensor) and tensor.dtype.is_numpy_compatible:
      tensor.numpy() if tensor.shape.rank == 0 else np.asarray(tf.reshape(tensor, [-1])[:1])
