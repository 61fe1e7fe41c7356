"""V7's shapes, paths that alternate, masks in a raster layer, both versions."""


import numpy as np
import pytest

from rethink_tf.data.prepare import darwin
from rethink_tf.data.prepare.cvat import TAG
from rethink_tf.data.prepare.labelme import BAD_MASK, WITHOUT_AREA
from rethink_tf.data.prepare.layout import (
  AGAIN,
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
from tests import exports
from tests.data.prepare.layouts import reading_of
from tests.exports import rasterise

BOX = {'name': 'cat', 'bounding_box': {'x': 1.5, 'y': 2, 'w': 3, 'h': 4}}


def square(low, high):
  return [{'x': x, 'y': y} for x, y in ((low, low), (high, low), (high, high), (low, high))]


def polygon(*paths, name='cat', **fields):
  return {'name': name, 'polygon': {'paths': list(paths)}} | fields


def content(name, *annotations, slots=1, **fields):
  return {'version': '2.0', 'item': {'name': name, 'path': '/', 'slots': [
    {'type': 'image', 'slot_name': '0', 'width': 30, 'height': 20}] * slots} | fields, 'annotations': list(annotations)}


def read(root, files, images=('a.jpg',)):
  """Return the reading of files of V7, and its images."""
  return reading_of(darwin, root, files, images)


def test_shapes(tmp_path):
  ellipse = {'center': {'x': 10, 'y': 10}, 'radius': {'x': 4, 'y': 2}, 'angle': np.pi / 2}
  reading, (image,) = read(tmp_path, {'x.json': content(
    'a.jpg', BOX, polygon(square(1, 5), name=' a dog ', bounding_box=BOX['bounding_box']),
    {'name': 'cat', 'ellipse': ellipse}, {'name': 'sunny', 'tag': {}}, {'name': 'cat', 'keypoint': {'x': 1, 'y': 2}},
    {'name': 'cat', 'line': {}}, BOX | {'name': ''}, 7, polygon(square(1, 5)[:2]), polygon([{'x': 1}] * 3),
    polygon(), polygon(7), {'name': 'cat', 'polygon': 7}, {'name': 'cat'}, BOX | {'bounding_box': {'x': 1}},
    BOX | {'bounding_box': {'x': 1, 'y': 1, 'w': 0, 'h': 1}}, BOX | {'bounding_box': [1, 2, 3, 4]},
    {'name': 'cat', 'ellipse': ellipse | {'angle': 'x'}}, {'name': 'cat', 'ellipse': ellipse | {'radius': 7}})})
  box, outline, turned = image.instances
  assert (box['bbox'], box['segmentation'], image.size) == ([1.5, 2, 3, 4], [], (20, 30))
  assert (outline['category'], outline['bbox']) == ('a dog', [1, 1, 4, 4]) and np.allclose(turned['bbox'], [8, 6, 4, 8])
  assert dict(reading.problems.counts) == {
    TAG: 1, f"{WITHOUT_AREA} ('keypoint')": 1, f"{WITHOUT_AREA} ('line')": 1, NO_CLASS: 2, FEW_POINTS: 2, NOT_FINITE: 8,
    NO_AREA: 1}


def test_paths_alternate_between_object_and_hole(tmp_path):
  reading, (image,) = read(tmp_path, {'x.json': content(
    'a.jpg', polygon(square(1, 15), square(3, 12), square(5, 8), square(16, 19), square(0, 1)[:2]),
    polygon(square(1, 9e5), square(2, 3)), polygon(square(1, 5), square(1, 5)))})
  masks = [rasterise([[value for point in square(*ends) for value in point.values()]], (20, 30))
           for ends in ((1, 15), (3, 12), (5, 8), (16, 19))]
  (one,) = image.instances
  assert np.array_equal(rasterise(one['segmentation'], (20, 30)), masks[0] - masks[1] + masks[2] + masks[3])
  assert dict(reading.problems.counts) == {BAD_MASK: 1, NO_AREA: 1}


def test_masks_are_in_the_raster_layer(tmp_path):
  def raster(runs, ids):
    return {'name': '__raster_layer__', 'id': 'x', 'raster_layer': {'dense_rle': runs, 'total_pixels': 600,
                                                                    'mask_annotation_ids_mapping': ids}}

  ids = {'one': 1, 'two': 2, 'none': 3, 'odd': '1'}
  masks = [{'name': 'cat', 'id': key, 'mask': {}} for key in ('one', 'two', 'none', 'odd', 'unknown', 7)]
  runs = [0, 62, 1, 3, 2, 2, 0, 25, 1, 1, 0, 507]
  reading, (image,) = read(tmp_path, {'x.json': content('a.jpg', *masks, raster(runs, ids))})
  first, second = (rasterise(one['segmentation'], (20, 30)) for one in image.instances)
  assert np.argwhere(first).tolist() == [[2, 2], [2, 3], [2, 4], [3, 2]] and second[2, 5:7].all() and second.sum() == 2
  assert dict(reading.problems.counts) == {NO_AREA: 1, BAD_MASK: 3}
  for bad in (raster(runs[:-1], ids), raster([*runs, 0, 1], ids), raster([0, -1, 1, 601], ids), raster(['0', 600], ids),
              raster([1, 10 ** 30], ids), raster(7, 7)):
    reading, (image,) = read(tmp_path, {'x.json': content('a.jpg', masks[0], bad)})
    assert not image.instances and dict(reading.problems.counts) == {BAD_MASK: 1}


def test_files_of_both_versions(tmp_path):
  old = {'dataset': 'x', 'image': {'filename': '7.jpg', 'original_filename': 'b.jpg', 'path': '/', 'width': 30,
                                   'height': 20},
         'annotations': [BOX, {'name': 'dog', 'polygon': {'path': square(1, 5)}},
                         {'name': 'dog', 'complex_polygon': {'path': [square(1, 9), square(3, 5)]}}]}
  reading, images = read(tmp_path, {
    'a.json': content('a.jpg', BOX), 'b.json': old, 'c.json': content('sub.jpg', path='/folder'),
    'd.json': content('a.jpg'), 'e.json': content('../../etc/passwd.jpg', BOX), 'f.json': '{"item"', 'g.json': '[]',
    'h.json': content('h.jpg', slots=2), 'i.json': content('i.jpg', slots=0)},
    images=('a.jpg', 'b.jpg', 'folder/sub.jpg', 'sub.jpg', 'h.jpg', 'i.jpg'))
  assert [(image.file, len(image.instances), image.size) for image in images] == [
    ('a.jpg', 1, (20, 30)), ('b.jpg', 3, (20, 30)), ('folder/sub.jpg', 0, (20, 30)), ('i.jpg', 0, None)]
  counts = dict(reading.problems.counts)
  assert counts == {AGAIN: 1, NO_IMAGE: 1, MISSING: 1, DAMAGED: 1, darwin.FOREIGN: 1, darwin.SLOTS: 1, NOT_ANNOTATED: 2}


@pytest.mark.parametrize('field, value', [('width', 7), ('name', 'gone.jpg')])
def test_errors_of_one_line(tmp_path, field, value):
  items, _ = exports.draw(tmp_path / 'data')
  exports.copy(items[0], tmp_path / 'export/a.jpg')
  found = content('a.jpg', BOX)
  (found['item']['slots'][0] if field == 'width' else found['item'])[field] = value
  exports.write_json(tmp_path / 'export/x.json', found)
  with pytest.raises(UserError, match='without a usable image') as raised:
    prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  assert '\n' not in str(raised.value) and not (tmp_path / 'own').exists()
