"""AP from matches equals COCO's, a weight equals copies of an image, all runs are resampled with the same images."""

import copy

import numpy as np
import pytest
from pycocotools.cocoeval import Params

from rethink_tf.compare import bootstrap, matching
from rethink_tf.evaluation import coco_metrics, voc_evaluator, voc_metrics
from rethink_tf.evaluation.scoring import boxes_of

COCO_RECALLS = Params('bbox').recThrs


def scene(seed=0, images=30, categories=3):
  """Ground truth with crowds, and detections that are correct, shifted, duplicate, wrong or equal in score."""
  noise = np.random.default_rng(seed)
  gt = {'images': [{'id': 5 * i + 1, 'height': 200, 'width': 200} for i in range(images)],
        'categories': [{'id': 2 * c + 1, 'name': f'c{c}'} for c in range(categories)], 'annotations': []}
  results = []
  for image in gt['images']:
    for _ in range(noise.integers(0, 5)):
      category = int(noise.integers(categories)) * 2 + 1
      box = [*noise.uniform(0, 120, 2), *noise.uniform(10, 70, 2)]
      gt['annotations'].append({'id': len(gt['annotations']), 'image_id': image['id'], 'category_id': category,
                                'bbox': box, 'area': box[2] * box[3], 'iscrowd': int(noise.random() < 0.15)})
      for _ in range(noise.integers(0, 3)):
        moved = list(np.array(box) + noise.normal(0, 6, 4))
        results.append({'image_id': image['id'], 'category_id': category, 'bbox': moved,
                        'score': float(np.round(noise.random(), 1))})
    results.append({'image_id': image['id'], 'category_id': 1, 'bbox': [0, 0, 20, 20], 'score': 0.3})
  return gt, results


@pytest.mark.parametrize('backend', ['hotcoco', 'pycocotools'])
@pytest.mark.parametrize('seed', [0, 1])
def test_weights_of_one_give_cocos_ap(seed, backend):
  gt, results = scene(seed)
  expected = coco_metrics.evaluate(gt, results, 'bbox', 'pycocotools').metrics['AP']
  table = matching.match_detections(gt, results, 'bbox', backend)
  ap = bootstrap.average_precision(table, np.ones((2, len(gt['images']))))
  np.testing.assert_allclose(ap, 100 * expected, rtol=1e-12)


@pytest.mark.parametrize('rule', ['area', '11-point'])
def test_weights_of_one_give_vocs_ap(rule):
  gt, results = scene(5)
  class_of = {1: 1, 3: 2, 5: 3}
  detections = voc_metrics.Detections(
    *(np.array(column) for column in ([r['image_id'] for r in results], [class_of[r['category_id']] for r in results])),
    boxes_of(results), np.array([r['score'] for r in results]))
  objects = voc_evaluator.objects_of(gt['annotations'], class_of)
  aps = voc_metrics.average_precisions(objects, detections, 3, rule, [0.5])
  ap = bootstrap.average_precision(matching.match_voc(gt, results, rule), np.ones((2, len(gt['images']))))
  np.testing.assert_allclose(ap, 100 * aps.mean(), rtol=1e-12)


def test_a_weight_equals_copies_of_an_image():
  gt, results = scene(2)
  for result in results:
    result['score'] = float(result['score'] + 1e-6 * results.index(result))  # no ties except between copies
  weights = np.random.default_rng(3).integers(0, 3, len(gt['images']))
  copies = {'images': [], 'annotations': [], 'categories': gt['categories']}
  detections = []
  for image, weight in zip(gt['images'], weights, strict=True):
    for number in range(weight):
      new = 1000 * (number + 1) + image['id']
      copies['images'].append({**image, 'id': new})
      copies['annotations'] += [{**copy.deepcopy(a), 'image_id': new} for a in gt['annotations']
                                if a['image_id'] == image['id']]
      detections += [{**r, 'image_id': new} for r in results if r['image_id'] == image['id']]
  expected = coco_metrics.evaluate(copies, detections, 'bbox').metrics['AP']
  ap = bootstrap.average_precision(matching.match_detections(gt, results, 'bbox'), weights[None])
  np.testing.assert_allclose(ap, 100 * expected, rtol=1e-12)


@pytest.mark.parametrize('objects', [1, 3, 7, 29, 50, 100, 101, 300])
def test_the_recalls_that_are_reached_are_cocos_whatever_their_rounding(objects):
  """0.29 of 100 objects is the 30th recall, although 100 * 0.29 is 28.999999999999996; 1.0 is the last one."""
  for found in range(objects + 1):
    one = bootstrap.CategoryMatches(np.zeros(found, int), np.ones([1, found], bool), np.zeros([1, found], bool),
                                    np.array([objects]))
    reached = np.searchsorted(np.arange(1, found + 1) / objects, COCO_RECALLS, side='left') < found  # cocoeval.py
    ap = bootstrap.average_precision(bootstrap.Matches(np.array([1]), (one,)), np.ones([1, 1]))
    assert ap == pytest.approx(100 * reached.mean()), found


def test_without_detections_ap_is_zero_and_without_objects_there_is_none():
  gt, _ = scene(0)
  table = matching.match_detections(gt, [], 'bbox')
  assert bootstrap.average_precision(table, np.ones((1, 30))).tolist() == [0.0]
  assert np.isnan(bootstrap.average_precision(table, np.zeros((1, 30)))).all()


def test_draws_are_as_many_images_as_evaluated():
  weights = bootstrap.draw_weights(40, 500, 0)
  assert weights.shape == (500, 40) and (weights.sum(1) == 40).all()
  assert abs(weights.mean(0) - 1).max() < 0.25
  np.testing.assert_array_equal(weights, bootstrap.draw_weights(40, 500, 0))


def test_draws_of_a_run_do_not_depend_on_the_others():
  good, bad = (matching.match_detections(gt, results, 'bbox') for gt, results in (scene(0), scene(0, categories=3)))
  both = bootstrap.resampled([good, bad], 130)
  assert both.shape == (2, 130)
  np.testing.assert_array_equal(both[0], bootstrap.resampled([good], 130)[0])
  np.testing.assert_array_equal(both[0], both[1])
  assert abs(np.nanmean(both[0]) - bootstrap.average_precision(good, np.ones((1, 30)))[0]) < 5


def test_different_images_are_rejected():
  first, second = matching.match_detections(*scene(0), 'bbox'), matching.match_detections(*scene(0, images=29), 'bbox')
  with pytest.raises(ValueError, match='different images'):
    bootstrap.resampled([first, second])
