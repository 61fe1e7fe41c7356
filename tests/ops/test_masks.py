"""Mask targets against rasterised polygons, pasted masks against a float64 reference and tf-models-official."""

import json

import cv2
import numpy as np
import pytest
import tensorflow as tf
from pycocotools import mask as coco_mask

from rethink_tf.doctor.references import paste as reference_paste
from rethink_tf.ops.masks import crop_targets, paste


def encode(pixels: np.ndarray) -> dict:
  return coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))


def random_masks(rng, number: int, cells: int = 7, size: int = 28) -> np.ndarray:
  coarse = rng.random((number, cells, cells)).astype(np.float32)
  return np.stack([cv2.resize(m, (size, size), interpolation=cv2.INTER_CUBIC).clip(0, 1) for m in coarse])


def random_boxes(rng, number: int, height: int, width: int, smallest: float = 1.0) -> np.ndarray:
  sides = np.exp(rng.uniform(np.log(smallest), np.log(1.5 * max(height, width)), (number, 2)))
  centres = rng.uniform(-0.1, 1.1, (number, 2)) * [height, width]
  return np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).astype(np.float32)


@pytest.mark.parametrize('size', [(60, 97), (131, 40), (1, 50), (50, 1), (1, 1)])
@pytest.mark.parametrize('cells', [3, 28])
def test_paste_equals_float64_reference(size, cells):
  rng = np.random.default_rng(cells)
  masks, boxes = random_masks(rng, 150, cells), random_boxes(rng, 150, *size, smallest=0.5)
  masks[:10] = 1.0  # full boxes, some of them covering the whole image
  expected = [encode(reference_paste(m, b.astype(np.float64), *size)) for m, b in zip(masks, boxes, strict=True)]
  assert paste(masks, boxes, *size) == expected


def test_paste_of_values_at_the_threshold():
  mask = np.zeros((4, 4), np.float32)
  mask[1:3, 1:3] = 1.0
  # 12 pixels for 4 cells: pixel centres are at cell centres and half-way between them.
  box = np.array([2.0, 3.0, 14.0, 15.0])
  assert paste(mask[None], box[None], 20, 20) == [encode(reference_paste(mask, box, 20, 20))]
  full = paste(np.ones((1, 28, 28)), np.array([[0, 0, 30, 40]]), 30, 40)
  assert full == [encode(reference_paste(np.ones((28, 28)), np.array([0, 0, 30, 40]), 30, 40))]


def test_paste_at_full_size():
  rng = np.random.default_rng(5)
  masks, boxes = random_masks(rng, 12), random_boxes(rng, 12, 800, 1333, smallest=20)
  decoded = coco_mask.decode(paste(masks, boxes, 800, 1333))
  expected = [reference_paste(m, b.astype(np.float64), 800, 1333) for m, b in zip(masks, boxes, strict=True)]
  np.testing.assert_array_equal(decoded, np.stack(expected, axis=-1))


def test_detectron_mode_equals_tf_models_official():
  from official.vision.ops import mask_ops

  rng = np.random.default_rng(1)
  height, width = 75, 110
  masks, boxes = random_masks(rng, 100), random_boxes(rng, 100, height, width)
  xywh = boxes.astype(np.float64)[:, [1, 0, 3, 2]]
  xywh[:, 2:] -= xywh[:, :2]
  expected = [encode(m) for m in mask_ops.paste_instance_masks(masks, xywh, height, width)]
  assert paste(masks, boxes, height, width, mode='detectron') == expected


def test_targets_of_noise_equal_float64():
  """Interpolation between the centres of cells, constant beyond the outermost ones, background outside of the box."""
  rng = np.random.default_rng(6)
  masks = rng.integers(0, 2, (1, 2, 9, 9), np.uint8)
  boxes = np.float32([[[10, 20, 55, 83], [3, 4, 12, 13]]])
  index = np.array([[0, 0, 0, 1, 1]])
  rois = np.float32([[[10, 20, 55, 83], [0, 30, 40, 100], [22, 41, 25, 43], [3, 4, 12, 13], [4.5, 2, 20, 12.5]]])
  found = crop_targets(tf.constant(masks), tf.constant(boxes), tf.constant(rois), tf.constant(index), 14)
  for target, (y0, x0, y1, x1), which in zip(found[0].numpy(), rois[0].astype(float), index[0], strict=True):
    values = masks[0, which].astype(float)
    for axis, (low, high) in enumerate(((y0, y1), (x0, x1))):
      begin, end = boxes[0, which, axis].astype(float), boxes[0, which, axis + 2].astype(float)
      points = low + (high - low) * (np.arange(14) + 0.5) / 14
      cells = np.clip((points - begin) / (end - begin) * 9 - 0.5, 0, 8)
      values = np.apply_along_axis(lambda line, cells=cells: np.interp(cells, np.arange(9), line), axis, values)
      values[(slice(None),) * axis + ((points < begin) | (points >= end),)] = 0
    clear = np.abs(values - 0.5) > 1e-4
    np.testing.assert_array_equal(target[clear], values[clear] > 0.5)
    assert clear.mean() > 0.8 and 0 < target.mean() < 1
  np.testing.assert_array_equal(
    crop_targets(tf.constant(masks), tf.constant(boxes), tf.constant(boxes), tf.constant([[0, 1]]), 9)[0], masks[0])


