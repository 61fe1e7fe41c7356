"""RoIAlign against Detectron's loops in float64 NumPy: values, gradients, both grids, boxes across the border."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.doctor.references import roi_align as reference
from rethink_tf.errors import UserError
from rethink_tf.ops import roi_align
from rethink_tf.ops.boxes import area

CHANNELS, SIZE = 5, (128, 192)


def some_boxes(rng):
  height, width = SIZE
  corners = rng.uniform(-0.1, 1.1, (2, 10, 2, 2)) * [height, width]
  random = np.concatenate([corners.min(axis=2), corners.max(axis=2)], axis=-1)
  border = np.array([
    [0, 0, height, width],  # the whole image
    [-64, -64, height + 64, width + 64],  # larger than the image
    [height - 8, width - 8, height, width],  # a corner
    [height + 40, width + 40, height + 60, width + 70],  # outside
    [-40, -60, -20, -30],
    [50, 60, 50, 60],  # empty
    [50.25, 60.5, 50.5, 61.25],  # smaller than a cell
    [0, 0, 0, 0],  # padding
    [3, 100, 5, 190],  # flat
  ])
  return np.concatenate([random, np.stack([border, border[::-1]])], axis=1).astype(np.float32)


@functools.cache
def inputs():
  rng = np.random.default_rng(0)
  features = [rng.normal(size=(2, SIZE[0] // stride, SIZE[1] // stride, CHANNELS)) for stride in (4, 8, 16, 32)]
  return features, some_boxes(rng)


def compute(features, boxes, size, ratio, aligned, method, upstream):
  features = [tf.constant(f, tf.float32) for f in features]
  with tf.GradientTape() as tape:
    tape.watch(features)
    pooled = roi_align.roi_align(roi_align.flatten(features), tf.constant(boxes), size, ratio, aligned, method)
    total = tf.reduce_sum(pooled * tf.constant(upstream, tf.float32))
  return pooled.numpy(), [g.numpy() for g in tape.gradient(total, features, unconnected_gradients='zero')]


@pytest.mark.parametrize('size', [1, 3])
@pytest.mark.parametrize('ratio', [0, 1, 2])
@pytest.mark.parametrize('aligned', [False, True])
def test_all_methods_equal_the_loops_of_detectron(size, ratio, aligned):
  features, boxes = inputs()
  upstream = np.random.default_rng(1).normal(size=(*boxes.shape[:2], size, size, CHANNELS))
  expected, gradients = reference(features, boxes, size, ratio, aligned, upstream)
  for method in ('csr', 'gather', 'taps') if ratio else ('csr',):
    pooled, ours = compute(features, boxes, size, ratio, aligned, method, upstream)
    np.testing.assert_allclose(pooled, expected, atol=1e-4, err_msg=method)
    for gradient, golden in zip(ours, gradients, strict=True):
      np.testing.assert_allclose(gradient, golden, atol=1e-4, err_msg=method)


def test_a_linear_map_is_sampled_exactly():
  """In the interior, a bin's mean over a plane is its value at the bin's centre."""
  y, x = np.mgrid[:64, :64].astype(np.float32)
  plane = tf.constant((2 * y - 3 * x + 1)[None, :, :, None])
  box = [40.0, 60.0, 150.0, 170.0]  # P2: cells of 4 pixels
  for aligned in (False, True):
    pooled = roi_align.roi_align(roi_align.flatten([plane]), tf.constant([[box]]), 5, aligned=aligned)[0, 0, :, :, 0]
    centres = (np.arange(5) + 0.5) / 5 * 110 / 4 - (0.5 if aligned else 0)
    expected = 2 * (10 + centres)[:, None] - 3 * (15 + centres)[None] + 1
    np.testing.assert_allclose(pooled, expected, atol=1e-4)


@pytest.mark.parametrize('dtype', [tf.float32, tf.bfloat16])
def test_gradients_are_bit_identical(dtype):
  """512 overlapping boxes: with a data race, sums would differ between runs."""
  rng = np.random.default_rng(2)
  maps = tf.cast(rng.normal(size=(1, 64, 64, 16)), dtype)
  corners = rng.uniform(60, 100, (1, 512, 2))
  boxes = tf.constant(np.concatenate([corners, corners + rng.uniform(50, 110, (1, 512, 2))], -1), tf.float32)
  upstream = tf.cast(rng.normal(size=(1, 512, 7, 7, 16)), dtype)

  @tf.function
  def gradient():
    with tf.GradientTape() as tape:
      tape.watch(maps)
      pooled = roi_align.roi_align(roi_align.flatten([maps]), boxes, 7)
    return pooled, tape.gradient(pooled, maps, upstream)

  first = gradient()
  assert first[0].dtype == first[1].dtype == dtype
  for _ in range(5):
    for a, b in zip(first, gradient(), strict=True):
      np.testing.assert_array_equal(a, b)


def test_a_box_depends_only_on_its_image():
  features, boxes = inputs()
  features = [tf.constant(f, tf.float32) for f in features]
  together = roi_align.roi_align(roi_align.flatten(features), tf.constant(boxes), 3)
  alone = roi_align.roi_align(roi_align.flatten([f[1:] for f in features]), tf.constant(boxes[1:]), 3)
  np.testing.assert_array_equal(together[1:], alone)


def test_levels_follow_the_area_of_a_box():
  def square(side):
    return [10.0, 10.0, 10.0 + side, 10.0 + side]
  sides = {1: 2, 111: 2, 113: 3, 223: 3, 225: 4, 447: 4, 449: 5, 2000: 5, 0: 2}
  levels = roi_align.assign_levels(tf.constant([square(side) for side in sides]), 2, 5)
  np.testing.assert_array_equal(levels, list(sides.values()))
  long = tf.constant([[0.0, 0.0, 100.0, 100.0 * 224**2 / 1e4 + 1]])  # the area counts, not the sides
  assert float(area(long)[0]) > 224**2 and int(roi_align.assign_levels(long, 2, 5)[0]) == 4


def test_dynamic_shapes_and_unknown_methods():
  features, boxes = inputs()
  signature = [tf.TensorSpec([None, None, None, CHANNELS])] * 4, tf.TensorSpec([None, None, 4])

  def eager(maps, rois):
    return roi_align.roi_align(roi_align.flatten(maps), rois, 3)

  pool = tf.function(eager, input_signature=signature)
  maps = [tf.constant(f, tf.float32) for f in features]
  np.testing.assert_allclose(pool(maps, tf.constant(boxes)), eager(maps, tf.constant(boxes)), atol=1e-6)
  adaptive = tf.function(lambda maps, rois: roi_align.roi_align(roi_align.flatten(maps), rois, 3, sampling_ratio=0),
                         input_signature=signature)
  assert adaptive(maps, tf.constant(boxes[:, :0])).shape == (2, 0, 3, 3, CHANNELS)
  with pytest.raises(UserError, match='sampling_ratio = 0'):
    roi_align.roi_align(roi_align.flatten(maps), tf.constant(boxes), 3, sampling_ratio=0, method='gather')
  assert pool(maps, tf.constant(boxes[:, :0])).shape == (2, 0, 3, 3, CHANNELS)
  with pytest.raises(ValueError, match="'csr', 'gather' or 'taps', not 'crop'"):
    roi_align.roi_align(roi_align.flatten(maps), tf.constant(boxes), 3, method='crop')
