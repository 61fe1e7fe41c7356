"""VIA's projects and annotations: shapes, and the attribute that holds the class."""

import base64
import json

import cv2
import numpy as np
import pytest

from rethink_tf.data.prepare import via
from rethink_tf.data.prepare.labelme import WITHOUT_AREA
from rethink_tf.data.prepare.layout import FEW_POINTS, NO_AREA, NO_CLASS, NO_IMAGE, NOT_FINITE, NOT_NAMED, Options
from rethink_tf.data.prepare.source_folder import SourceFolder
from rethink_tf.data.prepare.via import CLOSED
from rethink_tf.errors import UserError
from tests.data.prepare.layouts import reading_of


def region(attributes=None, **shape):
  return {'shape_attributes': {'name': 'rect', 'x': 1, 'y': 2, 'width': 3, 'height': 4} | shape,
          'region_attributes': {'type': 'cat'} if attributes is None else attributes}


def read(root, regions, options=None, project=True, images=('a.jpg',), **fields):
  entries = {'a.jpg100': {'filename': 'a.jpg', 'size': 100, 'regions': regions, 'file_attributes': {}} | fields}
  content = {'_via_settings': {}, '_via_img_metadata': entries} if project else entries
  return reading_of(via, root, {'via.json': json.dumps(content)}, images, options)


@pytest.mark.parametrize('project', [True, False])
def test_shapes(tmp_path, project):
  reading, (image,) = read(tmp_path, [
    region(), region(name='polygon', all_points_x=[1, 5, 5], all_points_y=[1, 1, 6]),
    region(name='circle', cx=10, cy=9, r=4), region(name='ellipse', cx=10, cy=12, rx=6, ry=3, theta=np.pi / 2),
    region(name='polyline', all_points_x=[1, 5, 5], all_points_y=[1, 1, 6]), region(name='point', cx=1, cy=1),
    region(name='polygon', all_points_x=[1, 5], all_points_y=[1, 1]), region(width=0), region(x='1'),
    region(name='polygon', all_points_x=[1, 5, 5], all_points_y=[1, 1]), region({'type': ''}), region({'type': None}),
    7, region(name=['rect'])], project=project)
  assert [one['bbox'] for one in image.instances[:2]] == [[1, 2, 3, 4], [1, 1, 4, 5]]
  assert np.allclose(image.instances[2]['bbox'], [6, 5, 8, 8]) and image.instances[0]['segmentation'] == []
  assert np.allclose(image.instances[3]['bbox'], [7, 6, 6, 12]) and image.instances[3]['category'] == 'cat'
  assert dict(reading.problems.counts) == {
    f"{WITHOUT_AREA} ('polyline')": 1, f"{WITHOUT_AREA} ('point')": 1, f"{WITHOUT_AREA} (['rect'])": 1,
    FEW_POINTS: 1, NO_AREA: 1, NOT_FINITE: 3, NO_CLASS: 2}


@pytest.mark.parametrize('attributes, name', [
  ({}, 'object'), ({'type': {'cat': True, 'dog': False}}, 'cat'), ({'type': {'cat': True, 'dog': True}}, None),
  ({'type': 3}, '3'), ({'type': ' cat '}, 'cat'), ({'type': 'a\x1b'}, None)])
def test_classes(tmp_path, attributes, name):
  reading, (image,) = read(tmp_path, [region(attributes)])
  assert [one['category'] for one in image.instances] == ([name] if name else [])
  assert reading.problems.counts[NO_CLASS] == (name is None) and len(reading.notes) == (attributes == {})


def test_images_that_are_not_named_are_counted(tmp_path):
  reading, _ = read(tmp_path, [region()], images=('a.jpg', 'b.jpg'))
  assert dict(reading.problems.counts) == {NOT_NAMED: 1}


def test_a_closed_polyline_is_an_outline(tmp_path):
  xs, ys = [1, 50, 50, 1], [1, 1, 60, 3]
  reading, (image,) = read(tmp_path, [region(name='polyline', all_points_x=xs, all_points_y=ys),
                                      region(name='polyline', all_points_x=xs[:3], all_points_y=ys[:3])])
  assert [one['segmentation'] for one in image.instances] == [[[1, 1, 50, 1, 50, 60, 1, 3]]]
  assert dict(reading.problems.counts) == {CLOSED: 1, f"{WITHOUT_AREA} ('polyline')": 1}


def several(root, files):
  """Return the reading of files of VIA, {path: {image: regions}}, whose images are beside them."""
  for file, images in files.items():
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps({f'{name}1': {'filename': name, 'size': 1, 'regions': regions}
                                         for name, regions in images.items()}))
    for name in images:
      (root / file).with_name(name).write_text('')
  reading = via.read(SourceFolder(str(root)), Options())
  return reading, {image.file: (image.split, len(image.instances)) for image in reading.images}


def test_a_project_its_export_and_an_earlier_copy(tmp_path):
  reading, images = several(tmp_path, {
    'train/project.json': {'a.jpg': [region()]}, 'train/via_region_data.json': {'a.jpg': [region()]},
    'val/via (0).json': {'a.jpg': [], 'b.jpg': [region()]},
    'val/via.json': {'a.jpg': [region(), region()], 'b.jpg': [region()]}})
  assert images == {'train/a.jpg': ('train', 1), 'val/a.jpg': ('val', 2), 'val/b.jpg': ('val', 1)}
  assert reading.notes == [via.REPEATED.format(count=3, files=4)] and not reading.problems.counts


def test_a_file_for_each_image(tmp_path):
  many = {f'{i}.json': {f'{i}.jpg': [region()]} for i in range(45)}
  reading, images = several(tmp_path, many)
  assert len(images) == 45 and set(images.values()) == {(None, 1)} and not reading.notes


def test_different_regions_of_an_image(tmp_path):
  with pytest.raises(UserError, match="a.json and b.json have different regions of 1.jpg: name one.*--annotation_file"):
    several(tmp_path, {'a.json': {'1.jpg': [region()]}, 'b.json': {'1.jpg': [region({'type': 'dog'})]}})


def test_several_attributes(tmp_path):
  regions = [region({'type': 'cat', 'colour': 'red'})]
  with pytest.raises(UserError, match='attributes colour, type: name the one.*--class_key'):
    read(tmp_path, regions)
  _, (image,) = read(tmp_path, regions, Options(class_key='colour'))
  assert image.instances[0]['category'] == 'red'
  with pytest.raises(UserError, match="--class_key = 'size' is not an attribute of its regions: colour, type"):
    read(tmp_path, regions, Options(class_key='size'))


def test_images_within_and_missing(tmp_path):
  data = cv2.imencode('.png', np.zeros([8, 9, 3], np.uint8))[1].tobytes()
  _, (image,) = read(tmp_path / 'in', [region()], images=(), filename='C:\\x\\b.jpg',
                     base64_img_data='data:image/png;base64,' + base64.b64encode(data).decode())
  assert image.file == 'b.png' and image.data == data
  reading, images = read(tmp_path / 'gone', [region()], images=(), filename='../a.jpg')
  assert not images and reading.problems.counts[NO_IMAGE] == 1
