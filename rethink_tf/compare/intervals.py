"""Confidence intervals of AP differences that include both sources of error: held-out images and training seeds.

Two sides with n1 and n2 seeds each are scored on the same N images. The variance of the difference D of their mean AP
is

  V = S² k + (B - T² k),   k = 1/n1 + 1/n2

with S² the variance of AP between the seeds of a side, pooled over all sides of the comparison (ν degrees of freedom:
the number of runs less the number of sides); B the variance of D over images, by a paired bootstrap (Efron 1979), in
which the difficulty of images, which both sides share, cancels; and T² the bootstrap variance of a seed's deviation
from the mean of its side, which is in S² and in B and is counted once. None of B and S² k is more than V. The interval
is Student's with Satterthwaite's (1946) degrees of freedom, V² / ((S² k)² / ν + B² / (N - 1)).

Its coverage in simulated studies: results/coverage.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from rethink_tf.compare.sequential import Look

# Standard deviation between seeds measured on 200 images, in points of AP: what is assumed, for one seed a side, in the
# sentence about differences that cannot be resolved; never in an interval.
_MEASURED_SPREAD, _MEASURED_IMAGES = 2.3, 200
Values = float | np.ndarray  # of one comparison, or of as many as an array has


class SideScores(NamedTuple):
  """AP in percent of the n runs of a side, on the same images as the other sides."""

  values: np.ndarray  # float64 [n]
  draws: np.ndarray  # float64 [n, draws] of the same resampled images for all sides; NaN: without objects


class SeedSpread(NamedTuple):
  """Variance of AP between runs that differ only in their seed."""

  variance: Values  # S² above: as observed on these images
  of_images: Values  # T² above: the share of it that other images would change
  degrees: float  # ν; infinite if the spread was given


class Interval(NamedTuple):
  """A difference in percent and its confidence interval."""

  value: float
  low: float
  high: float
  confidence: float = 0.95
  resolved: float | None = None  # not None: one seed a side; about the smallest difference that could be distinguished

  @property
  def half(self) -> float:
    return (self.high - self.low) / 2

  def __str__(self) -> str:
    return f'{self.value:+.1f} [{self.low:+.1f}, {self.high:+.1f}]'


def seed_spread(sides: Sequence[SideScores], num_images: int) -> SeedSpread | None:
  """Pool the variance between seeds over all sides; None if no side has two runs."""
  repeated = [side for side in sides if len(side.values) > 1]
  degrees = sum(len(side.values) - 1 for side in repeated)
  if not degrees:
    return None
  variance = sum(float(np.sum((side.values - side.values.mean()) ** 2)) for side in repeated) / degrees
  of_images = sum(float(np.sum(_variance(side.draws - side.draws.mean(0), num_images))) for side in repeated) / degrees
  return SeedSpread(variance, of_images, degrees)


def given_spread(points: float) -> SeedSpread:
  """Return a known spread: a standard deviation between seeds in points of AP, without what images add to it."""
  return SeedSpread(points ** 2, 0.0, math.inf)


def difference(first: SideScores, second: SideScores, spread: SeedSpread | None, num_images: int,
               confidence: float = 0.95, comparisons: int = 1, look: Look | None = None) -> Interval:
  """Return mean AP of the first side minus the second, with its interval.

  Args:
    first, second: scores on the same images.
    spread: between seeds; None: unknown, and the interval is that of the images alone (`resolved` is set).
    num_images: N, at least 2.
    confidence: of all `comparisons` intervals of a family together (Bonferroni's inequality).
    comparisons: number of intervals among which one was selected.
    look: which look this is at a study that may stop early; None: the only one.
  """
  value = float(first.values.mean() - second.values.mean())
  images = variance_over_images(first, second, num_images)
  tail = outside(confidence, comparisons, look)
  k = 1 / len(first.values) + 1 / len(second.values)
  if spread is None:
    half = float(quantile(tail, num_images - 1)) * math.sqrt(images)
    assumed = _MEASURED_SPREAD ** 2 * _MEASURED_IMAGES / num_images
    return Interval(value, value - half, value + half, confidence, 2 * math.sqrt(images + assumed * k))
  half = float(half_width(images, spread, k, num_images, tail))
  return Interval(value, value - half, value + half, confidence)


def outside(confidence: float, comparisons: int = 1, look: Look | None = None) -> float:
  """Return the probability outside one end of an interval; arguments as of `difference`."""
  return (1 - confidence) / (2 * comparisons) if look is None else look.tail(confidence, comparisons)


def variance_over_images(first: SideScores, second: SideScores, num_images: int) -> float:
  """Return B above."""
  return float(_variance(first.draws.mean(0) - second.draws.mean(0), num_images))


def half_width(images: Values, spread: SeedSpread, k: float, num_images: int, tail: float) -> Values:
  """Return half the width of an interval; arguments as above."""
  return np.sqrt(variance(images, spread, k)) * quantile(tail, degrees(images, spread, k, num_images))


def variance(images: Values, spread: SeedSpread, k: float) -> Values:
  """Return V above from B = `images`."""
  seeds = spread.variance * k
  return np.maximum(np.maximum(images, seeds), seeds + images - spread.of_images * k)


def degrees(images: Values, spread: SeedSpread, k: float, num_images: int) -> Values:
  """Return the degrees of freedom of V, very many if it is 0."""
  seeds = spread.variance * k
  rest = variance(images, spread, k) - seeds
  seeds = seeds * (1 + 2 * math.sqrt(2 / spread.degrees))
  uncertain = seeds ** 2 / spread.degrees + rest ** 2 / (num_images - 1)
  return (seeds + rest) ** 2 / np.maximum(uncertain, 1e-300) + 1e6 * (uncertain == 0)


def quantile(tail: float, degrees_of_freedom: Values) -> Values:
  """Return the value that Student's t exceeds with probability `tail`."""
  return special.stdtrit(np.minimum(degrees_of_freedom, 1e6), 1 - tail)


def _variance(draws: np.ndarray, num_images: int) -> np.ndarray:
  """Return the variance over bootstrap draws, the last axis, without the bootstrap's bias (N - 1) / N."""
  return np.nanvar(draws, axis=-1, ddof=1) * num_images / (num_images - 1)
