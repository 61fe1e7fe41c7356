"""Estimates the time that a study takes: pre-training, training, evaluations, and the start of each run with its
tracing.

Nothing is guessed: before the study begins, each kind of run (a norm, a model, ...) is started in a temporary folder
for a few steps and evaluations. While the study runs, measurements of its own runs replace these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rethink_tf.console import duration
from rethink_tf.errors import UserError
from rethink_tf.study.execution import Runner
from rethink_tf.study.speeds import kind_of
from rethink_tf.study.stages import Stage

_MOST_KINDS = 3  # that are timed; further ones count as the mean of these


class Estimate(NamedTuple):
  """Estimated seconds of each pre-training and of all stages."""

  pretraining: Mapping[str, float]  # by run folder
  stages: float

  def __str__(self) -> str:
    listed = [f'pre-training {path}: about {duration(seconds)}' for path, seconds in self.pretraining.items()]
    total = sum(self.pretraining.values()) + self.stages
    return '\n'.join([*listed, f'the study takes about {duration(total)}, with evaluations and the start of each run '
                               f'({duration(self.stages)} without pre-training)'])


def estimate(runner: Runner, stages: Sequence[Stage],
             pretraining: Mapping[str, tuple[Sequence[str], Sequence[str], str | None]]) -> Estimate:
  """Time a few steps of each kind of run that remains, and of each pre-training; return the time of all.

  stages: those that are not done. pretraining: run folder -> gin files, bindings and data folder, of those that are not
  complete.

  Raises:
    UserError: a command failed, or trains too few steps.
  """
  before = {path: runner.calibrate_pretraining(path, *configuration) for path, configuration in pretraining.items()}
  kinds: dict[str, list[Stage]] = {}
  for stage in stages:
    kinds.setdefault(kind_of(stage), []).append(stage)
  timed = sorted(kinds, key=lambda kind: -_work(kinds[kind]))[:_MOST_KINDS]
  # The kind of the first stage last: its graph is used again.
  for kind in sorted(timed, key=list(kinds).index, reverse=True):
    runner.calibrate(_representative(kinds[kind], pretraining))
  seconds = runner.remaining(stages)
  if math.isnan(seconds):
    raise UserError('the schedules are too short to be timed')
  return Estimate(before, seconds)


def _work(stages: Iterable[Stage]) -> int:
  return sum((stage.end - stage.start) * stage.config.batch_size for stage in stages)


def _representative(stages: Sequence[Stage], pretraining: Iterable[str]) -> Stage:
  """Return a stage that starts from no missing pre-training, else one that starts from random weights."""
  missing = [repr(path) for path in pretraining]
  for stage in stages:
    if not any(path in param for param in stage.trial.params for path in missing):
      return stage
  trial = stages[0].trial
  return stages[0]._replace(trial=trial._replace(params=(*trial.params, 'run.initial_weights = None')))
