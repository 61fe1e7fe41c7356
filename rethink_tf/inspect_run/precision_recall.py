"""Precision-recall curves of each class and of all classes together, and the score threshold with the best F1.

F1 = 2 TP / (TP + FP + objects). The curve of all classes together adds up the counts of the classes, as one threshold
for all of them would.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rethink_tf.inspect_run.counted import Counted
from rethink_tf.inspect_run.detection_errors import precisions

ALL = 'all classes together'


class Best(NamedTuple):
  """The threshold with the best F1: detections with score >= threshold."""

  threshold: float
  precision: float
  recall: float
  f1: float


class Curve(NamedTuple):
  """Precision and recall of one class, or of all."""

  name: str
  objects: int
  detections: int  # that count
  precision: np.ndarray | None  # float64 [101] at detection_errors.RECALLS, as COCO's; None without objects
  best: Best | None  # None if no threshold has a true detection

  @property
  def ap(self) -> float:
    """Mean precision, -1 without objects."""
    return -1.0 if self.precision is None else float(self.precision.mean())


def curves(counted: Counted) -> list[Curve]:
  """Return the curve of all classes together, then of each class."""
  objects = counted.num_objects
  counts = ~counted.ignored
  found = [_curve(ALL, counted.scores[counts], counted.true[counts], int(objects.sum()))]
  for k, name in enumerate(counted.category_names):
    own = counts & (counted.classes == k)
    found.append(_curve(name, counted.scores[own], counted.true[own], int(objects[k])))
  return found


def _curve(name: str, scores: np.ndarray, true: np.ndarray, objects: int) -> Curve:
  """scores, true: [n], best score first."""
  if not objects:
    return Curve(name, 0, len(scores), None, None)
  precision, found = precisions(true, objects), np.cumsum(true)
  ends = np.flatnonzero(np.append(scores[:-1] != scores[1:], True)) if len(scores) else np.zeros(0, int)
  f1 = 2 * found[ends] / (ends + 1 + objects)
  if not len(f1) or not f1.max():
    return Curve(name, objects, len(scores), precision, None)
  at = int(np.argmax(f1))  # of equal ones the highest threshold
  end = ends[at]
  lower = scores[end + 1] if end + 1 < len(scores) else -math.inf
  best = Best(round_between(lower, scores[end]), float(found[end] / (end + 1)), float(found[end] / objects),
              float(f1[at]))
  return Curve(name, objects, len(scores), precision, best)


def round_between(low: float, high: float) -> float:
  """Return the number in (low, high] with the fewest decimals, at least two: a threshold that just keeps `high`."""
  for digits in range(2, 17):
    rounded = math.floor(high * 10 ** digits) / 10 ** digits
    if low < rounded <= high:
      return rounded
  return float(high)


def in_full(threshold: float) -> str:
  """Format a threshold with all its decimals: rounded up, it would leave out detections that it should keep."""
  return np.format_float_positional(threshold, trim='-')


def as_text(found: list[Curve], iou: float, listed: int) -> str:
  """Return a table of the best thresholds: all classes, then those with the lowest F1."""
  scored = [one for one in found[1:] if one.objects]
  shown = sorted(scored, key=lambda one: one.best.f1 if one.best else 0.0)[:listed]
  width = max(len(ALL), *(len(one.name[:24]) for one in shown)) if shown else len(ALL)
  lines = [f'  best score threshold (highest F1) at IoU {iou:g}',
           f'  {"":{width}} {"objects":>8} {"AP":>6} {"score >=":>9} {"precision":>10} {"recall":>7} {"F1":>6}']
  for one in [found[0], *shown]:
    best = ('-',) * 4 if one.best is None else (
      in_full(one.best.threshold), *(f'{100 * value:.1f}' for value in one.best[1:]))
    ap = f'{100 * one.ap:.1f}' if one.objects else '-'
    lines.append(f'  {one.name[:24]:{width}} {one.objects:8} {ap:>6} {best[0]:>9} {best[1]:>10} {best[2]:>7} '
                 f'{best[3]:>6}')
  if len(scored) > len(shown):
    lines.append(f'  {len(scored) - len(shown)} more classes: see errors.json')
  return '\n'.join(lines) + '\n'


def as_json(found: list[Curve]) -> dict[str, Any]:
  """Return the curves as JSON values in percent, thresholds as they are."""
  def one(curve: Curve) -> dict[str, Any]:
    precision = None if curve.precision is None else [round(100 * value, 4) for value in curve.precision.tolist()]
    best = None if curve.best is None else {
      'score_threshold': curve.best.threshold, **{name: round(100 * value, 4) for name, value in
                                                  zip(('precision', 'recall', 'F1'), curve.best[1:], strict=True)}}
    return {'objects': curve.objects, 'detections': curve.detections, 'best': best,
            'precision_at_101_recalls': precision}

  return {'all': one(found[0]), 'classes': {curve.name: one(curve) for curve in found[1:]}}
