"""Detections as the metric counts them at one IoU threshold: true, false or ignored (crowds, difficult objects)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rethink_tf.errors import UserError
from rethink_tf.evaluation import coco_metrics, voc_metrics


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
  thresholds = [t for t, one in enumerate(coco_metrics.IOUS) if abs(one - iou) < 1e-6]
  if not thresholds:
    raise UserError(f'--iou={iou:g}: choose one of {", ".join(map(str, coco_metrics.IOUS))}, at which COCO matches')
  _, categories = coco_metrics.matches(gt, results, iou_type, backend, None, max_detections)
  found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), *np.zeros((2, 0), np.int64), np.zeros(0, bool))]
  class_of = {}
  for k, one in enumerate(categories):
    class_of[one.category_id] = k
    found.append((one.images, np.full(len(one.scores), k), one.scores, one.results, one.targets[thresholds[0]],
                  one.ignored[thresholds[0]]))
  images, classes, scores, detections, targets, ignored = map(np.concatenate, zip(*found, strict=True))
  order = np.lexsort((images, -scores))
  true = (targets >= 0) & ~ignored
  annotations = (coco_metrics.mask_truth(gt) if iou_type == 'segm' else gt)['annotations']
  return Counted(
    _names(gt), iou, scores[order], classes[order], true[order], ignored[order], detections[order],
    np.where(true, targets, -1)[order],
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
