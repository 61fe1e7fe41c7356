"""COCO's or VOC's AP from per-image matches, for resampled images.

The bootstrap (Efron 1979) resamples the N evaluated images with replacement and takes the spread of AP over the
resamples. All runs are resampled with the same images, so that image difficulty, which they share, cancels in their
differences.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from rethink_tf.evaluation import voc_metrics

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
  rule: str = 'coco'  # or VOC's: 'area', '11-point'


def average_precision(matches: Matches, weights: np.ndarray) -> np.ndarray:
  """Return the AP in percent with weighted images: all 1 gives AP itself, 2 counts an image twice.

  Args:
    matches: matches of one run.
    weights: [draws, num images], not negative.

  Returns:
    float64 [draws]; NaN where all objects have weight 0.
  """
  mean_precision = _mean_precision if matches.rule == 'coco' else functools.partial(_voc_mean_precision, matches.rule)
  totals, counts = np.zeros(len(weights)), np.zeros(len(weights))
  for one in matches.categories:
    objects = weights @ one.objects  # [draws]
    present = objects > 0
    if not present.any():
      continue
    detection_weights = weights[present].take(one.images, 1)  # [draws, n]
    all_counted = detection_weights.cumsum(1)
    for matched, ignored in zip(one.matched, one.ignored, strict=True):
      # Recall and the envelope of precision change at true positives only, which are a small part of the detections.
      positives = np.flatnonzero(matched & ~ignored)
      counted = all_counted.take(positives, 1)
      if ignored.any():  # at few thresholds, and then few detections
        counted -= _sums_before(detection_weights, np.flatnonzero(ignored), positives)
      totals[present] += mean_precision(detection_weights.take(positives, 1).cumsum(1), counted, objects[present])
      counts[present] += 1
  with np.errstate(invalid='ignore'):
    return 100.0 * totals / counts  # 0 / 0 is NaN


def _sums_before(weights: np.ndarray, columns: np.ndarray, ends: np.ndarray) -> np.ndarray:
  """Return the sum of some columns of weights [draws, n] that are before each end, [draws, num ends]."""
  sums = np.pad(weights.take(columns, 1).cumsum(1), ((0, 0), (1, 0)))
  return sums.take(np.searchsorted(columns, ends), 1)


def _mean_precision(true: np.ndarray, counted: np.ndarray, objects: np.ndarray) -> np.ndarray:
  """Return the mean precision at COCO's 101 recalls, [draws].

  true, counted: cumulative true positives and counted detections at the n true positives, [draws, n]. objects: [draws].
  """
  precision = true / np.maximum(counted, np.spacing(1))
  precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]  # non-increasing with recall
  recall = true / objects[:, None]
  reached = np.minimum((100 * recall).astype(np.int64), 99)  # index of the last of RECALLS not above, but for rounding
  reached += RECALLS[reached + 1] <= recall
  reached -= RECALLS[reached] > recall
  return np.einsum('dn,dn->d', precision, np.diff(reached, axis=1, prepend=-1)) / len(RECALLS)


def _voc_mean_precision(rule: str, true: np.ndarray, counted: np.ndarray, objects: np.ndarray) -> np.ndarray:
  """Return the mean precision by a rule of VOC, [draws]; arguments as above."""
  precision = true / np.maximum(counted, np.spacing(1))
  return np.array([voc_metrics.average(own_true / own_objects, own, rule)
                   for own_true, own, own_objects in zip(true, precision, objects, strict=True)])


def draw_weights(num_images: int, draws: int, seed: int) -> np.ndarray:
  """Draw images with replacement: int64 [draws, num images] counts, each row summing to num_images."""
  return np.random.default_rng(seed).multinomial(num_images, np.full(num_images, 1 / num_images), draws)


def resampled(runs: Sequence[Matches], draws: int = 1000, seed: int = 0) -> np.ndarray:
  """Return the AP of each run in percent over resampled images, the same for all runs: float64 [runs, draws].

  Raises:
    ValueError: the runs were evaluated on different images.
  """
  ids = runs[0].image_ids
  if any(not np.array_equal(ids, one.image_ids) for one in runs):
    raise ValueError('the runs were evaluated on different images')
  starts = range(0, draws, 100)  # 100 draws at a time bound the memory

  def block(begin: int) -> np.ndarray:
    weights = draw_weights(len(ids), min(100, draws - begin), seed + begin + 2)
    return np.stack([average_precision(one, weights) for one in runs])

  with ThreadPoolExecutor(min(os.cpu_count() or 1, len(starts))) as pool:
    return np.concatenate(list(pool.map(block, starts)), 1)
