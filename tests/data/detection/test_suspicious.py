"""Suspicious annotations: every kind by a small example, sound ones of real data, speed."""

import json

import numpy as np
import pytest

from rethink_tf.data.detection import suspicious
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.suspicious import Table, find_other_units, find_suspicious, wrong_masks
from tests.small_coco import annotation

SIZES = np.array([[60, 80]] * 3)


def table_of(entries):
  """Annotations as columns, not repaired."""
  boxes = np.array([[y, x, y + h, x + w] for x, y, w, h in (entry['bbox'] for entry in entries)], float)
  extents = []
  for entry in entries:
    points = np.reshape(entry['segmentation'][0], [-1, 2])
    extents.append([*points.min(0)[::-1], *points.max(0)[::-1]])
  order = np.argsort([entry['image_id'] for entry in entries], kind='stable')
  columns = ([entry[field] for entry in entries] for field in ('image_id', 'id', 'category_id', 'area', 'iscrowd'))
  images, ids, classes, areas, crowds = (np.array(column)[order] for column in columns)
  return Table(images - 1, ids, classes, boxes[order], areas.astype(float), crowds.astype(bool),
               np.array(extents)[order])


def kinds(table):
  return {(suspect.kind, int(table.ids[suspect.row])) for suspect in find_suspicious(table, SIZES)}


@pytest.mark.parametrize('entry, kind', [
  (annotation(9, bbox=(70, 10, 20, 30)), suspicious.OUTSIDE),
  (annotation(9, bbox=(-5, 10, 20, 30)), suspicious.OUTSIDE),
  (annotation(9, bbox=(10, 10, 0, 30), area=5), suspicious.DEGENERATE),
  (annotation(9, area=0), suspicious.DEGENERATE),
  (annotation(9, bbox=(10, 10, 3, 2)), suspicious.TINY_BOX),
  (annotation(9, bbox=(.1, .2, .5, .4)), suspicious.FRACTIONS),
  (annotation(9, segmentation=[[10, 10, 20, 10, 20, 20]]), suspicious.MASK_ELSEWHERE),
  (annotation(9, area=900), suspicious.TOO_LARGE), (annotation(9, area=.25), suspicious.TOO_SMALL),
])
def test_kinds_of_suspicious_annotations(entry, kind):
  found = kinds(table_of([annotation(1, bbox=(40, 20, 30, 30)), entry]))
  assert (kind, 9) in found and {id_ for _, id_ in found} == {9}


def test_one_pixel_outside_the_image_is_tolerated():
  assert kinds(table_of([annotation(1, bbox=(60, 10, 20.9, 30))])) == set()


def test_duplicate_boxes():
  entries = [annotation(1), annotation(2), annotation(3, category_id=5), annotation(4, bbox=(10, 10, 20, 20)),
             annotation(5, image_id=2), annotation(6, iscrowd=1), annotation(7, bbox=(10.2, 9.9, 20, 30))]
  table = table_of(entries)
  assert kinds(table) == {(suspicious.REPEATED, 2), (suspicious.TWO_CLASSES, 3), (suspicious.REPEATED, 7)}
  assert {int(table.ids[suspect.other]) for suspect in find_suspicious(table, SIZES)} == {1}


def test_duplicate_boxes_equal_the_comparison_of_all_pairs():
  rng = np.random.default_rng(0)
  low = rng.integers(0, 6, (400, 2)) * 5.0
  boxes = np.concatenate([low, low + rng.integers(1, 3, (400, 2)) * 20], axis=1) + rng.uniform(0, .3, (400, 4))
  images = np.sort(rng.integers(0, 3, 400))
  table = Table(images, np.arange(400), np.ones(400, int), boxes, np.ones(400), np.zeros(400, bool), boxes)
  expected = {}
  for j in range(400):
    for i in range(j):
      common = np.maximum(np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2]), 0).prod()
      union = (boxes[i, 2:] - boxes[i, :2]).prod() + (boxes[j, 2:] - boxes[j, :2]).prod() - common
      if images[i] == images[j] and common >= suspicious.SAME_IOU * union:
        expected.setdefault(j, i)
  found = {s.row: s.other for s in find_suspicious(table, SIZES) if s.kind == suspicious.REPEATED}
  assert found == expected and len(expected) > 50


BOX = np.array([[50.0, 10, 70, 30]])  # of an image of 80 x 80


@pytest.mark.parametrize('extent, what', [
  ([50, 10, 70, 30], None), ([52, 12, 66, 30], None), ([49, 9, 71, 31], None),
  ([10, 50, 30, 70], 'a mask outside its box (with x and y exchanged)'),
  ([50 / 80, 10 / 80, 70 / 80, 30 / 80], 'a mask outside its box (in 0..1)'),
  ([0, 0, 20, 20], 'a mask outside its box (relative to the box)'),
  ([100, 20, 140, 60], 'a mask outside its box (of an image of another size)'),
  ([5, 60, 15, 65], 'a mask outside its box'), ([0, 0, 80, 80], 'a mask outside its box'),
  ([58, 18, 59, 19], 'a mask outside its box'), ([50, 10, 50, 30], 'an empty mask')])
def test_wrong_masks(extent, what):
  found = wrong_masks(np.array([extent], float), np.array([9.0]), BOX, np.array([[80.0, 80]]))
  assert [reason for reason, rows in found if rows.any()] == ([what] if what else [])


def test_boxes_in_other_units():
  limits = np.tile([60.0, 80], (60, 1))
  rng = np.random.default_rng(0)
  low = rng.uniform(0, [25, 35], (60, 2))
  right = np.concatenate([low, low + rng.uniform(5, [30, 40], (60, 2))], axis=1)
  assert not any(rows.any() for _, rows in find_other_units(right, limits))
  corners = np.concatenate([low, low + right[:, 2:]], axis=1)  # x1 and y1 taken for width and height
  assert find_other_units(corners, limits)[0][1].sum() > 10
  assert find_other_units(right / 2, limits)[1][1].all()


def test_real_data_is_hardly_suspicious(real_images):
  for folder in ('coco_dev', 'balloon'):
    source = CocoSource(str(real_images / folder), 'val2017' if folder == 'coco_dev' else 'val')
    assert not [reason for reason in source.problems.counts if 'without a mask' in reason], folder
    count = sum(source.problems.counts.values())
    total = len(json.dumps(source.annotations()).split('"bbox"')) - 1
    assert count < 0.2 * total, source.problems.counts
