"""YOLO's pose labels: keypoints, their visibility, and which of them a flip exchanges."""

import json

import numpy as np
import pytest

from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.keypoint_pairs import flip_order
from rethink_tf.data.prepare import preparation, yolo, yolo_pose
from rethink_tf.data.prepare.layout import Options
from rethink_tf.data.prepare.source_folder import SourceFolder
from rethink_tf.errors import UserError

BOX = '0 0.5 0.5 0.2 0.4'


def read(root, yaml, *lines):
  """Return the reading of one image with a label file, and its objects."""
  for name, text in {'data.yaml': yaml, 'images/a.jpg': '', 'labels/a.txt': '\n'.join(lines)}.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
  reading = yolo.read(SourceFolder(str(root)), Options())
  (image,) = reading.images
  return reading, image.instances


def test_people_of_coco_there_and_back(real_images, tmp_path):
  """Written as Ultralytics writes COCO's people: keypoints, visibility and left and right are those of the source."""
  source = json.loads((real_images / 'coco_dev/annotations/person_keypoints_val2017.json').read_text())
  (person,) = source['categories']
  mirrored = flip_order(person['keypoints']).tolist()
  assert mirrored[1] == 2
  people = {image['id']: [one for one in source['annotations'] if one['image_id'] == image['id'] and not one['iscrowd']]
            for image in source['images']}
  used = [image for image in source['images'] if any(one['num_keypoints'] for one in people[image['id']])][:6]
  for i, image in enumerate(used):
    width, height, split = image['width'], image['height'], 'val' if i < 2 else 'train'
    lines = []
    for one in people[image['id']]:
      x, y, w, h = one['bbox']
      points = np.reshape(one['keypoints'], [-1, 3]) / [width, height, 1]
      lines.append(' '.join(f'{value:.8g}' for value in (0, (x + w / 2) / width, (y + h / 2) / height, w / width,
                                                         h / height, *points.ravel())))
    for folder, name, data in (('images', image['file_name'], (
        real_images / 'coco_dev/val2017' / image['file_name']).read_bytes()), (
        'labels', image['file_name'].replace('.jpg', '.txt'), '\n'.join(lines).encode())):
      path = tmp_path / 'export' / folder / split / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(data)
  (tmp_path / 'export/data.yaml').write_text(
    f'train: images/train\nval: images/val\nkpt_shape: [17, 3]\nflip_idx: {mirrored}\nnames:\n  0: person\n')

  prepared = preparation.prepare(str(tmp_path / 'export'), str(tmp_path / 'out'))
  assert preparation.KEYPOINTS in prepared.notes and not prepared.problems[0][1].counts
  found = 0
  for split in ('train', 'val'):
    read_again = CocoSource(str(tmp_path / 'out'), split, keypoints=True)
    (category,) = read_again.categories
    assert flip_order(category.keypoints, category.keypoint_pairs).tolist() == mirrored
    for entry in json.loads((tmp_path / f'out/annotations/instances_{split}.json').read_text())['annotations']:
      image = next(image for image in used if image['file_name'] == read_again.file_names[
        read_again.image_ids.tolist().index(entry['image_id'])])
      want = min(people[image['id']], key=lambda one: np.abs(np.subtract(one['bbox'], entry['bbox'])).max())
      np.testing.assert_allclose(entry['bbox'], want['bbox'], atol=2e-3)
      np.testing.assert_allclose(entry['keypoints'], want['keypoints'], atol=2e-3)
      assert entry['num_keypoints'] == want['num_keypoints']
      found += 1
  assert found == sum(len(people[image['id']]) for image in used) > 6


@pytest.mark.parametrize('shape, values, keypoints', [
  ('[2, 3]', '0.5 0.25 2 0.75 0.5 1', [0.5, 0.25, 2, 0.75, 0.5, 1]),
  ('[2, 3]', '0.5 0.25 0 0 0 0', [0, 0, 0, 0, 0, 0]), ('[1, 3]', '0.5 0.25 0.4', [0.5, 0.25, 1]),
  ('[2, 2]', '0.5 0.25 0 0', [0.5, 0.25, 2, 0, 0, 0]), ('[2, 2]', '0 0.25 -1 0.5', [0, 0.25, 2, 0, 0, 0])])
