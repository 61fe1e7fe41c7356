"""Per-image matches of a run's saved detections against its ground truth."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from rethink_tf.compare.bootstrap import CategoryMatches, Matches, average_precision
from rethink_tf.compare.run_summary import Run
from rethink_tf.compare.saved_results import check_detections, digest, read_detections, read_truth, reported
from rethink_tf.errors import UserError
from rethink_tf.evaluation import coco_metrics, voc_evaluator, voc_metrics
from rethink_tf.evaluation.scoring import EVALUATED, max_detections
from rethink_tf.storage.run_folder import RunFolder

AREAS = {'s': (0, 32 ** 2), 'm': (32 ** 2, 96 ** 2), 'l': (96 ** 2, 1e10)}  # COCO's, in pixels; both ends included
FILES = {'box/AP': ('bbox.json', 'bbox'), 'mask/AP': ('segm.json', 'segm'),
         'keypoint/AP': ('keypoints.json', 'keypoints')}
# Saved detections are taken for those of an evaluation if their AP, scored again, differs by no more than this many
# points: the first if they record this evaluation or (of an earlier version) none, the second if they record another.
_TOLERANCE, _TOLERANCE_OF_ANOTHER = 1.0, 1e-3


class Scored(NamedTuple):
  """Per-image matches of an evaluation, with digests of the ground truth and of the rules they were scored by."""

  matches: Matches
  ap: float  # in percent
  truth: str
  evaluated: Any = None  # Run.evaluated of the evaluation; None: an earlier version did not record it


class SavedMatches:
  """Matches of the last evaluations of several runs, each read at most once."""

  def __init__(self, read: Callable[[str], Scored | None], metric: str) -> None:
    """read: returns the saved matches of a run, None if it has none. metric: the one to compare by."""
    self._read, self._metric = functools.cache(read), metric

  def __call__(self, run: Run) -> Matches | None:
    """Return the matches of a run; None if no detections were saved, or those of another evaluation."""
    scored = self._of_evaluation(run)
    return None if scored is None else scored.matches

  def truth(self, run: Run) -> str:
    """Return a text that is equal for runs scored against the same ground truth in the same way; '' without matches."""
    scored = self._of_evaluation(run)
    return '' if scored is None else '; '.join((scored.truth, *run.scored_otherwise))

  def of_another(self, run: Run) -> float | None:
    """Return the AP in percent of the saved detections if they are not of the last evaluation, else None."""
    scored = self._read(run.name)
    return None if scored is None or scored is self._of_evaluation(run) else scored.ap

  def _of_evaluation(self, run: Run) -> Scored | None:
    scored = self._read(run.name)
    if scored is None:
      return None
    most = _TOLERANCE if scored.evaluated in (None, run.evaluated) else _TOLERANCE_OF_ANOTHER
    return scored if abs(scored.ap - run.final(self._metric)) <= most else None


def read_matches(folder: RunFolder, metric: str, step: int) -> Scored | None:
  """Return the matches of an evaluation's detections, None if the run has not saved them.

  Args:
    folder: the run folder.
    metric: 'box/AP', 'mask/AP', 'keypoint/AP' or 'voc/mAP'; any other returns None.
    step: iteration of the evaluation.

  Raises:
    UserError: a file cannot be read or has another format.
  """
  if metric == 'voc/mAP':
    return _read_voc(folder.join('eval', f'step-{step:08d}'))
  if metric not in FILES:
    return None
  name, iou_type = FILES[metric]
  detections, truth = (folder.join('eval', f'step-{step:08d}', file) for file in (name, 'ground_truth.json'))
  if not (tf.io.gfile.exists(detections) and tf.io.gfile.exists(truth)):
    return None
  gt = read_truth(truth, iou_type)
  with reported(detections):
    matches = match_detections(gt, read_detections(detections, gt, iou_type), iou_type)
  return _scored(truth, matches, gt, iou_type)


def _scored(path: str, matches: Matches, gt: Mapping[str, Any], iou_type: str) -> Scored:
  """Return what was scored, and by which rules. path: of the ground truth.

  Raises:
    UserError: it has no object, so that the AP of the evaluation is not of it.
  """
  if not matches.categories:
    raise UserError(f'{path}: has no object that counts, though the evaluation has an AP: evaluate the run again')
  limit, sigmas = max_detections(gt, iou_type), gt.get('keypoint_sigmas') if iou_type == 'keypoints' else None
  rules = matches.rule, None if limit == coco_metrics.MAX_DETECTIONS[iou_type] else limit, sigmas
  ap = average_precision(matches, np.ones((1, len(matches.image_ids)), np.int64))
  return Scored(matches, float(ap[0]), f'{digest(gt, iou_type)} {rules}', gt.get(EVALUATED))


def object_sizes(folder: RunFolder, metric: str, step: int) -> dict[str, int] | None:
  """Return the number of small, medium and large objects ('s', 'm', 'l') that an evaluation has counted.

  None if the run has not saved its ground truth, or the metric has no sizes. Arguments and errors as for read_matches.
  """
  truth = folder.join('eval', f'step-{step:08d}', 'ground_truth.json')
  if metric not in ('box/AP', 'mask/AP') or not tf.io.gfile.exists(truth):
    return None
  gt = read_truth(truth)
  annotations = (coco_metrics.mask_truth(gt) if metric == 'mask/AP' else gt)['annotations']
  areas = np.array([area for a in annotations if not a.get('iscrowd') and isinstance(area := a.get('area'), int | float)
                    ], np.float64)
  return {size: int(np.sum((low <= areas) & (areas <= high))) for size, (low, high) in AREAS.items()}


def _read_voc(path: str) -> Scored | None:
  truth = f'{path}/ground_truth.json'
  if not tf.io.gfile.exists(truth):
    return None
  gt = read_truth(truth)
  with reported(path):
    results = voc_evaluator.read_results(path, gt)
    if results is None:
      return None
    check_detections(path, results, gt, 'bbox')
    matches = match_voc(gt, results, str(gt.get('voc_rule', 'area')))
  return _scored(truth, matches, gt, 'bbox')


def match_voc(gt: dict[str, Any], results: list[dict[str, Any]], rule: str) -> Matches:
  """Return the matches by VOC's rules at IoU 0.5 of detections in COCO's submission format."""
  image_ids = sorted(image['id'] for image in gt['images'])
  class_of = {category_id: k for k, category_id in enumerate(sorted(c['id'] for c in gt['categories']), start=1)}
  row = {image: i for i, image in enumerate(image_ids)}
  objects = voc_evaluator.objects_of(gt['annotations'], class_of)
  detections, true, false = voc_metrics.label(objects, voc_evaluator.detections_of(results, class_of), [0.5])
  images = np.array([row[i] for i in detections.images.tolist()], np.int64)
  object_rows = np.array([row[i] for i in objects.images.tolist()], np.int64)
  tables = []
  for k in class_of.values():
    counts = np.bincount(object_rows[(objects.classes == k) & ~objects.difficult], minlength=len(image_ids))
    own = detections.classes == k
    if counts.any():
      tables.append(CategoryMatches(images[own], true[:, own], ~(true | false)[:, own], counts))
  return Matches(np.asarray(image_ids, np.int64), tuple(tables), rule)


def match_detections(gt: dict[str, Any], results: list[dict[str, Any]], iou_type: str,
                     backend: str = 'auto') -> Matches:
  """Return the matches of detections in COCO's submission format against ground truth in COCO's format."""
  sigmas = None
  if iou_type == 'keypoints':
    sigmas = gt.get('keypoint_sigmas')
    gt = {**gt, 'annotations': [a for a in gt['annotations'] if a.get('keypoints')]}
  limit = max_detections(gt, iou_type)
  image_ids, categories = coco_metrics.matches(gt, results, iou_type, backend, sigmas, limit)
  tables = []
  for one in categories:
    if one.objects.any():
      order = np.argsort(-one.scores, kind='stable')  # as COCO's evaluation orders equal scores
      matched = one.targets >= 0
      tables.append(CategoryMatches(one.images[order], matched[:, order], one.ignored[:, order], one.objects))
  return Matches(np.asarray(image_ids, np.int64), tuple(tables))
