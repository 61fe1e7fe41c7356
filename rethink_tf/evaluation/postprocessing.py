"""Detections in original pixels: restoring them from network outputs, COCO's submission format, serialization."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rethink_tf.data.categories import Category
from rethink_tf.ops.masks import paste


class ImageDetections(NamedTuple):
  """The detections of one image, in original pixels, best first."""

  image_id: int
  boxes: np.ndarray  # float64 [n, 4] y0 x0 y1 x1
  scores: np.ndarray  # float64 [n]
  classes: np.ndarray  # int64 [n] 1..K
  masks: list[dict] | None  # n compressed RLE, or None from a detector without masks
  keypoints: np.ndarray | None = None  # float64 [n, P, 3] y, x (indices of pixel centres), score
  best_score: float | None = None  # before detections below a threshold were left out; None: none was left out


def restore(
  mask_paste: str,
  image_ids: np.ndarray,
  scales: np.ndarray,
  sizes: np.ndarray,
  boxes: np.ndarray,
  scores: np.ndarray,
  classes: np.ndarray,
  masks: np.ndarray | None,
  keypoints: np.ndarray | None,
) -> list[ImageDetections]:
  """Return a batch of detections in original pixels, without empty slots and the images that fill up the batch.

  Args:
    mask_paste: 'accurate' or 'detectron' (ops/masks.py).
    image_ids, scales, sizes: of the batch, int64 [B] (-1: filled up), float32 [B, 2], int32 [B, 2] (structures.Batch).
    boxes, scores, classes, masks, keypoints: as in structures.Detections.
  """
  results = []
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
    results.append(ImageDetections(int(image_ids[i]), restored[slots], scores[i][slots].astype(np.float64),
                                   classes[i][slots].astype(np.int64), rles, points))
  return results


def submission(detections: Sequence[ImageDetections], categories: Sequence[Category]) -> dict[str, list[dict]]:
  """Return detections in COCO's submission format by kind: 'box', and 'mask' and 'keypoint' if there are any."""
  ids = [category.id for category in categories]
  results = {'box': _box_results(detections, ids)}
  if all(one.masks is not None for one in detections):
    results['mask'] = _mask_results(detections, ids)
  if any(category.keypoints for category in categories) and all(one.keypoints is not None for one in detections):
    results['keypoint'] = _keypoint_results(detections, categories)
  return results


def _box_results(detections: Sequence[ImageDetections], category_ids: Sequence[int]) -> list[dict]:
  results = []
  for one in detections:
    # Rounding to thousandths of a pixel halves the size of the file.
    xywh = np.round(np.concatenate([one.boxes[:, 1::-1], (one.boxes[:, 2:] - one.boxes[:, :2])[:, ::-1]], 1), 3)
    for box, score, k in zip(xywh.tolist(), one.scores.tolist(), one.classes.tolist(), strict=True):
      results.append({'image_id': one.image_id, 'category_id': category_ids[k - 1], 'bbox': box, 'score': score})
  return results


def _mask_results(detections: Sequence[ImageDetections], category_ids: Sequence[int]) -> list[dict]:
  results = []
  for one in detections:
    for rle, score, k in zip(one.masks, one.scores.tolist(), one.classes.tolist(), strict=True):
      results.append({'image_id': one.image_id, 'category_id': category_ids[k - 1], 'segmentation': rle,
                      'score': score})
  return results


def _keypoint_results(detections: Sequence[ImageDetections], categories: Sequence[Category]) -> list[dict]:
  """Return the results of categories with keypoints: x, y and score of each, the last of which COCO ignores."""
  results = []
  for one in detections:
    points = np.round(one.keypoints[..., [1, 0, 2]], 3).reshape(-1, 3 * one.keypoints.shape[1])
    for each, score, k in zip(points.tolist(), one.scores.tolist(), one.classes.tolist(), strict=True):
      category = categories[k - 1]
      if category.keypoints:
        results.append({'image_id': one.image_id, 'category_id': category.id, 'keypoints': each, 'score': score})
  return results


def to_bytes(detections: Sequence[ImageDetections], unreadable: Sequence[int] = ()) -> bytes:
  """Serialize detections and ids of unreadable images as JSON, without loss, for the chief of several workers."""
  rows = [[value.tolist() if isinstance(value, np.ndarray) else value for value in one] for one in detections]
  return json.dumps({'detections': rows, 'unreadable': list(unreadable)}, separators=(',', ':')).encode()


def from_bytes(data: bytes) -> tuple[list[ImageDetections], list[int]]:
  """Invert `to_bytes`."""
  content = json.loads(data)
  return [ImageDetections(image_id, np.array(boxes, np.float64).reshape(-1, 4), np.array(scores, np.float64),
                          np.array(classes, np.int64), masks,
                          None if keypoints is None else np.array(keypoints, np.float64).reshape(len(scores), -1, 3),
                          *rest) for image_id, boxes, scores, classes, masks, keypoints, *rest in content['detections']
          ], content['unreadable']
