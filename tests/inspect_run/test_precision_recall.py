"""Precision at 101 recalls to the last digit of pycocotools; best thresholds by exhaustive search."""

import numpy as np
import pytest

from rethink_tf.evaluation import coco_metrics
from rethink_tf.inspect_run import precision_recall
from rethink_tf.inspect_run.confusion import Confusion, as_text
from rethink_tf.inspect_run.counted import Counted, count_coco
from tests.inspect_run.random_data import accumulated, detections, truth


def counted_of(scores, true, ignored=None, objects=1, names=('a',), classes=None):
  size = len(scores)
  return Counted(names, 0.5, np.array(scores, float), np.zeros(size, int) if classes is None else np.array(classes),
                 np.array(true, bool), np.zeros(size, bool) if ignored is None else np.array(ignored),
                 np.arange(size), np.full(size, -1), np.zeros(objects, int))


@pytest.mark.parametrize('iou_type, iou, t', [('bbox', 0.5, 0), ('bbox', 0.75, 5), ('segm', 0.5, 0)])
def test_precision_is_pycocotools_own(iou_type, iou, t):
  gt = truth(np.random.default_rng(2))
  results = detections(np.random.default_rng(3), gt, iou_type)
  scorer = accumulated(gt, results, iou_type)
  expected = scorer.eval['precision'][t, :, :, 0, -1]  # [101, K]
  assert 0 < expected.mean() < 1
  _, *found = precision_recall.curves(count_coco(gt, results, iou_type, iou))
  for curve, column in zip(found, expected.T, strict=True):
    np.testing.assert_array_equal(curve.precision, column)
  tables = coco_metrics.evaluate(gt, results, iou_type)
  ap = tables.metrics['AP50' if t == 0 else 'AP75']
  assert np.mean([curve.ap for curve in found]) == pytest.approx(ap, abs=1e-12)


def test_best_thresholds_by_exhaustive_search():
  """Every score as a threshold, with detections counted one by one; equal scores pass together."""
  gt = truth(np.random.default_rng(4))
  counted = count_coco(gt, detections(np.random.default_rng(5), gt), 'bbox')
  for k, curve in enumerate(precision_recall.curves(counted), start=-1):
    own = ~counted.ignored & ((counted.classes == k) | (k < 0))
    objects = counted.num_objects.sum() if k < 0 else counted.num_objects[k]

    def measure(threshold, own=own, objects=objects):
      passed = [bool(t) for s, t, o in zip(counted.scores, counted.true, own, strict=True) if o and s >= threshold]
      return 2 * sum(passed) / (len(passed) + objects), sum(passed) / max(len(passed), 1), sum(passed) / objects

    best = max(measure(score)[0] for score in counted.scores)
    assert curve.best.f1 == best
    assert measure(curve.best.threshold) == (curve.best.f1, curve.best.precision, curve.best.recall)


def test_ignored_detections_do_not_count():
  curve = precision_recall.curves(counted_of([.9, .8], [False, True], [True, False]))[0]
  assert curve.best == (0.8, 1.0, 1.0, 1.0) and curve.detections == 1 and curve.ap == pytest.approx(1)


@pytest.mark.parametrize('scores, objects, ap', [([], 1, 0.0), ([.5], 0, -1.0), ([], 0, -1.0), ([.5], 3, 0.0)])
def test_nothing_found_and_nothing_there(scores, objects, ap):
  found = precision_recall.curves(counted_of(scores, [False] * len(scores), objects=objects))
  assert [curve.best for curve in found] == [None, None] and found[0].ap == ap
  assert ' - ' in precision_recall.as_text(found, 0.5, 15)
  assert precision_recall.as_json(found)['all']['best'] is None


def test_a_threshold_has_few_decimals():
  between = precision_recall.round_between
  assert [between(0.1, 0.4318), between(0.431, 0.4318), between(-np.inf, 0.001)] == [0.43, 0.4318, 0.0]
  assert 0.43 < between(0.43, 0.43 + 1e-12) <= 0.43 + 1e-12 and between(0.3, np.nextafter(0.3, 1)) > 0.3


def test_what_is_saved_is_the_curve_in_percent():
  curves = precision_recall.curves(counted_of([.9, .812345, .4], [True, True, False], objects=3))
  saved = precision_recall.as_json(curves)['all']
  assert saved['best'] == {'score_threshold': 0.81, 'precision': 100, 'recall': 66.6667, 'F1': 80}
  assert saved['precision_at_101_recalls'] == pytest.approx((100 * curves[0].precision).tolist(), abs=1e-4)
  lowest = precision_recall.curves(counted_of([.812345], [True]))[0]
  assert lowest.best.threshold == 0.81, 'nothing scores less'


def test_the_table_has_the_threshold_and_not_a_higher_one():
  """With four digits it would be 1, which no detection has."""
  counted = counted_of([.99997, .99994], [True, False])
  curves = precision_recall.curves(counted)
  line = next(line for line in precision_recall.as_text(curves, 0.5, 15).splitlines() if precision_recall.ALL in line)
  shown = float(line.removeprefix(f'  {precision_recall.ALL}').split()[2])
  assert (counted.scores >= shown).tolist() == [True, False] and curves[0].best.f1 == 1
  matrix = Confusion(('a',), 0.5, curves[0].best.threshold, np.ones([2, 2], int))
  assert f'score >= {shown}:' in as_text(matrix, 15)
  assert [precision_recall.in_full(value) for value in (0, 0.43, 1e-5)] == ['0', '0.43', '0.00001']


def test_a_long_table_ends():
  names = tuple(f'a class with a rather long name {k}' for k in range(80))
  counted = counted_of([.9] * 80, [True] * 80, names=names, classes=range(80))._replace(object_classes=np.arange(80))
  text = precision_recall.as_text(precision_recall.curves(counted), 0.5, 15)
  lines = text.splitlines()
  assert len(lines) == 19 and '65 more classes' in lines[-1] and len({len(line) for line in lines[1:18]}) == 1
