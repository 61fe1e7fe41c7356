"""COCO's metrics: both backends against pycocotools itself, and laws they must satisfy."""

import contextlib
import copy
import io
import json
import threading

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rethink_tf.errors import UserError
from rethink_tf.evaluation.coco_metrics import METRICS, evaluate

BACKENDS = ['pycocotools', 'hotcoco']


@pytest.fixture(params=BACKENDS)
def backend(request):
  if request.param == 'hotcoco':
    pytest.importorskip('hotcoco', reason='hotcoco is not installed')
  return request.param


@pytest.fixture(scope='module')
def coco_dev(real_images):
  return json.loads((real_images / 'coco_dev/annotations/instances_val2017.json').read_text())


@pytest.fixture(scope='module')
def all_perturbed(coco_dev):
  """Perturbed detections {whether scores are tied: with boxes and masks}."""
  return {ties: perturbed(coco_dev, ties) for ties in (False, True)}


@pytest.fixture(scope='module')
def some_perturbed(all_perturbed):
  return all_perturbed[False][::4]


def truth_as_detections(gt: dict) -> list[dict]:
  sizes = {image['id']: (image['height'], image['width']) for image in gt['images']}
  results = []
  for a in gt['annotations']:
    if a['iscrowd']:
      continue
    rle = coco_mask.merge(coco_mask.frPyObjects(a['segmentation'], *sizes[a['image_id']]))
    rle['counts'] = rle['counts'].decode()
    entry = {'image_id': a['image_id'], 'category_id': a['category_id'], 'bbox': a['bbox'], 'segmentation': rle}
    results.append(entry | {'score': 1.0})
  return results


def perturbed(gt: dict, ties: bool = False) -> list[dict]:
  """Shifted boxes and masks, confused categories, duplicates, objects inside crowds; scores at random."""
  rng = np.random.default_rng(0)
  categories = [c['id'] for c in gt['categories']]
  crowds = [
    {'image_id': a['image_id'], 'category_id': a['category_id'], 'bbox': a['bbox'], 'score': 0.9,
     'segmentation': coco_mask.frPyObjects(a['segmentation'], *a['segmentation']['size'])}
    for a in gt['annotations'] if a['iscrowd']
  ]
  truth, results = truth_as_detections(gt), []
  for r in truth + truth[::3] + crowds:
    pixels = coco_mask.decode(r['segmentation'])
    shift = rng.integers(-6, 7, 2)
    rle = coco_mask.encode(np.asfortranarray(np.roll(pixels, shift, (0, 1))))
    category = r['category_id'] if rng.random() < 0.85 else int(rng.choice(categories))
    score = float(rng.integers(1, 5) / 4) if ties else float(rng.random())
    box = (np.array(r['bbox']) + rng.normal(0, 4, 4)).tolist()
    results.append({'image_id': r['image_id'], 'category_id': category, 'bbox': box, 'score': score,
                    'segmentation': {'size': rle['size'], 'counts': rle['counts'].decode()}})
  return results


def by_pycocotools(gt: dict, results: list[dict], iou_type: str) -> np.ndarray:
  with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO()
    truth.dataset = copy.deepcopy(gt)
    truth.createIndex()
    scorer = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), iou_type)
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
  return scorer.stats


@pytest.fixture(scope='module', params=[('bbox', False), ('bbox', True), ('segm', False), ('segm', True)], ids=str)
def detections(coco_dev, all_perturbed, request):
  """IoU type, detections with and without tied scores, and pycocotools' own metrics."""
  iou_type, ties = request.param
  results = all_perturbed[ties]
  if iou_type == 'segm':
    results = [{k: v for k, v in r.items() if k != 'bbox'} for r in results]
  return iou_type, results, by_pycocotools(coco_dev, results, iou_type)


def test_twelve_metrics_equal_pycocotools(coco_dev, detections, backend):
  iou_type, results, expected = detections
  before = json.dumps((coco_dev, results))
  scores = evaluate(coco_dev, results, iou_type, backend)
  assert 0.1 < expected[0] < 0.9
  np.testing.assert_allclose(list(scores.metrics.values()), expected, rtol=0, atol=1e-12)
  assert list(scores.metrics) == 'AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl'.split()
  assert json.dumps((coco_dev, results)) == before


