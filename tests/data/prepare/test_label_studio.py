"""Label Studio's JSON: percent, rotation, brushes, tasks without an annotation."""

import json

import numpy as np
import pytest

from rethink_tf.data.prepare import label_studio
from rethink_tf.data.prepare.layout import (
  FEW_POINTS,
  NO_AREA,
  NO_CLASS,
  NO_IMAGE,
  NOT_FINITE,
  NOT_NAMED,
  Options,
)
from rethink_tf.data.prepare.source_folder import SourceFolder
from rethink_tf.errors import UserError
from tests.data.prepare.layouts import reading_of
from tests.exports import rasterise, write_json


def encode(mask, word=8, sizes=(3, 4, 8, 16)):
  """Write a mask as thi.ng's rle-pack writes RGBA values: the inverse of decode_brush."""
  values = np.repeat(mask.ravel() * 255, 4)
  bits = f'{len(values):032b}{word - 1:05b}' + ''.join(f'{size - 1:04b}' for size in sizes)
  ends = [*np.flatnonzero(np.diff(values)) + 1, len(values)]
  for start, end in zip([0, *ends], ends, strict=False):
    while start < end:
      k = next((k for k, size in enumerate(sizes) if end - start <= 1 << size), 3)
      count = min(end - start, 1 << sizes[k])
      if count < 3:  # as they are
        bits += f'0{k:02b}{count - 1:0{sizes[k]}b}' + f'{values[start]:0{word}b}' * count
      else:
        bits += f'1{k:02b}{count - 1:0{sizes[k]}b}{values[start]:0{word}b}'
      start += count
  bits += '0' * (-len(bits) % 8)
  return [int(bits[i:i + 8], 2) for i in range(0, len(bits), 8)]


def result(kind, value, labels=('cat',), **fields):
  return {'original_width': 200, 'original_height': 100, 'image_rotation': 0, 'type': kind, 'from_name': 'label',
          'to_name': 'image', 'value': {**value, kind: list(labels)}, **fields}


def task(results, image='/data/upload/1/0a1b2c3d-a.jpg', **fields):
  return {'id': 1, 'data': {'image': image}, 'annotations': [{'result': results, 'was_cancelled': False}]} | fields


def read(root, tasks, images=('a.jpg',)):
  return reading_of(label_studio, root, {'export.json': json.dumps(tasks)}, images)


@pytest.mark.parametrize('entry', [True, 7, 'x', [], None])
def test_an_entry_that_is_no_task(tmp_path, entry):
  box = result('rectanglelabels', {'x': 10, 'y': 10, 'width': 20, 'height': 20})
  write_json(tmp_path / 'export.json', [task([box]), entry])
  (tmp_path / 'a.jpg').write_text('')
  reading = label_studio.read(SourceFolder(str(tmp_path)), Options())
  assert [len(image.instances) for image in reading.images] == [1]
  assert reading.problems.counts[label_studio.NOT_ANNOTATED] == 1


@pytest.mark.parametrize('size', [(1, 1), (7, 13), (60, 80)])
def test_brushes_decode_to_what_was_painted(size):
  for density in (0.02, 0.5, 1.0):
    mask = (np.random.default_rng(3).random(size) < density).astype(np.uint8)
    assert (label_studio.decode_brush(encode(mask), *size) == mask).all()


def test_damaged_brushes():
  whole = encode(np.ones([8, 8], np.uint8))
  for damaged in (whole[:-2], whole[:5], [], None, 'x', [300], [1.5], [0] * 100, [255] * 100, whole + ['x']):
    assert label_studio.decode_brush(damaged, 8, 8) is None
  assert label_studio.decode_brush(whole, 8, 9) is None and label_studio.decode_brush(whole, 1 << 20, 1 << 20) is None


