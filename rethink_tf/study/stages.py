"""In which order a study's runs are made, and which iterations they share."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import NamedTuple

from rethink_tf.study.grid import Length, Trial


class Stage(NamedTuple):
  """One call of the training door."""

  trial: Trial
  length: Length
  start: int  # iteration at which it begins, when nothing of it is done
  end: int
  fork_of: Trial | None = None  # begins with a copy of this run's checkpoint of iteration `start`

  @property
  def partial(self) -> bool:
    """The run goes on in a later stage."""
    return self.end < self.length.steps


def plan(trials: Sequence[Trial], lengths: Sequence[Length], share_prefixes: bool = True) -> list[Stage]:
  """Stages in the order of execution.

  Of trials that differ in the length of their k x schedule alone, the longest is the trunk: it is trained to the first
  drop of the shortest, whose run goes on from there on its own, then to the first drop of the next. Every run then
  holds just the iterations it would have made alone.
  """
  kinds = collections.OrderedDict()
  for trial, length in zip(trials, lengths, strict=True):
    kinds.setdefault(length.kind, []).append((trial, length))
  stages = []
  for members in kinds.values():
    members = sorted(members, key=lambda member: member[1].steps)
    trunk, whole = members[-1]
    done = 0
    for trial, length in members[:-1]:
      # Free points are no k x schedule: nothing says that two of them begin alike.
      shared = length.first_drop if share_prefixes and whole.first_drop is not None else 0
      if shared and shared > done:
        stages.append(Stage(trunk, whole, done, shared))
        done = shared
      stages.append(Stage(trial, length, shared or 0, length.steps, trunk if shared else None))
    stages.append(Stage(trunk, whole, done, whole.steps))
  return stages


def images(stages: Sequence[Stage]) -> int:
  """That are trained on in all stages."""
  return sum((stage.end - stage.start) * stage.length.batch_size for stage in stages)


def table(stages: Sequence[Stage]) -> list[list[str]]:
  """One row a stage, the header first."""
  rows = [['run', 'iterations', 'images', 'shared']]
  for stage in stages:
    note = 'goes on below' if stage.partial else ''
    if stage.fork_of is not None:
      note = f'up to {stage.start} from {stage.fork_of.name}'
    rows.append([stage.trial.name, f'{stage.start}-{stage.end}',
                 str((stage.end - stage.start) * stage.length.batch_size), note])
  return rows
