"""Open Images' tables: names of classes and images, groups, rows that are wrong."""

import pytest

from rethink_tf.data.detection.voc_xml import EXCHANGED
from rethink_tf.data.prepare import open_images
from rethink_tf.data.prepare.layout import (
  AGAIN,
  MISSING,
  NO_AREA,
  NO_CLASS,
  NO_IMAGE,
  NOT_FINITE,
  NOT_NAMED,
  OF_AGAIN,
  Options,
)
from rethink_tf.data.prepare.preparation import Division, prepare
from rethink_tf.data.prepare.source_folder import SourceFolder
from rethink_tf.data.prepare.yolo import IN_PIXELS
from rethink_tf.errors import UserError
from tests import exports
from tests.data.prepare.layouts import reading_of

HEADER = 'ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside'
CLASSES = {'class-descriptions-boxable.csv': '/m/0a,Cat\n/m/0b,"Dog, hot"\n'}


def row(name='a', label='/m/0a', box=(.25, .5, .125, .75), group=0):
  return f'{name},xclick,{label},1,{",".join(map(str, box))},-1,0,{group},0,0'


def read(root, rows, images=('a.jpg',), file='train-annotations-bbox.csv', files=CLASSES, header=HEADER):
  """Return the reading of a table, and its images."""
  return reading_of(open_images, root, {file: '\n'.join([header, *rows]), **files}, images)


def test_boxes_classes_and_groups(tmp_path):
  reading, (image,) = read(tmp_path, [row(), row(label='/m/0b', group=1), row(label='bird', group=-1)])
  assert [(one['category'], one['bbox'], one['iscrowd']) for one in image.instances] == [
    ('Cat', [.25, .125, .25, .625], 0), ('Dog, hot', [.25, .125, .25, .625], 1), ('bird', [.25, .125, .25, .625], 0)]
  assert image.fractions and image.split == 'train'
  assert not reading.problems.counts and reading.notes == [open_images.CROWDS.format(count=1)]


def test_wrong_rows_are_counted(tmp_path):
  bad = [row(label=''), row(label='/m/0c'), row(box=('', 1, 0, 1)), row(box=('nan', 1, 0, 1)), row(box=('x', 1, 0, 1)),
         'a,xclick,/m/0a', row(box=(10, 20, 30, 40)), row(box=(.5, .5, 0, 1)), row(box=(.5, .6, 1, 1))]
  reading, (image,) = read(tmp_path, [*bad, '', row(box=(.5, .25, .75, .125))])
  assert [one['bbox'] for one in image.instances] == [[.25, .125, .25, .625]]
  assert dict(reading.problems.counts) == {NO_CLASS: 1, open_images.NOT_DESCRIBED: 1, NOT_FINITE: 4, IN_PIXELS: 1,
                                           NO_AREA: 2, EXCHANGED: 1}


def test_images_missing_not_named_and_in_two_tables(tmp_path):
  reading, images = read(
    tmp_path, [row('b'), row(), row('b'), row('../../etc/passwd'), row('x'), row('x')], ('a.jpg', 'b.png', 'c.jpg'),
    files=CLASSES | {'boxes.csv': f'{HEADER}\n{row("c")}\n{row("a")}\n{row("a")}'}, file='a-annotations-bbox.csv')
  assert [(image.file, len(image.instances)) for image in images] == [('b.png', 2), ('a.jpg', 1), ('c.jpg', 1)]
  assert dict(reading.problems.counts) == {NO_IMAGE: 2, MISSING: 3, AGAIN: 1, OF_AGAIN: 2}
  reading, _ = read(tmp_path / 'x', [row()], ('a.jpg', 'c.jpg'))
  assert dict(reading.problems.counts) == {NOT_NAMED: 1}


@pytest.mark.parametrize('file, images, split', [
  ('validation-annotations-bbox.csv', ('train/a.jpg', 'val/a.jpg'), 'val'), ('labels/detections.csv', ('a.jpg',), None),
  ('oidv6-train-annotations-bbox.csv', ('a.jpg',), 'train'),
  ('test/labels/detections.csv', ('test/data/a.jpg',), 'test')])
def test_splits(tmp_path, file, images, split):
  _, (image,) = read(tmp_path, [row()], images, file)
  assert image.split == split and image.file == images[-1]


@pytest.mark.parametrize('files', [
  {'metadata/classes.csv': '/m/0a,Cat'}, {'names.csv': '/m/0a,Cat\r\n'},
  {'oidv7-class-descriptions.csv': '"LabelName","DisplayName"\n"/m/0a","Cat"'},
  {'class-descriptions.csv': 'LabelName,DisplayName\n/m/0a,Cat\n/m/0b\n'}])
def test_tables_of_names(tmp_path, files):
  header = ','.join(f'"{word}"' for word in HEADER.split(','))
  reading, (image,) = read(tmp_path, [row()], files=files, header=header)
  assert image.instances[0]['category'] == 'Cat' and not reading.notes and not reading.problems.counts


@pytest.mark.parametrize('end', ['\r', '\r\n'])
def test_other_ends_of_lines(tmp_path, end):
  (tmp_path / 'a.jpg').write_text('')
  (tmp_path / 'a.csv').write_text(end.join([HEADER, row(), row('a\rb'), row()]), newline='')
  folder = SourceFolder(str(tmp_path))
  assert open_images.recognize(folder) == 'a.csv'
  reading = open_images.read(folder, Options())
  assert len(next(reading.images).instances) == 2
  assert dict(reading.problems.counts) == {NO_IMAGE: 1, MISSING: 1, NO_CLASS: 1}


@pytest.mark.parametrize('header', ['x' * 200_000 + f',{HEADER}', f'"{HEADER}"', 'ImageID,LabelName,XMin', '"', ''])
def test_other_tables(tmp_path, header):
  (tmp_path / 'a.csv').write_text(f'{header}\n{row()}')
  assert open_images.recognize(SourceFolder(str(tmp_path))) is None


def test_without_a_table_of_names_the_codes_are_the_names(tmp_path):
  reading, (image,) = read(tmp_path, [row()], files={})
  assert image.instances[0]['category'] == '/m/0a' and reading.notes == [open_images.NO_NAMES.format(example='/m/0a')]


def test_tables_that_contradict_each_other_or_are_no_text(tmp_path):
  with pytest.raises(UserError, match='/m/0a is Cat and elsewhere Lion: remove all but one table of class names'):
    read(tmp_path, [row()], files=CLASSES | {'a/classes.csv': '/m/0a,Lion'})
  (tmp_path / 'a/classes.csv').unlink()
  (tmp_path / 'train-annotations-bbox.csv').write_bytes(f'{HEADER}\n{row()}\n{row("ä")}'.encode('latin-1'))
  with pytest.raises(UserError, match='train-annotations-bbox.csv: line 3: not a text file in UTF-8'):
    open_images.read(SourceFolder(str(tmp_path)), Options())
  with pytest.raises(UserError, match='train-annotations-bbox.csv: line 2: not a table .CSV.: field larger'):
    read(tmp_path, [row('a' * 200_000)])


def test_there_and_back(tmp_path):
  items, names = exports.draw(tmp_path / 'data')
  items = [item for item in items if item.objects]  # the tables have no row of the others
  exports.open_images(items, names, tmp_path / 'export')
  prepared = prepare(str(tmp_path / 'export'), str(tmp_path / 'own'), division=Division(0.4))
  assert not exports.differences(items, tmp_path / 'own', masks=False)
  assert not prepared.problems[0][1].counts and prepared.splits['val'][0] == 2
