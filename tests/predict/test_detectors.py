"""Trained detectors: predictions are those of evaluation, for weights, averages and test-time augmentation."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from pycocotools import mask as coco_mask

from rethink_tf import api, experiment
from rethink_tf.data.categories import Category
from rethink_tf.errors import UserError
from rethink_tf.evaluation.postprocessing import ImageDetections
from rethink_tf.predict import detectors, outputs
from rethink_tf.predict.image_files import ImageArrays, ImageFiles
from tests import tiny_run

TTA = ('run.test_augmentation = @TestTimeAugmentation()', 'TestTimeAugmentation.views = ((64, 64), (48, 64))',
       'TestTimeAugmentation.keypoint_area = None')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return tiny_run.make(tmp_path_factory)

pytestmark = pytest.mark.usefixtures('no_configuration_is_left')


def predicted(run, *params, batch=2, averages=False):
  """Entries of predictions.json for the images of the run."""
  model_dir = str(run / 'run')
  experiment.configure(detectors.run_files(model_dir), [*detectors.run_bindings(model_dir, batch), *params])
  detector = detectors.RunDetector(experiment.run('evaluate', model_dir), averages=averages)
  assert f'step-{detector.step:08d}' == max(path.name for path in (run / 'run' / 'checkpoints').iterdir())
  source = ImageFiles(sorted(map(str, (run / 'images').iterdir())), detector.categories)
  found = dict(detectors.detect_all(detector, source, 0.0, lambda pixels, detections: detections))
  return outputs.results([found[i] for i in sorted(found)], source)


def evaluated(run, name='run'):
  folder = sorted((run / name / 'eval').glob('step-*'))[-1]
  return [json.loads((folder / file).read_text()) for file in ('bbox.json', 'segm.json')]


def assert_same(entries, boxes, masks):
  assert len(entries) == len(boxes) > 5
  order = lambda entry: (entry['image_id'], -entry['score'], entry['category_id'])  # noqa: E731
  for one, box, mask in zip(*(sorted(each, key=order) for each in (entries, boxes, masks)), strict=True):
    assert (one['image_id'], one['category_id']) == (box['image_id'], box['category_id'])
    np.testing.assert_allclose(one['bbox'], box['bbox'], atol=2e-3)
    assert one['score'] == pytest.approx(box['score'], abs=1e-5)
    different = coco_mask.decode(one['segmentation']) != coco_mask.decode(mask['segmentation'])
    assert different.mean() < 0.002
    assert one['file_name'] == f'{one["image_id"]:06d}.png' and one['category_name']


def test_predictions_equal_those_of_evaluation(run):
  assert_same(predicted(run), *evaluated(run))


@pytest.mark.slow
def test_predictions_of_averages_equal_those_of_their_evaluation(run):
  boxes, masks = evaluated(run, 'run/ema')
  assert [box['score'] for box in boxes] != [box['score'] for box in evaluated(run)[0]]
  assert_same(predicted(run, averages=True), boxes, masks)


@pytest.mark.slow
def test_predictions_with_test_time_augmentation_equal_those_of_evaluation(run, tmp_path):
  shutil.copytree(run, tmp_path / 'copy')
  api.evaluate(tmp_path / 'copy' / 'run', gin_params=TTA)
  assert_same(predicted(tmp_path / 'copy', *TTA, batch=1), *evaluated(tmp_path / 'copy'))


def test_a_run_folder_without_a_run(tmp_path):
  with pytest.raises(UserError, match='no config.gin in'):
    detectors.run_files(str(tmp_path))
  with pytest.raises(UserError, match='no categories.json in'):
    detectors.run_bindings(str(tmp_path))


def test_the_own_configuration_comes_first(tmp_path):
  (tmp_path / 'config.gin').write_text('')
  saved = f'{tmp_path}/config.gin'
  assert detectors.run_files(str(tmp_path), ['a.gin', saved, 'b.gin']) == [saved, 'a.gin', 'b.gin']


def test_a_folder_without_a_saved_model_of_this_package(tmp_path):
  with pytest.raises(UserError, match='no SavedModel there'):
    detectors.SavedModelDetector(str(tmp_path))
  module = tf.Module()
  module.twice = tf.function(lambda x: 2 * x, input_signature=[tf.TensorSpec([], tf.float32)])
  tf.saved_model.save(module, str(tmp_path / 'other'))
  with pytest.raises(UserError, match='is not a SavedModel of this package'):
    detectors.SavedModelDetector(str(tmp_path / 'other'))


class Backwards:
  """A detector that yields the last image first."""

  batch = 1
  categories = (Category(1, 'thing'),)
  upright = None

  def detect(self, source, threshold):
    for i in reversed(range(len(source.image_ids))):
      source.load(i)
      yield i, lambda i=i: ImageDetections(i + 1, np.zeros([1, 4]), np.array([0.5]), np.array([1]), None)


def test_pixels_and_detections_are_those_of_the_index():
  images = [np.full([4, 5], i, np.uint8) for i in range(20)]
  source = ImageArrays(images, Backwards.categories)
  found = dict(detectors.detect_all(Backwards(), source, 0.5, lambda pixels, one: (pixels[0, 0, 0], one.image_id)))
  assert found == {i: (i, i + 1) for i in range(20)}
  assert source.take(0) is None, 'released'


def test_images_that_cannot_be_read_give_none(tmp_path):
  (tmp_path / 'a.png').write_bytes(tf.io.encode_png(np.zeros([6, 6, 3], np.uint8)).numpy())
  (tmp_path / 'b.jpg').write_bytes(tf.io.encode_jpeg(np.random.default_rng(0).integers(
    0, 255, (90, 90, 3), np.uint8)).numpy()[:3000])
  source = ImageFiles([f'{tmp_path}/a.png', f'{tmp_path}/b.jpg'], Backwards.categories)
  found = dict(detectors.detect_all(Backwards(), source, 0.5, lambda pixels, one: pixels.shape))
  assert found == {0: (6, 6, 3), 1: None} and list(source.skipped) == ['b.jpg']


def test_the_threshold_cuts_every_field():
  found = ImageDetections(7, np.zeros([3, 4]), np.array([0.9, 0.5, 0.2]), np.array([1, 2, 1]), [{'size': [1, 1]}] * 3,
                          np.zeros([3, 2, 3]))
  kept = detectors.above(found, 0.5)
  assert kept.image_id == 7 and [len(field) for field in kept[1:6]] == [2] * 5 and kept.best_score == 0.9
  assert detectors.above(found, 0.2).best_score is None, 'none is left out'
  assert detectors.above(found._replace(masks=None, keypoints=None), 1.0).scores.tolist() == []
