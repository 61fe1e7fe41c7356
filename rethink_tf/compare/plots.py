"""Plots of a comparison: a metric against samples seen (Fig. 1 and 2), its final values, AP by size, losses.

Runs are told apart by more than colour: pre-trained ones have dashed lines and hatched bars, a pattern for each kind of
initial weights; schedules have markers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rethink_tf.compare.groups import Side, by_arm, groups, in_group, labelled_sides, labels_by_key, sides
from rethink_tf.compare.run_summary import PRETRAINED, SCRATCH, Run, metric_name
from rethink_tf.console import percent, points
from rethink_tf.visualization.plotting import COLOURS, INK, MARKERS, decorate, encode, new_figure

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

  from rethink_tf.compare.verdict import Verdict

SHADES = {  # of each kind of initial weights, from short to long schedules
  SCRATCH: (('#5a99cf', '#0b3f6b'), ('#2f8a8d', '#0d4547')),
  PRETRAINED: (('#de7482', '#8f1626'), ('#9a78c8', '#4b2e83'), ('#c46f12', '#6b3a05'))}
AXES = (('iterations', 'iterations'), ('images', 'images seen'), ('instances', 'instances seen'),
        ('pixels', 'pixels seen'))
SIZES = {'s': 'small (< 32\u00b2 pixels)', 'm': 'medium', 'l': 'large (> 96\u00b2)'}
_BESIDE = 0.08  # inches between lines of `end_points` at the same number of images
_OF_PAGE = (4.6, 3.4)  # inches: text is readable on a screen of 390 pixels
_CHARACTER = 0.017  # width of a character of a label, of that of its axis


class Style(NamedTuple):
  """What tells initial weights apart besides colour."""

  line: Any  # Matplotlib's line style
  hatch: str | None  # of bars
  dashes: str  # SVG's stroke-dasharray, '' for a solid line


_SOLID = Style('-', None, '')
_DASHED = (Style('--', '///', '7 4'), Style('-.', '...', '8 3 1.5 3'), Style((0, (8, 2, 2, 2, 2, 2)), 'xxx', '9 2 2 2'))


def styles(runs: Sequence[Run]) -> dict[str, Style]:
  """Return a style per run name, by initial weights."""
  found = {}
  for group in groups(runs):
    found |= {run.name: _SOLID for run in group if run.init == SCRATCH}
    for number, arm in enumerate(by_arm(sides(group, PRETRAINED)).values()):
      found |= {run.name: _DASHED[number % len(_DASHED)] for side in arm for run in side.runs}
  return found


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
    for number, by_length in enumerate(by_arm(sides(runs, init)).values()):
      shades = LinearSegmentedColormap.from_list(init, list(SHADES[init][number % len(SHADES[init])]))
      for place, side in enumerate(by_length):
        shade = to_hex(shades(place / max(1, len(by_length) - 1)))
        by_name |= {run.name: shade for run in side.runs}
  return by_name


def markers(runs: Sequence[Run]) -> dict[str, str]:
  """Return a marker per run name, by schedule."""
  schedules = list(dict.fromkeys(run.schedule for run in sorted(runs, key=lambda run: run.seen.images)))
  return {run.name: MARKERS[schedules.index(run.schedule) % len(MARKERS)] for run in runs}


def curves(runs: Sequence[Run], metric: str) -> Figure:
  """Plot a metric against iterations, images, instances and pixels; the last three include pre-training."""
  fig = new_figure((11, 7.4))
  panes = fig.subplots(2, 2).ravel()
  for (key, title), axes in zip(AXES, panes, strict=True):
    _panel(axes, runs, metric, key, title)
  _legend(fig, panes[0])
  return fig


def panels(runs: Sequence[Run], metric: str, objects: Mapping[str, int] | None = None) -> dict[str, Figure]:
  """Return the plots of a page by alternative text, without legends, which they share.

  The plot against pixels is left out where it would look like that against iterations.
  objects: number of held-out objects by size, as for `by_size`.
  """
  name, by_text = metric_name(metric), {}
  finals = '; '.join(f'{run.name} {run.final(metric):.1f}' for run in runs)
  for key, title in (AXES[0], AXES[-1])[:2 if _pixels_matter(runs) else 1]:
    fig, axes = _single(_OF_PAGE)
    _panel(axes, runs, metric, key, title)
    by_text[f'{name} against {title}, in percent. At the end: {finals}'] = fig
  sizes = by_size(runs, metric, objects, page=True)
  if sizes is not None:
    kind = metric.split('/')[0]
    values = '; '.join(f'{label} ' + ', '.join(f'{side.mean(f"{kind}/AP{size}"):.1f}' for size in SIZES)
                       for label, side in labelled_sides(runs))
    by_text[f'{kind} AP of small, medium and large objects, in percent: {values}'.replace('nan', 'none')] = sizes
  if any(len(run.losses[0]) for run in runs):
    by_text['Training loss against iterations; dotted lines mark drops of the learning rate'] = losses(runs, page=True)
  return by_text


def _pixels_matter(runs: Sequence[Run]) -> bool:
  """Whether curves against pixels look different from those against iterations."""
  per_step = [run.seen.pixels / run.curve.steps[-1] for run in runs if np.isfinite(run.seen.pixels)]
  return any(run.pretraining for run in runs) or bool(per_step) and max(per_step) > 1.05 * min(per_step)


def _panel(axes: Axes, runs: Sequence[Run], metric: str, key: str, title: str) -> None:
  colour_of, marker_of, style_of, name = colours(runs), markers(runs), styles(runs), metric_name(metric)
  for run in runs:
    values = run.curve.metrics.get(metric)
    if values is None:
      continue
    before = getattr(run.pretraining, key, 0.0) if run.pretraining is not None else 0.0
    x = run.curve.steps if key == 'iterations' else getattr(run.curve, key) + before
    colour = colour_of[run.name]
    axes.plot(x, values, color=colour, marker=marker_of[run.name], markersize=4, linewidth=1.6, label=run.name,
              linestyle=style_of[run.name].line)
    if before:
      axes.plot([0, before], [0, 0], color=colour, linewidth=5, alpha=0.35, solid_capstyle='butt')
    if key == 'iterations':
      _mark_drops(axes, run, colour)
  counted = key != 'iterations' and any(run.pretraining for run in runs)
  decorate(axes, f'{name} against {title}', f'{title}, with pre-training (thick line)' if counted else title,
           f'{name} (%)')
  axes.set_ylim(bottom=0)
  axes.set_xlim(left=0)


def end_points(runs: Sequence[Run], metric: str) -> Figure:
  """Plot the final metric of each schedule against images seen; error bars are one standard deviation between seeds.

  Each group of runs has a line for scratch and one for each kind of initial weights; sides with the same number of
  images seen are drawn next to each other.
  """
  from matplotlib.transforms import ScaledTranslation

  fig, axes = _single((7, 4.4))
  about, highest, colours, style_of = labels_by_key(runs), {}, itertools.cycle(COLOURS), styles(runs)
  for group in groups(runs):
    for init in (SCRATCH, PRETRAINED):
      lines = by_arm(sides(group, init))
      if not lines:
        next(colours)  # each init of a group keeps its colour
      for arm, by_length in lines.items():
        name = in_group(f'{init} ({arm})' if arm else init, about[group[0].twin_key])
        spreads = [np.nan_to_num(side.spread(metric)) for side in by_length]
        beside = ScaledTranslation(_BESIDE * len(axes.containers), 0, fig.dpi_scale_trans)
        axes.errorbar([side.seen.images for side in by_length], [side.mean(metric) for side in by_length], yerr=spreads,
                      linestyle=style_of[by_length[0].runs[0].name].line, marker='o', capsize=3, color=next(colours),
                      label=name, transform=axes.transData + beside)
        for side, spread in zip(by_length, spreads, strict=True):
          place, mean = (side.schedule, side.seen.images), side.mean(metric)
          # Matplotlib does not count what is shifted.
          axes.update_datalim([(side.seen.images, mean - spread), (side.seen.images, mean + spread)])
          highest[place] = max(mean + spread, highest.get(place, 0.0))
  for (schedule, images), value in highest.items():  # one label for all sides of a schedule
    axes.annotate(schedule, (images, value), textcoords='offset points', xytext=(0, 7), ha='center', fontsize=8,
                  color=INK)
  name = metric_name(metric)
  decorate(axes, f'{name} at the end of each schedule', 'images seen in detection training', f'{name} (%)')
  axes.margins(y=0.15)
  axes.autoscale_view()
  axes.legend(frameon=False, fontsize=9)
  return fig


def answer(verdict: Verdict, margin: float) -> Figure:
  """Plot the metric at the end of each schedule from scratch and pre-trained, by images seen.

  Small marks are single runs. Bars of scratch schedules are the confidence interval of the difference from the best
  pre-trained one, around which the margin is a band.
  """
  from matplotlib.ticker import NullLocator

  fig, axes = _single(_OF_PAGE)
  metric, name = verdict.metric, metric_name(verdict.metric)
  scratch = [step.side for step in verdict.steps]
  highest = verdict.pretrained.mean(metric)
  axes.axhspan(highest - margin, highest + margin, color=COLOURS[1], alpha=0.15, linewidth=0,
               label=f'best pre-trained \u00b1 {points(margin)}')
  intervals = [None if step.difference is None or step.difference.resolved is not None else step.difference
               for step in verdict.steps]
  below_and_above = np.transpose([(np.nan, np.nan) if one is None else (one.value - one.low, one.high - one.value)
                                  for one in intervals])
  known = [one.confidence for one in intervals if one is not None]
  bars = f'bars: {percent(known[0])} interval of the difference' if known else 'no intervals'
  for sides_of, colour, marker, style, label in ((verdict.schedules, COLOURS[1], 's', '--', PRETRAINED),
                                                 (scratch, COLOURS[0], 'o', '-', f'from scratch ({bars})')):
    axes.errorbar([side.seen.images for side in sides_of], [side.mean(metric) for side in sides_of],
                  yerr=below_and_above if sides_of is scratch else None, linestyle=style, marker=marker,
                  capsize=4, color=colour, label=label)
    seeds = [(side.seen.images, run.final(metric)) for side in sides_of for run in side.runs if len(side.runs) > 1]
    if seeds:
      axes.scatter(*zip(*seeds, strict=True), s=10, marker=marker, facecolors='none', edgecolors=colour, linewidths=0.8)
  places = {side.schedule: side.seen.images for side in (*verdict.schedules, *scratch)}
  axes.set_xscale('log')
  axes.set_xticks(*_ticks(places))
  axes.xaxis.set_minor_locator(NullLocator())
  decorate(axes, f'{name} at the end of each schedule', 'schedule (detection training only)', f'{name} (%)')
  axes.margins(x=0.12, y=0.15)
  low, high = axes.get_ylim()
  axes.set_ylim(max(low, 0.0), min(high, 100.0))  # of a metric in percent: bars that reach further are cut
  handles, names = axes.get_legend_handles_labels()
  fig.legend(handles, names, loc='outside lower left', frameon=False, fontsize=9)
  return fig


def _ticks(places: Mapping[str, float]) -> tuple[list[float], list[str]]:
  """Return ticks and labels of the schedules that do not overlap on a logarithmic axis as wide as the page.

  Schedules of one length share a label; one without room has none, the longest before the others.
  """
  by_place: dict[float, list[str]] = {}
  for name, place in places.items():
    by_place.setdefault(place, []).append(name)
  found, room = sorted(by_place), 1.24 * max(np.log(max(by_place) / min(by_place)), 1e-9)  # with the margins
  labels, taken = [], []
  for place in (found[-1], found[0], *found[-2:0:-1])[:len(found)]:
    half = _CHARACTER * (max(map(len, by_place[place])) + 1) / 2
    if all(abs(np.log(place / other)) / room >= half + width for other, width in taken):
      labels.append((place, '\n'.join(by_place[place])))
      taken.append((place, half))
  return found, [dict(labels).get(place, '') for place in found]


def describe(verdict: Verdict, margin: float) -> str:
  """Return the alternative text of `answer`: all its numbers."""
  def listed(sides_of: Sequence[Side]) -> str:
    return ', '.join(f'{side.schedule} {side.mean(verdict.metric):.1f}' for side in sides_of)

  differences = ', '.join(f'{step.side.schedule} {step.difference}' for step in verdict.steps
                          if step.difference is not None and step.difference.resolved is None)
  compared = f' Differences from the best pre-trained schedule: {differences}.' if differences else ' No intervals.'
  return (f'{metric_name(verdict.metric)} at the end of each schedule, in percent. From scratch: '
          f'{listed([step.side for step in verdict.steps])}. Pre-trained: {listed(verdict.schedules)}.{compared} '
          f'Margin: {points(margin)}.')


def by_size(runs: Sequence[Run], metric: str, objects: Mapping[str, int] | None = None,
            page: bool = False) -> Figure | None:
  """Plot the final AP of small, medium and large objects, mean over seeds; None if no run has it.

  objects: number of held-out objects of each size, 's', 'm' and 'l'; None: unknown. page: for a page, without legend.
  """
  kind = metric.split('/')[0]
  names = [f'{kind}/AP{size}' for size in SIZES]
  shown = [(label, side) for label, side in labelled_sides(runs) if any(np.isfinite(side.mean(name)) for name in names)]
  if not shown:
    return None
  fig, axes = _single(_OF_PAGE if page else (7, 4.0))
  width, colour_of, style_of = 0.8 / len(shown), colours(runs), styles(runs)
  for i, (label, side) in enumerate(shown):
    values = [side.mean(name) for name in names]
    axes.bar(np.arange(3) + (i - (len(shown) - 1) / 2) * width, np.nan_to_num(values), width * 0.92,
             color=colour_of[side.runs[0].name], label=label, hatch=style_of[side.runs[0].name].hatch,
             edgecolor='white', linewidth=0.3)
  counts = [''] * 3 if objects is None else [f'\n{objects[size]:,} objects' for size in SIZES]
  axes.set_xticks(range(3), [label + count for label, count in zip(SIZES.values(), counts, strict=True)])
  decorate(axes, f'{kind} AP by size of object', '', 'AP (%)')
  if not page:
    _legend(fig, axes)
  return fig


def losses(runs: Sequence[Run], page: bool = False) -> Figure:
  """Plot the training loss against iterations, with the drops of the learning rate; page: without legend."""
  fig, axes = _single(_OF_PAGE if page else (7, 4.0))
  highest, colour_of, style_of = [], colours(runs), styles(runs)
  for run in runs:
    steps, values = run.losses
    if len(steps):
      axes.plot(steps, values, color=colour_of[run.name], linewidth=1.4, label=run.name,
                linestyle=style_of[run.name].line)
      highest.append(np.percentile(values, 97))
      _mark_drops(axes, run, colour_of[run.name])
  if highest:
    axes.set_ylim(0, 1.15 * max(highest))  # the first iterations would flatten the rest
  axes.set_xlim(left=0)
  decorate(axes, 'Training loss; dotted: learning rate drops', 'iterations', 'loss')
  if not page:
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
