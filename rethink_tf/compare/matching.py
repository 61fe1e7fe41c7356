"""From the files an evaluation leaves to matches by image: the newest detections of a run against its ground truth."""

from __future__ import annotations

import json
import re
from collections import defaultdict

import numpy as np
import tensorflow as tf

from rethink_tf.compare.bootstrap import CategoryMatches, Matches
from rethink_tf.errors import UserError
from rethink_tf.evaluation import coco_metrics
from rethink_tf.storage.run_folder import RunFolder

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU, COCO's
FILES = {'box/AP': ('bbox.json', 'bbox'), 'mask/AP': ('segm.json', 'segm'),
         'keypoint/AP': ('keypoints.json', 'keypoints')}


def read_matches(folder: RunFolder, figure: str, step: int) -> Matches | None:
  """Matches of the detections that a run has saved of an evaluation; None where it has not.

  Args:
    folder: of the run.
    figure: 'box/AP', 'mask/AP' or 'keypoint/AP'; None is returned for others, which are not COCO's.
    step: iteration of the evaluation.

  Raises:
    UserError: a file is not what an evaluation writes.
  """
  if figure not in FILES:
    return None
  name, iou_type = FILES[figure]
  detections, truth = (folder.join('eval', f'step-{step:08d}', file) for file in (name, 'ground_truth.json'))
  if not (tf.io.gfile.exists(detections) and tf.io.gfile.exists(truth)):
    return None
  return table(_load(truth, dict), _load(detections, list), iou_type)


def table(gt: dict, results: list[dict], iou_type: str, backend: str = 'auto') -> Matches:
  """Matches of detections in COCO's submission format against COCO's ground truth."""
  sigmas = None
  if iou_type == 'keypoints':
    sigmas = gt.get('keypoint_sigmas')
    gt = {**gt, 'annotations': [a for a in gt['annotations'] if a.get('keypoints')]}
  category_ids, image_ids, records = coco_metrics.matches(gt, results, iou_type, backend, sigmas)
  row = {image: i for i, image in enumerate(image_ids)}
  by_category = defaultdict(list)
  for record in records:
    by_category[int(record['category_id'])].append(record)
  tables = []
  for category in category_ids:
    objects = np.zeros(len(image_ids), np.int64)
    parts = sorted(by_category[category], key=lambda record: row[int(record['image_id'])])
    for record in parts:
      objects[row[int(record['image_id'])]] = np.sum(~np.asarray(record['gtIgnore'], bool))
    if not objects.any():
      continue
    scores = np.concatenate([np.asarray(record['dtScores'], np.float64) for record in parts])
    order = np.argsort(-scores, kind='mergesort')  # COCO's, which decides between equal scores
    images = np.concatenate([np.full(len(r['dtScores']), row[int(r['image_id'])]) for r in parts]).astype(np.int64)
    matched, ignored = (
      np.concatenate([np.asarray(record[key]).reshape(-1, len(record['dtScores'])).astype(bool)
                      for record in parts if len(record['dtScores'])], 1)
      if len(scores) else np.zeros((len(THRESHOLDS), 0), bool) for key in ('dtMatches', 'dtIgnore'))
    tables.append(CategoryMatches(images[order], matched[:, order], ignored[:, order], objects))
  return Matches(np.asarray(image_ids, np.int64), tuple(tables))


def _load(path: str, kind: type):
  try:
    with tf.io.gfile.GFile(path) as file:
      content = json.load(file)
  except (ValueError, OSError, tf.errors.OpError) as error:
    reason = re.sub(r'\s+', ' ', str(getattr(error, 'message', None) or error))
    raise UserError(f'{path}: {reason}: evaluate the run again') from error
  if not isinstance(content, kind):
    raise UserError(f'{path} does not hold a json {"object" if kind is dict else "list"}: evaluate the run again')
  return content
