"""Boxes, areas and outlines of shapes."""

import math

import cv2
import numpy as np
import pytest

from rethink_tf.data.prepare import shapes
from tests.exports import rasterise


@pytest.mark.parametrize('values, found', [
  ([1, 2.5], [1.0, 2.5]), ([True], None), (['1'], None), ([None], None), ([math.nan], None), ([math.inf], None),
  ([1e7], None), ([10 ** 400], None), ([[1]], None), ([], [])])
def test_numbers(values, found):
  assert shapes.numbers(values) == found


def test_an_outline_has_the_area_and_the_extent_of_its_polygons():
  found = shapes.outlined([[1, 1, 5, 1, 5, 4], [10, 10, 10, 12, 12, 12, 12, 10]])
  assert found['bbox'] == [1, 1, 11, 11] and found['area'] == 6 + 4


def test_an_ellipse_that_is_turned():
  polygon = shapes.ellipse(50, 50, 20, 10, math.pi / 2)
  assert np.allclose(shapes.outlined([polygon])['bbox'], [40, 30, 20, 40])
  assert abs(rasterise([polygon], (100, 100)).sum() - math.pi * 200) < 15


def test_a_rotated_box_has_its_corner_fixed():
  assert shapes.rotated_box(10, 20, 4, 2, 90) == [8, 20, 2, 4] and shapes.rotated_box(1, 2, 3, 4, 0) == [1, 2, 3, 4]


@pytest.mark.parametrize('degrees', [-160, -45, 10, 60, 135, 200, 350])
def test_a_rotated_box_holds_all_four_corners(degrees):
  """Clockwise in an image is from x to y, as the product with a complex number turns them."""
  corners = 10 + 20j + np.array([0, 4, 4 + 2j, 2j]) * np.exp(1j * np.radians(degrees))
  x, y, w, h = shapes.rotated_box(10, 20, 4, 2, degrees)
  low, high = (x, y), (x + w, y + h)
  assert low == pytest.approx((corners.real.min(), corners.imag.min()), abs=2e-3)
  assert high == pytest.approx((corners.real.max(), corners.imag.max()), abs=2e-3)


def test_fractions_become_pixels():
  polygon = {'category': 1, 'segmentation': [[0.5, 0.25, 0.75, 0.25, 0.75, 0.5]]}
  assert shapes.scaled(polygon, 200, 100)['segmentation'] == [[100, 25, 150, 25, 150, 50]]
  box = {'category': 1, 'bbox': [0.25, 0.5, 0.5, 0.25], 'segmentation': []}
  assert shapes.scaled(box, 200, 100)['bbox'] == [50, 50, 100, 25] and box['bbox'][0] == 0.25
  person = shapes.scaled(box | {'keypoints': [0.25, 0.5, 2, 0, 0, 0, 0.5, 0.75, 1]}, 200, 100)
  assert person['keypoints'] == [50, 50, 2, 0, 0, 0, 100, 75, 1]


@pytest.mark.parametrize('points, found', [
  ([[1, 2], [3.5, 4]], [1, 2, 3.5, 4]), ([], []), (None, None), ('ab', None), ({'x': 1}, None), (((1, 2),), None),
  ([[1, 2], [3]], None), ([[1, 2, 3]], None), ([[1, 2], 'ab'], None), ([[1, 2], [3, None]], None)])
def test_points(points, found):
  assert shapes.flat_points(points) == found
  pairs = [{'x': point[0], 'y': point[1]} if isinstance(point, list) and len(point) == 2 else point
           for point in points] if isinstance(points, list) else points
  assert shapes.flat_pairs(pairs) == found


def test_pixels_of_a_box_are_pasted_where_it_lies():
  crop = np.arange(6, dtype=np.uint8).reshape(2, 3)  # zero is background, all else the object
  for (x0, y0), pixels in {(1, 3): 5, (0, 0): 5, (8, 3): 3, (7, 5): 2, (9, 5): 0, (20, 20): 0}.items():
    mask = shapes.pasted(crop, x0, y0, (6, 10))
    expected = np.zeros((30, 30), np.uint8)
    expected[y0:y0 + 2, x0:x0 + 3] = [[0, 1, 1], [1, 1, 1]]
    assert mask.dtype == np.uint8 and np.array_equal(mask, expected[:6, :10]) and mask.sum() == pixels
  assert shapes.pasted(crop, -1, 0, (6, 10)) is None and shapes.pasted(crop, 0, -1, (6, 10)) is None


def test_a_png_that_is_larger_than_its_image_is_not_decoded():
  data = cv2.imencode('.png', np.full((5, 9), 255, np.uint8))[1].tobytes()
  assert shapes.decoded_png(data, (5, 9)).shape == shapes.decoded_png(data, (4, 8)).shape == (5, 9)
  for size in ((3, 9), (5, 7), (10 ** 6, 10 ** 6)):
    assert shapes.decoded_png(data, size) is None
  assert shapes.decoded_png(b'no image', (5, 9)) is None


SQUARE, INNER, BESIDE = [2, 2, 10, 2, 10, 10, 2, 10], [4, 4, 7, 4, 7, 7, 4, 7], [12, 1, 15, 1, 15, 4, 12, 4]


def test_outlines_with_holes():
  expected = np.zeros((12, 16), np.uint8)
  expected[2:10, 2:10] = 1
  expected[4:7, 4:7] = 0
  assert np.array_equal(shapes.cut_out(SQUARE, [INNER, BESIDE], (12, 16)), expected)
  assert np.array_equal(shapes.alternating([SQUARE, INNER], (12, 16)), expected)
  expected[1:4, 12:15] = 1
  assert np.array_equal(shapes.alternating([INNER, BESIDE, SQUARE], (12, 16)), expected)
  for size, outline in (((10 ** 6, 10 ** 6), SQUARE), ((12, 16), [1, 1, 9e5, 1, 9e5, 9e5])):  # too much memory
    assert shapes.cut_out(outline, [INNER], size) is None and shapes.cut_out(SQUARE, [outline], size) is None
    assert shapes.alternating([INNER, outline], size) is None


def test_an_object_of_several_parts():
  boxes = [('box', [4, 5, 6, 1]), ('box', [1, 7, 2, 2]), ('box', [3, 6, 1, 1])]
  assert shapes.joined(boxes) == {'bbox': [1, 5, 9, 4], 'area': 36, 'segmentation': []} and shapes.are_boxes(boxes)
  found = shapes.joined([('polygon', SQUARE), ('polygon', BESIDE)])
  assert (found['bbox'], found['area'], found['segmentation']) == ([2, 1, 13, 9], 73, [SQUARE, BESIDE])
  mask = np.zeros((12, 16), np.uint8)
  mask[0:3, 0:4] = 1
  found = shapes.joined([('mask', mask), ('mask', mask[::-1, ::-1]), ('polygon', SQUARE)])
  expected = mask | mask[::-1, ::-1]
  expected[2:10, 2:10] = 1
  assert np.array_equal(rasterise(found['segmentation'], (12, 16)), expected)
  assert found['bbox'] == [0, 0, 16, 12] and found['area'] == expected.sum()
  around = shapes.joined([('polygon', SQUARE), ('box', [0, 1, 11, 11])])
  assert around['bbox'] == [0, 1, 11, 11] and around['area'] == 64 and around['segmentation'] == [SQUARE]
