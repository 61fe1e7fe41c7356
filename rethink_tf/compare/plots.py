"""Plots of a comparison: a metric against samples seen (Fig. 1 and 2), its final values, AP by size, losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rethink_tf.compare.groups import groups, sides
from rethink_tf.compare.run_summary import PRETRAINED, SCRATCH, Run
from rethink_tf.visualization.plotting import COLOURS, INK, decorate, encode, new_figure

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

  from rethink_tf.compare.verdict import Verdict

SCRATCH_SHADES, PRETRAINED_SHADES = ('#a9cdea', '#0b3f6b'), ('#f2b3ba', '#8f1626')  # from short to long schedules
AXES = (('iterations', 'iterations'), ('images', 'images seen'), ('instances', 'instances seen'),
        ('pixels', 'pixels seen'))


def colours(runs: Sequence[Run]) -> dict[str, str]:
  """Return a colour per run name.

  Runs that differ only in initial weights and schedule, if more than two, have a hue by initial weights and a shade by
  length; others have a colour by position.
  """
  inits = {run.init for run in runs}
  if len(runs) < 3 or len(inits) < 2 or len({run.twin_key for run in runs}) > 1:
    return {run.name: COLOURS[i % len(COLOURS)] for i, run in enumerate(runs)}
  from matplotlib.colors import LinearSegmentedColormap, to_hex

  by_name = {}
  for init in inits:
    by_length = sides(runs, init)
    shades = LinearSegmentedColormap.from_list(init, SCRATCH_SHADES if init == SCRATCH else PRETRAINED_SHADES)
    for number, side in enumerate(by_length):
      shade = to_hex(shades((number + 1) / len(by_length)))
      by_name |= {run.name: shade for run in side.runs}
  return by_name


def curves(runs: Sequence[Run], metric: str) -> Figure:
  """Plot a metric against iterations, images, instances and pixels; the last three include pre-training."""
  fig = new_figure((11, 7.4))
  panes = fig.subplots(2, 2).ravel()
  for (key, title), axes in zip(AXES, panes, strict=True):
    _panel(axes, runs, metric, key, title)
  _legend(fig, panes[0])
  return fig


def panels(runs: Sequence[Run], metric: str) -> dict[str, Figure]:
  """Return two plots of `curves` as separate plots by title, for pages; images and instances look much the same."""
  by_title = {}
  for key, title in (AXES[0], AXES[-1]):
    fig, axes = _single((5.6, 4.2))
    _panel(axes, runs, metric, key, title)
    _legend(fig, axes, columns=2)
    by_title[f'{metric} against {title}'] = fig
  return by_title


def _panel(axes: Axes, runs: Sequence[Run], metric: str, key: str, title: str) -> None:
  colour_of = colours(runs)
  for run in runs:
    values = run.curve.metrics.get(metric)
    if values is None:
      continue
    before = getattr(run.pretraining, key, 0.0) if run.pretraining is not None else 0.0
    x = run.curve.steps if key == 'iterations' else getattr(run.curve, key) + before
    colour = colour_of[run.name]
    axes.plot(x, values, color=colour, marker='o', markersize=3.5, linewidth=1.6, label=run.name,
              linestyle='-' if run.init == SCRATCH else '--')
    if before:
      axes.plot([0, before], [0, 0], color=colour, linewidth=5, alpha=0.35, solid_capstyle='butt')
    if key == 'iterations':
      _mark_drops(axes, run, colour)
  counted = key != 'iterations' and any(run.pretraining for run in runs)
  title += ', pre-training included (thick line)' if counted else ''
  decorate(axes, f'{metric} against {title}', key, f'{metric} (%)')
  axes.set_ylim(bottom=0)
  axes.set_xlim(left=0)


def end_points(runs: Sequence[Run], metric: str) -> Figure:
  """Plot the final metric of each schedule against images seen; bars are one standard deviation between seeds."""
  fig, axes = _single((7, 4.4))
  by_settings, highest = groups(runs), {}
  for number, group in enumerate(by_settings):
    for style, init in (('-', SCRATCH), ('--', PRETRAINED)):
      by_length = sides(group, init)
      if not by_length:
        continue
      name = init if len(by_settings) == 1 else f'{init}: {by_length[0].runs[0].name}'
      axes.errorbar([side.seen.images for side in by_length], [side.mean(metric) for side in by_length],
                    yerr=[np.nan_to_num(side.spread(metric)) for side in by_length], linestyle=style, marker='o',
                    capsize=3, color=COLOURS[(2 * number + (init != SCRATCH)) % len(COLOURS)], label=name)
      for side in by_length:
        position = side.schedule, side.seen.images
        highest[position] = max(side.mean(metric), highest.get(position, 0.0))
  for (schedule, images), value in highest.items():  # one label for all sides of a schedule
    axes.annotate(schedule, (images, value), textcoords='offset points', xytext=(0, 7), ha='center', fontsize=8,
                  color=INK)
  decorate(axes, f'{metric} at the end of each schedule', 'images seen in detection training', f'{metric} (%)')
  axes.margins(y=0.15)
  axes.legend(frameon=False, fontsize=9)
  return fig


def answer(verdict: Verdict, margin: float) -> Figure:
  """Plot the metric at the end of each schedule from scratch and pre-trained, by images seen.

  Bars of scratch schedules are the confidence interval of the difference from the best pre-trained one, around which
  the margin is a band.
  """
  from matplotlib.ticker import NullLocator

  fig, axes = _single((7, 4.2))
  metric, best, pretrained = verdict.metric, verdict.pretrained, verdict.schedules
  scratch = [step.side for step in verdict.steps]
  highest = best.mean(metric)
  axes.axhspan(highest - margin, highest + margin, color=COLOURS[1], alpha=0.15, linewidth=0,
               label=f'best pre-trained ± {margin:g}')
  half = [np.nan if step.difference is None or step.difference.resolved is not None else step.difference.half
          for step in verdict.steps]
  axes.errorbar([side.seen.images for side in scratch], [side.mean(metric) for side in scratch], yerr=half,
                linestyle='-', marker='o', capsize=4, color=COLOURS[0], label='from scratch')
  axes.plot([side.seen.images for side in pretrained], [side.mean(metric) for side in pretrained], linestyle='--',
            marker='s', color=COLOURS[1], label=PRETRAINED)
  places = {side.seen.images: side.schedule for side in (*pretrained, *scratch)}
  axes.set_xscale('log')
  axes.set_xticks(list(places), list(places.values()))
  axes.xaxis.set_minor_locator(NullLocator())
  decorate(axes, f'{metric} at the end of each schedule', 'schedule (detection training only)', f'{metric} (%)')
  axes.margins(x=0.12, y=0.15)
  axes.legend(frameon=False, fontsize=9)
  return fig


def by_size(runs: Sequence[Run], metric: str) -> Figure | None:
  """Plot the final AP of small, medium and large objects; None if no run has it."""
  kind = metric.split('/')[0]
  names = [f'{kind}/AP{size}' for size in 'sml']
  shown = [run for run in runs if any(np.isfinite(run.final(name)) for name in names)]
  if not shown:
    return None
  fig, axes = _single((7, 4.0))
  width, colour_of = 0.8 / len(shown), colours(runs)
  for i, run in enumerate(shown):
    values = [run.final(name) for name in names]
    axes.bar(np.arange(3) + (i - (len(shown) - 1) / 2) * width, np.nan_to_num(values), width * 0.92,
             color=colour_of[run.name], label=run.name, hatch=None if run.init == SCRATCH else '//',
             edgecolor='white')
  axes.set_xticks(range(3), ['small (< 32² pixels)', 'medium', 'large (> 96²)'])
  decorate(axes, f'{kind} AP by size of object', '', 'AP (%)')
  _legend(fig, axes)
  return fig


def losses(runs: Sequence[Run]) -> Figure:
  """Plot the training loss against iterations, with the drops of the learning rate."""
  fig, axes = _single((7, 4.0))
  highest, colour_of = [], colours(runs)
  for run in runs:
    steps, values = run.losses
    if len(steps):
      axes.plot(steps, values, color=colour_of[run.name], linewidth=1.4, label=run.name)
      highest.append(np.percentile(values, 97))
      _mark_drops(axes, run, colour_of[run.name])
  if highest:
    axes.set_ylim(0, 1.15 * max(highest))  # the first iterations would flatten the rest
  axes.set_xlim(left=0)
  decorate(axes, 'Training loss; dotted: the learning rate drops', 'iterations', 'loss')
  _legend(fig, axes)
  return fig


def render(plots: Mapping[str, Figure], kind: str) -> dict[str, bytes]:
  """Encode plots by name as 'png' or 'svg'. SVG text stays searchable, and the files are reproducible."""
  import matplotlib

  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'rethink_tf'}):
    return {name: encode(fig, kind) for name, fig in plots.items()}


def _single(size: tuple[float, float]) -> tuple[Figure, Axes]:
  fig = new_figure(size)
  return fig, fig.subplots()


def _mark_drops(axes: Axes, run: Run, colour: str) -> None:
  for drop in run.drops:
    axes.axvline(drop, color=colour, linestyle=':', linewidth=1, alpha=0.7)


def _legend(fig: Figure, axes: Axes, columns: int = 4) -> None:
  handles, names = axes.get_legend_handles_labels()
  if handles:
    fig.legend(handles, names, loc='outside lower center', ncols=min(columns, len(names)), frameon=False, fontsize=9)
