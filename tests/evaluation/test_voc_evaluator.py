"""VocEvaluator with a detector that outputs the ground truth, on two small images and on voc100."""

import csv
import json

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.data.detection.input import EvalInput
from rethink_tf.data.detection.voc import VocSource
from rethink_tf.errors import UserError
from rethink_tf.evaluation.voc_evaluator import VocEvaluator, read_results
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.structures import Detections
from tests.small_voc import item, write, xml


@pytest.fixture
def source(tmp_path):
  return VocSource(write(tmp_path / 'data', {'val': {
    '7': xml(item('dog', (1, 1, 40, 60)), item('cat', (41, 1, 80, 60), difficult=1)),
    '8': xml(item('dog', (11, 21, 30, 50)), item('old cat', (31, 1, 50, 20)))}}),
    sets=('val',), classes=('cat', 'dog', 'old cat', 'owl'))


def detect(batch):
  """Return the ground truth of training, with scores of 0.9."""
  return Detections(batch.gt_boxes, tf.cast(batch.gt_classes > 0, tf.float32) * 0.9, batch.gt_classes)


def make(source, path, predict=detect, **changes):
  return VocEvaluator(EvalInput(source, 2), predict, source, RunFolder(str(path)), **changes)


def test_ground_truth_scores_100(source, tmp_path, capsys):
  evaluator = make(source, tmp_path)
  metrics = evaluator.evaluate(12, {'images': 3})
  assert metrics == pytest.approx({'voc/mAP': 100.0, 'voc/AP75': 100.0, 'voc/AP': 100.0}) and evaluator.last == metrics
  line = RunFolder(str(tmp_path)).read_metrics()[-1]
  assert line['kind'] == 'eval' and line['step'] == 12 and line['images'] == 3 and line['voc/mAP'] == metrics['voc/mAP']
  printed = capsys.readouterr().out
  assert 'mAP 100.0' in printed and 'voc AP50 by category' in printed and 'owl' not in printed


def test_files_of_an_evaluation(source, tmp_path):
  evaluator = make(source, tmp_path, competition='comp3')
  evaluator.evaluate(1)
  evaluator.evaluate(2)
  folder = tmp_path / 'eval/step-00000002'
  assert {p.name for p in folder.iterdir()} == {
    'categories.csv', 'predictions.png', 'comp3_det_test_cat.txt', 'comp3_det_test_dog.txt',
    'comp3_det_test_old_cat-3.txt', 'comp3_det_test_owl.txt', 'ground_truth.json'}
  assert {p.name for p in (tmp_path / 'eval/step-00000001').iterdir()} == {'categories.csv', 'predictions.png'}
  lines = [line.split() for line in (folder / 'comp3_det_test_dog.txt').read_text().splitlines()]
  assert [line[0] for line in lines] == ['7', '8'] and float(lines[0][1]) == np.float32(0.9)
  np.testing.assert_allclose([[float(x) for x in line[2:]] for line in lines], [[1, 1, 40, 60], [11, 21, 30, 50]],
                             atol=0.01)  # the corners of the xml
  rows = list(csv.reader((folder / 'categories.csv').read_text().splitlines()))
  assert rows[0] == ['id', 'category', 'voc/AP50', 'voc/AP75', 'voc/AP']
  assert [row[2] for row in rows[1:]] == ['-1.000', '100.000', '100.000', '-1.000']  # only a difficult cat, and no owl
  make(source, tmp_path / 'b', save_results=False, num_pictures=0).evaluate(3)
  assert [p.name for p in (tmp_path / 'b').glob('eval/*/*')] == ['categories.csv']


def test_read_results_inverts_the_files(source, tmp_path):
  """In COCO's format, boxes as x, y, w, h."""
  gt = source.annotations()
  assert read_results(str(tmp_path), gt) is None
  make(source, tmp_path).evaluate(2)
  results = read_results(str(tmp_path / 'eval/step-00000002'), gt)
  easy = [a for a in gt['annotations'] if not a['difficult']]
  key = lambda entry: (entry['category_id'], entry['image_id'])  # noqa: E731
  assert sorted(map(key, results)) == sorted(map(key, easy)) and len(results) == 3
  for result, expected in zip(sorted(results, key=key), sorted(easy, key=key), strict=True):
    np.testing.assert_allclose(result['bbox'], expected['bbox'], atol=0.01)
    assert result['score'] == pytest.approx(0.9)
  # The same step again, for the other competition: the files of the first stay beside it.
  make(source, tmp_path, lambda batch: detect(batch)._replace(scores=0.3 * detect(batch).scores),
       competition='comp3').evaluate(2)
  folder = tmp_path / 'eval/step-00000002'
  make(source, tmp_path).evaluate(2)
  assert len(list(folder.glob('comp?_det_test_cat.txt'))) == 2
  saved = json.loads((folder / 'ground_truth.json').read_text())
  assert [one['score'] for one in read_results(str(folder), saved)] == pytest.approx([0.9] * 3)


