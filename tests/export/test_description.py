"""The description of an exported detector: names, skeleton, sizes, normalisation."""

import json
import types

import pytest

from rethink_tf.data.augment import Resize
from rethink_tf.data.categories import Category, parse_categories
from rethink_tf.export import description
from rethink_tf.models.rois import DetectionGenerator

PERSON = Category(7, 'person', ('nose', 'left_eye', 'right_eye'), ((1, 2), (1, 3)))


def detector(keypoints=True):
  head = object()
  return types.SimpleNamespace(
    keypoint_head=head if keypoints else None, mask_head=None if keypoints else head, pixel_mean=(1.0, 2.0, 3.0),
    pixel_std=(4.0, 5.0, 6.0), detection_generator=DetectionGenerator())


def test_everything_travels(tmp_path):
  about = description.of_detector(detector(), Resize((640, 800), 1333), [PERSON], 0.05, step=6, averages=True,
                                  image_size=(480, 640))
  description.write(str(tmp_path / 'deep/detector.json'), about)
  found = json.loads((tmp_path / 'deep/detector.json').read_text())
  assert found == about and found == json.loads(description.to_text(about))
  assert parse_categories(found['categories'], 'x') == (PERSON,)
  assert found['step'] == 6 and found['averages'] is True and found['score_threshold'] == 0.05
  assert found['outputs'] == ['boxes', 'scores', 'classes', 'keypoints']
  inputs = found['input']
  assert (inputs['short_side'], inputs['max_side'], inputs['image_size']) == (800, 1333, [480, 640])
  assert [800, 1088] in inputs['padded_shapes']
  assert inputs['pixel_mean'] == [1, 2, 3] and inputs['pixel_std'] == [4, 5, 6]


@pytest.mark.parametrize('upright', [True, False, None])
def test_how_its_images_were_read(tmp_path, upright):
  about = description.of_detector(detector(), Resize(), [PERSON], 0.05, upright=upright)
  description.write(str(tmp_path / description.IN_FOLDER), about)
  assert description.reads_upright(str(tmp_path)) is upright
  assert ('EXIF' in about['input']['image']) == (upright is True)
  (tmp_path / description.IN_FOLDER).write_text('{"input": []}')
  assert description.reads_upright(str(tmp_path)) is None and description.reads_upright(str(tmp_path / 'no')) is None


def test_a_detector_without_keypoints_names_none():
  about = description.of_detector(detector(keypoints=False), Resize(), [PERSON], 0.05)
  assert about['categories'] == [{'id': 7, 'name': 'person'}] and about['input']['image_size'] is None
  assert about['outputs'] == ['boxes', 'scores', 'classes', 'masks']
