"""Run folders in, everything out: text, CSV, plots, page and TensorBoard log."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.compare import matching, page, plots, published, tensorboard_log, verdict
from rethink_tf.compare import tables as tables_module
from rethink_tf.compare.run_summary import PRETRAINED, SCRATCH, Run, read_runs
from rethink_tf.compare.tables import (
  _csv,
  _curve_rows,
  _differences_table,
  _settings_table,
  _steps_table,
  _twins_table,
  aligned,
)
from rethink_tf.errors import UserError

SHOWN = ('box/AP', 'box/AP50', 'box/AP75', 'mask/AP', 'mask/AP50', 'mask/AP75', 'keypoint/AP', 'voc/mAP', 'top-1')


class Comparison(NamedTuple):
  """What `compare` found and wrote."""

  runs: tuple[Run, ...]
  figure: str
  verdicts: tuple[verdict.Verdict, ...]
  text: str  # for the terminal
  page: str  # path of the HTML file


def compare(paths: Sequence[str], output: str, figure: str | None = None, margin: float = 0.5, draws: int = 1000,
            confidence: float = 0.95) -> Comparison:
  """Compares runs.

  Args:
    paths: run folders; the first is what others are compared with where there are no twins.
    output: folder for index.html, curves.png, ..., runs.csv, curves.csv and tensorboard/.
    figure: by which runs are compared; None: the main one that all have.
    margin: AP points within which two count as equal. draws: of the bootstrap. confidence: of its intervals.

  Raises:
    UserError: a folder is no run, has no evaluation, or lacks the figure; or the output cannot be written.
  """
  if not (0 < confidence < 1 and draws >= 10):
    raise UserError(f'--confidence={confidence} must lie between 0 and 1, and --draws={draws} be at least 10')
  runs = read_runs(paths)
  figure = _common_figure(runs, figure)
  shown = [name for name in SHOWN if any(np.isfinite(run.final(name)) for run in runs)]
  started = time.monotonic()

  @functools.cache
  def matches_of(name):
    run = next(run for run in runs if run.name == name)
    if time.monotonic() - started > 5:
      logging.info('matching the detections of %s, run %d of %d', name, runs.index(run) + 1, len(runs))
    return matching.read_matches(run.folder, figure, int(run.curve.steps[-1]))

  matches = lambda run: matches_of(run.name)  # noqa: E731
  found = verdict.verdicts(runs, figure, matches, margin, draws, confidence)
  tables = {
    'Runs': [[*row, published.row_of(run.folder) or '-'] if run else [*row, 'published'] for run, row in
             zip([None, *runs], tables_module.table(runs, shown), strict=True)],
    'Scratch against the best pre-trained run': _steps_table(found),
    'Scratch against pre-training at the same schedule': _twins_table(runs, figure, matches, draws, confidence),
    f'Differences of {figure} from the first run': _differences_table(runs, figure, matches, draws, confidence),
    'Settings that differ': _settings_table(runs),
  }
  words = [one.words for one in found] or [_no_twins(runs)]
  drawings = {_seen(figure): plots.curves(runs, figure),
              f'{figure} by schedule': plots.end_points(runs, figure),
              'AP by size': plots.by_size(runs, figure), 'losses': plots.losses(runs)}
  drawings = {name: drawing for name, drawing in drawings.items() if drawing is not None}
  try:
    path = _write(output, runs, figure, words, drawings, tables)
  except (OSError, tf.errors.OpError) as error:
    reason = ' '.join(str(getattr(error, 'message', None) or error).split())
    raise UserError(f'cannot write the comparison to {output}: {reason}; choose another with --output') from error
  text = '\n\n'.join([*words, *(f'{name}\n{aligned(rows)}' for name, rows in tables.items() if len(rows) > 1)])
  return Comparison(tuple(runs), figure, tuple(found), text, path)


def _seen(figure: str) -> str:
  return f'{figure} against what was seen'


def _common_figure(runs: Sequence[Run], figure: str | None) -> str:
  figure = figure or runs[0].main_figure
  lacking = [run.name for run in runs if not np.isfinite(run.final(figure))]
  if lacking:
    have = sorted({name for run in runs for name in run.curve.figures if name.endswith(('AP', 'top-1'))})
    raise UserError(f'{lacking[0]} has no {figure} in its last evaluation: choose a figure that all runs have with '
                    f'--figure (there are {", ".join(have)})')
  return figure


def _no_twins(runs: Sequence[Run]) -> str:
  inits = {run.init for run in runs}
  if len(inits) == 1:
    other = PRETRAINED if inits == {SCRATCH} else SCRATCH
    return (f'All runs are {inits.pop()}: to learn whether pre-training pays, add a run that is {other} and otherwise '
            'the same.')
  return ('No verdict: the scratch and the pre-trained runs differ in more than initial weights, schedule and seed; '
          'the settings that differ are listed below.')


def _write(output, runs, figure, words, drawings, tables) -> str:
  tf.io.gfile.makedirs(output)
  files = {f'{_file_name(name)}.{kind}': data for kind in ('png', 'svg')
           for name, data in plots.render(drawings, kind).items()}
  notes = ['Intervals: paired bootstrap over the held-out images. Pixels are those of the resized images without '
           'padding; compute is proportional to them (Fig. 2 of the paper).']
  notes += sorted({f'Pre-training: {run.pretraining_source}.' for run in runs if run.pretraining_source})
  panels = plots.render(plots.panels(runs, figure), 'svg')  # on the page, in place of the drawing of all four
  others = plots.render({name: one for name, one in drawings.items() if name != _seen(figure)}, 'svg')
  files['index.html'] = page.page(f'{len(runs)} runs by {figure}', words, panels, others, tables, notes).encode()
  files['runs.csv'] = _csv(tables['Runs'])
  files['curves.csv'] = _csv(_curve_rows(runs))
  for name, data in files.items():
    with tf.io.gfile.GFile(f'{output.rstrip("/")}/{name}', 'wb') as file:
      file.write(data)
  tensorboard_log.write(runs, figure, f'{output.rstrip("/")}/tensorboard')
  return f'{output.rstrip("/")}/index.html'


def _file_name(name: str) -> str:
  return ''.join(c if c.isalnum() else '_' for c in name)
