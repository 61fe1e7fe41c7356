"""How sure an AP is: matches of detections by image, COCO's AP from them, and paired bootstrap over images.

An evaluation on N photographs is one draw of N photographs; drawing N of them again, with repetitions, shows how far
its AP would move on others of the same kind (Efron 1979). Two runs are drawn with the same photographs, so that the
difficulty of a photograph, which both share, cancels in their difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's


class CategoryMatches(NamedTuple):
  """Detections of one category in all images, best first, matched to objects at T thresholds of IoU."""

  images: np.ndarray  # int64 [n] index of each detection's image
  matched: np.ndarray  # bool [T, n]
  ignored: np.ndarray  # bool [T, n]: counts neither way (matched to a crowd)
  objects: np.ndarray  # int64 [num images] that count


class Matches(NamedTuple):
  """All categories that have objects, over the same list of images."""

  image_ids: np.ndarray  # int64 [num images], ascending
  categories: tuple[CategoryMatches, ...]


class Interval(NamedTuple):
  """An estimate in percent with the range that holds `confidence` of the bootstrap's draws."""

  value: float
  low: float
  high: float
  confidence: float = 0.95

  def __str__(self) -> str:
    return f'{self.value:+.1f} [{self.low:+.1f}, {self.high:+.1f}]'


def average_precision(matches: Matches, weights: np.ndarray) -> np.ndarray:
  """COCO's AP in percent for weights of the images: 1 for each gives the AP itself, 2 counts a photograph twice.

  Args:
    matches: of one run.
    weights: [draws, num images], not negative.

  Returns:
    float64 [draws]; NaN where no object has any weight.
  """
  totals, counts = np.zeros(len(weights)), np.zeros(len(weights))
  for one in matches.categories:
    objects = weights @ one.objects.astype(np.float64)  # [draws]
    there = objects > 0
    if not there.any():
      continue
    of_detection = weights[there][:, one.images]  # [draws, n]
    for matched, ignored in zip(one.matched, one.ignored, strict=True):
      counted = of_detection * ~ignored
      precision = _mean_precision(np.cumsum(counted * matched, 1), np.cumsum(counted, 1), objects[there])
      totals[there] += precision
      counts[there] += 1
  with np.errstate(invalid='ignore', divide='ignore'):
    return np.where(counts > 0, 100.0 * totals / counts, np.nan)


def _mean_precision(true: np.ndarray, seen: np.ndarray, objects: np.ndarray) -> np.ndarray:
  """Precision at COCO's 101 recalls, mean: [draws, n] cumulative true and counted detections, [draws] objects."""
  draws, n = true.shape
  if not n:
    return np.zeros(draws)
  precision = true / np.maximum(seen, np.spacing(1))
  precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]  # never rising with recall
  recall = true / objects[:, None]
  result = np.zeros(draws)
  for row in range(draws):
    at = np.searchsorted(recall[row], RECALLS, side='left')
    at = at[at < n]
    result[row] = precision[row, at].sum() / len(RECALLS)
  return result


def draw_weights(num_images: int, draws: int, seed: int) -> np.ndarray:
  """How often each image is drawn: int64 [draws, num images], each row with the sum num_images."""
  return np.random.default_rng(seed).multinomial(num_images, np.full(num_images, 1 / num_images), draws)


def paired_difference(first: Sequence[Matches], second: Sequence[Matches], draws: int = 1000, seed: int = 0,
                      confidence: float = 0.95) -> Interval:
  """AP of the first side minus that of the second, in percent, with its paired bootstrap interval over images.

  A side is one run, or several that differ in their seed alone: then the mean of their APs, of runs drawn anew with
  the photographs, so that the interval holds the spread between seeds as well.

  Raises:
    ValueError: the runs were not evaluated on the same images.
  """
  ids = first[0].image_ids
  if any(not np.array_equal(ids, one.image_ids) for one in (*first, *second)):
    raise ValueError('the runs were evaluated on different images')
  ones = np.ones((1, len(ids)))
  value = _mean_ap(first, ones) - _mean_ap(second, ones)
  noise = np.random.default_rng(seed + 1)
  differences = []
  for begin in range(0, draws, 100):  # a hundred at a time bounds the memory
    weights = draw_weights(len(ids), min(100, draws - begin), seed + begin + 2)
    differences.append(_mean_ap(first, weights, noise) - _mean_ap(second, weights, noise))
  tail = 100 * (1 - confidence) / 2
  low, high = np.nanpercentile(np.concatenate(differences), [tail, 100 - tail])
  return Interval(float(value[0]), float(low), float(high), confidence)


def _mean_ap(side: Sequence[Matches], weights: np.ndarray, noise: np.random.Generator | None = None) -> np.ndarray:
  """Mean over the runs of a side, or over as many drawn from them: [draws]."""
  each = np.stack([average_precision(one, weights) for one in side])  # [runs, draws]
  if noise is None or len(side) == 1:
    return each.mean(0)
  chosen = noise.integers(len(side), size=each.shape)
  return np.take_along_axis(each, chosen, 0).mean(0)
