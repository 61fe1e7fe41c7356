"""Clusters that XLA compiles in a training: python -m tools.xla_compilations --data_dir=coco --steps=300.

Runs steps of the configuration (by default gin_configs/scratch_1x.gin: 800/1333, all padded shapes) with a network of
a quarter of the width and one block a stage, which has the same number of shapes, and counts the compilations by
TensorFlow's own log. One image a step: an epoch is as many steps as there are images.
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

NARROW = ('ResNet.depth = 14', 'ResNet.stem_width = 16', 'ResNet.res2_width = 64', 'ResNet.width_per_group = 16',
          'FPN.channels = 64', 'RPNHead.channels = 64', 'BoxHead.channels = 64', 'BoxHead.fc_width = 64',
          'MaskHead.channels = 64', 'group_norm.groups = 8', 'BATCH_SIZE = 1', 'run.images_per_device = 1',
          "strategy.kind = 'one_device'")
_LINE = re.compile(rb'device_compiler\.h:\d+\] Compilation of XLA executable time: .*?\((\d+) us\)')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--gin_file', action='append', default=[], help='by default gin_configs/scratch_1x.gin')
  parser.add_argument('--gin_param', action='append', default=[])
  parser.add_argument('--data_dir', required=True, help='a COCO folder')
  parser.add_argument('--steps', type=int, default=300)
  options = parser.parse_args()

  os.environ |= {'TF_CPP_VMODULE': 'device_compiler=1', 'TF_CPP_MIN_LOG_LEVEL': '0'}  # before TensorFlow starts
  with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
    errors = os.dup(2)
    os.dup2(log.fileno(), 2)  # what TensorFlow's libraries log
    try:
      images, rows = _run(options, folder, lambda: compilations(_content(log.fileno())))
    except BaseException:
      os.write(errors, _content(log.fileno())[-4000:])
      raise
    finally:
      os.dup2(errors, 2)
  print(report(rows, images))


def _content(descriptor: int) -> bytes:
  return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def compilations(log: bytes) -> list[float]:
  """Return the seconds of each compilation in TensorFlow's log."""
  return [int(microseconds) / 1e6 for microseconds in _LINE.findall(log)]


def _run(options: argparse.Namespace, folder: str,
         found: Callable[[], list[float]]) -> tuple[int, list[tuple[str, int, float]]]:
  """Return the number of images, and of each step the padded shape, compilations so far and their seconds so far."""
  import tensorflow as tf

  from rethink_tf import experiment
  experiment.configure(options.gin_file or ['gin_configs/scratch_1x.gin'],
                       [*NARROW, *options.gin_param], data_dir=options.data_dir)
  built = experiment.run('train', folder)
  batches = built.batches(0)
  step = tf.function(built.trainer.train_step, autograph=False).get_concrete_function(batches.element_spec)
  rows, start = [], time.perf_counter()
  for number, batch in enumerate(batches.take(options.steps), 1):
    step(batch)
    seconds = found()
    rows.append(('{} x {}'.format(*batch.images.shape[1:3]), len(seconds), sum(seconds)))
    if number % 10 == 0:
      print(f'step {number}: {len(seconds)} compilations, {sum(seconds):.0f} s of them, '
            f'{time.perf_counter() - start:.0f} s', file=sys.stdout, flush=True)
  return len(built.train_input.source.image_ids), rows


def report(rows: Sequence[tuple[str, int, float]], images: int) -> str:
  """Return a table of compilations by padded shape in the first epoch, and of those in later epochs."""
  counts, steps, before = collections.Counter(), collections.Counter(), 0
  for number, (shape, total, _) in enumerate(rows):
    epoch = number // images
    place = shape if not epoch else f'epoch {epoch + 1}'
    counts[place] += total - before
    steps[place] += 1
    before = total
  lines = ['| in epoch 1, padded shape | steps | compilations |', '|---|---:|---:|']
  lines += [f'| {place} | {steps[place]} | {counts[place]} |' for place in steps]
  return '\n'.join([*lines, f'| **all** | {len(rows)} | {before}, {rows[-1][2]:.0f} s |'])


if __name__ == '__main__':
  main()
