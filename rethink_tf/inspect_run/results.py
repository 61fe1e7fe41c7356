"""Detections that the evaluations of a run have saved in its folder."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from rethink_tf.compare.saved_results import check_detections, check_truth, digest, read_truth, reported
from rethink_tf.data.json_files import load_json
from rethink_tf.errors import UserError
from rethink_tf.evaluation import voc_evaluator
from rethink_tf.evaluation.coco_metrics import RESULT_FIELDS
from rethink_tf.evaluation.scoring import IOU_TYPES, max_detections, restricted
from rethink_tf.storage import files, identity, manifests
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.structures import Source

FILES = {'box': 'bbox.json', 'mask': 'segm.json', 'keypoint': 'keypoints.json'}
VOC_FILES = 'comp?_det_test_*.txt'


def newest_results(model_dir: str) -> str:
  """Return the folder of the newest evaluation with saved detections.

  Raises:
    UserError: there is none, or the run folder holds symbolic links, where the report would be written.
  """
  files.refuse_links(model_dir)
  parent = f'{model_dir.rstrip("/")}/eval'
  for step in reversed(manifests.steps(parent)):
    folder = manifests.step_folder(parent, step)
    names = manifests.names_in(folder)
    if FILES['box'] in names or fnmatch.filter(names, VOC_FILES):
      return folder
  recorded = identity.read(RunFolder(model_dir, create=False))
  if recorded is not None and recorded.settings.get('run.evaluator') == '@TopKEvaluator':
    raise UserError(f'{model_dir}: is the run of a classifier, and inspect_run needs a detector: its accuracy by class '
                    'is in categories.csv of eval/step-…')
  tf.io.gfile.exists(parent)  # raises for an address out of reach, which would pass for an empty folder
  raise UserError(f'{model_dir}: no evaluation has saved {FILES["box"]} or {VOC_FILES}: run '
                  f'python -m rethink_tf.evaluate --model_dir={model_dir} first, with CocoEvaluator.save_results = '
                  'True, or name a folder with --results')


def scored_truth(folder: str, source: Source) -> dict[str, Any]:
  """Return the ground truth that an evaluation scored, in COCO's format; the source's if none was saved.

  Unreadable images are left out; 'max_detections' holds the evaluation's limits by iou_type that are not COCO's.

  Raises:
    UserError: the saved ground truth is damaged, or the source has other images, objects or classes.
  """
  gt, path = source.annotations(), os.path.join(folder, 'ground_truth.json')
  if not tf.io.gfile.exists(path):
    return gt
  saved = read_truth(path)
  scored = {image['id'] for image in saved['images']}
  own = restricted(gt, {image['id'] for image in gt['images']} - scored)
  # Images are drawn from the source, and its annotations may have been corrected since.
  if digest(saved) != digest(own) or _class_names(saved) != _class_names(gt):
    raise UserError(f'{path}: {source.name} has other images or objects than were scored: give the --data_dir that was '
                    'evaluated, or evaluate the run again if its annotations have changed')
  limits = {iou_type: limit for iou_type in IOU_TYPES.values() if (limit := max_detections(saved, iou_type))}
  return saved | {'max_detections': limits}


def _class_names(gt: dict[str, Any]) -> list[str]:
  return sorted(category['name'] for category in gt['categories'])


def read_results(folder: str, gt: dict[str, Any], name: str) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
  """Yield kind, file name and detections in COCO's submission format of each file of results in a folder.

  Args:
    folder: folder of an evaluation.
    gt: ground truth of the evaluated data set, in COCO's format.
    name: name of the data set, for messages.

  Raises:
    UserError: a file has another format, or is of another data set.
  """
  truth = os.path.join(folder, 'ground_truth.json')
  kinds = [kind for kind, file in FILES.items() if tf.io.gfile.exists(os.path.join(folder, file))]
  for kind in kinds:
    if tf.io.gfile.exists(truth):
      check_truth(truth, gt, IOU_TYPES[kind])
    yield kind, FILES[kind], _read_json(os.path.join(folder, FILES[kind]), kind, gt, name)
  if 'box' not in kinds:
    path = os.path.join(folder, VOC_FILES)
    with reported(path):
      results = voc_evaluator.read_results(folder, gt)
    if results is not None:
      check_detections(path, results, gt, 'bbox')
      yield 'box', VOC_FILES, results


def _read_json(path: str, kind: str, gt: dict[str, Any], name: str) -> list[dict[str, Any]]:
  fields = {'image_id', 'category_id', 'score', RESULT_FIELDS[IOU_TYPES[kind]]}
  results = load_json(path)
  if not isinstance(results, list) or not all(isinstance(r, dict) and fields <= r.keys() for r in results):
    raise UserError(f"{path}: is not a list in COCO's results format")
  unknown = {r['image_id'] for r in results if isinstance(r['image_id'], int)} - {image['id'] for image in gt['images']}
  if unknown:
    raise UserError(f'{path}: image {min(unknown)} is not in {name}: give the --data_dir that was evaluated')
  check_detections(path, results, gt, IOU_TYPES[kind])
  return results
