"""Target cells of keypoints and decoding of heat maps, against float64 NumPy and OpenCV's resizing."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.ops.heatmaps import decode_heatmaps, heatmap_targets

SIZE = 56


def reference_cells(keypoints, rois):
  """Detectron's rule, one point at a time."""
  cells, valid = np.zeros(keypoints.shape[:2], int), np.zeros(keypoints.shape[:2], bool)
  for n, (y0, x0, y1, x1) in enumerate(rois.astype(np.float64)):
    for p, (y, x, visibility) in enumerate(keypoints[n].astype(np.float64)):
      y, x = y + 0.5, x + 0.5
      if y1 <= y0 or x1 <= x0:
        continue
      row = SIZE - 1 if y == y1 else int(np.floor((y - y0) * SIZE / (y1 - y0)))
      column = SIZE - 1 if x == x1 else int(np.floor((x - x0) * SIZE / (x1 - x0)))
      if visibility > 0 and 0 <= row < SIZE and 0 <= column < SIZE:
        cells[n, p], valid[n, p] = row * SIZE + column, True
  return cells, valid


def some_rois(rng, number=40):
  low = rng.uniform(0, 200, (number, 2))
  return np.concatenate([low, low + rng.uniform(3, 150, (number, 2))], 1).astype(np.float32)


def test_targets_are_the_cells_of_the_reference():
  rng = np.random.default_rng(0)
  rois = some_rois(rng)
  points = rois[:, None, :2] + rng.uniform(-0.3, 1.3, (40, 7, 2)) * (rois[:, None, 2:] - rois[:, None, :2])
  keypoints = np.concatenate([points, rng.integers(0, 3, (40, 7, 1))], 2).astype(np.float32)
  expected, expected_valid = reference_cells(keypoints, rois)
  cells, valid = heatmap_targets(tf.constant(keypoints), tf.constant(rois))
  assert 0.2 < expected_valid.mean() < 0.8
  np.testing.assert_array_equal(valid, expected_valid)
  assert (cells.numpy() != expected).mean() < 0.01 and (cells.numpy()[~expected_valid] == 0).all()


def test_edges_belong_to_border_cells():
  roi = tf.constant([[10.0, 20.0, 66.0, 132.0]])
  corners = tf.constant([[[9.5, 19.5, 2.0], [65.5, 131.5, 1.0], [9.4, 19.5, 2.0], [65.5, 131.6, 2.0],
                          [30.0, 40.0, 0.0]]])
  cells, valid = heatmap_targets(corners, roi)
  np.testing.assert_array_equal(cells, [[0, SIZE * SIZE - 1, 0, 0, 0]])
  np.testing.assert_array_equal(valid, [[True, True, False, False, False]])
  assert not heatmap_targets(corners, tf.zeros([1, 4]))[1].numpy().any()  # an empty RoI, as in padding


def reference_decoding(maps, boxes):
  """The maximum after resizing with OpenCV, as in Detectron."""
  found = []
  for each, (y0, x0, y1, x1) in zip(maps, boxes.astype(np.float64), strict=True):
    extent = np.maximum([y1 - y0, x1 - x0], 1)
    height, width = np.ceil(extent).astype(int)
    for one in each:
      resized = cv2.resize(one.astype(np.float64), (int(width), int(height)), interpolation=cv2.INTER_CUBIC)
      position = np.array(np.unravel_index(resized.argmax(), resized.shape))
      point = (position + 0.5) * extent / [height, width] + [y0, x0] - 0.5
      found.append([*point, 1 / np.exp(one - resized.max()).sum()])
  return np.reshape(found, [*maps.shape[:2], 3])


def smooth(rng, number, points):
  return np.stack([[cv2.GaussianBlur(rng.normal(size=(SIZE, SIZE)), (0, 0), 2) * 30 for _ in range(points)]
                   for _ in range(number)])


@pytest.mark.parametrize('limit', [None, (200, 200)])
def test_decoding_equals_opencv(limit):
  rng = np.random.default_rng(1)
  boxes = np.concatenate([some_rois(rng, 12), [[5, 5, 5.3, 90], [5, 5, 20, 5], [0, 0, 56, 56]]]).astype(np.float32)
  maps = smooth(rng, len(boxes), 3)
  decode = tf.function(lambda maps, boxes: decode_heatmaps(maps, boxes, limit), autograph=False,
                       jit_compile=limit is not None)
  ours = decode(tf.constant(maps, tf.float32), tf.constant(boxes)).numpy()
  theirs = reference_decoding(maps, boxes)
  near = np.abs(ours - theirs)[..., :2].max(-1) < 1e-2  # another pixel may have the same maximum
  assert near.mean() > 0.97
  np.testing.assert_allclose(ours[..., 2], theirs[..., 2], rtol=1e-3)


def test_no_boxes_give_no_keypoints():
  assert decode_heatmaps(tf.zeros([0, 4, SIZE, SIZE]), tf.zeros([0, 4])).shape == (0, 4, 3)


def test_decoding_inverts_targets():
  """A map with a high logit at the target cell gives the keypoint, within that cell or a pixel."""
  rng = np.random.default_rng(2)
  rois = some_rois(rng)
  rois[:, 2:] += SIZE  # a smaller box would skip cells
  points = rois[:, None, :2] + rng.uniform(0.02, 0.98, (40, 3, 2)) * (rois[:, None, 2:] - rois[:, None, :2]) - 0.5
  keypoints = tf.constant(np.concatenate([points, np.full((40, 3, 1), 2)], 2), tf.float32)
  cells, valid = heatmap_targets(keypoints, tf.constant(rois))
  assert valid.numpy().all()
  maps = 20 * tf.reshape(tf.one_hot(cells, SIZE * SIZE), [40, 3, SIZE, SIZE])
  found = decode_heatmaps(maps, tf.constant(rois)).numpy()
  cell = (rois[:, 2:] - rois[:, :2])[:, None] / SIZE
  assert (np.abs(found[..., :2] - points) <= np.maximum(cell, 1.0) * 1.01).all()
  assert (found[..., 2] > 0).all() and np.median(found[..., 2]) > 0.1


def test_a_flipped_map_gives_the_flipped_keypoint():
  rng = np.random.default_rng(3)
  maps = smooth(rng, 6, 2)
  boxes, width = some_rois(rng, 6), 400
  flipped = np.stack([boxes[:, 0], width - boxes[:, 3], boxes[:, 2], width - boxes[:, 1]], 1)
  found = decode_heatmaps(tf.constant(maps, tf.float32), tf.constant(boxes)).numpy()
  theirs = decode_heatmaps(tf.constant(maps[..., ::-1].copy(), tf.float32), tf.constant(flipped, tf.float32)).numpy()
  theirs[..., 1] = width - 1 - theirs[..., 1]  # x' = W - 1 - x of pixel centres
  np.testing.assert_allclose(found, theirs, rtol=1e-3, atol=1e-2)
