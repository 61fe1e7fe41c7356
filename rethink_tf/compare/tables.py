"""Tables of a comparison as lists of rows, the header first, and their text and CSV formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rethink_tf.compare import verdict
from rethink_tf.compare.differences import Differences
from rethink_tf.compare.groups import Side, by_arm, groups, in_group, labels_by_key, sides
from rethink_tf.compare.run_summary import PRETRAINED, SCRATCH, Run
from rethink_tf.console import signed, times
from rethink_tf.errors import plain

Table = list[list[str]]

_ABSENT, _UNKNOWN = '-', '?'
_NOTHING_SET = [{_ABSENT, value} for value in ('None', 'False', '()')]


def runs_table(runs: Sequence[Run], metrics: Sequence[str], exact: bool = False) -> Table:
  """One row per run: name, initial weights, schedule, seed, iterations, samples seen, final metrics.

  exact: with the digits of a file to compute with, instead of those to read.
  """
  of_pixels, of_metric = ('.0f', '.4f') if exact else ('.3g', '.1f')
  rows = [['run', 'init', 'schedule', 'seed', 'iterations', 'images', 'pixels', '+ pre-training', *metrics]]
  for run in runs:
    before = _UNKNOWN if run.pretraining is None else f'{run.pretraining.pixels:{of_pixels}}'
    pixels = f'{run.seen.pixels:{of_pixels}}' if np.isfinite(run.seen.pixels) else _UNKNOWN
    rows.append([run.name, run.init, run.schedule, str(run.seed), str(int(run.curve.steps[-1])),
                 f'{run.seen.images:.0f}', pixels, '-' if run.init == SCRATCH else before,
                 *(f'{value:{of_metric}}' if np.isfinite(value := run.final(metric)) else '-' for metric in metrics)])
  return rows


def steps_table(runs: Sequence[Run], verdicts: Sequence[verdict.Verdict]) -> Table:
  """One row per scratch schedule, compared with the pre-trained one that decides (verdict.Step). verdicts: on these
  runs."""
  rows = [['scratch', 'against', 'AP', 'against AP', 'difference', 'verdict', 'pixels', 'with pre-training']]
  about = labels_by_key(runs)
  for one in verdicts:
    for step in one.steps:
      before = step.against.runs[0].pretraining
      fine, seen = step.against.seen, step.side.seen
      scratch = in_group(step.side.label, about[step.against.runs[0].twin_key])
      rows.append([scratch, step.against.label, f'{step.side.mean(one.metric):.1f}',
                   f'{step.against.mean(one.metric):.1f}', str(step.decisive or '-'), step.relation,
                   _ratio(seen.pixels, fine.pixels),
                   _UNKNOWN if before is None else _ratio(seen.pixels, fine.plus(before).pixels)])
  return rows


def _ratio(pixels: float, others: float) -> str:
  return times(pixels / others) if np.isfinite(pixels / others) else _UNKNOWN


def twins_table(runs: Sequence[Run], differences: Differences, margin: float) -> Table:
  """One row per schedule of Fig. 1 with scratch and pre-trained runs, and their difference; empty without any.

  Intervals are those of a verdict, which hold for all pre-trained schedules of the same weights together.
  """
  rows, metric = [['schedule', 'scratch', 'pre-trained', 'difference', 'verdict']], differences.metric
  about = labels_by_key(runs)
  for group in groups(runs):
    pretrained = sides(group, PRETRAINED)
    arms = by_arm(pretrained)
    for side in sides(group, SCRATCH):
      for other in (other for other in pretrained if other.schedule == side.schedule):
        arm = arms[other.arm]
        interval, level = differences.between(side, other, len(arm)), max(each.mean(metric) for each in arm)
        schedule = in_group(f'{side.schedule} {other.arm}'.strip(), about[group[0].twin_key])
        rows.append([schedule, f'{side.mean(metric):.1f}', f'{other.mean(metric):.1f}', str(interval or '-'),
                     '-' if interval is None else verdict.relation(interval, margin, level)])
  return rows if len(rows) > 1 else []


def differences_table(runs: Sequence[Run], differences: Differences, margin: float) -> Table:
  """One row per run except the first: its difference from the first."""
  rows = [['run', 'difference', 'verdict']]
  first = Side(runs[0].schedule, (runs[0],))
  for run in runs[1:]:
    interval = differences.between(Side(run.schedule, (run,)), first)
    if interval is None:
      gap = run.final(differences.metric) - runs[0].final(differences.metric)
      single = differences.num_images(first) == 1
      rows.append([run.name, signed(gap), 'no interval: one held-out image says nothing about others' if single else
                   'no interval: detections not saved, of other images or objects, or scored otherwise'])
    else:
      complete = run.complete and runs[0].complete
      level = max(one.final(differences.metric) for one in (run, runs[0]))
      rows.append([run.name, str(interval),
                   verdict.relation(interval, margin, level) if complete else 'not complete'])
  return rows


def settings_table(runs: Sequence[Run]) -> Table:
  """One row per binding that differs between runs, with its value in each."""
  return [['binding', *(run.name for run in runs)],
          *([name, *values] for name, values in different_settings(runs).items())]


def different_settings(runs: Sequence[Run]) -> Mapping[str, list[str]]:
  """Return the bindings that differ between runs, except data folders, with their value in each run.

  Of a component that only some runs have, those that set nothing are left out: the binding that names it tells.
  """
  names = sorted({name for run in runs for name in run.settings})
  values = {name: [str(run.settings.get(name, _ABSENT)) for run in runs] for name in names}
  return {name: each for name, each in values.items()
          if len(set(each)) > 1 and not name.endswith('data_dir') and set(each) not in _NOTHING_SET}


def curves_table(runs: Sequence[Run]) -> Table:
  """One row per evaluation of each run: iteration, samples seen, seconds, metrics."""
  names = sorted({name for run in runs for name in run.curve.metrics})
  rows = [['run', 'iterations', 'images', 'instances', 'pixels', 'seconds', *names]]
  for run in runs:
    curve = run.curve
    for i, step in enumerate(curve.steps):
      seen = (f'{values[i]:.0f}' for values in (curve.images, curve.instances, curve.pixels, curve.seconds))
      metrics = (curve.metrics[name][i] if name in curve.metrics else np.nan for name in names)
      rows.append([run.name, str(int(step)), *seen, *(f'{v:.4f}' if np.isfinite(v) else '' for v in metrics)])
  return rows


def as_text(rows: Sequence[Sequence[str]]) -> str:
  """Return rows as lines with aligned columns, the first left-aligned; control characters in cells are escaped."""
  rows = [[plain(str(cell)) for cell in row] for row in rows]
  widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
  return '\n'.join('  '.join(str(cell).ljust(width) if i == 0 else str(cell).rjust(width)
                             for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows)
