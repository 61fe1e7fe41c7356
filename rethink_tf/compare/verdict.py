"""Verdicts in words: whether scratch catches up with pre-training, by which schedule, at what cost.

The paper's finding (sections 4 and 5): on COCO, scratch catches up with fine-tuning given longer schedules; with about
10k images or fewer it does not. A verdict can also be that the difference is too noisy to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rethink_tf.compare import bootstrap
from rethink_tf.compare.groups import Side, groups, sides
from rethink_tf.compare.run_summary import PRETRAINED, SCRATCH, Run
from rethink_tf.errors import UserError

EQUAL, BETTER, WORSE, UNSURE = 'equal', 'better', 'worse', 'too noisy to say'

ReadMatches = Callable[[Run], bootstrap.Matches | None]  # None: detections were not saved


class Step(NamedTuple):
  """A scratch schedule compared with the best pre-trained one."""

  side: Side
  difference: bootstrap.Interval | None  # None: detections were not saved
  relation: str


class Verdict(NamedTuple):
  """Verdict on one group of runs that differ only in initial weights, schedule and seed."""

  metric: str
  pretrained: Side  # its best schedule
  steps: tuple[Step, ...]  # scratch schedules, by images seen
  caught_up: Step | None  # the shortest schedule that is equal or better
  words: str


def relation(difference: bootstrap.Interval, margin: float) -> str:
  """Return EQUAL if the interval lies within the margin, BETTER or WORSE if above or below 0, else UNSURE."""
  if -margin <= difference.low and difference.high <= margin:
    return EQUAL
  if difference.low > 0:
    return BETTER
  if difference.high < 0:
    return WORSE
  return UNSURE


def verdicts(runs: Sequence[Run], metric: str, matches: ReadMatches, margin: float = 0.5, draws: int = 1000,
             confidence: float = 0.95) -> list[Verdict]:
  """Return one verdict for each group that has both scratch and pre-trained runs.

  Args:
    runs: runs of any settings.
    metric: 'box/AP', ....
    matches: function that returns the matches of a run's last evaluation.
    margin: AP points within which two detectors count as equal.
    draws, confidence: number of bootstrap draws, coverage of the intervals.

  Raises:
    UserError: the margin is negative.
  """
  if not margin >= 0:
    raise UserError(f'--margin={margin} must not be negative')
  result = []
  for group in groups(runs):
    scratch, pretrained = sides(group, SCRATCH), sides(group, PRETRAINED)
    if scratch and pretrained:
      best = max(pretrained, key=lambda side: side.mean(metric))
      steps = tuple(_step(side, best, matches, margin, draws, confidence) for side in scratch)
      result.append(_verdict(metric, best, steps, margin))
  return result


def difference(first: Side, second: Side, matches: ReadMatches, draws: int = 1000,
               confidence: float = 0.95) -> bootstrap.Interval | None:
  """Return AP of the first side minus the second, None if detections are missing or are of different images."""
  tables = [[matches(run) for run in side.runs] for side in (first, second)]
  if any(one is None for side in tables for one in side):
    return None
  ids = tables[0][0].image_ids
  if any(not np.array_equal(ids, one.image_ids) for side in tables for one in side):
    return None
  return bootstrap.paired_difference(*tables, draws=draws, confidence=confidence)


def _step(side: Side, best: Side, matches: ReadMatches, margin: float, draws: int, confidence: float) -> Step:
  interval = difference(side, best, matches, draws, confidence)
  return Step(side, interval, UNSURE if interval is None else relation(interval, margin))


def _verdict(metric: str, best: Side, steps: tuple[Step, ...], margin: float) -> Verdict:
  caught_up = next((step for step in steps if step.relation in (EQUAL, BETTER)), None)
  longest = steps[-1]
  versus = f'{best.label} ({metric} {best.mean(metric):.1f})'
  if caught_up is not None:
    words = f'Scratch catches up: {_measured(caught_up, metric)} is {_worded(caught_up, margin)} {versus}. '
    words += _costs(caught_up.side, best)
  elif longest.relation == WORSE:
    words = (f'Scratch does not catch up by {longest.side.schedule}: {_measured(longest, metric)} stays behind {versus}'
             f'{_interval(longest)}. {_advice(steps, metric)}')
  else:
    words = f'Too noisy to say: {_measured(longest, metric)} against {versus}{_interval(longest)}. '
    words += _needed(longest, margin)
  return Verdict(metric, best, steps, caught_up, words.strip())


def _measured(step: Step, metric: str) -> str:
  return f'{step.side.label} ({metric} {step.side.mean(metric):.1f})'


def _worded(step: Step, margin: float) -> str:
  if step.relation == EQUAL:
    return f'within {margin:g} points of{_interval(step)}'
  return f'above{_interval(step)}'


def _interval(step: Step) -> str:
  if step.difference is None:
    return ''
  return f' (difference {step.difference}, {100 * step.difference.confidence:.0f} % of draws)'


def _costs(scratch: Side, best: Side) -> str:
  """Describe the cost as in Fig. 2: compute is proportional to the pixels seen."""
  ratio = scratch.seen.pixels / best.seen.pixels if best.seen.pixels else float('nan')
  text = f'It costs {ratio:.2g} x the compute of the fine-tuning (pixels seen)'
  before = best.runs[0].pretraining
  if before is None:
    return text + '; the cost of the pre-training is not known.'
  whole = scratch.seen.pixels / best.seen.plus(before).pixels
  return text + f', and {whole:.2g} x when pre-training is counted ({best.runs[0].pretraining_source}).'


def _advice(steps: Sequence[Step], metric: str) -> str:
  if len(steps) < 2:
    return 'One scratch schedule says nothing about longer ones: train a longer one.'
  first, last = (step.side.mean(metric) for step in (steps[-2], steps[-1]))
  if last - first > 0.5:
    return (f'It still gains ({steps[-2].side.schedule} to {steps[-1].side.schedule}: {last - first:+.1f}): '
            'a longer schedule may close the gap.')
  return 'Longer training has stopped helping, as the paper found below about 10k images (section 5.2): pre-train.'


def _needed(step: Step, margin: float) -> str:
  if step.difference is None:
    return ('Detections are missing (CocoEvaluator.save_results) or of different images, or this is not a COCO metric: '
            'no interval can be given.')
  half = (step.difference.high - step.difference.low) / 2
  if not margin or not np.isfinite(half):
    return ''
  factor = (half / margin) ** 2
  return (f'The interval is {half:.1f} points to either side; to tell {margin:g} points apart takes about '
          f'{max(factor, 1):.0f} x as many held-out images, or several seeds.')


