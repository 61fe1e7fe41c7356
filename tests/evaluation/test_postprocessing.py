"""Detections in original pixels by hand, COCO's submission format, serialization."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rethink_tf.data.categories import Category
from rethink_tf.evaluation.postprocessing import ImageDetections, from_bytes, restore, submission, to_bytes

CATEGORIES = (Category(7, 'dog', (), ()), Category(3, 'person', ('nose', 'chin'), ()))


@pytest.fixture
def restored():
  """Two images of 50 x 40 and 100 x 200 pixels, and one that fills up the batch between them."""
  boxes = np.zeros([3, 6, 4], np.float32)
  boxes[0] = [[10, 20, 90, 100], [-4, 20, 300, 400], [10, 20, 90, 100], [10, 20, 90, 100], [10, 200, 90, 240],
              [20, 20, 20, 100]]
  boxes[1] = [1, 1, 2, 2]
  boxes[2, 3] = [5.0, 2.5, 10.001, 5.0]
  scores = np.float32([[0.75, 0.5, 0, 0.5, 0.5, 0.5], [1] * 6, [0, 0, 0, 0.25, 0, 0]])
  classes = np.ones([3, 6], np.int32)
  classes[0, 1], classes[0, 3], classes[2, 3] = 2, 0, 2
  keypoints = np.zeros([3, 6, 2, 3], np.float32)
  keypoints[0, 1], keypoints[2, 3] = [[9.5, 19.5, 3], [0, 0, 1]], [[6, 3, 2], [7, 4, 1]]
  masks = np.ones([3, 6, 28, 28], np.float32)
  masks[2, 3, :, 14:] = 0
  return restore('accurate', np.array([5, -1, 9]), np.float32([[2, 4], [1, 1], [0.5, 0.25]]),
                 np.int32([[50, 40], [9, 9], [100, 200]]), boxes, scores, classes, masks, keypoints)


def test_detections_in_original_pixels(restored):
  """Without empty slots, and boxes that are empty or outside of the image."""
  first, second = restored
  assert (first.image_id, second.image_id) == (5, 9)
  np.testing.assert_array_equal(first.boxes, [[5, 5, 45, 25], [0, 5, 50, 40]])
  np.testing.assert_allclose(second.boxes, [[10, 10, 20.002, 20]], atol=1e-5)
  assert first.scores.tolist() == [0.75, 0.5] and first.classes.tolist() == [1, 2] and second.classes.tolist() == [2]
  # Indices of pixel centres.
  np.testing.assert_array_equal(first.keypoints[1], [[4.5, 4.5, 3], [-0.25, -0.375, 1]])
  np.testing.assert_array_equal(second.keypoints[0], [[12.5, 13.5, 2], [14.5, 17.5, 1]])
  assert [one['size'] for one in first.masks + second.masks] == [[50, 40], [50, 40], [100, 200]]
  assert coco_mask.area(first.masks).tolist() == [40 * 20, 50 * 35]
  half = coco_mask.decode(second.masks[0])
  assert half[10:20, 10:15].all() and half.sum() == 50


def test_a_detector_of_boxes_alone():
  one, = restore('accurate', np.array([4]), np.ones([1, 2], np.float32), np.int32([[9, 9]]),
                 np.float32([[[1, 2, 3, 4]]]), np.float32([[1]]), np.int32([[1]]), None, None)
  assert one.masks is None and one.keypoints is None and one.boxes.tolist() == [[1, 2, 3, 4]]


def test_submission_is_that_of_coco(restored):
  found = submission(restored, CATEGORIES)
  assert [(one['image_id'], one['category_id'], one['score']) for one in found['box']] == [
    (5, 7, 0.75), (5, 3, 0.5), (9, 3, 0.25)]
  assert [one['bbox'] for one in found['box']] == [[5, 5, 20, 40], [5, 0, 35, 50], [10, 10, 10, 10.002]]
  assert [{**one, 'segmentation': None} for one in found['mask']] == [
    {'image_id': i, 'category_id': k, 'segmentation': None, 'score': score}
    for i, k, score in ((5, 7, 0.75), (5, 3, 0.5), (9, 3, 0.25))]
  assert [one['segmentation'] for one in found['mask']] == restored[0].masks + restored[1].masks
  assert found['keypoint'] == [  # of people alone; x before y
    {'image_id': 5, 'category_id': 3, 'keypoints': [4.5, 4.5, 3, -0.375, -0.25, 1], 'score': 0.5},
    {'image_id': 9, 'category_id': 3, 'keypoints': [13.5, 12.5, 2, 17.5, 14.5, 1], 'score': 0.25}]
  without = [one._replace(masks=None) for one in restored]
  assert submission(without, CATEGORIES).keys() == {'box', 'keypoint'}
  assert submission([one._replace(keypoints=None) for one in without], CATEGORIES).keys() == {'box'}
  assert submission(without, (CATEGORIES[0],) * 2).keys() == {'box'}


def test_from_bytes_inverts_to_bytes():
  rng = np.random.default_rng(0)
  masks = [{'size': [3, 4], 'counts': 'ab'}] * 2
  detections = [ImageDetections(7, rng.random((2, 4)), rng.random(2), np.array([1, 2]), masks, rng.random((2, 5, 3))),
                ImageDetections(8, np.zeros([0, 4]), np.zeros(0), np.zeros(0, np.int64), None)]
  received, unreadable = from_bytes(to_bytes(detections, [8]))
  assert unreadable == [8]
  for before, after in zip(detections, received, strict=True):
    for a, b in zip(before, after, strict=True):
      assert type(a) is type(b)
      np.testing.assert_array_equal(a, b)
