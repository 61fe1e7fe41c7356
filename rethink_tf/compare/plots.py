"""The comparison's figures: AP against what was seen (Fig. 1 and 2), end points, AP by size, losses and drops."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rethink_tf.compare.groups import groups, sides
from rethink_tf.compare.run_summary import SCRATCH, Run

INK, FAINT, GRID = '#33373d', '#9aa0a8', '#e3e5e8'
SCRATCH_SHADES, PRETRAINED_SHADES = ('#a9cdea', '#0b3f6b'), ('#f2b3ba', '#8f1626')  # short schedules to long ones
COLOURS = ('#1f6fb4', '#d1495b', '#3a9a5b', '#e08e2b', '#7a52a3', '#4aa5a8', '#8c6d4f', '#5b5f66')
AXES = (('iterations', 'iterations'), ('images', 'images seen'), ('instances', 'instances seen'),
        ('pixels', 'pixels seen'))


def colours(runs: Sequence[Run]) -> dict[str, str]:
  """One colour a run: by its place, or, where more than two differ in initial weights and length alone, two hues whose
  shades are the lengths."""
  inits = {run.init for run in runs}
  if len(runs) < 3 or len(inits) < 2 or len({run.twin_key for run in runs}) > 1:
    return {run.name: COLOURS[i % len(COLOURS)] for i, run in enumerate(runs)}
  from matplotlib.colors import LinearSegmentedColormap, to_hex

  found = {}
  for init in inits:
    made = sides(runs, init)
    shades = LinearSegmentedColormap.from_list(init, SCRATCH_SHADES if init == SCRATCH else PRETRAINED_SHADES)
    for number, side in enumerate(made):
      shade = to_hex(shades((number + 1) / len(made)))
      found |= {run.name: shade for run in side.runs}
  return found


def curves(runs: Sequence[Run], figure: str) -> Any:
  """AP against iterations, images, instances and pixels; the last three begin after what pre-training has seen."""
  drawing, axes = _figure(2, 2, (11, 7.4))
  for (key, title), one in zip(AXES, axes.ravel(), strict=True):
    _panel(one, runs, figure, key, title)
  _legend(drawing, axes.ravel()[0])
  return drawing


def panels(runs: Sequence[Run], figure: str) -> dict[str, Any]:
  """The four of `curves` as drawings of their own, by title, for pages that may be narrow."""
  found = {}
  for key, title in AXES:
    drawing, axes = _figure(1, 1, (5.6, 4.2))
    _panel(axes.ravel()[0], runs, figure, key, title)
    _legend(drawing, axes.ravel()[0], columns=2)
    found[f'{figure} against {title}'] = drawing
  return found


def _panel(one, runs: Sequence[Run], figure: str, key: str, title: str) -> None:
  colour_of = colours(runs)
  for run in runs:
    values = run.curve.figures.get(figure)
    if values is None:
      continue
    before = getattr(run.pretraining, key, 0.0) if run.pretraining is not None else 0.0
    x = run.curve.steps if key == 'iterations' else getattr(run.curve, key) + before
    colour = colour_of[run.name]
    one.plot(x, values, color=colour, marker='o', markersize=3.5, linewidth=1.6, label=run.name,
             linestyle='-' if run.init == SCRATCH else '--')
    if before:
      one.plot([0, before], [0, 0], color=colour, linewidth=5, alpha=0.35, solid_capstyle='butt')
    if key == 'iterations':
      _mark_drops(one, run, colour)
  counted = key != 'iterations' and any(run.pretraining for run in runs)
  title += ', pre-training included (thick line)' if counted else ''
  _decorate(one, f'{figure} against {title}', key, f'{figure} (%)')
  one.set_ylim(bottom=0)
  one.set_xlim(left=0)


def end_points(runs: Sequence[Run], figure: str) -> Any:
  """The last AP of every schedule against the images it has seen; bars show one standard deviation between seeds."""
  drawing, axes = _figure(1, 1, (7, 4.4))
  one = axes.ravel()[0]
  made, highest = groups(runs), {}
  for number, group in enumerate(made):
    for style, init in (('-', SCRATCH), ('--', 'pre-trained')):
      these = sides(group, init)
      if not these:
        continue
      name = init if len(made) == 1 else f'{init}: {these[0].runs[0].name}'
      one.errorbar([side.seen.images for side in these], [side.ap(figure) for side in these],
                   yerr=[np.nan_to_num(side.spread(figure)) for side in these], linestyle=style, marker='o', capsize=3,
                   color=COLOURS[(2 * number + (init != SCRATCH)) % len(COLOURS)], label=name)
      for side in these:
        place = side.schedule, side.seen.images
        highest[place] = max(side.ap(figure), highest.get(place, 0.0))
  for (schedule, images), value in highest.items():  # once for all that end there
    one.annotate(schedule, (images, value), textcoords='offset points', xytext=(0, 7), ha='center', fontsize=8,
                 color=INK)
  _decorate(one, f'{figure} at the end of each schedule', 'images seen in detection training', f'{figure} (%)')
  one.margins(y=0.15)
  one.legend(frameon=False, fontsize=9)
  return drawing


def by_size(runs: Sequence[Run], figure: str) -> Any | None:
  """AP of small, medium and large objects at the end; None where no run has it."""
  kind = figure.split('/')[0]
  names = [f'{kind}/AP{size}' for size in 'sml']
  shown = [run for run in runs if any(np.isfinite(run.final(name)) for name in names)]
  if not shown:
    return None
  drawing, axes = _figure(1, 1, (7, 4.0))
  one = axes.ravel()[0]
  width = 0.8 / len(shown)
  for i, run in enumerate(shown):
    values = [run.final(name) for name in names]
    one.bar(np.arange(3) + (i - (len(shown) - 1) / 2) * width, np.nan_to_num(values), width * 0.92,
            color=colours(runs)[run.name], label=run.name, hatch=None if run.init == SCRATCH else '//',
            edgecolor='white')
  one.set_xticks(range(3), ['small (< 32² pixels)', 'medium', 'large (> 96²)'])
  _decorate(one, f'{kind} AP by size of object', '', 'AP (%)')
  _legend(drawing, one)
  return drawing


def losses(runs: Sequence[Run]) -> Any:
  """Training loss against iterations, with the steps at which the learning rate drops."""
  drawing, axes = _figure(1, 1, (7, 4.0))
  one = axes.ravel()[0]
  highest = []
  for run in runs:
    steps, values = run.losses
    if len(steps):
      colour = colours(runs)[run.name]
      one.plot(steps, values, color=colour, linewidth=1.4, label=run.name)
      highest.append(np.percentile(values, 97))
      _mark_drops(one, run, colour)
  if highest:
    one.set_ylim(0, 1.15 * max(highest))  # the first iterations would flatten the rest
  one.set_xlim(left=0)
  _decorate(one, 'Training loss; dotted: the learning rate drops', 'iterations', 'loss')
  _legend(drawing, one)
  return drawing


def render(drawings: Mapping[str, Any], kind: str) -> dict[str, bytes]:
  """Files of drawings, by name: kind 'png' or 'svg'."""
  import matplotlib

  found = {}
  # Text stays text: it can be searched, and the page stays small. A fixed salt gives the same file each time.
  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'rethink_tf'}):
    for name, drawing in drawings.items():
      data = io.BytesIO()
      drawing.savefig(data, format=kind, metadata={'Date': None} if kind == 'svg' else None)
      found[name] = data.getvalue()
  return found


def _figure(rows: int, columns: int, size: tuple[float, float]):
  import matplotlib  # 0.3 s, and only needed here
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  matplotlib.rcParams['text.parse_math'] = False  # a $ in the name of a run is no formula
  drawing = Figure(figsize=size, dpi=110, layout='constrained')
  FigureCanvasAgg(drawing)
  return drawing, drawing.subplots(rows, columns, squeeze=False)


def _mark_drops(axes, run: Run, colour: str) -> None:
  for drop in run.drops:
    axes.axvline(drop, color=colour, linestyle=':', linewidth=1, alpha=0.7)


def _legend(drawing, axes, columns: int = 4) -> None:
  handles, names = axes.get_legend_handles_labels()
  if handles:
    drawing.legend(handles, names, loc='outside lower center', ncols=min(columns, len(names)), frameon=False,
                   fontsize=9)


def _decorate(axes, title: str, x: str, y: str) -> None:
  axes.set_title(title, loc='left', color=INK, fontsize=10)
  axes.set_xlabel(x, color=INK)
  axes.set_ylabel(y, color=INK)
  axes.grid(axis='y', color=GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color(FAINT)
  axes.tick_params(colors=INK)
