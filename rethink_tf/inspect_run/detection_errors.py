"""Errors of detections by kind, and the AP gained by fixing each kind.

After TIDE (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020). A detection
that COCO's matching at IoU 0.5 leaves unmatched is one of five kinds of error, by its largest IoU with the objects of
its image. An object that is neither matched nor the target of a classification or localisation error is missed. If
several definitions hold, which the paper leaves open, the first in this order applies:

  duplicate       IoU >= 0.5 with an object of its class that is matched by a higher score
  classification  IoU >= 0.5 with an object of another class
  localisation    0.1 <= IoU < 0.5 with an object of its class
  both            0.1 <= IoU < 0.5 with an object of another class
  background      IoU < 0.1 with all objects
  missed          (an object)

A fix moves classification and localisation errors to the class and box of their target (of several detections of one
object the highest score is kept), removes 'duplicate', 'both' and 'background' detections, and ignores missed objects.
With all kinds fixed AP is 100. Gains do not add up to 100 - AP, since fixing one kind changes the cost of others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from rethink_tf.errors import UserError
from rethink_tf.evaluation.coco_metrics import MAX_DETECTIONS

KINDS = ('classification', 'localisation', 'both', 'duplicate', 'background', 'missed')
FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU of a match; below the second a detection is background

_CORRECT, _IGNORED, _UNMATCHED = -1, -2, -3  # in addition to the indices of KINDS
_MOVED = (KINDS.index('classification'), KINDS.index('localisation'))
_MISSED = KINDS.index('missed')
RECALLS = np.linspace(0, 1, 101)


class ErrorExample(NamedTuple):
  """One error: indices into the lists of results and annotations, or None."""

  kind: str
  image_id: int
  result: int | None
  annotation: int | None
  overlap: float  # IoU of result and annotation


class Breakdown(NamedTuple):
  """AP at IoU 0.5 and its loss by kind of error. Values in [0, 1]; AP is -1 for a class without objects."""

  ap: float
  gained: dict[str, float]  # kind -> AP gained by fixing all errors of this kind
  false_positives: float  # gained by removing all false positives
  false_negatives: float  # gained by ignoring all unmatched objects
  all_fixed: float  # AP with every kind fixed
  counts: dict[str, int]  # kind -> number of errors
  correct: int  # number of matched detections
  objects: int
  category_names: tuple[str, ...]
  category_ap: np.ndarray  # float64 [K]
  category_gained: np.ndarray  # float64 [6, K], AP of each class gained by fixing each kind
  worst: dict[str, list[ErrorExample]]  # kind -> most confident errors; missed: largest objects


def analyse(gt: dict[str, Any], results: Sequence[dict[str, Any]], iou_type: str = 'bbox',
            examples: int = 8, max_detections: int = MAX_DETECTIONS['bbox']) -> Breakdown:
  """Break down the errors of detections over all images of the ground truth.

  Args:
    gt, results: as for coco_metrics.evaluate; detections matched to crowds are ignored.
    iou_type: 'bbox' or 'segm'.
    examples: number of examples of each kind, at most two per image.
    max_detections: best detections that count, per image and class.

  Raises:
    ValueError: another iou_type.
    UserError: the category of a detection is not in the ground truth.
  """
  if iou_type not in ('bbox', 'segm'):
    raise ValueError(f"iou_type {iou_type!r} is not 'bbox' or 'segm'")
  data = _Data(gt, results, iou_type, max_detections)
  for image in data.images():
    _classify_image(data, *image)
  data.find_missed()
  aps = [_average_precisions(data, fixed) for fixed in
         (set(), *({k} for k in range(len(KINDS))), set(range(len(KINDS))))]
  base, all_fixed = aps[0], aps[-1]
  gains = np.stack(aps[1:-1]) - base
  scored = data.objects_of_class > 0
  false_positives = _average_precisions(data, set(), only_correct=True)
  false_negatives = _average_precisions(data, set(), only_matched=True)

  def mean(values: np.ndarray) -> float:
    return float(values[scored].mean()) if scored.any() else 0.0

  counts = np.bincount(data.kinds[data.kinds >= 0], minlength=len(KINDS))
  counts[_MISSED] = data.missed.sum()
  return Breakdown(
    ap=mean(base) if scored.any() else -1.0, gained=dict(zip(KINDS, map(mean, gains), strict=True)),
    false_positives=mean(false_positives - base), false_negatives=mean(false_negatives - base),
    all_fixed=mean(all_fixed) if scored.any() else -1.0,
    counts=dict(zip(KINDS, counts.tolist(), strict=True)), correct=int((data.kinds == _CORRECT).sum()),
    objects=int(data.objects_of_class.sum()), category_names=data.category_names,
    category_ap=np.where(scored, base, -1.0), category_gained=np.where(scored, gains, 0.0),
    worst={kind: _worst(data, k, examples) for k, kind in enumerate(KINDS)})


class _Data:
  """Columns of detections [D], by image and then by score as in COCO's metric, and of annotations [A]."""

  def __init__(self, gt: dict[str, Any], results: Sequence[dict[str, Any]], iou_type: str, max_detections: int):
    self.gt, self.results, self.iou_type, self._max_detections = gt, results, iou_type, max_detections
    categories = sorted(gt['categories'], key=lambda category: category['id'])
    self.category_names = tuple(category['name'] for category in categories)
    self._class_of = {category['id']: k for k, category in enumerate(categories)}
    self._sizes = {image['id']: (image['height'], image['width']) for image in gt['images']}

    annotations = gt['annotations']
    self.classes_of_objects = np.array([self._class_of[a['category_id']] for a in annotations], np.int64)  # [A]
    self.crowds = np.array([bool(a.get('iscrowd', 0)) for a in annotations], bool)
    self._images_of_objects = np.array([a['image_id'] for a in annotations], np.int64)
    self.objects_of_class = np.bincount(self.classes_of_objects[~self.crowds], minlength=len(categories))  # [K]

    unknown = {r['category_id'] for r in results} - self._class_of.keys()
    if unknown:
      raise UserError(f'detections: category_id {min(unknown)} is not in the ground truth: use the data set that was '
                      'evaluated')
    image_ids = np.array([r['image_id'] for r in results], np.int64)
    scores = np.array([r['score'] for r in results], np.float64)
    self.order = np.lexsort([np.arange(len(scores)), -scores, image_ids])  # [D] index into results
    self.image_ids, self.scores = image_ids[self.order], scores[self.order]
    self.classes = np.array([self._class_of[results[i]['category_id']] for i in self.order], np.int64)
    self.kinds = np.full(len(scores), _IGNORED)
    self.targets = np.full(len(scores), -1)  # [D] index of the object a detection is assigned to
    self.overlaps = np.zeros(len(scores))  # [D] IoU with it
    self.matched = np.zeros(len(annotations), bool)
    self.missed = np.zeros(len(annotations), bool)

  def images(self) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Yield indices of the detections [d] and annotations [a] of each image with detections."""
    by_image = np.argsort(self._images_of_objects, kind='stable')
    sorted_images = self._images_of_objects[by_image]
    for image_id in np.unique(self.image_ids):
      low, high = np.searchsorted(self.image_ids, [image_id, image_id + 1])
      first, last = np.searchsorted(sorted_images, [image_id, image_id + 1])
      yield self._within_limit(np.arange(low, high)), by_image[first:last]

  def find_missed(self) -> None:
    """Set `missed`: objects that are neither matched nor the target of a classification or localisation error."""
    targeted = np.zeros_like(self.matched)
    targeted[self.targets[np.isin(self.kinds, _MOVED)]] = True
    self.missed = ~self.crowds & ~self.matched & ~targeted

  def _within_limit(self, rows: np.ndarray) -> np.ndarray:
    """Keep the best ones of each class."""
    keep = np.zeros(len(rows), bool)
    for k in np.unique(self.classes[rows]):
      keep[np.flatnonzero(self.classes[rows] == k)[:self._max_detections]] = True
    return rows[keep]

  def iou(self, rows: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Return the IoU [d, a]; for crowds, the fraction of the detection that they cover."""
    annotations = [self.gt['annotations'][i] for i in objects]
    size = self._sizes[annotations[0]['image_id']] if annotations else (0, 0)
    return pairwise_iou([self.results[i] for i in self.order[rows]], annotations, self.iou_type, size)


