"""Synthetic detections and images that input and scoring are measured on."""

import json
import types

import cv2
import pytest

from rethink_tf.bench import pipelines
from rethink_tf.data.augment import Resize
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.input import TrainInput
from rethink_tf.errors import UserError


def test_both_libraries_agree_on_synthetic_results():
  rows = pipelines.scoring(1, 6)
  assert [row.group for row in rows] == ['COCO bbox', 'COCO bbox', 'COCO segm', 'COCO segm']
  for row in rows:
    assert float(row.note.rsplit(' ', 1)[1]) <= 1e-12


def test_synthetic_results_have_crowds_and_inexact_boxes():
  truth, found = pipelines.synthetic_results(40)
  assert len(truth['annotations']) == 280 and {a['iscrowd'] for a in truth['annotations']} == {0, 1}
  assert len(found['bbox']) == len(found['segm']) == 4000
  assert 0.02 < pipelines.coco_metrics.evaluate(truth, found['bbox'], 'bbox').metrics['AP'] < 0.9


def test_images_are_written_in_the_layout_of_coco(tmp_path):
  pipelines.write_images(str(tmp_path), number=2)
  document = json.loads((tmp_path / 'annotations/instances_train2017.json').read_text())
  for image in document['images']:
    height, width = cv2.imread(str(tmp_path / 'train2017' / image['file_name'])).shape[:2]
    assert (height, width) == (image['height'], image['width']) and 480 <= min(height, width)


def test_the_input_is_measured_beside_what_none_can_do_without(tmp_path):
  source = CocoSource(pipelines.write_images(str(tmp_path), number=3), training=True)
  inputs = TrainInput(source, 2, resize=Resize((64,), 96))
  rows = pipelines.input_speed(types.SimpleNamespace(train_input=inputs), rounds=2, images=4)
  assert [row.name for row in rows] == ['rethink_tf', 'with copy-paste', 'decoding and resizing alone']
  assert all(row.images == 4 and row.timing.median > 0 for row in rows)
  alone = pipelines.input_speed(types.SimpleNamespace(train_input=inputs), 1, 4, chosen=['with copy-paste'])
  assert [row.name for row in alone] == ['with copy-paste']
  with pytest.raises(UserError, match="--row=records: this input has the rows 'rethink_tf', 'with copy-paste'"):
    pipelines.input_speed(types.SimpleNamespace(train_input=inputs), 1, 4, chosen=['records'])
