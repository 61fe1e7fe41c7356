"""Confidence intervals of AP differences that include both sources of error: held-out images and training seeds.

Two sides with n1 and n2 seeds are scored on the same images. The variance of the difference D of their mean AP is

  V = S1² / n1 + S2² / n2 + (B - T1² / n1 - T2² / n2)

with S² the variance of AP between the seeds of a side; B the variance of D over images, by a paired bootstrap (Efron
1979), in which the difficulty of images, which both sides share, cancels; and T² the bootstrap variance of a seed's
deviation from the mean of its side, which is in S² and in B and is counted once. Neither B nor the seeds' part is more
than V. The interval is Student's with Satterthwaite's (1946) degrees of freedom, V² over the sum of the squares of the
three parts, each divided by its own degrees of freedom.

Seeds. S² is pooled over the schedules of the side's own initial weights, whose spread another arm need not have, and is
not less than that of the side itself. Where the seeds of a side spread no more than those of its other schedules, S²
has the degrees of freedom of all of them; where its own variance is three times the pooled one, those of the side
alone; in between, from 1.5 times on, a value between the two.

What seeds add to images, E = V - B, is S1² / n1 + S2² / n2 less the same sum of T², and 0 if that is less. In many
studies whose seeds add nothing it is positive by chance, so that it is multiplied by E / (E + T² / 2), T² the sum. This
takes little from an E that is far above it, and nothing from that of a known spread. Where E is small, what is
uncertain about V is B: of a spread pooled over schedules only the share E / (E + 0.03 B) has the seeds' degrees of
freedom, the rest those of the images. A spread that is not pooled may be that small by chance: its share is nowhere
below 0.85.

These numbers are chosen so that intervals hold the truth in 93 to 98 % of simulated studies with equal spreads, and as
often as possible where spreads are unequal.

Images. A class that few images hold makes the bootstrap's variance too small and uncertain: `HeldOut`.

Ends. A difference of AP lies within ±100 points, where an interval ends too: coverage stays what it is.

Coverage in simulated studies: results/coverage.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from rethink_tf.compare.sequential import Look
from rethink_tf.console import signed

# Standard deviation between seeds measured on 200 images, in points of AP: what is assumed, for one seed a side, in the
# sentence about differences that cannot be resolved; never in an interval.
_MEASURED_SPREAD, _MEASURED_IMAGES = 2.3, 200
_ALIKE, _APART = 1.5, 3.0  # variance of a side over the pooled one: pooling holds below, and not above
_BY_CHANCE = 0.5  # of T²: where E is halved, as it may be positive by chance
_BLENDED = 0.03  # of B: where half of a pooled spread has the degrees of freedom of images
_NOT_POOLED = 0.85  # share of such a spread where E is 0
LARGEST = 100.0  # difference of AP, in points
Values = float | np.ndarray  # of one comparison, or of as many as an array has


class SideScores(NamedTuple):
  """AP in percent of the n runs of a side, on the same images as the other sides."""

  values: np.ndarray  # float64 [n]
  draws: np.ndarray  # float64 [n, draws] of the same resampled images for all sides; NaN: without objects


class HeldOut(NamedTuple):
  """What held-out images can tell of AP, the mean over classes, whatever the detectors.

  The variance of the AP of a class that n images hold is about proportional to 1 / n, its bootstrap is too small by
  (n - 1) / n, and has n - 1 degrees of freedom.
  """

  num_images: int
  degrees: float  # of freedom of the variance over images
  inflation: float  # by which a bootstrap's variance is too small
  least: float = 0.0  # variance in points squared of an object that one side finds and the other does not

  @classmethod
  def alike(cls, num_images: int, least: float = 0.0) -> HeldOut:
    """Return the HeldOut of images that all hold the same classes."""
    return cls(num_images, num_images - 1, num_images / (num_images - 1), least)

  @classmethod
  def of(cls, objects: Sequence[np.ndarray]) -> HeldOut:
    """Return the HeldOut of images, given an array [images] of object counts for each class that has objects."""
    holding = np.array([np.count_nonzero(one) for one in objects], float)
    share = 1 / holding / np.sum(1 / holding)
    fewer = np.maximum(holding - 1, 0.5)  # a class of one image has no variance of its own
    counts = np.array([one.sum() for one in objects], float)
    num_images = len(objects[0])
    return cls(num_images, min(float(1 / np.sum(share ** 2 / fewer)), num_images - 1),
               float(np.sum(share * holding / fewer)), 1e4 / (len(objects) ** 2 * counts.sum()) * float(
                 np.sum(1 / counts)))

  def times(self, images: float) -> HeldOut:
    """Return the HeldOut of `images` times as many images of the same kind."""
    return HeldOut(round(self.num_images * images), self.degrees * images, 1 + (self.inflation - 1) / images,
                   self.least / images ** 2)


class SeedSpread(NamedTuple):
  """Variance of AP between runs of a side, which differ only in their seed."""

  variance: Values  # S² above: as observed on these images
  of_images: Values  # T² above: the share of it that other images would change
  degrees: Values  # of freedom; infinite if the spread was given

  @classmethod
  def observed(cls, alone: Values, pooled: Values, of_images: Values, degrees: tuple[float, float]) -> SeedSpread:
    """Return the spread of a side.

    alone, pooled: variance between its seeds, and that over all schedules of its initial weights. degrees: of freedom
    of both.
    """
    apart = np.clip((alone / np.maximum(pooled, 1e-300) - _ALIKE) / (_APART - _ALIKE), 0, 1)
    return cls(np.maximum(pooled, alone), of_images, degrees[1] + (degrees[0] - degrees[1]) * apart)


Spreads = tuple[SeedSpread, SeedSpread]  # of the two sides of a difference
Seeds = tuple[int, int]  # their numbers of runs


class Interval(NamedTuple):
  """A difference in percent and its confidence interval."""

  value: float
  low: float
  high: float
  confidence: float = 0.95
  resolved: float | None = None  # not None: one seed a side; about the smallest difference that could be distinguished

  @classmethod
  def around(cls, value: float, half: float, confidence: float, resolved: float | None = None) -> Interval:
    """Return the interval `value` ± `half`, cut where a difference of AP cannot be larger."""
    return cls(value, max(value - half, -LARGEST), min(value + half, LARGEST), confidence,
               None if resolved is None else min(resolved, LARGEST))

  @property
  def half(self) -> float:
    """Half of the width; of an interval that is cut, its longer side."""
    return max(self.high - self.value, self.value - self.low)

  @property
  def is_cut(self) -> bool:
    """Whether an end was cut at the largest possible difference."""
    return self.low <= -LARGEST or self.high >= LARGEST

  def __str__(self) -> str:
    if self.resolved is not None:  # the ends are those of the images alone, and would pass for those of an interval
      return signed(self.value)
    return f'{signed(self.value)} [{signed(self.low)}, {signed(self.high)}]'


def seed_spread(arm: Sequence[SideScores], own: SideScores, held_out: HeldOut) -> SeedSpread | None:
  """Return the spread between the seeds of a side.

  arm: the sides of all schedules of the same initial weights, on the same images. own: the side. None if none of them
  has two runs.
  """
  repeated = [side for side in arm if len(side.values) > 1]
  if not repeated:
    return None
  counts = np.array([len(side.values) - 1 for side in repeated])
  variances = np.array([np.var(side.values, ddof=1) for side in repeated])
  of_images = np.sum([np.sum(_variance(side.draws - side.draws.mean(0), held_out)) for side in repeated])
  alone = float(np.var(own.values, ddof=1)) if len(own.values) > 1 else 0.0
  return SeedSpread.observed(alone, float(counts @ variances / counts.sum()), float(of_images / counts.sum()),
                             (len(own.values) - 1, float(counts.sum())))


def degrees_of_arm(schedules: int, seeds: int) -> float:
  """Return the degrees of freedom of a spread pooled over schedules, given the number of seeds of each."""
  return schedules * (seeds - 1)


def given_spread(points: float) -> SeedSpread:
  """Return the spread for a known standard deviation between seeds, in points of AP."""
  return SeedSpread(points ** 2, 0.0, math.inf)


def difference(first: SideScores, second: SideScores, spreads: Spreads | None, held_out: HeldOut,
               confidence: float = 0.95, comparisons: int = 1, look: Look | None = None) -> Interval:
  """Return mean AP of the first side minus the second, with its interval.

  Args:
    first, second: scores on the same images.
    spreads: between seeds, of both; None: unknown, and the interval is that of the images alone (`resolved` is set).
    held_out: the images.
    confidence: of all `comparisons` intervals of a family together (Bonferroni's inequality).
    comparisons: number of intervals among which one was selected.
    look: which look this is at a study that may stop early; None: the only one.
  """
  value = float(first.values.mean() - second.values.mean())
  images = variance_over_images(first, second, held_out)
  tail = outside(confidence, comparisons, look)
  seeds = len(first.values), len(second.values)
  if spreads is None:
    half = float(quantile(tail, held_out.degrees)) * math.sqrt(images)
    assumed = _MEASURED_SPREAD ** 2 * _MEASURED_IMAGES / held_out.num_images * sum(1 / n for n in seeds)
    return Interval.around(value, half, confidence, 2 * math.sqrt(images + assumed))
  return Interval.around(value, float(half_width(images, spreads, seeds, held_out, tail)), confidence)


def outside(confidence: float, comparisons: int = 1, look: Look | None = None) -> float:
  """Return the probability outside one end of an interval; arguments as of `difference`."""
  return (1 - confidence) / (2 * comparisons) if look is None else look.tail(confidence, comparisons)


def variance_over_images(first: SideScores, second: SideScores, held_out: HeldOut) -> float:
  """Return B above, but at least the variance of one object: other images might tell the sides apart."""
  return max(float(_variance(first.draws.mean(0) - second.draws.mean(0), held_out)), held_out.least)


def half_width(images: Values, spreads: Spreads, seeds: Seeds, held_out: HeldOut, tail: float) -> Values:
  """Return half the width of an interval; arguments as above."""
  return np.sqrt(variance(images, spreads, seeds)) * quantile(tail, degrees(images, spreads, seeds, held_out))


def variance(images: Values, spreads: Spreads, seeds: Seeds) -> Values:
  """Return V above from B = `images`."""
  of_seeds, of_both, uncertain = (sum(part) for part in zip(*(
    (spread.variance / n, spread.of_images / n, spread.of_images / n * np.isfinite(spread.degrees))
    for spread, n in zip(spreads, seeds, strict=True)), strict=True))
  beyond = np.maximum(of_seeds - of_both, 0.0)
  beyond = beyond ** 2 / np.maximum(beyond + _BY_CHANCE * uncertain, 1e-300)
  return np.maximum(images + beyond, of_seeds)


def degrees(images: Values, spreads: Spreads, seeds: Seeds, held_out: HeldOut) -> Values:
  """Return the degrees of freedom of V; a very large number if V is 0."""
  total = variance(images, spreads, seeds)
  beyond = total - images
  share = beyond / np.maximum(beyond + _BLENDED * images, 1e-300)
  parts = []
  for spread, n in zip(spreads, seeds, strict=True):
    least = np.where(np.asarray(spread.degrees) > max(n, 2) - 1, 0.0, _NOT_POOLED)
    parts.append(spread.variance / n * (least + (1 - least) * share))
  rest = total - sum(parts)
  uncertain = sum(part ** 2 / spread.degrees for part, spread in zip(parts, spreads, strict=True))
  uncertain = uncertain + rest ** 2 / held_out.degrees
  return (sum(parts) + rest) ** 2 / np.maximum(uncertain, 1e-300) + 1e6 * (uncertain == 0)


def quantile(tail: float, degrees_of_freedom: Values) -> Values:
  """Return the value that Student's t exceeds with probability `tail`."""
  return special.stdtrit(np.minimum(degrees_of_freedom, 1e6), 1 - tail)


def _variance(draws: np.ndarray, held_out: HeldOut) -> np.ndarray:
  """Return the variance over bootstrap draws, the last axis, without the bootstrap's bias."""
  return np.nanvar(draws, axis=-1, ddof=1) * held_out.inflation
