"""AP from matches equals the metric's, weights equal copies, and intervals hold what they should."""

import copy

import numpy as np
import pytest

from rethink_tf.compare import bootstrap, matching
from rethink_tf.evaluation import coco_metrics


def scene(seed=0, images=30, categories=3):
  """Ground truth with crowds and detections of all kinds: right, loose, doubled, wrong, equal in score."""
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
def test_all_weights_one_give_the_metrics_ap(seed, backend):
  gt, results = scene(seed)
  expected = coco_metrics.evaluate(gt, results, 'bbox', 'pycocotools').figures['AP']
  table = matching.table(gt, results, 'bbox', backend)
  found = bootstrap.average_precision(table, np.ones((2, len(gt['images']))))
  np.testing.assert_allclose(found, 100 * expected, rtol=1e-12)


def test_a_weight_of_two_is_the_same_photograph_twice():
  gt, results = scene(2)
  for result in results:
    result['score'] = float(result['score'] + 1e-6 * results.index(result))  # copies are ordered among themselves alone
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
  expected = coco_metrics.evaluate(copies, detections, 'bbox').figures['AP']
  found = bootstrap.average_precision(matching.table(gt, results, 'bbox'), weights[None])
  np.testing.assert_allclose(found, 100 * expected, rtol=1e-12)


def test_without_detections_ap_is_zero_and_without_objects_there_is_none():
  gt, _ = scene(0)
  table = matching.table(gt, [], 'bbox')
  assert bootstrap.average_precision(table, np.ones((1, 30))).tolist() == [0.0]
  assert np.isnan(bootstrap.average_precision(table, np.zeros((1, 30)))).all()


def test_draws_choose_as_many_photographs_as_there_are():
  weights = bootstrap.draw_weights(40, 500, 0)
  assert weights.shape == (500, 40) and (weights.sum(1) == 40).all()
  assert abs(weights.mean(0) - 1).max() < 0.25
  np.testing.assert_array_equal(weights, bootstrap.draw_weights(40, 500, 0))


def test_a_run_against_itself_differs_by_nothing_in_every_draw():
  table = matching.table(*scene(0), 'bbox')
  found = bootstrap.paired_difference([table], [table], draws=50)
  assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_the_interval_is_about_right_for_a_mean_of_coins():
  """Each image has one object that is found or not, so that AP is nearly a share, whose error is known."""
  from tests.compare.fake_runs import detections, share, truth
  gt = truth(400)
  for annotation in gt['annotations']:
    annotation['category_id'] = 3
  tables = [matching.table(gt, detections(gt, share(of, 400, seed)), 'bbox') for of, seed in ((240, 1), (200, 2))]
  found = bootstrap.paired_difference(tables[:1], tables[1:], draws=400)
  width = 1.96 * 100 * np.sqrt((0.6 * 0.4 + 0.5 * 0.5) / 400)  # unpaired draws: independent coins
  assert abs(found.value - 10) < 0.6  # recall is read at 101 points
  assert found.low < found.value < found.high
  assert abs((found.high - found.low) / 2 / width - 1) < 0.2


def test_seeds_widen_the_interval_when_they_disagree():
  gt, results = scene(4)
  good = matching.table(gt, results, 'bbox')
  bad = matching.table(gt, results[::2], 'bbox')
  one = bootstrap.paired_difference([good, good], [good, good], draws=60)
  two = bootstrap.paired_difference([good, bad], [good, good], draws=60)
  assert one.high - one.low == 0 < two.high - two.low


def test_other_photographs_are_refused():
  first, second = matching.table(*scene(0), 'bbox'), matching.table(*scene(0, images=29), 'bbox')
  with pytest.raises(ValueError, match='different images'):
    bootstrap.paired_difference([first], [second])
