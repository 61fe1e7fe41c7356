"""The report on a data set: every spoilt thing is found, on one that has them all."""

import json

import cv2
import numpy as np
import pytest

from rethink_tf.data.augment import Resize
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.input import TrainInput
from rethink_tf.inspect_data import figures, report, statistics
from tests import small_coco
from tests.small_coco import annotation, image
from tests.test_command_line import assert_one_line, call

CATEGORIES = [{'id': 1, 'name': 'thing'}, {'id': 4, 'name': 'seldom'}]


@pytest.fixture(scope='module')
def spoilt(tmp_path_factory):
  """Training images 1 to 4 and 201, held-out ones 1 and 9; 4 has no objects, 201 is painted like both images 1."""
  folder = tmp_path_factory.mktemp('data')
  annotations = [annotation(i, image_id=1 + i % 3, bbox=(5 + i, 10, 20, 30)) for i in range(1, 13)]
  annotations += [annotation(20, image_id=2, bbox=(70, 10, 30, 30)), annotation(21, image_id=201),
                  annotation(22, image_id=201), annotation(23, image_id=3, category_id=4, bbox=(2, 2, 3, 2)),
                  small_coco.crowd(24, image_id=3)]
  small_coco.write(folder, [image(i) for i in (1, 2, 3, 4, 201)], annotations, CATEGORIES, 'train2017')
  small_coco.write(folder, [image(1), image(9)], [annotation(1), annotation(2, image_id=9)], CATEGORIES, 'val2017')
  return folder


def feed_of(folder, **settings):
  return TrainInput(CocoSource(str(folder), training=True), batch_size=2, resize=Resize((64,), 96), **settings)


def test_the_command(spoilt, tmp_path):
  out = tmp_path / 'runs/data' / spoilt.name
  result = call('inspect_data', '--gin_file=gin_configs/scratch_6x.gin', f'--data_dir={spoilt}',
                '--gin_param=Resize.short_side = (64,)', '--gin_param=Resize.max_side = 96', '--pictures=6',
                '--gin_param=BATCH_SIZE = 2', cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  found = json.loads((out / 'report.json').read_text())
  training = found['training']
  assert (training['images'], training['instances'], training['crowds']) == (5, 16, 1)
  assert training['images_without_objects'] == 1 and training['few'] == ['seldom']
  suspicious = {(suspect['kind'], suspect['annotation_id'], suspect['image_id']) for suspect in training['doubts']}
  assert {(statistics.OUTSIDE, 20, 2), (statistics.REPEATED, 22, 201), (statistics.TINY_BOX, 23, 3)} <= suspicious
  assert found['in_both'] == {'id': [[1, 1]], 'name': [[1, 1]], 'content': [[1, 1]]}
  assert found['padding'][-1]['images'] == 4
  text = (out / 'report.txt').read_text()
  assert text in result.stdout
  for line in ('4 images are trained on; 1 are left out', '1 box outside the image: annotation 20',
               "2 images that share their file's content with another: 1 = 201", '1 images without objects',
               '1 classes with fewer than 10 instances: seldom'):
    assert line in text, line
  for name in ('training.png', 'statistics.png', 'doubts.png'):
    assert cv2.imread(str(out / name)).std() > 5, name


def test_held_out_images_among_the_training_images(spoilt):
  def part(split):
    source = CocoSource(str(spoilt), split)
    return report.Part(split, source, None, {}, [], statistics.fingerprints(source, False))

  pairs = report.both(part('train2017'), part('val2017'))
  assert pairs == {'id': [(0, 0)], 'name': [(0, 0)], 'content': [(0, 0)]}


def test_padding_by_canvas(spoilt):
  rows = report.padding(feed_of(spoilt))
  # 60 x 80 resized to 64 x 85 on 64 x 96.
  assert rows == [{'canvas': [64, 96], 'images': 4, 'waste': pytest.approx(1 - 85 / 96, abs=1e-4)},
                  {'canvas': None, 'images': 4, 'waste': pytest.approx(1 - 85 / 96, abs=1e-4)}]


def test_training_pictures_are_those_of_the_first_steps(spoilt):
  inputs = feed_of(spoilt)
  data = figures.training_sheet(inputs, 5)
  sheet = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
  assert sheet.shape[1] == figures.COLUMNS * 492 + 12
  assert sheet.shape[0] > 2 * 300, 'two rows'


@pytest.mark.parametrize('outline, painted', [
  ([20, 20, 60, 20, 60, 50, 20, 50], False), ([20, 35, 40, 20, 60, 35, 40, 50], True)], ids=['box', 'diamond'])
def test_boxes_without_masks_are_not_painted_over(outline, painted, tmp_path):
  objects = [annotation(1, bbox=(20, 20, 40, 30), segmentation=[outline])]
  inputs = feed_of(small_coco.write(tmp_path, [image(1)], objects))
  sheet = cv2.imdecode(np.frombuffer(figures.training_sheet(inputs, 1), np.uint8), cv2.IMREAD_COLOR)
  scale = 480 / 96 * 64 / 60  # of the photograph on its canvas in a cell
  centre = sheet[round(38 + 35 * scale), round(12 + 40 * scale)]  # on a grey photograph
  assert (np.ptp(centre.astype(int)) > 20) == painted


def test_what_cannot_be_inspected(tmp_path):
  assert_one_line(call('inspect_data', cwd=tmp_path), '--gin_file')
  assert_one_line(call('inspect_data', '--gin_file=gin_configs/scratch_6x.gin', cwd=tmp_path), 'instances_train2017')
