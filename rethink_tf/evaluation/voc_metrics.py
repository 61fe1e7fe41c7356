"""Average precision by the rules of the PASCAL VOC development kit (Everingham et al. 2010, section 4.2).

They differ from COCO's: a detection is assigned to the object with the largest overlap, whether or not this is assigned
already, and is true if the overlap exceeds the threshold; of several detections of one object the first, by score, is
true and the others are false. Detections of difficult objects are ignored. Precision is averaged over 11 recalls (2007)
or is the area under its envelope (2010 and later).

The kit counts pixels: in boxes with inclusive corners from 1 on, a width is xmax - xmin + 1. The boxes here are
[xmin - 1, xmax], so that the same width is a plain difference, and every overlap is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RULES = ('area', '11-point')
THRESHOLDS = tuple((50 + 5 * i) / 100 for i in range(10))


class Objects(NamedTuple):
  """The ground truth of all images, O rows."""

  images: np.ndarray  # int64 [O] a different number for each image
  classes: np.ndarray  # int64 [O] 1..K
  boxes: np.ndarray  # float64 [O, 4] y0 x0 y1 x1 in pixels, continuous
  difficult: np.ndarray  # bool [O]


class Detections(NamedTuple):
  """The detections in all images, D rows; of equal scores the earlier row counts first."""

  images: np.ndarray  # int64 [D]
  classes: np.ndarray  # int64 [D] 1..K
  boxes: np.ndarray  # float64 [D, 4]
  scores: np.ndarray  # float64 [D]


def average_precisions(objects: Objects, detections: Detections, num_classes: int, rule: str = 'area',
                       thresholds: Sequence[float] = THRESHOLDS) -> np.ndarray:
  """Compute the AP of each class at each IoU threshold.

  An overlap must exceed the threshold, as in Detectron's and Detectron2's evaluators.

  Args:
    objects, detections: of all images.
    num_classes: K.
    rule: 'area' (2010 and later) or '11-point' (2007).
    thresholds: T of them.

  Returns:
    float64 [T, K] in [0, 1]; -1 for a class without objects, difficult ones apart.

  Raises:
    ValueError: an unknown rule.
  """
  if rule not in RULES:
    raise ValueError(f'rule {rule!r} is not one of {RULES}')
  detections, true, false = label(objects, detections, thresholds)
  easy = ~np.asarray(objects.difficult, bool)
  positives = np.bincount(np.asarray(objects.classes, np.int64)[easy], minlength=num_classes + 1)
  rows = [np.flatnonzero(detections.classes == k) for k in range(1, num_classes + 1)]
  result = np.full([len(thresholds), num_classes], -1.0)
  for t in range(len(thresholds)):
    for k in np.flatnonzero(positives[1:]).tolist():
      num_true, num_false = np.cumsum(true[t][rows[k]]), np.cumsum(false[t][rows[k]])
      precision = num_true / np.maximum(num_true + num_false, 1)  # 0/0 where all detections so far are ignored
      result[t, k] = average(num_true / positives[k + 1], precision, rule)
  return result


def label(objects: Objects, detections: Detections,
          thresholds: Sequence[float]) -> tuple[Detections, np.ndarray, np.ndarray]:
  """Label detections as true and as false at T thresholds; neither: of a difficult object.

  Returns:
    The detections in order of decreasing score, and for each whether it is true and whether it is false, bool [T, D].
  """
  order = np.argsort(-np.asarray(detections.scores, np.float64), kind='stable')
  detections = Detections(*(np.asarray(column)[order] for column in detections))
  assigned, overlaps = largest_overlaps(objects, detections)
  easy = ~np.asarray(objects.difficult, bool)
  labels = [_true_and_false(assigned, overlaps > threshold, easy) for threshold in thresholds]
  return detections, np.stack([true for true, _ in labels]), np.stack([false for _, false in labels])


def largest_overlaps(objects: Objects, detections: Detections) -> tuple[np.ndarray, np.ndarray]:
  """Find the object of the same image and class with the largest IoU: its index, int64 [D], and the IoU, float64 [D].

  Of equal ones the first; index 0 and IoU -1.0 where the image has no object of the class.
  """
  assigned, overlaps = np.zeros(len(detections.scores), np.int64), np.full(len(detections.scores), -1.0)
  # Groups of objects: the distinct pairs of image and class.
  by_group = np.lexsort((objects.classes, objects.images))  # stable: objects of a group keep their order
  groups, starts, counts = np.unique(
    np.stack([objects.images, objects.classes], axis=1)[by_group], axis=0, return_index=True, return_counts=True)
  if not len(groups):
    return assigned, overlaps
  # The group of each detection, -1 if none: pairs of both lists are numbered together.
  both = np.concatenate([groups, np.stack([detections.images, detections.classes], axis=1)])
  numbers = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
  group_of = np.full(numbers.max() + 1, -1)
  group_of[numbers[:len(groups)]] = np.arange(len(groups))
  group = group_of[numbers[len(groups):]]
  some = np.flatnonzero(group >= 0)
  if not len(some):
    return assigned, overlaps
  sizes = counts[group[some]]
  begins = np.cumsum(sizes) - sizes  # of the candidate objects of each detection
  rank = np.arange(sizes.sum()) - np.repeat(begins, sizes)
  candidates = by_group[np.repeat(starts[group[some]], sizes) + rank]
  iou = _iou(np.asarray(objects.boxes, np.float64)[candidates],
             np.asarray(detections.boxes, np.float64)[some].repeat(sizes, axis=0))
  overlaps[some] = np.maximum.reduceat(iou, begins)
  is_best = iou == np.repeat(overlaps[some], sizes)
  assigned[some] = candidates[np.minimum.reduceat(np.where(is_best, np.arange(len(iou)), len(iou)), begins)]
  return assigned, overlaps


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Compute the IoU of pairs of boxes, [P, 4], [P, 4] -> [P]."""
  sides = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0)
  shared = sides.prod(axis=1)
  union = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - shared
  return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def _true_and_false(assigned: np.ndarray, close: np.ndarray, easy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Label detections in order of decreasing score as true and as false, bool [D]; neither: of a difficult object."""
  true, counted = np.zeros(len(assigned), bool), ~close
  matched = np.flatnonzero(close)
  matched = matched[easy[assigned[matched]]]
  true[matched[np.unique(assigned[matched], return_index=True)[1]]] = True
  counted[matched] = True
  return true, counted & ~true


def average(recall: np.ndarray, precision: np.ndarray, rule: str) -> float:
  """Average the precision over a curve with points in order of decreasing score."""
  if rule == '11-point':
    # Rounded as in the kit and Detectron: 3 of 10 objects do not reach the fourth point, 0.30000000000000004.
    return float(np.mean([precision[recall >= point].max(initial=0.0) for point in np.arange(0.0, 1.1, 0.1)]))
  envelope = np.maximum.accumulate(precision[::-1])[::-1]
  return float((np.diff(recall, prepend=0.0) * envelope).sum())
