"""YOLO's text files: class names, lists of images, lines of every kind."""

import pytest

from rethink_tf.data.prepare import yolo
from rethink_tf.data.prepare.layout import NO_AREA, NO_IMAGE
from rethink_tf.errors import UserError
from tests.data.prepare.layouts import reading_of

LINE = '0 0.5 0.5 0.2 0.4'


def read(root, files, images=('images/a.jpg',)):
  """Return the reading of a folder of text files, and its images."""
  return reading_of(yolo, root, files, images)


@pytest.mark.parametrize('yaml, names', [
  ('names: [cat, dog]', {0: (1, 'cat'), 1: (2, 'dog')}), ('names:\n  0: cat\n  4: dog', {0: (1, 'cat'), 4: (5, 'dog')}),
  ("names: ['no', 'yes', '1']", {0: (1, 'no'), 1: (2, 'yes'), 2: (3, '1')}),
  ('names: [no, on]', {0: (1, 'no'), 1: (2, 'on')})])
def test_names(tmp_path, yaml, names):
  reading, images = read(tmp_path, {'data.yaml': yaml, 'labels/a.txt': '0 0.5 0.5 0.2 0.4'})
  assert {key: (entry['id'], entry['name']) for key, entry in reading.categories.items()} == names
  assert images[0].instances == [{'category': 0, 'bbox': [0.4, 0.3, 0.2, 0.4], 'segmentation': []}]


def test_lines(tmp_path):
  text = ('0 0.5 0.5 0.2 0.4 17\n0 0.1 0.1 0.5 0.1 0.5 0.5\n0 0.1 0.1 0.5 0.1 0.5 0.5 3\n\n0 320 200 10 10\n0 a b c d\n'
          '0 0.5 inf 0.1 0.1\n0.0 0.5 0.5 0.2 0.4\n1 0.5 0.5 0.2 0.4\n-1 0.5 0.5 0.2 0.4\n0 0.1 0.2 0.3\n'
          '0 0.5 0.5 0 0.4\n0 0.5 0.5 0.2 -0.4\n')
  reading, images = read(tmp_path, {'classes.txt': 'cat\n', 'labels/a.txt': text})
  assert len(images[0].instances) == 4 and len(images[0].instances[1]['segmentation'][0]) == 6
  assert images[0].instances[1] == images[0].instances[2]
  assert dict(reading.problems.counts) == {
    yolo.ONE_MORE: 2, yolo.IN_PIXELS: 1, yolo.NOT_A_LABEL: 2, 'with a number that is missing or not finite': 1,
    yolo.UNKNOWN_CLASS: 2, NO_AREA: 2}


@pytest.mark.parametrize('other, noted', [
  ('', True), ('\n0 0.1 0.1 0.5 0.1 0.5 0.5', False), (f'\n{LINE}', True),
  ('\n0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5 0.1 0.1', True), ('\n0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.1', False)])  # closed
def test_outlines_that_may_be_rotated_boxes_are_said(tmp_path, other, noted):
  reading, images = read(tmp_path, {'classes.txt': 'cat', 'labels/a.txt': f'0 0.5 0.2 0.7 0.5 0.5 0.8 0.3 0.5{other}'})
  assert images[0].instances[0]['segmentation'] == [[0.5, 0.2, 0.7, 0.5, 0.5, 0.8, 0.3, 0.5]]
  assert (yolo.OF_FOUR_POINTS in reading.notes) == noted


def test_lists_of_images_are_no_label_files(tmp_path):
  files = {'data.yaml': 'train: autosplit_train.txt\nnames: [cat]', 'autosplit_train.txt': './images/a.jpg\n'}
  reading, (image,) = read(tmp_path, files | {'labels/a.txt': LINE})
  assert image.instances and not reading.problems.counts


def test_lists_of_cvat(tmp_path):
  files = {'data.yaml': 'path: ./\ntrain: train.txt\nval: val.txt\nnames:\n  0: cat\n',
           'train.txt': 'images/train/a.jpg\nimages/train/gone.jpg\n', 'val.txt': 'D:\\x\\images\\val\\a.jpg\n',
           'labels/train/a.txt': '0 0.5 0.5 0.2 0.4'}
  reading, images = read(tmp_path, files, ['images/train/a.jpg', 'images/val/a.jpg'])
  assert [(image.file, image.name, image.split, len(image.instances)) for image in images] == [
    ('images/train/a.jpg', 'a.jpg', 'train', 1), ('images/val/a.jpg', 'a.jpg', 'val', 0)]
  assert reading.problems.counts[NO_IMAGE] == 1 and '1 images have no label file' in reading.notes[0]