def pairwise_iou(results: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]], iou_type: str,
                 size: tuple[int, int]) -> np.ndarray:
  """Return the IoU [d, a] of results and annotations of one image of `size` (height, width).

  For crowds, the fraction of the detection that they cover.
  """
  if not results or not annotations:
    return np.zeros([len(results), len(annotations)])
  crowds = np.array([bool(a.get('iscrowd', 0)) for a in annotations], bool)
  if iou_type == 'bbox':
    return _box_iou(*(np.array([one['bbox'] for one in ones], np.float64) for ones in (results, annotations)), crowds)
  masks = [[_rle(one['segmentation'], *size) for one in ones] for ones in (results, annotations)]
  return np.asarray(coco_mask.iou(*masks, crowds.astype(np.uint8))).reshape(len(results), len(annotations))


def _box_iou(a: np.ndarray, b: np.ndarray, crowds: np.ndarray) -> np.ndarray:
  """[d, 4], [a, 4] x, y, w, h -> [d, a]."""
  low = np.maximum(a[:, None, :2], b[:, :2])
  high = np.minimum(a[:, None, :2] + a[:, None, 2:], b[:, :2] + b[:, 2:])
  common = np.maximum(high - low, 0).prod(axis=2)
  own, other = a[:, 2:].prod(axis=1)[:, None], b[:, 2:].prod(axis=1)
  union = np.where(crowds, own, own + other - common)
  return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def _rle(segmentation: dict[str, Any] | list, height: int, width: int) -> dict[str, Any]:
  if isinstance(segmentation, dict):
    return coco_mask.frPyObjects(segmentation, height, width) if isinstance(segmentation['counts'], list) else (
      segmentation)
  return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))


