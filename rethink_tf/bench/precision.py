"""Compare mixed precision with float32: losses of every step from the same initial weights on the same batches.

  python -m rethink_tf.bench.precision --gin_file=gin_configs/demo.gin --steps=50 --output=results/precision.md

A second float32 run, whose initial weights differ in the last bit, shows which differences are not due to precision:
proposals and samples depend on comparisons, so that any two runs diverge. Every policy also computes the losses with
the weights of the float32 run at each step, where differences do not accumulate.

TensorFlow has no fast gradients of float16 convolutions for CPUs: a step takes a hundred times as long there.
`--forward=mixed_float16` limits that policy to the second comparison, which is as fast as in float32.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import flags

from rethink_tf import command_line, experiment
from rethink_tf.errors import UserError
from rethink_tf.process import entry
from rethink_tf.storage.files import write_output
from rethink_tf.structures import Experiment

REFERENCE = 'float32'
PERTURBED = 'float32, last bit of the initial weights changed'
RUNS = {REFERENCE: ('float32', False), PERTURBED: ('float32', True), 'mixed_bfloat16': ('mixed_bfloat16', False),
        'mixed_float16': ('mixed_float16', False)}
WINDOW = 10  # steps
_PROGRESS_SECONDS = 10.0

FLAGS = flags.FLAGS


class Losses(NamedTuple):
  """Losses of one run."""

  total: np.ndarray  # float64 [steps], or [0] if it was not trained
  same_weights: np.ndarray  # float64 [steps] with the weights of the reference at each step
  skipped: int  # steps whose gradients overflowed


class Differences(NamedTuple):
  """Largest relative differences between the total losses of two runs."""

  step: float  # of a single step
  window: float  # of means over consecutive windows of WINDOW steps
  running: float  # of means over all steps so far, from step WINDOW on
  whole: float  # of the mean over all steps


def differences(losses: np.ndarray, reference: np.ndarray) -> Differences:
  """Compare losses [steps], at least WINDOW of them; an incomplete last window is left out."""
  def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.max(np.abs(a - b) / b))

  windows = len(losses) // WINDOW * WINDOW
  so_far = np.arange(1, len(losses) + 1)
  return Differences(
    relative(losses, reference),
    relative(*(x[:windows].reshape(-1, WINDOW).mean(1) for x in (losses, reference))),
    relative(*((np.cumsum(x) / so_far)[WINDOW - 1:] for x in (losses, reference))),
    relative(losses.mean(), reference.mean()))


def losses_of(built: Experiment, steps: int, folder: str, record: bool = False, perturb: bool = False,
              train: bool = True) -> Losses:
  """Train the first `steps` steps without saving anything but weights, and return the losses.

  folder: where the reference saves its weights before each step (`record`), and other runs read them.
  perturb: raise every initial weight to the next float32. train: False computes the losses of the reference's weights
  alone.
  """
  trainer = built.trainer
  variables = trainer.detector.trainable_variables
  data = built.train_input.dataset()
  shapes = [data.element_spec]  # one graph for all padded shapes
  step = tf.function(trainer.train_step, autograph=False, input_signature=shapes)
  forward = tf.function(lambda batch: tf.add_n(list(trainer.loss_function(
    trainer(batch, training=True), batch).values())), autograph=False, input_signature=shapes)
  if perturb:
    for variable in variables:
      variable.assign(np.nextafter(variable.numpy(), np.float32(np.inf)))
  start = [variable.numpy() for variable in variables]
  same, total, skipped, reported = [], [], 0, time.monotonic()
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
    if time.monotonic() - reported > _PROGRESS_SECONDS:
      reported = time.monotonic()
      print(f'  step {number + 1} of {steps}: loss {total[-1]:.4g}', file=sys.stderr, flush=True)
  return Losses(np.array(total), np.array(total if record else same), skipped)


def _weights(folder: str, number: int) -> str:
  return os.path.join(folder, f'{number}.npz')


def _assign(variables: Iterable[tf.Variable], values: Iterable[np.ndarray]) -> None:
  for variable, value in zip(variables, values, strict=True):
    variable.assign(value)


def table(runs: Mapping[str, Losses]) -> str:
  """Return the comparison of each run with the reference, in Markdown."""
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


def document(runs: Mapping[str, Losses], files: Sequence[str], command: str) -> str:
  """Return the table with its explanation, and every loss, in Markdown."""
  steps = len(runs[REFERENCE].total)
  trained = {name: losses.total for name, losses in runs.items() if len(losses.total)}
  rows = [[str(step + 1), *(f'{total[step]:.4f}' for total in trained.values())] for step in range(steps)]
  return f'''# Mixed precision against float32

Measured by `{command}`: the first {steps} steps of {", ".join(f"`{name}`" for name in files)}, the same initial weights
and batches in every run.

Percentages are the largest relative difference of the total loss from that of float32. "Same weights": the loss,
forward pass only, with the weights of the float32 run at each step. The second row is float32 itself with perturbed
initial weights: its differences are not due to precision, and a policy with differences as small is as good as float32.

{table(runs)}
## Losses

| step | {" | ".join(trained)} |
|{"---|" * (len(trained) + 1)}
''' + ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def define_flags() -> None:
  """Define the flags of the command line."""
  command_line.define_flags()
  here = {'module_name': sys.argv[0]}
  flags.DEFINE_integer('steps', 50, 'training steps of each run', **here)
  flags.DEFINE_multi_string('forward', [], 'policy that is compared without training; give several', **here)
  flags.DEFINE_string('output', None, 'file to write the table and all losses to, in Markdown', **here)


def main() -> None:
  """Run all policies one after the other; write the document after each, and print the table."""
  if FLAGS.steps < WINDOW:
    raise UserError(f'--steps = {FLAGS.steps}: give {WINDOW} or more, the shortest mean that is compared')
  unknown = sorted(set(FLAGS.forward) - {policy for policy, _ in RUNS.values()} | {REFERENCE} & set(FLAGS.forward))
  if unknown:
    raise UserError(f'--forward={unknown[0]}: give mixed_bfloat16 or mixed_float16')
  print(table(compare(FLAGS.gin_file or ['gin_configs/demo.gin'], FLAGS.steps, FLAGS.forward, FLAGS.output)), end='')


def compare(files: Sequence[str], steps: int, forward: Collection[str], output: str | None) -> dict[str, Losses]:
  """Run all policies and return their losses; write the document to `output` after each.

  forward: policies that are not trained.

  Raises:
    UserError: a loss is not finite, or `output` cannot be written.
  """
  command = f'python -m rethink_tf.bench.precision {shlex.join(sys.argv[1:])}'
  runs = {}
  with tempfile.TemporaryDirectory() as folder:
    for name, (policy, perturb) in RUNS.items():
      print(name, file=sys.stderr, flush=True)
      command_line.configure(files, [f'run.precision = {policy!r}'])
      built = experiment.run('evaluate', folder)
      runs[name] = losses_of(built, steps, folder, name == REFERENCE, perturb, policy not in forward)
      if not np.isfinite([*runs[name].total, *runs[name].same_weights]).all():
        raise UserError(f'{name}: a loss is not finite, so there is nothing to compare: lower the learning rate')
      if output:
        write_output(output, document(runs, files, command))
  return runs


if __name__ == '__main__':
  define_flags()
  entry.start(main, interrupted='stopped; what was compared so far is written', result_is_printed=True)
