"""The time that a study takes: pre-training, training, evaluations, and the start of each process with its tracing.

Nothing is guessed: each kind of run (a norm, a model, ...) is started for a few steps and two evaluations in a
temporary folder, before anything of the study is trained.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rethink_tf.console import duration
from rethink_tf.study.execution import Calibration, Runner
from rethink_tf.study.stages import Stage

_MOST_KINDS = 3  # that are timed; further ones count as the mean of these
# Lines of a configuration that do not change the speed of a step.
_SAME_SPEED = re.compile(r'#|\s*$|run\.seed|WEIGHTS|run\.initial_weights|PretrainedWeights\.|run\.deterministic')


class Speed(NamedTuple):
  """Seconds of the parts of a process that trains."""

  startup: float  # imports, data, tracing, the last checkpoint: what is neither a step nor an evaluation
  step: float
  evaluation: float

  @classmethod
  def of(cls, calibration: Calibration) -> Speed:
    """Return the speed of a short run; its first step of each padded shape and first evaluation include tracing."""
    train = [line for line in calibration.lines if line.get('kind') == 'train']
    evaluations = [line['eval_seconds'] for line in calibration.lines if line.get('kind') == 'eval']
    step, evaluation = seconds_per_step(train), min(evaluations, default=0.0)
    startup = calibration.seconds - train[-1]['step'] * step - len(evaluations) * evaluation
    return cls(max(startup, 0.0), step, evaluation)

  def seconds(self, steps: int, evaluations: int) -> float:
    """Return the seconds of a process that trains some steps; none without steps."""
    return self.startup + steps * self.step + evaluations * self.evaluation if steps or evaluations else 0.0


def seconds_per_step(lines: Sequence[Mapping[str, Any]]) -> float:
  """Return the seconds of the median step, of lines of every step."""
  steps = [(after['seconds'] - before['seconds']) / max(after['step'] - before['step'], 1)
           for before, after in itertools.pairwise(lines)]
  return max(statistics.median(steps or [lines[0]['seconds']]), 1e-9)


class Estimate(NamedTuple):
  """The seconds of each pre-training and of all stages."""

  pretraining: Mapping[str, float]  # by run folder
  stages: float

  def __str__(self) -> str:
    listed = [f'pre-training {path}: about {duration(seconds)}' for path, seconds in self.pretraining.items()]
    total = sum(self.pretraining.values()) + self.stages
    return '\n'.join([*listed, f'the study takes about {duration(total)}, with evaluations and the start of each run '
                               f'({duration(self.stages)} without pre-training)'])


def estimate(runner: Runner, stages: Sequence[Stage],
             pretraining: Mapping[str, tuple[Sequence[str], Sequence[str]]], more: Sequence[str]) -> Estimate:
  """Time a few steps of each kind of run that remains, and of each pre-training; return the time of all.

  stages: those that are not done. pretraining: run folder -> gin files and bindings, of those that are not complete.
  more: arguments of pre-training.

  Raises:
    UserError: a command failed.
  """
  before = {}
  for path, (files, params) in pretraining.items():
    calibration = runner.calibrate_pretraining(path, files, params, more)
    before[path] = Speed.of(calibration).seconds(calibration.remaining_steps, 1)
  kinds: dict[str, list[Stage]] = {}
  for stage in stages:
    kinds.setdefault(_kind(stage), []).append(stage)
  timed = sorted(kinds, key=lambda kind: -_work(kinds[kind]))[:_MOST_KINDS]
  speeds = {kind: Speed.of(runner.calibrate(_representative(kinds[kind], pretraining))) for kind in timed}
  mean = Speed(*map(statistics.fmean, zip(*speeds.values(), strict=True))) if speeds else Speed(0, 0, 0)
  total = 0.0
  for kind, members in kinds.items():
    for stage in members:
      begin = max(stage.start, runner.reached(stage))
      total += speeds.get(kind, mean).seconds(max(stage.end - begin, 0), evaluations(stage, begin))
  return Estimate(before, total)


def evaluations(stage: Stage, begin: int) -> int:
  """Return the number of evaluations of a stage after step `begin`."""
  every = stage.length.every
  periodic = stage.end // every - begin // every if every else 0
  at_end = not stage.partial and not (every and stage.end % every == 0)
  return periodic + at_end


def _kind(stage: Stage) -> str:
  return '\n'.join(sorted(line for line in stage.length.kind.splitlines() if not _SAME_SPEED.match(line)))


def _work(stages: Iterable[Stage]) -> int:
  return sum((stage.end - stage.start) * stage.length.batch_size for stage in stages)


def _representative(stages: Sequence[Stage], pretraining: Iterable[str]) -> Stage:
  """Return a stage that starts from no pre-training that is missing; else one that starts from random weights."""
  missing = [repr(path) for path in pretraining]
  for stage in stages:
    if not any(path in param for param in stage.trial.params for path in missing):
      return stage
  trial = stages[0].trial
  return stages[0]._replace(trial=trial._replace(params=(*trial.params, 'run.initial_weights = None')))
