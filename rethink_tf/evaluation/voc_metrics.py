"""Average precision by the rules of the PASCAL VOC development kit (Everingham et al. 2010, section 4.2).

They differ from COCO's: a detection belongs to the object that it overlaps most, taken or not, and is right if that
overlap exceeds the threshold; the first one, by score, takes the object and every later one is false. What belongs to
a difficult object counts neither for nor against. Precision is averaged over 11 recalls (2007) or is the area under
its envelope (2010 and later).

The kit counts pixels: in boxes with inclusive corners from 1 on, a width is xmax - xmin + 1. With the box
[xmin - 1, xmax] instead, which all code here has, the same width is a plain difference, and every overlap is the same.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RULES = ('area', '11-point')
THRESHOLDS = tuple((50 + 5 * i) / 100 for i in range(10))


class Objects(NamedTuple):
  """The ground truth of all images, O rows."""

  images: np.ndarray  # int64 [O] any number that tells images apart
  classes: np.ndarray  # int64 [O] 1..K
  boxes: np.ndarray  # float64 [O, 4] y0 x0 y1 x1 in pixels, continuous
  difficult: np.ndarray  # bool [O]


class Finds(NamedTuple):
  """The detections in all images, F rows; of equal scores the earlier row counts first."""

  images: np.ndarray  # int64 [F]
  classes: np.ndarray  # int64 [F] 1..K
  boxes: np.ndarray  # float64 [F, 4]
  scores: np.ndarray  # float64 [F]


def average_precisions(objects: Objects, finds: Finds, num_classes: int, rule: str = 'area',
                       thresholds: Sequence[float] = THRESHOLDS) -> np.ndarray:
  """AP of each class at each IoU threshold.

  An overlap must exceed the threshold, as in Detectron's and Detectron2's evaluators.

  Args:
    objects, finds: ground truth and detections.
    num_classes: K.
    rule: 'area' (2010 and later) or '11-point' (2007).
    thresholds: T of them.

  Returns:
    float64 [T, K] in [0, 1]; -1 for a class without an object that is not difficult.

  Raises:
    ValueError: an unknown rule.
  """
  if rule not in RULES:
    raise ValueError(f'rule {rule!r} is not one of {RULES}')
  order = np.argsort(-np.asarray(finds.scores, np.float64), kind='stable')
  finds = Finds(*(np.asarray(column)[order] for column in finds))
  owners, overlaps = _most_overlapped(objects, finds)
  easy = ~np.asarray(objects.difficult, bool)
  positives = np.bincount(np.asarray(objects.classes, np.int64)[easy], minlength=num_classes + 1)
  rows = [np.flatnonzero(finds.classes == k) for k in range(1, num_classes + 1)]
  result = np.full([len(thresholds), num_classes], -1.0)
  for t, threshold in enumerate(thresholds):
    right, wrong = _judge(owners, overlaps > threshold, easy)
    for k in np.flatnonzero(positives[1:]).tolist():
      found, errors = np.cumsum(right[rows[k]]), np.cumsum(wrong[rows[k]])
      precision = found / np.maximum(found + errors, 1)  # 0/0 where only difficult objects were found so far
      result[t, k] = _average(found / positives[k + 1], precision, rule)
  return result


def _most_overlapped(objects: Objects, finds: Finds) -> tuple[np.ndarray, np.ndarray]:
  """For each detection the object of its image and class with the largest IoU, int64 [F], and that IoU, float64 [F].

  Of equal ones the first; object 0 and -1.0 where the image has no object of the class.
  """
  owners, overlaps = np.zeros(len(finds.scores), np.int64), np.full(len(finds.scores), -1.0)
  by_place = np.lexsort((objects.classes, objects.images))  # stable: objects of a place stay in their order
  places, starts, counts = np.unique(
    np.stack([objects.images, objects.classes], axis=1)[by_place], axis=0, return_index=True, return_counts=True)
  if not len(places) or not len(owners):
    return owners, overlaps
  # Each detection's row among the places: both lists are numbered together.
  both = np.concatenate([places, np.stack([finds.images, finds.classes], axis=1)])
  numbers = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
  row_of = np.full(numbers.max() + 1, -1)
  row_of[numbers[:len(places)]] = np.arange(len(places))
  rows = row_of[numbers[len(places):]]
  some = np.flatnonzero(rows >= 0)
  if not len(some):
    return owners, overlaps
  sizes = counts[rows[some]]
  begins = np.cumsum(sizes) - sizes  # of each detection's pairs
  rank = np.arange(sizes.sum()) - np.repeat(begins, sizes)
  candidates = by_place[np.repeat(starts[rows[some]], sizes) + rank]
  iou = _iou(np.asarray(objects.boxes, np.float64)[candidates],
             np.asarray(finds.boxes, np.float64)[some].repeat(sizes, axis=0))
  overlaps[some] = np.maximum.reduceat(iou, begins)
  is_best = iou == np.repeat(overlaps[some], sizes)
  owners[some] = candidates[np.minimum.reduceat(np.where(is_best, np.arange(len(iou)), len(iou)), begins)]
  return owners, overlaps


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """[P, 4], [P, 4] -> [P]; 0 where they do not meet."""
  sides = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0)
  shared = sides.prod(axis=1)
  union = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - shared
  return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def _judge(owners: np.ndarray, close: np.ndarray, easy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Detections by falling score -> which are right, which are wrong, bool [F]; neither: it is a difficult one's."""
  right, counts = np.zeros(len(owners), bool), ~close
  claims = np.flatnonzero(close)
  claims = claims[easy[owners[claims]]]
  right[claims[np.unique(owners[claims], return_index=True)[1]]] = True
  counts[claims] = True
  return right, counts & ~right


def _average(recall: np.ndarray, precision: np.ndarray, rule: str) -> float:
  """Average precision of a curve, points by falling score."""
  if rule == '11-point':
    # Rounded like the kit's and Detectron's: three found of ten do not reach the fourth point, 0.30000000000000004.
    return float(np.mean([precision[recall >= point].max(initial=0.0) for point in np.arange(0.0, 1.1, 0.1)]))
  envelope = np.maximum.accumulate(precision[::-1])[::-1]
  return float((np.diff(recall, prepend=0.0) * envelope).sum())
