"""Studies that stop early: one seed after the other, until the question is settled.

The runs are compared after each seed from the second on. Each look is recorded in looks.json before its comparison
begins (compare/looks.py), so that an interruption gives no look for free; its intervals are wider than those of a
study of fixed size, and hold at all looks together (compare/sequential.py). That holds for each verdict, whichever runs
get further seeds: those that can no longer change a verdict get none.

A look has all its runs. Where one fails, none is taken, and the report is once more that of the latest look: to compare
what there is instead would be a look that was not planned.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from rethink_tf.compare import looks, verdict
from rethink_tf.compare.looks import Record, Taken
from rethink_tf.compare.report import Comparison, common_metric
from rethink_tf.compare.run_summary import read_runs
from rethink_tf.compare.sequential import FIRST
from rethink_tf.compare.verdict import CAUGHT_UP, OPEN, WORSE, Verdict
from rethink_tf.errors import UserError
from rethink_tf.study import stages as staging
from rethink_tf.study.execution import Runner
from rethink_tf.study.grid import Trial
from rethink_tf.study.seeds import UntilSettled
from rethink_tf.study.stages import Stage

if TYPE_CHECKING:
  from rethink_tf.study.run import StudyPlan

Compare = Callable[[Sequence[str]], Comparison]  # of run folders, in <output>/report
Cell = tuple[tuple[str, str], ...]  # a run without its seed: (axis, value) of the other axes


class Rounds:
  """The rounds of a study: in each, the runs of one seed."""

  def __init__(self, plan: StudyPlan, runner: Runner, compare: Compare, log: Callable[[str], None] = print) -> None:
    """Read what an earlier call has recorded (check_record)."""
    self._plan, self._runner, self._compare, self._log = plan, runner, compare, log
    self._rule, self._rounds = plan.until_settled, by_seed(plan.trials, plan.seed_axis)
    record = looks.read(plan.output)
    self._record = record if record is not None and record.taken else Record(self._rule.max_seeds, (), self._before(),
                                                                             plan.metric)

  def run(self) -> tuple[list[str], Comparison | None]:
    """Train and look until every question is settled; return one line per failed stage, and the last comparison.

    After a failure this is the comparison of the latest look, None before the first.
    """
    cells, done, comparison = None, [], None
    for seeds, trials in enumerate(self._rounds, 1):
      trials = [trial for trial in trials if cells is None or cell(trial, self._plan.seed_axis) in cells]
      self._log(f'seed {seeds} of at most {len(self._rounds)}: {len(trials)} runs')
      failures = self._runner.run(stages_of(self._plan, trials))
      if failures:
        return failures, comparison or self._latest(done)
      done += trials
      if seeds < FIRST:
        continue
      past = self._record.at(seeds)
      if past is None or not past.more:  # not taken, not concluded, or the last one, whose report is asked for again
        comparison = self._look(seeds, done)
        past = self._record.at(seeds)
      cells = {cell(trial, self._plan.seed_axis) for trial in done if trial.name in past.more}
      if not cells:
        settled = all(one.answer != OPEN for one in comparison.verdicts)
        self._log(f'settled after {seeds} of at most {len(self._rounds)} seeds' if settled else
                  f'stopped after {seeds} of at most {len(self._rounds)} seeds: further ones are unlikely to settle it')
        return [], comparison
    self._log(f'not settled with {len(self._rounds)} seeds, the most of this study')
    return [], comparison or self._look(len(self._rounds), done)

  def _latest(self, done: Sequence[Trial]) -> Comparison | None:
    """Repeat the comparison of the latest look, None unless it was at exactly these runs."""
    latest = self._record.taken[-1] if self._record.taken else None
    if latest is None or latest.scores.keys() != {trial.name for trial in done}:
      return None
    self._checked(done)
    self._log(f'the report is that of {latest.seeds} seeds: the next look waits for the runs that failed')
    return self._compare([self._runner.folder(trial.name) for trial in done])

  def _checked(self, done: Sequence[Trial]) -> dict[str, float]:
    """Return the scores of all runs so far, after checking that runs of earlier looks have not changed."""
    runs = read_runs([self._runner.folder(trial.name) for trial in done])
    metric = common_metric(runs, self._plan.metric)
    scores = {trial.name: run.final(metric) for trial, run in zip(done, runs, strict=True)}
    looks.check_scores(self._plan.output, self._record, scores)
    return scores

  def _look(self, seeds: int, done: Sequence[Trial]) -> Comparison:
    """Compare all runs so far, and record the look before and after."""
    scores = self._checked(done)
    if self._record.at(seeds) is None:
      self._conclude(Taken(seeds, scores, None))
    comparison = self._compare([self._runner.folder(trial.name) for trial in done])
    more = needed(comparison.verdicts, self._rule, {trial.name for trial in done})
    self._conclude(Taken(seeds, scores, tuple(sorted(more))))
    return comparison

  def _conclude(self, taken: Taken) -> None:
    self._record = self._record.with_look(taken)
    looks.write(self._plan.output, self._record, [self._runner.folder(name) for name in taken.scores])

  def _before(self) -> int:
    """Return the number of seeds of an earlier comparison of fixed size in this folder, 0 without one."""
    if not os.path.exists(os.path.join(self._plan.output, 'report', 'index.html')):
      return 0
    whole = [all(self._runner.evaluated(trial.name) for trial in trials) for trials in self._rounds]
    number = (whole + [False]).index(False)
    return number if number >= FIRST else 0


def check_record(plan: StudyPlan) -> None:
  """Check that a study may continue in its folder.

  Raises:
    UserError: looks were taken there, planned for fewer seeds than the study has now, by another metric or at other
      runs, or the study has a fixed size.
  """
  record = looks.read(plan.output)
  if record is None or not record.taken:
    return
  path = os.path.join(plan.output, looks.FILE)
  if plan.until_settled is None:
    raise UserError(f'{path}: a study that stops early was begun here: add --until_settled, or choose another --output')
  if record.max_seeds < plan.until_settled.max_seeds:
    raise UserError(f'{path}: the looks at this study were planned for at most {record.max_seeds} seeds; more would '
                    f'have an error rate above 5 %: use --max_seeds={record.max_seeds}, or choose another --output')
  if record.metric != plan.metric:
    was, now = (f'--metric={one}' if one else 'no --metric' for one in (record.metric, plan.metric))
    raise UserError(f'{path}: this study was looked at with {was}; with {now} it is a different study: choose another '
                    '--output')
  first = record.taken[0]  # has all runs of its seeds: later looks may be without some
  names = {trial.name for trials in by_seed(plan.trials, plan.seed_axis)[:first.seeds] for trial in trials}
  if others := sorted(names ^ first.scores.keys()):
    raise UserError(f'{path}: this study was looked at {"with" if others[0] in first.scores else "without"} '
                    f'{others[0]}: with other runs it is a different study: choose another --output')


def by_seed(trials: Sequence[Trial], axis: str) -> list[list[Trial]]:
  """Return the trials of each seed, in the order of the axis of seeds."""
  rounds: dict[str, list[Trial]] = {}
  for trial in trials:
    rounds.setdefault(trial.choice[axis], []).append(trial)
  return list(rounds.values())


def cell(trial: Trial, axis: str) -> Cell:
  """Return a trial's values on all axes but that of the seeds."""
  return tuple((name, value) for name, value in trial.choice.items() if name != axis)


