"""Detections as the metric counts them at one IoU threshold: true, false or ignored (crowds, difficult objects)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rethink_tf.errors import UserError
from rethink_tf.evaluation import coco_metrics, voc_metrics

COCO_IOUS = tuple((50 + 5 * i) / 100 for i in range(10))


class Counted(NamedTuple):
  """Detections of all images, D rows by decreasing score, of equal scores in the metric's order; A annotations."""

  category_names: tuple[str, ...]  # K
  iou: float
  scores: np.ndarray  # float64 [D]
  classes: np.ndarray  # int64 [D] 0..K-1
  true: np.ndarray  # bool [D]
  ignored: np.ndarray  # bool [D]: neither true nor false
  results: np.ndarray  # int64 [D] index into the list of results
  targets: np.ndarray  # int64 [D] index of the annotation that a true detection is matched to, else -1
  object_classes: np.ndarray  # int64 [A] 0..K-1; -1: does not count

  @property
  def num_objects(self) -> np.ndarray:
    """Objects that count, int64 [K]."""
    return np.bincount(self.object_classes[self.object_classes >= 0], minlength=len(self.category_names))


def count_coco(gt: dict[str, Any], results: list[dict[str, Any]], iou_type: str, iou: float = 0.5,
               max_detections: int | None = None, backend: str = 'auto') -> Counted:
  """Count detections as COCO's metric does. Arguments as for coco_metrics.evaluate.

  Raises:
    UserError: the metric has no such IoU threshold.
  """
  thresholds = [t for t, one in enumerate(COCO_IOUS) if abs(one - iou) < 1e-6]
  if not thresholds:
    raise UserError(f'--iou={iou:g}: choose one of {", ".join(map(str, COCO_IOUS))}, at which COCO matches')
  category_ids, image_ids, records = coco_metrics.matches(gt, results, iou_type, backend, None, max_detections)
  class_of = {category_id: k for k, category_id in enumerate(category_ids)}
  row_of = {image_id: row for row, image_id in enumerate(image_ids)}
  records = sorted((one for one in records if len(one['dtScores'])), key=lambda one: row_of[int(one['image_id'])])

  def column(name: str, dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *(np.asarray(one[name]).reshape(-1, len(one['dtScores']))[
      thresholds[0] if name in ('dtMatches', 'dtIgnore') else 0].astype(dtype) for one in records)])

  classes = np.repeat(np.array([class_of[int(one['category_id'])] for one in records], np.int64),
                      [len(one['dtScores']) for one in records])
  scores, matched, ignored = column('dtScores', np.float64), column('dtMatches', np.int64), column('dtIgnore', bool)
  order = np.argsort(-scores, kind='stable')
  true = (matched > 0) & ~ignored
  annotations = (coco_metrics.mask_truth(gt) if iou_type == 'segm' else gt)['annotations']
  return Counted(
    _names(gt), iou, scores[order], classes[order], true[order], ignored[order], column('dtIds', np.int64)[order] - 1,
    np.where(true, matched - 1, -1)[order],
    np.array([-1 if a.get('iscrowd') else class_of[a['category_id']] for a in annotations], np.int64))


def count_voc(gt: dict[str, Any], objects: voc_metrics.Objects, detections: voc_metrics.Detections,
              iou: float = 0.5) -> Counted:
  """Count detections as VOC's metric does: objects and detections of gt with classes 1..K in the order of ids."""
  order = np.argsort(-detections.scores, kind='stable')
  ranked, (true,), (false,) = voc_metrics.label(objects, detections, [iou])
  nearest = voc_metrics.largest_overlaps(objects, ranked)[0]
  return Counted(_names(gt), iou, ranked.scores, ranked.classes - 1, true, ~(true | false), order,
                 np.where(true, nearest, -1), np.where(objects.difficult, -1, objects.classes - 1))


def _names(gt: dict[str, Any]) -> tuple[str, ...]:
  categories: Sequence[dict[str, Any]] = sorted(gt['categories'], key=lambda category: category['id'])
  return tuple(str(category['name']) for category in categories)
