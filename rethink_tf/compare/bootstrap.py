"""Confidence intervals of AP differences: COCO's AP from per-image matches, and paired bootstrap over images.

The bootstrap (Efron 1979) resamples the N evaluated images with replacement and takes the spread of AP over the
resamples. Two runs are resampled with the same images, so that image difficulty, which they share, cancels in their
difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's


class CategoryMatches(NamedTuple):
  """Detections of one category in all images, best first, matched to objects at T IoU thresholds."""

  images: np.ndarray  # int64 [n] index of each detection's image
  matched: np.ndarray  # bool [T, n]
  ignored: np.ndarray  # bool [T, n]: neither true nor false positive (matched to a crowd)
  objects: np.ndarray  # int64 [num images] number of objects, without ignored ones


class Matches(NamedTuple):
  """Matches of all categories that have objects, over the same list of images."""

  image_ids: np.ndarray  # int64 [num images], ascending
  categories: tuple[CategoryMatches, ...]


class Interval(NamedTuple):
  """An estimate in percent with the range that contains `confidence` of the bootstrap draws."""

  value: float
  low: float
  high: float
  confidence: float = 0.95

  def __str__(self) -> str:
    return f'{self.value:+.1f} [{self.low:+.1f}, {self.high:+.1f}]'


def average_precision(matches: Matches, weights: np.ndarray) -> np.ndarray:
  """Return COCO's AP in percent with weighted images: all 1 gives AP itself, 2 counts an image twice.

  Args:
    matches: matches of one run.
    weights: [draws, num images], not negative.

  Returns:
    float64 [draws]; NaN where all objects have weight 0.
  """
  totals, counts = np.zeros(len(weights)), np.zeros(len(weights))
  for one in matches.categories:
    objects = weights @ one.objects.astype(np.float64)  # [draws]
    present = objects > 0
    if not present.any():
      continue
    detection_weights = weights[present][:, one.images]  # [draws, n]
    for matched, ignored in zip(one.matched, one.ignored, strict=True):
      counted = detection_weights * ~ignored
      totals[present] += _mean_precision(np.cumsum(counted * matched, 1), np.cumsum(counted, 1), objects[present])
      counts[present] += 1
  with np.errstate(invalid='ignore', divide='ignore'):
    return np.where(counts > 0, 100.0 * totals / counts, np.nan)


def _mean_precision(true: np.ndarray, counted: np.ndarray, objects: np.ndarray) -> np.ndarray:
  """Return the mean precision at COCO's 101 recalls, [draws].

  true, counted: cumulative true positives and counted detections, [draws, n]. objects: [draws].
  """
  draws, n = true.shape
  if not n:
    return np.zeros(draws)
  precision = true / np.maximum(counted, np.spacing(1))
  precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]  # non-increasing with recall
  recall = true / objects[:, None]
  result = np.zeros(draws)
  for row in range(draws):
    at = np.searchsorted(recall[row], RECALLS, side='left')
    at = at[at < n]
    result[row] = precision[row, at].sum() / len(RECALLS)
  return result


def draw_weights(num_images: int, draws: int, seed: int) -> np.ndarray:
  """Draw images with replacement: int64 [draws, num images] counts, each row summing to num_images."""
  return np.random.default_rng(seed).multinomial(num_images, np.full(num_images, 1 / num_images), draws)


def paired_difference(first: Sequence[Matches], second: Sequence[Matches], draws: int = 1000, seed: int = 0,
                      confidence: float = 0.95) -> Interval:
  """Return AP of the first side minus AP of the second, in percent, with its paired bootstrap interval over images.

  A side is one run or several that differ only in their seed. The AP of a side is the mean over its runs, which are
  resampled along with the images, so that the interval includes the variance between seeds.

  Raises:
    ValueError: the runs were evaluated on different images.
  """
  ids = first[0].image_ids
  if any(not np.array_equal(ids, one.image_ids) for one in (*first, *second)):
    raise ValueError('the runs were evaluated on different images')
  ones = np.ones((1, len(ids)))
  value = _mean_ap(first, ones) - _mean_ap(second, ones)
  noise = np.random.default_rng(seed + 1)
  differences = []
  for begin in range(0, draws, 100):  # 100 draws at a time bound the memory
    weights = draw_weights(len(ids), min(100, draws - begin), seed + begin + 2)
    differences.append(_mean_ap(first, weights, noise) - _mean_ap(second, weights, noise))
  tail = 100 * (1 - confidence) / 2
  low, high = np.nanpercentile(np.concatenate(differences), [tail, 100 - tail])
  return Interval(float(value[0]), float(low), float(high), confidence)


def _mean_ap(side: Sequence[Matches], weights: np.ndarray, noise: np.random.Generator | None = None) -> np.ndarray:
  """Return the mean AP over the runs of a side, resampled if `noise` is given: [draws]."""
  each = np.stack([average_precision(one, weights) for one in side])  # [runs, draws]
  if noise is None or len(side) == 1:
    return each.mean(0)
  chosen = noise.integers(len(side), size=each.shape)
  return np.take_along_axis(each, chosen, 0).mean(0)
