"""Pairs of left and right keypoints: spellings, categories with pairs of their own, left-overs."""

import numpy as np
import pytest

from rethink_tf.data.augment import Resize
from rethink_tf.data.categories import Category, categories_to_json, parse_categories
from rethink_tf.data.conversion import convert
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.input import TrainInput
from rethink_tf.data.detection.records import RecordSource
from rethink_tf.data.keypoint_pairs import flip_order
from rethink_tf.errors import UserError
from tests.small_coco import annotation, warnings, write

PERSON = {'id': 1, 'name': 'person', 'keypoints': ['nose', 'left_hand', 'right_hand']}
DOG = {'id': 2, 'name': 'dog', 'keypoints': ['left_ear', 'right_ear', 'tail']}


@pytest.mark.parametrize('left, right', [
  ('left_eye', 'right_eye'), ('Left_Eye', 'Right_Eye'), ('L_Eye', 'R_Eye'), ('l_ankle', 'r_ankle'),
  ('LEFT EYE', 'RIGHT EYE'), ('leftEye', 'rightEye'), ('LEye', 'REye'), ('eye.L', 'eye.R'), ('ear-left', 'ear-right'),
  ('lefteye', 'righteye'), ('earLeft', 'earRight'), ('l1', 'r1'), ('left', 'Right'), ('upright_left', 'upright_right'),
  ('hip (left)', 'hip (right)')])
def test_spellings(left, right):
  assert flip_order(('nose', left, 'tail', right)).tolist() == [0, 3, 2, 1]


@pytest.mark.parametrize('names', [
  (), ('left_only', 'tail'), ('left_eye', 'eye'), ('left_eye', 'LEFT EYE', 'right_eye'), ('lip', 'tip'),
  ('lower', 'upper'), ('x', 'x')])
def test_without_a_counterpart_a_keypoint_keeps_its_place(names):
  assert flip_order(names).tolist() == list(range(len(names)))


def test_pairs_by_hand_replace_those_by_name():
  names = ('left_a', 'right_a', 'west', 'east')
  assert flip_order(names, [('west', 'east')]).tolist() == [1, 0, 3, 2]
  assert flip_order(names, [('left_a', 'east')]).tolist() == [3, 1, 2, 0]
  order = flip_order(names, [('west', 'left_a'), ('nowhere', 'east')])
  assert order[order].tolist() == [0, 1, 2, 3]  # a flip undoes a flip


def flipped_x(source):
  """x of the keypoints of each class, from a batch in which the image is flipped."""
  inputs = TrainInput(source, 1, resize=Resize((60,), 80))
  for step in range(50):
    if inputs.sample([0], np.array([step]))[0][0]:
      batch = inputs.batch(step)
      return {int(k): batch.gt_keypoints[0, i, :, 1].tolist() for i, k in enumerate(batch.gt_classes[0]) if k}
  raise AssertionError('never flipped')


def test_each_category_has_its_own_pairs(tmp_path):
  points = [12, 15, 2, 20, 15, 2, 28, 15, 2]
  entries = [annotation(1, keypoints=points), annotation(2, keypoints=points, category_id=2)]
  folder = write(tmp_path / 'coco', annotations=entries, categories=[PERSON, DOG])
  source = CocoSource(folder, keypoints=True)
  assert flipped_x(source) == {1: [67, 51, 59], 2: [59, 67, 51]}
  convert(source, str(tmp_path / 'records'), 'train2017', 1)
  assert flipped_x(RecordSource(str(tmp_path / 'records'), keypoints=True)) == {1: [67, 51, 59], 2: [59, 67, 51]}


def test_left_overs_are_named(tmp_path, caplog):
  person = PERSON | {'keypoints': ['nose', 'left_hand', 'right_paw']}
  folder = write(tmp_path, annotations=[annotation(1, keypoints=[12, 15, 2] * 3)], categories=[person])
  TrainInput(CocoSource(folder, keypoints=True), 1)
  assert '2 keypoints have a side in their name but no counterpart' in warnings(caplog)[-1]
  assert '(person: left_hand, person: right_paw)' in warnings(caplog)[-1]
  caplog.clear()
  paired = CocoSource(folder, keypoints=True, keypoint_pairs=(('left_hand', 'right_paw'),))
  TrainInput(paired, 1)
  TrainInput(CocoSource(folder, keypoints=True), 1, flip=False)
  assert not [line for line in warnings(caplog) if 'counterpart' in line]
  assert parse_categories(categories_to_json(paired.categories), 'x') == paired.categories  # as in a run folder


@pytest.mark.parametrize('pairs, message', [
  ((('left_hand', 'tail'),), "no category has both keypoints 'left_hand' and 'tail'"),
  (('left_hand', 'right_hand'), 'write pairs of keypoint names'), (((1, 2),), 'write pairs')])
def test_wrong_pairs_are_one_line(tmp_path, pairs, message):
  folder = write(tmp_path, annotations=[annotation(1)], categories=[PERSON])
  with pytest.raises(UserError, match=f'coco.keypoint_pairs.*{message}'):
    CocoSource(folder, keypoints=True, keypoint_pairs=pairs)


def test_null_in_a_category_is_as_left_out():
  entry = {'id': 1, 'name': 'a', 'keypoints': None, 'skeleton': None, 'keypoint_pairs': None}
  assert parse_categories([entry], 'x') == (Category(1, 'a'),)
