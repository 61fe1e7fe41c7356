"""Order of a study's runs, and the iterations that they share."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import NamedTuple

from rethink_tf.study.grid import Trial, TrialConfig


class Stage(NamedTuple):
  """One call of the training command."""

  trial: Trial
  config: TrialConfig
  start: int  # first iteration, if nothing of it is done yet
  end: int
  fork_of: Trial | None = None  # starts from a copy of this run's checkpoint of iteration `start`

  @property
  def partial(self) -> bool:
    """Whether the run continues in a later stage."""
    return self.end < self.config.steps


def plan(trials: Sequence[Trial], configs: Sequence[TrialConfig], share_prefixes: bool = True) -> list[Stage]:
  """Return the stages in the order of execution.

  Of trials that differ only in the length of their k x schedule, the longest is the trunk. It is trained to the first
  drop of the shortest one, which is forked from it and trained to its end; then to the first drop of the next, and so
  on. Each run has the iterations that it would have on its own.
  """
  kinds = collections.OrderedDict()
  for trial, config in zip(trials, configs, strict=True):
    kinds.setdefault(config.kind, []).append((trial, config))
  stages = []
  for members in kinds.values():
    members = sorted(members, key=lambda member: member[1].steps)
    trunk, whole = members[-1]
    done = 0
    for trial, config in members[:-1]:
      # Schedules with explicit boundaries may differ from the start.
      shared = config.first_drop if share_prefixes and whole.first_drop is not None else 0
      if shared and shared > done:
        stages.append(Stage(trunk, whole, done, shared))
        done = shared
      stages.append(Stage(trial, config, shared or 0, config.steps, trunk if shared else None))
    stages.append(Stage(trunk, whole, done, whole.steps))
  return stages


def images(stages: Sequence[Stage]) -> int:
  """Return the number of images to train on in all stages."""
  return sum((stage.end - stage.start) * stage.config.batch_size for stage in stages)


def table(stages: Sequence[Stage]) -> list[list[str]]:
  """Return one row per stage, the header first."""
  rows = [['run', 'iterations', 'images', 'shared']]
  for stage in stages:
    note = 'continued below' if stage.partial else ''
    if stage.fork_of is not None:
      note = f'up to {stage.start} from {stage.fork_of.name}'
    rows.append([stage.trial.name, f'{stage.start}-{stage.end}',
                 str((stage.end - stage.start) * stage.config.batch_size), note])
  return rows


def evaluations(stage: Stage, begin: int) -> int:
  """Return the number of evaluations of a stage after step `begin`."""
  every = stage.config.every
  periodic = stage.end // every - begin // every if every else 0
  at_end = not stage.partial and not (every and stage.end % every == 0)
  return periodic + at_end


def needed(stages: Sequence[Stage], number: int) -> list[int]:
  """Return the numbers of the stages that must be complete before one begins: earlier ones of its run and trunk."""
  stage = stages[number]
  trunk = stage.fork_of.name if stage.fork_of is not None else None
  return [k for k, other in enumerate(stages[:number])
          if other.trial.name == stage.trial.name or other.trial.name == trunk and other.end <= stage.start]


def forks_before(stages: Sequence[Stage], number: int) -> list[int]:
  """Return the numbers of the stages to be forked from a stage's run before it continues and removes checkpoints."""
  return [k for k, other in enumerate(stages[:number])
          if other.fork_of is not None and other.fork_of.name == stages[number].trial.name]
