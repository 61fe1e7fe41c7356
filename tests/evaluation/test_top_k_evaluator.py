"""Top-k against NumPy, and the files of an evaluation."""

import csv

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.data.classification.image_folder import ImageFolder
from rethink_tf.data.classification.input import ClassificationEvalInput
from rethink_tf.distributed.workers import Workers
from rethink_tf.errors import UserError
from rethink_tf.evaluation.top_k_evaluator import TopKEvaluator, rank_labels
from rethink_tf.storage.run_folder import RunFolder
from tests.small_classes import write_folders


@pytest.mark.parametrize('classes', [2, 3, 5, 40])
def test_ranks_and_entropies_equal_a_loop(classes):
  rng = np.random.default_rng(classes)
  logits = rng.normal(0, 3, (50, classes)).astype(np.float32)
  labels = rng.integers(0, classes, (50, 1))
  found = rank_labels(logits, labels, np.arange(50))
  for row in range(50):
    own = labels[row, 0]
    assert found.ranks[row] == sum(logits[row] > logits[row, own]) and found.classes[row] == logits[row].argmax()
    probabilities = np.exp(logits[row].astype(np.float64)) / np.exp(logits[row].astype(np.float64)).sum()
    np.testing.assert_allclose(found.entropies[row], -np.log(probabilities[own]), rtol=1e-6)
    np.testing.assert_allclose(found.probabilities[row], probabilities.max(), rtol=1e-6)


def test_several_labels_padding_ties_and_rows_that_are_not_finite():
  logits = np.array([[3., 2, 1], [1, 1, 1], [9, 0, 0], [np.nan, 0, 0]])
  labels = np.array([[2, 1], [1, -1], [0, -1], [1, -1]])
  found = rank_labels(logits, labels, np.array([7, 8, -1, 9]))
  assert found.image_ids.tolist() == [7, 8, 9]
  assert found.ranks.tolist() == [1, 1, 3]  # the best of two labels; the second of three equal scores; not finite
  assert np.isfinite(found.entropies).all()
  assert rank_labels(logits[:1], labels[:1, :1] * [1, -1], np.array([7])).ranks.tolist() == [2]  # one of one image
  equal = rank_labels(np.zeros([3, 1000]), np.array([[0], [500], [999]]), np.arange(3))
  assert equal.ranks.tolist() == [0, 500, 999] and equal.classes.tolist() == [0, 0, 0]


def evaluator(tmp_path, predict, batch_size=5, **arguments):
  source = ImageFolder(str(write_folders(tmp_path / 'data', per_class=4)), 'val')
  inputs = ClassificationEvalInput(source, batch_size, crop_size=32, short_side=32)
  folder = RunFolder(tmp_path / 'run')
  return TopKEvaluator(inputs, predict, source, folder, **arguments), source, folder


def test_a_negative_number_of_pictures_is_refused(tmp_path):
  with pytest.raises(UserError, match='^TopKEvaluator.num_pictures = -1: use 0 or more$'):
    evaluator(tmp_path, by_colour, num_pictures=-1)


def test_an_evaluation_of_averages_is_called_one(tmp_path, capsys):
  one, _, folder = evaluator(tmp_path, by_colour)
  one.evaluate(3)
  one._run_folder = folder.subfolder('ema')
  one.evaluate(3)
  printed = capsys.readouterr().out
  assert 'evaluation at step 3: 12 images' in printed
  assert 'evaluation at step 3 of the averages of the weights: 12 images' in printed


def by_colour(batch):
  """Predict blue and green images correctly, red ones (class 2) as blue (class 0)."""
  means = tf.reduce_mean(tf.cast(batch.images, tf.float32), [1, 2])  # RGB
  return tf.stack([means[:, 2] + 300 * tf.cast(means[:, 0] > 150, tf.float32), means[:, 1], means[:, 0]], axis=1) / 10


def test_files_of_an_evaluation(tmp_path):
  one, _, folder = evaluator(tmp_path, by_colour)
  metrics = one.evaluate(30, {'weights': 'x'})
  assert metrics['top-1'] == pytest.approx(100 * 8 / 12) and metrics['top-5'] == 100 and one.last == metrics
  line = folder.read_metrics()[-1]
  assert (line['kind'], line['step'], line['weights'], line['top-1']) == ('eval', 30, 'x', metrics['top-1'])
  results = tmp_path / 'run/eval/step-00000030'
  rows = list(csv.DictReader(open(results / 'categories.csv')))
  assert [(row['category'], row['images'], float(row['top-1'])) for row in rows] == [
    ('blue', '4', 100), ('green', '4', 100), ('red', '4', 0)]
  grid = tf.io.decode_png((results / 'predictions.png').read_bytes()).numpy()
  green, red = ((grid == colour).all(-1).sum() for colour in ((58, 154, 91), (209, 73, 91)))
  assert green > 1.5 * red > 0  # frames of eight true and four false predictions
  folder.flush()
  events = list((tmp_path / 'run/tensorboard').rglob('*tfevents*'))
  tags = {value.tag for path in events for event in tf.compat.v1.train.summary_iterator(str(path))
          for value in event.summary.value}
  assert {'eval/top-1', 'eval/top-5', 'eval/cross-entropy', 'eval/images'} <= tags


def test_a_source_other_than_that_of_the_input_is_a_user_error(tmp_path):
  one, source, _ = evaluator(tmp_path, by_colour)
  source.image_ids = source.image_ids + 1
  one._input.source = ImageFolder(str(tmp_path / 'data'), 'val')
  with pytest.raises(UserError, match='evaluation saw 12 of 12 images: build eval_input'):
    one.evaluate(1)


def test_a_failed_write_is_logged(tmp_path, caplog):
  one, _, folder = evaluator(tmp_path, by_colour, num_pictures=0)
  (tmp_path / 'run/eval').write_text('a file instead of a folder')
  assert one.evaluate(1)['top-1'] > 60
  assert 'could not be written' in caplog.text and folder.read_metrics()[-1]['step'] == 1


@pytest.mark.parametrize('count', [2, 4])  # three batches: of four workers one has no batch
def test_workers_share_the_images(tmp_path, count):
  alone, *_ = evaluator(tmp_path / 'alone', by_colour)
  metrics = alone.evaluate(30)
  last = []
  for index in reversed(range(count)):
    one, _, folder = evaluator(tmp_path / 'shared', by_colour)
    one.workers = Workers(index, count, 'token')
    last.append(one.evaluate(30))
  assert last[-1] == pytest.approx(metrics, abs=1e-12) and last[:-1] == [{}] * (count - 1)
  assert len(folder.read_metrics()) == 1
  tables = [tmp_path / name / 'run/eval/step-00000030/categories.csv' for name in ('alone', 'shared')]
  assert tables[0].read_bytes() == tables[1].read_bytes()


def test_unreadable_images_are_not_scored(tmp_path, capsys):
  write_folders(tmp_path / 'data', per_class=4)
  damaged, one = tmp_path / 'data/val/red/0.jpg', evaluator(tmp_path, by_colour)[0]
  damaged.write_bytes(b'no image')  # red images are predicted wrongly
  assert one.evaluate(30)['top-1'] == pytest.approx(100 * 8 / 11)
  assert '11 of 12 images' in capsys.readouterr().out
  line = RunFolder(tmp_path / 'run').read_metrics()[-1]
  assert (line['images_scored'], line['images_missing'], line['images_unreadable']) == (11, 0, 1)
