"""Cityscapes' polygons: what covers what, groups, classes without instances, files that are wrong."""

import json

import pytest

from rethink_tf.data.prepare import cityscapes
from rethink_tf.data.prepare.layout import (
  AGAIN,
  DAMAGED,
  FEW_POINTS,
  MISSING,
  NO_CLASS,
  NO_IMAGE,
  NOT_ANNOTATED,
  NOT_FINITE,
  OF_AGAIN,
)
from rethink_tf.data.prepare.preparation import prepare
from rethink_tf.data.prepare.source_folder import SourceFolder
from tests import exports, exports_json
from tests.data.prepare.layouts import reading_of


def square(x, y, side, label='car', **fields):
  """Return an object of side x side pixels."""
  end = side - 1
  return {'label': label, **fields, 'polygon': [[x, y], [x + end, y], [x + end, y + end], [x, y + end]]}


def annotation(*objects, height=20, width=30):
  return {'imgHeight': height, 'imgWidth': width, 'objects': list(objects)}


def read(root, contents, images=('leftImg8bit/train/c/a_leftImg8bit.png',)):
  """Return the reading of annotations, {city and name: content}, and its images."""
  files = {f'gtFine/{name}_gtFine_polygons.json': content if isinstance(content, str) else json.dumps(content)
           for name, content in contents.items()}
  return reading_of(cityscapes, root, files, images)


def test_later_polygons_cover_earlier_ones(tmp_path):
  reading, (image,) = read(tmp_path, {'train/c/a': annotation(
    square(0, 0, 20, 'road'), square(2, 2, 8), square(6, 2, 8, 'persongroup'), square(3, 3, 2, 'pole'),
    square(12, 12, 3, 'bus'), square(10, 10, 8, 'sky'), square(2, 2, 8, 'truck', deleted=1),
    square(4, 8, 2, 'license plate'))})
  assert [(one['category'], one['bbox'], one['area'], one['iscrowd']) for one in image.instances] == [
    ('car', [2, 2, 4, 8], 28, 0), ('person', [6, 2, 8, 8], 64, 1)]
  assert image.size == (20, 30) and image.split == 'train'
  assert dict(reading.problems.counts) == {cityscapes.NO_INSTANCES: 4, cityscapes.COVERED: 1}
  assert reading.notes == [cityscapes.CROWDS.format(count=1)]


def test_wrong_objects_are_counted(tmp_path):
  bad = [7, square(1, 1, 3, None), square(1, 1, 3, ' '), {'label': 'car'},
         {'label': 'car', 'polygon': [[1, 2], [3, 4]]},
         {'label': 'car', 'polygon': [[1, 2], [3, 4], [5, float('nan')]]}, square(50, 50, 3), square(-9, -9, 3)]
  reading, (image,) = read(tmp_path, {'train/c/a': annotation(*bad, square(1, 1, 3))})
  assert [one['bbox'] for one in image.instances] == [[1, 1, 3, 3]]
  assert dict(reading.problems.counts) == {NO_CLASS: 3, NOT_FINITE: 2, FEW_POINTS: 1, cityscapes.COVERED: 2}


def test_files_withheld_damaged_missing_and_of_one_image(tmp_path):
  names = [f'leftImg8bit/{name}.png' for name in (
    'train/c/a_leftImg8bit', 'train/d/a_leftImg8bit', 'test/c/b_leftImg8bit', 'train/c/e', 'train/c/f')]
  hidden = [square(0, 0, 9, label) for label in ('ego vehicle', 'rectification border', 'out of roi')]
  reading, images = read(tmp_path, {
    'train/c/a': annotation(square(1, 1, 3)), 'train/d/a': annotation(), 'test/c/b': annotation(*hidden),
    'train/c/e': annotation(square(1, 1, 4)), 'x/e': annotation(square(1, 1, 4)),
    'train/c/g': annotation(square(1, 1, 4)),
    'train/c/h': '{"img', 'train/c/i': {'imgHeight': 3}, 'train/c/j': annotation(height=10 ** 6, width=10 ** 6)}, names)
  assert [(image.file, len(image.instances)) for image in images] == [(names[0], 1), (names[3], 1), (names[1], 0)]
  assert dict(reading.problems.counts) == {
    cityscapes.WITHHELD: 1, NO_IMAGE: 1, MISSING: 1, AGAIN: 1, OF_AGAIN: 1, DAMAGED: 1, cityscapes.FOREIGN: 2,
    NOT_ANNOTATED: 1}


def test_classes_of_others_are_noted(tmp_path):
  reading, (image,) = read(tmp_path, {'train/c/a': annotation(square(1, 1, 3, 'autorickshaw'), square(5, 5, 3))})
  assert [one['category'] for one in image.instances] == ['autorickshaw', 'car']
  assert reading.notes == [cityscapes.OTHERS.format(names='autorickshaw')]


@pytest.mark.parametrize('name, content', [
  ('a_gtCoarse_polygons.json', annotation()), ('a_gtFine_polygons.json', []),
  ('a_gtFine_polygons.json', {'objects': []})])
def test_other_files(tmp_path, name, content):
  exports.write_json(tmp_path / name, content)
  assert cityscapes.recognize(SourceFolder(str(tmp_path))) is None


def test_there_and_back(tmp_path):
  items, names = exports.draw(tmp_path / 'data')
  exports_json.cityscapes(items, names, tmp_path / 'export')
  prepared = prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  assert not exports.differences(items, tmp_path / 'own', masks=False)
  assert set(prepared.problems[0][1].counts) == {cityscapes.NO_INSTANCES} and set(prepared.splits) == {'train', 'val'}
