"""Masks pasted by TensorFlow against ops/masks.paste, which is tested against a float64 reference."""

import numpy as np
import pytest
import tensorflow as tf
from pycocotools import mask as coco_mask

from rethink_tf.ops.masks import paste
from rethink_tf.ops.paste import paste_by_products, paste_pixels
from tests.ops.test_masks import random_boxes, random_masks


def expected(masks, boxes, height, width):
  rles = paste(masks, boxes, height, width)
  return coco_mask.decode(rles).transpose(2, 0, 1) if rles else np.zeros((0, height, width), np.uint8)


@pytest.fixture(scope='module')
def pasted():
  """One graph for all sizes, as in a SavedModel."""
  spec = [tf.TensorSpec([None, None, None]), tf.TensorSpec([None, 4], tf.float64), *[tf.TensorSpec([], tf.int32)] * 2]
  functions = {}

  def call(masks, boxes, height, width):
    cells = masks.shape[-1]
    if cells not in functions:
      signature = [tf.TensorSpec([None, cells, cells]), *spec[1:]]
      functions[cells] = tf.function(paste_pixels, input_signature=signature, autograph=False)
    return functions[cells](masks.astype('f'), boxes.astype('d'), height, width).numpy()

  return call


@pytest.mark.parametrize('size', [(60, 97), (131, 40), (1, 50), (50, 1), (1, 1)])
@pytest.mark.parametrize('cells', [3, 28])
def test_pixels_equal_paste(pasted, size, cells):
  rng = np.random.default_rng(cells)
  masks, boxes = random_masks(rng, 80, cells), random_boxes(rng, 80, *size, smallest=0.5)
  masks[:10] = 1.0
  result = pasted(masks, boxes, *size)
  assert result.dtype == np.uint8 and result.shape == (80, *size)
  np.testing.assert_array_equal(result, expected(masks, boxes, *size))


def test_masks_of_a_full_size_image_equal_the_reference(pasted):
  rng = np.random.default_rng(5)
  masks, boxes = random_masks(rng, 12), random_boxes(rng, 12, 800, 1333, smallest=20)
  np.testing.assert_array_equal(pasted(masks, boxes, 800, 1333), expected(masks, boxes, 800, 1333))


def test_values_at_the_threshold(pasted):
  full = np.ones((2, 28, 28))
  boxes = np.array([[0.5, 0.5, 29.5, 39.5], [0, 0, 30, 40]])  # the first one's edges are at pixel centres
  result = pasted(full, boxes, 30, 40)
  np.testing.assert_array_equal(result, expected(full, boxes, 30, 40))
  assert result[1].all()


def test_invalid_boxes_give_empty_masks(pasted):
  boxes = np.array([[5, 5, 5, 9], [5, 5, 9, 5], [9, 9, 5, 5], [np.nan, 0, 5, 5], [0, 0, np.inf, 5],
                    [-90, -90, -50, -50], [90, 90, 95, 95], [0] * 4])
  result = pasted(np.ones((len(boxes), 28, 28)), boxes, 30, 40)
  assert result.shape == (len(boxes), 30, 40) and not result.any()
  assert pasted(np.zeros((0, 28, 28)), np.zeros((0, 4)), 30, 40).shape == (0, 30, 40)


def test_products_paste_the_same():
  """In float32: a pixel at the threshold may differ."""
  rng = np.random.default_rng(1)
  for number, size in ((40, (60, 97)), (1, (1, 50)), (0, (30, 20))):
    masks, boxes = random_masks(rng, 40).astype('f')[:number], random_boxes(rng, 40, *size, smallest=0.5)[:number]
    boxes = boxes.astype('f')
    result = paste_by_products(tf.constant(masks), tf.constant(boxes), *size).numpy()
    assert result.dtype == np.uint8 and result.shape == (number, *size)
    assert (result != expected(masks, boxes, *size)).sum() <= 1e-4 * result.size


def test_products_paste_nothing_outside_a_full_mask():
  boxes = np.array([[10.5, 10.5, 20.4, 30.6], [5, 5, 5, 9]], 'f')
  result = paste_by_products(tf.ones([2, 28, 28]), tf.constant(boxes), 30, 40).numpy()
  assert result[0, 11:19, 11:30].all() and not result[1].any()
  inside = np.zeros((30, 40), bool)
  inside[10:20, 10:31] = True
  assert not result[0][~inside].any()
