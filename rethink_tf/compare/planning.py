"""Planning of comparisons: what a study can detect, and what would settle an open one (images, seeds, schedule)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from rethink_tf.compare import intervals
from rethink_tf.compare.differences import Differences
from rethink_tf.compare.groups import Side
from rethink_tf.compare.intervals import HeldOut, Seeds, SeedSpread, SideScores, Spreads, Values
from rethink_tf.compare.sequential import MOST, Look
from rethink_tf.console import counted, duration, magnitude, signed, told_apart

MOST_SEEDS, MOST_TIMES = MOST, 25  # a side, and of images; beyond these, an addition is not useful advice
RISING = 0.5  # points of AP from a schedule to the next longer one
_EVEN, _POWER = 0.5, 0.8
TRUE_DIFFERENCE = 3.0  # standard deviation of true differences in points of AP, before they are measured
_NODES, _DRAWS = 16, 4000
# Assumptions for a study without runs. The spread between seeds, in points of AP: what was measured lies in the range.
SPREAD, SPREAD_RANGE = 1.0, (0.3, 2.3)
LEVEL = 40.0  # AP in percent
# Standard deviation over images of the difference of two runs, in units of √(AP (100 - AP)): 0.2 to 0.4 in the studies
# of results/miniature.md. Three quarters of its square differ from seed to seed.
_IMAGE_NOISE, _OF_RUNS = 0.3, 0.75


class Noise(NamedTuple):
  """Sources of the variance of a difference between two sides, in points squared, on a given set of images."""

  between: Values  # over images, of the two sides whatever their seeds
  of_images: Values  # of a run, over images: other images would change it
  own: Values  # between seeds, on any images
  held_out: HeldOut

  @classmethod
  def measured(cls, first: SideScores, second: SideScores, spreads: Spreads, held_out: HeldOut) -> Noise:
    """Return the noise of two measured sides; the variance between seeds is the mean of both, as in V."""
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

  def over_images(self, seeds: Seeds) -> Values:
    """Return the variance over images of the difference of two sides, given their numbers of seeds."""
    return np.maximum(self.between + self.of_images * sum(1 / n for n in seeds), self.held_out.least)

  def variance(self, seeds: Seeds) -> Values:
    """Return the variance of the difference of two sides, given their numbers of seeds."""
    return self.over_images(seeds) + self.own * sum(1 / n for n in seeds) + 1e-12

  def spreads(self, degrees: tuple[float, float]) -> Spreads:
    """Return the spread between seeds of each side, given their degrees of freedom."""
    first, second = (SeedSpread(self.own + self.of_images, self.of_images, each) for each in degrees)
    return first, second


def found(noise: Noise, seeds: Seeds, schedules: tuple[int, int] | None, tail: float) -> float:
  """Return the true difference, in points, that a comparison of two sides detects with a power of 80 %.

  The interval's variance is itself estimated: with two or three seeds the detectable difference is well above half the
  interval's width. The power is averaged over the spreads between seeds that may be observed.

  Args:
    noise: of the difference.
    seeds: numbers of seeds of the two sides, at least two.
    schedules: numbers of schedules over which the spread of each side is pooled; None: the spread is known.
    tail: probability outside one end of the interval.
  """
  random = np.random.default_rng(0)
  spreads: list[SeedSpread] = []
  for number, pooled in zip(seeds, schedules or (), strict=schedules is not None):
    observed = random.chisquare(number - 1, (pooled, _DRAWS)) / (number - 1)
    observed *= noise.own + noise.of_images
    spreads.append(SeedSpread.observed(observed[0], observed.mean(0), noise.of_images,
                                       (number - 1, intervals.degrees_of_arm(pooled, number))))
  images = noise.over_images(seeds) * random.chisquare(noise.held_out.degrees, _DRAWS) / noise.held_out.degrees
  half = intervals.half_width(images, tuple(spreads) or noise.spreads((math.inf,) * 2), seeds, noise.held_out, tail)
  deviation = math.sqrt(noise.variance(seeds))
  largest = float(half.max()) + 10 * deviation
  return float(optimize.brentq(lambda true: np.mean(special.ndtr((true - half) / deviation)) - _POWER, 0.0, largest))


def chance(value: Values, noise: Noise, seeds: Seeds, then: Seeds, images: float, degrees: tuple[float, float],
           degrees_then: tuple[float, float], tail: float, margin: float) -> Values:
  """Return the probability that a difference is settled with more seeds or images, from what is known now.

  Predictive power (Spiegelhalter, Freedman and Blackburn 1986). What was found is more often too far from zero than too
  near where noise is large: the true difference is taken to be normal around 0 with a standard deviation of
  `TRUE_DIFFERENCE` before it was measured, and the spread between seeds to be as uncertain as its degrees of freedom
  tell. Calibrated in simulated studies: results/advice.md.

  Args:
    value: the present difference.
    noise: of the difference; arrays for many differences.
    seeds: present numbers of seeds of the two sides.
    then: numbers of seeds in the end.
    images: how many times as many images in the end.
    degrees: of freedom of the spread between seeds of both now.
    degrees_then: and in the end.
    tail: probability outside one end of the interval in the end.
    margin: AP points within which two detectors count as equal.
  """
  known = sum(degrees)
  of_spread = (np.arange(_NODES) + 0.5) / _NODES  # quantiles at which it is integrated over
  ratio = np.ones(1) if math.isinf(known) else known / special.chdtri(known, of_spread)
  observed = (noise.own + noise.of_images) * ratio.reshape(-1, *[1] * np.ndim(noise.own))
  now = noise._replace(own=np.maximum(observed - noise.of_images, 0.0))
  later = now.times(images)
  before, after = now.variance(seeds), later.variance(then)
  half = intervals.half_width(later.over_images(then), later.spreads(degrees_then), then, later.held_out, tail)
  new = np.maximum(1 - after / before, 0.0)  # weight of the new data in the difference then
  believed = TRUE_DIFFERENCE ** 2 / (TRUE_DIFFERENCE ** 2 + before)  # share of the present difference
  mean = value - (1 - believed) * value * new
  deviation = np.sqrt(believed * before * new ** 2 + after * new) + 1e-9
  each = special.ndtr((-half - mean) / deviation) + special.ndtr((mean + margin - half) / deviation)
  return np.minimum(each, 1.0).mean(0)


class Addition(NamedTuple):
  """Additional seeds or images, either of which would settle a difference with a given probability; None: neither."""

  seeds: int | None = None  # more, of each side, at most: a study that stops early may need fewer
  images: int | None = None  # more held-out ones

  def words(self) -> list[str]:
    """Return the additions in words, seeds last."""
    found = []
    if self.images is not None:
      found.append(f'about {self.images:,} more held-out {"image" if self.images == 1 else "images"}')
    if self.seeds is not None:
      found.append(f'{counted(self.seeds, "more seed")} of each side')
    return found


class Need(NamedTuple):
  """What would settle a difference."""

  short: str
  words: str
  even: Addition = Addition()  # in half of the cases
  sure: Addition = Addition()  # in four of five
  longer: bool = False  # whether a longer schedule from scratch may settle it
  chance: float = 1.0  # that the seeds that a study has left settle it


_WITHOUT_IMAGES = Need('one held-out image says nothing about others',
                       'One held-out image says nothing about others: no interval can be given. Evaluate on more.')
_WITHOUT_INTERVAL = Need('no interval can be given',
                         'Detections are missing (CocoEvaluator.save_results), of different images or objects, or '
                         'scored in different ways, or the metric has no intervals: no interval can be given.')


def needed(side: Side, best: Side, differences: Differences, margin: float, schedules: Sequence[Side],
           shorter: Side | None = None) -> Need:
  """Describe what would settle a difference, how likely that is, and the training time that it takes.

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
  half, least = magnitude(difference.half), magnitude(target)
  if half == least:
    half, least = told_apart(difference.half, target, 2)
  width = (f'is {half} points to either side, and {least}'
           if not difference.is_cut else f'ends where differences do, and {least} points to either side')
  noise = Noise.measured(differences.scores(side), differences.scores(best), spreads, held_out)
  known = _Known(difference.value, noise, (len(side.runs), len(best.runs)),
                 tuple(spread.degrees for spread in spreads), _degrees(differences, (side, best), spreads),
                 functools.partial(intervals.outside, difference.confidence, len(schedules)), margin)
  longer = _longer(side, shorter, differences.metric)
  likely, rest = _left(known, differences.look)
  text = f'The interval {width} would settle a difference that stays as it is. '
  even, sure = (_enough(known, differences.look, power) for power in (_EVEN, _POWER))
  if even == Addition():
    short = _range(difference.low, difference.high)
    text += f'It may not: neither {MOST_SEEDS} seeds nor {MOST_TIMES} times the images would settle it in half of the'
    text += f' cases.{f" Scratch may gain from {longer}." if longer else ""}'
    return Need(short, text + rest, longer=bool(longer), chance=likely)
  costs = {even.words()[-1]: even.seeds * sum(map(_seconds, (side, *schedules)))} if even.seeds else {}
  if longer:
    costs[longer] = 2 * len(side.runs) * _seconds(side)
  choices, surer = (' or '.join(one.words()) for one in (even, sure))
  text += f'It may not: with {choices} it is settled in ' + (
    'four of five cases.' if surer == choices else
    'half of the cases' + (f', with {surer} in four of five.' if surer else '.'))
  text += f' Scratch still gains, so {longer} may settle it too.' if longer else ''
  text += _cheapest(costs)
  if even.images and costs:
    text += ' More images take annotations and no training.'
  return Need(f'{choices} may settle it', text + rest, even, sure, bool(longer), likely)


