"""What keeps average precision from 100: errors by kind, and what mending each kind would gain.

In the manner of TIDE (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020). A
detection that COCO's matching at IoU 0.5 leaves over is one of five kinds of error, by its largest overlap with the
objects of its image; an object that was not found, and that no classification or localisation error stands for, is
missed. Where several definitions hold, which the paper leaves open, it is the first in this order:

  duplicate       IoU >= 0.5 with an object of its class, which a higher score has taken
  classification  IoU >= 0.5 with an object of another class
  localisation    0.1 <= IoU < 0.5 with an object of its class
  both            0.1 <= IoU < 0.5 with an object of another class
  background      IoU < 0.1 with everything
  missed          an object

Mending gives classification and localisation errors the class and the place of their object (of several detections of
one object the highest score stays), removes duplicates, 'both' and background, and takes missed objects off the list.
All mended, AP is 100. Gains do not add up to what is missing: mending one kind changes what another costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from rethink_tf.errors import UserError

KINDS = ('classification', 'localisation', 'both', 'duplicate', 'background', 'missed')
FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU from which an object is found, below which nothing is there
MAX_DETECTIONS = 100  # of an image and class, as in COCO's metric

_CORRECT, _IGNORED, _LEFT_OVER = -1, -2, -3  # beside the indices of KINDS
_MOVED = (KINDS.index('classification'), KINDS.index('localisation'))
_MISSED = KINDS.index('missed')
_RECALLS = np.linspace(0, 1, 101)


class Mistake(NamedTuple):
  """One error: indices into the list of results and the list of annotations, None where there is none."""

  kind: str
  image_id: int
  result: int | None
  annotation: int | None
  overlap: float  # IoU of the two


class Breakdown(NamedTuple):
  """AP at IoU 0.5 and what is lost. Figures in [0, 1]; -1 for a class without objects."""

  ap: float
  gained: dict[str, float]  # kind -> AP gained when all errors of this kind are mended
  false_positives: float  # gained when everything wrong is removed
  false_negatives: float  # gained when every object that was not found is taken off the list
  all_mended: float  # AP when every kind is mended
  counts: dict[str, int]  # kind -> number of errors
  correct: int
  objects: int
  category_names: tuple[str, ...]
  category_ap: np.ndarray  # float64 [K]
  category_gained: np.ndarray  # float64 [6, K], AP of each class that each kind costs
  worst: dict[str, list[Mistake]]  # kind -> the surest errors; missed: the largest objects


def analyse(gt: dict[str, Any], results: Sequence[dict[str, Any]], iou_type: str = 'bbox',
            examples: int = 8) -> Breakdown:
  """Breaks down the errors of detections over all images of the ground truth.

  Args:
    gt, results: as for coco_metrics.evaluate; crowds make detections neither right nor wrong.
    iou_type: 'bbox' or 'segm'.
    examples: worst mistakes of each kind, at most two of one image.

  Raises:
    ValueError: another iou_type.
    UserError: a detection of a category that the ground truth does not list.
  """
  if iou_type not in ('bbox', 'segm'):
    raise ValueError(f"iou_type {iou_type!r} is not 'bbox' or 'segm'")
  data = _Data(gt, results, iou_type)
  for image in data.images():
    _judge_image(data, *image)
  data.find_missed()
  aps = [_average_precisions(data, mended) for mended in
         (set(), *({k} for k in range(len(KINDS))), set(range(len(KINDS))))]
  base, everything = aps[0], aps[-1]
  gains = np.stack(aps[1:-1]) - base
  scored = data.objects_of_class > 0
  false_positives = _average_precisions(data, set(), only_correct=True)
  false_negatives = _average_precisions(data, set(), only_found=True)

  def mean(values):
    return float(values[scored].mean()) if scored.any() else 0.0

  counts = np.bincount(data.kinds[data.kinds >= 0], minlength=len(KINDS))
  counts[_MISSED] = data.missed.sum()
  return Breakdown(
    ap=mean(base) if scored.any() else -1.0, gained=dict(zip(KINDS, map(mean, gains), strict=True)),
    false_positives=mean(false_positives - base), false_negatives=mean(false_negatives - base),
    all_mended=mean(everything) if scored.any() else -1.0,
    counts=dict(zip(KINDS, counts.tolist(), strict=True)), correct=int((data.kinds == _CORRECT).sum()),
    objects=int(data.objects_of_class.sum()), category_names=data.category_names,
    category_ap=np.where(scored, base, -1.0), category_gained=np.where(scored, gains, 0.0),
    worst={kind: _worst(data, k, examples) for k, kind in enumerate(KINDS)})


class _Data:
  """Detections D and annotations A as columns, in the metric's order: by image, then by score."""

  def __init__(self, gt, results, iou_type):
    self.gt, self.results, self.iou_type = gt, results, iou_type
    categories = sorted(gt['categories'], key=lambda category: category['id'])
    self.category_names = tuple(category['name'] for category in categories)
    self._class_of = {category['id']: k for k, category in enumerate(categories)}
    self._sizes = {image['id']: (image['height'], image['width']) for image in gt['images']}

    annotations = gt['annotations']
    self.classes_of_objects = np.array([self._class_of[a['category_id']] for a in annotations], np.int64)  # [A]
    self.crowds = np.array([bool(a.get('iscrowd', 0)) for a in annotations], bool)
    self._images_of_objects = np.array([a['image_id'] for a in annotations], np.int64)
    self.objects_of_class = np.bincount(self.classes_of_objects[~self.crowds], minlength=len(categories))  # [K]

    strangers = {r['category_id'] for r in results} - self._class_of.keys()
    if strangers:
      raise UserError(f'detections: category_id {min(strangers)} is not in the ground truth: analyse them against the '
                      'data they were made from')
    image_ids = np.array([r['image_id'] for r in results], np.int64)
    scores = np.array([r['score'] for r in results], np.float64)
    self.order = np.lexsort([np.arange(len(scores)), -scores, image_ids])  # [D] index into results
    self.image_ids, self.scores = image_ids[self.order], scores[self.order]
    self.classes = np.array([self._class_of[results[i]['category_id']] for i in self.order], np.int64)
    self.kinds = np.full(len(scores), _IGNORED)
    self.targets = np.full(len(scores), -1)  # [D] the object that a detection stands for
    self.overlaps = np.zeros(len(scores))  # [D] with it
    self.found = np.zeros(len(annotations), bool)
    self.missed = np.zeros(len(annotations), bool)

  def images(self) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Detections and annotations of each image that has detections: rows [d], [a]."""
    by_image = np.argsort(self._images_of_objects, kind='stable')
    sorted_images = self._images_of_objects[by_image]
    for image_id in np.unique(self.image_ids):
      low, high = np.searchsorted(self.image_ids, [image_id, image_id + 1])
      first, last = np.searchsorted(sorted_images, [image_id, image_id + 1])
      yield self._within_limit(np.arange(low, high)), by_image[first:last]

  def find_missed(self) -> None:
    """Objects that nothing has found, and no classification or localisation error stands for."""
    stood_for = np.zeros_like(self.found)
    stood_for[self.targets[np.isin(self.kinds, _MOVED)]] = True
    self.missed = ~self.crowds & ~self.found & ~stood_for

  def _within_limit(self, rows):
    keep = np.zeros(len(rows), bool)
    for k in np.unique(self.classes[rows]):
      keep[np.flatnonzero(self.classes[rows] == k)[:MAX_DETECTIONS]] = True
    return rows[keep]

  def iou(self, rows: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """[d, a]; with a crowd, the share of the detection that it covers."""
    if not len(rows) or not len(objects):
      return np.zeros([len(rows), len(objects)])
    results = [self.results[i] for i in self.order[rows]]
    annotations = [self.gt['annotations'][i] for i in objects]
    if self.iou_type == 'bbox':
      return _box_iou(*(np.array([one['bbox'] for one in ones], np.float64) for ones in (results, annotations)),
                      self.crowds[objects])
    size = self._sizes[annotations[0]['image_id']]
    masks = [[_rle(one['segmentation'], *size) for one in ones] for ones in (results, annotations)]
    return np.asarray(coco_mask.iou(*masks, self.crowds[objects].astype(np.uint8))).reshape(len(rows), len(objects))


def _box_iou(a, b, crowds):
  """[d, 4], [a, 4] x, y, w, h -> [d, a]."""
  low = np.maximum(a[:, None, :2], b[:, :2])
  high = np.minimum(a[:, None, :2] + a[:, None, 2:], b[:, :2] + b[:, 2:])
  common = np.maximum(high - low, 0).prod(axis=2)
  own, other = a[:, 2:].prod(axis=1)[:, None], b[:, 2:].prod(axis=1)
  union = np.where(crowds, own, own + other - common)
  return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def _rle(segmentation, height, width):
  if isinstance(segmentation, dict):
    return coco_mask.frPyObjects(segmentation, height, width) if isinstance(segmentation['counts'], list) else (
      segmentation)
  return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))


def _judge_image(data: _Data, rows: np.ndarray, objects: np.ndarray) -> None:
  """Matches the detections of one image as COCO's metric does, and finds the kind of each that is left over."""
  iou = data.iou(rows, objects)
  crowds, classes = data.crowds[objects], data.classes_of_objects[objects]
  free = ~crowds
  for d, row in enumerate(rows):
    candidates = np.where(free & (classes == data.classes[row]), iou[d], -1.0)
    best = len(candidates) - 1 - int(np.argmax(candidates[::-1])) if len(candidates) else -1  # of equals, the last
    if best >= 0 and candidates[best] >= FOREGROUND:
      free[best] = False
      data.found[objects[best]] = True
      _note(data, row, _CORRECT, objects[best], iou[d, best])
    elif not np.any(crowds & (classes == data.classes[row]) & (iou[d] >= FOREGROUND)):
      data.kinds[row] = _LEFT_OVER  # until the rest is matched
  for d in np.flatnonzero(data.kinds[rows] == _LEFT_OVER):
    row = rows[d]
    own = np.where(~crowds & (classes == data.classes[row]), iou[d], -1.0)
    other = np.where(~crowds & (classes != data.classes[row]), iou[d], -1.0)
    largest = [one.max(initial=-1.0) for one in (own, other)]
    if largest[0] >= FOREGROUND:
      kind, target = 'duplicate', own.argmax()
    elif largest[1] >= FOREGROUND:  # the object that nothing has found, if one of several is
      kind, target = 'classification', (other + (free & (other >= FOREGROUND))).argmax()
    elif largest[0] >= BACKGROUND:
      kind, target = 'localisation', own.argmax()
    elif largest[1] >= BACKGROUND:
      kind, target = 'both', other.argmax()
    else:
      data.kinds[row] = KINDS.index('background')
      continue
    _note(data, row, KINDS.index(kind), objects[target], iou[d, target])


