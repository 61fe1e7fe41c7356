"""Runs of a comparison that are not independent samples: copies, and a run that was continued with another seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rethink_tf.compare.run_summary import Run


class Copy(NamedTuple):
  """A run that is not an independent sample, because it repeats another one."""

  run: Run
  first: Run  # that it repeats
  until: int | None = None  # with another seed: the last logged step that both have in common

  def __str__(self) -> str:
    names = f'{self.first.name} and {self.run.name}'
    if self.until is None:
      return (f'{names} have the same configuration and the same seed (run.seed = {self.run.seed}): only the first '
              'counts in the verdict.')
    return (f'{names} have the same losses up to step {self.until}, to the last digit, though their seeds differ '
            f'(run.seed = {self.first.seed} and {self.run.seed}): one is a copy of the other, continued with another '
            'seed. Only the first counts in the verdict.')


def independent(runs: Sequence[Run]) -> list[Run]:
  """Return the runs that are independent samples: of runs that repeat one another, only the first."""
  repeated = {one.run.name for one in found(runs)}
  return [run for run in runs if run.name not in repeated]


def found(runs: Sequence[Run]) -> list[Copy]:
  """Return the runs that repeat an earlier one: equal in everything, even the seed, or with the same first losses.

  Runs of another schedule or other settings are other sides: what those share, as in a study, is accounted for
  (intervals.py).
  """
  result: list[Copy] = []
  first: dict[tuple, list[Run]] = {}
  for run in runs:
    side = first.setdefault((run.twin_key, run.init, run.init_key, run.schedule, run.planned_drops), [])
    copy = next((copy for other in side if (copy := _copy(run, other)) is not None), None)
    if copy is None:
      side.append(run)
    else:
      result.append(copy)
  return result


def _copy(run: Run, other: Run) -> Copy | None:
  if _seeds(run) == _seeds(other):
    return Copy(run, other)
  until = _common_until(run, other)
  return None if until is None else Copy(run, other, until)


def _seeds(run: Run) -> tuple:
  return run.seed, run.weights_seeds if run.seeds_of_weights else ()


def _common_until(run: Run, other: Run) -> int | None:
  """Return the last step up to which both runs logged exactly the same losses, None if the first ones differ."""
  steps, own, others = np.intersect1d(run.losses[0], other.losses[0], assume_unique=True, return_indices=True)
  same = np.logical_and.accumulate(run.losses[1][own] == other.losses[1][others])
  return int(steps[same][-1]) if same.any() else None