def _classify_image(data: _Data, rows: np.ndarray, objects: np.ndarray) -> None:
  """Match the detections of one image as COCO's metric does, and classify the unmatched ones."""
  iou = data.iou(rows, objects)
  crowds, classes = data.crowds[objects], data.classes_of_objects[objects]
  free = ~crowds
  for d, row in enumerate(rows):
    candidates = np.where(free & (classes == data.classes[row]), iou[d], -1.0)
    best = len(candidates) - 1 - int(np.argmax(candidates[::-1])) if len(candidates) else -1  # the last of equals
    if best >= 0 and candidates[best] >= FOREGROUND:
      free[best] = False
      data.matched[objects[best]] = True
      _assign(data, row, _CORRECT, objects[best], iou[d, best])
    elif not np.any(crowds & (classes == data.classes[row]) & (iou[d] >= FOREGROUND)):
      data.kinds[row] = _UNMATCHED  # classified below
  for d in np.flatnonzero(data.kinds[rows] == _UNMATCHED):
    row = rows[d]
    own = np.where(~crowds & (classes == data.classes[row]), iou[d], -1.0)
    other = np.where(~crowds & (classes != data.classes[row]), iou[d], -1.0)
    largest = [one.max(initial=-1.0) for one in (own, other)]
    if largest[0] >= FOREGROUND:
      kind, target = 'duplicate', own.argmax()
    elif largest[1] >= FOREGROUND:  # unmatched objects first
      kind, target = 'classification', (other + (free & (other >= FOREGROUND))).argmax()
    elif largest[0] >= BACKGROUND:
      kind, target = 'localisation', own.argmax()
    elif largest[1] >= BACKGROUND:
      kind, target = 'both', other.argmax()
    else:
      data.kinds[row] = KINDS.index('background')
      continue
    _assign(data, row, KINDS.index(kind), objects[target], iou[d, target])


def _assign(data: _Data, row: int, kind: int, target: int, overlap: float) -> None:
  data.kinds[row], data.targets[row], data.overlaps[row] = kind, target, overlap


def _average_precisions(data: _Data, fixed: set[int], only_correct: bool = False,
                        only_matched: bool = False) -> np.ndarray:
  """Return the AP of each class, float64 [K], with kinds of errors fixed.

  only_correct: remove all false positives. only_matched: ignore all unmatched objects.
  """
  moved = np.isin(data.kinds, [k for k in fixed if k in _MOVED])
  positive = (data.kinds == _CORRECT) | moved
  removed = np.isin(data.kinds, [k for k in fixed if k not in _MOVED]) | (data.kinds == _IGNORED)
  keep = ~removed & (positive | (not only_correct))
  classes = np.where(moved, data.classes_of_objects[data.targets] if len(data.matched) else 0, data.classes)
  ranks = np.argsort(-data.scores, kind='stable')
  candidates = ranks[positive[ranks]]
  keep[candidates] = False
  keep[candidates[np.unique(data.targets[candidates], return_index=True)[1]]] = True  # the first of each object
  counted = ~data.crowds & (data.matched | (not only_matched)) & ~(data.missed & (_MISSED in fixed))
  numbers = np.bincount(data.classes_of_objects[counted], minlength=len(data.category_names))
  ranks = ranks[keep[ranks]]
  return np.array([average_precision(positive[ranks[classes[ranks] == k]], number)
                   for k, number in enumerate(numbers)])


def average_precision(correct: np.ndarray, objects: int) -> float:
  """Return COCO's AP, the mean precision at 101 recalls; without objects, 1 if there are no detections, else 0.

  correct: bool [n], best score first.
  """
  return float(precisions(correct, objects).mean()) if objects else float(not len(correct))


def precisions(correct: np.ndarray, objects: int) -> np.ndarray:
  """Return COCO's precision at RECALLS, float64 [101]: the best one at that recall or a higher one, else 0.

  correct: bool [n], best score first. objects: at least 1.
  """
  true = np.cumsum(correct)
  precision = true / (np.arange(1, len(correct) + 1) + np.spacing(1))
  envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
  return envelope[np.searchsorted(true / objects, RECALLS, side='left')]


def _worst(data: _Data, kind: int, number: int) -> list[ErrorExample]:
  if kind == _MISSED:
    annotations = data.gt['annotations']
    largest = sorted(np.flatnonzero(data.missed).tolist(), key=lambda i: -np.prod(annotations[i]['bbox'][2:]))
    errors = (ErrorExample(KINDS[kind], int(annotations[i]['image_id']), None, i, 0.0) for i in largest)
  else:
    rows = np.flatnonzero(data.kinds == kind)
    errors = (ErrorExample(KINDS[kind], int(data.image_ids[row]), int(data.order[row]),
                           int(data.targets[row]) if data.targets[row] >= 0 else None, float(data.overlaps[row]))
              for row in rows[np.argsort(-data.scores[rows], kind='stable')])
  chosen, of_image = [], {}
  for error in errors:
    of_image[error.image_id] = of_image.get(error.image_id, 0) + 1
    if len(chosen) == number:
      break
    if of_image[error.image_id] <= 2:
      chosen.append(error)
  return chosen
