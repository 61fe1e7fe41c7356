"""VocSource: layouts, several years, difficult objects, classes, subsets, and damaged data sets."""

import pathlib

import cv2
import numpy as np
import pytest

from rethink_tf.data.detection.input import EvalInput, TrainInput
from rethink_tf.data.detection.voc import VOC_CLASSES, VocSource
from rethink_tf.data.images import ImageError
from rethink_tf.errors import UserError
from rethink_tf.structures import LeftOut
from tests.small_coco import warnings
from tests.small_voc import item, write, xml

TWO_YEARS = {
  'VOC2007/trainval': {'000005': xml(item('dog'), item('cat', (1, 1, 80, 60), difficult=1)),
                       '000007': xml(item('cat'))},
  'VOC2012/train': {'2008_000002': xml(item('aeroplane', (5, 5, 20, 20)))},
}


def one(folder, *items, **files):
  """Write a data set without years: image 1 with the given objects, and other files."""
  return write(folder, {'train': {'1': xml(*items), **files}})


def test_two_years_are_concatenated(tmp_path):
  source = VocSource(write(tmp_path / 'VOCdevkit', TWO_YEARS))
  assert source.name == 'VOCdevkit/VOC2007/trainval+VOC2012/train'
  assert source.image_ids.tolist() == [5, 7, 2008000002] and source.num_instances.tolist() == [1, 1, 1]
  assert source.file_names == ['VOC2007/JPEGImages/000005.jpg', 'VOC2007/JPEGImages/000007.jpg',
                               'VOC2012/JPEGImages/2008_000002.jpg']
  assert [c.name for c in source.categories] == list(VOC_CLASSES) and source.num_classes == 20
  example = source.load(0)
  assert example.image.shape == (60, 80, 3) and example.keypoints.shape == (1, 0, 3)
  assert example.boxes.tolist() == [[20, 10, 50, 30]] and example.classes.tolist() == [VOC_CLASSES.index('dog') + 1]
  assert example.masks.shape == (1, 112, 112) and example.masks.all()
  # The parent folder of VOCdevkit works too, and the order of the sets changes nothing.
  again = VocSource(str(tmp_path), sets=('VOC2012/train', 'VOC2007/trainval'))
  assert again.digest() == source.digest() and again.file_names == source.file_names


def test_difficult_objects_are_ground_truth_but_not_trained_on(tmp_path):
  folder = write(tmp_path, TWO_YEARS)
  for use, targets in ((False, [1, 1, 1]), (True, [2, 1, 1])):
    source = VocSource(folder, use_difficult=use)
    assert source.num_instances.tolist() == targets
    truth = source.annotations()
    assert [a['difficult'] for a in truth['annotations']] == [0, 1, 0, 0]
    assert [a['iscrowd'] for a in truth['annotations']] == [0, 1, 0, 0]
    assert truth['annotations'][1]['bbox'] == [0, 0, 80, 60] and truth['annotations'][1]['area'] == 4800
    assert [i['id'] for i in truth['images']] == source.image_ids.tolist()
  only = one(tmp_path / 'b', item(difficult=1), more=xml(item()))
  assert len(VocSource(only, sets=('train',), training=True).image_ids) == 1
  assert len(VocSource(only, sets=('train',)).image_ids) == 2


def test_classes_from_the_data_are_those_of_all_sets(tmp_path):
  folder = write(tmp_path, {'train': {'1': xml(item('zebra'))}, 'val': {'2': xml(item('ape'))}})
  for name in ('train', 'val'):
    source = VocSource(folder, sets=(name,), classes=None)
    assert [(c.id, c.name) for c in source.categories] == [(1, 'ape'), (2, 'zebra')]
  assert VocSource(folder, sets='val', classes=('ape', 'bee')).load(0).classes.tolist() == [1]


def test_subsets_are_nested_and_do_not_depend_on_the_order(tmp_path):
  folder = write(tmp_path, {'train': {f'{i:06d}': xml(item()) for i in range(40)}})
  chosen = {n: set(VocSource(folder, sets=('train',), num_images=n).image_ids.tolist()) for n in (5, 10, 20)}
  assert chosen[5] < chosen[10] < chosen[20] and [len(ids) for ids in chosen.values()] == [5, 10, 20]
  names = tmp_path / 'ImageSets/Main/train.txt'
  names.write_text('\n'.join(reversed(names.read_text().split())))
  assert set(VocSource(folder, sets=('train',), fraction=.25).image_ids.tolist()) == chosen[10]


def test_ids_are_positions_if_digits_are_not_unique(tmp_path):
  folder = write(tmp_path, {'train': {name: xml(item()) for name in ('a 1', 'b 1', 'c')}})
  source = VocSource(folder, sets=('train',))
  assert source.image_ids.tolist() == [1, 2, 3] and source.file_names[0] == 'JPEGImages/a 1.jpg'


