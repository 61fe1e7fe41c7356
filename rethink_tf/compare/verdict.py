"""Verdicts in words: whether scratch catches up with pre-training, by which schedule, at what cost.

The paper's finding (sections 4 and 5): on COCO, scratch catches up with fine-tuning given longer schedules; with about
10k images or fewer it does not. A verdict can also be that the difference is too noisy to say, or that one seed a side
cannot say it.

Schedules are not selected for free. A scratch schedule is compared with *every* pre-trained one, at a confidence that
holds for all of them together (Bonferroni); it has caught up if it is within the margin of, or above, each. Scratch
schedules are tested in a fixed order, from the longest to the shorter ones, up to the first that has not caught up
(Maurer, Hothorn and Lehmacher 1995), so that no further correction is needed.

Where AP is so low that to be within the margin is to be anywhere, no side has caught up.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rethink_tf.compare import planning
from rethink_tf.compare.differences import Differences
from rethink_tf.compare.groups import Side, by_arm, groups, sides
from rethink_tf.compare.intervals import LARGEST, Interval
from rethink_tf.compare.run_summary import PRETRAINED, SCRATCH, Run, metric_name
from rethink_tf.compare.sequential import Look
from rethink_tf.console import duration, magnitude, percent, points, signed, times
from rethink_tf.errors import UserError

EQUAL, BETTER, WORSE, UNSURE = 'equal', 'better', 'worse', 'too noisy to say'
SCRATCH_SUFFICES, PRETRAIN, OPEN = 'scratch suffices', 'pre-train', 'open'  # answers
NOT_WORSE, ONE_SEED = 'not worse', 'one seed'
CAUGHT_UP = (EQUAL, BETTER, NOT_WORSE)
_LOW = 1.0  # AP in percent, whatever the margin


class Step(NamedTuple):
  """A scratch schedule compared with all pre-trained ones."""

  side: Side
  difference: Interval | None  # from the best pre-trained one; None: detections were not saved
  relation: str
  against: Side  # the pre-trained one that decides: that it is furthest behind, or that leaves it open, else the best
  decisive: Interval | None  # the difference from that one


class Verdict(NamedTuple):
  """Verdict on one group of runs that differ only in initial weights, schedule and seed."""

  metric: str
  pretrained: Side  # its best schedule
  schedules: tuple[Side, ...]  # all pre-trained ones
  steps: tuple[Step, ...]  # scratch schedules, by images seen
  caught_up: Step | None  # the shortest schedule that has caught up and after which all have
  answer: str  # SCRATCH_SUFFICES, PRETRAIN or OPEN
  headline: str  # the answer in one line
  words: str
  cost: str  # of the scratch schedule that the answer is about, against pre-training
  need: planning.Need | None = None  # what would settle an open answer
  left_open: Step | None = None  # the shorter scratch schedule that an open answer is about


def relation(difference: Interval, margin: float, level: float = LARGEST) -> str:
  """Return ONE_SEED if the spread between seeds is unknown; EQUAL if the interval lies within the margin; BETTER or
  WORSE if above or below 0; NOT_WORSE if above -margin, for a margin above 0; else UNSURE.

  level: AP in percent of what is compared with. Where it is so low that to be within the margin is to be anywhere,
  there is no EQUAL or NOT_WORSE.
  """
  if difference.resolved is not None:
    return ONE_SEED
  low = _is_low(level, margin)
  if -margin <= difference.low and difference.high <= margin and not low:
    return EQUAL
  if difference.low > 0:
    return BETTER
  if difference.high < 0:
    return WORSE
  return NOT_WORSE if difference.low >= -margin < 0 and not low else UNSURE


def joint_relation(all_differences: Sequence[Interval], best: Interval, margin: float) -> str:
  """Return the relation of a scratch schedule to all pre-trained ones together.

  all_differences: whose intervals hold together. best: the difference from the best pre-trained one, which is among
  them.
  """
  each = [relation(one, margin) for one in all_differences]
  if ONE_SEED in each:
    return ONE_SEED
  if WORSE in each:
    return WORSE
  if UNSURE in each:
    return UNSURE
  return relation(best, margin)


def verdicts(runs: Sequence[Run], differences: Differences, margin: float = 0.5) -> list[Verdict]:
  """Return one verdict for each group that has both scratch and pre-trained runs, and each kind of initial weights.

  Of a group, pre-training that scratch does not catch up with comes first, and that which it does last.

  Args:
    runs: runs of any settings.
    differences: of these runs.
    margin: AP points within which two detectors count as equal.

  Raises:
    UserError: the margin is negative.
  """
  if not margin >= 0:
    raise UserError(f'--margin={margin} must not be negative')
  result, metric = [], differences.metric
  for group in groups(runs):
    of_group = []
    arms = by_arm(sides(group, PRETRAINED))
    tried = sorted({each[0].runs[0].weights_name for each in arms.values()})
    # Runs from scratch that differ in what belongs to initial weights, as frozen stages, are not schedules of one side.
    for scratch, pretrained in itertools.product(by_arm(sides(group, SCRATCH)).values(), arms.values()):
      best = max(pretrained, key=lambda side: side.mean(metric))
      steps = tuple(_step(side, pretrained, best, differences, margin) for side in scratch)
      of_group.append(_verdict(_Comparison(best, pretrained, steps, differences, margin, tried)))
    result += sorted(of_group, key=lambda one: (PRETRAIN, OPEN, SCRATCH_SUFFICES).index(one.answer))
  return result


def _step(side: Side, pretrained: Sequence[Side], best: Side, differences: Differences, margin: float) -> Step:
  each = [(other, differences.between(side, other, len(pretrained))) for other in pretrained]
  of_best = each[[other is best for other in pretrained].index(True)]
  if any(difference is None for _, difference in each):
    found = UNSURE
  else:
    found = joint_relation([difference for _, difference in each], of_best[1], margin)
    if found in (EQUAL, NOT_WORSE) and _is_low(best.mean(differences.metric), margin):
      found = UNSURE
  decides = of_best
  if found == WORSE:
    decides = min(each, key=lambda pair: pair[1].high)
  elif found == UNSURE:
    decides = _left_open(each, best, margin) or of_best
  return Step(side, of_best[1], found, *decides)


def _left_open(each: Sequence[tuple[Side, Interval | None]], best: Side,
               margin: float) -> tuple[Side, Interval | None] | None:
  """Return the pre-trained schedule that keeps a step open, with the difference from it; None if each is settled.

  The best one, unless its own difference is settled: schedules with fewer seeds have wider intervals.
  """
  found = [(other, one) for other, one in each if one is None or relation(one, margin) == UNSURE]
  of_best = next((pair for pair in found if pair[0] is best), None)
  return of_best or min(found, key=lambda pair: -LARGEST if pair[1] is None else pair[1].low, default=None)


def _is_low(level: float, margin: float) -> bool:
  """Whether AP is so low that the margin is half of it or more: "within the margin" then says nothing."""
  return level <= 2 * margin


def _cure_of_low(mean: float, margin: float) -> tuple[str, str]:
  """Say what is wrong where `_is_low` holds, and what to do: raise the AP, or narrow the margin."""
  if mean <= _LOW:
    return f'AP is too low ({mean:.1f}); train longer', 'Train longer, or look at the predictions for what is wrong.'
  return (f'a margin of {points(margin)} is too wide for AP of {mean:.1f}; choose a smaller one, or train longer',
          f'Choose a --margin well below {mean / 2:.1f} points, or train longer.')


class _Outcome(NamedTuple):
  """An answer with its words, before costs and looks are added."""

  answer: str
  headline: str
  words: str
  need: planning.Need | None = None
  left_open: Step | None = None


class _Comparison(NamedTuple):
  """Scratch schedules beside pre-trained ones; each method that `outcome` calls words one of the outcomes."""

  best: Side  # pre-trained
  pretrained: Sequence[Side]
  steps: tuple[Step, ...]  # scratch schedules, by images seen
  differences: Differences
  margin: float
  tried: Sequence[str]  # names of all initial weights with which this scratch was compared

  @property
  def metric(self) -> str:
    return self.differences.metric

  @property
  def longest(self) -> Step:
    return self.steps[-1]

  @property
  def weights(self) -> str:
    return self.best.runs[0].weights_name

  def outcome(self, caught_up: Step | None) -> _Outcome:
    if caught_up is not None:
      return self.scratch_suffices(caught_up)
    ahead = next((step for step in reversed(self.steps[:-1]) if step.relation in CAUGHT_UP), None)
    if self.longest.relation == WORSE and ahead is not None:
      return self.shorter_caught_up(ahead)
    if (rival := _rival(self.steps, self.metric)) is not None:
      return self.shorter_may_have_caught_up(rival)
    if self.longest.relation == WORSE:
      return self.pretrain()
    if self.longest.relation == ONE_SEED:
      return self.one_seed()
    if self.longest.difference is not None and _is_low(self.best.mean(self.metric), self.margin):
      return self.too_low()
    return self.too_noisy()

  def scratch_suffices(self, caught_up: Step) -> _Outcome:
    return _Outcome(
      SCRATCH_SUFFICES,
      f'You do not need pre-training ({self.weights}) from {caught_up.side.schedule} on',
      f'Scratch catches up: {self.named(caught_up.side)} is {_worded(caught_up, self.margin)} '
      f'{self.named(self.best)}{_interval(caught_up.difference)}. Other weights than {", ".join(self.tried)} were not '
      'tried here.')

  def shorter_caught_up(self, ahead: Step) -> _Outcome:
    schedule, shorter = self.longest.side.schedule, ahead.side.schedule
    return _Outcome(
      OPEN,
      f'Cannot tell yet: scratch is behind at {schedule}, but not at {shorter}',
      f'{self.longest_behind("is")}; {self.named(ahead.side)} is {_worded(ahead, self.margin)} '
      f'{self.named(self.best)}{_interval(ahead.difference)}. From scratch, training too long may cost AP here: more '
      f'seeds of {shorter} and {schedule} would tell.')

  def shorter_may_have_caught_up(self, rival: Step) -> _Outcome:
    against, difference = rival.against, rival.decisive
    need = planning.needed(rival.side, against, self.differences, self.margin, self.pretrained)
    return _Outcome(
      OPEN,
      f'Cannot tell yet: scratch is behind at {self.longest.side.schedule}, but may not be at {rival.side.schedule}',
      f'{self.longest_behind("is")}. From scratch, training too long costs AP here. Too noisy to say: '
      f'{self.named(rival.side)} against {self.named(against)}{_interval(difference)}. {need.words}', need, rival)

  def pretrain(self) -> _Outcome:
    schedule = self.longest.side.schedule
    return _Outcome(
      PRETRAIN,
      f'Use pre-training ({self.weights}): scratch is behind up to {schedule}',
      f'Scratch does not catch up by {schedule}: {self.longest_behind("stays")}. {_advice(self.steps, self.metric)}')

  def one_seed(self) -> _Outcome:
    which, train = _of_one_seed([step.side for step in self.steps], self.pretrained)
    difference = self.longest.difference
    return _Outcome(
      OPEN,
      f'Cannot tell yet: one seed {which}; train {train} with two or more',
      f'One seed {which}: no interval without the spread between seeds. {self.named(self.longest.side)} against '
      f'{self.named(self.best)}: difference {difference}. With a spread as measured elsewhere, a difference '
      f'below about {magnitude(difference.resolved)} points could be chance. Train {train} with two or more '
      'seeds (run.seed), or give the spread between seeds with --seed_spread.')

  def too_low(self) -> _Outcome:
    short, cure = _cure_of_low(self.best.mean(self.metric), self.margin)
    side, difference = self.longest.side, self.longest.difference
    words = (f'{self.named(side)} against {self.named(self.best)}{_interval(difference)}: so low that to be within '
             f'{points(self.margin)} says nothing. {cure}')
    need = planning.Need(short, words, longer=True, chance=0.0)  # more seeds of nothing tell nothing
    return _Outcome(OPEN, f'Cannot tell yet: {short}', words, need)

  def too_noisy(self) -> _Outcome:
    longest, shorter = self.longest, self.steps[-2].side if len(self.steps) > 1 else None
    against, difference = longest.against, longest.decisive
    need = planning.needed(longest.side, against, self.differences, self.margin, self.pretrained, shorter)
    return _Outcome(
      OPEN,
      f'Cannot tell yet: {need.short}',
      f'Too noisy to say: {self.named(longest.side)} against {self.named(against)}{_interval(difference)}. '
      f'{need.words}', need)

  def longest_behind(self, verb: str) -> str:
    return (f'{self.named(self.longest.side)} {verb} behind {self.named(self.longest.against)}'
            f'{_interval(self.longest.decisive)}')

  def named(self, side: Side) -> str:
    return f'{side.label} ({metric_name(self.metric)} {side.mean(self.metric):.1f})'


def _verdict(comparison: _Comparison) -> Verdict:
  best, steps = comparison.best, comparison.steps
  caught_up = None
  for step in reversed(steps):
    if step.relation not in CAUGHT_UP:
      break
    caught_up = step
  answer, headline, words, need, rival = comparison.outcome(caught_up)
  longest = comparison.longest
  arms = [side.arm for side in (longest.side, best if answer == OPEN else longest.side) if side.arm]
  if arms:
    headline += f' ({"; ".join(dict.fromkeys(arms))})'
  return Verdict(comparison.metric, best, tuple(comparison.pretrained), steps, caught_up, answer, headline,
                 f'{words.strip()}{_looked(comparison.differences.look, answer)}',
                 _costs((caught_up or rival or longest).side, best), need, rival)


def _of_one_seed(scratch: Sequence[Side], pretrained: Sequence[Side]) -> tuple[str, str]:
  """Return which side has a single seed at every schedule, and what to train more of."""
  several = [any(len(side.runs) > 1 for side in sides_of) for sides_of in (scratch, pretrained)]
  if any(several):
    return (PRETRAINED, 'that side') if several[0] else ('from scratch', 'that side')
  return 'a side', 'each side'


def _rival(steps: Sequence[Step], metric: str) -> Step | None:
  """Return the best shorter scratch schedule if it is ahead of the longest one and not known to be behind pre-training.

  Where AP falls with longer training, the longest schedule being behind says nothing about the others.
  """
  if steps[-1].relation != WORSE:
    return None
  least = steps[-1].side.mean(metric) + planning.RISING
  better = [step for step in steps[:-1] if step.relation == UNSURE and step.side.mean(metric) > least]
  return max(better, key=lambda step: step.side.mean(metric), default=None)


def _worded(step: Step, margin: float) -> str:
  if step.relation == EQUAL:
    return f'within {points(margin)} of'
  return f'not more than {points(margin)} below' if step.relation == NOT_WORSE else 'above'


def _interval(difference: Interval | None) -> str:
  return '' if difference is None else f': difference {difference}, {percent(difference.confidence)} confidence'


def _looked(look: Look | None, answer: str) -> str:
  """Say at which look an early-stopping study was settled, '' for a study of fixed size."""
  if look is None:
    return ''
  early = 'settled early, ' if answer != OPEN and look.seeds < look.max_seeds else ''
  return (f' Look {look.number} of at most {look.planned}: {early}after {look.seeds} of at most {look.max_seeds} '
          'seeds a side; intervals are widened, to hold at all looks together.')


def _costs(scratch: Side, best: Side) -> str:
  """Describe the cost as in Fig. 2: compute is proportional to the pixels seen."""
  ratio = scratch.seen.pixels / best.seen.pixels if best.seen.pixels else float('nan')
  text = (f'{scratch.schedule} from scratch costs {times(ratio)} the compute of fine-tuning for {best.schedule} '
          '(pixels seen)')
  before = best.runs[0].pretraining
  if not np.isfinite(ratio):
    text = (f'The compute of {scratch.schedule} from scratch against fine-tuning for {best.schedule} is not known: '
            'lines of training are missing in metrics.jsonl.')
  elif before is None:
    text += '; the cost of the pre-training is not known.'
  else:
    whole = scratch.seen.pixels / best.seen.plus(before).pixels
    text += f', and {times(whole)} when pre-training is counted ({best.runs[0].pretraining_source}).'
  spent = [float(np.mean([run.curve.seconds[-1] for run in side.runs])) for side in (scratch, best)]
  if all(np.isfinite(spent)) and all(spent):
    text += (f' Time in training steps, a run: {duration(spent[0])} from scratch, {duration(spent[1])} of fine-tuning.')
  return text


def _advice(steps: Sequence[Step], metric: str) -> str:
  if len(steps) < 2:
    return 'One scratch schedule says nothing about longer ones: train a longer one.'
  first, last = (step.side.mean(metric) for step in (steps[-2], steps[-1]))
  if last - first > planning.RISING:
    return (f'It still gains ({steps[-2].side.schedule} to {steps[-1].side.schedule}: {signed(last - first)}): '
            f'a longer schedule may close the gap{planning.twice_as_long(steps[-1].side)}.')
  return 'Longer training has stopped helping, as the paper found below about 10k images (section 5.2): pre-train.'