def _note(data, row, kind, target, overlap):
  data.kinds[row], data.targets[row], data.overlaps[row] = kind, target, overlap


def _average_precisions(data: _Data, mended: set[int], only_correct: bool = False,
                        only_found: bool = False) -> np.ndarray:
  """AP of each class, float64 [K], with kinds of errors mended.

  only_correct: everything wrong is removed. only_found: what was not found does not count.
  """
  moved = np.isin(data.kinds, [k for k in mended if k in _MOVED])
  positive = (data.kinds == _CORRECT) | moved
  removed = np.isin(data.kinds, [k for k in mended if k not in _MOVED]) | (data.kinds == _IGNORED)
  keep = ~removed & (positive | (not only_correct))
  classes = np.where(moved, data.classes_of_objects[data.targets] if len(data.found) else 0, data.classes)
  ranks = np.argsort(-data.scores, kind='stable')
  candidates = ranks[positive[ranks]]
  keep[candidates] = False
  keep[candidates[np.unique(data.targets[candidates], return_index=True)[1]]] = True  # the first for each object
  counted = ~data.crowds & (data.found | (not only_found)) & ~(data.missed & (_MISSED in mended))
  numbers = np.bincount(data.classes_of_objects[counted], minlength=len(data.category_names))
  ranks = ranks[keep[ranks]]
  return np.array([average_precision(positive[ranks[classes[ranks] == k]], number)
                   for k, number in enumerate(numbers)])


