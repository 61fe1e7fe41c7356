"""One file for other runtimes: detections equal those of predict, and nothing is left of one that differs."""

import json
import types

import numpy as np
import pytest

from rethink_tf.data.augment import Resize
from rethink_tf.data.detection.input import EvalInput
from rethink_tf.data.detection.synthetic import KEYPOINTS, SyntheticSource
from rethink_tf.errors import UserError
from rethink_tf.export import onnx_format, portable_files, tflite_format
from rethink_tf.models.rois import DetectionGenerator
from rethink_tf.structures import Detections
from tests import tiny
from tests.export.test_onnx_format import needs_extra


class Format:
  """A format whose files are their description, and whose runtime finds one box, `shift` pixels away."""

  def __init__(self, shift=0.0):
    self.shift = shift

  def convert(self, function, threshold, about):
    assert function == 'traced' and threshold == 0.05
    return about.encode()

  def runner(self, content):
    assert json.loads(content)['step'] == 6
    return lambda image, threshold: {'boxes': np.array([[2., 4, 15, 20]]) + self.shift, 'scores': np.array([0.5]),
                                     'classes': np.array([1])}


@pytest.fixture
def arguments(monkeypatch):
  monkeypatch.setattr(portable_files, 'function_of', lambda *_: 'traced')
  detector = types.SimpleNamespace(detection_generator=DetectionGenerator(), keypoint_head=None, mask_head=None,
                                   pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1))

  def predict(batch):
    boxes = np.array([[[2., 4, 15, 20]]], 'f') * batch.scales[0, 0]
    return Detections(boxes, np.array([[0.5]], 'f'), np.array([[1]]))

  source = SyntheticSource(2, image_size=(40, 60), object_size=(10, 20))
  return detector, predict, EvalInput(source, 1, Resize((64,), 96))


def test_a_file_is_compared_and_then_moved_into_place(arguments, tmp_path):
  out = tmp_path / 'x.onnx'
  portable_files.export(str(out), Format(), *arguments, step=6)
  assert json.loads(out.read_text())['categories'][0]['name']
  assert [path.name for path in tmp_path.iterdir()] == ['x.onnx']
  with pytest.raises(UserError, match='x.onnx exists already'):
    portable_files.export(str(out), Format(), *arguments, step=6)


def test_one_size_is_compared_at_that_size(arguments, tmp_path):
  portable_files.export(str(tmp_path / 'x.onnx'), Format(), *arguments, image_size=(50, 70), step=6)
  assert json.loads((tmp_path / 'x.onnx').read_text())['input']['image_size'] == [50, 70]


def test_nothing_is_left_of_one_that_differs(arguments, tmp_path):
  with pytest.raises(UserError, match=r'x.onnx differs from predict on image \d+, most in boxes.* 9.* pixels; it was'):
    portable_files.export(str(tmp_path / 'x.onnx'), Format(9.0), *arguments, step=6)
  assert not list(tmp_path.iterdir())
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot be written or run .*--out'):
    portable_files.export(str(tmp_path / 'file/x.onnx'), Format(), *arguments, step=6)


DETECTORS = {'masks': tiny.detector, 'keypoints': lambda: tiny.keypoint_detector(keypoints=len(KEYPOINTS)),
             'cascade': lambda: tiny.detector(cascade=tiny.cascade())}


def test_the_usual_size():
  assert portable_files.usual_size(Resize((640, 800), 1333)) == (800, 1067)
  assert portable_files.usual_size(Resize((64,), 64)) == (64, 64)


@pytest.mark.slow
@pytest.mark.parametrize('kind', DETECTORS)
@pytest.mark.parametrize('form, image_size', [
  pytest.param(onnx_format, None, marks=needs_extra), pytest.param(onnx_format, (60, 90), marks=needs_extra),
  (tflite_format, (60, 90))], ids=['onnx, any size', 'onnx, one size', 'tflite'])
def test_detections_equal_those_of_predict(tmp_path, form, kind, image_size, caplog, see_logs):
  """Compared by the export itself; without detections above the threshold it compares at 0."""
  detector, batch = DETECTORS[kind](), tiny.batch(1, keypoints=len(KEYPOINTS))
  detector(batch.images, batch.image_sizes, labels=batch, training=True)
  rng = np.random.default_rng(0)
  for layer in (detector.rpn_head.objectness, detector.box_predictor, detector.mask_predictor,
                detector.keypoint_predictor):
    for variable in layer.variables if layer else ():
      variable.assign(rng.normal(scale=0.2, size=variable.shape))  # far from ties, which runtimes decide otherwise
  source = SyntheticSource(3, num_classes=tiny.CLASSES, image_size=(60, 130), object_size=(20, 50))
  inputs = EvalInput(source, 1, Resize((64,), 96))

  def predict(batch):
    return detector(batch.images, batch.image_sizes, training=False).detections

  out = tmp_path / 'detector'
  portable_files.export(str(out), form, detector, predict, inputs, 0.1, image_size)
  compared = [record.getMessage() for record in caplog.records if 'detections compared' in record.getMessage()]
  assert len(compared) == 2 and not any(' 0 detections' in line for line in compared), compared
  image = np.zeros([*(image_size or (70, 70)), 3], np.uint8)
  found = form.runner(out.read_bytes())(image, np.float32(0.9999))
  assert found['num_detections'] == 0 and found['boxes'].shape == (0, 4)
  assert found['masks'].shape == (0, *image.shape[:2]) if 'masks' in found else found['keypoints'].shape[0] == 0
  if form is tflite_format:
    with pytest.raises(UserError, match='size_splits'):
      form.runner(out.read_bytes())(np.zeros([70, 90, 3], np.uint8), np.float32(0.5))
