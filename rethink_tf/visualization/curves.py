"""Runs side by side: curves of loss and AP against iterations (as in Fig. 1 and 3), and a table of final figures."""

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from rethink_tf.storage import files
from rethink_tf.storage.run_folder import RunFolder

TABLE_FIGURES = (  # columns that stand together: those of a kind which no run has are left out
  *((f'{kind}/AP', f'{kind}/AP50', f'{kind}/AP75') for kind in ('box', 'mask', 'keypoint')),
  ('voc/mAP', 'voc/AP75'), ('top-1', 'top-5'))
FIGURES = (('box', 'box/AP', '-'), ('mask', 'mask/AP', '--'), ('keypoint', 'keypoint/AP', ':'), ('VOC', 'voc/mAP', '-'),
           ('top-1', 'top-1', '-'), ('top-5', 'top-5', '--'))
_DASHES = {'-': (0, (7, 2.5)), '--': (0, (3.5, 1.5)), ':': (0, (1.8, 1.8))}  # of averaged weights, by style of the raw
_COLOURS = ('#1f6fb4', '#d1495b', '#3a9a5b', '#e08e2b', '#7a52a3', '#4aa5a8', '#8c6d4f', '#5b5f66')
_INK = '#33373d'


def curves(run_folders: Sequence[RunFolder], path: str) -> str:
  """Draws loss (left) and AP, or top-1 and top-5 of a classifier (right), of runs against iterations.

  Figures of averaged weights (run.ema) are dashed lines with hollow markers in the colour of their run.

  Args:
    run_folders: runs, in the order of the legend.
    path: of the PNG that is written, local or gs://.

  Returns:
    `path`.
  """
  import matplotlib  # 0.3 s, and only needed here
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  matplotlib.rcParams['text.parse_math'] = False  # a $ in the name of a run is no formula
  figure = Figure(figsize=(12, 4.6), dpi=120, layout='constrained')
  figure.get_layout_engine().set(w_pad=0.15, h_pad=0.1)
  FigureCanvasAgg(figure)
  loss_axes, ap_axes = figure.subplots(1, 2)
  highest_loss, classifies = [], False
  for k, (name, folder) in enumerate(zip(_run_names(run_folders), run_folders, strict=True)):
    colour = _COLOURS[k % len(_COLOURS)]
    lines = folder.read_metrics()
    steps, losses = _series(lines, 'train', 'loss/total')
    if len(steps):
      loss_axes.plot(steps, losses, color=colour, linewidth=1.6, label=name)
      highest_loss.append(np.percentile(losses, 98))
    for kind, metric, style in FIGURES:
      steps, values = _series(lines, 'eval', metric)
      if len(steps):
        classifies |= kind.startswith('top')
        ap_axes.plot(steps, values, style, color=colour, linewidth=1.6, marker='o', markersize=4,
                     label=f'{name}, {kind} {values[-1]:.1f}')
      steps, values = _series(lines, 'eval/ema', f'ema/{metric}')
      if len(steps):
        ap_axes.plot(steps, values, linestyle=_DASHES[style], color=colour, linewidth=1.6, marker='o', markersize=4,
                     markerfacecolor='white', label=f'{name}, ema {kind} {values[-1]:.1f}')
  if highest_loss:
    loss_axes.set_ylim(0, 1.15 * max(highest_loss))  # the first iterations would flatten the rest
  ap_axes.set_ylim(bottom=0)
  _decorate(loss_axes, 'Training loss', 'loss', 'upper right')
  title = 'Accuracy on held-out images' if classifies else 'AP on held-out images'
  _decorate(ap_axes, title, 'accuracy (%)' if classifies else 'AP (%)', 'lower right')
  picture = io.BytesIO()
  figure.savefig(picture, format='png')
  files.write(path, picture.getvalue())
  return path


def table(run_folders: Sequence[RunFolder]) -> str:
  """The latest evaluation of each run in percent, one run a line; - where there is none.

  Box, mask and keypoint AP, VOC's mAP, top-1 and top-5: what some run was scored by; without any, box and mask AP.
  """
  runs = [[line for line in folder.read_metrics() if line.get('kind') == 'eval'] for folder in run_folders]
  scored = {figure for run in runs for line in run for figure in line}
  columns = [figure for kind in TABLE_FIGURES if scored.intersection(kind) for figure in kind]
  columns = columns or [*TABLE_FIGURES[0], *TABLE_FIGURES[1]]
  rows = [('run', 'iterations', *columns)]
  for name, evaluations in zip(_run_names(run_folders), runs, strict=True):
    last = evaluations[-1] if evaluations else {}
    figures = (last.get(figure) for figure in columns)
    rows.append((name, str(last.get('step', '-')), *('-' if f is None or f < 0 else f'{f:.1f}' for f in figures)))
  widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
  return '\n'.join(
    '  '.join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
    for row in rows
  )


def _run_names(run_folders: Sequence[RunFolder]) -> list[str]:
  """The last part of each run's path, or as many parts as tell the runs apart."""
  parts = [folder.path.split('/' if '://' in folder.path else os.sep) for folder in run_folders]
  for count in range(1, max((len(p) for p in parts), default=1) + 1):
    names = ['/'.join(p[-count:]) for p in parts]
    if len(set(names)) == len({tuple(p) for p in parts}):
      break
  return names if parts else []


def _series(lines: list[dict], kind: str, key: str) -> tuple[np.ndarray, np.ndarray]:
  """Steps and values of one figure, by step; a step that was evaluated twice counts with its later line."""
  points = {
    line['step']: line[key] for line in lines if line.get('kind') == kind and isinstance(line.get(key), int | float)
  }
  steps = sorted(points)
  return np.array(steps), np.array([points[step] for step in steps])


def _decorate(axes: Any, title: str, unit: str, legend: str) -> None:
  axes.set_title(title, loc='left', color=_INK, fontsize=12)
  axes.set_xlabel('iterations', color=_INK)
  axes.set_ylabel(unit, color=_INK)
  axes.set_xlim(left=0)
  axes.grid(axis='y', color='#e3e5e8', linewidth=0.8)
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color('#9aa0a8')
  axes.tick_params(colors=_INK)
  if axes.lines:
    axes.legend(frameon=False, fontsize=9, loc=legend)
  else:
    axes.text(0.5, 0.5, 'nothing recorded yet', transform=axes.transAxes, ha='center', color='#9aa0a8')