def stages_of(plan: StudyPlan, trials: Sequence[Trial]) -> list[Stage]:
  """Return the stages of some of a study's trials."""
  config = {trial.name: config for trial, config in zip(plan.trials, plan.configs, strict=True)}
  return staging.plan(trials, [config[trial.name] for trial in trials], plan.share_prefixes)


def needed(verdicts: Sequence[Verdict], rule: UntilSettled, names: Collection[str]) -> set[str]:
  """Return the names of the run folders for which further seeds may settle an open verdict.

  Of a verdict that is open, schedules from scratch that are worse than pre-training, and shorter ones, are settled,
  except the longest. names: of the run folders of the study.
  """
  found: set[str] = set()
  for one in verdicts:
    if is_settled(one, rule.every_schedule) or one.need is not None and one.need.chance < rule.least_chance:
      continue
    sides = list(one.schedules)
    for step in reversed(one.steps):
      if step.relation == WORSE and step is not one.steps[-1]:
        break
      sides.append(step.side)
    sides += [] if one.left_open is None else [one.left_open.side]
    found |= {run.folder.path.rstrip('/').rpartition('/')[2] for side in sides for run in side.runs}
  return found & set(names)


def is_settled(one: Verdict, every_schedule: bool) -> bool:
  """Whether a verdict needs no further seeds, or, without intervals, could not be settled by any."""
  if any(step.difference is None for step in one.steps):
    return True
  if one.answer == OPEN or not every_schedule:
    return one.answer != OPEN
  first = next((step for step in reversed(one.steps) if step.relation not in CAUGHT_UP), None)
  return first is None or first.relation == verdict.WORSE
