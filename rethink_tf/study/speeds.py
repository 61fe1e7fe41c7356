"""Speeds of the kinds of runs, measured before a study begins and while it runs."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rethink_tf.study.stages import Stage
from rethink_tf.study.worker import Reply

# Lines of a configuration that do not change the speed of a step.
_SAME_SPEED = re.compile(r'#|\s*$|run\.seed|WEIGHTS|run\.initial_weights|PretrainedWeights\.|run\.deterministic')
_ENOUGH = 3  # steps of a run, after its first line, that say how fast it is


class Speed(NamedTuple):
  """Seconds of the parts of a run; nan: not known yet."""

  first: float  # what is neither a step nor an evaluation, in a run that is traced: imports, data, tracing, checkpoints
  again: float  # the same in a run that uses the graph of an earlier one
  step: float
  evaluation: float

  def start(self, shared: bool) -> float:
    """Return the seconds of a run outside steps and evaluations; shared: it uses the graph of an earlier run."""
    known = [one for one in ((self.again, self.first) if shared else (self.first, self.again)) if not math.isnan(one)]
    return known[0] if known else 0.0

  def seconds(self, steps: int, evaluations: int) -> float:
    """Return the seconds of a number of steps and evaluations."""
    return steps * self.step + evaluations * self.evaluation


class Speeds:
  """The speed of each kind of run; runs of one kind differ only in what does not change the speed of a step."""

  def __init__(self) -> None:
    self._found: dict[str, Speed] = {}

  def of(self, kind: str) -> Speed | None:
    """Return the speed of a kind of run; the mean of all kinds if it has not been measured, None if none has been."""
    if kind in self._found or not self._found:
      return self._found.get(kind)
    return Speed(*(_mean([speed[i] for speed in self._found.values()]) for i in range(len(Speed._fields))))

  def known(self, kind: str) -> bool:
    """Whether a kind of run has been measured."""
    return kind in self._found

  def note_steps(self, kind: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Record the seconds of a step and of an evaluation from the metrics of a run."""
    step, evaluation = seconds_per_step(lines), seconds_per_evaluation(lines)
    was = self._found.get(kind) or Speed(math.nan, math.nan, math.nan, math.nan)
    step = was.step if math.isnan(step) else step
    if not math.isnan(step):
      evaluation = evaluation if not math.isnan(evaluation) else was.evaluation
      self._found[kind] = was._replace(step=step, evaluation=0.0 if math.isnan(evaluation) else evaluation)

  def forget(self, kind: str) -> None:
    """Exclude a kind of run from the mean."""
    self._found.pop(kind, None)

  def note_whole(self, kind: str, reply: Reply) -> None:
    """Record a run that is too short for its start and its steps to be told apart."""
    self._found[kind] = Speed(reply.import_seconds + reply.seconds, reply.seconds, 0.0, 0.0)

  def note_first(self, kind: str, reply: Reply, steps: int) -> None:
    """Record the start of a run whose steps and only evaluation include tracing, once the speeds of both are known."""
    speed = self._found.get(kind)
    if speed is not None and not reply.shared:
      rest = reply.import_seconds + reply.seconds - speed.seconds(steps, 1)
      self._found[kind] = speed._replace(first=max(rest, 0.0))

  def note_share(self, kind: str, share: float) -> None:
    """Scale the evaluations recorded so far from a share of the held-out images to all of them."""
    if share < 1 and kind in self._found:
      self._found[kind] = self._found[kind]._replace(evaluation=self._found[kind].evaluation / share)

  def note_run(self, kind: str, lines: Sequence[Mapping[str, Any]], reply: Reply, steps: int) -> None:
    """Record the speeds of a complete run of `steps` steps."""
    self.note_steps(kind, lines)
    speed = self._found.get(kind)
    if speed is None:
      return
    evaluations = sum(line.get('kind') == 'eval' for line in lines)
    rest = max(reply.import_seconds + reply.seconds - speed.seconds(steps, evaluations), 0.0)
    self._found[kind] = speed._replace(again=rest) if reply.shared else speed._replace(first=rest)


def kind_of(stage: Stage) -> str:
  """Return a key of what decides the speed of a stage: its configuration without length, seed and initial weights."""
  return '\n'.join(sorted(line for line in stage.config.kind.splitlines() if not _SAME_SPEED.match(line)))


def seconds_per_step(lines: Sequence[Mapping[str, Any]]) -> float:
  """Return the seconds of a step, with its share of checkpoints, nan if there are too few steps.

  lines: metrics of one process. The first one, which includes tracing, and evaluations are left out.
  """
  train = [line for line in lines if line.get('kind') == 'train' and 'time' in line]
  if len(train) < 2 or train[-1]['step'] - train[0]['step'] < _ENOUGH:
    return math.nan
  first, last = train[0], train[-1]
  between = sum(line.get('eval_seconds', 0.0) for line in lines if str(line.get('kind')).startswith('eval')
                and first['step'] <= line['step'] < last['step'])
  steps = last['step'] - first['step']
  # Scoring runs beside the steps: the seconds in steps are a lower bound.
  return max(last['time'] - first['time'] - between, last['seconds'] - first['seconds'], 1e-9) / steps


def seconds_per_evaluation(lines: Sequence[Mapping[str, Any]]) -> float:
  """Return the median seconds of the evaluations after the first, which includes tracing; nan without any.

  If there is only one evaluation, its seconds.
  """
  found = [line['eval_seconds'] for line in lines if line.get('kind') == 'eval' and 'eval_seconds' in line]
  return statistics.median(found[1:] or found) if found else math.nan


def _mean(values: Sequence[float]) -> float:
  known = [value for value in values if not math.isnan(value)]
  return statistics.fmean(known) if known else math.nan
