"""Loss and metrics of runs against iterations (as in Fig. 1 and 3), and a table of their latest metrics."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rethink_tf.errors import plain
from rethink_tf.storage import files
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.structures import AVERAGES
from rethink_tf.visualization import plotting

if TYPE_CHECKING:
  from matplotlib.axes import Axes

TABLE_METRICS = (  # groups of columns; a group that no run has is left out
  *((f'{kind}/AP', f'{kind}/AP50', f'{kind}/AP75') for kind in ('box', 'mask', 'keypoint')),
  ('voc/mAP', 'voc/AP75'), ('top-1', 'top-5'))
METRICS = (  # label, metric, line style
  ('box', 'box/AP', '-'), ('mask', 'mask/AP', '--'), ('keypoint', 'keypoint/AP', ':'), ('VOC', 'voc/mAP', '-'),
  ('top-1', 'top-1', '-'), ('top-5', 'top-5', '--'))
_DASHES = {'-': (0, (7, 2.5)), '--': (0, (3.5, 1.5)), ':': (0, (1.8, 1.8))}  # averaged weights, by style


def curves(run_folders: Sequence[RunFolder], path: str) -> str:
  """Plot loss (left) and AP, or top-1 and top-5 accuracy (right), of runs against iterations.

  Metrics of averaged weights (run.ema) are dashed lines with hollow markers in the colour of their run.

  Args:
    run_folders: runs, in the order of the legend.
    path: PNG file to write, local or gs://.

  Returns:
    `path`.
  """
  fig = plotting.new_figure((12, 4.6), dpi=120)
  fig.get_layout_engine().set(w_pad=0.15, h_pad=0.1)
  loss_axes, metric_axes = fig.subplots(1, 2)
  highest_loss, classifies = [], False
  for k, (name, folder) in enumerate(zip(run_names(run_folders), run_folders, strict=True)):
    colour = plotting.COLOURS[k % len(plotting.COLOURS)]
    lines = folder.read_metrics()
    steps, losses = _series(lines, 'train', 'loss/total')
    if len(steps):
      loss_axes.plot(steps, losses, color=colour, linewidth=1.6, label=name)
      highest_loss.append(np.percentile(losses, 98))
    for label, metric, style in METRICS:
      steps, values = _series(lines, 'eval', metric)
      if len(steps):
        classifies |= label.startswith('top')
        metric_axes.plot(steps, values, style, color=colour, linewidth=1.6, marker='o', markersize=4,
                         label=f'{name}, {label} {values[-1]:.1f}')
      steps, values = _series(lines, f'eval/{AVERAGES}', f'{AVERAGES}/{metric}')
      if len(steps):
        metric_axes.plot(steps, values, linestyle=_DASHES[style], color=colour, linewidth=1.6, marker='o',
                         markersize=4, markerfacecolor='white', label=f'{name}, ema {label} {values[-1]:.1f}')
  if highest_loss:
    loss_axes.set_ylim(0, 1.15 * max(highest_loss))  # the first iterations would flatten the rest
  metric_axes.set_ylim(bottom=0)
  _decorate(loss_axes, 'Training loss', 'loss', 'upper right')
  title = 'Accuracy on held-out images' if classifies else 'AP on held-out images'
  _decorate(metric_axes, title, 'accuracy (%)' if classifies else 'AP (%)', 'lower right')
  files.write(path, plotting.encode(fig))
  return path


def table(run_folders: Sequence[RunFolder]) -> str:
  """Return the latest metrics of each run in percent as text, one line per run; '-' where a metric is missing.

  Columns are the metrics that some run has of box, mask and keypoint AP, VOC mAP, top-1 and top-5; without any, box and
  mask AP.
  """
  runs = [[line for line in folder.read_metrics() if line.get('kind') == 'eval'] for folder in run_folders]
  available = {metric for run in runs for line in run for metric in line}
  columns = [metric for group in TABLE_METRICS if available.intersection(group) for metric in group]
  columns = columns or [*TABLE_METRICS[0], *TABLE_METRICS[1]]
  rows = [('run', 'iterations', *columns)]
  for name, evaluations in zip(run_names(run_folders), runs, strict=True):
    last = evaluations[-1] if evaluations else {}
    values = (last.get(metric) for metric in columns)
    rows.append((name, str(last.get('step', '-')), *('-' if v is None or v < 0 else f'{v:.1f}' for v in values)))
  widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
  return '\n'.join(
    '  '.join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
    for row in rows
  )


def run_names(run_folders: Sequence[RunFolder]) -> list[str]:
  """Return the last component of each run's path, or as many as make the names differ."""
  paths = [folder.path.rstrip('/').split('/' if '://' in folder.path else os.sep) for folder in run_folders]
  names: list[str] = []
  for count in range(1, max(map(len, paths), default=0) + 1):
    names = [plain('/'.join(path[-count:])) for path in paths]
    if len(set(names)) == len(set(map(tuple, paths))):
      break
  return names


def _series(lines: Sequence[Mapping[str, Any]], kind: str, key: str) -> tuple[np.ndarray, np.ndarray]:
  """Return steps and values of one metric, by step; of a step that was written twice, the later line."""
  points = {
    line['step']: line[key] for line in lines if line.get('kind') == kind and isinstance(line.get(key), int | float)
  }
  steps = sorted(points)
  return np.array(steps), np.array([points[step] for step in steps])


def _decorate(axes: Axes, title: str, unit: str, legend: str) -> None:
  plotting.decorate(axes, title, 'iterations', unit, font_size=12)
  axes.set_xlim(left=0)
  if axes.lines:
    axes.legend(frameon=False, fontsize=9, loc=legend)
  else:
    axes.text(0.5, 0.5, 'nothing recorded yet', transform=axes.transAxes, ha='center', color=plotting.FAINT)
