"""Repeated looks at a study while it runs: confidence levels of intervals that hold at all looks together.

A study that may stop after any seed looks at its runs with 2, 3, ..., N seeds a side, and each look is a chance to be
wrong. The total error α is spent over the looks (Lan and DeMets 1983): by n seeds, a share (n / N)² of it (the power
family of Kim and DeMets 1987). The level of a look follows from what it may spend and from its correlation with the
looks before, by recursive integration (Armitage, McPherson and Rowe 1969): differences of means over n1 and n2 > n1
seeds have correlation √(n1 / n2), and a larger one on the same held-out images, which makes errors rarer. The levels
are then used with Student's t in place of the normal distribution (Pocock 1977). Statistics with an estimated variance
are less correlated than those with a known one, which costs up to a quarter of α in simulations: 0.7 α is spent.

The intervals at these levels are repeated confidence intervals (Jennison and Turnbull 1989). They hold together at all
looks, whatever the stopping rule: a study may also stop one schedule or group of runs and continue another.

Simulated error rates: results/early_stopping.md.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

FIRST, MOST = 2, 30  # seeds a side at the first look (with one there is no spread between seeds), and at most
_SPENT = 0.7  # share of α
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(96)


class Look(NamedTuple):
  """One look at a study."""

  seeds: int  # a side, at least FIRST
  max_seeds: int  # N, at which the study ends at the latest

  @property
  def number(self) -> int:
    """The look's place among the planned ones, from 1."""
    return self.seeds - FIRST + 1

  @property
  def planned(self) -> int:
    """The number of looks if the study does not stop before."""
    return self.max_seeds - FIRST + 1

  def tail(self, confidence: float, comparisons: int = 1) -> float:
    """Return the probability outside one end of an interval at this look.

    confidence: of all looks and all `comparisons` together.
    """
    return levels(self.max_seeds, (1 - confidence) / comparisons)[self.number - 1] / 2


def spent(seeds: int, max_seeds: int, alpha: float) -> float:
  """Return the error spent by the time a study has a number of seeds."""
  return _SPENT * alpha * (seeds / max_seeds) ** 2


@functools.lru_cache(maxsize=256)
def levels(max_seeds: int, alpha: float) -> tuple[float, ...]:
  """Return the two-sided level of each look, at FIRST, ..., max_seeds seeds, which together spend `alpha`."""
  if max_seeds == FIRST:
    return (alpha,)
  found: list[float] = []
  at, density = np.zeros(1), np.ones(1)  # of the sum of n standard normal values, in studies that have not stopped
  before, total = 0, 0.0
  for seeds in range(FIRST, max_seeds + 1):
    deviation = math.sqrt(seeds - before)
    spend = spent(seeds, max_seeds, alpha) - total
    excess = functools.partial(_crossed, at=at, density=density, deviation=deviation, less=spend)
    bound = optimize.brentq(excess, 0.0, 15 * math.sqrt(seeds))
    found.append(2 * float(special.ndtr(-bound / math.sqrt(seeds))))
    nodes = _NODES * bound
    step = np.exp(-0.5 * ((nodes[:, None] - at) / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))
    at, density = nodes, (step @ density) * _WEIGHTS * bound
    before, total = seeds, total + spend
  return tuple(found)


def _crossed(bound: float, at: np.ndarray, density: np.ndarray, deviation: float, less: float) -> float:
  """Return the probability that a step of standard deviation `deviation` leaves [-bound, bound], minus `less`."""
  return float(density @ (special.ndtr((at - bound) / deviation) + special.ndtr((-bound - at) / deviation))) - less
