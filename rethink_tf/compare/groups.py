"""Runs of a comparison grouped into sides."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rethink_tf.compare.run_summary import Run, Seen


class Side(NamedTuple):
  """Runs that differ in nothing but their seed."""

  schedule: str
  runs: tuple[Run, ...]

  def ap(self, figure: str) -> float:
    return float(np.mean([run.final(figure) for run in self.runs]))

  def spread(self, figure: str) -> float:
    """Standard deviation between seeds; NaN of one run."""
    values = [run.final(figure) for run in self.runs]
    return float(np.std(values, ddof=1)) if len(values) > 1 else float('nan')

  @property
  def seen(self) -> Seen:
    return Seen(*np.mean([run.seen for run in self.runs], 0))

  @property
  def label(self) -> str:
    seeds = f', {len(self.runs)} seeds' if len(self.runs) > 1 else ''
    return f'{self.runs[0].init} {self.schedule}{seeds}'


def groups(runs: Sequence[Run]) -> list[list[Run]]:
  """Runs by what else they are set to, in the order of their first."""
  found = collections.OrderedDict()
  for run in runs:
    found.setdefault(run.twin_key, []).append(run)
  return list(found.values())


def sides(runs: Sequence[Run], init: str) -> list[Side]:
  """The runs of a group from some initial weights, by schedule, the one that has seen least first."""
  found = collections.OrderedDict()
  for run in runs:
    if run.init == init:
      found.setdefault(run.schedule, []).append(run)
  made = [Side(schedule, tuple(each)) for schedule, each in found.items()]
  return sorted(made, key=lambda side: side.seen.images)
