"""Tables with a box a row: columns, rows that are left out, several tables of one data set."""

import pytest

from rethink_tf.data.detection.voc_xml import EXCHANGED
from rethink_tf.data.prepare import tables
from rethink_tf.data.prepare.layout import MISSING, NO_AREA, NO_CLASS, NO_IMAGE, NOT_FINITE, NOT_NAMED, Options
from rethink_tf.data.prepare.preparation import prepare
from rethink_tf.data.prepare.source_folder import SourceFolder
from rethink_tf.errors import UserError
from tests import exports
from tests.data.prepare.layouts import reading_of

HEADER = 'filename,width,height,class,xmin,ymin,xmax,ymax\n'


def read(root, files, images=('a.jpg',), options=None):
  """Return the reading of tables, and its images."""
  return reading_of(tables, root, files, images, options)


def boxes(image):
  return [(one['category'], one['bbox']) for one in image.instances]


@pytest.mark.parametrize('text', [
  HEADER + 'a.jpg,30,20,big cat,1,2.5,4,6\n', '\ufeff"image","xmin","ymin","xmax","ymax","label"\r\n'
  '"a.jpg",1,2.5,4,6,"big cat"\r\n', 'Filename;XMin;YMin;XMax;YMax;Class\nx\\a.jpg;1;2.5;4;6; big cat\n',
  'a.jpg,1,2.5,4,6,big cat\n\nb.jpg,,,,,\n'])
def test_columns(tmp_path, text):
  reading, images = read(tmp_path, {'labels.csv': text}, ['a.jpg', 'b.jpg'])
  assert boxes(images[0]) == [('big cat', [1, 2.5, 3, 3.5])]
  assert images[0].size == ((20, 30) if HEADER in text else None)
  assert dict(reading.problems.counts) == ({} if len(images) == 2 else {NOT_NAMED: 1})


def test_rows_that_are_left_out(tmp_path):
  reading, (image,) = read(tmp_path, {'a.csv': HEADER + 'a.jpg,,,cat,' + '\na.jpg,,,cat,'.join((
    '5,6,1,2', '1,1,1,5', '1,x,3,4', '1,nan,3,4', '1,2')) + '\na.jpg,,,,1,1,2,2\nno.jpg,,,cat,1,1,2,2\n,,,,\n'
    'no.jpg,,,cat,1,1,3,3\n'})
  assert boxes(image) == [('cat', [1, 2, 4, 4])] and image.size is None
  assert dict(reading.problems.counts) == {EXCHANGED: 1, NO_AREA: 1, NOT_FINITE: 3, NO_CLASS: 1, NO_IMAGE: 1,
                                           MISSING: 2}


def test_tables_of_splits_and_of_all(tmp_path):
  rows = 'a.jpg,30,20,cat,1,1,4,4\n', 'b.jpg,30,20,cat,2,2,4,4\n'
  files = {'data/labels.csv': HEADER + ''.join(rows), 'data/train_labels.csv': HEADER + rows[0],
           'data/test_labels.csv': HEADER + rows[1]}
  reading, images = read(tmp_path, files, ['images/a.jpg', 'images/b.jpg'])
  assert {image.file: image.split for image in images} == {'images/a.jpg': 'train', 'images/b.jpg': 'test'}
  assert reading.notes == [tables.AGAIN.format(count=2, file='data/test_labels.csv, data/train_labels.csv')]
  with pytest.raises(UserError, match='train_labels.csv and data/labels.csv have different objects of images/a.jpg'):
    read(tmp_path, {'data/train_labels.csv': HEADER + rows[0].replace('cat', 'dog')}, ())
  _, images = read(tmp_path, {}, (), Options(annotation_file='data/labels.csv'))
  assert len(images) == 2


def test_empty_lines_of_roboflow_are_images_without_a_name(tmp_path):
  reading, images = read(tmp_path, {'train/_annotations.csv': '\na.jpg,1,1,2,2,cat\n',
                                    'valid/_annotations.csv': '\n\n'}, ['train/a.jpg', 'train/b.jpg', 'valid/c.jpg'])
  assert len(images) == 1 and dict(reading.problems.counts) == {NOT_NAMED: 2}