def test_images_of_the_same_name_are_kept_apart(tmp_path):
  """VOC's years may share names, as may folders of COCO's layout."""
  cat, dog = xml(item('cat', (1, 1, 40, 60))), xml(item('cat', (41, 1, 80, 60)))
  data = write(tmp_path / 'data', {'A/val': {'1': cat}, 'B/val': {'1': dog, '2': dog}})
  source = VocSource(data, sets=('A/val', 'B/val'), classes=('cat',))
  make(source, tmp_path).evaluate(1)
  folder, gt = tmp_path / 'eval/step-00000001', source.annotations()
  lines = (folder / 'comp4_det_test_cat.txt').read_text().splitlines()
  assert [line.split()[0] for line in lines] == ['A_JPEGImages_1', 'B_JPEGImages_1', '2']
  boxes = {result['image_id']: result['bbox'] for result in read_results(str(folder), gt)}
  assert len(boxes) == 3
  for entry in gt['annotations']:
    np.testing.assert_allclose(boxes[entry['image_id']], entry['bbox'], atol=0.01)


@pytest.mark.parametrize('files, lines', [
  (('a/1.jpg', 'b/1.jpg', '2.jpg'), ('a_1', 'b_1', '2')),
  (('1.jpg', '1.png', 'a/2.jpg'), ('1-1', '1-2', '2')),
  (('a/1.jpg', 'b/1.jpg', 'a_1.jpg'), ('a_1-1', 'b_1', 'a_1-3')),
  (('1.jpg', '1.png', '1-1.jpg'), ('1-1-1', '1-2', '1-1-3')),
  (('a/b c.jpg', 'b c.jpg'), ('a_b c', 'b c')),
])
def test_names_in_result_files(tmp_path, files, lines):
  gt = {'images': [{'id': id_, 'file_name': name} for id_, name in enumerate(files, start=1)],
        'categories': [{'id': 1, 'name': 'cat'}]}
  (tmp_path / 'comp4_det_test_cat.txt').write_text(''.join(f'{line} 0.9 1 1 40 60\n' for line in lines))
  assert [result['image_id'] for result in read_results(str(tmp_path), gt)] == list(range(1, len(files) + 1))


def test_shared_names_of_earlier_files_are_user_errors(tmp_path):
  gt = {'images': [{'id': 1, 'file_name': 'a/1.jpg'}, {'id': 2, 'file_name': 'b/1.jpg'}],
        'categories': [{'id': 1, 'name': 'cat'}]}
  (tmp_path / 'comp4_det_test_cat.txt').write_text('1 0.9 1 1 40 60\n')
  with pytest.raises(UserError, match='image 1 is not in the data, or several have this name: .* or evaluate again'):
    read_results(str(tmp_path), gt)


@pytest.mark.parametrize('line, message', [
  ('7 0.9 1 1 40', 'image score xmin'), ('7 0.9 1 1 40 x', 'image score xmin'), ('9 0.9 1 1 40 60', 'image 9 is not'),
])
def test_malformed_results_are_user_errors(source, tmp_path, line, message):
  (tmp_path / 'comp4_det_test_dog.txt').write_text(f'7 0.9 1 1 40 60\n{line}\n')
  with pytest.raises(UserError, match=f'comp4_det_test_dog.txt:2: .*{message}'):
    read_results(str(tmp_path), source.annotations())


def test_false_and_difficult_detections(source, tmp_path):
  def also_cats(batch):
    """Add, with higher scores, a cat at the difficult one and dogs where there is nothing."""
    rows = batch.gt_boxes.shape[0]
    scale = tf.tile(batch.scales, [1, 2])[:, None]
    cat = tf.constant([[[0, 40, 60, 80], [50, 60, 60, 79]]], tf.float32) * scale
    kinds = tf.where(batch.image_ids[:, None] == 7, [[1, 2]], [[0, 2]])
    truth = detect(batch)
    return Detections(tf.concat([cat, truth.boxes], 1), tf.concat([tf.fill([rows, 2], 0.95), truth.scores], 1),
                      tf.concat([tf.cast(kinds, tf.int32), truth.classes], 1))

  metrics = make(source, tmp_path, also_cats).evaluate(1)
  assert metrics['voc/mAP'] == pytest.approx((50 + 100) / 2)  # two of four dogs are false, with the highest scores
  eleven_points = make(source, tmp_path / 'b', also_cats, rule='11-point').evaluate(1)
  assert eleven_points['voc/mAP'] == pytest.approx((50 + 100) / 2)


def test_without_detections(source, tmp_path):
  metrics = make(source, tmp_path, lambda batch: Detections(*map(tf.zeros_like, detect(batch)[:3]))).evaluate(1)
  assert metrics == {'voc/mAP': 0.0, 'voc/AP75': 0.0, 'voc/AP': 0.0}


def test_without_objects(tmp_path):
  empty = VocSource(write(tmp_path / 'data', {'val': {'1': xml(item(difficult=1))}}), sets=('val',))
  assert make(empty, tmp_path).evaluate(1) == {'voc/mAP': -1.0, 'voc/AP75': -1.0, 'voc/AP': -1.0}


def test_unknown_choices_are_user_errors(source, tmp_path):
  with pytest.raises(UserError, match='VocEvaluator.rule'):
    make(source, tmp_path, rule='12-point')
  with pytest.raises(UserError, match='^VocEvaluator.num_pictures = -1: use 0 or more$'):
    make(source, tmp_path, num_pictures=-1)
  with pytest.raises(UserError, match='VocEvaluator.competition'):
    make(source, tmp_path, competition='comp5')


def test_voc100_through_the_pipeline(real_images, tmp_path):
  source = VocSource(str(real_images / 'voc100'), sets=('val',))
  metrics = make(source, tmp_path).evaluate(1)
  assert metrics['voc/mAP'] == pytest.approx(100.0) and metrics['voc/AP'] == pytest.approx(100.0)
