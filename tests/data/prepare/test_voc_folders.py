"""PASCAL VOC's xml in the folders that people have."""

import pytest

from rethink_tf.data.detection.voc_xml import BOX_OF_POLYGON
from rethink_tf.data.prepare import voc_folders
from rethink_tf.data.prepare.layout import NO_IMAGE, NOT_ANNOTATED, NOT_FINITE, SECOND_FILE
from rethink_tf.errors import UserError
from tests.data.prepare.layouts import reading_of


def xml(name='a.jpg', objects=('cat',), extra='', box=(1, 1, 5, 6)):
  x0, y0, x1, y1 = box
  return (f'<?xml version="1.0"?><annotation><filename>{name}</filename><size><width>9</width><height>8</height></size>'
          + ''.join(f'<object><name>{label}</name>{extra}<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>'
                    f'<ymax>{y1}</ymax></bndbox></object>' for label in objects) + '</annotation>')


def read(root, files, images):
  return reading_of(voc_folders, root, files, images)


def test_image_sets(tmp_path):
  files = {f'Annotations/{name}.xml': xml(f'{name}.jpg') for name in 'abcd'}
  files |= {'ImageSets/Main/train.txt': 'a\n', 'ImageSets/Main/val.txt': 'b\n', 'ImageSets/Main/trainval.txt': 'a\nb\n',
            'ImageSets/Main/test.txt': 'c\n', 'ImageSets/Main/person_train.txt': 'd 1\n'}
  _, images = read(tmp_path, files, [f'JPEGImages/{name}.JPG' for name in 'abcd'])
  assert {image.name: image.split for image in images} == {'a.JPG': 'train', 'b.JPG': 'val', 'c.JPG': 'test'}
  assert images[0].instances == [{'category': 'cat', 'iscrowd': 0, 'bbox': [0, 0, 5, 6], 'area': 30,
                                  'segmentation': []}]


@pytest.mark.parametrize('box, expected', [
  ((1, 1, 5, 6), [0, 0, 5, 6]), (('1.0', '1.0', '5.0', '6.0'), [0, 0, 5, 6]), ((0, 1.25, 5, 6), [0, 1.25, 5, 4.75])])
def test_fractions_are_continuous_coordinates(tmp_path, box, expected):
  reading, (image,) = read(tmp_path, {'a.xml': xml(box=box)}, ['a.jpg'])
  assert image.instances[0]['bbox'] == expected and not reading.problems.counts


@pytest.mark.parametrize('lists', [
  {'Train.txt': 'a\n"b c"\n', 'Validation.txt': 'd\n', 'default.txt': 'a\n'},  # CVAT
  {'cat_train.txt': 'a.jpg 1\nb c.jpg -1\n', 'cat_val.txt': 'd.jpg  1\n', 'dog_val.txt': 'd.jpg -1\n'}])  # VoTT
def test_image_sets_of_tools(tmp_path, lists):
  names = ('a', 'b c', 'd')
  files = {f'Annotations/{name}.xml': xml(f'{name}.jpg') for name in names}
  reading, images = read(tmp_path, files | {f'ImageSets/Main/{name}': text for name, text in lists.items()},
                         [f'JPEGImages/{name}.jpg' for name in names])
  assert [(image.name, image.split) for image in images] == [('a.jpg', 'train'), ('b c.jpg', 'train'), ('d.jpg', 'val')]
  assert not reading.problems.counts


def test_image_sets_that_do_not_fit_are_counted(tmp_path):
  files = {f'Annotations/{name}.xml': xml(f'{name}.jpg') for name in ('a', 'b c', 'd', 'e')}
  files |= {'ImageSets/Main/train.txt': '"b c"\nghost\na.jpg\n', 'ImageSets/Main/trainval.txt': 'ghost\n'}
  reading, images = read(tmp_path, files, [f'JPEGImages/{name}.jpg' for name in ('a', 'b c', 'd', 'e')])
  assert {image.name for image in images} == {'a.jpg', 'b c.jpg'}
  assert reading.problems.counts[voc_folders.NOT_IN_A_LIST] == 2
  assert reading.problems.counts[voc_folders.NO_ANNOTATION] == 1
  reading, images = read(tmp_path / 'other', {'Annotations/a.xml': xml(), 'ImageSets/Main/train.txt': 'x\n'},
                         ['JPEGImages/a.jpg'])
  assert images[0].split is None and reading.problems.counts[voc_folders.NO_ANNOTATION] == 1


