"""The answer in words: does scratch reach pre-training, by which schedule, at what cost, and how sure is that?

The paper's finding (sections 4 and 5): with COCO and longer schedules scratch catches up with fine-tuning; with about
10k images and fewer it does not. A run can also be too small a test to tell, and then the verdict says so.
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


class Step(NamedTuple):
  """A scratch schedule against the best pre-trained one."""

  side: Side
  difference: bootstrap.Interval | None  # None: the detections of an evaluation were not saved
  relation: str


class Verdict(NamedTuple):
  """Of one group of twins: runs that differ in initial weights, schedule and seed alone."""

  figure: str
  pretrained: Side  # the best of its schedules
  steps: tuple[Step, ...]  # scratch, by images seen
  caught_up: Step | None  # the shortest schedule that is equal or better
  words: str


def relation(difference: bootstrap.Interval, margin: float) -> str:
  """What an interval says: equal within the margin, better or worse than nothing, or too wide for either."""
  if -margin <= difference.low and difference.high <= margin:
    return EQUAL
  if difference.low > 0:
    return BETTER
  if difference.high < 0:
    return WORSE
  return UNSURE


def verdicts(runs: Sequence[Run], figure: str, matches: Callable[[Run], bootstrap.Matches | None], margin: float = 0.5,
             draws: int = 1000, confidence: float = 0.95) -> list[Verdict]:
  """One verdict for each group that has both sides.

  Args:
    runs: any.
    figure: 'box/AP', ....
    matches: of the last evaluation of a run, or None.
    margin: AP points within which two detectors count as equal.

  Raises:
    UserError: a margin below zero.
  """
  if not margin >= 0:
    raise UserError(f'--margin={margin} must not be negative')
  found = []
  for group in groups(runs):
    scratch, pretrained = sides(group, SCRATCH), sides(group, PRETRAINED)
    if scratch and pretrained:
      best = max(pretrained, key=lambda side: side.ap(figure))
      steps = tuple(_step(side, best, matches, margin, draws, confidence) for side in scratch)
      found.append(_verdict(figure, best, steps, margin))
  return found


def difference(first: Side, second: Side, matches: Callable[[Run], bootstrap.Matches | None], draws: int = 1000,
               confidence: float = 0.95) -> bootstrap.Interval | None:
  """First minus second, None where a run's detections are missing or were made on other images."""
  tables = [[matches(run) for run in side.runs] for side in (first, second)]
  if any(one is None for side in tables for one in side):
    return None
  ids = tables[0][0].image_ids
  if any(not np.array_equal(ids, one.image_ids) for side in tables for one in side):
    return None
  return bootstrap.paired_difference(*tables, draws=draws, confidence=confidence)


def _step(side, best, matches, margin, draws, confidence):
  interval = difference(side, best, matches, draws, confidence)
  return Step(side, interval, UNSURE if interval is None else relation(interval, margin))


def _verdict(figure, best, steps, margin):
  caught_up = next((step for step in steps if step.relation in (EQUAL, BETTER)), None)
  longest = steps[-1]
  versus = f'{best.label} ({figure} {best.ap(figure):.1f})'
  if caught_up is not None:
    words = f'Scratch catches up: {_measured(caught_up, figure)} is {_worded(caught_up, margin)} {versus}. '
    words += _costs(caught_up.side, best)
  elif longest.relation == WORSE:
    words = (f'Scratch does not catch up by {longest.side.schedule}: {_measured(longest, figure)} stays behind {versus}'
             f'{_interval(longest)}. {_advice(steps, figure)}')
  else:
    words = f'Too noisy to say: {_measured(longest, figure)} against {versus}{_interval(longest)}. '
    words += _needed(longest, margin)
  return Verdict(figure, best, steps, caught_up, words.strip())


def _measured(step: Step, figure: str) -> str:
  return f'{step.side.label} ({figure} {step.side.ap(figure):.1f})'


def _worded(step: Step, margin: float) -> str:
  if step.relation == EQUAL:
    return f'within {margin:g} points of{_interval(step)}'
  return f'above{_interval(step)}'


def _interval(step: Step) -> str:
  if step.difference is None:
    return ''
  return f' (difference {step.difference}, {100 * step.difference.confidence:.0f} % of draws)'


def _costs(scratch: Side, best: Side) -> str:
  """Fig. 2's accounting: pixels through the network are what compute is proportional to."""
  ratio = scratch.seen.pixels / best.seen.pixels if best.seen.pixels else float('nan')
  text = f'It costs {ratio:.2g} x the compute of the fine-tuning (pixels seen)'
  before = best.runs[0].pretraining
  if before is None:
    return text + '; what the pre-training has cost is not known.'
  whole = scratch.seen.pixels / best.seen.plus(before).pixels
  return text + f', and {whole:.2g} x when pre-training is counted ({best.runs[0].pretraining_source}).'


def _advice(steps: Sequence[Step], figure: str) -> str:
  if len(steps) < 2:
    return 'One scratch schedule says nothing about a longer one: train one, or see whether the gap closes.'
  first, last = (step.side.ap(figure) for step in (steps[-2], steps[-1]))
  if last - first > 0.5:
    return (f'It still gains ({steps[-2].side.schedule} to {steps[-1].side.schedule}: {last - first:+.1f}): '
            'a longer schedule may close the gap.')
  return 'Longer training has stopped helping, as the paper found below about 10k images (section 5.2): pre-train.'


def _needed(step: Step, margin: float) -> str:
  if step.difference is None:
    return ('The detections of an evaluation are missing (CocoEvaluator.save_results), were made on other images, or '
            'the figure is not COCO\'s: no interval can be given.')
  half = (step.difference.high - step.difference.low) / 2
  if not margin or not np.isfinite(half):
    return ''
  factor = (half / margin) ** 2
  return (f'The interval is {half:.1f} points to either side; to tell {margin:g} points apart takes about '
          f'{max(factor, 1):.0f} x as many held-out images, or several seeds.')


