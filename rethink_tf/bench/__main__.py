"""Benchmark kernels, steps or the input: python -m rethink_tf.bench --task=train --gin_file=gin_configs/bench.gin."""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from rethink_tf import command_line
from rethink_tf.errors import UserError
from rethink_tf.process import entry

if TYPE_CHECKING:  # imports TensorFlow, which takes seconds: not needed for --help and misspelt flags
  from rethink_tf.bench.measure import Row
  from rethink_tf.structures import Experiment

KERNELS = {'group_norm': 'group_norm', 'roi_align': 'roi_alignment', 'nms': 'suppression', 'paste': 'pasting'}
_DEFAULT = 'gin_configs/bench.gin'
_CONFIGURED = ('train', 'predict', 'systems', 'recompute', 'input', 'padding')
TASKS = (*_CONFIGURED, 'evaluate', *KERNELS)
# Flags that only some tasks read; those of command_line that name a run are read by none.
_READ_BY = {'peers': ('train', 'predict'), 'images': ('evaluate',), 'row': ('input',), 'model_dir': (),
            'allow_changes': (), **dict.fromkeys(('gin_file', 'gin_param', 'data_dir', 'weights', 'tpu'), _CONFIGURED)}

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Define the flags of the command line."""
  command_line.define_flags()
  here = {'module_name': sys.argv[0]}
  flags.DEFINE_enum('task', None, TASKS, 'what to measure', required=True, **here)
  flags.DEFINE_integer('rounds', 5, 'number of measurements', **here)
  flags.DEFINE_integer('images', 1000, 'evaluate: number of images, with 100 detections each', **here)
  flags.DEFINE_multi_string('row', [], 'input: name of a row to measure without the others; give several', **here)
  flags.DEFINE_bool('peers', False, "train, predict: beside tf-models-official's Mask R-CNN, in this process", **here)
  flags.DEFINE_bool('json', False, 'print JSON', **here)


def main() -> None:
  """Run one task and print its table, or JSON."""
  from rethink_tf import console
  from rethink_tf.bench import measure

  console.hide_library_info()
  if FLAGS.rounds < 1 or FLAGS.images < 1:
    raise UserError('--rounds and --images must be 1 or more')
  _check_flags()
  shares: dict[str, float] = {}
  if FLAGS.task in ('evaluate', *KERNELS):  # those without a configuration, whose experiment does it
    from rethink_tf.distributed import devices
    devices.check()
    devices.report()
  if FLAGS.task in KERNELS:
    from rethink_tf.bench import kernels
    console.compile_once()
    rows = getattr(kernels, KERNELS[FLAGS.task])(FLAGS.rounds)
  elif FLAGS.task in ('systems', 'recompute'):
    rows = _measure_variants(FLAGS.task, FLAGS.gin_file, FLAGS.rounds)
  elif FLAGS.task == 'evaluate':
    from rethink_tf.bench import pipelines
    rows = pipelines.scoring(FLAGS.rounds, FLAGS.images)
  else:
    rows, shares = _measure_configuration(FLAGS.task, FLAGS.gin_file, FLAGS.rounds, FLAGS.peers)
  memory = measure.peak_memory()  # before the matrices of matmul_peak
  peaks = {dtype: measure.matmul_peak(dtype, min(FLAGS.rounds, 5)) for dtype in ('float32', 'bfloat16')}
  if FLAGS.json:
    print(json.dumps({'task': FLAGS.task, 'rows': [_as_json(row) for row in rows], 'peak_gflops': peaks,
                      'peak_memory_mb': memory, 'share_by_component': shares}, indent=1))
  else:
    _print(rows, shares, peaks, memory)


def _check_flags() -> None:
  """Refuse flags without effect: the numbers would be taken for those of another configuration."""
  for name, tasks in _READ_BY.items():
    if FLAGS[name].present and FLAGS.task not in tasks:
      of = f'only --task={", ".join(tasks)} has it' if tasks else 'no run is read or written'
      raise UserError(f'--{name} has no effect on --task={FLAGS.task}, leave it out: {of}')


def _measure_configuration(task: str, files: Sequence[str], rounds: int, with_peers: bool
                           ) -> tuple[list[Row], dict[str, float]]:
  """Run a task that needs a configuration; return its rows and, for `train`, the share of each component."""
  from rethink_tf.bench import detectors, pipelines

  with tempfile.TemporaryDirectory() as folder:
    params = []
    if task in ('input', 'padding') and not files:  # synthetic images are not decoded: write image files
      print('writing synthetic images in COCO layout', file=sys.stderr)
      files, params = ['gin_configs/scratch_6x.gin'], [f'DATA_DIR = {pipelines.write_images(folder)!r}']
    if task == 'predict' and with_peers:
      return detectors.predict_with_peers(functools.partial(_build, files, folder), rounds), {}
    built = _build(files, folder, params)
    if task == 'predict':
      return detectors.predict(built, rounds), {}
    if task == 'input':
      return pipelines.input_speed(built, rounds, chosen=FLAGS.row), {}
    if task == 'padding':
      return pipelines.padding(built, rounds), {}
    return detectors.train(built, rounds, with_peers), detectors.shares(built)


def _measure_variants(task: str, files: Sequence[str], rounds: int) -> list[Row]:
  """Measure variants of the detector, each built from the configuration and further gin files."""
  from rethink_tf.bench import systems

  variants = systems.SYSTEMS if task == 'systems' else systems.RECOMPUTATION
  with tempfile.TemporaryDirectory() as folder:
    built = systems.build(lambda further: _build([*(files or [_DEFAULT]), *further], folder), variants)
    return systems.compare(built, rounds, predict=task == 'systems')


def _build(files: Sequence[str], folder: str, params: Sequence[str] = ()) -> Experiment:
  from rethink_tf import experiment

  command_line.configure(files or [_DEFAULT], params)
  built = experiment.run('evaluate', folder)
  if not hasattr(built.trainer.detector, 'score_boxes'):
    raise UserError(f'{", ".join(files)}: is for a classifier: give the configuration of a detector')
  return built


def _as_json(row: Row) -> dict[str, Any]:
  return {**row._asdict(), 'timing': row.timing._asdict()}


def _print(rows: Sequence[Row], shares: Mapping[str, float], peaks: Mapping[str, float], memory: float) -> None:
  width = max(len(row.name) for row in rows)
  for group in dict.fromkeys(row.group for row in rows):
    members = [row for row in rows if row.group == group]
    common = members[0].note if all(row.note in ('', members[0].note) for row in members) else ''
    print(f'{group}: {common}' if common else group)
    for row in members:
      columns = _columns(row, members[0], len(members) > 1, width, peaks['float32'])
      print('  '.join([*columns, row.note] if row.note and not common else columns))
  for component, share in shares.items():
    print(f'  {100 * share:5.1f} %  {component}')
  print(f'matrix product of this machine: {peaks["float32"]:.0f} GFLOP/s float32, {peaks["bfloat16"]:.0f} bfloat16; '
        f'peak memory {memory:.0f} MB')


def _columns(row: Row, first: Row, compared: bool, width: int, peak: float) -> list[str]:
  """Return the columns of a row. first: the row of its group that it is compared with. peak: float32 GFLOP/s."""
  median, fastest, slowest, rounds = row.timing
  columns = [f'  {row.name:{width}} {_seconds(median)} ({_seconds(fastest)} to {_seconds(slowest)}, {rounds} rounds)']
  if compared:
    columns.append(f'{median / first.timing.median:.2f} x {first.name}')
  if row.parameters:
    columns.append(f'{row.parameters / 1e6:.1f} M parameters, {row.parameters / first.parameters:.2f} x')
  if row.memory:
    columns.append(f'{row.memory / 1024:.2f} GB, {row.memory / first.memory:.2f} x')
  if row.images:
    columns.append(f'{row.images / median:.3g} images/s')
  if row.gflop:
    rate = row.gflop / median
    columns.append(f'{row.gflop:.0f} GFLOP, {rate:.0f} GFLOP/s, {100 * rate / peak:.0f} % of the float32 peak')
  return columns


def _seconds(value: float) -> str:
  return f'{value:.3g} s' if value >= 1 else f'{1000 * value:.3g} ms'


if __name__ == '__main__':
  define_flags()
  entry.start(main, result_is_printed=True)
