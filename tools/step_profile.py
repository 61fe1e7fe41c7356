"""Where a training step's CPU time goes, by operation: python -m tools.step_profile --gin_file=gin_configs/demo.gin.

One thread, so that an operation's time is its CPU time and nothing waits; TensorFlow's own profiler, self times (time
within nested events belongs to those). Convolutions and matrix products are summed first: their time, divided by the
number of cores, is what the step cannot fall below with these kernels.
"""

from __future__ import annotations

import argparse
import collections
import glob
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping

PRODUCTS = ('Conv2D', 'MatMul', 'Einsum')  # in the names of oneDNN's and Eigen's dense kernels
STEPS = 12


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--gin_file', action='append', default=[], help='by default gin_configs/demo.gin')
  parser.add_argument('--gin_param', action='append', default=[])
  parser.add_argument('--rows', type=int, default=25, help='operations that are listed')
  options = parser.parse_args()

  os.environ |= {'TF_NUM_INTRAOP_THREADS': '1', 'TF_NUM_INTEROP_THREADS': '1'}  # before TensorFlow starts
  import tensorflow as tf

  from rethink_tf import experiment
  with tempfile.TemporaryDirectory() as folder:
    experiment.configure(options.gin_file or ['gin_configs/demo.gin'], options.gin_param)
    built = experiment.run('train', folder)
    batches = built.batches(0)
    step = tf.function(built.trainer.train_step, autograph=False).get_concrete_function(batches.element_spec)
    batch = next(iter(batches))
    seconds = [_seconds(lambda: step(batch)) for _ in range(5 + STEPS)][5:]
    tf.profiler.experimental.start(folder, tf.profiler.experimental.ProfilerOptions(host_tracer_level=2))
    for _ in range(STEPS):
      step(batch)
    tf.profiler.experimental.stop()
    times = self_times(glob.glob(os.path.join(folder, '**', '*.xplane.pb'), recursive=True)[0])
  print(report({name: (1e3 * total / STEPS, count / STEPS) for name, (total, count) in times.items()}, options.rows))
  print(f'{1e3 * statistics.median(seconds):.1f} ms a step on one thread, not profiled '
        f'({1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f}, {STEPS} steps)')


def _seconds(call: Callable[[], object]) -> float:
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def self_times(path: str) -> dict[str, tuple[float, int]]:
  """Return seconds and number of events of each kind of operation in a profile (xplane.pb) of the host."""
  from tensorflow.tsl.profiler.protobuf import xplane_pb2

  space = xplane_pb2.XSpace()
  with open(path, 'rb') as file:
    space.ParseFromString(file.read())
  totals: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0])
  for plane in space.planes:
    if plane.name.startswith('/host:CPU'):
      for line in plane.lines:
        events = [(event.offset_ps, event.duration_ps, plane.event_metadata[event.metadata_id].name)
                  for event in line.events]
        for name, picoseconds in nested(events):
          kind = totals[name.rsplit(':', 1)[-1]]
          kind[0] += picoseconds / 1e12
          kind[1] += 1
  return {name: (total, count) for name, (total, count) in totals.items()}


def nested(events: Iterable[tuple[int, int, str]]) -> list[tuple[str, int]]:
  """Return name and self time of events (start, duration, name) of one thread, of which some contain others."""
  found: list[list] = []
  open_events: list[tuple[int, list]] = []  # end of an event, and its entry in `found`
  for start, duration, name in sorted(events, key=lambda event: (event[0], -event[1])):
    while open_events and open_events[-1][0] <= start:
      open_events.pop()
    if open_events:
      open_events[-1][1][1] -= duration
    found.append([name, duration])
    open_events.append((start + duration, found[-1]))
  return [(name, duration) for name, duration in found]


def report(times: Mapping[str, tuple[float, float]], rows: int) -> str:
  """Return a markdown table of milliseconds and executions of a step by operation, dense products first."""
  executed = {name: value for name, value in times.items() if not name.startswith(('KernelAndDeviceFunc', 'Run'))}
  products = sum(value[0] for name, value in executed.items()
                 if any(kernel in name for kernel in PRODUCTS) and 'Sparse' not in name)
  total = sum(value[0] for value in executed.values())
  lines = ['| operation | ms | executions |', '|---|---|---|',
           f'| **convolutions and matrix products** | {products:.1f} | {100 * products / total:.0f} % of the time |',
           f'| **all** | {total:.1f} | |']
  largest = sorted(executed.items(), key=lambda item: -item[1][0])[:rows]
  return '\n'.join([*lines, *(f'| {name} | {ms:.2f} | {count:.0f} |' for name, (ms, count) in largest)])


if __name__ == '__main__':
  main()
