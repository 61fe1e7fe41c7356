"""Segmentations in COCO's formats: crops, run lengths, malformed and hostile input."""

import json
import time

import numpy as np
import pytest
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from rethink_tf.data.detection.segmentation import (
  Segmentations,
  crop_segmentation,
  in_coco_format,
  run_lengths,
  to_rle,
)
from rethink_tf.structures import MASK_CROP

SQUARE = [[10, 10, 30, 10, 30, 40, 10, 40]]  # x 10..30, y 10..40


def uncompressed(mask):
  """Return run lengths in column-major order: reference implementation."""
  flat = mask.ravel(order='F')
  edges = np.flatnonzero(np.diff(flat)) + 1
  counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
  return {'size': list(mask.shape), 'counts': counts if flat[0] == 0 else [0, *counts]}


def blobs(seed, height=90, width=70):
  rng = np.random.default_rng(seed)
  coarse = rng.random((height // 10 + 1, width // 10 + 1)) < 0.4
  return np.kron(coarse, np.ones((10, 10)))[:height, :width].astype(np.uint8)


def iou(a, b):
  return (a & b).sum() / max((a | b).sum(), 1)


def test_polygon_equal_to_its_box_fills_the_crop():
  crop = crop_segmentation(SQUARE, np.array([10, 10, 40, 30]), 60, 80)
  assert crop.shape == (MASK_CROP, MASK_CROP) and crop.dtype == np.uint8
  assert crop.all()


def test_axes_of_a_polygon_crop():
  crop = crop_segmentation(SQUARE, np.array([10, 10, 70, 30]), 80, 80)  # the box is twice as high as the polygon
  assert crop[:MASK_CROP // 2].all() and not crop[MASK_CROP // 2:].any()
  crop = crop_segmentation(SQUARE, np.array([10, 10, 40, 50]), 80, 80)  # the box is twice as wide
  assert crop[:, :MASK_CROP // 2].all() and not crop[:, MASK_CROP // 2:].any()


def test_polygon_crop_is_invariant_to_scale_and_position():
  rng = np.random.default_rng(0)
  for _ in range(20):
    polygon = rng.uniform(0, 64, (9, 2))
    box = np.array([*polygon.min(0)[::-1], *polygon.max(0)[::-1]])
    crop = crop_segmentation([polygon.ravel().tolist()], box, 64, 64)
    moved = crop_segmentation([(polygon * 4 + 32).ravel().tolist()], box * 4 + 32, 512, 512)  # exact in binary
    assert (crop == moved).all()


def test_polygons_are_united():
  polygons = [[0, 0, 10, 0, 10, 10, 0, 10], [5, 5, 20, 5, 20, 20, 5, 20]]
  box = np.array([0, 0, 20, 20])
  crop = crop_segmentation(polygons, box, 30, 30)
  assert (crop == np.maximum(*[crop_segmentation([polygon], box, 30, 30) for polygon in polygons])).all()


@pytest.mark.parametrize('seed', range(5))
def test_rle_crop_reads_the_pixel_at_each_bin_centre(seed):
  mask = blobs(seed)
  rng = np.random.default_rng(seed)
  y0, x0 = rng.uniform(0, 40, 2)
  box = np.array([y0, x0, y0 + rng.uniform(1, 45), x0 + rng.uniform(0.2, 29)])
  expected = np.zeros([MASK_CROP, MASK_CROP], np.uint8)
  for i in range(MASK_CROP):
    for j in range(MASK_CROP):
      y = box[0] + (i + 0.5) / MASK_CROP * (box[2] - box[0])
      x = box[1] + (j + 0.5) / MASK_CROP * (box[3] - box[1])
      expected[i, j] = mask[int(y), int(x)]
  compressed = mask_api.encode(np.asfortranarray(mask))
  for rle in (uncompressed(mask), compressed, compressed | {'counts': compressed['counts'].decode()}):
    assert (crop_segmentation(rle, box, *mask.shape) == expected).all()


def test_polygon_and_rle_crops_of_real_objects_agree(real_images):
  content = json.loads((real_images / 'coco_dev/annotations/instances_val2017.json').read_text())
  sizes = {image['id']: (image['height'], image['width']) for image in content['images']}
  checked = 0
  for entry in content['annotations']:
    x, y, w, h = entry['bbox']
    if entry['iscrowd'] or min(w, h) < 48:
      continue
    box, size = np.array([y, x, y + h, x + w]), sizes[entry['image_id']]
    exact = crop_segmentation(entry['segmentation'], box, *size)
    sampled = crop_segmentation(to_rle(entry['segmentation'], *size), box, *size)
    assert iou(exact, sampled) > 0.8, entry['id']
    checked += 1
  assert checked > 100


def test_to_rle_equals_pycocotools_on_every_annotation(real_images):
  for file in ('coco_dev/annotations/instances_train2017.json', 'coco_rle_sample/annotations.json'):
    coco = COCO(real_images / file)
    for entry in coco.dataset['annotations']:
      image = coco.imgs[entry['image_id']]
      rle = to_rle(entry['segmentation'], image['height'], image['width'])
      assert (mask_api.decode(rle) == coco.annToMask(entry)).all()


@pytest.mark.parametrize('seed', range(10))
def test_run_lengths_invert_pycocotools_compression(seed):
  mask = blobs(seed, 10 + 37 * seed, 200) if seed % 2 else (np.random.default_rng(seed).random((40, 30)) < 0.5)
  rle = mask_api.encode(np.asfortranarray(mask, np.uint8))
  assert run_lengths(rle['counts']).tolist() == uncompressed(mask)['counts']


MALFORMED = {
  'a number': 7, 'a string': 'polygon', 'flat list': [1, 2, 3, 4, 5, 6], 'odd': [[1, 1, 4, 1, 4, 4, 1]],
  'two points': [[1, 1, 4, 4]], 'strings': [['1', '1', '4', '1', '4', '4']], 'nested': [[[1, 1], [4, 1], [4, 4]]],
  'nulls': [[None] * 6], 'dicts': [{}], 'no size': {'counts': [4800]}, 'no counts': {'size': [60, 80]},
  'zero size': {'size': [0, 0], 'counts': []}, 'size of strings': {'size': ['60', '80'], 'counts': [4800]},
  'short': {'size': [60, 80], 'counts': [3, 4]}, 'long': {'size': [60, 80], 'counts': [3, 4798]},
  'negative': {'size': [60, 80], 'counts': [4803, -3]}, 'fractions': {'size': [60, 80], 'counts': [4800.0]},
  'wrap around': {'size': [60, 80], 'counts': [2 ** 63, 2 ** 63, 4800]},
  'short string': {'size': [60, 80], 'counts': '34'}, 'empty string': {'size': [60, 80], 'counts': ''},
  'open string': {'size': [60, 80], 'counts': 'PP'}, 'foreign string': {'size': [60, 80], 'counts': 'Ünfug'},
  'endless number': {'size': [60, 80], 'counts': 'o' * 40 + '0'},
  'counts of nothing': {'size': [60, 80], 'counts': None},
}


@pytest.mark.parametrize('segmentation', MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(segmentation):
  with pytest.raises(ValueError):
    crop_segmentation(segmentation, np.array([0, 0, 10, 10]), 60, 80)
  with pytest.raises(ValueError):
    to_rle(segmentation, 60, 80)
  store = Segmentations()
  with pytest.raises(ValueError):
    store.append(segmentation)
  assert len(store) == 0
  store.append(SQUARE)
  assert store.to_json(0) == SQUARE  # rejected rows leave nothing behind


@pytest.mark.parametrize('stray', [float('nan'), float('inf'), -1e6, 1e12])
def test_coordinates_out_of_range(stray):
  polygon = [[1, 1, stray, 1, 4, 4]]
  for use in (lambda: crop_segmentation(polygon, np.array([0, 0, 10, 10]), 60, 80), lambda: to_rle(polygon, 60, 80)):
    with pytest.raises(ValueError, match='finite'):
      use()
  store = Segmentations()
  for row in (SQUARE, polygon, [], SQUARE + polygon, SQUARE):
    store.append(row)
  assert store.rows_out_of_range().tolist() == [1, 3]


def test_rle_of_another_size():
  with pytest.raises(ValueError, match='size'):
    to_rle({'size': [60, 80], 'counts': [4800]}, 80, 60)


def test_narrow_box_of_a_large_polygon_is_fast():
  start = time.perf_counter()
  crop = crop_segmentation([[-5000, 0, 639.5, 0, 639.5, 480, -5000, 480]], np.array([0, 639.999, 480, 640]), 480, 640)
  assert crop.shape == (MASK_CROP, MASK_CROP)
  assert time.perf_counter() - start < 1


def test_segmentations_are_returned_unchanged():
  mask = blobs(3)
  rows = [SQUARE, uncompressed(mask), [[1, 2, 3, 4], *SQUARE], [], [[0.25, 1, 7, 1.5, 7, 3], SQUARE[0]]]
  store = Segmentations()
  for row in rows:
    store.append(row)
  assert len(store) == 5
  assert [store.to_json(r) for r in (0, 2, 3, 4)] == [SQUARE, SQUARE, [], rows[4]]  # a polygon of two points is dropped
  assert (mask_api.decode(to_rle(store.to_json(1), *mask.shape)) == mask).all()
  assert json.loads(json.dumps(store.to_json(1))) == store.to_json(1)
  assert store.rle_sizes() == {1: mask.shape}
  assert store.rows_out_of_range().tolist() == []


def test_no_segmentations():
  assert Segmentations().rows_out_of_range().tolist() == []


def test_too_long_outline_is_malformed():
  """A polygon of twenty kilobytes with long edges would need gigabytes in pycocotools."""
  zigzag = [[coordinate for i in range(100) for coordinate in (-60000 + 120000 * (i % 2), i)]]
  many = [[0, 0, 60000, 0, 60000, 60000, 0, 60000]] * 5
  fine = [[coordinate for i in range(5000) for coordinate in (100 + i % 2, i / 10)]]
  for polygons in (zigzag, many):
    with pytest.raises(ValueError, match='outline of more than'):
      to_rle(polygons, 60, 80)
    with pytest.raises(ValueError, match='outline of more than'):
      crop_segmentation(polygons, np.array([0, 0, 10, 10]), 60, 80)
  to_rle(fine, 60, 80)
  store = Segmentations()
  for row in (SQUARE, zigzag, fine, [], many, SQUARE, SQUARE + zigzag):
    store.append(row)
  assert store.rows_out_of_range().tolist() == [1, 4, 6]


def test_extents_and_areas_equal_those_of_the_masks():
  rng = np.random.default_rng(0)
  polygons = [[[*rng.uniform(5, 60, 2), *rng.uniform(5, 60, 2), *rng.uniform(5, 60, 2)]] for _ in range(20)]
  rows = [*polygons, [], SQUARE, [[0, 0, 10, 0, 10, 10, 0, 10], [20, 20, 30, 20, 30, 30, 20, 30]],
          uncompressed(blobs(1))]
  table = Segmentations()
  for row in rows:
    table.append(row)
  boxes, areas = table.extents()
  assert np.isnan(boxes[20]).all() and areas[20] == 0
  assert boxes[21].tolist() == [10, 10, 40, 30] and areas[21] == 600
  assert boxes[22].tolist() == [0, 0, 30, 30] and areas[22] == 200
  for row in range(20):
    points = np.reshape(rows[row][0], [-1, 2])
    assert boxes[row].tolist() == [*points.min(0)[::-1], *points.max(0)[::-1]]
    area = mask_api.area(to_rle(rows[row], 90, 70))
    assert abs(areas[row] - area) <= 0.1 * area + 60, row
  x, y, w, h = mask_api.toBbox(to_rle(rows[23], 90, 70))
  assert boxes[23].tolist() == [y, x, y + h, x + w] and areas[23] == blobs(1).sum()
  assert Segmentations().extents()[0].shape == (0, 4)


@pytest.mark.parametrize('segmentation', [
  [[{'x': 1}]], [None], [True] * 6, [[True] * 6], [[[1, 2], [3, 4]], 5], [[[]]], [[[[1, 2], [3, 4], [5, 6]]]], 'abc', 7,
  {'counts': {}}, {'size': [10 ** 30, 1], 'counts': [10 ** 30]}, [{'size': [10 ** 6, 10 ** 6], 'counts': 'a'}],
  [10 ** 400] * 6, [[10 ** 400] * 6], [{'size': [1, 1], 'counts': [1]}, {'size': [2, 1], 'counts': [2]}],
  [[1, 'x']] * 3, [[{'x': 'a', 'y': None}]]])
def test_hostile_forms_are_valueerrors_or_polygons(segmentation):
  table = Segmentations()
  try:
    table.append(in_coco_format(segmentation) or [])
  except ValueError:
    table.append([])
  assert len(table) == 1 and table.extents()[0].shape == (1, 4)


def test_extents_of_many_run_lengths():
  segmentations = Segmentations()
  for i in range(300):
    segmentations.append({'size': [20, 30], 'counts': [i % 20, 1 + i % 5, 600 - i % 20 - 1 - i % 5]})
  boxes, areas = segmentations.extents()
  assert areas.tolist() == [1 + i % 5 for i in range(300)] and boxes.shape == (300, 4)