@pytest.mark.parametrize('mode', ['accurate', 'detectron'])
def test_paste_of_invalid_boxes_gives_empty_masks(mode):
  boxes = np.array(
    [[5, 5, 5, 9], [5, 5, 9, 5], [9, 9, 5, 5], [np.nan, 0, 5, 5], [0, 0, np.inf, 5], [-90, -90, -50, -50], [0] * 4]
  )
  empty = encode(np.zeros((30, 40)))
  assert paste(np.ones((len(boxes), 28, 28)), boxes, 30, 40, mode) == [empty] * len(boxes)
  assert paste(np.zeros((0, 28, 28)), np.zeros((0, 4)), 30, 40, mode) == []
  assert paste(np.zeros((1, 28, 28)), np.array([[1, 1, 20, 20]]), 30, 40, mode) == [empty]


def test_paste_with_an_unknown_mode():
  with pytest.raises(ValueError, match='exact'):
    paste(np.zeros((0, 28, 28)), np.zeros((0, 4)), 4, 4, mode='exact')


def test_crop_targets_of_a_half_filled_box():
  masks = np.zeros((1, 2, 112, 112), np.uint8)
  masks[0, 1, :, 56:] = 1  # right half of the second instance
  boxes = np.array([[[0, 0, 1, 1], [10, 20, 50, 100]]], np.float32)
  rois = np.array([[[10, 20, 50, 100], [10, 60, 50, 100], [10, 20, 50, 60], [0, 0, 56, 112], [60, 60, 90, 90]]])
  index = np.ones((1, 5), np.int32)
  targets = crop_targets(*map(tf.constant, (masks, boxes, rois.astype(np.float32), index))).numpy()
  assert targets.shape == (1, 5, 28, 28) and targets.dtype == np.float32
  half = np.zeros((28, 28))
  half[:, 14:] = 1
  np.testing.assert_array_equal(targets[0, 0], half)
  assert targets[0, 1].all() and not targets[0, 2].any() and not targets[0, 4].any()
  outside = np.zeros((28, 28))  # cells of 2 x 4 pixels
  outside[5:25, 15:25] = 1
  np.testing.assert_array_equal(targets[0, 3], outside)


def test_crop_targets_of_empty_slots_and_under_xla():
  rng = np.random.default_rng(0)
  masks = rng.integers(0, 2, (2, 3, 112, 112), np.uint8)
  boxes = random_boxes(rng, 6, 64, 64, smallest=8).reshape(2, 3, 4)
  boxes[:, 2] = 0  # an empty slot
  rois = random_boxes(rng, 10, 64, 64, smallest=8).reshape(2, 5, 4)
  index = np.array([[0, 1, 2, 0, 1], [2, 1, 0, 0, 1]], np.int32)
  arguments = [tf.constant(a) for a in (masks, boxes, rois, index)]
  plain = crop_targets(*arguments).numpy()
  compiled = tf.function(crop_targets, jit_compile=True)(*arguments).numpy()
  np.testing.assert_array_equal(plain, compiled)
  assert set(np.unique(plain)) <= {0.0, 1.0}
  assert not plain[0, 2].any() and not plain[1, 0].any()


def test_crop_targets_equal_polygons_rasterised_in_the_roi(real_images):
  """They are as close to the true outline (16 x finer) as Detectron2's rasterisation of each RoI."""
  annotations = json.loads((real_images / 'coco_dev/annotations/instances_val2017.json').read_text())['annotations']
  instances = [a for a in annotations if not a['iscrowd'] and min(a['bbox'][2:]) > 2][:250]
  rng = np.random.default_rng(0)

  def rasterise(segmentation, box, size):
    origin, scale = box[[1, 0]], size / (box[[3, 2]] - box[[1, 0]])
    polygons = [((np.reshape(p, (-1, 2)) - origin) * scale).ravel().tolist() for p in segmentation]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, size, size)))

  crops, boxes, rois, detectron2, truth = [], [], [], [], []
  for instance in instances:
    x, y, w, h = instance['bbox']
    box = np.array([y, x, y + h, x + w])
    roi = box + rng.uniform(-0.15, 0.15, 4) * [h, w, h, w]
    boxes.append(box)
    rois.append(roi)
    crops.append(rasterise(instance['segmentation'], box, 112))
    detectron2.append(rasterise(instance['segmentation'], roi, 28))
    fine = rasterise(instance['segmentation'], roi, 28 * 16).reshape(28, 16, 28, 16)
    truth.append(fine.mean(axis=(1, 3)) >= 0.5)

  arguments = np.stack(crops), np.float32(boxes), np.float32(rois), np.arange(len(crops), dtype=np.int32)
  targets = crop_targets(*(tf.constant(a[None]) for a in arguments)).numpy()[0]

  def mean_iou(a, b):
    both, either = np.minimum(a, b).sum((1, 2)), np.maximum(a, b).sum((1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0).mean()

  truth, detectron2 = np.float32(truth), np.float32(detectron2)
  assert mean_iou(targets, detectron2) > 0.98
  assert mean_iou(targets, truth) > mean_iou(detectron2, truth) - 0.002