def test_images_of_several_splits_are_counted(tmp_path):
  files = {'data.yaml': 'names: [cat]\ntrain: [x/images, y/images]\nval: y/images\ntest: y/images',
           'x/labels/a.txt': LINE, 'y/labels/a.txt': LINE}
  reading, images = read(tmp_path, files, ['x/images/a.jpg', 'y/images/a.jpg'])
  assert [image.split for image in images] == ['train', 'train'] and reading.problems.counts[yolo.IN_SEVERAL] == 1


def test_labels_with_the_names_of_addresses(tmp_path):
  _, (image,) = read(tmp_path, {'classes.txt': 'cat', 'labels/d%C3%A9cran%201.txt': LINE}, ['images/d\u00e9cran 1.jpg'])
  assert image.file == 'images/d\u00e9cran 1.jpg' and len(image.instances) == 1


def test_a_damaged_label_file_is_that_of_one_image(tmp_path):
  (tmp_path / 'labels').mkdir()
  (tmp_path / 'labels/b.txt').write_bytes(LINE.encode('utf-16'))
  reading, images = read(tmp_path, {'classes.txt': 'cat', 'labels/a.txt': LINE}, ['images/a.jpg', 'images/b.jpg'])
  assert [image.file for image in images] == ['images/a.jpg'] and dict(reading.problems.counts) == {yolo.DAMAGED: 1}


def test_labels_beside_images_and_of_several_images(tmp_path):
  reading, images = read(tmp_path, {'classes.txt': 'cat', 'x/a.txt': '0 0.5 0.5 0.2 0.4', 'x/b.txt': ''},
                         ['x/a.jpg', 'x/a.png', 'logo.png'])
  assert [image.file for image in images] == ['x/a.jpg', 'x/a.png']
  assert dict(reading.problems.counts) == {'label file without its image': 1,
                                           'label file of several images (used for each)': 1}


def test_texts_that_are_no_labels_are_not_counted(tmp_path):
  reading, images = read(tmp_path, {'classes.txt': 'cat', 'a.txt': LINE, 'obj.data.txt': 'classes = 1\ntrain = x',
                                    'b.txt': LINE, 'notes/links.txt': 'x/a.jpg'}, ['a.jpg'])
  assert len(images) == 1 and dict(reading.problems.counts) == {'label file without its image': 1}


def test_paths_that_are_not_in_the_source(tmp_path):
  reading, images = read(tmp_path, {'data.yaml': 'train: /data/x/photos\nval: ..\\y\nnames: [cat]',
                                    'labels/a.txt': '0 0.5 0.5 0.2 0.4'})
  assert [(image.file, image.split) for image in images] == [('images/a.jpg', None)]
  assert 'none of its lists and folders of images is in the source' in reading.notes[0]


def test_a_folder_of_the_description_that_is_not_there_is_named(tmp_path):
  files = {'data.yaml': 'train: images/train\nval: images/valid\nnames: [cat]',
           **{f'labels/{split}/a.txt': '0 0.5 0.5 0.2 0.4' for split in ('train', 'holdout')}}
  reading, images = read(tmp_path, files, [f'images/{split}/a.jpg' for split in ('train', 'holdout')])
  assert [image.file for image in images] == ['images/train/a.jpg']
  assert reading.notes == ['data.yaml: val: images/valid: no such list or folder of images in the source']
  assert dict(reading.problems.counts) == {yolo.NOT_IN_A_LIST: 1}


def test_many_images_without_objects_come_first(tmp_path):
  files = {f'train/labels/{i:03}.txt': '' for i in range(60)} | {'train/labels/z.txt': '0 0.5 0.5 0.2 0.4'}
  images = [f'train/images/{i:03}.jpg' for i in range(60)] + ['train/images/z.jpg']
  _, found = read(tmp_path, files | {'data.yaml': 'train: train/images\nnames: [cat]'}, images)
  assert len(found) == 61 and sum(len(image.instances) for image in found) == 1


