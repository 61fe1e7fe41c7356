"""Box geometry against float64 NumPy and tf-models-official; decoding inverts encoding."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.ops import boxes as box_ops

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def random_boxes(rng, *shape):
  centres, sizes = rng.uniform(0, 800, (*shape, 2)), np.exp(rng.uniform(0, 6, (*shape, 2)))
  return np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=-1).astype(np.float32)


def reference_iou(a, b):
  """IoU of one pair in float64."""
  height = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
  width = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
  areas = [max(0.0, y1 - y0) * max(0.0, x1 - x0) for y0, x0, y1, x1 in (a, b)]
  union = sum(areas) - height * width
  return height * width / union if union else 0.0


def reference_encode(box, reference, weights):
  (cy, cx, h, w), (ry, rx, rh, rw) = (((y0 + y1) / 2, (x0 + x1) / 2, y1 - y0, x1 - x0)
                                      for y0, x0, y1, x1 in (np.float64(box), np.float64(reference)))
  return np.array([(cy - ry) / rh, (cx - rx) / rw, np.log(h / rh), np.log(w / rw)]) * weights


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def test_iou_equals_float64(rng):
  a, b = random_boxes(rng, 2, 30), random_boxes(rng, 2, 20)
  b[:, :5] = a[:, :5]  # equal
  b[:, 5] = a[:, 5] + [0, 1000, 0, 1000]  # disjoint
  b[:, 6, :2], b[:, 6, 2:] = a[:, 6, 2:], a[:, 6, 2:] + 10  # touching in one corner
  b[:, 7] = 0  # an empty slot
  a[:, 8] = [10, 10, 5, 5]  # inverted
  overlaps = box_ops.iou(tf.constant(a), tf.constant(b)).numpy()
  expected = [[[reference_iou(np.float64(p), np.float64(q)) for q in b[i]] for p in a[i]] for i in range(2)]
  np.testing.assert_allclose(overlaps, expected, atol=2e-6)
  np.testing.assert_allclose(overlaps[0, :5, :5].diagonal(), 1.0, atol=1e-6)
  assert not overlaps[:, 5, 5].any() and not overlaps[:, 6, 6].any() and not overlaps[:, :, 7].any()
  np.testing.assert_array_equal(box_ops.iou(tf.constant(b), tf.constant(a)), overlaps.transpose(0, 2, 1))


def test_iou_of_anchors_shared_by_all_images(rng):
  anchors, boxes = random_boxes(rng, 7), random_boxes(rng, 3, 4)
  shared = box_ops.iou(tf.constant(anchors)[None], tf.constant(boxes))
  for i in range(3):
    np.testing.assert_array_equal(shared[i], box_ops.iou(tf.constant(anchors), tf.constant(boxes[i])))


@pytest.mark.parametrize('weights', [(1.0, 1.0, 1.0, 1.0), WEIGHTS])
def test_encoding_and_decoding(rng, weights):
  boxes, references = random_boxes(rng, 200), random_boxes(rng, 200)
  deltas = box_ops.encode(tf.constant(boxes), tf.constant(references), weights)
  expected = [reference_encode(b, r, weights) for b, r in zip(boxes, references, strict=True)]
  np.testing.assert_allclose(deltas, expected, rtol=1e-4, atol=1e-4)
  near = np.abs(np.array(expected)[:, 2:] / weights[2:]).max(axis=1) < box_ops.MAX_LOG_SCALE
  assert near.sum() > 100
  decoded = box_ops.decode(deltas, tf.constant(references), weights).numpy()
  np.testing.assert_allclose(decoded[near], boxes[near], rtol=1e-4, atol=1e-2)
  np.testing.assert_array_equal(box_ops.encode(tf.constant(boxes), tf.constant(boxes), weights), np.zeros([200, 4]))


def test_encoding_equals_official(rng):
  from official.vision.ops import box_ops as official
  boxes, references = tf.constant(random_boxes(rng, 2, 50)), tf.constant(random_boxes(rng, 2, 50))
  deltas = box_ops.encode(boxes, references, WEIGHTS)
  np.testing.assert_allclose(deltas, official.encode_boxes(boxes, references, WEIGHTS), rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(box_ops.decode(deltas, references, WEIGHTS),
                             official.decode_boxes(deltas, references, WEIGHTS), rtol=1e-4, atol=1e-2)
  np.testing.assert_allclose(box_ops.iou(boxes, references), official.bbox_overlap(boxes, references), atol=2e-6)


def test_decoded_sizes_are_bounded():
  reference = tf.constant([[0.0, 0.0, 16.0, 32.0]])
  box = box_ops.decode(tf.constant([[0.0, 0.0, 50.0, 100.0]]), reference)[0].numpy()
  np.testing.assert_allclose(box[2:] - box[:2], [16 * 62.5, 32 * 62.5], rtol=1e-5)  # 1000 / 16
  assert np.isfinite(box_ops.decode(tf.fill([1, 4], 1e4), reference)).all()


def test_empty_boxes_are_encoded_as_zero():
  box, empty = tf.constant([[1.0, 2.0, 3.0, 4.0]]), tf.zeros([1, 4])
  for deltas in (box_ops.encode(box, empty), box_ops.encode(empty, box)):
    np.testing.assert_array_equal(deltas, np.zeros([1, 4]))
  np.testing.assert_array_equal(box_ops.decode(tf.ones([1, 4]), empty), np.zeros([1, 4]))
  for flat in (tf.constant([[1.0, 2.0, 1.0, 4.0]]), tf.constant([[1.0, 2.0, 3.0, 2.0]])):  # on one axis
    for deltas in (box_ops.encode(box, flat), box_ops.encode(flat, box)):
      np.testing.assert_array_equal(deltas, np.zeros([1, 4]))


def test_boxes_smaller_than_a_pixel_are_no_empty_ones():
  boxes = np.float32([[1, 2, 1.5, 9], [1, 2, 8, 2.25], [3, 3, 3.5, 3.125]])
  for one, other in ((boxes, boxes[::-1]), (boxes[::-1], boxes)):
    expected = [reference_encode(b, r, np.ones(4)) for b, r in zip(one, other, strict=True)]
    np.testing.assert_allclose(box_ops.encode(tf.constant(one), tf.constant(other)), expected, rtol=1e-5, atol=1e-6)


def test_clip_and_area():
  boxes = tf.constant([[[-5.0, -5.0, 50.0, 300.0], [120.0, 10.0, 130.0, 20.0]], [[-5.0, -5.0, 50.0, 300.0]] * 2])
  clipped = box_ops.clip(boxes, tf.constant([[100.0, 200.0], [40.0, 400.0]]))
  np.testing.assert_array_equal(clipped, [[[0, 0, 50, 200], [100, 10, 100, 20]], [[0, 0, 40, 300]] * 2])
  np.testing.assert_array_equal(box_ops.area(clipped), [[10000, 0], [12000, 12000]])
  classes = tf.tile(boxes[:, :, None], [1, 1, 3, 1])  # [B, N, K, 4]
  np.testing.assert_array_equal(box_ops.clip(classes, tf.constant([[100.0, 200.0], [40.0, 400.0]]))[:, :, 1], clipped)
