"""Mixed precision against float32: the same start, the same batches, the loss of every step.

  python -m rethink_tf.bench.precision --gin_file=gin_configs/demo.gin --steps=50 --output=results/precision.md

A second float32 run, whose start differs in the last bit, tells how much of a difference says nothing of precision: the
proposals and samples that a step learns from follow from comparisons, so that two runs part company however close they
are. Every policy also computes the losses of the float32 run's weights at each step, where nothing can build up.

TensorFlow has no fast gradients of float16 convolutions for CPUs: a step takes a hundred times as long there.
`--forward=mixed_float16` leaves that policy at the second comparison, which is as fast as in float32.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from absl import flags

from rethink_tf import command_line
from rethink_tf.errors import UserError

REFERENCE = 'float32'
NUDGED = 'float32, last bit of the start changed'
RUNS = {REFERENCE: ('float32', False), NUDGED: ('float32', True), 'mixed_bfloat16': ('mixed_bfloat16', False),
        'mixed_float16': ('mixed_float16', False)}
WINDOW = 10  # steps
_PROGRESS_SECONDS = 10.0

FLAGS = flags.FLAGS


class Losses(NamedTuple):
  """Of one run."""

  total: np.ndarray  # float64 [steps], or [0] if it was not trained
  same_weights: np.ndarray  # float64 [steps] at the weights that the reference had at each step
  skipped: int  # steps whose gradients overflowed


class Differences(NamedTuple):
  """Of two runs' total losses, relative, the largest over the steps."""

  step: float  # of a single step
  window: float  # of the means over WINDOW steps, window after window
  running: float  # of the means over all steps so far, from step WINDOW on
  whole: float  # of the mean over all steps


def differences(losses: np.ndarray, reference: np.ndarray) -> Differences:
  """Of losses [steps], at least WINDOW of them; a last window that is not full is left out."""
  def relative(a, b):
    return float(np.max(np.abs(a - b) / b))

  windows = len(losses) // WINDOW * WINDOW
  so_far = np.arange(1, len(losses) + 1)
  return Differences(
    relative(losses, reference),
    relative(*(x[:windows].reshape(-1, WINDOW).mean(1) for x in (losses, reference))),
    relative(*((np.cumsum(x) / so_far)[WINDOW - 1:] for x in (losses, reference))),
    relative(losses.mean(), reference.mean()))


def losses_of(parts, steps: int, folder: str, record: bool = False, nudge: bool = False, train: bool = True) -> Losses:
  """Trains the first `steps` steps; parts: experiment.Parts.

  folder: where the reference leaves its weights (`record`), and the others find them.
  nudge: raises every initial weight to the next float32. train: False leaves it at the reference's weights.
  """
  import tensorflow as tf

  trainer = parts.trainer
  variables = trainer.detector.trainable_variables
  data = parts.training_input().dataset()
  shapes = [data.element_spec]  # one graph for all padded shapes
  step = tf.function(trainer.train_step, autograph=False, input_signature=shapes)
  forward = tf.function(lambda batch: tf.add_n(list(trainer.loss_function(
    trainer(batch, training=True), batch).values())), autograph=False, input_signature=shapes)
  if nudge:
    for variable in variables:
      variable.assign(np.nextafter(variable.numpy(), np.float32(np.inf)))
  start = [variable.numpy() for variable in variables]
  same, total, skipped, told = [], [], 0, time.monotonic()
  if not record:
    for number, batch in zip(range(steps), data, strict=False):
      _assign(variables, np.load(_weights(folder, number)).values())
      same.append(float(forward(batch)))
    _assign(variables, start)
  for number, batch in zip(range(steps if train else 0), data, strict=False):
    if record:
      np.savez(_weights(folder, number), *(variable.numpy() for variable in variables))
    logs = step(batch)
    total.append(float(logs['loss/total']))
    skipped += round(float(logs.get('skipped_steps', 0)))
    trainer.reset_metrics()
    if time.monotonic() - told > _PROGRESS_SECONDS:
      told = time.monotonic()
      print(f'  step {number + 1} of {steps}: loss {total[-1]:.4g}', file=sys.stderr, flush=True)
  return Losses(np.array(total), np.array(total if record else same), skipped)