def test_folders_in_upper_case(tmp_path):
  _, (image,) = read(tmp_path, {'classes.txt': 'cat', 'Labels/a.txt': '0 0.5 0.5 0.2 0.4'}, ['Images/a.jpg'])
  assert len(image.instances) == 1


@pytest.mark.parametrize('names', ['[cat]', '[dog]'])
def test_two_exports_are_refused(tmp_path, names):
  files = {f'{one}/labels/{one}.txt': '0 0.5 0.5 0.2 0.4' for one in 'AB'}
  files |= {'A/data.yaml': 'names: [cat]\ntrain: images', 'B/data.yaml': f'names: {names}\ntrain: images'}
  with pytest.raises(UserError, match=r'holds 2 exports of YOLO \(A, B\): give one of these folders'):
    read(tmp_path, files, ['A/images/A.jpg', 'B/images/B.jpg'])
  assert read(tmp_path / 'A', {}, [])[1][0].split == 'train'


def test_folders_with_equal_names_of_labelimg_are_one_data_set(tmp_path):
  files = {f'{one}/{name}': text for one in 'AB' for name, text in (('classes.txt', 'cat'),
                                                                    (f'{one}.txt', '0 0.5 0.5 0.2 0.4'))}
  assert len(read(tmp_path, files, ['A/A.jpg', 'B/B.jpg'])[1]) == 2


def test_a_description_in_another_encoding_is_named(tmp_path):
  (tmp_path / 'data.yaml').write_bytes('names: [caf\u00e9]'.encode('cp1252'))
  with pytest.raises(UserError, match='data.yaml: not a text file in UTF-8'):
    read(tmp_path, {'labels/a.txt': '0 0.5 0.5 0.2 0.4'})


@pytest.mark.parametrize('files, message', [
  ({'labels/a.txt': '0 0.5 0.5 0.2 0.4'}, 'YOLO labels without class names: write the names'),
  ({'labels/a.txt': '0 30 40 10 10 0.9', 'classes.txt': 'cat'}, 'none of its 1 labels can be used: [^;]*not fractions'),
  ({'labels/a.txt': '0 0.5 0.5 0.2 0.4', 'classes.txt': 'cat', 'x/obj.names': 'dog'}, 'different class names'),
  ({'labels/a.txt': '0 0.5 0.5 0.2 0.4', 'data.yaml': 'names: {x: cat}'}, 'keys should be class numbers'),
  ({'labels/a.txt': '0 0.5 0.5 0.2 0.4', 'data.yaml': 'names: [[cat]]'}, 'should have a name'),
  ({'labels/a.txt': '0 0.5 0.5 0.2 0.4', 'data.yaml': 'names:\n\t- cat'}, 'data.yaml: not valid YAML, line 2: found'),
  ({'labels/a.txt': '1 .5 .5 .2 .4\n2 .2 .2 .1 .1', 'data.yaml': 'names: [cat, dog]'},
   'class numbers 1 to 2, data.yaml has names for 0 to 1: number both from 0'),
  ({'labels/b.txt': '0 0.5 0.5 0.2 0.4', 'classes.txt': 'cat'}, 'none of its 1 images has a label file')])
def test_errors_of_one_line(tmp_path, files, message):
  with pytest.raises(UserError, match=message) as raised:
    read(tmp_path, files)
  assert '\n' not in str(raised.value)


def test_a_yaml_file_that_expands_or_runs_code(tmp_path):
  bomb = 'a: &a [x]\n' + ''.join(f'{chr(98 + i)}: &{chr(98 + i)} [{", ".join([f"*{chr(97 + i)}"] * 9)}]\n'
                                 for i in range(20)) + 'names: *u\n'
  for text in (bomb, 'names: ' + '[' * 5000):
    with pytest.raises(UserError):
      read(tmp_path, {'data.yaml': text, 'labels/a.txt': '0 0.5 0.5 0.2 0.4'})
  reading, _ = read(tmp_path, {'data.yaml': f'names: !!python/object/apply:os.mkdir ["{tmp_path}/run"]',
                               'labels/a.txt': '0 0.5 0.5 0.2 0.4'})
  assert reading.categories[0]['name'] == f'{tmp_path}/run' and not (tmp_path / 'run').exists()