def average_precision(correct: np.ndarray, objects: int) -> float:
  """COCO's: mean precision at 101 recalls. correct: bool [n], best score first.

  Without objects it is 1 if nothing was found either, else 0.
  """
  if not objects:
    return float(not len(correct))
  right = np.cumsum(correct)
  precision = right / (np.arange(1, len(correct) + 1) + np.spacing(1))
  envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
  return float(envelope[np.searchsorted(right / objects, _RECALLS, side='left')].mean())


def _worst(data: _Data, kind: int, number: int) -> list[Mistake]:
  if kind == _MISSED:
    annotations = data.gt['annotations']
    largest = sorted(np.flatnonzero(data.missed).tolist(), key=lambda i: -np.prod(annotations[i]['bbox'][2:]))
    mistakes = (Mistake(KINDS[kind], int(annotations[i]['image_id']), None, i, 0.0) for i in largest)
  else:
    rows = np.flatnonzero(data.kinds == kind)
    mistakes = (Mistake(KINDS[kind], int(data.image_ids[row]), int(data.order[row]),
                        int(data.targets[row]) if data.targets[row] >= 0 else None, float(data.overlaps[row]))
                for row in rows[np.argsort(-data.scores[rows], kind='stable')])
  chosen, of_image = [], {}
  for mistake in mistakes:
    of_image[mistake.image_id] = of_image.get(mistake.image_id, 0) + 1
    if len(chosen) == number:
      break
    if of_image[mistake.image_id] <= 2:
      chosen.append(mistake)
  return chosen
