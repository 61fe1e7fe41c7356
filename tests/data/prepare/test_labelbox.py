"""Labelbox's export: projects, labels, names of images, objects and rows that are wrong."""

import json

import pytest

from rethink_tf.data.prepare import labelbox
from rethink_tf.data.prepare.labelme import WITHOUT_AREA
from rethink_tf.data.prepare.layout import (
  AGAIN,
  FEW_POINTS,
  MISSING,
  NO_AREA,
  NO_CLASS,
  NO_IMAGE,
  NOT_FINITE,
  NOT_NAMED,
  OF_AGAIN,
  Options,
)
from rethink_tf.errors import UserError
from tests.data.prepare.layouts import reading_of


def box(left=1, top=2, width=3, height=4, name='cat'):
  return {'name': name, 'bounding_box': {'left': left, 'top': top, 'width': width, 'height': height}}


def label(*objects, **details):
  return {'annotations': {'objects': list(objects)}, 'performance_details': details}


def row(name, *labels, **projects):
  things = {'p1': {'name': 'things', 'labels': list(labels)}}
  projects = {key: {'labels': one} for key, one in projects.items()} or things
  data = name if isinstance(name, dict) else {'external_id': name, 'id': f'id-{name}'}
  return {'data_row': data, 'media_attributes': {'height': 20, 'width': 30}, 'projects': projects}


def read(root, rows, images=('a.jpg',), options=None, file='export.ndjson', text=None):
  """Return the reading of an export, and its images."""
  text = '\n'.join(one if isinstance(one, str) else json.dumps(one) for one in rows) if text is None else text
  return reading_of(labelbox, root, {file: text}, images, options)


@pytest.mark.parametrize('as_list', [False, True])
def test_boxes_and_polygons(tmp_path, as_list):
  points = [(1, 2), (7, 2), (7, 5.5), (1, 4)]
  rows = [row('a.jpg', label(box(1.5), {'name': ' a dog ', 'polygon': [{'x': x, 'y': y} for x, y in points]}))]
  file, text = ('x.json', json.dumps(rows, indent=1)) if as_list else ('export.ndjson', None)
  reading, (image,) = read(tmp_path, rows, file=file, text=text)
  assert [(one['category'], one['bbox']) for one in image.instances] == [
    ('cat', [1.5, 2, 3, 4]), ('a dog', [1, 2, 6, 3.5])]
  assert image.instances[1]['segmentation'] == [[1, 2, 7, 2, 7, 5.5, 1, 4]]
  assert image.size == (20, 30) and not reading.problems.counts and reading.total == 1


def test_wrong_objects_are_counted(tmp_path):
  bad = [box(name=None), box(name=' '), 7, box(None), box(float('nan')), box('1'), box(width=0), box(height=-1),
         {'name': 'cat', 'bounding_box': [1, 2, 3, 4]}, {'name': 'cat', 'polygon': [{'x': 1, 'y': 2}] * 2},
         {'name': 'cat', 'polygon': [{'x': 1}] * 3}, {'name': 'cat', 'mask': {'url': 'https://api/mask'}},
         {'name': 'cat', 'composite_mask': {'url': 'https://api/mask'}}, {'name': 'cat', 'line': [{'x': 1, 'y': 2}]}]
  reading, (image,) = read(tmp_path, [row('a.jpg', label(*bad, box()))])
  assert len(image.instances) == 1
  assert dict(reading.problems.counts) == {NO_CLASS: 3, NOT_FINITE: 5, NO_AREA: 2, FEW_POINTS: 1, labelbox.MASK: 2,
                                           WITHOUT_AREA: 1}


def test_images_without_objects_not_labelled_missing_and_named_twice(tmp_path):
  reading, images = read(tmp_path, [
    row('a.jpg', label(box())), row('b.jpg', label()), row('c.jpg'), row('d.jpg', label(box(), skipped=True)),
    row('e.jpg', {'annotations': {'frames': {}}}), row('a.jpg', label(box(), box())), row('../x.jpg', label(box())),
    '{"data_row', '[7]', {'data_row': {}, 'projects': {}}, {'data_row': {'id': 'x'}, 'projects': 7}],
    images=[f'{name}.jpg' for name in 'abcdef'])
  assert [(image.file, len(image.instances)) for image in images] == [('a.jpg', 1), ('b.jpg', 0)]
  assert dict(reading.problems.counts) == {labelbox.NO_LABEL: 4, AGAIN: 1, OF_AGAIN: 2, NO_IMAGE: 1, MISSING: 1,
                                           labelbox.NOT_A_ROW: 3, NOT_NAMED: 1}


def test_the_first_of_several_labels_is_used_and_told(tmp_path):
  reading, (image,) = read(tmp_path, [row('a.jpg', label(box(9), skipped=True), label(box(1)), label(box(2), box(3)))])
  assert [one['bbox'][0] for one in image.instances] == [1]
  assert dict(reading.problems.counts) == {labelbox.SEVERAL: 1}


def test_of_several_projects_one_is_read(tmp_path):
  rows = [row('a.jpg', p1=[label(box(1))], p2=[label(box(2))], p3=[]), row('b.jpg', p1=[label(box(3))])]
  with pytest.raises(UserError, match=r'labels of the projects p1 \(p1\), p2 \(p2\): name the one .* --class_key'):
    read(tmp_path, rows)
  reading, (image,) = read(tmp_path, rows, ('a.jpg', 'b.jpg'), Options(class_key='p2'))
  assert [one['bbox'][0] for one in image.instances] == [2] and dict(reading.problems.counts) == {labelbox.NO_LABEL: 1}
  with pytest.raises(UserError, match=r"--class_key = 'p3' is no project with labels: p1 \(p1\), p2 \(p2\)"):
    read(tmp_path, rows, options=Options(class_key='p3'))
  _, (image,) = read(tmp_path, [row('a.jpg', label(box()))], options=Options(class_key='things'))
  assert len(image.instances) == 1


@pytest.mark.parametrize('data, images, found', [
  ({'external_id': 'x/a.jpg'}, ('a.jpg',), 'a.jpg'), ({'external_id': 'a'}, ('train/a.jpg', 'b.jpg'), 'train/a.jpg'),
  ({'external_id': 'a'}, ('a.jpg', 'a.png'), None), ({'external_id': '7', 'id': 'b'}, ('b.png',), 'b.png'),
  ({'external_id': '7', 'row_data': 'https://x/data/b.png?key=1'}, ('b.png',), 'b.png'),
  ({'external_id': 'a.jpg', 'row_data': 'https://x/data/b.png'}, ('b.png',), None),
  ({'external_id': None, 'global_key': 'b'}, ('val/b.png',), 'val/b.png')])
def test_names_of_images(tmp_path, data, images, found):
  _, read_images = read(tmp_path, [row(data, label(box()))], images)
  assert [image.file for image in read_images] == [found] * (found is not None)
  assert not read_images or read_images[0].split == {'train': 'train', 'val': 'val'}.get(found.split('/')[0])


def test_an_export_without_labels_is_refused(tmp_path):
  with pytest.raises(UserError, match='no data row of Labelbox has a label with objects: export with labels') as raised:
    read(tmp_path, [row('a.jpg')])
  assert '\n' not in str(raised.value)
