"""Boxes, areas and outlines of shapes."""

import math

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
