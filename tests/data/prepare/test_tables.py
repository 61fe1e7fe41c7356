"""Tables with a box a row: columns, rows that are left out, several tables of one data set."""

import pytest

from rethink_tf.data.detection.voc_xml import EXCHANGED
from rethink_tf.data.prepare import tables
from rethink_tf.data.prepare.layout import MISSING, NO_AREA, NO_CLASS, NO_IMAGE, NOT_FINITE, NOT_NAMED, Options
from rethink_tf.data.prepare.source_folder import SourceFolder
from rethink_tf.errors import UserError

HEADER = 'filename,width,height,class,xmin,ymin,xmax,ymax\n'


def read(root, files, images=('a.jpg',), options=None):
  """Return the reading of tables, and its images."""
  for name, text in {**files, **dict.fromkeys(images, '')}.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
  folder = SourceFolder(str(root))
  assert tables.recognize(folder) is not None
  reading = tables.read(folder, options or Options())
  return reading, list(reading.images)


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