def _range(low: float, high: float) -> str:
  """Describe in words where scratch may lie relative to pre-training."""
  if not low < 0 < high:
    return f'the difference may be anything from {signed(low)} to {signed(high)} points'
  return f'scratch may be up to {magnitude(low)} points behind, or up to {magnitude(high)} ahead'


class _Known(NamedTuple):
  """What is known about a difference that is still open."""

  value: float
  noise: Noise
  seeds: Seeds
  degrees: tuple[float, float]  # of freedom of the spread between seeds
  degrees_with: Callable[[int], tuple[float, float]]  # so many seeds more
  outside: Callable[[Look | None], float]  # probability outside one end of an interval at a look
  margin: float

  def chance(self, look: Look | None, more: int = 0, images: float = 1) -> float:
    """Return the probability that more seeds, or `images` times as many images, settle the difference."""
    degrees = self.degrees_with(more) if more else self.degrees
    return float(chance(self.value, self.noise, self.seeds, (self.seeds[0] + more, self.seeds[1] + more), images,
                        self.degrees, degrees, self.outside(look), self.margin))


def _left(known: _Known, look: Look | None) -> tuple[float, str]:
  """Return the probability that a study's remaining seeds settle a difference, and a sentence that says so."""
  if look is None:
    return 1.0, ''
  left = look.max_seeds - look.seeds
  likely = known.chance(look._replace(seeds=look.max_seeds), left)
  return likely, (f' With all {look.max_seeds} seeds it would be settled with a probability of '
                  f'{_probability(likely)}.' if left else '')


