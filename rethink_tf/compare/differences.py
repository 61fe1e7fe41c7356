"""Differences of AP between sides of a comparison, with intervals where detections were saved."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from absl import logging

from rethink_tf.compare import bootstrap, intervals
from rethink_tf.compare.groups import Side, groups, sides
from rethink_tf.compare.run_summary import PRETRAINED, SCRATCH, Run
from rethink_tf.compare.sequential import Look
from rethink_tf.console import duration

_LOG_SECONDS = 5.0  # work of that time is logged


def log_next(work: str, run: str, done: int, runs: int, seconds: float) -> None:
  """Log which run comes next and the time left, for work that takes long.

  seconds: time that the finished runs have taken.
  """
  if done and seconds > _LOG_SECONDS:
    logging.info('%s of %s, run %d of %d, ETA %s', work, run, done + 1, runs, duration(seconds / done * (runs - done)))


class ReadMatches(Protocol):
  """Matches of the last evaluations of runs (matching.SavedMatches)."""

  def __call__(self, run: Run) -> bootstrap.Matches | None:
    """Return those of a run, None if its detections were not saved."""

  def truth(self, run: Run) -> str:
    """Return a text on the images, objects and rules that a run was scored by, equal for comparable runs."""


class Differences:
  """AP of all runs on resampled images, and the spread between their seeds; computed when first needed."""

  def __init__(self, runs: Sequence[Run], metric: str, matches: ReadMatches, draws: int = 1000,
               confidence: float = 0.95, seed_spread: float | None = None, look: Look | None = None) -> None:
    """Compute nothing yet.

    Args:
      runs: of the comparison.
      metric: 'box/AP', ....
      matches: function that returns the matches of a run's last evaluation.
      draws: number of bootstrap draws.
      confidence: coverage of the intervals.
      seed_spread: known standard deviation between seeds in points of AP; None: that of the runs.
      look: which look this is at a study that may stop early; None: it has a fixed number of runs.
    """
    self.metric, self.confidence, self.look = metric, confidence, look
    self._sides = [side for group in groups(runs) for init in (SCRATCH, PRETRAINED) for side in sides(group, init)]
    self._matches, self._num_draws, self._given = matches, draws, seed_spread
    self._draws: dict[str, np.ndarray] = {}  # by run
    self._resampling = 0.0  # seconds

  def num_images(self, side: Side) -> int | None:
    """Return the number of held-out images on which all runs of a side were evaluated, None if unknown."""
    ids = self._images(side)
    return None if ids is None else len(ids)

  def num_objects(self, side: Side) -> int | None:
    """Return the number of objects in these images that the metric counts, None if unknown."""
    if self._images(side) is None:
      return None
    return sum(int(one.objects.sum()) for one in self._matches(side.runs[0]).categories)

  def held_out(self, side: Side) -> intervals.HeldOut | None:
    """Return how much the held-out images of a side can tell (intervals.HeldOut), None if they are unknown."""
    if self._images(side) is None:
      return None
    return intervals.HeldOut.of([one.objects for one in self._matches(side.runs[0]).categories])

  def between(self, first: Side, second: Side, comparisons: int = 1) -> intervals.Interval | None:
    """Return mean AP of the first side minus the second, None if detections are missing or of different data.

    comparisons: number of intervals among which this one is selected.
    """
    ids, others = self._images(first), self._images(second)
    if ids is None or others is None or self._truth(first) != self._truth(second) or len(ids) < 2:
      return None
    return intervals.difference(self.scores(first), self.scores(second), self.spreads(first, second),
                                self.held_out(first), self.confidence, comparisons, self.look)

  def spreads(self, first: Side, second: Side) -> intervals.Spreads | None:
    """Return the spread between the seeds of two sides; None if that of either is not known."""
    if self._given is not None:
      return (intervals.given_spread(self._given),) * 2
    found = self._spread(first), self._spread(second)
    return None if None in found else found

  def schedules(self, side: Side) -> int:
    """Return the number of schedules with the same initial weights over which a side's spread is pooled."""
    return sum(len(other.runs) > 1 for other in self._arm(side))

  def _spread(self, side: Side) -> intervals.SeedSpread | None:
    held_out = self.held_out(side)
    if held_out is None:
      return None
    return intervals.seed_spread([self.scores(other) for other in self._arm(side)], self.scores(side), held_out)

  def _arm(self, side: Side) -> list[Side]:
    """Return the sides with the same settings, initial weights and held-out objects, whatever their schedule."""
    if self._images(side) is None:
      return []
    return [other for other in self._sides if _arm_key(other) == _arm_key(side)
            and self._images(other) is not None and self._truth(other) == self._truth(side)]

  def scores(self, side: Side) -> intervals.SideScores:
    """Return the scores of a side whose runs have all saved their detections."""
    for run in side.runs:
      if run.name not in self._draws:
        self._draws[run.name] = self._resampled(run)
    return intervals.SideScores(np.array([run.final(self.metric) for run in side.runs]),
                                np.stack([self._draws[run.name] for run in side.runs]))

  def _resampled(self, run: Run) -> np.ndarray:
    log_next('resampling the images', run.name, len(self._draws), sum(len(side.runs) for side in self._sides),
             self._resampling)
    started = time.monotonic()
    draws = bootstrap.resampled([self._matches(run)], self._num_draws)[0]
    self._resampling += time.monotonic() - started
    return draws

  def _images(self, side: Side) -> np.ndarray | None:
    """Return the ids of the images of a side, None if its runs differ in their data or one has no detections."""
    tables = [self._matches(run) for run in side.runs]
    if any(table is None for table in tables):
      return None
    return tables[0].image_ids if len(set(map(self._matches.truth, side.runs))) == 1 else None

  def _truth(self, side: Side) -> str:
    """Return the digest of the ground truth of a side, whose runs have all the same."""
    return self._matches.truth(side.runs[0])


def _arm_key(side: Side) -> tuple:
  run = side.runs[0]
  return run.twin_key, run.init, run.init_key
