"""Flip, resize, cropping and the keyed random numbers."""

import dataclasses

import gin
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rethink_tf.data import augment, keyed_random
from rethink_tf.data.augment import LargeScaleJitter, Resize
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.data.keypoint_pairs import flip_order
from rethink_tf.errors import UserError
from rethink_tf.ops.masks import paste
from rethink_tf.structures import Example


@pytest.fixture(scope='module')
def example():
  return SyntheticSource(num_images=8, max_objects=8).load(5)


ORDER = flip_order(('top', 'left', 'right', 'bottom'))


def test_two_flips_are_the_identity(example):
  twice = augment.flip(augment.flip(example, ORDER), ORDER)
  for before, after in zip(example, twice, strict=True):
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert after.dtype == before.dtype


def test_flip_is_consistent(example):
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


def test_flip_swaps_left_and_right_keypoints(example):
  """Keypoints are extreme points, so that 'left' must be the leftmost one after a flip too."""
  keypoints = augment.flip(example, ORDER).keypoints
  seen = (keypoints[:, 1, 2] > 0) & (keypoints[:, 2, 2] > 0)
  assert seen.any() and np.all(keypoints[seen, 1, 1] <= keypoints[seen, 2, 1])


def test_resize_is_invertible(example):
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
  padded = np.full((224, 256, 3), 7, np.uint8)
  augment.resize_image(example.image, padded[:200, :190])
  np.testing.assert_array_equal(padded[:200, :190], cv2.resize(example.image, (190, 200)))
  assert np.all(padded[200:] == 7) and np.all(padded[:, 190:] == 7)
  same = np.zeros_like(example.image)
  augment.resize_image(example.image, same)
  np.testing.assert_array_equal(same, example.image)


def test_no_instances():
  nothing = np.zeros((0, 4), np.float32)
  assert augment.flip_boxes(nothing, 10).shape == augment.resize_boxes(nothing, np.ones(2)).shape == (0, 4)
  points = np.zeros((0, 4, 3), np.float32)
  assert augment.flip_keypoints(points, 10, ORDER).shape == augment.resize_keypoints(points, np.ones(2)).shape
  no_keypoints = np.zeros((3, 0, 3), np.float32)
  assert augment.flip_keypoints(no_keypoints, 10, flip_order(())).shape == (3, 0, 3)


def test_keyed_numbers_are_uniform_and_independent():
  ids = np.arange(20_000)
  draws = {(purpose, seed, epoch): keyed_random.keyed_uniform(seed, purpose, np.full(len(ids), epoch), ids)
           for purpose in ('flip', 'scale') for seed in (0, 1) for epoch in (0, 1)}
  for values in draws.values():
    assert 0 <= values.min() and values.max() < 1
    counts = np.histogram(values, 20, (0, 1))[0]
    assert (((counts - 1000) ** 2) / 1000).sum() < 50  # chi-squared with 19 degrees of freedom
  correlation = np.corrcoef(np.stack(list(draws.values())))
  assert np.abs(correlation - np.eye(len(draws))).max() < 0.035  # 5 sigma


def test_keyed_numbers_depend_on_the_key_only():
  ids, epochs = np.array([5, 9, -1]), np.array([3, 3, 0])
  together = keyed_random.keyed_uniform(7, 'flip', epochs, ids)
  alone = [keyed_random.keyed_uniform(7, 'flip', epochs[i:i + 1], ids[i:i + 1])[0] for i in range(3)]
  np.testing.assert_array_equal(together, alone)
  seeds = keyed_random.keyed_seeds(7, epochs, ids)
  assert seeds.shape == (3, 2) and seeds.dtype == np.int32
  assert len(np.unique(keyed_random.keyed_seeds(0, 0, np.arange(100_000)), axis=0)) == 100_000
  # Golden: the order of a run must survive an upgrade.
  assert keyed_random.keyed_bits(1, 'flip', np.array([2]), np.array([3])).tolist() == [8954059479541566549]


def test_resize_samples_sizes():
  sizes = np.array([[480, 640]] * 1000)
  uniform = keyed_random.keyed_uniform(0, 'scale', np.zeros(1000), np.arange(1000))
  assert np.unique(Resize().sizes(sizes, uniform), axis=0).tolist() == [[800, 1067]]
  jitter = Resize(short_side=(640, 800)).sizes(sizes, uniform)
  assert set(jitter[:, 0]) == {640, 800} and 400 < (jitter[:, 0] == 640).sum() < 600
  anything = Resize(short_side=(640, 800), from_range=True).sizes(sizes, uniform)
  assert anything[:, 0].min() == 640 and anything[:, 0].max() == 800 and len(set(anything[:, 0])) == 161
  assert Resize(short_side=(640, 800)).largest_sizes(sizes)[0].tolist() == [800, 1067]
  assert Resize(short_side=128, max_side=160).short_sides == (128,)
  assert Resize(short_side=1, max_side=1).sizes(sizes[:1], uniform[:1]).tolist() == [[1, 1]]  # the smallest
  assert Resize(aspects=(1.3333,)).padded_shapes.tolist() == [[800, 1088], [1088, 800], [800, 1344], [1344, 800]]
  half = Resize(short_side=(640, 800), scale=0.5)
  assert half == Resize(short_side=(320, 400), max_side=666) == dataclasses.replace(half)