def test_shapes(tmp_path):
  mask = np.zeros([100, 200], np.uint8)
  mask[10:20, 30:70] = 1
  triangle = [[10, 10], [20, 10], [20, 50]]
  rectangle = {'x': 10, 'y': 25, 'width': 30, 'height': 40}
  reading, (image,) = read(tmp_path, [task([
    result('rectanglelabels', rectangle | {'rotation': 0}), result('polygonlabels', {'points': triangle}),
    result('ellipselabels', {'x': 50, 'y': 50, 'radiusX': 10, 'radiusY': 10, 'rotation': 0}),
    result('brushlabels', {'format': 'rle', 'rle': encode(mask)}),
    result('rectanglelabels', rectangle | {'rotation': 90}),
    {**result('labels', rectangle), 'type': 'labels'},
    result('rectanglelabels', rectangle, labels=()), result('rectanglelabels', rectangle, image_rotation=90),
    result('polygonlabels', {'points': triangle[:2]}), result('rectanglelabels', rectangle | {'x': None}),
    result('rectanglelabels', rectangle | {'width': 0}),
    result('ellipselabels', {'x': 1, 'y': 1, 'radiusX': 1, 'radiusY': 0}),
    result('brushlabels', {'rle': [1, 2]}), result('keypointlabels', {'x': 1, 'y': 1}), {'type': 'choices'}, 7])])
  box, polygon, ellipse, brush, rotated, labels = image.instances
  assert image.file == 'a.jpg' and image.size == (100, 200)
  assert box['bbox'] == labels['bbox'] == [20, 25, 60, 40] and box['segmentation'] == []
  assert polygon['segmentation'] == [[20, 10, 40, 10, 40, 50]] and ellipse['bbox'] == [80, 40, 40, 20]
  assert (rasterise(brush['segmentation'], (100, 200)) == mask).all() and rotated['bbox'] == [-20, 25, 40, 60]
  assert dict(reading.problems.counts) == {
    label_studio.ROTATED: 1, NO_CLASS: 1, NO_AREA: 2, label_studio.ROTATED_VIEW: 1, FEW_POINTS: 1, NOT_FINITE: 1,
    label_studio.BAD_BRUSH: 1, f"{label_studio.UNREAD} ('keypointlabels')": 1, f'{label_studio.UNREAD} (missing)': 1}


@pytest.mark.parametrize('degrees, extent', [(0, (40, 10)), (90, (10, 40)), (-90, (10, 40)), (
  30, (np.hypot(40 * np.cos(np.pi / 6), 10 / 2), np.hypot(40 / 2, 10 * np.cos(np.pi / 6))))])
def test_an_ellipse_turns_about_its_centre_in_pixels(tmp_path, degrees, extent):
  """Radii are in percent of 200 x 100 pixels; extent: half of width and height."""
  value = {'x': 50, 'y': 50, 'radiusX': 20, 'radiusY': 10, 'rotation': degrees}
  _, (image,) = read(tmp_path, [task([result('ellipselabels', value)])])
  x, y, w, h = image.instances[0]['bbox']
  assert (x + w / 2, y + h / 2) == pytest.approx((100, 50), abs=0.01)
  assert (w / 2, h / 2) == pytest.approx(extent, abs=0.1)


@pytest.mark.parametrize('address, file', [
  ('/data/local-files/?d=photos%5Ca.jpg', 'photos/a.jpg'), ('s3://bucket/x/a.jpg', 'photos/a.jpg'),
  ('https://host/a.jpg?X-Amz-Signature=1', 'photos/a.jpg'), ('/data/upload/7/12345678-b c.jpg', 'photos/b c.jpg'),
  ('/data/upload/7/12345678-b%20c.jpg', 'photos/b c.jpg'), ('../../etc/a.png', None)])
def test_addresses_of_images(tmp_path, address, file):
  reading, images = read(tmp_path, [task([], address)], ['photos/a.jpg', 'photos/b c.jpg'])
  assert [image.file for image in images] == ([file] if file else [])
  assert reading.problems.counts[NO_IMAGE] == (not file)


