"""Errors by kind: cases with known breakdown, AP equal to COCO's, AP 100 with all errors fixed."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rethink_tf.errors import UserError
from rethink_tf.evaluation import coco_metrics
from rethink_tf.inspect_run.detection_errors import KINDS, analyse, average_precision

CATEGORIES = [{'id': 3, 'name': 'cat'}, {'id': 7, 'name': 'dog'}]


def truth(*objects, images=1):
  """objects: (image_id, category_id, [x, y, w, h]), followed by True for a crowd."""
  annotations = []
  for number, (image_id, category, (x, y, w, h), *crowd) in enumerate(objects):
    annotations.append({'id': number, 'image_id': image_id, 'category_id': category, 'bbox': [x, y, w, h],
                        'area': w * h, 'iscrowd': int(bool(crowd)),
                        'segmentation': [[x, y, x + w, y, x + w, y + h, x, y + h]]})
  return {'images': [{'id': i, 'height': 200, 'width': 200} for i in range(1, images + 1)],
          'annotations': annotations, 'categories': CATEGORIES}


def detected(*detections):
  return [{'image_id': image, 'category_id': category, 'bbox': box, 'score': score}
          for image, category, box, score in detections]


def rle(box):
  return coco_mask.frPyObjects(np.array([box], np.float64), 200, 200)[0]


def errors(result):
  return {kind: number for kind, number in result.counts.items() if number}


BOX = [10, 10, 40, 40]


def test_without_errors():
  result = analyse(truth((1, 3, BOX)), detected((1, 3, BOX, 0.9)))
  assert result.ap == pytest.approx(1) and not errors(result) and result.correct == result.objects == 1
  assert all(abs(gain) < 1e-9 for gain in result.gained.values())


@pytest.mark.parametrize('kind, detections, ap', [
  ('classification', [(1, 7, BOX, 0.9)], 0.0),
  ('localisation', [(1, 3, [30, 10, 40, 40], 0.9)], 0.0),  # IoU 1/3
  ('both', [(1, 7, [30, 10, 40, 40], 0.9)], 0.0),
  ('background', [(1, 3, [120, 120, 20, 20], 0.9)], 0.0),
  ('background', [(1, 3, [47, 10, 40, 40], 0.9)], 0.0),  # IoU 120 / 3080 < 0.1
  ('missed', [], 0.0),
])
def test_one_error_of_each_kind(kind, detections, ap):
  """A single object: unless the error is assigned to it, it is missed too."""
  result = analyse(truth((1, 3, BOX)), detected(*detections))
  assigned = kind in ('classification', 'localisation', 'missed')
  assert errors(result) == {kind: 1} | ({} if assigned else {'missed': 1})
  assert result.ap == ap and result.all_fixed == pytest.approx(1)
  if assigned:
    assert result.gained[kind] == pytest.approx(1), 'the only error'
    assert result.worst[kind][0].annotation == 0


@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_objects_of_other_images_are_none_of_an_image(iou_type):
  """The same box in the images before and behind it; with masks as run lengths in a list."""
  gt = truth((1, 3, BOX), (3, 3, BOX), images=3)
  for annotation in gt['annotations']:
    mask = coco_mask.decode(rle(BOX))
    edges = np.flatnonzero(np.diff(mask.T.ravel(), prepend=0, append=0)).tolist()
    annotation['segmentation'] = {'size': [200, 200], 'counts': np.diff([0, *edges, 200 * 200]).tolist()}
  found = [{**one, 'segmentation': rle(one['bbox'])} for one in detected((2, 3, BOX, 0.9), (3, 3, BOX, 0.8))]
  result = analyse(gt, found, iou_type)
  assert errors(result) == {'background': 1, 'missed': 1} and result.correct == 1
  assert result.worst['background'][0].image_id == 2 and result.worst['missed'][0].annotation == 0


def test_cost_of_a_duplicate():
  """Two cats; a second detection of the first one ranks before that of the other: precision at recall 1 is 2/3."""
  other = [100, 100, 40, 40]
  result = analyse(truth((1, 3, BOX), (1, 3, other)),
                   detected((1, 3, BOX, 0.9), (1, 3, [12, 10, 40, 40], 0.8), (1, 3, other, 0.7)))
  assert errors(result) == {'duplicate': 1}
  expected = (51 + 50 * 2 / 3) / 101  # recalls 0 ... 0.5 at precision 1
  assert result.ap == pytest.approx(expected)
  assert result.gained['duplicate'] == result.false_positives == pytest.approx(1 - expected)
  assert result.false_negatives == 0


def test_a_fixed_detection_of_a_matched_object_is_no_duplicate():
  """The higher score is kept: once its box is fixed, the other detection is removed."""
  far = [100, 100, 40, 40]
  result = analyse(truth((1, 3, BOX), (1, 3, far)),
                   detected((1, 3, [30, 10, 40, 40], 0.9), (1, 3, BOX, 0.8)))
  assert errors(result) == {'localisation': 1, 'missed': 1}
  before = 51 / 101 / 2  # precision 1/2 up to recall 0.5
  assert result.ap == pytest.approx(before)
  assert result.gained['localisation'] == pytest.approx(51 / 101 - before)
  assert result.gained['missed'] == pytest.approx(1 / 2 - before), 'precision 1/2 at all recalls'


def test_a_classification_error_counts_for_the_class_of_its_object():
  result = analyse(truth((1, 3, BOX), (1, 7, [100, 100, 40, 40])),
                   detected((1, 7, BOX, 0.9), (1, 7, [100, 100, 40, 40], 0.8)))
  assert errors(result) == {'classification': 1}
  assert result.category_ap.tolist() == pytest.approx([0, 0.5])
  assert result.category_gained[KINDS.index('classification')].tolist() == pytest.approx([1, 0.5])
  assert result.ap == pytest.approx(0.25) and result.gained['classification'] == pytest.approx(0.75)


def test_an_unmatched_object_is_preferred():
  """A detection of the wrong class on two dogs, one of them matched already."""
  gt = truth((1, 7, BOX), (1, 7, [14, 10, 40, 40]))
  result = analyse(gt, detected((1, 7, BOX, 0.9), (1, 3, [11, 10, 40, 40], 0.8)))
  assert errors(result) == {'classification': 1}, 'the second dog is not missed'
  assert result.worst['classification'][0].annotation == 1


def test_detections_on_crowds_are_ignored():
  gt = truth((1, 3, BOX), (1, 3, [100, 100, 90, 90], True))
  result = analyse(gt, detected((1, 3, BOX, 0.5), (1, 3, [110, 110, 10, 10], 0.9), (1, 7, [110, 110, 10, 10], 0.9)))
  assert errors(result) == {'background': 1}, 'a dog in a crowd of cats'
  assert result.ap == pytest.approx(1) and result.objects == 1


def test_without_objects_or_detections_ap_is_defined():
  nothing = analyse(truth(), [])
  assert nothing.ap == nothing.all_fixed == -1 and not errors(nothing)
  only_wrong = analyse(truth(), detected((1, 3, BOX, 0.5)))
  assert only_wrong.ap == -1 and errors(only_wrong) == {'background': 1}
  all_missed = analyse(truth((1, 3, BOX), images=2), [])
  assert all_missed.ap == 0 and all_missed.gained['missed'] == all_missed.false_negatives == 1


def test_examples_are_the_most_confident_errors_and_largest_objects():
  gt = truth((1, 3, [0, 0, 10, 10]), (2, 3, [0, 0, 90, 90]), images=4)
  far = [150, 150, 20, 20]
  result = analyse(gt, detected(*((image, 3, far, 0.1 * image + 0.01 * k) for image in (1, 2, 3, 4) for k in range(4))),
                   examples=3)
  assert [(e.image_id, e.result, e.annotation) for e in result.worst['background']] == [
    (4, 15, None), (4, 14, None), (3, 11, None)]
  assert [e.annotation for e in result.worst['missed']] == [1, 0]


def test_unknown_categories_and_types_are_rejected():
  with pytest.raises(UserError, match='category_id 9'):
    analyse(truth((1, 3, BOX)), detected((1, 9, BOX, 0.9)))
  with pytest.raises(ValueError, match='keypoints'):
    analyse(truth((1, 3, BOX)), [], 'keypoints')


def random_case(seed, images=12):
  """Objects, crowds, and detections that are correct, shifted, of another class, duplicate or background."""
  rng = np.random.default_rng(seed)
  objects, detections = [], []
  for image in range(1, images + 1):
    for _ in range(rng.integers(0, 6)):
      box = [float(v) for v in (*rng.integers(0, 120, 2), *rng.integers(8, 70, 2))]
      category = int(rng.choice([3, 7]))
      objects.append((image, category, box, True) if rng.random() < 0.1 else (image, category, box))
      for _ in range(rng.integers(0, 4)):
        moved = [max(1.0, float(v)) for v in np.array(box) + rng.normal(0, rng.choice([0, 3, 15]), 4)]
        other = category if rng.random() < 0.7 else 10 - category
        detections.append((image, other, moved, float(rng.integers(1, 20)) / 20))  # many equal scores
    if rng.random() < 0.5:
      detections.append((image, 3, [150.0, 150.0, 20.0, 20.0], float(rng.random())))
  return truth(*objects, images=images), detected(*detections)


@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
@pytest.mark.parametrize('seed', range(6))
def test_laws_on_random_cases(seed, iou_type):
  """AP is COCO's AP50, and 1 with all errors fixed; no detection counts twice; no fix lowers AP."""
  gt, results = random_case(seed)
  if iou_type == 'segm':
    results = [{'image_id': r['image_id'], 'category_id': r['category_id'], 'score': r['score'],
                'segmentation': rle(r['bbox'])} for r in results]
  result = analyse(gt, results, iou_type)
  official = coco_metrics.evaluate(gt, results, iou_type, backend='pycocotools')
  assert result.ap == pytest.approx(official.metrics['AP50'], abs=1e-12)
  assert result.category_ap.tolist() == pytest.approx([row.AP50 for row in official.categories], abs=1e-12)
  assert result.all_fixed == pytest.approx(1, abs=1e-12)
  wrong = sum(number for kind, number in result.counts.items() if kind != 'missed')
  assert wrong + result.correct <= len(results)
  assert result.correct + result.counts['missed'] <= result.objects
  for kind in ('both', 'duplicate', 'background', 'missed'):
    assert result.gained[kind] >= -1e-12, kind
  assert result.false_positives >= max(result.gained[k] for k in ('both', 'duplicate', 'background')) - 1e-12
  assert result.false_negatives >= result.gained['missed'] - 1e-12


def test_more_than_a_hundred_detections_of_an_image():
  rng = np.random.default_rng(0)
  gt = truth((1, 3, BOX))
  results = detected((1, 3, BOX, 0.001), *((1, 3, [150, 150, 20, 20], float(s)) for s in rng.random(120)))
  result = analyse(gt, results)
  assert result.ap == coco_metrics.evaluate(gt, results, 'bbox').metrics['AP50'] == 0
  assert errors(result) == {'background': 100, 'missed': 1}


@pytest.mark.parametrize('correct, objects, expected', [
  ([], 0, 1.0), ([False], 0, 0.0), ([], 3, 0.0), ([True], 1, 1.0), ([False, True], 1, 0.5),
  ([True, False, True], 2, (51 + 50 * 2 / 3) / 101),
])
def test_average_precision(correct, objects, expected):
  assert average_precision(np.array(correct, bool), objects) == pytest.approx(expected)
