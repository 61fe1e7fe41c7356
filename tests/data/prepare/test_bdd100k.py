"""BDD100K's JSON: both releases and Scalabel's object, outlines, lanes, frames that are wrong."""


import pytest

from rethink_tf.data.prepare import bdd100k
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
)
from rethink_tf.data.prepare.preparation import prepare
from rethink_tf.data.prepare.source_folder import SourceFolder
from tests import exports, exports_json
from tests.data.prepare.layouts import reading_of


def box(x1=1, y1=2, x2=4, y2=6, category='car', **fields):
  return {'category': category, 'box2d': {'x1': x1, 'y1': y1, 'x2': x2, 'y2': y2}, **fields}


def polygon(*points, closed=True, types='LLL', category='car'):
  return {'category': category, 'poly2d': [{'vertices': [list(point) for point in points], 'closed': closed,
                                            'types': types}]}


def frame(name, *labels, **fields):
  return {'name': name, 'labels': list(labels), **fields}


def read(root, contents, images=('a.jpg',)):
  """Return the reading of files, {name: content}, and its images."""
  return reading_of(bdd100k, root, contents, images)


@pytest.mark.parametrize('content', [
  [frame('a.jpg', box(1.5), box(attributes={'crowd': True}))],
  {'frames': [frame('a.jpg', box(1.5), box(attributes={'crowd': True}))], 'config': {}},
  {'name': 'a', 'frames': [{'timestamp': 1, 'objects': [box(1.5), box(attributes={'crowd': True})]}]}])
def test_all_forms(tmp_path, content):
  reading, (image,) = read(tmp_path, {'labels/det_val.json': content}, ['images/a.jpg'])
  assert [(one['category'], one['bbox'], one['iscrowd']) for one in image.instances] == [
    ('car', [1.5, 2, 2.5, 4], 0), ('car', [1, 2, 3, 4], 1)]
  assert image.split == 'val' and image.video is None and not reading.problems.counts


def test_outlines_sizes_and_videos(tmp_path):
  label = polygon((1, 2), (7, 2), (7, 5.5)) | {'box2d': box()['box2d']}
  content = [frame('1.jpg', label, videoName='v', size={'height': 20, 'width': 30}), frame('1.jpg', videoName='w')]
  reading, images = read(tmp_path, {'x.json': content}, ['train/v/1.jpg', 'train/w/1.jpg'])
  assert [(image.file, image.video, image.split, image.size) for image in images] == [
    ('train/v/1.jpg', 'v', 'train', (20, 30)), ('train/w/1.jpg', 'w', 'train', None)]
  assert images[0].instances[0]['bbox'] == [1, 2, 6, 3.5] and not reading.problems.counts
  assert images[0].instances[0]['segmentation'] == [[1, 2, 7, 2, 7, 5.5]]


def test_wrong_labels_are_counted(tmp_path):
  square = (1, 2), (7, 2), (7, 5)
  bad = [7, box(category=None), box(category=' '), box(None), box(float('nan')), box('1'), box(x2=1), box(y2=0),
         polygon(*square, closed=False), polygon(*square, types='LCC'), polygon(*square[:2]),
         polygon((1, 'x'), *square),
         box(category='lane'), box(category='drivable area'), box(category='lane/road curb'), {'category': 'car'},
         {'category': 'car', 'rle': {'counts': '1', 'size': [2, 3]}}, {'category': 'car', 'poly2d': [[1, 2, 'L']]}]
  reading, (image,) = read(tmp_path, {'x.json': [frame('a.jpg', *bad, box())]})
  assert len(image.instances) == 1
  assert dict(reading.problems.counts) == {
    NO_CLASS: 3, NOT_FINITE: 4, NO_AREA: 2, WITHOUT_AREA: 3, bdd100k.CURVED: 1, FEW_POINTS: 1, bdd100k.REGION: 3,
    bdd100k.RUN_LENGTHS: 1}


def test_frames_without_labels_missing_and_named_twice(tmp_path):
  reading, images = read(tmp_path, {
    'x.json': [frame('a.jpg', box()), frame('b.jpg'), frame('a.jpg', box(), box()), frame('../x.jpg', box()), 7,
               {'name': 'c.jpg'}, {'name': 'd.jpg', 'labels': None}],
    'y.json': '{"name', 'z.json': {'x': 1}}, [f'{name}.jpg' for name in 'abcde'])
  assert [(image.file, len(image.instances)) for image in images] == [('a.jpg', 1), ('b.jpg', 0)]
  assert dict(reading.problems.counts) == {AGAIN: 1, OF_AGAIN: 2, NO_IMAGE: 1, MISSING: 1, bdd100k.NO_LABELS: 3,
                                           DAMAGED: 1, bdd100k.FOREIGN: 1, NOT_NAMED: 1}


@pytest.mark.parametrize('content', [
  {'camera_angle_x': 1, 'frames': []}, {'name': 'x'}, [{'name': 'x'}], [{'labels': []}], []])
def test_other_json(tmp_path, content):
  exports.write_json(tmp_path / 'a.json', content)
  assert bdd100k.recognize(SourceFolder(str(tmp_path))) is None


def test_scalabel_there_and_back(tmp_path):
  items, names = exports.draw(tmp_path / 'data')
  exports_json.bdd100k(items, names, tmp_path / 'export', as_object=True)
  prepared = prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  assert not exports.differences(items, tmp_path / 'own') and not prepared.problems[0][1].counts
