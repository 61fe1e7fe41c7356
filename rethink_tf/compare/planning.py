"""What a comparison will be able to tell, and what would settle one that is open: images, seeds, a longer schedule."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from rethink_tf.compare import intervals
from rethink_tf.compare.differences import Differences
from rethink_tf.compare.groups import Side
from rethink_tf.compare.intervals import HeldOut, Seeds, SeedSpread, SideScores, Spreads, Values
from rethink_tf.compare.sequential import MOST, Look
from rethink_tf.console import counted, duration, signed

MOST_SEEDS, MOST_TIMES = MOST, 25  # a side, and of images; beyond, an addition is no advice
RISING = 0.5  # points of AP from a schedule to the next longer one
_POWER = 0.8
# Assumptions for a study without runs. The spread between seeds, in points of AP: what was measured lies in the range.
SPREAD, SPREAD_RANGE = 1.0, (0.3, 2.3)
LEVEL = 40.0  # AP in percent
# Standard deviation over images of the difference of two runs, in units of √(AP (100 - AP)): 0.2 to 0.4 in the studies
# of results/miniature.md. Three quarters of its square differ from seed to seed.
_IMAGE_NOISE, _OF_RUNS = 0.3, 0.75


class Noise(NamedTuple):
  """What the interval of the difference of two sides is made of: variances in points squared, on some images."""

  between: float  # over images, of the two sides whatever their seeds
  of_images: float  # of a run, over images: other images would change it
  own: float  # between seeds, on any images
  held_out: HeldOut

  @classmethod
  def measured(cls, first: SideScores, second: SideScores, spreads: Spreads, held_out: HeldOut) -> Noise:
    """Return the noise of two sides of a comparison; that between seeds is the mean of both, as it is in V."""
    share = np.array([1 / len(first.values), 1 / len(second.values)])
    of_images = float(share @ [spread.of_images for spread in spreads])
    seeds = float(share @ [spread.variance for spread in spreads])
    images = intervals.variance_over_images(first, second, held_out)
    return cls(max(images - of_images, 0.0), of_images / share.sum(), max(seeds - of_images, 0.0) / share.sum(),
               held_out)

  @classmethod
  def expected(cls, num_images: int, spread: float = SPREAD, level: float = LEVEL) -> Noise:
    """Return the noise of a study without runs.

    spread: standard deviation between seeds. level: AP in percent.
    """
    images = _IMAGE_NOISE ** 2 * level * (100 - level) / num_images
    return cls((1 - _OF_RUNS) * images, _OF_RUNS * images / 2, spread ** 2, HeldOut.alike(num_images))

  def times(self, images: float) -> Noise:
    """Return the noise on `images` times as many images."""
    return Noise(self.between / images, self.of_images / images, self.own, self.held_out.times(images))

  def spreads(self, degrees: tuple[float, float]) -> Spreads:
    """Return the spread between seeds of both sides. degrees: of freedom of each."""
    first, second = (SeedSpread(self.own + self.of_images, self.of_images, each) for each in degrees)
    return first, second


class Precision(NamedTuple):
  """What a comparison can tell."""

  half: float  # half the width of its interval
  found: float  # a difference of this size is found in four of five studies


def precision(noise: Noise, seeds: Seeds, degrees: tuple[float, float], tail: float) -> Precision:
  """Return the precision of the difference of two sides.

  Args:
    noise: of the difference.
    seeds: numbers of seeds of the two sides.
    degrees: of freedom of the spread between seeds, of both.
    tail: probability outside one end of the interval.
  """
  images = max(noise.between + noise.of_images * sum(1 / n for n in seeds), noise.held_out.least)
  half, power = (float(intervals.half_width(images, noise.spreads(degrees), seeds, noise.held_out, t))
                 for t in (tail, 1 - _POWER))
  return Precision(half, half + power)


def chance(value: Values, noise: Noise, seeds: Seeds, degrees: tuple[float, float], look: Look, tail: float,
           margin: float) -> Values:
  """Return the probability that a difference is settled at the last look, from what is known now.

  Stochastic curtailment, after Lan, Simon and Halperin (1982): the difference as it is now is taken for the truth.

  Args:
    value: the present difference.
    noise: of the difference; arrays for many differences.
    seeds: present numbers of seeds of the two sides.
    degrees: of freedom of the spread between seeds of both at the last look.
    look: the present one.
    tail: probability outside one end of the interval at the last look.
    margin: AP points within which two detectors count as equal.
  """
  then = (look.max_seeds,) * 2
  fewer = max(sum(1 / n for n in seeds) - 2 / look.max_seeds, 0.0)
  images = noise.between + noise.of_images * 2 / look.max_seeds
  half = intervals.half_width(images, noise.spreads(degrees), then, noise.held_out, tail)
  change = np.sqrt((noise.own + noise.of_images) * fewer) + 1e-9
  return np.minimum(special.ndtr((-half - value) / change) + special.ndtr((value + margin - half) / change), 1.0)


class Need(NamedTuple):
  """What would settle a difference."""

  short: str
  words: str
  seeds: int | None = None  # more seeds of each side; None: they would not settle it
  images: int | None = None  # more held-out images
  longer: bool = False  # whether a longer schedule from scratch may settle it
  chance: float = 1.0  # that the seeds that a study has left settle it


_WITHOUT_IMAGES = Need('one held-out image tells nothing of others',
                       'One held-out image tells nothing of others: no interval can be given. Evaluate on more.')
_WITHOUT_INTERVAL = Need('no interval can be given',
                         'Detections are missing (CocoEvaluator.save_results) or of different images or objects, or '
                         'the metric has no intervals: no interval can be given.')


def needed(side: Side, best: Side, differences: Differences, margin: float, schedules: Sequence[Side],
           shorter: Side | None = None) -> Need:
  """Describe what would settle a difference, should it stay as it is, and the training time that it takes.

  Args:
    side, best: the scratch schedule, and the best pre-trained one.
    differences: of the comparison.
    margin: AP points within which two detectors count as equal.
    schedules: all pre-trained ones.
    shorter: the next shorter scratch schedule, None if there is none.
  """
  difference = differences.between(side, best, len(schedules))
  if difference is None:
    return _WITHOUT_IMAGES if differences.num_images(side) == 1 else _WITHOUT_INTERVAL
  spreads, held_out = differences.spreads(side, best), differences.held_out(side)
  # Above or below 0, within the margin, or at least not further below than that.
  target = max(abs(difference.value), margin - abs(difference.value), difference.value + margin)
  digits = 1 if f'{difference.half:.1f}' != f'{target:.1f}' else 2  # equal numbers would contradict the sentence
  width = f'is {difference.half:.{digits}f} points to either side, and {target:.{digits}f} would settle it: '
  if difference.is_cut:
    width = f'ends where differences do, and {target:.{digits}f} points to either side would settle it: '
  text = f'The interval {width}'
  noise = Noise.measured(differences.scores(side), differences.scores(best), spreads, held_out)
  tail = intervals.outside(difference.confidence, len(schedules), differences.look)
  seeds = (len(side.runs), len(best.runs))
  degrees = functools.partial(_degrees, differences, (side, best), spreads)
  left, likely, rest = differences.look, 1.0, ''
  if left is not None:
    last = left._replace(seeds=left.max_seeds)
    likely = float(chance(difference.value, noise, seeds, degrees(last.seeds - left.seeds), left,
                          intervals.outside(difference.confidence, len(schedules), last), margin))
    if left.seeds < left.max_seeds:
      rest = f' With all {left.max_seeds} seeds it would be settled with a probability of about {100 * likely:.0f} %.'
  now = tuple(spread.degrees for spread in spreads)
  images = next((times for times in (1.5, 2, 3, 4, 6, 8, 12, 16, MOST_TIMES) if
                 precision(noise.times(times), seeds, now, tail).half <= target), None)
  more = next((n for n in range(1, MOST_SEEDS - max(seeds) + 1) if precision(
    noise, (seeds[0] + n, seeds[1] + n), degrees(n), tail).half <= target), None)
  choices, costs = [], {}
  if images is not None:
    choices.append(f'about {math.ceil((images - 1) * held_out.num_images):,} more held-out images')
  if more is not None:
    choices.append(f'{counted(more, "more seed")} of each side')
    costs[choices[-1]] = more * sum(map(_seconds, (side, *schedules)))
  longer = _longer(side, shorter, differences.metric)
  if longer:
    costs[longer] = 2 * len(side.runs) * _seconds(side)
  if not choices:
    short = f'it may be anything from {signed(difference.low)} to {signed(difference.high)} points'
    text += f'neither {MOST_SEEDS} seeds nor {MOST_TIMES} times the images would do, should it stay.'
    text += f' Scratch may gain from {longer}.' if longer else ''
    return Need(short, text + rest, longer=bool(longer), chance=likely)
  words = text + ' or '.join(choices) + ', should the difference stay as it is.'
  if longer:
    words += f' It may not stay: scratch still gains, so {longer} may settle it too.'
  words += _cheapest(costs)
  if images is not None and costs:
    words += ' More images take annotations and no training.'
  return Need(' or '.join(choices), words + rest, more,
              None if images is None else math.ceil((images - 1) * held_out.num_images), bool(longer), likely)


def _degrees(differences: Differences, pair: tuple[Side, Side], spreads: Spreads, added: int) -> tuple[float, float]:
  """Return the degrees of freedom of both sides with so many seeds more; those of a given spread are infinite."""
  first, second = (spread.degrees if math.isinf(spread.degrees) else intervals.degrees_of_arm(
    differences.schedules(side), len(side.runs) + added) for side, spread in zip(pair, spreads, strict=True))
  return first, second


def twice_as_long(side: Side) -> str:
  """Return the training time of a schedule twice as long as a side's, in brackets; '' if it is unknown."""
  seconds = 2 * len(side.runs) * _seconds(side)
  seeds = f', {len(side.runs)} seeds' if len(side.runs) > 1 else ''
  return f' (twice as long{seeds}: {duration(seconds)} of training)' if math.isfinite(seconds) and seconds > 0 else ''


def _longer(side: Side, shorter: Side | None, metric: str) -> str:
  """Return the words for a longer schedule, '' if the metric has stopped rising, or if there is but one schedule."""
  if shorter is None or not side.mean(metric) - shorter.mean(metric) > RISING:
    return ''
  return f'a schedule twice as long as {side.schedule}'


def _seconds(side: Side) -> float:
  """Return the seconds of a run of a side inside training steps, NaN if unknown."""
  return float(np.mean([run.curve.seconds[-1] for run in side.runs]))


def _cheapest(costs: dict[str, float]) -> str:
  """Return a sentence about the training time of what can be trained, the cheapest first; '' if it is unknown."""
  known = sorted((seconds, what) for what, seconds in costs.items() if math.isfinite(seconds) and seconds > 0)
  if not known:
    return ''
  listed = ', '.join(f'{what} {duration(seconds)}' for seconds, what in known)
  return f' In training time, as measured here: {listed}{", the cheapest first" if len(known) > 1 else ""}.'
