"""Comparison of an export with predict: matching of detections, the largest difference, images of one size."""

import math

import numpy as np
import pytest

from rethink_tf.data.augment import Resize
from rethink_tf.data.detection.input import EvalInput
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.errors import UserError
from rethink_tf.export import comparison
from rethink_tf.models.rois import DetectionGenerator
from rethink_tf.structures import Detections


def detections(boxes, scores, classes):
  boxes = np.array(boxes, float).reshape(-1, 4)
  return {'boxes': boxes, 'scores': np.array(scores, float), 'classes': np.array(classes)}


def test_detections_match_only_with_equal_boxes_and_classes():
  one = detections([[0, 0, 10, 10], [5, 5, 20, 20]], [.9, .6], [1, 2])
  assert comparison.compare(one, one, 0.05, 100) == (4, 1.0, 0.0, 0.0, 0.0, 0.0)
  other_class = detections(one['boxes'], one['scores'], [1, 3])
  assert comparison.compare(one, other_class, 0.05, 100).matched == 0.5
  assert comparison.compare(one, detections([], [], []), 0.05, 100).matched == 0.0
  moved = detections(one['boxes'] + [0, 0, 1, 1], one['scores'], [1, 2])
  assert comparison.compare(one, moved, 0.05, 100).matched < 1
  one['keypoints'] = np.full((2, 4, 3), 7.0)
  moved = one | {'keypoints': one['keypoints'] + [0.9, 0, 0.005]}  # less than a pixel, nearly the same score
  assert comparison.compare(one, moved, 0.05, 100) == (4, 1.0, 0.0, 0.0, 0.0, 0.0)
  moved['keypoints'][0, :2, 1] += 1.1
  moved['keypoints'][1, 0, 2] += 0.1
  assert comparison.compare(one, moved, 0.05, 100).keypoints == 3 / 8
  del one['keypoints']
  border = detections([*one['boxes'], [0, 0, 3, 3]], [.9, .6, .05001], [1, 2, 1])  # may be above or below the threshold
  assert comparison.compare(one, border, 0.05, 100).matched == 1.0
  assert comparison.compare(detections([], [], []), detections([], [], []), 0.05, 100).matched == 1.0


def test_the_largest_difference_is_named():
  one = detections([[0, 0, 10, 10], [5, 5, 20, 20]], [.9, .6], [1, 2])
  masks = np.zeros((2, 30, 30), np.uint8)
  masks[:, :10, :10] = 1
  moved = comparison.compare(one, detections(one['boxes'] + [0, 0, 4, 0], one['scores'], [1, 2]), 0.05, 100)
  assert moved.boxes == 4 and not moved.small
  assert moved.largest == 'boxes, classes or scores of 4 of 4 detections (2 % are allowed), boxes by 4 pixels'
  missing = comparison.compare(one, detections(one['boxes'][:1], [.9], [1]), 0.05, 100)
  assert math.isinf(missing.boxes) and missing.largest.startswith('boxes, classes or scores of 1 of 3')
  other = masks.copy()
  other[0, :2, :10] = 0
  found = comparison.compare(one | {'masks': masks}, one | {'masks': other}, 0.05, 100)
  assert not found.small and found.largest == 'masks in 10 % of their pixels (1 % are allowed)'
  assert 'masks in 10 % of their pixels' in str(found)


class Detector:
  def __init__(self):
    self.detection_generator = DetectionGenerator()


def test_verify_compares_at_zero_where_nothing_is_found():
  """And names the image and the output that differs."""
  inputs = EvalInput(SyntheticSource(2, image_size=(40, 60), object_size=(10, 20)), 1, Resize((64,), 96))
  detector, asked = Detector(), []

  def predict(batch):
    none = detector.detection_generator.score_threshold > 0
    return Detections(np.array([[[4., 8, 30, 40]]], 'f'), np.array([[0. if none else 0.01]], 'f'),
                      np.array([[0 if none else 1]]))

  def run(image, threshold, shift=0.0):
    asked.append(float(threshold))
    scales = 64 / min(image.shape[:2])
    box = np.array([[4 / scales, 8 / scales, 30 / scales, 40 / scales]])
    return {'boxes': box + shift, 'scores': np.array([0.01]), 'classes': np.array([1])}

  differences = comparison.verify('x.onnx', run, predict, detector, inputs, 0.05)
  assert len(differences) == 2 and all(one.small and one.detections == 2 for one in differences)
  assert asked == [0.0, 0.0] and detector.detection_generator.score_threshold == 0.05
  with pytest.raises(UserError, match=r'x.onnx differs from predict on image \d+, most in boxes.*it was not kept'):
    comparison.verify('x.onnx', lambda *inputs: run(*inputs, shift=9.0), predict, detector, inputs, 0.05)


def test_thresholds_and_existing_files(tmp_path):
  detector = Detector()
  assert comparison.threshold_of(detector, None) == 0.05 and comparison.threshold_of(detector, 0.0) == 0.0
  with pytest.raises(UserError, match='score_threshold = 1.5'):
    comparison.threshold_of(detector, 1.5)
  comparison.require_new(str(tmp_path / 'new'))
  with pytest.raises(UserError, match='exists already'):
    comparison.require_new(str(tmp_path))


def test_images_of_one_size():
  source = SyntheticSource(3, image_size=(40, 60), object_size=(10, 20))
  inputs = comparison.of_one_size(EvalInput(source, 1, Resize((64,), 96)), (50, 70))
  found = list(comparison.first_images(inputs, 2))
  assert [image.shape for image, _ in found] == [(50, 70, 3)] * 2
  assert all(batch.original_sizes.tolist() == [[50, 70]] for _, batch in found)
