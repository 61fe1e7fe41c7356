"""LabelMe's shapes of every kind, groups, embedded images."""

import base64
import json

import cv2
import numpy as np
import pytest

from rethink_tf.data.detection.segmentation import ROTATED
from rethink_tf.data.prepare import labelme
from rethink_tf.data.prepare.layout import (
  FEW_POINTS,
  NO_AREA,
  NO_CLASS,
  NO_IMAGE,
  NOT_ANNOTATED,
  NOT_FINITE,
  NOT_RASTERISED,
  SECOND_FILE,
)
from rethink_tf.data.prepare.shapes import JOINED
from rethink_tf.errors import UserError
from tests.data.prepare.layouts import reading_of
from tests.exports import rasterise


def png(pixels):
  return base64.b64encode(cv2.imencode('.png', pixels)[1].tobytes()).decode()


def shape(kind, points, label='cat', group=None, **fields):
  return {'label': label, 'points': points, 'group_id': group, 'shape_type': kind, 'flags': {}, **fields}


def read(root, shapes, images=('a.jpg',), files=None, **fields):
  """Return the reading of a file of LabelMe, and its images."""
  content = {'version': '5.4.1', 'flags': {}, 'shapes': shapes, 'imagePath': 'a.jpg', 'imageData': None,
             'imageHeight': 20, 'imageWidth': 30} | fields
  return reading_of(labelme, root, {'a.json': json.dumps(content), **(files or {})}, images)


def test_shapes(tmp_path):
  triangle = [[1, 1], [9, 1], [9, 9]]
  mask = np.zeros([4, 5], np.uint8)
  mask[1, 2:] = 255
  reading, (image,) = read(tmp_path, [
    shape('polygon', triangle), shape('rectangle', [[8, 9], [2, 3]]), shape('circle', [[10, 10], [10, 15]]),
    shape('mask', [[3, 4], [7, 7]], mask=png(mask)), shape('rectangle', [[1, 1], [4, 1], [4, 3], [1, 3]]),
    shape('polygon', triangle[:2]), shape('point', [[1, 1]]), shape('linestrip', triangle),
    shape('circle', [[1, 1]] * 2),
    shape('polygon', triangle, label=''), shape('polygon', [[1, None]] * 3),
    shape('mask', [[0, 0], [3, 3]], mask='AAAA'),
    7, shape('rectangle', [[1e400, 1], [3, 3]]), shape('rectangle', [[1, 1], [1, 5]]),
    shape('rectangle', [[1, 1], [5, 1]])])
  polygon, rectangle, circle, painted, corners = image.instances
  assert polygon == {'category': 'cat', 'bbox': [1, 1, 8, 8], 'area': 32, 'segmentation': [[1, 1, 9, 1, 9, 9]]}
  assert rectangle['bbox'] == [2, 3, 6, 6] and rectangle['segmentation'] == [] and corners['bbox'] == [1, 1, 3, 2]
  assert circle['bbox'] == [5, 5, 10, 10] and abs(circle['area'] - np.pi * 25) < 0.5
  assert painted['bbox'] == [5, 5, 3, 1] and rasterise(painted['segmentation'], (20, 30)).sum() == 3
  assert dict(reading.problems.counts) == {
    FEW_POINTS: 1, f'{labelme.WITHOUT_AREA} (\'point\')': 1, f'{labelme.WITHOUT_AREA} (\'linestrip\')': 1, NO_AREA: 3,
    NO_CLASS: 2, NOT_FINITE: 2, labelme.BAD_MASK: 1}


@pytest.mark.parametrize('kind', ['rotation', 'oriented_rectangle'])
def test_turned_rectangles_are_the_boxes_around_them(tmp_path, kind):
  reading, (image,) = read(tmp_path, [shape(kind, [[10, 2], [20, 8], [17, 13], [7, 7]]), shape(kind, [[1, 1], [5, 5]])])
  assert [(one['bbox'], one['segmentation']) for one in image.instances] == [([7, 2, 13, 11], [])]
  assert dict(reading.problems.counts) == {ROTATED: 1, f'{labelme.WITHOUT_AREA} ({kind!r})': 1}


def test_labels_that_are_no_classes(tmp_path):
  triangle = [[1, 1], [9, 1], [9, 9]]
  reading, (image,) = read(tmp_path, [shape('polygon', triangle), shape('polygon', triangle, label='__ignore__'),
                                      shape('polygon', triangle, label='_background_')])
  assert [one['category'] for one in image.instances] == ['cat']
  assert dict(reading.problems.counts) == {labelme.NO_OBJECT: 2}


