"""Supervisely's shapes, whole pixels and fractions, holes, bitmaps, data sets of one project."""

import base64
import zlib

import cv2
import numpy as np
import pytest

from rethink_tf.data.detection.segmentation import ROTATED
from rethink_tf.data.prepare import supervisely
from rethink_tf.data.prepare.labelme import BAD_MASK, WITHOUT_AREA
from rethink_tf.data.prepare.layout import (
  DAMAGED,
  FEW_POINTS,
  MISSING,
  NO_AREA,
  NO_CLASS,
  NO_IMAGE,
  NOT_ANNOTATED,
  NOT_FINITE,
)
from rethink_tf.data.prepare.preparation import prepare
from rethink_tf.errors import UserError
from tests import exports, exports_json
from tests.data.prepare.layouts import reading_of
from tests.exports import rasterise


def shape(kind, exterior=(), interior=(), label='cat', **fields):
  return {'classTitle': label, 'geometryType': kind, 'points': {'exterior': exterior, 'interior': list(interior)},
          **fields}


def square(low, high):
  return [[low, low], [high, low], [high, high], [low, high]]


def read(root, objects, images=('ds/img/a.jpg',), files=None, **fields):
  """Return the reading of a project of Supervisely, and its images."""
  content = {'description': '', 'tags': [], 'size': {'height': 20, 'width': 30}, 'objects': objects} | fields
  return reading_of(supervisely, root, {'ds/ann/a.jpg.json': content, **(files or {})}, images)


def test_whole_numbers_are_pixels_and_fractions_continuous(tmp_path):
  triangle = [[1, 1], [9, 1], [9, 9]]
  _, (image,) = read(tmp_path, [shape('rectangle', [[8, 9], [2, 3]]), shape('polygon', triangle),
                                shape('rectangle', [[4, 4], [4, 4]])])
  assert [one['bbox'] for one in image.instances] == [[2, 3, 7, 7], [1.5, 1.5, 8, 8], [4, 4, 1, 1]]
  _, (image,) = read(tmp_path, [shape('rectangle', [[2.5, 3], [8, 9]]), shape('polygon', triangle)])
  assert [one['bbox'] for one in image.instances] == [[2.5, 3, 5.5, 6], [1, 1, 8, 8]] and image.size == (20, 30)


def test_holes_and_several_polygons(tmp_path):
  ring = {'exterior': square(1.5, 11), 'interior': [square(4, 8)]}
  reading, (image,) = read(tmp_path, [
    shape('polygon', ring['exterior'], ring['interior']),
    shape('multipolygon') | {'parts': [ring, {'exterior': square(12, 15), 'interior': []}]},
    shape('polygon', square(1, 3), instance='one'), shape('polygon', square(5, 7), instance='one'),
    shape('polygon', square(5, 7), label='dog', instance='one')])
  whole, hole, apart = (rasterise([np.ravel(square(*ends)).tolist()], (20, 30)) for ends in ((1.5, 11), (4, 8),
                                                                                          (12, 15)))
  masks = [rasterise(one['segmentation'], (20, 30)) for one in image.instances]
  assert np.array_equal(masks[0], whole & ~hole & 1) and np.array_equal(masks[1], whole & ~hole & 1 | apart)
  assert [(one['category'], len(one['segmentation'])) for one in image.instances[2:]] == [('cat', 2), ('dog', 1)]
  assert not reading.problems.counts


