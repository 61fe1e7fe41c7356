"""Detections counted as by COCO's and VOC's metric."""

import numpy as np
import pytest

from rethink_tf.errors import UserError
from rethink_tf.evaluation import coco_metrics, voc_metrics
from rethink_tf.inspect_run.counted import count_coco, count_voc
from tests.inspect_run.random_data import accumulated, detections, truth


@pytest.mark.parametrize('backend', ['pycocotools', 'hotcoco'])
@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_counts_give_cocos_recall(iou_type, backend):
  """Recall without a limit of the score is pycocotools' own, at each threshold; every match is with an own object."""
  pytest.importorskip(backend)
  gt = truth(np.random.default_rng(0))
  results = detections(np.random.default_rng(1), gt, iou_type)
  scorer = accumulated(gt, results, iou_type)
  for t in (0, 5):
    counted = count_coco(gt, results, iou_type, coco_metrics.IOUS[t], backend=backend)
    recall = np.bincount(counted.classes[counted.true], minlength=3) / counted.num_objects
    np.testing.assert_array_equal(recall, scorer.eval['recall'][t, :, 0, -1])
    assert counted.ignored.any() and not (counted.true & counted.ignored).any()
    for row in np.flatnonzero(counted.true):
      result, target = results[counted.results[row]], gt['annotations'][counted.targets[row]]
      assert (result['image_id'], result['category_id']) == (target['image_id'], target['category_id'])
      assert result['score'] == counted.scores[row] and counted.object_classes[counted.targets[row]] >= 0
    assert len(set(counted.targets[counted.true])) == counted.true.sum(), 'each object once'


def test_an_iou_that_coco_does_not_match_at():
  with pytest.raises(UserError, match=r'--iou=0.3: choose one of 0.5, 0.55'):
    count_coco(truth(np.random.default_rng(0)), [], 'bbox', 0.3)


def test_vocs_difficult_objects_are_ignored():
  gt = {'categories': [{'id': 2, 'name': 'dog'}, {'id': 1, 'name': 'cat'}]}
  objects = voc_metrics.Objects(np.array([1, 1]), np.array([1, 1]), np.array([[0., 0, 10, 10], [50, 50, 90, 90]]),
                                np.array([False, True]))
  found = voc_metrics.Detections(np.array([1, 1, 1]), np.array([1, 1, 2]),
                                 np.array([[50., 50, 90, 90], [0, 0, 10, 10], [0, 0, 10, 10]]), np.array([.5, .9, .7]))
  counted = count_voc(gt, objects, found)
  assert counted.category_names == ('cat', 'dog') and counted.num_objects.tolist() == [1, 0]
  assert counted.results.tolist() == [1, 2, 0] and counted.true.tolist() == [True, False, False]
  assert counted.ignored.tolist() == [False, False, True] and counted.targets.tolist() == [0, -1, -1]


def test_counts_give_vocs_average_precision():
  """The metric's own AP by both rules from what is counted true, false and ignored; IoU must exceed the threshold."""
  rng = np.random.default_rng(8)
  gt = truth(rng, images=20)
  rows = detections(rng, gt)

  def columns(ones):
    xywh = np.array([one['bbox'] for one in ones], float)
    return (np.array([one['image_id'] for one in ones]), np.array([{3: 1, 7: 2, 9: 3}[o['category_id']] for o in ones]),
            np.concatenate([xywh[:, 1::-1], xywh[:, 1::-1] + xywh[:, :1:-1]], axis=1))

  objects = voc_metrics.Objects(*columns(gt['annotations']), np.array([bool(a['iscrowd']) for a in gt['annotations']]))
  found = voc_metrics.Detections(*columns(rows), np.array([one['score'] for one in rows]))
  for iou in (0.5, 0.7):
    counted = count_voc(gt, objects, found, iou)
    assert counted.ignored.any() and counted.true.any()
    for rule in voc_metrics.RULES:
      expected = voc_metrics.average_precisions(objects, found, 3, rule, [iou])[0]
      for k in range(3):
        true = counted.true[(counted.classes == k) & ~counted.ignored]
        precision = np.cumsum(true) / np.arange(1, len(true) + 1)
        assert voc_metrics.average(np.cumsum(true) / counted.num_objects[k], precision, rule) == pytest.approx(
          expected[k], abs=1e-12)
