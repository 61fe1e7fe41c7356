"""The description of an exported detector that accompanies its weights, as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

import rethink_tf
from rethink_tf.data.augment import Resize
from rethink_tf.data.categories import Category, categories_to_json, without_keypoints
from rethink_tf.data.json_files import load_json
from rethink_tf.errors import UserError
from rethink_tf.models.mask_rcnn import MaskRCNN
from rethink_tf.storage import files

About = dict[str, Any]

NAME = 'detector.json'
IN_FOLDER = f'assets.extra/{NAME}'  # of a SavedModel: the folder that TensorFlow leaves to users
FORMAT = 1  # of the JSON


def of_detector(detector: MaskRCNN, resize: Resize, categories: Sequence[Category], threshold: float, *,
                step: int | None = None, averages: bool = False, image_size: tuple[int, int] | None = None,
                upright: bool | None = None) -> About:
  """Describe an exported detector.

  Args:
    resize: that of evaluation.
    categories: of classes 1..K, with the names and the skeleton of their keypoints.
    threshold: minimum score of its detections.
    step, averages: of the checkpoint, and whether the weights are its averages.
    image_size: height and width of all images; None: any.
    upright: whether it was trained on images with their EXIF orientation applied; None: not known.
  """
  categories = tuple(categories) if detector.keypoint_head is not None else without_keypoints(tuple(categories))
  return {
    'format': FORMAT,
    'package': f'rethink_tf {rethink_tf.__version__}',
    'step': step,
    'averages': averages,
    'categories': categories_to_json(categories),  # class k of 1..K is the k-th
    'score_threshold': round(float(threshold), 6),
    'max_detections': detector.detection_generator.max_detections,
    'outputs': [name for name, present in (
      ('boxes', True), ('scores', True), ('classes', True), ('masks', detector.mask_head is not None),
      ('keypoints', detector.keypoint_head is not None)) if present],
    'input': {
      'image': 'uint8 [height, width, 3], RGB, pixels as stored' + (', after the EXIF orientation' if upright else ''),
      'exif_applied': upright,
      'image_size': list(image_size) if image_size else None,
      # Part of the graph of every format but Detectron2's.
      'short_side': resize.largest,
      'max_side': resize.max_side,
      'padded_shapes': resize.padded_shapes.tolist(),
      'pixel_mean': list(map(float, detector.pixel_mean)),
      'pixel_std': list(map(float, detector.pixel_std)),
    },
  }


def reads_upright(folder: str) -> bool | None:
  """Return `upright` of an exported SavedModel, None if its description does not tell."""
  path = f'{folder.rstrip("/")}/{IN_FOLDER}'
  if not tf.io.gfile.exists(path):
    return None
  try:
    found = load_json(path)['input']['exif_applied']
  except (UserError, KeyError, TypeError):
    return None
  return found if isinstance(found, bool) else None


def to_text(about: About) -> str:
  return json.dumps(about, indent=1, ensure_ascii=False) + '\n'


def write(path: str, about: About) -> None:
  """Write a description to a file, creating its folder. Raises OSError or tf.errors.OpError."""
  tf.io.gfile.makedirs(os.path.dirname(path) or '.')
  files.write(path, to_text(about))
