"""Measures a part or the whole: python -m rethink_tf.bench --task=train --gin_file=gin_configs/bench.gin."""

from __future__ import annotations

import json
import sys
import tempfile

from absl import flags

from rethink_tf import command_line
from rethink_tf.errors import UserError

KERNELS = {'group_norm': 'group_norm', 'roi_align': 'roi_alignment', 'nms': 'suppression', 'paste': 'pasting'}
TASKS = ('train', 'predict', 'systems', 'input', 'padding', 'evaluate', *KERNELS)

FLAGS = flags.FLAGS


def main() -> None:
  """Runs one task and prints its table, or JSON."""
  from rethink_tf import console
  from rethink_tf.bench import measure

  console.hide_library_info()
  if FLAGS.rounds < 1 or FLAGS.images < 1:
    raise UserError('--rounds and --images must be 1 or more')
  split: dict[str, float] = {}
  if FLAGS.task in KERNELS:
    from rethink_tf.bench import kernels
    console.compile_once()
    rows = getattr(kernels, KERNELS[FLAGS.task])(FLAGS.rounds)
  elif FLAGS.task == 'systems':
    rows = _of_systems()
  elif FLAGS.task == 'evaluate':
    from rethink_tf.bench import pipelines
    rows = pipelines.scoring(FLAGS.rounds, FLAGS.images)
  else:
    rows, split = _of_configuration()
  memory = measure.peak_memory()  # before the matrices of the machine's peak
  peaks = {dtype: measure.matmul_peak(dtype, min(FLAGS.rounds, 5)) for dtype in ('float32', 'bfloat16')}
  if FLAGS.json:
    print(json.dumps({'task': FLAGS.task, 'rows': [_plain(row) for row in rows], 'peak_gflops': peaks,
                      'peak_memory_mb': memory, 'share_by_part': split}, indent=1))
  else:
    _print(rows, split, peaks, memory)


def _of_configuration():
  """The tasks that need a configuration: rows, and for `train` the share of each part."""
  from rethink_tf import experiment
  from rethink_tf.bench import detectors, pipelines

  split: dict[str, float] = {}

  def measured(parts):
    if FLAGS.task == 'predict':
      return detectors.predict(parts, FLAGS.rounds)
    if FLAGS.task == 'input':
      return pipelines.feeding(parts, FLAGS.rounds)
    if FLAGS.task == 'padding':
      return pipelines.padding(parts, FLAGS.rounds)
    rows = detectors.train(parts, FLAGS.rounds, FLAGS.peers)
    split.update(detectors.by_part(parts))
    return rows

  with tempfile.TemporaryDirectory() as folder:
    files = FLAGS.gin_file or ['gin_configs/bench.gin']
    params = []
    if FLAGS.task in ('input', 'padding') and not FLAGS.gin_file:  # nothing is decoded from drawn shapes: write files
      print('writing drawn photographs in COCO layout', file=sys.stderr)
      files, params = ['gin_configs/scratch_6x.gin'], [f'DATA_DIR = {pipelines.photographs(folder)!r}']
    command_line.configure(files, params)
    return experiment.run(measured, folder), split


def _of_systems():
  """The systems of models/, each made of the configuration and its own gin file."""
  from rethink_tf import experiment
  from rethink_tf.bench import systems

  def make(files):
    command_line.configure([*(FLAGS.gin_file or ['gin_configs/bench.gin']), *files])
    return experiment.run(lambda parts: parts, folder)

  with tempfile.TemporaryDirectory() as folder:
    return systems.compare(systems.build(make), FLAGS.rounds)


def _plain(row):
  return {**row._asdict(), 'timing': row.timing._asdict()}


def _print(rows, split, peaks, memory):
  width = max(len(row.name) for row in rows)
  first = {}
  for row in rows:
    first.setdefault(row.group, row.timing.median)
  for group in dict.fromkeys(row.group for row in rows):
    members = [row for row in rows if row.group == group]
    print(f'{group}: {members[0].note}' if members[0].note else group)
    for row in members:
      median, fastest, slowest, rounds = row.timing
      parts = [f'  {row.name:{width}} {_seconds(median)} ({_seconds(fastest)} to {_seconds(slowest)}, {rounds} rounds)']
      if len(members) > 1:
        parts.append(f'{median / first[group]:.2f} x {members[0].name}')
      if row.parameters:
        parts.append(f'{row.parameters / 1e6:.1f} M parameters, {row.parameters / members[0].parameters:.2f} x')
      if row.memory:
        parts.append(f'{row.memory / 1024:.2f} GB, {row.memory / members[0].memory:.2f} x')
      if row.images:
        parts.append(f'{row.images / median:.3g} images/s')
      if row.gflop:
        rate = row.gflop / median
        share = 100 * rate / peaks['float32']
        parts.append(f'{row.gflop:.0f} GFLOP, {rate:.0f} GFLOP/s, {share:.0f} % of the float32 peak')
      if row.note and row.note != members[0].note:
        parts.append(row.note)
      print('  '.join(parts))
  for part, share in split.items():
    print(f'  {100 * share:5.1f} %  {part}')
  print(f'matrix product of this machine: {peaks["float32"]:.0f} GFLOP/s float32, {peaks["bfloat16"]:.0f} bfloat16; '
        f'peak memory {memory:.0f} MB')


def _seconds(value):
  return f'{value:.3g} s' if value >= 1 else f'{1000 * value:.3g} ms'


if __name__ == '__main__':
  command_line.define_flags()
  _here = {'module_name': sys.argv[0]}
  flags.DEFINE_enum('task', None, TASKS, 'what to measure', required=True, **_here)
  flags.DEFINE_integer('rounds', 5, 'how often each thing is measured', **_here)
  flags.DEFINE_integer('images', 1000, 'evaluate: pictures that are scored, with 100 detections each', **_here)
  flags.DEFINE_bool('peers', False, "train: beside tf-models-official's Mask R-CNN, in the same process", **_here)
  flags.DEFINE_bool('json', False, 'print JSON', **_here)
  command_line.start(main)