@pytest.mark.parametrize('arguments, words', [
  (dict(short_side=()), 'Resize: short_side is'), (dict(short_side=(0,)), 'Resize: short_side is'),
  (dict(short_side=1400), 'and max_side 1333'), (dict(scale=0.0), 'Resize.scale = 0.0: use a factor'),
  (dict(scale=800.0), 'Resize.scale = 800.0: use a factor'), (dict(scale=0.0001), 'Resize: short_side is'),
  (dict(aspects=(0.75,)), 'Resize.aspects = ')])
def test_invalid_sizes(arguments, words):
  with pytest.raises(UserError, match=words):
    Resize(**arguments)


def test_gin_binds_resize():
  gin.parse_config('Resize.short_side = (320, 400)\nResize.max_side = 640')
  try:
    assert gin.get_configurable('Resize')() == Resize((320, 400), 640)
  finally:
    gin.clear_config()


def pixels(masks, boxes, height, width):
  """Paste masks [n, 112, 112] into their boxes [n, 4] -> bool [n, height, width]."""
  rles = paste(masks.astype(np.float32), boxes, height, width)
  return np.stack([coco_mask.decode(rle) for rle in rles]).astype(bool)


@pytest.mark.parametrize('tighten', [False, True])
@pytest.mark.parametrize('low, high', [((30.3, 20.7), (80.1, 95.2)), ((0, 60.5), (80, 150)), ((41, 33), (110, 200))])
def test_crop_is_consistent(example, low, high, tighten):
  """Pasted masks of cropped instances equal cropped pasted masks, at eight times the resolution."""
  low, high = np.array(low, float), np.minimum(high, example.image.shape[:2])
  scale = 8
  cropped = augment.crop_instances(example, low, high, tighten)
  assert 0 < len(cropped.boxes) <= len(example.boxes)
  whole = pixels(example.masks, scale * example.boxes.astype(float), *(scale * np.array(example.image.shape[:2])))
  top, left, bottom, right = np.round(scale * np.concatenate([low, high])).astype(int)
  expected = whole[:, top:bottom, left:right]
  seen = expected.any((1, 2))
  shift = np.concatenate([low, low])
  found = pixels(cropped.masks, scale * cropped.boxes.astype(float), bottom - top, right - left)
  np.testing.assert_array_equal(cropped.classes, example.classes[seen])
  boxes = example.boxes[seen].astype(float)
  for mask, truth, box, old in zip(found, expected[seen], cropped.boxes, boxes, strict=True):
    assert (mask ^ truth).sum() <= 0.03 * truth.sum() + 2 * scale * sum(np.ptp(np.nonzero(truth), axis=1))
    assert (mask & truth).sum() / (mask | truth).sum() > 0.8
    clipped = np.concatenate([np.maximum(old[:2], low), np.minimum(old[2:], high)]) - shift
    if np.all(clipped + shift == old):
      np.testing.assert_allclose(box, clipped, atol=1e-4)
    elif tighten:
      rows, columns = (np.flatnonzero(truth.any(axis)) for axis in (1, 0))
      np.testing.assert_allclose(box * scale, [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], atol=scale)
      assert np.all(box[:2] >= clipped[:2] - 1e-4) and np.all(box[2:] <= clipped[2:] + 1e-4)
    else:
      np.testing.assert_allclose(box, clipped, atol=1e-4)


def test_crop_of_keypoints(example):
  low, high = np.array([30.0, 20.0]), np.array([90.0, 100.0])
  cropped = augment.crop_instances(example, low, high, True)
  kept = [i for i, box in enumerate(example.boxes) if np.all(np.minimum(box[2:], high) > np.maximum(box[:2], low))]
  assert len(kept) == len(cropped.boxes)
  for before, after in zip(example.keypoints[kept], cropped.keypoints, strict=True):
    for (y, x, visibility), point in zip(before, after, strict=True):
      inside = visibility > 0 and 30 <= y + 0.5 < 90 and 20 <= x + 0.5 < 100
      np.testing.assert_allclose(point, [y - 30, x - 20, visibility] if inside else [0, 0, 0])


def test_a_quarter_of_a_mask_has_each_cell_twice():
  """At twice the resolution a point between cells lies three quarters in one of them: no mask can shift."""
  mask = np.random.default_rng(0).integers(0, 2, (112, 112), np.uint8)
  for top, left in ((0, 0), (56, 0), (17, 31), (56, 56)):
    part = mask[top:top + 56, left:left + 56]
    found = augment.crop_mask(mask, np.array([top, left, top + 56, left + 56], float))[2:-2, 2:-2]
    np.testing.assert_array_equal(found, part.repeat(2, 0).repeat(2, 1)[2:-2, 2:-2])
  np.testing.assert_array_equal(augment.crop_mask(mask, np.array([0.0, 0, 112, 112])), mask)


