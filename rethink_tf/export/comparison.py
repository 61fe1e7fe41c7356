"""Compares an export with `predict` on images, before it is moved into place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow as tf
from absl import logging
from pycocotools import mask as coco_mask

from rethink_tf.data.detection.input import EvalInput
from rethink_tf.errors import UserError
from rethink_tf.evaluation.postprocessing import restore
from rethink_tf.models.keypoints import HEATMAP_SIZE
from rethink_tf.models.mask_rcnn import MaskRCNN
from rethink_tf.structures import MASK_CROP, Batch, Detections, Example, Source

# Tolerances between an export and `predict`, for detections clearly above the threshold.
MIN_MATCHED = 0.98  # share of detections with a match: the same class, and IoU and score within the following
MIN_IOU = 0.95
MAX_SCORE_DIFFERENCE = 0.01
MAX_MASK_DIFFERENCE = 0.01  # of the pixels of both masks together
MAX_KEYPOINT_DIFFERENCE = 0.02  # share of keypoints that are off by over a heat map cell and a pixel, or in score

Found = dict[str, np.ndarray]  # boxes [n, 4], scores, classes, masks [n, h, w], keypoints [n, P, 3]; best first
Run = Callable[[np.ndarray, np.float32], Found]  # image uint8 [h, w, 3] and score threshold -> detections


class Difference(NamedTuple):
  """Difference between the detections of an export and of `predict` in one image."""

  detections: int  # of both together that are compared
  matched: float  # share of them with a match: same class, MIN_IOU, MAX_SCORE_DIFFERENCE
  boxes: float  # largest difference of a coordinate to the nearest detection of the same class, in pixels
  scores: float  # largest difference between matched detections
  masks: float  # share of differing pixels in matched masks
  keypoints: float  # share of differing keypoints in matched detections

  @property
  def small(self) -> bool:
    return (self.matched >= MIN_MATCHED and self.masks <= MAX_MASK_DIFFERENCE
            and self.keypoints <= MAX_KEYPOINT_DIFFERENCE)

  def __str__(self) -> str:
    return (f'{self.detections} detections compared, {100 * self.matched:.1f} % agree; boxes differ by '
            f'{self.boxes:.2g} pixels at most, scores by {self.scores:.1g}, masks in {100 * self.masks:.2g} % of '
            f'their pixels, keypoints in {100 * self.keypoints:.2g} %')

  @property
  def largest(self) -> str:
    """The name of the output that differs most beyond its tolerance, with the difference, in words."""
    unmatched = 1 - self.matched
    excess = {'boxes, classes or scores': unmatched / (1 - MIN_MATCHED), 'masks': self.masks / MAX_MASK_DIFFERENCE,
              'keypoints': self.keypoints / MAX_KEYPOINT_DIFFERENCE}
    return {
      'masks': f'masks in {100 * self.masks:.2g} % of their pixels ({100 * MAX_MASK_DIFFERENCE:g} % are allowed)',
      'keypoints': f'{100 * self.keypoints:.2g} % of the keypoints ({100 * MAX_KEYPOINT_DIFFERENCE:g} % are allowed)',
      'boxes, classes or scores':
        f'boxes, classes or scores of {round(unmatched * self.detections)} of {self.detections} detections '
        f'({100 * (1 - MIN_MATCHED):.0f} % are allowed), boxes by {self.boxes:.3g} pixels',
    }[max(excess, key=excess.get)]


def threshold_of(detector: MaskRCNN, score_threshold: float | None) -> float:
  """Return the minimum score of an export's detections; None stands for the detector's own.

  Raises:
    UserError: it is not in 0..1.
  """
  threshold = detector.detection_generator.score_threshold if score_threshold is None else score_threshold
  if not 0.0 <= threshold < 1.0:
    raise UserError(f'--score_threshold = {threshold:g}: use 0 or more, and less than 1')
  return threshold


def require_new(out: str) -> None:
  """Raise a UserError if the path of an export already exists."""
  if tf.io.gfile.exists(out):
    raise UserError(f'{out} exists already: remove it, or choose another place with --out')


def verify(what: str, run: Run, predict_step: Callable[[Batch], Detections], detector: MaskRCNN, inputs: EvalInput,
           threshold: float, images: int = 2) -> list[Difference]:
  """Compare the detections of an export with those of this package, and log the differences.

  Args:
    what: for messages, as 'the SavedModel'.
    run: the export.
    predict_step: as in Trainer.
    inputs: of evaluation; its first `images` images are used. One without detections is compared at threshold 0, so
      that the comparison is never empty.

  Raises:
    UserError: they differ by more than the tolerances above.
  """
  generator, differences = detector.detection_generator, []
  for image, batch in first_images(inputs, images):
    for at in (threshold, 0.0):
      configured, generator.score_threshold = generator.score_threshold, at
      expected = in_pixels(batch, tf.function(predict_step, autograph=False)(batch))
      generator.score_threshold = configured
      if len(expected['scores']):
        break
    difference = compare(expected, run(image, np.float32(at)), at, generator.max_detections)
    differences.append(difference)
    logging.info('image %d: %s', len(differences), difference)
    if not difference.small:
      raise UserError(f'{what} differs from predict on image {batch.image_ids[0]}, most in {difference.largest}; it '
                      'was not kept')
  return differences


def first_images(inputs: EvalInput, images: int) -> Iterator[tuple[np.ndarray, Batch]]:
  """Yield the pixels of the first image of each batch, uint8 [h, w, 3], and the batch."""
  source = inputs.source
  for step in range(min(images, inputs.num_batches)):
    batch = inputs.batch(step)
    yield source.load(int(np.flatnonzero(source.image_ids == batch.image_ids[0])[0])).image, batch


def compare(expected: Found, found: Found, threshold: float, slots: int) -> Difference:
  """Match two lists of detections of one image, highest score first, with at most `slots` detections each."""
  # A detection close to the threshold, or to the last score of a full list, may be in one list only.
  limit = max([threshold, *(one['scores'][-1] for one in (expected, found) if len(one['scores']) == slots)]) * 1.001
  overlaps = _iou(expected['boxes'], found['boxes'])
  near = np.abs(expected['scores'][:, None] - found['scores']) <= MAX_SCORE_DIFFERENCE
  same_class = expected['classes'][:, None] == found['classes']
  fits = near & same_class & (overlaps >= MIN_IOU)
  wanted = [one['scores'] > limit for one in (expected, found)]
  total = int(sum(one.sum() for one in wanted))
  matched = int(fits.any(1)[wanted[0]].sum() + fits.any(0)[wanted[1]].sum())
  rows = np.flatnonzero(fits.any(1))
  columns = np.where(fits, overlaps, -1.0)[rows].argmax(1) if len(rows) else rows
  away = np.abs(expected['boxes'][:, None] - found['boxes']).max(-1, initial=0)  # [n, m]
  boxes = np.where(same_class, away, np.inf).min(1, initial=np.inf)[wanted[0]].max(initial=0)
  scores = np.abs(expected['scores'][rows] - found['scores'][columns]).max(initial=0.0)
  masks = 0.0
  if 'masks' in expected and len(rows):
    either = (expected['masks'][rows] | found['masks'][columns]).sum()
    masks = (expected['masks'][rows] != found['masks'][columns]).sum() / max(either, 1)
  keypoints = 0.0
  if 'keypoints' in expected and len(rows):
    apart = np.abs(expected['keypoints'][rows] - found['keypoints'][columns])  # [r, P, 3]
    cells = (expected['boxes'][rows, 2:] - expected['boxes'][rows, :2]) / HEATMAP_SIZE  # [r, 2]
    elsewhere = (apart[..., :2] > np.maximum(cells, 1.0)[:, None]).any(-1)
    keypoints = (elsewhere | (apart[..., 2] > MAX_SCORE_DIFFERENCE)).mean()
  return Difference(total, matched / total if total else 1.0, float(boxes), float(scores), float(masks),
                    float(keypoints))


def in_pixels(batch: Batch, detections: Detections) -> Found:
  """Return the detections in the first image of a batch, restored and pasted as in evaluation."""
  fields = (batch.image_ids, batch.scales, batch.original_sizes, *detections)
  restored = restore('accurate', *(None if field is None else np.asarray(field[:1]) for field in fields))[0]
  result = {'boxes': restored.boxes, 'scores': restored.scores, 'classes': restored.classes}
  if restored.masks is not None:
    pixels = [coco_mask.decode(rle) for rle in restored.masks]
    result['masks'] = np.stack(pixels) if pixels else np.zeros((0, *batch.original_sizes[0]), np.uint8)
  if restored.keypoints is not None:
    result['keypoints'] = restored.keypoints
  return result


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Return the IoU of boxes [n, 4] and [m, 4], [n, m]."""
  low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
  common = np.maximum(high - low, 0).prod(2)
  areas = [(one[:, 2:] - one[:, :2]).prod(1) for one in (a, b)]
  return common / (areas[0][:, None] + areas[1] - common)


class OfOneSize:
  """Images of a source stretched to one size, without annotations, for exports that take images of one size only."""

  is_placeholder = True  # inputs do not log its number of images

  def __init__(self, source: Source, size: tuple[int, int]):
    self._source, self._size = source, size
    self.name, self.categories, self.num_classes = source.name, source.categories, source.num_classes
    self.num_keypoints = getattr(source, 'num_keypoints', 0)
    self.image_ids = source.image_ids
    self.sizes = np.broadcast_to(np.array(size, np.int32), (len(source.image_ids), 2))
    self.num_instances = np.zeros(len(source.image_ids), np.int32)

  def load(self, i: int) -> Example:
    height, width = self._size
    return Example(
      image=cv2.resize(self._source.load(i).image, (width, height)), boxes=np.zeros((0, 4), np.float32),
      classes=np.zeros(0, np.int32), masks=np.zeros((0, MASK_CROP, MASK_CROP), np.uint8),
      keypoints=np.zeros((0, self.num_keypoints, 3), np.float32))


def of_one_size(inputs: EvalInput, size: tuple[int, int]) -> Any:
  """Return an input of the same kind whose images have one size."""
  return type(inputs)(OfOneSize(inputs.source, size), inputs.batch_size, inputs.resize, max_instances=1)