def test_metrics_are_means_over_categories(coco_dev, some_perturbed, backend):
  scores = evaluate(coco_dev, some_perturbed, 'bbox', backend)
  assert [c.id for c in scores.categories] == sorted(c['id'] for c in coco_dev['categories'])
  names = {c['id']: c['name'] for c in coco_dev['categories']}
  assert all(c.name == names[c.id] for c in scores.categories)
  for metric, column in (('AP', 'AP'), ('AP50', 'AP50'), ('AP75', 'AP75'), ('AR100', 'AR')):
    values = np.array([getattr(c, column) for c in scores.categories])
    assert values[values >= 0].mean() == pytest.approx(scores.metrics[metric], abs=1e-12)


@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
@pytest.mark.parametrize('split', ['train2017', 'val2017'])
def test_ground_truth_as_detections_scores_one(real_images, backend, split, iou_type):
  gt = json.loads((real_images / f'coco_dev/annotations/instances_{split}.json').read_text())
  assert any(a['iscrowd'] for a in gt['annotations'])
  metrics = evaluate(gt, truth_as_detections(gt), iou_type, backend).metrics
  for name in ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'AR100', 'ARs', 'ARm', 'ARl'):
    assert metrics[name] == pytest.approx(1.0, abs=1e-12), name


def test_boxes_in_the_results_do_not_change_mask_metrics(coco_dev, some_perturbed, backend):
  bare = [{k: v for k, v in r.items() if k != 'bbox'} for r in some_perturbed]
  assert evaluate(coco_dev, some_perturbed, 'segm', backend) == evaluate(coco_dev, bare, 'segm', backend)


def test_ten_keypoint_metrics_equal_pycocotools(real_images, backend):
  gt = json.loads((real_images / 'coco_dev/annotations/person_keypoints_val2017.json').read_text())
  rng = np.random.default_rng(0)
  results = []
  for a in gt['annotations']:
    if a['num_keypoints']:
      points = np.reshape(a['keypoints'], (-1, 3)) + rng.normal(0, 3, (17, 3)) * [1, 1, 0]
      results.append({'image_id': a['image_id'], 'category_id': 1, 'keypoints': points.ravel().tolist(),
                      'score': float(rng.random())})
  metrics = evaluate(gt, results, 'keypoints', backend).metrics
  assert list(metrics) == 'AP AP50 AP75 APm APl AR AR50 AR75 ARm ARl'.split()
  np.testing.assert_allclose(list(metrics.values()), by_pycocotools(gt, results, 'keypoints'), rtol=0, atol=1e-12)


def one_image(**changes) -> dict:
  annotation = {'id': 0, 'image_id': 7, 'category_id': 3, 'bbox': [10, 10, 50, 50], 'area': 2500, 'iscrowd': 0,
                'segmentation': [[10, 10, 60, 10, 60, 60, 10, 60]]}
  return {
    'images': [{'id': 7, 'height': 100, 'width': 100}], 'annotations': [annotation | changes],
    'categories': [{'id': 3, 'name': 'cat'}, {'id': 5, 'name': 'dog'}],
  }


def test_one_image_whose_annotation_has_id_zero(backend, capfd):
  detection = {'image_id': 7, 'category_id': 3, 'bbox': [10, 10, 50, 50], 'score': 0.5}
  scores = evaluate(one_image(), [detection], 'bbox', backend)
  assert scores.metrics['AP'] == pytest.approx(1.0)
  assert scores.metrics['APs'] == -1.0  # no small object anywhere
  assert scores.categories[0].AP == pytest.approx(1.0)
  assert scores.categories[1][2:] == (-1.0, -1.0, -1.0, -1.0)  # no dog anywhere
  assert capfd.readouterr().out == ''


@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_metrics_without_detections_are_zero(backend, iou_type):
  scores = evaluate(one_image(), [], iou_type, backend)
  assert {name for name, value in scores.metrics.items() if value == 0.0} == set(METRICS) - {'APs', 'APl', 'ARs', 'ARl'}


def test_metrics_without_objects_are_minus_one(backend):
  gt = one_image(iscrowd=1, segmentation={'size': [100, 100], 'counts': [0, 10000]})
  detection = {'image_id': 7, 'category_id': 3, 'bbox': [10, 10, 50, 50], 'score': 0.5}
  for results in ([], [detection]):
    assert set(evaluate(gt, results, 'bbox', backend).metrics.values()) == {-1.0}


