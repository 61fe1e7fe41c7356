"""Plots of confusion matrices and precision-recall curves, readable with one class and with many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rethink_tf.errors import plain
from rethink_tf.inspect_run.confusion import BACKGROUND, MISSED, Confusion, most_confused
from rethink_tf.inspect_run.detection_errors import RECALLS
from rethink_tf.inspect_run.precision_recall import Curve, in_full
from rethink_tf.visualization import plotting

if TYPE_CHECKING:
  from matplotlib.axes import Axes

MATRIX_CLASSES = 16  # in a plot of the matrix
NAMED_CURVES = 8  # with more classes, those with the lowest AP are named
_NAME = 20  # characters of a class name
_DASHES = ('-', '--', '-.', ':')


def plot_confusion(matrix: Confusion, kind: str) -> bytes:
  """Plot counts and shares of rows; of many classes the most confused ones. PNG; kind: 'box' or 'mask'."""
  shown = most_confused(matrix, MATRIX_CLASSES)
  size = len(shown.counts)
  side = 0.62 if size <= 12 else 0.5
  fig = plotting.new_figure((max(5.5, 2.8 + side * size), max(3.4, 2.2 + side * size)))
  axes = fig.subplots()
  shares = shown.shares
  axes.imshow(shares, cmap='Blues', vmin=0, vmax=1, aspect='equal')
  for (row, column), count in np.ndenumerate(shown.counts):
    if not count:
      continue
    percent = f'\n{100 * shares[row, column]:.0f} %' if size <= 12 else ''
    axes.text(column, row, f'{count}{percent}', ha='center', va='center', fontsize=8,
              fontweight='bold' if row == column else 'normal',
              color='white' if shares[row, column] > 0.5 else plotting.INK)
  axes.add_patch(_hatched(size - 1))
  names = [_short(name) for name in shown.names]
  axes.set_xticks(range(size), [*names, MISSED], rotation=0 if max(map(len, names)) <= 6 and size <= 12 else 90)
  axes.set_yticks(range(size), [*names, BACKGROUND])
  axes.axhline(size - 1.5, color=plotting.INK, linewidth=1)
  axes.axvline(size - 1.5, color=plotting.INK, linewidth=1)
  axes.set_xlabel('detected', color=plotting.INK)
  axes.set_ylabel('annotated', color=plotting.INK)
  title = f'{kind} confusion at IoU {matrix.iou:g}, score \u2265 {in_full(matrix.score)}\n' + (
    'number, share of the row' if size <= 12 else 'number; shade: share of the row')
  if shown is not matrix:
    title += f'\nthe {MATRIX_CLASSES} most confused of {len(matrix.names)} classes'
  axes.set_title(title, loc='left', fontsize=10, color=plotting.INK)
  return plotting.encode(fig)


def plot_curves(found: Sequence[Curve], kind: str, iou: float) -> bytes:
  """Plot precision against recall of all classes together and of each; PNG. found: of precision_recall.curves."""
  fig = plotting.new_figure((8.5, 5.2))
  axes = fig.subplots()
  _lines_of_equal_f1(axes)
  whole, scored = found[0], [one for one in found[1:] if one.precision is not None]
  named = scored if len(scored) <= NAMED_CURVES else sorted(scored, key=lambda one: one.ap)[:NAMED_CURVES]
  named = [] if len(scored) == 1 else named
  for one in scored:
    if len(scored) > 1 and not any(one is other for other in named):
      axes.plot(RECALLS, one.precision, color='#b9bec5', linewidth=0.7, zorder=1)
  for k, one in enumerate(named):
    _curve(axes, one, plotting.COLOURS[k % len(plotting.COLOURS)], _DASHES[k % len(_DASHES)], 1.5,
           plotting.MARKERS[k % len(plotting.MARKERS)])
  if whole.precision is not None:
    _curve(axes, whole._replace(name=scored[0].name) if len(scored) == 1 else whole, plotting.INK, '-', 2.6, 'o')
  else:
    axes.text(0.5, 0.5, 'no annotated objects', ha='center', color=plotting.INK)
  title = f'{kind} precision and recall at IoU {iou:g}; marks: score threshold with the best F1'
  if len(scored) > len(named) > 0:
    title += f'\ngrey: all {len(scored)} classes; named: the {len(named)} with the lowest AP'
  plotting.decorate(axes, title, 'recall', 'precision')
  axes.set_xlim(0, 1.01)
  axes.set_ylim(0, 1.03)
  if axes.get_legend_handles_labels()[0]:
    fig.legend(loc='outside right upper', frameon=False, fontsize=8)
  return plotting.encode(fig)


def _curve(axes: Axes, one: Curve, colour: str, style: str, width: float, marker: str) -> None:
  best = 'nothing found'
  if one.best is not None:
    best = f'F1 {100 * one.best.f1:.1f} at score \u2265 {in_full(one.best.threshold)}'
  axes.plot(RECALLS, one.precision, color=colour, linestyle=style, linewidth=width,
            label=f'{_short(one.name)}: AP {100 * one.ap:.1f}\n{best}')
  if one.best is not None:
    axes.plot(one.best.recall, one.best.precision, marker, color=colour, markersize=8, markeredgecolor='white',
              clip_on=False, zorder=5)


def _lines_of_equal_f1(axes: Axes) -> None:
  for f1 in (0.2, 0.4, 0.6, 0.8):
    recall = np.linspace(f1 / (2 - f1), 1, 100)
    axes.plot(recall, f1 * recall / (2 * recall - f1), color=plotting.GRID, linewidth=0.8, zorder=0)
    axes.text(1.0, f1 / (2 - f1), f'F1 {f1:g}', fontsize=7, color='#6a7078', va='bottom', ha='right')


def _hatched(place: int) -> object:
  """Return the patch for the cell of background with background, which has no number."""
  from matplotlib.patches import Rectangle

  return Rectangle((place - 0.5, place - 0.5), 1, 1, facecolor='white', edgecolor=plotting.FAINT, hatch='////',
                   linewidth=0)


def _short(name: str) -> str:
  name = plain(name)
  return name if len(name) <= _NAME else f'{name[:_NAME - 1]}\u2026'
