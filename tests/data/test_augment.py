"""Flip and resize, and the keyed randomness that decides on them."""

import gin
import numpy as np
import pytest

from rethink_tf.data import augment
from rethink_tf.data.augment import Resize
from rethink_tf.data.synthetic import SyntheticSource
from rethink_tf.errors import UserError


@pytest.fixture(scope='module')
def example():
  return SyntheticSource(num_images=8, max_objects=8).load(5)


ORDER = augment.flip_order(('top', 'left', 'right', 'bottom'))


def test_flip_order():
  names = ('nose', 'left_eye', 'right_eye', 'left_ear', 'right_ear')
  assert augment.flip_order(names).tolist() == [0, 2, 1, 4, 3]
  assert augment.flip_order(()).tolist() == []
  assert augment.flip_order(('left_only', 'tail')).tolist() == [0, 1]  # no partner: stays


def test_two_flips_are_none(example):
  twice = augment.flip(augment.flip(example, ORDER), ORDER)
  for before, after in zip(example, twice, strict=True):
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert after.dtype == before.dtype


def test_a_flip_mirrors_everything_together(example):
  flipped = augment.flip(example, ORDER)
  width = example.image.shape[1]
  np.testing.assert_array_equal(flipped.image, example.image[:, ::-1])
  for old, new, old_mask, new_mask in zip(example.boxes.astype(int), flipped.boxes.astype(int), example.masks,
                                          flipped.masks, strict=True):
    np.testing.assert_array_equal(flipped.image[new[0]:new[2], new[1]:new[3]],
                                  example.image[old[0]:old[2], old[1]:old[3]][:, ::-1])
    np.testing.assert_array_equal(new_mask, old_mask[:, ::-1])
  for old, new in zip(example.keypoints, flipped.keypoints, strict=True):
    for partner, point in zip(ORDER, new, strict=True):
      y, x, visibility = old[partner]
      np.testing.assert_array_equal(point, [y, width - 1 - x, visibility] if visibility else [0, 0, 0])
      if visibility:  # the same pixel
        np.testing.assert_array_equal(flipped.image[int(point[0]), int(point[1])], example.image[int(y), int(x)])


def test_left_of_the_mirror_is_left(example):
  """Landmarks are extreme points, so that after a flip 'left' must again be the leftmost."""
  keypoints = augment.flip(example, ORDER).keypoints
  seen = (keypoints[:, 1, 2] > 0) & (keypoints[:, 2, 2] > 0)
  assert seen.any() and np.all(keypoints[seen, 1, 1] <= keypoints[seen, 2, 1])


def test_resize_there_and_back(example):
  scale = np.array([2.5, 1.75])
  np.testing.assert_allclose(
      augment.resize_boxes(augment.resize_boxes(example.boxes, scale), 1 / scale), example.boxes, rtol=1e-6)
  keypoints = augment.resize_keypoints(augment.resize_keypoints(example.keypoints, scale), 1 / scale)
  np.testing.assert_allclose(keypoints, example.keypoints, atol=1e-4)
  large = np.zeros((400, 600, 3), np.uint8)
  augment.resize_image(example.image, large)
  back = np.zeros_like(example.image)
  augment.resize_image(large, back)
  assert np.abs(back.astype(int) - example.image).mean() < 4


def test_flip_and_resize_commute(example):
  scale = np.array([1.5, 2.0])
  width = example.image.shape[1]
  np.testing.assert_allclose(
      augment.flip_boxes(augment.resize_boxes(example.boxes, scale), 2 * width),
      augment.resize_boxes(augment.flip_boxes(example.boxes, width), scale), atol=1e-3)
  np.testing.assert_allclose(
      augment.flip_keypoints(augment.resize_keypoints(example.keypoints, scale), 2 * width, ORDER),
      augment.resize_keypoints(augment.flip_keypoints(example.keypoints, width, ORDER), scale), atol=1e-3)


