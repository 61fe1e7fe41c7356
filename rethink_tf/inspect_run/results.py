"""A run's newest evaluation, read from its folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from rethink_tf.errors import UserError

FILES = {'box': 'bbox.json', 'mask': 'segm.json', 'keypoint': 'keypoints.json'}
VOC_FILES = 'comp?_det_test_*.txt'


def newest_results(model_dir: str) -> str:
  """The folder of the newest evaluation that has left its detections.

  Raises:
    UserError: there is none.
  """
  import tensorflow as tf

  steps = sorted(re.findall(r'step-\d+', ' '.join(tf.io.gfile.glob(f'{model_dir.rstrip("/")}/eval/step-*'))))
  for step in reversed(steps):
    folder = f'{model_dir.rstrip("/")}/eval/{step}'
    if tf.io.gfile.exists(f'{folder}/{FILES["box"]}') or tf.io.gfile.glob(f'{folder}/{VOC_FILES}'):
      return folder
  raise UserError(f'{model_dir}: no evaluation there has left its {FILES["box"]} or {VOC_FILES}: run '
                  f'rethink_tf.evaluate --model_dir={model_dir} first, or name a folder with --results')


def read_results(folder: str, gt: dict[str, Any], name: str) -> Iterator[tuple[str, str, list[dict]]]:
  """Kind, file and content, in COCO's submission format, of the results that a folder holds.

  gt, name: of the data that they were scored against.

  Raises:
    UserError: a file is not what an evaluation writes, or of other data.
  """
  import tensorflow as tf

  from rethink_tf.evaluation import voc_evaluator

  there = [kind for kind, file in FILES.items() if tf.io.gfile.exists(os.path.join(folder, file))]
  for kind in there:
    yield kind, FILES[kind], _read_json(os.path.join(folder, FILES[kind]), kind, gt, name)
  if 'box' not in there:
    results = voc_evaluator.read_results(folder, gt)
    if results is not None:
      yield 'box', VOC_FILES, results


def _read_json(path, kind, gt, name):
  from rethink_tf.data.json_files import load_json

  fields = {'image_id', 'category_id', 'score', {'box': 'bbox', 'mask': 'segmentation', 'keypoint': 'keypoints'}[kind]}
  results = load_json(path)
  if not isinstance(results, list) or not all(isinstance(r, dict) and fields <= r.keys() for r in results):
    raise UserError(f"{path}: is not a list in COCO's results format")
  strangers = {r['image_id'] for r in results} - {image['id'] for image in gt['images']}
  if strangers:
    raise UserError(f'{path}: image {min(strangers)} is not in {name}: give the --data_dir that was evaluated')
  return results
