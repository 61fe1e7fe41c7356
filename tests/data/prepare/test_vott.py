"""VoTT's regions, states of assets, exports beside the files of assets and projects."""

import json

import pytest

from rethink_tf.data.prepare import vott
from rethink_tf.data.prepare.labelme import WITHOUT_AREA
from rethink_tf.data.prepare.layout import (
  AGAIN,
  DAMAGED,
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
from rethink_tf.data.prepare.preparation import prepare
from rethink_tf.data.prepare.source_folder import SourceFolder
from rethink_tf.errors import UserError
from tests import exports
from tests.data.prepare.layouts import reading_of

CORNERS = {'left': 1, 'top': 2, 'width': 3, 'height': 4}


def region(kind='RECTANGLE', tags=('cat',), box=None, points=()):
  return {'id': 'r', 'type': kind, 'tags': list(tags), 'boundingBox': CORNERS if box is None else box,
          'points': [{'x': x, 'y': y} for x, y in points]}


def asset(name, *regions, state=2, **fields):
  return {'asset': {'id': name, 'name': name, 'path': f'file:/home/me/{name}', 'state': state, 'type': 1,
                    'size': {'width': 30, 'height': 20}} | fields, 'regions': list(regions), 'version': '2.2.0'}


def project(*assets, **fields):
  return {'name': 'x', 'tags': [], 'assets': {str(i): one for i, one in enumerate(assets)}} | fields


def read(root, files, images=('a.jpg',), options=None):
  """Return the reading of files of VoTT, and its images."""
  return reading_of(vott, root, files, images, options)


def test_regions(tmp_path):
  triangle = [(1.5, 1), (9, 1), (9, 9)]
  reading, (image,) = read(tmp_path, {'x-export.json': project(asset(
    'a.jpg', region(), region('SQUARE', (' a dog ',)), region('POLYGON', points=triangle), region(tags=('cat', 'old')),
    region(tags=()), region(tags=(None, ' ')), 7, region('POLYGON', points=triangle[:2]), region('POINT'),
    region('POLYGON', points=[(1, float('nan'))] * 3), region(box={'left': 1}), region(box=CORNERS | {'width': 0}),
    region(box=[1, 2, 3, 4]), region('POLYGON') | {'points': 7}))})
  assert [(one['category'], one['bbox'], one['segmentation']) for one in image.instances] == [
    ('cat', [1, 2, 3, 4], []), ('a dog', [1, 2, 3, 4], []), ('cat', [1.5, 1, 7.5, 8], [[1.5, 1, 9, 1, 9, 9]]),
    ('cat', [1, 2, 3, 4], []), ('old', [1, 2, 3, 4], [])]
  assert image.size == (20, 30) and dict(reading.problems.counts) == {
    vott.SEVERAL: 1, NO_CLASS: 3, FEW_POINTS: 1, f"{WITHOUT_AREA} ('POINT')": 1, NOT_FINITE: 4, NO_AREA: 1}


def test_visited_images_have_no_objects_and_others_are_not_annotated(tmp_path):
  reading, images = read(tmp_path, {'x-export.json': project(
    asset('a.jpg', region()), asset('b.jpg', state=1), asset('c.jpg', state=0), asset('d.jpg', state=None),
    asset('a.jpg', region()), asset('../../etc/passwd.jpg', region()), {'asset': 7, 'regions': 8}, 9)},
    images=('a.jpg', 'b.jpg', 'c.jpg', 'd.jpg', 'e.jpg'))
  assert [(image.file, len(image.instances)) for image in images] == [('a.jpg', 1), ('b.jpg', 0)]
  assert dict(reading.problems.counts) == {vott.NOT_VISITED: 3, AGAIN: 1, OF_AGAIN: 1, NO_IMAGE: 1, MISSING: 1,
                                           NOT_NAMED: 1}


def test_files_of_assets_beside_a_project(tmp_path):
  visited = [asset(name, state=state)['asset'] for name, state in (('a.jpg', 2), ('b.jpg', 1), ('c.jpg', 0))]
  files = {'1-asset.json': asset('a.jpg', region()), '0-asset.json': '{"asset": {}, "regions": [',
           'x.vott': project(*visited, sourceConnection={'name': 'here'})}
  reading, images = read(tmp_path, files, images=('a.jpg', 'b.jpg', 'c.jpg'))
  assert [(image.file, len(image.instances)) for image in images] == [('a.jpg', 1), ('b.jpg', 0)]
  assert dict(reading.problems.counts) == {vott.NOT_VISITED: 1}
  reading, images = read(tmp_path, {'x-export.json': project(asset('c.jpg', region()))}, images=())
  assert [image.file for image in images] == ['c.jpg']
  assert reading.notes == [vott.UNREAD.format(count=1, file='1-asset.json', export='x-export.json')]
  _, images = read(tmp_path, {}, options=Options(annotation_file='1-asset.json'))
  assert [image.file for image in images] == ['a.jpg']


def test_a_file_that_is_damaged_while_it_is_read(tmp_path):
  (tmp_path / 'x-export.json').write_text(json.dumps(project(asset('a.jpg', region()))))
  folder = SourceFolder(str(tmp_path))
  reading = vott.read(folder, Options())
  (tmp_path / 'x-export.json').write_text('{')
  assert not list(reading.images) and dict(reading.problems.counts) == {DAMAGED: 1}


@pytest.mark.parametrize('content, message', [
  (project(asset('b.jpg', region())), 'without a usable image: .*missing'),
  (project(asset('a.jpg', state=1)), 'without a usable object in 1 images')])
def test_errors_of_one_line(tmp_path, content, message):
  items, _ = exports.draw(tmp_path / 'data')
  exports.copy(items[0], tmp_path / 'export/a.jpg')
  content['assets']['0']['asset']['size'] = None
  exports.write_json(tmp_path / 'export/x-export.json', content)
  with pytest.raises(UserError, match=message) as raised:
    prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  assert '\n' not in str(raised.value) and not (tmp_path / 'own').exists()
