"""The confusion matrix: cases with known cells, its sums, a straightforward reference, many classes."""

import numpy as np
import pytest

from rethink_tf.inspect_run import confusion as confusions
from rethink_tf.inspect_run.counted import count_coco
from rethink_tf.inspect_run.detection_errors import pairwise_iou
from tests.inspect_run.random_data import CATEGORIES, detections, truth

BOX = [10, 10, 40, 40]


def matrix(gt, results, score=0.5, iou=0.5, iou_type='bbox'):
  return confusions.confusion(count_coco(gt, results, iou_type, iou), gt, results, iou_type, score)


def one_object(crowd=0):
  return {'images': [{'id': 1, 'height': 100, 'width': 100}], 'categories': CATEGORIES,
          'annotations': [{'id': 1, 'image_id': 1, 'category_id': 3, 'bbox': BOX, 'area': 1600, 'iscrowd': crowd}]}


@pytest.mark.parametrize('category, box, score, crowd, cells', [
  (3, BOX, .9, 0, {(0, 0): 1}), (7, BOX, .9, 0, {(0, 1): 1}), (7, [60, 60, 20, 20], .9, 0, {(0, 3): 1, (3, 1): 1}),
  (3, BOX, .4, 0, {(0, 3): 1}),  # below the threshold
  (3, BOX, .9, 1, {}), (7, BOX, .9, 1, {(3, 1): 1})])  # a crowd: of its class ignored, of another one nothing
def test_each_detection_and_object_falls_into_its_cell(category, box, score, crowd, cells):
  found = matrix(one_object(crowd), [{'image_id': 1, 'category_id': category, 'bbox': box, 'score': score}])
  assert {tuple(cell): found.counts[tuple(cell)] for cell in np.argwhere(found.counts).tolist()} == cells


def reference(gt, results, score, iou, iou_type):
  """COCO's matching and the pairing of the rest, in plain loops."""
  number = {category['id']: k for k, category in enumerate(gt['categories'])}
  counts = np.zeros([len(number) + 1] * 2, int)
  for image in gt['images']:
    objects = [a for a in gt['annotations'] if a['image_id'] == image['id']]
    rows = [r for r in results if r['image_id'] == image['id']]
    rows = sorted(rows, key=lambda r: -r['score'])
    overlaps = pairwise_iou(rows, objects, iou_type, (100, 100))
    taken, left = set(), []
    for r, row in enumerate(rows):
      best, largest = None, iou
      for i, one in enumerate(objects):
        if not one['iscrowd'] and i not in taken and one['category_id'] == row['category_id'] and (
            overlaps[r, i] >= largest):
          best, largest = i, overlaps[r, i]
      if best is not None:
        taken.add(best)
        if row['score'] >= score:
          counts[number[row['category_id']], number[row['category_id']]] += 1
        else:
          left.append((None, best))
      elif not any(one['iscrowd'] and one['category_id'] == row['category_id'] and overlaps[r, i] >= iou
                   for i, one in enumerate(objects)) and row['score'] >= score:
        left.append((r, None))
    free = {i for i, one in enumerate(objects) if not one['iscrowd'] and i not in taken}
    free |= {i for r, i in left if r is None}
    for r in (r for r, _ in left if r is not None):
      able = [i for i in free if objects[i]['category_id'] != rows[r]['category_id'] and overlaps[r, i] >= iou]
      best = max(able, key=lambda i: overlaps[r, i], default=None)
      annotated = len(number) if best is None else number[objects[best]['category_id']]
      counts[annotated, number[rows[r]['category_id']]] += 1
      free -= {best}
    for i in free:
      counts[number[objects[i]['category_id']], -1] += 1
  return counts


@pytest.mark.parametrize('iou_type, iou', [('bbox', 0.5), ('bbox', 0.75), ('segm', 0.5)])
def test_against_plain_loops_and_its_sums(iou_type, iou):
  gt = truth(np.random.default_rng(6), images=20)
  results = detections(np.random.default_rng(7), gt, iou_type)
  for n, result in enumerate(results):
    result['score'] = round(result['score'] + n * 1e-5, 6)  # no equal scores: their order is the metric's affair
  found, counted = matrix(gt, results, 0.4, iou, iou_type), count_coco(gt, results, iou_type, iou)
  np.testing.assert_array_equal(found.counts, reference(gt, results, 0.4, iou, iou_type))
  assert found.counts[:-1, :-1].sum() > np.trace(found.counts) > 2
  np.testing.assert_array_equal(found.counts[:-1].sum(axis=1), counted.num_objects)
  passed = ~counted.ignored & (counted.scores >= 0.4)
  np.testing.assert_array_equal(found.counts[:, :-1].sum(axis=0), np.bincount(counted.classes[passed], minlength=3))
  np.testing.assert_array_equal(np.diag(found.counts)[:-1],
                                np.bincount(counted.classes[passed & counted.true], minlength=3))
  np.testing.assert_allclose(found.shares.sum(axis=1), 1)


def test_of_many_classes_the_most_confused_are_shown():
  names = tuple(f'class {k}' for k in range(80))
  counts = np.diag(np.r_[np.full(80, 10), 0])
  counts[70, 3], counts[5, 70], counts[-1, 20], counts[20, -1] = 7, 4, 50, 2
  whole = confusions.Confusion(names, 0.5, 0.3, counts)
  shown = confusions.most_confused(whole, 3)
  assert shown.names == ('class 3', 'class 5', 'class 70', '77 other classes')
  assert shown.counts.sum() == counts.sum() and shown.counts[2, 0] == 7 and shown.counts[-1, 3] == 50
  assert confusions.most_confused(whole, 80) is whole
  assert confusions.pairs(whole) == [('class 70', 'class 3', 7, 7 / 17), ('class 5', 'class 70', 4, 4 / 14)]
  text = confusions.as_text(whole, 1)
  assert '11 as another class, 2 missed; 50 detections of nothing' in text and '1 more pairs' in text
  assert 'class 70 detected as class 3: 7 (41 %)' in text and 'more' not in confusions.as_text(whole, 2)
  assert len(confusions.as_rows(whole)) == 82 and {len(row) for row in confusions.as_rows(whole)} == {82}


def test_what_is_saved_adds_up_to_objects_and_detections():
  counts = np.random.default_rng(0).integers(0, 9, [4, 4])
  counts[-1, -1] = counts[0, 1] = 0
  found = confusions.as_json(confusions.Confusion(('a', 'b', 'c'), 0.5, 0.3, counts))
  for k, (name, one) in enumerate(found['classes'].items()):
    rows = [pair for pair in found['confused'] if pair['annotated'] == name]
    assert one['objects'] == one['found'] + one['missed'] + sum(pair['count'] for pair in rows) == counts[k].sum()
    for pair in rows:
      assert pair['percent_of_annotated'] == pytest.approx(100 * pair['count'] / one['objects'], abs=1e-4)
    columns = sum(pair['count'] for pair in found['confused'] if pair['detected'] == name)
    assert one['of_nothing'] + one['found'] + columns == counts[:, k].sum() and one['found'] == counts[k, k]


def test_nothing_annotated_and_nothing_detected():
  gt = {'images': [], 'annotations': [], 'categories': CATEGORIES[:1]}
  found = matrix(gt, [])
  assert found.counts.tolist() == [[0, 0], [0, 0]] and not found.shares.any()
  assert '0 of 0 objects' in confusions.as_text(found, 5) and confusions.as_json(found)['confused'] == []