@pytest.mark.parametrize('text', ['', 'a,b\n1,2\n', 'filename,class\na.jpg,cat\n', 'a.jpg,1,2,3,4,cat\nx\n', '\n\n'])
def test_other_tables(tmp_path, text):
  (tmp_path / 'a.csv').write_text(text)
  assert tables.recognize(SourceFolder(str(tmp_path))) is None


WHEAT = 'image_id,width,height,bbox,source\n'


def test_boxes_in_one_column_of_global_wheat(tmp_path):
  text = WHEAT + 'a,30,20,"[1.0, 2.5, 6.0, 8.0]",x\na,30,20,"[8, 9, 2, 1]",x\nb,30,20,,x\nc,30,20,[],x\n'
  reading, images = read(tmp_path, {'train.csv': text}, ['train/a.jpg', 'train/b.png', 'train/c.jpg', 'd.jpg'])
  assert [(image.file, boxes(image)) for image in images] == [
    ('train/a.jpg', [('object', [1, 2.5, 6, 8]), ('object', [8, 9, 2, 1])]), ('train/b.png', []), ('train/c.jpg', [])]
  assert images[0].size == (20, 30) and images[0].split == 'train' and not reading.problems.counts
  assert reading.notes == [tables.NO_CLASSES.format(file='train.csv', name='object')]


def test_wrong_boxes_in_one_column(tmp_path):
  rows = ['[8, 9, 2, 1]', '[1, 2, 0, 4]', '[1, 2, 3, -4]', '[1, 2, 3]', '[1, 2, nan, 4]', '[1, 2, 1e300, 4]', 'x', '']
  reading, (image,) = read(tmp_path, {'a.csv': 'image_id;category;bbox\n' + ''.join(
    f'a;cat;{row}\n' for row in rows) + 'a;;[8, 9, 2, 1]\n'}, ['a.jpg'])
  assert boxes(image) == [('cat', [8, 9, 2, 1])] and image.size is None
  assert dict(reading.problems.counts) == {NO_AREA: 2, NOT_FINITE: 5, NO_CLASS: 1}


def test_boxes_in_one_column_that_may_be_corners(tmp_path):
  header, row = 'image,label,bbox\n', 'a.jpg,cat,"(1, 2, 3, 4)"\n'
  with pytest.raises(UserError, match='a.csv: the numbers of its column bbox may be x, y, width and') as e:
    read(tmp_path, {'a.csv': header + row * 11 + 'a.jpg,cat,"5 6 1 2"\n'}, ['a.jpg'])
  assert '\n' not in str(e.value)
  _, (image,) = read(tmp_path, {'a.csv': header + row * 8 + 'a.jpg,cat,"5 6 1 2"\n'}, ['a.jpg'])
  assert boxes(image)[7:] == [('cat', [1, 2, 3, 4]), ('cat', [5, 6, 1, 2])]
  _, (image,) = read(tmp_path, {'a.csv': WHEAT + 'a,30,20,"[1, 2, 3, 4]",x\n'}, ['a.jpg'])
  assert boxes(image) == [('object', [1, 2, 3, 4])]


@pytest.mark.parametrize('text', [
  'image_id,bbox\na,"[[1, 2, 3, 4], [1, 2, 3, 4]]"\n', 'image_id,bbox\na,x\n', 'image_id,bbox\n',
  'bbox\n"[8,9,1,2]"\n'])
def test_columns_without_boxes(tmp_path, text):
  (tmp_path / 'a.csv').write_text(text)
  assert tables.recognize(SourceFolder(str(tmp_path))) is None


def test_corners_beside_a_box_and_of_another_spelling(tmp_path):
  text = 'image_id,bbox,class_name,x_min,y_min,x_max,y_max\na,7,cat,1,2,4,6\n'
  _, (image,) = read(tmp_path, {'a.csv': text}, ['a.jpg'])
  assert boxes(image) == [('cat', [1, 2, 3, 4])]


def test_global_wheat_there_and_back(tmp_path):
  items, _ = exports.draw(tmp_path / 'data')
  items = [item._replace(objects=[('object', box, []) for _, box, _ in item.objects]) for item in items if item.objects]
  exports.wheat(items, {1: 'object'}, tmp_path / 'export')
  prepared = prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  assert not exports.differences(items, tmp_path / 'own', by_split=False) and not prepared.problems[0][1].counts
