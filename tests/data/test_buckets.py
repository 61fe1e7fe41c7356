"""Detectron's resize rule and the padded shapes."""

import json

import numpy as np
import pytest

from rethink_tf.data.buckets import assign, bucket_shapes, padding_waste, resized_size, resized_sizes


@pytest.mark.parametrize(('size', 'expected'), [
    ((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((200, 900), (296, 1333)), ((500, 500), (800, 800)),
    ((427, 640), (800, 1199)), ((1, 5000), (1, 1333)), ((1600, 1200), (1067, 800)), ((480, 800), (800, 1333)),
])
def test_detectrons_rule(size, expected):
  assert resized_size(*size, 800, 1333) == expected


def test_vectorised_rule_with_one_short_side_per_image():
  sizes = np.array([[480, 640], [640, 480], [200, 900]])
  sides = np.array([800, 400, 800])
  expected = [resized_size(*size, side, 1333) for size, side in zip(sizes.tolist(), sides.tolist(), strict=True)]
  np.testing.assert_array_equal(resized_sizes(sizes, sides, 1333), expected)


@pytest.mark.parametrize(('short_side', 'max_side'), [(800, 1333), (128, 160), (600, 1000), (100, 100), (33, 700)])
def test_every_image_is_assigned_the_smallest_padded_shape_that_holds_it(short_side, max_side):
  padded_shapes = bucket_shapes(short_side, max_side)
  assert np.all(padded_shapes % 32 == 0) and len(padded_shapes) <= 7
  assert {tuple(c) for c in padded_shapes.tolist()} == {tuple(c[::-1]) for c in padded_shapes.tolist()}
  sizes = resized_sizes(np.random.default_rng(0).integers(1, 3000, (2000, 2)), short_side, max_side)
  buckets = assign(sizes, padded_shapes)
  for size, bucket in zip(sizes, buckets, strict=True):
    area = padded_shapes[bucket].prod()
    assert np.all(size <= padded_shapes[bucket])
    assert all(padded_shape.prod() >= area for padded_shape in padded_shapes if np.all(size <= padded_shape))


def test_padded_shapes_of_the_paper():
  assert bucket_shapes(800, 1333).tolist() == [
      [800, 800], [800, 1088], [1088, 800], [800, 1216], [1216, 800], [800, 1344], [1344, 800]]


def test_image_larger_than_every_padded_shape():
  with pytest.raises(ValueError, match=r'\[900, 2000\]'):
    assign(np.array([[10, 10], [900, 2000]]), bucket_shapes(800, 1333))


def test_padding_waste():
  padded_shapes = np.array([[10, 10], [10, 20]])
  assert padding_waste(np.array([[10, 10], [10, 15]]), padded_shapes, np.array([0, 1])) == pytest.approx(1 - 250 / 300)


def test_little_padding_on_coco(real_images):
  """At most 8 % of the batched pixels at 800/1333; one big square would waste half."""
  sizes = []
  for split in ('train2017', 'val2017'):
    file = real_images / 'coco_dev' / 'annotations' / f'instances_{split}.json'
    sizes += [(image['height'], image['width']) for image in json.loads(file.read_text())['images']]
  sizes = resized_sizes(np.array(sizes), 800, 1333)
  padded_shapes = bucket_shapes(800, 1333)
  assert padding_waste(sizes, padded_shapes, assign(sizes, padded_shapes)) < 0.05
  square = np.array([[1344, 1344]])
  assert padding_waste(sizes, square, assign(sizes, square)) > 0.4
