"""Errors of a run by kind: from the files that an evaluation leaves, to tables and pictures."""

import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rethink_tf.errors import UserError
from rethink_tf.inspect_run import detection_errors, report, results
from tests import small_coco, small_voc
from tests.small_coco import annotation, image
from tests.test_command_line import assert_one_line, call

CATEGORIES = [{'id': 1, 'name': 'thing'}, {'id': 4, 'name': 'other'}]


@pytest.fixture
def run(tmp_path):
  """A run folder as an evaluation leaves it, of a detector that took one thing for another and missed one."""
  annotations = [annotation(1), annotation(2, image_id=2)]
  data = small_coco.write(tmp_path / 'data', [image(1), image(2)], annotations, CATEGORIES, 'val2017')
  folder = tmp_path / 'run'
  for step in (2, 4):
    (folder / 'eval' / f'step-{step:08d}').mkdir(parents=True)
  (folder / 'config.gin').write_text(
    f"include 'gin_configs/scratch_6x.gin'\nDATA_DIR = '{data}'\n")
  entry = {'image_id': 1, 'category_id': 4, 'score': 0.9}
  newest = folder / 'eval' / 'step-00000002'  # the later one has left none
  (newest / 'bbox.json').write_text(json.dumps([entry | {'bbox': [10, 10, 20, 30]}]))
  mask = np.zeros((60, 80), np.uint8, order='F')
  mask[10:40, 10:30] = 1
  rle = coco_mask.encode(mask)
  rle = {'size': rle['size'], 'counts': rle['counts'].decode()}
  (newest / 'segm.json').write_text(json.dumps([entry | {'segmentation': rle}]))
  return folder


def test_the_command(run, tmp_path):
  result = call('inspect_run', f'--model_dir={run}', cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  folder = run / 'eval' / 'step-00000002'
  found = json.loads((folder / 'errors.json').read_text())
  for kind in ('box', 'mask'):
    assert found[kind]['errors'] == {'classification': 1, 'localisation': 0, 'both': 0, 'duplicate': 0, 'background': 0,
                                     'missed': 1}
    assert found[kind]['AP'] == 0 and found[kind]['objects'] == 2
    assert found[kind]['gained']['classification'] == pytest.approx(100 * 51 / 101, abs=1e-3)
    assert found[kind]['classes']['other']['AP'] is None, 'no such object'
    for name in (f'errors_{kind}.png', f'worst_{kind}.png'):
      assert cv2.imread(str(folder / name)).std() > 5, name
  assert 'classification          1' in result.stdout and (folder / 'errors.txt').read_text() in result.stdout


def test_without_results(run, tmp_path):
  (run / 'eval' / 'step-00000002' / 'bbox.json').unlink()
  assert_one_line(call('inspect_run', f'--model_dir={run}', cwd=tmp_path), 'bbox.json', 'rethink_tf.evaluate')


def test_the_newest_evaluation_with_results(run):
  assert results.newest_results(str(run)) == f'{run}/eval/step-00000002'
  with pytest.raises(UserError, match='no evaluation'):
    results.newest_results(str(run / 'eval'))


def test_a_table_of_many_classes_is_cut():
  categories = [{'id': k, 'name': f'a rather long name of class {k}'} for k in range(1, 40)]
  annotations = [annotation(k, category_id=k, bbox=(k, k, 30, 30)) for k in range(1, 40)]
  gt = {'images': [image(1, 99, 99)], 'categories': categories, 'annotations': annotations}
  text = report.table(detection_errors.analyse(gt, []), 'box', 'title')
  rows = [line for line in text.splitlines() if 'a rather long' in line]
  assert len(rows) == report.LISTED and len({len(row) for row in rows}) == 1
  assert rows[0].split()[-6:] == ['0.0', '0.0', '0.0', '0.0', '0.0', '100.0']


KEYPOINTS = {'categories': [{'id': 1, 'name': 'thing', 'keypoints': ['nose', 'left_ear', 'right_ear'],
                             'skeleton': [[1, 2], [1, 3]]}]}


def test_keypoints(tmp_path):
  """A detector that takes the left ear for the right one, and the other way round, in one of two pictures."""
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
  found = json.loads((folder / 'errors.json').read_text())
  assert found['box']['AP'] == pytest.approx(100)
  found = found['keypoint']
  assert found['errors'] == {'jitter': 0, 'inversion': 2, 'swap': 0, 'miss': 0} and found['well'] == 4
  assert found['AP'] + found['gained']['inversion'] == pytest.approx(100, abs=1e-3) and found['AP'] < 60
  assert found['keypoints']['left_ear'] == {'jitter': 0, 'inversion': 1, 'swap': 0, 'miss': 0, 'well': 1}
  assert 'inversion                2   33.3 %' in result.stdout and 'left_ear             50.0 %' in result.stdout
  for name in ('errors_keypoint.png', 'worst_keypoint.png'):
    assert cv2.imread(str(folder / name)).std() > 5, name


def test_voc(tmp_path):
  """A dog that is taken for a cat, and a cat that is found: from the files of the development kit."""
  data = small_voc.write(tmp_path / 'data', {'VOC2012/val': {
    '2012_000001': small_voc.xml(small_voc.item('dog', (11, 11, 40, 50))),
    '2012_000002': small_voc.xml(small_voc.item('cat', (11, 11, 40, 50)))}})
  folder = tmp_path / 'run/eval/step-00000002'
  folder.mkdir(parents=True)
  (tmp_path / 'run/config.gin').write_text(f"include 'gin_configs/voc_scratch.gin'\nDATA_DIR = '{data}'\n")
  (folder / 'comp3_det_test_cat.txt').write_text('2012_000001 0.9 11 11 40 50\n2012_000002 0.8 12.5 11 40 50\n')
  result = call('inspect_run', f'--model_dir={tmp_path}/run', cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  found = json.loads((folder / 'errors.json').read_text())
  assert list(found) == ['box'] and found['box']['objects'] == 2 and found['box']['correct'] == 1
  assert {kind: number for kind, number in found['box']['errors'].items() if number} == {'classification': 1}
  assert found['box']['gained']['classification'] == pytest.approx(75, abs=1e-3)
  assert 'comp?_det_test_*.txt' in result.stdout
  assert cv2.imread(str(folder / 'worst_box.png')).std() > 5


def test_json_of_another_kind_is_refused(run):
  folder = run / 'eval' / 'step-00000002'
  gt = {'images': [image(1)], 'annotations': [], 'categories': CATEGORIES}
  assert [kind for kind, *_ in results.read_results(str(folder), gt, 'data')] == ['box', 'mask']
  (folder / 'keypoints.json').write_text((folder / 'bbox.json').read_text())
  with pytest.raises(UserError, match="keypoints.json: is not a list in COCO's results format"):
    list(results.read_results(str(folder), gt, 'data'))