def test_files_of_a_class_and_repeated_names(tmp_path, caplog):
  folder = write(tmp_path, {'train': {'1': xml(item()), '2': xml(item())}})
  (tmp_path / 'ImageSets/Main/dog_train.txt').write_text('1  1\n2 -1\n')
  source = VocSource(folder, sets=('train', 'dog_train'))
  assert source.image_ids.tolist() == [1, 2]
  assert any('2 images are listed more than once' in line for line in warnings(caplog))


def test_missing_size_is_read_from_the_image(tmp_path):
  folder = write(tmp_path, {'train': {'1': xml(item(), size=(0, 0))}})
  assert VocSource(folder, sets=('train',)).sizes.tolist() == [[60, 80]]
  (tmp_path / 'JPEGImages/1.jpg').write_bytes(b'no image')
  with pytest.raises(UserError, match=r'1\.xml: has no <size>'):
    VocSource(folder, sets=('train',))


def test_unusable_boxes_are_counted(tmp_path, caplog):
  boxes = [(11, 21, 30, 50), (30, 21, 11, 50), (70, 21, 95, 50), (100, 21, 120, 50), ('nan', 1, 5, 5), (7, 7, 7, 7)]
  source = VocSource(one(tmp_path, *(item(box=box) for box in boxes), item('unicorn')), sets=('train',))
  assert source.skipped == {
    'of an unknown category': 1, 'with a number that is missing or not finite': 1,
    'with exchanged corners (put in order)': 1,
    'with a box outside the image (not trained on)': 1, 'clipped to the image': 1}
  assert source.load(0).boxes.tolist() == [[20, 10, 50, 30], [20, 10, 50, 30], [20, 69, 50, 80], [6, 6, 7, 7]]
  assert any('names that are not in voc.classes: unicorn' in line for line in warnings(caplog))


def damage(folder, kind):
  """Damage image 1 of two, and return a pattern of the expected message."""
  folder = pathlib.Path(folder)
  if kind == 'no xml':
    (folder / 'Annotations/1.xml').unlink()
    return r'1\.xml: no such annotation'
  if kind == 'broken xml':
    (folder / 'Annotations/1.xml').write_text('<annotation><obj')
    return r'1\.xml: not valid XML'
  (folder / 'Annotations/1.xml').write_text('<!DOCTYPE a><annotation/>')
  return r'1\.xml: has a document type'


@pytest.mark.parametrize('kind', ['no xml', 'broken xml', 'document type'])
def test_damaged_annotation_is_dropped_in_training_and_an_error_in_evaluation(tmp_path, caplog, kind):
  folder = write(tmp_path, {'train': {'1': xml(item()), '2': xml(item())}})
  message = damage(folder, kind)
  source = VocSource(folder, sets=('train',), training=True)
  assert source.image_ids.tolist() == [2]
  assert any('1 of 2 annotations are damaged and left out' in line for line in warnings(caplog))
  with pytest.raises(UserError, match=message):
    VocSource(folder, sets=('train',))


def test_missing_and_damaged_images(tmp_path, caplog):
  folder = write(tmp_path, {'train': {'1': xml(item()), '2': xml(item()), '3': xml(item(), size=(61, 80))}})
  (tmp_path / 'JPEGImages/1.jpg').unlink()
  (tmp_path / 'JPEGImages/2.jpg').write_bytes(b'\xff\xd8 half')
  training = VocSource(folder, sets=('train',), training=True)
  assert training.image_ids.tolist() == [2, 3]
  for i, message in ((0, r'2\.jpg'), (1, 'annotation says 80x61')):
    with pytest.raises(ImageError, match=message):
      training.load(i)
  held_out = VocSource(folder, sets=('train',))
  assert held_out.image_ids.tolist() == [2, 3] and len(held_out.annotations()['annotations']) == 2
  assert held_out.left_out == LeftOut({'missing, e.g. 1': 1}, 3)
  assert any('1 of 3 images are missing' in line for line in warnings(caplog))