@pytest.mark.parametrize('share', [0.48, 0.52, 0.72, 0.93, 1.0])
@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_overlap_with_a_crowd_is_relative_to_the_detection(backend, iou_type, share):
  """A detection of which `share` lies on the crowd is ignored up to this threshold, and false above it."""
  def entry(x0, y0, x1, y1):
    return {'bbox': [x0, y0, x1 - x0, y1 - y0]} if iou_type == 'bbox' else {'segmentation': coco_mask.encode(
      np.asfortranarray(np.pad(np.ones((y1 - y0, x1 - x0), np.uint8), ((y0, 200 - y1), (x0, 300 - x1)))))}
  gt = one_image()
  gt['images'][0] |= {'height': 200, 'width': 300}
  crowd = np.zeros((200, 300), np.uint8)
  crowd[100:, 100:] = 1  # far larger than any detection, so that IoU would be close to 0
  runs = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(crowd.T.ravel())) + 1, [crowd.size]])).tolist()
  gt['annotations'].append({'id': 1, 'image_id': 7, 'category_id': 3, 'bbox': [100, 100, 200, 100], 'area': 20000,
                            'iscrowd': 1, 'segmentation': {'size': [200, 300], 'counts': runs}})
  inside = round(50 * share)
  results = [{'image_id': 7, 'category_id': 3, 'score': 0.9, **entry(50 + inside, 120, 100 + inside, 160)},
             {'image_id': 7, 'category_id': 3, 'score': 0.8, **entry(10, 10, 60, 60)}]
  thresholds = np.linspace(0.5, 0.95, 10)
  expected = np.where(thresholds <= inside / 50, 1.0, 0.5).mean()  # a false one of higher score halves precision
  assert evaluate(gt, results, iou_type, backend).metrics['AP'] == pytest.approx(expected, abs=1e-12)


def test_unknown_images_iou_types_and_backends_are_errors():
  with pytest.raises(UserError, match='image_id 8'):
    evaluate(one_image(), [{'image_id': 8, 'category_id': 3, 'bbox': [0, 0, 1, 1], 'score': 1.0}], 'bbox')
  with pytest.raises(ValueError, match='boxes'):
    evaluate(one_image(), [], 'boxes')
  with pytest.raises(ValueError, match='mine'):
    evaluate(one_image(), [], 'bbox', 'mine')


def test_output_of_other_threads_is_not_suppressed(coco_dev, capsys):
  """pycocotools prints; training prints its own lines while another thread scores."""
  done = threading.Event()

  def score():
    evaluate(coco_dev, truth_as_detections(coco_dev), 'bbox', 'pycocotools')
    done.set()

  thread = threading.Thread(target=score)
  thread.start()
  printed = 0
  while not done.is_set() or not printed:
    print('a line of training')
    printed += 1
    done.wait(0.01)
  thread.join()
  assert capsys.readouterr().out == 'a line of training\n' * printed


def rectangles(count, **fields):
  """Ground truth of one image with a row of squares, and a perfect detection of each."""
  found = [{'id': k, 'image_id': 1, 'category_id': 1, 'bbox': [20 * k, 0, 10, 10], 'area': 100, 'iscrowd': 0,
            'segmentation': [[20 * k, 0, 20 * k + 10, 0, 20 * k + 10, 10, 20 * k, 10]]} | fields for k in range(count)]
  gt = {'images': [{'id': 1, 'height': 20, 'width': 20 * count}], 'categories': [{'id': 1, 'name': 'a'}],
        'annotations': found}
  return gt, truth_as_detections(gt)


@pytest.mark.parametrize('limit', [1, 5, 30, 150])
def test_more_or_fewer_detections_are_scored(backend, limit):
  gt, results = rectangles(150)
  metrics = evaluate(gt, results, 'bbox', backend, max_detections=limit).metrics
  assert metrics[f'AR{limit}'] == pytest.approx(limit / 150)
  assert metrics['AP'] == pytest.approx((int(100 * limit / 150) + 1) / 101, abs=0.011)
  assert metrics['AR10'] == pytest.approx(min(limit, 10) / 150) and metrics['AR1'] == pytest.approx(1 / 150)


def test_objects_without_a_mask_are_ignored_by_mask_metrics_alone(backend):
  gt, results = rectangles(4)
  for annotation in gt['annotations'][:2]:
    annotation['without_mask'] = 1  # the rectangle is its box
  half = {'size': [20, 80], 'counts': coco_mask.frPyObjects([[0, 0, 10, 0, 10, 5, 0, 5]], 20, 80)[0]['counts']}
  results[0]['segmentation'] = half  # a mask inside the box of an object whose mask is not known
  assert evaluate(gt, results, 'segm', backend).metrics['AP'] == pytest.approx(1.0)
  assert evaluate(gt, results[:2] + results[3:], 'segm', backend).metrics['AP'] == pytest.approx(51 / 101)
  assert evaluate(gt, results[:2], 'bbox', backend).metrics['AP'] == pytest.approx(51 / 101)
