"""Datumaro's annotations of every kind, groups, crowds, subsets."""


import numpy as np
import pytest
from pycocotools import mask as mask_api

from rethink_tf.data.detection.segmentation import ROTATED
from rethink_tf.data.prepare import datumaro
from rethink_tf.data.prepare.cvat import TAG
from rethink_tf.data.prepare.labelme import BAD_MASK, WITHOUT_AREA
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
)
from rethink_tf.data.prepare.preparation import prepare
from rethink_tf.errors import UserError
from tests import exports
from tests.data.prepare.layouts import reading_of
from tests.exports import rasterise


def shape(kind, label=0, group=0, attributes=None, **fields):
  return {'id': 0, 'type': kind, 'attributes': attributes or {}, 'group': group, 'label_id': label} | fields


def item(name, *annotations, **fields):
  return {'id': name, 'annotations': list(annotations), 'image': {'path': f'{name}.jpg', 'size': [20, 30]}} | fields


def content(*items, labels=('cat', ' a dog ', '', 7)):
  return {'infos': {}, 'categories': {'label': {'labels': [{'name': name, 'parent': ''} for name in labels]}},
          'items': list(items)}


def read(root, files, images=('images/x/a.jpg',)):
  """Return the reading of files of Datumaro, and its images."""
  return reading_of(datumaro, root, files, images)


def run_lengths(mask):
  rle = mask_api.encode(np.asfortranarray(mask))
  return {'counts': rle['counts'].decode(), 'size': list(rle['size'])}


def test_annotations(tmp_path):
  mask = np.zeros([20, 30], np.uint8)
  mask[3:6, 4:9] = 1
  reading, (image,) = read(tmp_path, {'annotations/x.json': content(item(
    'a', shape('bbox', bbox=[1, 2, 3, 4]), shape('polygon', 1, points=[1.5, 1, 9, 1, 9, 9]),
    shape('mask', rle=run_lengths(mask)), shape('ellipse', points=[5, 4, 13, 8]),
    shape('bbox', bbox=[10, 5, 10, 4], attributes={'rotation': 90.0}),
    shape('mask', rle=run_lengths(mask), attributes={'is_crowd': True}),
    shape('label'), {'type': 'caption', 'caption': 'x'}, shape('points', points=[1, 2]),
    shape('polyline', points=[1, 2]),
    shape('bbox', None, bbox=[1, 2, 3, 4]), shape('bbox', 9, bbox=[1, 2, 3, 4]), shape('bbox', -1, bbox=[1, 2, 3, 4]),
    shape('bbox', 2, bbox=[1, 2, 3, 4]), 7, shape('bbox', bbox=[1, 2, 3]), shape('bbox', bbox=[1, 2, float('nan'), 3]),
    shape('bbox'), shape('polygon', points=[1, 2, 3, 4]), shape('polygon', points=[1, 2, 3]),
    shape('bbox', bbox=[1, 2, 0, 4]), shape('mask', rle={'counts': '', 'size': [20, 30]}), shape('mask'),
    shape('mask', rle=run_lengths(mask[1:])), shape('mask', rle=run_lengths(0 * mask))))})
  box, outline, painted, ellipse, turned, crowd = image.instances
  assert (box['bbox'], box['category'], outline['category']) == ([1, 2, 3, 4], 'cat', 'a dog')
  assert outline['segmentation'] == [[1.5, 1, 9, 1, 9, 9]] and np.allclose(ellipse['bbox'], [5, 4, 8, 4])
  assert np.array_equal(rasterise(painted['segmentation'], (20, 30)), mask) and turned['bbox'] == [13, 2, 4, 10]
  assert crowd['iscrowd'] == 1 and image.size == (20, 30)
  assert dict(reading.problems.counts) == {
    ROTATED: 1, TAG: 2, f"{WITHOUT_AREA} ('points')": 1, f"{WITHOUT_AREA} ('polyline')": 1, NO_CLASS: 5, NOT_FINITE: 4,
    FEW_POINTS: 1, NO_AREA: 2, BAD_MASK: 3}


def test_groups_are_one_object_of_each_class(tmp_path):
  outline = [1, 1, 5, 1, 5, 5]
  _, (image,) = read(tmp_path, {'annotations/x.json': content(item(
    'a', shape('polygon', group=1, points=outline), shape('bbox', group=1, bbox=[0, 0, 8, 8]),
    shape('polygon', 1, group=1, points=outline), shape('polygon', points=outline), shape('polygon', points=outline)))})
  assert [(one['category'], one['bbox']) for one in image.instances] == [
    ('cat', [0, 0, 8, 8]), ('a dog', [1, 1, 4, 4]), ('cat', [1, 1, 4, 4]), ('cat', [1, 1, 4, 4])]


def test_subsets_and_images(tmp_path):
  box = shape('bbox', bbox=[1, 2, 3, 4])
  images = ('images/train/a.jpg', 'images/val/a.jpg', 'images/val/sub/b.c.png', 'images/val/left.jpg')
  reading, found = read(tmp_path, {
    'annotations/train.json': content(item('a', box), item('a', box), item('gone', box), 7),
    'annotations/val.json': content(item('a'), item('sub/b.c', image=None),
                                    item('x', image={'path': '../../etc/passwd.jpg', 'size': 3}))}, images)
  assert [(image.file, image.split, len(image.instances)) for image in found] == [
    ('images/train/a.jpg', 'train', 1), ('images/val/a.jpg', 'val', 0), ('images/val/sub/b.c.png', 'val', 0)]
  assert dict(reading.problems.counts) == {AGAIN: 1, OF_AGAIN: 1, NO_IMAGE: 3, MISSING: 1, NOT_NAMED: 1}


def test_without_classes_is_one_line(tmp_path):
  items, _ = exports.draw(tmp_path / 'data')
  exports.copy(items[0], tmp_path / 'export/images/x/a.jpg')
  exports.write_json(tmp_path / 'export/annotations/x.json', content(
    item('a', shape('bbox', bbox=[1, 2, 3, 4]), image={'path': 'a.jpg'})) | {'categories': []})
  with pytest.raises(UserError, match='without a usable object in 1 images: .*without a class') as raised:
    prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  assert '\n' not in str(raised.value)
