"""Drawn results and photographs, on which the ends of the pipeline are measured."""

import json

import cv2

from rethink_tf.bench import pipelines


def test_both_scorers_agree_on_drawn_results():
  rows = pipelines.scoring(1, 6)
  assert [row.group for row in rows] == ['COCO bbox', 'COCO bbox', 'COCO segm', 'COCO segm']
  for row in rows:
    assert float(row.note.rsplit(' ', 1)[1]) <= 1e-12


def test_drawn_results_hold_crowds_and_near_misses():
  truth, found = pipelines.drawn_results(40)
  assert len(truth['annotations']) == 280 and {a['iscrowd'] for a in truth['annotations']} == {0, 1}
  assert len(found['bbox']) == len(found['segm']) == 4000
  assert 0.02 < pipelines.coco_metrics.evaluate(truth, found['bbox'], 'bbox').figures['AP'] < 0.9


def test_drawn_photographs_have_cocos_layout(tmp_path):
  pipelines.real_images(str(tmp_path), number=2)
  document = json.loads((tmp_path / 'annotations/instances_train2017.json').read_text())
  for image in document['images']:
    height, width = cv2.imread(str(tmp_path / 'train2017' / image['file_name'])).shape[:2]
    assert (height, width) == (image['height'], image['width']) and 480 <= min(height, width)