def test_bitmaps(tmp_path):
  mask = np.zeros([20, 30], np.uint8)
  mask[5:9, 3:12], mask[6, 4:8] = 1, 0
  bitmap = exports_json.bitmap(mask)
  opacity = cv2.imencode('.png', np.array([[0, 100], [200, 255]], np.uint8))[1].tobytes()
  plain = base64.b64encode(opacity).decode()
  reading, (image,) = read(tmp_path, [
    shape('bitmap', bitmap=bitmap), shape('bitmap', bitmap={'origin': [28, 18], 'data': plain}),
    shape('alpha_mask', bitmap={'origin': [0, 0], 'data': plain}), shape('bitmap', bitmap=bitmap | {'origin': [-1, 0]}),
    shape('bitmap', bitmap=bitmap | {'origin': [1]}), shape('bitmap', bitmap=bitmap | {'data': 'AAAA'}),
    shape('bitmap', bitmap=bitmap | {'data': 7}), shape('bitmap'), shape('bitmap', bitmap=bitmap | {'origin': [40, 0]}),
    shape('bitmap', bitmap=bitmap | {'data': base64.b64encode(zlib.compress(b'\0' * (1 << 27))).decode()})])
  first, second, third = (rasterise(one['segmentation'], (20, 30)) for one in image.instances)
  assert np.array_equal(first, mask) and second[18:, 28:].tolist() == [[0, 1], [1, 1]]
  assert third[:2, :2].tolist() == [[0, 0], [1, 1]]
  assert dict(reading.problems.counts) == {BAD_MASK: 6, NO_AREA: 1}


def test_wrong_objects_are_counted(tmp_path):
  reading, (image,) = read(tmp_path, [
    shape('oriented_bbox', [[10.5, 5], [20.5, 9]], angle=np.pi / 2), shape('rectangle', [[1, 1]]),
    shape('point', [[1, 2]]), shape('line', square(1, 2)), shape('rectangle', [[1, 1], [1, float('nan')]]),
    shape('polygon', square(1, 2)[:2]),
    shape('polygon', 7), shape('polygon', square(1, 5), [[[1, None]]]), shape('rectangle', square(1, 5)[:2]),
    shape('rectangle', [[1, 1], [2, 2]], label=''), 7, shape('polygon', square(1, 9e5), [square(2, 3)]),
    shape('rectangle', [[1, 1], [9, 9]], angle='x')])
  assert [one['bbox'] for one in image.instances] == [[13.5, 2, 4, 10]]
  assert dict(reading.problems.counts) == {
    ROTATED: 1, NOT_FINITE: 5, f"{WITHOUT_AREA} ('point')": 1, f"{WITHOUT_AREA} ('line')": 1, FEW_POINTS: 1, NO_AREA: 1,
    NO_CLASS: 2, BAD_MASK: 1}


def test_data_sets_of_a_project_may_have_images_of_one_name(tmp_path):
  box, empty = shape('rectangle', [[1, 1], [5, 5]]), {'size': {'height': 20, 'width': 30}, 'tags': [], 'objects': []}
  old = box | {'geometryType': None, 'classTitle': 'dog'}
  reading, images = read(tmp_path, [box], ('ds/img/a.jpg', 'two/img/a.jpg', 'train/img/b.jpg', 'ds/img/e.jpg'), {
    'two/ann/a.jpg.json': empty, 'train/ann/b.json': empty | {'objects': [old]}, 'two/ann/gone.jpg.json': empty | {
      'objects': [box]}, 'ds/ann/x.json': '[]', 'ds/ann/y.json': '{"objects"', 'meta.json': {'classes': [
        {'title': 'dog', 'shape': 'rectangle'}, {'title': 7}, 8]}}, tags=[{'name': 'val'}, 3])
  assert [(image.file, image.split, len(image.instances)) for image in images] == [
    ('ds/img/a.jpg', 'val', 1), ('train/img/b.jpg', 'train', 1), ('two/img/a.jpg', None, 0)]
  assert reading.notes == [supervisely.EMPTY.format(count=1, total=3)]
  assert dict(reading.problems.counts) == {NO_IMAGE: 1, MISSING: 1, supervisely.FOREIGN: 1, DAMAGED: 1,
                                           NOT_ANNOTATED: 1}


def test_another_size_is_one_line(tmp_path):
  items, _ = exports.draw(tmp_path / 'data')
  exports.copy(items[0], tmp_path / 'export/img/a.jpg')
  exports.write_json(tmp_path / 'export/ann/a.jpg.json', {'size': {'height': 7, 'width': 8}, 'objects': []})
  with pytest.raises(UserError, match='without a usable image') as raised:
    prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  assert '\n' not in str(raised.value)
