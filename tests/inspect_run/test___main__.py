"""The command: from the saved detections of a run to tables and plots."""

import json

import cv2
import pytest

from tests import small_coco, small_voc
from tests.in_process import call
from tests.small_coco import annotation, image
from tests.test_command_line import assert_one_line


def test_the_command_reports_errors_of_boxes_and_masks(run, tmp_path):
  result = call('inspect_run', f'--model_dir={run}', cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  folder = run / 'eval' / 'step-00000002'
  record = json.loads((folder / 'errors.json').read_text())
  for kind in ('box', 'mask'):
    assert record[kind]['errors'] == {'classification': 1, 'localisation': 0, 'both': 0, 'duplicate': 0,
                                      'background': 0, 'missed': 1}
    assert record[kind]['AP'] == 0 and record[kind]['objects'] == 2
    assert record[kind]['gained']['classification'] == pytest.approx(100 * 51 / 101, abs=1e-3)
    assert record[kind]['classes']['other']['AP'] is None, 'no such objects'
    assert record[kind]['confusion']['confused'] == [
      {'annotated': 'thing', 'detected': 'other', 'count': 1, 'percent_of_annotated': 50.0}]
    assert record[kind]['confusion']['score_threshold'] == 0.5, 'nothing is true: there is no best one'
    for name in ('errors', 'worst', 'confusion', 'precision_recall'):
      name = f'{name}_{kind}.png'
      assert cv2.imread(str(folder / name)).std() > 5, name
  assert 'classification          1' in result.stdout and (folder / 'errors.txt').read_text() in result.stdout


def test_without_results(run, tmp_path):
  (run / 'eval' / 'step-00000002' / 'bbox.json').unlink()
  assert_one_line(call('inspect_run', f'--model_dir={run}', cwd=tmp_path), 'bbox.json', 'rethink_tf.evaluate')


KEYPOINTS = {'categories': [{'id': 1, 'name': 'thing', 'keypoints': ['nose', 'left_ear', 'right_ear'],
                             'skeleton': [[1, 2], [1, 3]]}]}


def test_swapped_keypoints_are_reported_as_inversions(tmp_path):
  """A detector that swaps the ears in one of two images."""
  places = [20, 20, 2, 12, 15, 2, 28, 15, 2]
  annotations = [annotation(k, image_id=k, keypoints=places, num_keypoints=3) for k in (1, 2)]
  content = {'images': [image(1), image(2)], 'annotations': annotations, **KEYPOINTS}
  small_coco.write(tmp_path / 'data', content['images'], split='val2017')
  (tmp_path / 'data/annotations/person_keypoints_val2017.json').write_text(json.dumps(content))
  folder = tmp_path / 'run/eval/step-00000002'
  folder.mkdir(parents=True)
  (tmp_path / 'run/config.gin').write_text(
    f"include 'gin_configs/keypoints_scratch_2x.gin'\nDATA_DIR = '{tmp_path}/data'\n")
  entry = {'category_id': 1, 'score': 0.9}
  boxes = [entry | {'image_id': k, 'bbox': [10, 10, 20, 30]} for k in (1, 2)]
  points = [entry | {'image_id': 1, 'keypoints': [20, 20, 1, 28, 15, 1, 12, 15, 1]},
            entry | {'image_id': 2, 'keypoints': places}]
  (folder / 'bbox.json').write_text(json.dumps(boxes))
  (folder / 'keypoints.json').write_text(json.dumps(points))
  result = call('inspect_run', f'--model_dir={tmp_path}/run',
                '--gin_param=CocoEvaluator.keypoint_sigmas = (.1, .1, .1)', cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  record = json.loads((folder / 'errors.json').read_text())
  assert record['box']['AP'] == pytest.approx(100)
  record = record['keypoint']
  assert record['errors'] == {'jitter': 0, 'inversion': 2, 'swap': 0, 'miss': 0} and record['well'] == 4
  assert record['AP'] + record['gained']['inversion'] == pytest.approx(100, abs=1e-3) and record['AP'] < 60
  assert record['keypoints']['left_ear'] == {'jitter': 0, 'inversion': 1, 'swap': 0, 'miss': 0, 'well': 1}
  assert 'inversion                2   33.3 %' in result.stdout and 'left_ear             50.0 %' in result.stdout
  for name in ('errors_keypoint.png', 'worst_keypoint.png'):
    assert cv2.imread(str(folder / name)).std() > 5, name


def test_results_of_voc_are_inspected(tmp_path):
  """A dog detected as a cat and a correct cat, in the files of the development kit."""
  data = small_voc.write(tmp_path / 'data', {'VOC2012/val': {
    '2012_000001': small_voc.xml(small_voc.item('dog', (11, 11, 40, 50))),
    '2012_000002': small_voc.xml(small_voc.item('cat', (11, 11, 40, 50)))}})
  folder = tmp_path / 'run/eval/step-00000002'
  folder.mkdir(parents=True)
  (tmp_path / 'run/config.gin').write_text(f"include 'gin_configs/voc_scratch.gin'\nDATA_DIR = '{data}'\n")
  (folder / 'comp3_det_test_cat.txt').write_text('2012_000001 0.9 11 11 40 50\n2012_000002 0.8 12.5 11 40 50\n')
  result = call('inspect_run', f'--model_dir={tmp_path}/run', cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  record = json.loads((folder / 'errors.json').read_text())
  assert list(record) == ['box'] and record['box']['objects'] == 2 and record['box']['correct'] == 1
  assert {kind: number for kind, number in record['box']['errors'].items() if number} == {'classification': 1}
  assert record['box']['gained']['classification'] == pytest.approx(75, abs=1e-3)
  assert 'comp?_det_test_*.txt' in result.stdout
  best = {'score_threshold': 0.8, 'precision': 50.0, 'recall': 50.0, 'F1': 50.0}
  assert record['box']['precision_recall']['all']['best'] == best
  rows = (folder / 'confusion_box.csv').read_text().splitlines()
  assert [row.split(',')[0] for row in rows if set(row.split(',')[1:]) - {'0'}][1:] == ['cat', 'dog']
  assert '1 of 2 objects found, 1 as another class, 0 missed' in result.stdout
  assert cv2.imread(str(folder / 'worst_box.png')).std() > 5