def test_visibility(tmp_path, shape, values, keypoints):
  reading, (instance,) = read(tmp_path, f'kpt_shape: {shape}\nnames: [cat]', f'{BOX} {values}')
  assert instance == {'category': 0, 'bbox': [0.4, 0.3, 0.2, 0.4], 'segmentation': [], 'keypoints': keypoints,
                      'num_keypoints': sum(one > 0 for one in keypoints[2::3])}
  assert not reading.problems.counts


def test_other_numbers_of_values(tmp_path):
  reading, instances = read(tmp_path, 'kpt_shape: [2, 3]\nnames: [cat]', BOX, f'{BOX} 0.5 0.5 2',
                            f'{BOX} 0.5 0.5 2 320 240 2')
  assert instances == [{'category': 0, 'bbox': [0.4, 0.3, 0.2, 0.4], 'segmentation': []}] * 2
  assert dict(reading.problems.counts) == {yolo.KEYPOINTS: 1, yolo.IN_PIXELS: 1}


@pytest.mark.parametrize('yaml, categories', [
  ('flip_idx: [1, 0]', {'keypoints': ['keypoint 1', 'keypoint 2'], 'keypoint_pairs': [['keypoint 1', 'keypoint 2']]}),
  ('kpt_names: {0: [near, far]}\nflip_idx: [1, 0]',
   {'keypoints': ['near', 'far'], 'keypoint_pairs': [['near', 'far']]}),
  ('kpt_names: {0: [left, right]}', {'keypoints': ['left', 'right']}),
  ('flip_idx: [0, 1]', {'keypoints': ['keypoint 1', 'keypoint 2']}), ('', {'keypoints': ['keypoint 1', 'keypoint 2']})])
def test_names_and_pairs(tmp_path, yaml, categories):
  reading, _ = read(tmp_path, f'kpt_shape: [2, 3]\nnames: [cat]\n{yaml}', BOX)
  assert reading.categories == {0: {'id': 1, 'name': 'cat', **categories}}
  assert (yolo_pose.NO_PAIRS.format(file='data.yaml') in reading.notes) == (yaml == '')


@pytest.mark.parametrize('line, pose', [
  ('0 0.5 0.5 0.2 0.4 0.5 0.5 2.0 0.42 0.6 1 0 0 0', 3), ('0 0.5 0.5 0.2 0.4 0.5 0.5 2 0.42 0.6 1', 2),
  ('0 0.5 0.5 0.2 0.4 0.5 0.5 2 0.9 0.6 1', 0), ('0 0.1 0.1 0.5 0.1 1 0.5 1 1 0.2 1', 0)])
def test_keypoints_that_no_description_announces(tmp_path, line, pose):
  reading, (instance, box) = read(tmp_path / 'poses', 'names: [cat]', line, BOX)
  assert len(instance.get('keypoints', ())) == 3 * pose and ('bbox' in instance) == bool(pose) and 'bbox' in box
  assert len(reading.categories[0].get('keypoints', ())) == pose
  assert (yolo_pose.NO_SHAPE.format(count=pose) in reading.notes) == bool(pose)
  for other in ('0 0.1 0.1 0.5 0.1 0.5 0.5', '0 0.5 0.5 0.2 0.4 0.5 0.5 2 0.42 0.6 1 0 0 0 0 0 0'):
    reading, instances = read(tmp_path / 'outlines', 'names: [cat]', line, other)  # beside which it is one by chance
    assert not any('bbox' in one for one in instances) and 'keypoints' not in reading.categories[0]


@pytest.mark.parametrize('yaml, message', [
  ('kpt_shape: [17]', r'data.yaml: kpt_shape should be the number of keypoints.*\[17, 3\]'),
  ('kpt_shape: [2, 4]', 'kpt_shape should be'), ('kpt_shape: [0, 3]', 'kpt_shape should be'),
  ('kpt_shape: 17', 'kpt_shape should be'), ('kpt_shape: [1000000, 3]', 'kpt_shape should be'),
  ('kpt_shape: [3, 3]\nflip_idx: [0, 2]', 'flip_idx should list, for each of the 3 keypoints'),
  ('kpt_shape: [3, 3]\nflip_idx: [1, 2, 0]', 'flip_idx should list'),
  ('kpt_shape: [2, 3]\nkpt_names: {0: [nose]}', 'kpt_names of class 0 should be 2 different names'),
  ('kpt_shape: [2, 3]\nkpt_names: [nose, tail]', 'kpt_names should have the names')])
def test_descriptions_that_contradict_themselves(tmp_path, yaml, message):
  with pytest.raises(UserError, match=message):
    read(tmp_path, f'names: [cat]\n{yaml}', BOX)