def test_shapes_whose_class_no_result_has_are_counted(tmp_path):
  shape = {'x': 0, 'y': 0, 'width': 10, 'height': 10}
  bare = {'original_width': 200, 'original_height': 100, 'type': 'rectangle', 'to_name': 'image', 'value': shape}
  reading, (image,) = read(tmp_path, [task([
    bare | {'id': 'a'}, result('labels', shape, id='a'), bare | {'id': 'b'},
    bare | {'id': 'b', 'type': 'choices', 'value': {**shape, 'choices': ['dog']}}])])
  assert [one['category'] for one in image.instances] == ['cat'] and dict(reading.problems.counts) == {NO_CLASS: 1}


def test_images_that_no_task_names_are_counted(tmp_path):
  tasks = [task([], 'a.jpg'), task([], 'b.jpg', annotations=[])]
  reading, images = read(tmp_path, tasks, ['a.jpg', 'b.jpg', 'c.jpg'])
  assert [image.file for image in images] == ['a.jpg']
  assert dict(reading.problems.counts) == {label_studio.NOT_ANNOTATED: 1, NOT_NAMED: 1}


def test_tasks(tmp_path):
  good = {'result': [result('rectanglelabels', {'x': 0, 'y': 0, 'width': 10, 'height': 10})]}
  tasks = [task([], annotations=7), task([], annotations=[{'result': [], 'was_cancelled': True}]),
           task([], annotations=[{'result': []}, good | {'ground_truth': True}]), task([]), task([], data=[])]
  reading, images = read(tmp_path, tasks)
  assert len(images) == 1 and len(images[0].instances) == 1
  assert reading.problems.counts[label_studio.NOT_ANNOTATED] == 2 and reading.problems.counts[label_studio.SEVERAL] == 1


BOX = {'x': 0, 'y': 0, 'width': 10, 'height': 10}


@pytest.mark.parametrize('data, places, found', [
  ({'left': 'a.jpg', 'right': 'b.jpg'}, [('left', None), ('right', None), ('right', None)], {'a.jpg': 1, 'b.jpg': 2}),
  ({'left': 'a.jpg', 'right': 'b.jpg'}, [('right', None)], {'b.jpg': 1}),
  ({'left': 'gone.jpg', 'right': 'b.jpg'}, [('left', None), ('right', None)], {'b.jpg': 1}),
  ({'left': 'gone.jpg', 'right': 'b.jpg'}, [('left', None)], {}),
  ({'left': 'a.jpg', 'right': 'b.jpg'}, [('tag', None)], {}),
  ({'left': 'a.jpg', 'right': 'b.jpg'}, [('one', None), ('two', None)], {}),
  ({'image': 'a.jpg', 'thumbnail': 'b.jpg'}, [('tag', None)], {'a.jpg': 1}),
  ({'pages': ['a.jpg', 'b.jpg']}, [('pdf', 0), ('pdf', 1), ('pdf', 1)], {'a.jpg': 1, 'b.jpg': 2}),
  ({'pages': ['a.jpg', 'b.jpg']}, [('pdf', 1)], {'a.jpg': 0, 'b.jpg': 1}),
  ({'pages': ['a.jpg', 'b.jpg']}, [('pdf', 7)], {}), ({'pages': ['a.jpg', 'b.jpg']}, [(['x'], {})], {})])
def test_results_stay_on_their_images(tmp_path, data, places, found):
  results = [result('rectanglelabels', BOX, to_name=name, item_index=index) for name, index in places]
  reading, images = read(tmp_path, [task(results) | {'data': data}], ['a.jpg', 'b.jpg'])
  assert {image.file: len(image.instances) for image in images} == found
  counts = reading.problems.counts
  assert counts[NO_IMAGE] == ('gone.jpg' in data.values())
  assert counts[label_studio.UNNAMED] == (not found and 'gone.jpg' not in data.values())


def test_several_exports(tmp_path):
  (tmp_path / 'other.json').write_text(json.dumps([task([])]))
  with pytest.raises(UserError, match='export.json, other.json: name one export'):
    read(tmp_path, [task([])])