def test_resize_image_writes_into_a_window(example):
  import cv2
  canvas = np.full((224, 256, 3), 7, np.uint8)
  augment.resize_image(example.image, canvas[:200, :190])
  np.testing.assert_array_equal(canvas[:200, :190], cv2.resize(example.image, (190, 200)))
  assert np.all(canvas[200:] == 7) and np.all(canvas[:, 190:] == 7)
  same = np.zeros_like(example.image)
  augment.resize_image(example.image, same)
  np.testing.assert_array_equal(same, example.image)


def test_no_instances():
  nothing = np.zeros((0, 4), np.float32)
  assert augment.flip_boxes(nothing, 10).shape == augment.resize_boxes(nothing, np.ones(2)).shape == (0, 4)
  points = np.zeros((0, 4, 3), np.float32)
  assert augment.flip_keypoints(points, 10, ORDER).shape == augment.resize_keypoints(points, np.ones(2)).shape
  no_keypoints = np.zeros((3, 0, 3), np.float32)
  assert augment.flip_keypoints(no_keypoints, 10, augment.flip_order(())).shape == (3, 0, 3)


def test_chance_is_uniform_and_independent():
  ids = np.arange(20_000)
  draws = {(purpose, seed, epoch): augment.keyed_uniform(seed, purpose, np.full(len(ids), epoch), ids)
           for purpose in ('flip', 'scale') for seed in (0, 1) for epoch in (0, 1)}
  for values in draws.values():
    assert 0 <= values.min() and values.max() < 1
    counts = np.histogram(values, 20, (0, 1))[0]
    assert (((counts - 1000) ** 2) / 1000).sum() < 50  # chi-squared with 19 degrees of freedom
  correlation = np.corrcoef(np.stack(list(draws.values())))
  assert np.abs(correlation - np.eye(len(draws))).max() < 0.035  # 5 sigma


def test_chance_depends_on_the_key_alone():
  ids, epochs = np.array([5, 9, -1]), np.array([3, 3, 0])
  together = augment.keyed_uniform(7, 'flip', epochs, ids)
  alone = [augment.keyed_uniform(7, 'flip', epochs[i:i + 1], ids[i:i + 1])[0] for i in range(3)]
  np.testing.assert_array_equal(together, alone)
  seeds = augment.keyed_seeds(7, epochs, ids)
  assert seeds.shape == (3, 2) and seeds.dtype == np.int32
  assert len(np.unique(augment.keyed_seeds(0, 0, np.arange(100_000)), axis=0)) == 100_000
  # Golden: a run must find its own order again after an upgrade.
  assert augment.keyed_bits(1, 'flip', np.array([2]), np.array([3])).tolist() == [8954059479541566549]


def test_resize_draws():
  sizes = np.array([[480, 640]] * 1000)
  uniform = augment.keyed_uniform(0, 'scale', np.zeros(1000), np.arange(1000))
  assert np.unique(Resize().sizes(sizes, uniform), axis=0).tolist() == [[800, 1067]]
  jitter = Resize(short_side=(640, 800)).sizes(sizes, uniform)
  assert set(jitter[:, 0]) == {640, 800} and 400 < (jitter[:, 0] == 640).sum() < 600
  anything = Resize(short_side=(640, 800), from_range=True).sizes(sizes, uniform)
  assert anything[:, 0].min() == 640 and anything[:, 0].max() == 800 and len(set(anything[:, 0])) == 161
  assert Resize(short_side=(640, 800)).largest_sizes(sizes)[0].tolist() == [800, 1067]
  assert Resize(short_side=128, max_side=160).short_sides == (128,)


@pytest.mark.parametrize('arguments', [dict(short_side=()), dict(short_side=(0,)), dict(short_side=1400)])
def test_bad_sizes_end_in_one_line(arguments):
  with pytest.raises(UserError, match='short_side'):
    Resize(**arguments)


def test_gin_binds_resize():
  gin.parse_config('Resize.short_side = (320, 400)\nResize.max_side = 640')
  try:
    assert gin.get_configurable('Resize')() == Resize((320, 400), 640)
  finally:
    gin.clear_config()