def test_beside_images_with_splits(tmp_path):
  _, images = read(tmp_path, {'train/a.xml': xml(), 'valid/a.xml': xml()}, ['train/a.jpg', 'valid/a.jpg'])
  assert [(image.file, image.split) for image in images] == [('train/a.jpg', 'train'), ('valid/a.jpg', 'val')]


def test_utf_16_and_a_path_of_another_machine(tmp_path):
  text = xml('').replace('<filename>', '<path>C:\\me\\b.jpg</path><filename>').replace(
    '<?xml version="1.0"?>', '<?xml version="1.0" encoding="UTF-16"?>').replace('><', '>\r\n<')
  (tmp_path / 'xmls').mkdir()
  (tmp_path / 'xmls/a.xml').write_bytes(text.encode('utf-16'))
  _, images = read(tmp_path, {}, ['imgs/b.jpg'])
  assert [(image.file, len(image.instances)) for image in images] == [('imgs/b.jpg', 1)]


def test_objects_without_a_box(tmp_path):
  objects = '<object><name>cat</name></object><object><name>cat</name><polygon><x1>1</x1><y1>1</y1><x2>5</x2><y2>6</y2>'
  reading, images = read(tmp_path, {'Annotations/a.xml': xml().replace('</annotation>', objects + (
    '</polygon></object></annotation>'))}, ['JPEGImages/a.jpg'])
  assert [one['bbox'] for one in images[0].instances] == [[0, 0, 5, 6]] * 2
  assert {NOT_FINITE: 1, BOX_OF_POLYGON: 1}.items() <= reading.problems.counts.items()
  assert voc_folders.DAMAGED not in reading.problems.counts


def test_what_is_left_out_is_counted(tmp_path):
  reading, images = read(tmp_path, {
    'Annotations/a.xml': xml(extra='<difficult>1</difficult><polygon><x1>1</x1></polygon>'),
    'Annotations/b.xml': xml('renamed.jpg'), 'Annotations/c.xml': '<annotation>', 'Annotations/d.xml': xml('a.jpg'),
    'Annotations/e.xml': '<!DOCTYPE x [<!ENTITY y "z">]><annotation>&y;</annotation>',
    'Annotations/f.xml': xml('f.jpg', box=(4, 4, 2, 3)), 'Annotations/g.xml': xml('g.jpg', box=('nan', 1, 2, 3)),
  }, ['JPEGImages/a.jpg', 'JPEGImages/renamed.jpg', 'JPEGImages/f.jpg', 'JPEGImages/g.jpg', 'JPEGImages/h.jpg',
      'SegmentationObject/a.png'])
  assert [image.file for image in images] == [f'JPEGImages/{name}.jpg' for name in ('a', 'renamed', 'f', 'g')]
  assert images[0].instances[0]['iscrowd'] == 1
  counts = reading.problems.counts
  assert counts[voc_folders.DAMAGED] == 2 and counts[voc_folders.DIFFICULT] == counts[voc_folders.POLYGON] == 1
  assert counts[NO_IMAGE] == 0 and counts[SECOND_FILE] == 1
  assert counts['with exchanged corners (put in order)'] == 1
  assert counts[NOT_ANNOTATED] == 1 and 'SegmentationObject' in reading.notes[0]


def test_only_damaged_files(tmp_path):
  with pytest.raises(UserError, match='1 of 1 annotations are damaged'):
    read(tmp_path, {'a.xml': '<annotation>'}, ['a.jpg'])