def _probability(share: float) -> str:
  """Return an estimated probability in words: never a certainty."""
  if 0.01 <= share <= 0.99:
    return f'about {100 * share:.0f} %'
  return 'less than 1 %' if share < 0.5 else 'more than 99 %'


def _enough(known: _Known, look: Look | None, power: float) -> Addition:
  """Return the smallest numbers of seeds and of images that settle a difference with probability `power`.

  The seeds are those of a study that looks after each one (`--until_settled`), whose last interval is wider.
  """
  now, images = max(known.seeds), known.noise.held_out.num_images
  return Addition(
    next((n for n in range(1, MOST_SEEDS - now + 1) if known.chance(Look(now + n, now + n), n) >= power), None),
    next((math.ceil((times - 1) * images) for times in (1.5, 2, 3, 4, 6, 8, 12, 16, MOST_TIMES)
          if known.chance(look, images=times) >= power), None))


def _degrees(differences: Differences, pair: tuple[Side, Side],
             spreads: Spreads) -> Callable[[int], tuple[float, float]]:
  """Return a function: number of added seeds -> degrees of freedom of both sides; infinite for a known spread."""
  pooled = [(differences.schedules(side), len(side.runs)) for side in pair]

  def degrees(added: int) -> tuple[float, float]:
    first, second = (spread.degrees if math.isinf(spread.degrees) else intervals.degrees_of_arm(schedules, runs + added)
                     for (schedules, runs), spread in zip(pooled, spreads, strict=True))
    return first, second

  return degrees


def twice_as_long(side: Side) -> str:
  """Return the training time of a schedule twice as long as a side's, in brackets; '' if unknown."""
  seconds = 2 * len(side.runs) * _seconds(side)
  seeds = f', {len(side.runs)} seeds' if len(side.runs) > 1 else ''
  return f' (twice as long{seeds}: {duration(seconds)} of training)' if math.isfinite(seconds) and seconds > 0 else ''


def _longer(side: Side, shorter: Side | None, metric: str) -> str:
  """Return the advice to train longer, '' if the metric has stopped rising or there is a single schedule."""
  if shorter is None or not side.mean(metric) - shorter.mean(metric) > RISING:
    return ''
  return f'a schedule twice as long as {side.schedule}'


def _seconds(side: Side) -> float:
  """Return the training time of one run of a side in seconds, NaN if unknown."""
  return float(np.mean([run.curve.seconds[-1] for run in side.runs]))


def _cheapest(costs: dict[str, float]) -> str:
  """Return a sentence with the training time of each option, the cheapest first; '' if unknown."""
  known = sorted((seconds, what) for what, seconds in costs.items() if math.isfinite(seconds) and seconds > 0)
  if not known:
    return ''
  listed = ', '.join(f'{what} {duration(seconds)}' for seconds, what in known)
  return f' In training time, as measured here: {listed}{", the cheapest first" if len(known) > 1 else ""}.'