@pytest.mark.parametrize('change, arguments, message', [
  (None, {'sets': ('val',)}, r'val\.txt: no such image set \(found: train\.txt\)'),
  (None, {'sets': ()}, 'voc.sets is empty'),
  (None, {'sets': ('../train',)}, "'../train' should be"),
  (None, {'sets': (7,)}, '7 should be'),
  (None, {'classes': ('dog', 'dog')}, 'voc.classes'),
  (None, {'classes': ('ape',)}, r'none of its objects \(dog\) is one of voc.classes \(ape\)'),
  (None, {'num_images': 5}, 'num_images = 5'),
  (('ImageSets/Main/train.txt', ''), {}, r'train\.txt: lists no images'),
  (('ImageSets/Main/train.txt', '\n \n'), {}, r'train\.txt: lists no images'),
  (('ImageSets/Main/train.txt', '../../secret\n'), {}, 'without folder and extension'),
  (('ImageSets/Main/train.txt', b'\xff\xfe\x00'), {}, 'not a text file'),
  (('ImageSets/Main/train.txt', 'gone\n'), {}, 'none of the 1 images|no such annotation'),
  (('Annotations/1.xml', xml()), {'training': True}, 'has a box to train on'),
  (('Annotations/1.xml', xml()), {'classes': None}, 'no annotation has an object'),
  (('Annotations/1.xml', '<a/>'), {'training': True}, 'outermost element'),
])
def test_damaged_data_set_is_one_line(tmp_path, change, arguments, message):
  folder = one(tmp_path, item())
  if change:
    path, content = change
    (tmp_path / path).write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(UserError, match=message) as error:
    VocSource(folder, **({'sets': ('train',)} | arguments))
  assert '\n' not in str(error.value)


def test_missing_folder(tmp_path):
  with pytest.raises(UserError, match='JPEGImages: no such folder'):
    VocSource(str(tmp_path / 'nowhere'))


def test_real_data_set(real_images):
  folder = str(real_images / 'voc100')
  train = VocSource(folder, sets=('train',), training=True)
  assert len(train.image_ids) == 70 and train.skipped == {}
  everything = VocSource(folder, sets=('train', 'val'))
  difficult = [a['difficult'] for a in everything.annotations()['annotations']]
  assert (len(everything.image_ids), len(difficult), sum(difficult)) == (100, 273, 38)
  batch = TrainInput(train, 4, 0).batch(0)
  assert batch.gt_masks.max() == 1 and (batch.gt_classes > 0).any()
  held_out = EvalInput(VocSource(folder, sets=('val',)), 4)
  seen = [i for step in range(held_out.num_batches) for i in held_out.batch(step).image_ids.tolist() if i >= 0]
  assert sorted(seen) == sorted(everything.image_ids[~np.isin(everything.image_ids, train.image_ids)].tolist())


def test_too_many_pixels_are_a_damaged_annotation(tmp_path, caplog):
  folder = write(tmp_path, {'VOC2007/train': {'000001': xml(item()), '000002': xml(item(), size=(60000, 60000))}})
  assert VocSource(folder, ['VOC2007/train'], training=True).image_ids.tolist() == [1]
  assert '1 of 2 annotations are damaged' in warnings(caplog)[0] and 'voc.max_pixels' in warnings(caplog)[0]
  with pytest.raises(UserError, match='<size> is 60000x60000, more than voc.max_pixels = 100,000,000'):
    VocSource(folder, ['VOC2007/train'])
  with pytest.raises(UserError, match='80x60, more than voc.max_pixels = 10'):
    VocSource(folder, ['VOC2007/train'], max_pixels=10, training=True)


@pytest.mark.parametrize('name', ['../x', '/etc/passwd', '..', 'a\\b', 'a\0b', 'a\x1b[2J'])
def test_names_of_an_image_set_are_inside_their_folder(tmp_path, name):
  folder = write(tmp_path, {'VOC2007/train': {'000001': xml(item())}})
  (tmp_path / 'VOC2007/ImageSets/Main/train.txt').write_text(f'000001\n{name}\n')
  with pytest.raises(UserError, match='should be the name of an image') as error:
    VocSource(folder, ['VOC2007/train'])
  assert str(error.value).isprintable()


# What annotation tools write.


def test_the_image_is_that_of_filename(tmp_path, caplog):
  def named(name, **changes):
    return xml(item(), **changes).replace('any.jpg', name)

  folder = write(tmp_path, {'train': {'1': named('1.png'), '2': named('C:\\images\\2.jpg'), '3': named('other.jpg'),
                                      '4': named('renamed.bmp'), '5': named('../../secret.jpg')}})
  for name in ('1.png', '2.png', '3.png', 'renamed.bmp'):
    cv2.imwrite(str(tmp_path / 'JPEGImages' / name), np.full([60, 80, 3], 10, np.uint8))
  for name in ('4.jpg', '5.jpg'):
    (tmp_path / 'JPEGImages' / name).unlink()
  source = VocSource(folder, sets=('train',), training=True)
  assert [name.rpartition('/')[2] for name in source.file_names] == ['1.png', '2.jpg', '3.jpg', 'renamed.bmp']
  assert '1 images have several files and no <filename> that names one' in ' '.join(warnings(caplog))


def test_jpeg_files_of_browsers(tmp_path):
  folder = write(tmp_path, {'train': {'1': xml(item())}})
  (tmp_path / 'JPEGImages/1.jpg').rename(tmp_path / 'JPEGImages/1.jfif')
  assert VocSource(folder, sets=('train',)).load(0).boxes.tolist() == [[20, 10, 50, 30]]


