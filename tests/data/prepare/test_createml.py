"""Create ML's boxes: centres, both spellings of the keys, fractions, entries that are wrong."""

import json

import pytest

from rethink_tf.data.prepare import createml
from rethink_tf.data.prepare.layout import (
  AGAIN,
  MISSING,
  NO_AREA,
  NO_CLASS,
  NO_IMAGE,
  NOT_FINITE,
  NOT_NAMED,
  OF_AGAIN,
)
from rethink_tf.data.prepare.preparation import Division, prepare
from rethink_tf.errors import UserError
from tests import exports, exports_json
from tests.data.prepare.layouts import reading_of


def one(x=10, y=8, width=4, height=6, label='cat', **fields):
  return {'label': label, 'coordinates': {'x': x, 'y': y, 'width': width, 'height': height}, **fields}


def read(root, content, images=('a.jpg',), options=None):
  """Return the reading of a file of Create ML, and its images."""
  return reading_of(createml, root, {'x.json': json.dumps(content)}, images, options)


@pytest.mark.parametrize('keys', createml._KEYS)
def test_coordinates_are_those_of_the_centre(tmp_path, keys):
  reading, (image,) = read(tmp_path, [{
    keys[0]: 'x/a.jpg', keys[1]: [one(), one(3.5, 2, 2, 1, ' a dog ')]}])
  assert [(one['category'], one['bbox']) for one in image.instances] == [
    ('cat', [8, 5, 4, 6]), ('a dog', [2.5, 1.5, 2, 1])]
  assert not image.fractions and not reading.problems.counts and not reading.notes


def test_wrong_objects_are_counted(tmp_path):
  bad = [one(label=None), one(label=' '), 7, one(x=None), one(x=float('nan')), one(y='3'), one(width=0),
         one(height=-2), {'label': 'cat', 'coordinates': [1, 2, 3, 4]}]
  reading, (image,) = read(tmp_path, [{'image': 'a.jpg', 'annotations': [*bad, one()]}])
  assert len(image.instances) == 1
  assert dict(reading.problems.counts) == {NO_CLASS: 3, NOT_FINITE: 4, NO_AREA: 2}


def test_images_without_objects_missing_named_twice_and_not_named(tmp_path):
  def entry(name, *objects):
    return {'image': name, 'annotations': list(objects)}

  reading, images = read(tmp_path, [
    entry('a.jpg', one()), entry('b.jpg'), entry('a.jpg', one(), one()), entry('../../etc/passwd.jpg', one()), 7,
    {'image': 'd.jpg'}, entry(['x'])], images=('a.jpg', 'b.jpg', 'd.jpg'))
  assert [(image.file, len(image.instances)) for image in images] == [('a.jpg', 1), ('b.jpg', 0)]
  assert dict(reading.problems.counts) == {AGAIN: 1, OF_AGAIN: 2, NO_IMAGE: 2, MISSING: 1, NOT_NAMED: 1,
                                           createml.NO_LIST: 2}


def test_fractions_and_the_names_of_apples_framework(tmp_path):
  items, names = exports.draw(tmp_path / 'data')
  exports_json.createml(items, names, tmp_path / 'export', of_apple=True, units=None)
  prepared = prepare(str(tmp_path / 'export'), str(tmp_path / 'own'), division=Division(0.4))
  assert not exports.differences(items, tmp_path / 'own', masks=False)
  assert createml.FRACTIONS in prepared.notes


@pytest.mark.parametrize('content, message', [
  ([{'image': 'a.jpg', 'annotations': None}], 'without a usable image: .*entry without a list'),
  ([{'image': 'b.jpg', 'annotations': [one()]}], 'without a usable image: .*missing')])
def test_errors_of_one_line(tmp_path, content, message):
  (tmp_path / 'export').mkdir()
  (tmp_path / 'export/x.json').write_text(json.dumps(content))
  items, _ = exports.draw(tmp_path / 'data')
  exports.copy(items[0], tmp_path / 'export/a.jpg')
  with pytest.raises(UserError, match=message) as raised:
    prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  assert '\n' not in str(raised.value) and not (tmp_path / 'own').exists()