def _weights(folder, number):
  return os.path.join(folder, f'{number}.npz')


def _assign(variables, values):
  for variable, value in zip(variables, values, strict=True):
    variable.assign(value)


def table(runs: Mapping[str, Losses]) -> str:
  """Markdown: each run against the reference."""
  reference = runs[REFERENCE].total
  lines = [f'| run | mean loss | skipped steps | a single step | means of {WINDOW} steps | running mean from step '
           f'{WINDOW} on | mean of all | same weights: a single step | same weights: mean of all |',
           '|---|---|---|---|---|---|---|---|---|']
  for name, losses in runs.items():
    trained = len(losses.total) > 0
    found = [*(differences(losses.total, reference) if trained else [None] * 4),
             *differences(losses.same_weights, reference)[::3]]
    shares = ['-' if name == REFERENCE or value is None else f'{100 * value:.2f} %' for value in found]
    mean = f'{losses.total.mean():.4f}' if trained else '-'
    lines.append(f'| {" | ".join([name, mean, str(losses.skipped) if trained else "-", *shares])} |')
  return '\n'.join(lines) + '\n'


def document(runs: Mapping[str, Losses], files: list[str], command: str) -> str:
  """The table with what it says, and every loss."""
  steps = len(runs[REFERENCE].total)
  trained = {name: losses.total for name, losses in runs.items() if len(losses.total)}
  rows = [[str(step + 1), *(f'{total[step]:.4f}' for total in trained.values())] for step in range(steps)]
  return f'''# Mixed precision against float32

Measured by `{command}`: the first {steps} steps of {", ".join(f"`{name}`" for name in files)}, the same initial weights
and batches in every run.

Percentages are the largest relative difference of the total loss from that of float32. "Same weights": the loss,
forward pass alone, of the weights that the float32 run had at each step. The second row is float32 itself after one
rounding: what it differs by says nothing of precision, and a policy that differs no more is as good as float32.

{table(runs)}
## Losses

| step | {" | ".join(trained)} |
|{"---|" * (len(trained) + 1)}
''' + ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def main() -> None:
  """Runs all policies one after the other; writes the table after each, and prints the last."""
  if FLAGS.steps < WINDOW:
    raise UserError(f'--steps = {FLAGS.steps}: give {WINDOW} or more, which is the shortest mean that is compared')
  unknown = sorted(set(FLAGS.forward) - {policy for policy, _ in RUNS.values()} | {REFERENCE} & set(FLAGS.forward))
  if unknown:
    raise UserError(f'--forward={unknown[0]}: give mixed_bfloat16 or mixed_float16')
  from rethink_tf import experiment

  files = FLAGS.gin_file or ['gin_configs/demo.gin']
  command = f'python -m rethink_tf.bench.precision {shlex.join(sys.argv[1:])}'
  runs = {}
  with tempfile.TemporaryDirectory() as folder:
    for name, (policy, nudge) in RUNS.items():
      print(name, file=sys.stderr, flush=True)
      command_line.configure(files, [f'run.precision = {policy!r}'])

      def task(parts, record=name == REFERENCE, nudge=nudge, train=policy not in FLAGS.forward):
        return losses_of(parts, FLAGS.steps, folder, record, nudge, train)

      runs[name] = experiment.run(task, folder)
      if not np.isfinite([*runs[name].total, *runs[name].same_weights]).all():
        raise UserError(f'{name}: a loss is not finite, so there is nothing to compare: lower the learning rate')
      if FLAGS.output:
        _write(FLAGS.output, document(runs, files, command))
  print(table(runs), end='')


def _write(path, text):
  try:
    with open(path, 'w') as file:
      file.write(text)
  except OSError as error:
    raise UserError(f'{path}: cannot be written ({error.strerror})') from error


if __name__ == '__main__':
  command_line.define_flags()
  _here = {'module_name': sys.argv[0]}
  flags.DEFINE_integer('steps', 50, 'training steps of each run', **_here)
  flags.DEFINE_multi_string('forward', [], 'policy that is not trained with; give several', **_here)
  flags.DEFINE_string('output', None, 'file to write the table and all losses to, in Markdown', **_here)
  command_line.start(main)