def test_rectangles_in_one_group_are_counted(tmp_path):
  reading, (image,) = read(tmp_path, [shape('rectangle', [[x, 1], [x + 2, 4]], group=group)
                                      for x, group in ((1, 1), (8, 1), (12, 2), (16, None))])
  assert [one['bbox'] for one in image.instances] == [[1, 1, 9, 3], [12, 1, 2, 3], [16, 1, 2, 3]]
  assert dict(reading.problems.counts) == {JOINED: 1}


def test_a_mask_and_a_huge_outline_in_one_group(tmp_path):
  mask = shape('mask', [[1, 1], [2, 2]], group=1, mask=png(np.full([2, 2], 255, np.uint8)))
  reading, (image,) = read(tmp_path, [mask, shape('polygon', [[1, 1], [9e5, 1], [9e5, 9e5]], group=1)])
  assert not image.instances and dict(reading.problems.counts) == {NOT_RASTERISED: 1}


def test_groups_are_one_object(tmp_path):
  left, right = [[1, 1], [5, 1], [5, 5]], [[11, 1], [15, 1], [15, 5]]
  mask = np.full([2, 2], 255, np.uint8)
  reading, (image,) = read(tmp_path, [
    shape('polygon', left, group=1), shape('polygon', right, group=1), shape('polygon', left, 'dog', group=1),
    shape('polygon', left, group=2), shape('rectangle', [[0, 0], [7, 8]], group=2),
    shape('polygon', right, group=3), shape('mask', [[20, 10], [21, 11]], group=3, mask=png(mask)),
    shape('polygon', left), shape('polygon', left)])
  assert [one['category'] for one in image.instances] == ['cat', 'dog', 'cat', 'cat', 'cat', 'cat']
  assert len(image.instances[0]['segmentation']) == 2 and image.instances[0]['bbox'] == [1, 1, 14, 4]
  assert image.instances[2]['bbox'] == [0, 0, 7, 8] and image.instances[2]['segmentation']  # a box and its outline
  whole = rasterise(image.instances[3]['segmentation'], (20, 30))
  assert whole[10:12, 20:22].all() and whole[2, 14] and whole.sum() < 16
  assert not reading.problems.counts


def test_images_within_and_beside(tmp_path):
  data = png(np.zeros([20, 30, 3], np.uint8))
  _, (image,) = read(tmp_path / 'in', [], images=(), imageData=data, imagePath='..\\x\\b.jpg')
  assert image.file == 'a.png' and image.data == base64.b64decode(data) and image.size == (20, 30)
  lines = '\n'.join(data[i:i + 60] for i in range(0, len(data), 60))
  _, (wrapped,) = read(tmp_path / 'lines', [], images=(), imageData=f'data:image/png;base64,{lines}')
  assert wrapped.data == image.data
  _, (image,) = read(tmp_path / 'beside', [], imagePath='C:\\renamed\\before.jpg', imageData=data)
  assert image.file == 'a.jpg' and image.data is None
  with pytest.raises(UserError, match='none of its 1 JSON files has shapes and an image'):
    read(tmp_path / 'none', [], images=(), imageData='%%%')


def test_other_files_are_counted(tmp_path):
  other = json.dumps({'shapes': [], 'imagePath': 'gone.jpg'})
  reading, images = read(tmp_path, [], ('a.jpg', 'z.jpg'), files={
    'b.json': '{}', 'c.json': '{"shapes": [', 'd.json': other,
    'x/a.json': json.dumps({'shapes': [], 'imagePath': 'a.jpg'})})
  assert len(images) == 1 and reading.problems.counts[labelme.FOREIGN] == 1
  assert reading.problems.counts[NOT_ANNOTATED] == 1  # z.jpg
  assert reading.problems.counts['JSON file that is damaged'] == 1
  assert reading.problems.counts[NO_IMAGE] == 2  # of x/a.json, too: a.json is beside a.jpg


def test_a_second_file_of_an_image(tmp_path):
  reading, images = read(tmp_path, [], files={'z.json': json.dumps({'shapes': [], 'imagePath': 'a.jpg'})})
  assert len(images) == 1 and reading.problems.counts[SECOND_FILE] == 1


def test_splits_are_those_of_the_annotation_files_alone(tmp_path):
  files = {f'{split}/b.json': json.dumps({'shapes': [], 'imagePath': 'b.jpg'}) for split in ('train', 'val')}
  _, images = read(tmp_path, [], ['train/b.jpg', 'val/b.jpg'], files | {'dataset_info.json': '{}'},
                   imagePath='gone.jpg')
  assert [(image.file, image.split) for image in images] == [('train/b.jpg', 'train'), ('val/b.jpg', 'val')]
