"""Anchors: positions, sizes, and straddling of the image border."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.ops import anchors


def test_cell_anchors_have_the_given_areas_and_ratios():
  cells = np.float64(anchors.cell_anchors(64, (0.5, 1.0, 2.0)))
  heights, widths = cells[:, 2] - cells[:, 0], cells[:, 3] - cells[:, 1]
  np.testing.assert_allclose(heights * widths, 64**2, rtol=1e-6)
  np.testing.assert_allclose(heights / widths, [0.5, 1, 2], rtol=1e-6)
  np.testing.assert_array_equal(cells[:, :2], -cells[:, 2:])


@pytest.mark.parametrize('offset', [0.0, 0.5])
def test_grid_is_row_by_row_with_all_ratios_of_a_cell_together(offset):
  height, width, stride, ratios = 3, 4, 8, (0.5, 1.0, 2.0)
  cells = anchors.cell_anchors(32, ratios)
  expected = [
    np.tile([(y + offset) * stride, (x + offset) * stride], 2) + cells[ratio]
    for y in range(height) for x in range(width) for ratio in range(3)]
  np.testing.assert_array_equal(anchors.grid_anchors(height, width, stride, 32, ratios, offset), np.float32(expected))
  dynamic = anchors.grid_anchors(tf.constant(height), tf.constant(width), stride, 32, ratios, offset)
  np.testing.assert_array_equal(dynamic, np.float32(expected))


def test_padding_is_outside_the_image():
  boxes = tf.constant([[0.0, 0.0, 10.0, 10.0], [-1.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 20.0], [0.0, 0.0, 10.5, 5.0]])
  inside = anchors.inside_image(boxes, tf.constant([[10.0, 20.0], [20.0, 10.0], [1000.0, 1000.0]]))
  np.testing.assert_array_equal(inside, [[True, False, True, False], [True, False, False, True],
                                         [True, False, True, True]])
  np.testing.assert_array_equal(anchors.inside_image(boxes, tf.constant([[10.0, 20.0]]), slack=1.0), [[True] * 4])
