"""Detections of an image in original pixels: restoring them, COCO results, and bytes between workers."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rethink_tf.data.categories import Category
from rethink_tf.ops.masks import paste


class ImageDetections(NamedTuple):
  """The detections of one photograph, in its own pixels, best first."""

  image_id: int
  boxes: np.ndarray  # float64 [n, 4] y0 x0 y1 x1
  scores: np.ndarray  # float64 [n]
  classes: np.ndarray  # int64 [n] 1..K
  masks: list[dict] | None  # n compressed RLE, or None from a detector without masks
  keypoints: np.ndarray | None = None  # float64 [n, P, 3] y, x (indices of pixel centres), score


def to_bytes(found: list[ImageDetections]) -> bytes:
  """Detections as JSON, to the last bit: what a worker hands to the chief."""
  rows = [[value.tolist() if isinstance(value, np.ndarray) else value for value in one] for one in found]
  return json.dumps(rows, separators=(',', ':')).encode()


def from_bytes(data: bytes) -> list[ImageDetections]:
  """The inverse of to_bytes."""
  return [ImageDetections(image_id, np.array(boxes, np.float64).reshape(-1, 4), np.array(scores, np.float64),
                np.array(classes, np.int64), masks,
                None if keypoints is None else np.array(keypoints, np.float64).reshape(len(scores), -1, 3))
          for image_id, boxes, scores, classes, masks, keypoints in json.loads(data)]


def submission(found: list[ImageDetections], categories: Sequence[Category]) -> dict[str, list[dict]]:
  """Detections in COCO's submission format by kind: 'box', and 'mask' and 'keypoint' where the detector has them."""
  ids = [category.id for category in categories]
  results = {'box': _box_results(found, ids)}
  if all(one.masks is not None for one in found):
    results['mask'] = _mask_results(found, ids)
  if any(category.keypoints for category in categories) and all(one.keypoints is not None for one in found):
    results['keypoint'] = _keypoint_results(found, categories)
  return results


def _box_results(found, category_ids):
  results = []
  for one in found:
    # Thousandths of a pixel halve the size of the file.
    xywh = np.round(np.concatenate([one.boxes[:, 1::-1], (one.boxes[:, 2:] - one.boxes[:, :2])[:, ::-1]], 1), 3)
    for box, score, number in zip(xywh.tolist(), one.scores.tolist(), one.classes.tolist(), strict=True):
      results.append({'image_id': one.image_id, 'category_id': category_ids[number - 1], 'bbox': box, 'score': score})
  return results


def _mask_results(found, category_ids):
  results = []
  for one in found:
    for rle, score, number in zip(one.masks, one.scores.tolist(), one.classes.tolist(), strict=True):
      results.append({'image_id': one.image_id, 'category_id': category_ids[number - 1], 'segmentation': rle,
                      'score': score})
  return results


def _keypoint_results(found, categories):
  """Of the categories that have keypoints: x, y and a third number each, which COCO does not score."""
  results = []
  for one in found:
    points = np.round(one.keypoints[..., [1, 0, 2]], 3).reshape(-1, 3 * one.keypoints.shape[1])
    for each, score, number in zip(points.tolist(), one.scores.tolist(), one.classes.tolist(), strict=True):
      category = categories[number - 1]
      if category.keypoints:
        results.append({'image_id': one.image_id, 'category_id': category.id, 'keypoints': each, 'score': score})
  return results


def restore(mask_paste, image_ids, scales, sizes, boxes, scores, classes, masks, keypoints) -> list[ImageDetections]:
  """One batch of detections (NumPy) in pixels of the photographs, without empty slots and filling images."""
  found = []
  for i in np.flatnonzero(image_ids >= 0):
    height, width = sizes[i].tolist()
    restored = boxes[i].astype(np.float64) / scales[i][[0, 1, 0, 1]]
    restored = np.clip(restored, 0, [height, width, height, width])
    slots = np.flatnonzero(
      (scores[i] > 0) & (classes[i] > 0) & (restored[:, 2] > restored[:, 0]) & (restored[:, 3] > restored[:, 1])
    )
    rles = None
    if masks is not None:
      rles = paste(masks[i][slots], restored[slots], height, width, mask_paste)
      rles = [{'size': rle['size'], 'counts': rle['counts'].decode('ascii')} for rle in rles]
    points = None
    if keypoints is not None:
      points = keypoints[i][slots].astype(np.float64)
      points[..., :2] = (points[..., :2] + 0.5) / scales[i] - 0.5  # indices of pixel centres
    one = restored[slots], scores[i][slots].astype(np.float64), classes[i][slots].astype(np.int64), rles, points
    found.append(ImageDetections(int(image_ids[i]), *one))
  return found
