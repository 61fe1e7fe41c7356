"""Runs the checks in one process and prints a JSON line before and after each: python -m rethink_tf.doctor.worker.

If a check ends the process, the doctor starts it again without the checks that are done.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from rethink_tf.distributed import devices
from rethink_tf.doctor import environment, kernels, steps
from rethink_tf.doctor.rows import FAILED, Row, as_json
from rethink_tf.errors import in_one_line, shortened

_PRECISIONS = ('float32', 'mixed_bfloat16', 'mixed_float16')
Check = Callable[[], Iterator[Row]]


class Options(NamedTuple):
  """What to check: the flags of the doctor."""

  quick: bool = False
  data_dir: str | None = None
  model_dir: str | None = None


def plan(options: Options) -> dict[str, Check]:
  """Return the checks by name, in order. Each is independent of the others."""
  checks: dict[str, Check] = {'devices': environment.check_devices}
  usable = devices.gpus() if devices.too_new(devices.gpus()) is None else []
  names = [steps.CPU, *(f'/GPU:{gpu.index}' for gpu in usable)]
  for device in names:
    checks |= {f'{name} on {device}': functools.partial(check, device) for name, check in kernels.KERNELS.items()}
  pairs = [names[1:3]] if len(names) > 2 else []
  for pair in (['/CPU:0', '/CPU:1'], *pairs):
    title = f'2 {pair[0][1:4]}s'
    checks[f'SyncBN on {title}'] = functools.partial(_on_pair, kernels.sync_batch_norm, tuple(pair), title)
    if not options.quick:
      checks[f'replicas on {title}'] = functools.partial(_on_pair, steps.replicas, tuple(pair), title)
  if not options.quick:
    checks['both forms'] = steps.other_form
    for device in names:
      checks |= {f'{policy} on {device}': functools.partial(steps.step, device, policy) for policy in _PRECISIONS}
      if device != steps.CPU:
        checks[f'TF32 on {device}'] = functools.partial(steps.fast_math_step, device)
    checks['input'] = environment.input_speed
  if options.data_dir:
    checks['data folder'] = functools.partial(environment.check_data, options.data_dir)
  if options.model_dir:
    checks['run folder'] = functools.partial(environment.check_run_folder, options.model_dir)
  return checks


def _on_pair(check: Callable[[tf.distribute.Strategy, str], Iterator[Row]], pair: Sequence[str],
             title: str) -> Iterator[Row]:
  yield from check(_mirrored(tuple(pair)), title)


@functools.cache
def _mirrored(pair: tuple[str, ...]) -> tf.distribute.Strategy:
  return tf.distribute.MirroredStrategy(list(pair))  # a second one of the same devices would reuse its keys


def run(name: str, check: Check) -> list[Row]:
  """Run a check and return its rows; an exception becomes a row."""
  start, rows = time.perf_counter(), []
  try:
    for row in check():
      rows.append(row)
  except Exception as error:  # whatever it is, the other checks say more
    text = f'{type(error).__name__}: {in_one_line(error)}'
    rows.append(Row(name, '', FAILED, note=shortened(text, 500)))
  seconds = time.perf_counter() - start
  return [row._replace(seconds=seconds) if i == 0 else row for i, row in enumerate(rows)]


def main(arguments: Mapping[str, Any]) -> None:
  """Run the checks that are not done; one JSON object per line on the original standard output."""
  done, facts = set(arguments['done']), arguments['facts']
  output = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what libraries print is not a result

  def put(**fields: Any) -> None:
    print(json.dumps(fields), file=output, flush=True)

  cpu = tf.config.list_physical_devices('CPU')[0]
  tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
  with contextlib.suppress(AttributeError):
    tf.config.experimental.enable_tensor_float_32_execution(False)  # kernels are compared with float64
  checks = plan(Options(**arguments['options']))
  put(plan=list(checks), facts=environment.facts() if facts else {})
  for name, check in checks.items():
    if name not in done:
      put(begin=name)
      put(end=name, rows=[as_json(row) for row in run(name, check)])
  output.flush()
  os._exit(0)  # collective threads of two strategies may not end


if __name__ == '__main__':
  main(json.loads(sys.argv[1]))