@pytest.mark.parametrize('text, difficult, counted', [
  ('1', 1, 0), ('True', 1, 0), ('yes', 1, 0), ('1.0', 1, 0), (' true ', 1, 0), ('0', 0, 0), ('False', 0, 0),
  ('no', 0, 0), ('0.0', 0, 0), ('', 0, 0), ('Unspecified', 0, 0), ('perhaps', 0, 1)])
def test_marks_of_difficult_objects(tmp_path, text, difficult, counted):
  source = VocSource(one(tmp_path, item(), item(box=(40, 5, 60, 25), difficult=text)), sets=('train',))
  assert [entry['difficult'] for entry in source.annotations()['annotations']] == [0, difficult]
  assert source.num_instances.tolist() == [2 - difficult]
  assert source.skipped.get('with a <difficult> that is neither 0 nor 1 (taken for 0)', 0) == counted


def test_a_second_box_is_counted(tmp_path):
  second = '<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>'
  part = f'<part><name>head</name>{second}</part>'  # of VOC's own person layout
  source = VocSource(one(tmp_path, item(more=second), item('cat', more=part)), sets=('train',))
  assert source.skipped == {'with more than one <bndbox> (the first is used)': 1}
  assert source.load(0).boxes.tolist() == [[20, 10, 50, 30]] * 2


@pytest.mark.parametrize('training', [True, False])
def test_an_object_without_a_box_does_not_take_its_image_along(tmp_path, training):
  polygon = ''.join(f'<x{i}>{x}</x{i}><y{i}>{y}</y{i}>' for i, (x, y) in enumerate([(11, 30), (30, 21), (20, 50)], 1))
  labelme = '<pt><x>11</x><y>21</y></pt><pt><x>30</x><y>50</y></pt>'
  objects = [f'<object><name>dog</name>{inner}</object>' for inner in (
    '', '<robndbox><cx>9</cx></robndbox>', f'<polygon>{polygon}</polygon>', f'<polygon>{labelme}</polygon>',
    '<polygon><x1>a</x1></polygon>', '<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>')]
  source = VocSource(one(tmp_path, *objects, item()), sets=('train',), training=training)
  assert source.load(0).boxes.tolist() == [[20, 10, 50, 30]] * 3
  assert source.skipped == {'with a number that is missing or not finite': 4,
                            'without a <bndbox> (the box around its <polygon> is used)': 2}


def test_corners_that_begin_at_0(tmp_path):
  source = VocSource(one(tmp_path, item(box=(0, 21, 30, 50)), item(box=(1, 1, 30, 50))), sets=('train',))
  assert source.skipped['with a corner at 0, though VOC counts pixels from 1 (clipped)'] == 1
  assert source.load(0).boxes.tolist() == [[20, 0, 50, 30], [0, 0, 50, 30]]


def test_image_sets_of_file_names(tmp_path):
  folder = write(tmp_path, {'train': {'1': xml(item()), '2.jpg': xml(item())}})
  (tmp_path / 'ImageSets/Main/train.txt').write_text('1.jpg\n2.jpg\n')
  assert [name.rpartition('/')[2] for name in VocSource(folder, sets=('train',)).file_names] == ['1.jpg', '2.jpg.jpg']


def test_spellings_of_a_class(tmp_path, caplog):
  folder = one(tmp_path, item('Dog'), item('dog'), item('traffic light'), item('traffic_light'))
  assert VocSource(folder, sets=('train',), classes=None).num_classes == 4
  report = "separate classes: 'Dog' and 'dog'; 'traffic light' and 'traffic_light'"
  assert any(report in line for line in warnings(caplog))
  caplog.clear()
  VocSource(folder, sets=('train',), classes=('dog', 'traffic light'))
  assert any("'Dog' and 'dog'" in line for line in warnings(caplog))


def test_corners_with_fractions_are_continuous_unless_they_are_vocs(tmp_path):
  """CVAT and VoTT write the corners of their boxes, not pixels counted from 1."""
  folder = one(tmp_path, item(box=(10, 20.5, 30, 50)))
  boxes = {classes: VocSource(folder, sets=('train',), classes=classes).load(0).boxes.tolist()
           for classes in (None, ('dog',))}
  assert boxes == {None: [[20.5, 10, 50, 30]], ('dog',): [[19.5, 9, 50, 30]]}


def test_boxes_that_are_fractions(tmp_path):
  folder = one(tmp_path, item(box=(.1, .2, .5, .6)), item(box=(.3, .1, .9, .95)))
  with pytest.raises(UserError, match='all 2 boxes lie in 0..1'):
    VocSource(folder, sets=('train',))