def test_keypoints_at_the_edges_of_a_crop():
  """They are indices of pixel centres: inside from half a pixel before the window to half a pixel before its end."""
  values, inside = [9.25, 9.5, 14.0, 19.25, 19.5], [False, True, True, True, False]
  points = np.float32([[[y, 15, 2] for y in values] + [[15, x, 1] for x in values]])
  example = Example(np.zeros((40, 40, 3), np.uint8), np.float32([[0, 0, 40, 40]]), np.int32([1]),
                    np.ones((1, 112, 112), np.uint8), points)
  found = augment.crop_instances(example, np.array([10.0, 10.0]), np.array([20.0, 20.0]), True).keypoints[0]
  expected = np.where(np.tile(inside, 2)[:, None], points[0] - [10, 10, 0], 0)
  np.testing.assert_array_equal(found, expected)


def test_crop_of_the_whole_image_changes_nothing(example):
  whole = augment.crop_instances(example, np.zeros(2), np.array(example.image.shape[:2], float), True)
  for name in ('boxes', 'classes', 'masks', 'keypoints'):
    np.testing.assert_array_equal(getattr(whole, name), getattr(example, name))


def test_invisible_objects_are_dropped():
  """One outside the window, one with a corner of its box in the window but no pixel of the object."""
  ring = np.ones((112, 112), np.uint8)
  ring[:60, :60] = 0
  boxes = np.float32([[50, 50, 90, 90], [0, 0, 10, 10]])
  example = Example(np.zeros((100, 100, 3), np.uint8), np.concatenate([boxes, boxes[:1]]), np.int32([1, 2, 3]),
                    np.stack([ring, np.ones_like(ring), np.ones_like(ring)]), np.zeros((3, 0, 3), np.float32))
  cropped = augment.crop_instances(example, np.array([20.0, 20.0]), np.array([60.0, 60.0]), True)
  assert cropped.classes.tolist() == [3] and cropped.keypoints.shape == (1, 0, 3)
  np.testing.assert_allclose(cropped.boxes, [[30, 30, 40, 40]])
  assert cropped.masks.all()
  nothing = augment.crop_instances(example, np.array([12.0, 12.0]), np.array([40.0, 40.0]), True)
  assert nothing.boxes.shape == (0, 4) and nothing.masks.shape == (0, 112, 112) and nothing.classes.shape == (0,)


def test_large_scale_jitter_samples_sizes_and_offsets():
  sizes = np.array([[480, 640]] * 2000)
  uniform, y, x = (keyed_random.keyed_uniform(0, key, np.zeros(2000), np.arange(2000)) for key in ('scale', 'y', 'x'))
  jitter = LargeScaleJitter()
  drawn = jitter.sizes(sizes, uniform)
  assert 102 <= drawn[:, 1].min() < 115 and 2030 < drawn[:, 1].max() <= 2048
  np.testing.assert_allclose(drawn[:, 0] / drawn[:, 1], 0.75, atol=0.01)
  assert abs(np.mean(drawn[:, 1]) / 1024 - 1.05) < 0.05
  offsets = jitter.offsets(drawn, y, x)
  assert np.all(offsets >= 0) and np.all(offsets + np.minimum(drawn, 1024) <= drawn)
  large = drawn[:, 1] > 1500
  assert np.corrcoef(offsets[large].T)[0, 1] < 0.9 and offsets[large, 1].max() > 900 and not offsets[~large & (
    drawn[:, 1] <= 1024)].any()
  assert jitter.largest_sizes(sizes)[0].tolist() == [768, 1024]
  extremes = jitter.offsets(np.array([[1026, 30]] * 2), np.array([0.0, 1 - 2**-53]), np.array([0.0, 1 - 2**-53]))
  assert extremes.tolist() == [[0, 0], [2, 0]]


def test_large_scale_jitter_of_images_of_several_sizes():
  """The long side of each becomes the side of the square times the scale."""
  sizes = np.array([[480, 640], [1000, 200], [50, 100], [3000, 1]])
  drawn = LargeScaleJitter(100, (0.5, 1.5)).sizes(sizes, np.array([0.0, 0.5, 0.75, 0.25]))
  assert drawn.tolist() == [[38, 50], [100, 20], [62, 125], [75, 1]]  # 37.5 and 62.5 are rounded to even


@pytest.mark.parametrize('arguments', [dict(side=0), dict(scales=(0, 1)), dict(scales=(2, 1)), dict(scales=(1,))])
def test_invalid_jitter(arguments):
  with pytest.raises(UserError, match='LargeScaleJitter'):
    LargeScaleJitter(**arguments)
