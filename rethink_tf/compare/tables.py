"""Tables of a comparison: as text and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np

from rethink_tf.compare import groups, tables, verdict
from rethink_tf.compare.run_summary import PRETRAINED, SCRATCH, Run


def table(runs: Sequence[Run], figures: Sequence[str]) -> list[list[str]]:
  """One row a run, the header first: name, initial weights, schedule, iterations, samples seen, figures."""
  rows = [['run', 'init', 'schedule', 'seed', 'iterations', 'images', 'pixels', '+ pre-training', *figures]]
  for run in runs:
    before = '-' if run.init == SCRATCH else '?' if run.pretraining is None else f'{run.pretraining.pixels:.3g}'
    rows.append([run.name, run.init, run.schedule, str(run.seed), str(int(run.curve.steps[-1])),
                 f'{run.seen.images:.0f}', f'{run.seen.pixels:.3g}', before,
                 *(f'{value:.1f}' if np.isfinite(value := run.final(figure)) else '-' for figure in figures)])
  return rows


def different_settings(runs: Sequence[Run]) -> Mapping[str, list[str]]:
  """Bindings that are not the same in all runs, with their values run by run; paths aside."""
  names = sorted({name for run in runs for name in run.settings})
  values = {name: [str(run.settings.get(name, '-')) for run in runs] for name in names}
  return {name: each for name, each in values.items() if len(set(each)) > 1 and not name.endswith('data_dir')}


def aligned(rows: Sequence[Sequence[str]]) -> str:
  """Rows as lines with aligned columns, the first to the left."""
  widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
  return '\n'.join('  '.join(str(cell).ljust(width) if i == 0 else str(cell).rjust(width)
                             for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows)


def _steps_table(found: Sequence[verdict.Verdict]) -> list[list[str]]:
  rows = [['scratch', 'against', 'AP', 'against AP', 'difference', 'verdict', 'pixels', 'with pre-training']]
  for one in found:
    for step in one.steps:
      before = one.pretrained.runs[0].pretraining
      fine, seen = one.pretrained.seen, step.side.seen
      rows.append([step.side.label, one.pretrained.label, f'{step.side.ap(one.figure):.1f}',
                   f'{one.pretrained.ap(one.figure):.1f}', str(step.difference or '-'), step.relation,
                   f'{seen.pixels / fine.pixels:.2g} x',
                   '?' if before is None else f'{seen.pixels / fine.plus(before).pixels:.2g} x'])
  return rows


def _twins_table(runs, figure, matches, draws, confidence) -> list[list[str]]:
  """Fig. 1 row by row: who leads after a schedule, and by how much; empty where no schedule has both sides."""
  rows = [['schedule', 'scratch', 'pre-trained', 'difference', 'verdict']]
  for group in groups.groups(runs):
    pretrained = {side.schedule: side for side in groups.sides(group, PRETRAINED)}
    for side in groups.sides(group, SCRATCH):
      other = pretrained.get(side.schedule)
      if other is None:
        continue
      interval = verdict.difference(side, other, matches, draws, confidence)
      told = '-' if interval is None else verdict.relation(interval, 0.0)
      rows.append([side.schedule, f'{side.ap(figure):.1f}', f'{other.ap(figure):.1f}', str(interval or '-'), told])
  return rows if len(rows) > 1 else []


def _differences_table(runs, figure, matches, draws, confidence) -> list[list[str]]:
  rows = [['run', 'difference', 'verdict']]
  first = groups.Side(runs[0].schedule, (runs[0],))
  for run in runs[1:]:
    interval = verdict.difference(groups.Side(run.schedule, (run,)), first, matches, draws, confidence)
    if interval is None:
      rows.append([run.name, f'{run.final(figure) - runs[0].final(figure):+.1f}', 'no interval: detections not saved, '
                   'of other images, or not COCO\'s figure'])
    else:
      rows.append([run.name, str(interval), verdict.relation(interval, 0.0)])
  return rows


def _settings_table(runs: Sequence[Run]) -> list[list[str]]:
  return [['binding', *(run.name for run in runs)],
          *([name, *values] for name, values in tables.different_settings(runs).items())]


def _curve_rows(runs: Sequence[Run]) -> list[list[str]]:
  names = sorted({name for run in runs for name in run.curve.figures})
  rows = [['run', 'iterations', 'images', 'instances', 'pixels', 'seconds', *names]]
  for run in runs:
    curve = run.curve
    for i, step in enumerate(curve.steps):
      seen = (f'{values[i]:.0f}' for values in (curve.images, curve.instances, curve.pixels, curve.seconds))
      figures = (curve.figures[name][i] if name in curve.figures else np.nan for name in names)
      rows.append([run.name, str(int(step)), *seen, *(f'{v:.4f}' if np.isfinite(v) else '' for v in figures)])
  return rows


def _csv(rows: Sequence[Sequence[str]]) -> bytes:
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows(rows)
  return text.getvalue().encode()
