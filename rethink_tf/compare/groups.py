"""Grouping of the runs of a comparison by their settings, and into sides by initial weights and schedule."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rethink_tf.compare.run_summary import PRETRAINED, SCRATCH, Run, Seen

Key = tuple[tuple[str, str], ...]  # of Run.twin_key and Run.init_key


class Side(NamedTuple):
  """Runs that differ only in their seed."""

  schedule: str
  runs: tuple[Run, ...]
  arm: str = ''  # name of the initial weights, where a comparison has several

  def mean(self, metric: str) -> float:
    """Return the mean of a final metric over seeds."""
    return float(np.mean([run.final(metric) for run in self.runs]))

  def spread(self, metric: str) -> float:
    """Return the standard deviation of a final metric between seeds, NaN for one run."""
    values = [run.final(metric) for run in self.runs]
    return float(np.std(values, ddof=1)) if len(values) > 1 else float('nan')

  @property
  def seen(self) -> Seen:
    """Samples seen, mean over seeds."""
    return Seen(*np.mean([run.seen for run in self.runs], 0))

  @property
  def name(self) -> str:
    """Name by initial weights and schedule, which is that of any of its runs."""
    arm = f' ({self.arm})' if self.arm else ''
    return f'{self.runs[0].init}{arm} {self.schedule}'

  @property
  def label(self) -> str:
    """The name, followed by the number of seeds."""
    return self.name + (f', {len(self.runs)} seeds' if len(self.runs) > 1 else '')


def groups(runs: Sequence[Run]) -> list[list[Run]]:
  """Group runs that differ only in initial weights, schedule and seed, in the order of their first run."""
  by_key = collections.OrderedDict()
  for run in runs:
    by_key.setdefault(run.twin_key, []).append(run)
  return list(by_key.values())


def labels(by_settings: Sequence[Sequence[Run]], most: int = 3) -> list[str]:
  """Return what sets each of several groups apart, as 'num_images = 50'; '' for a single group."""
  settings = [dict(group[0].twin_key) for group in by_settings]
  names = sorted({name for one in settings for name in one})
  names = [name for name in names if len({one.get(name) for one in settings}) > 1]
  used = [{name.rpartition('.')[0] for name in one} for one in settings]
  # What only some of the groups use at all is chosen by another binding, as CopyPaste's parameters by TrainInput.mix.
  names = [name for name in names if all(name.rpartition('.')[0] in own for own in used)] or names
  more = ', …' if len(names) > most else ''
  return [', '.join(f'{name.rpartition(".")[2]} = {one.get(name, "default")}' for name in names[:most]) + more
          for one in settings]


def labels_by_key(runs: Sequence[Run]) -> dict[Key, str]:
  """Return what sets each group of runs apart, by the twin_key of its runs."""
  by_settings = groups(runs)
  return dict(zip((group[0].twin_key for group in by_settings), labels(by_settings), strict=True))


def in_group(name: str, about: str) -> str:
  """Return a name followed by what sets its group apart, as 'scratch 2x, num_images = 50'; '' adds nothing."""
  return f'{name}, {about}' if about else name


def sides(runs: Sequence[Run], init: str) -> list[Side]:
  """Return the runs of a group with initial weights `init` as one side per schedule and weights, by images seen.

  Schedules of one length whose rate drops at other steps are different ones.
  """
  by_key = collections.OrderedDict()
  for run in runs:
    if run.init == init:
      by_key.setdefault((run.schedule, run.planned_drops, run.init_key), []).append(run)
  arms = _arms({each[0].init_key: each[0].weights_name for each in by_key.values()})
  several = {schedule for schedule, drops, _ in by_key if any(
    other == schedule and others != drops for other, others, _ in by_key)}
  return sorted((Side(schedule + (f' (drops at {", ".join(map(str, drops))})' if schedule in several and drops else ''),
                      tuple(each), arms[init_key]) for (schedule, drops, init_key), each in by_key.items()),
                key=lambda side: side.seen.images)


def by_arm(of: Sequence[Side]) -> dict[str, list[Side]]:
  """Return sides by the name of their initial weights, which are in the order of the names."""
  found: dict[str, list[Side]] = {}
  for side in sorted(of, key=lambda side: side.arm):
    found.setdefault(side.arm, []).append(side)
  return found


def _arms(names: Mapping[Key, str]) -> dict[Key, str]:
  """Return a distinct name for each kind of initial weights: its own, with what sets it apart from others of that name.

  '' for a single kind.
  """
  if len(names) < 2:
    return dict.fromkeys(names, '')
  arms = {}
  for key, name in names.items():
    same = [dict(other) for other in names if names[other] == name]
    apart = sorted({setting for one in same for setting in one if len({other.get(setting) for other in same}) > 1})
    arms[key] = ', '.join([name, *(f'{setting.rpartition(".")[2]} = {dict(key).get(setting, "default")}'
                                   for setting in apart)])
  return arms


def labelled_sides(runs: Sequence[Run]) -> list[tuple[str, Side]]:
  """Return the sides of all groups, each with a label: the name of its only run, or what its runs share."""
  about = labels_by_key(runs)
  return [(side.runs[0].name if len(side.runs) == 1 else in_group(side.label, about[group[0].twin_key]), side)
          for group in groups(runs) for init in (SCRATCH, PRETRAINED) for side in sides(group, init)]
