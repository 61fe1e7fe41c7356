"""COCO json of several tools, and what is left out of it."""

import pytest

from rethink_tf.data.detection.segmentation import ROTATED
from rethink_tf.data.prepare import coco_json
from rethink_tf.data.prepare.layout import MISSING, NO_CLASS, NO_IMAGE, NOT_NAMED, Options
from rethink_tf.data.prepare.source_folder import SourceFolder
from rethink_tf.errors import UserError
from tests.exports import write_json

BOX = {'bbox': [1, 2, 3, 4], 'area': 12, 'iscrowd': 0}


def content(annotations=(), images=('a.jpg',), categories=None):
  return {'images': [{'id': i, 'file_name': name, 'height': 8, 'width': 9} for i, name in enumerate(images)],
          'annotations': [{'id': i + 1, 'image_id': 0, 'category_id': 1, **one} for i, one in enumerate(annotations)],
          'categories': categories or [{'id': 1, 'name': 'cat', 'supercategory': ''}]}


def read(root, files, images=('a.jpg',), options=None):
  """Return the reading of a folder of JSON files, and its images."""
  for name, one in files.items():
    write_json(root / name, one)
  for name in images:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b'')
  reading = coco_json.read(SourceFolder(str(root)), options or Options())
  return reading, list(reading.images)


RLE = {'size': [8, 9], 'counts': [70, 2]}


@pytest.mark.parametrize('attributes, crowds, crowd', [
  ({'occluded': False}, 'auto', 0), ({'occluded': False}, 'keep', 1), (None, 'auto', 1), (None, 'objects', 0)])
def test_brushes_of_cvat_are_no_crowds(tmp_path, attributes, crowds, crowd):
  reading, images = read(tmp_path, {'annotations/instances_default.json': content(
    [BOX | {'segmentation': RLE, 'iscrowd': 1, 'attributes': attributes}])}, ['images/a.jpg'], Options(crowds=crowds))
  assert images[0].instances[0]['iscrowd'] == crowd and reading.problems.counts[coco_json.BRUSHED] == 1 - crowd
  assert images[0].name == 'a.jpg' and images[0].split is None


def test_files_of_splits_and_their_categories(tmp_path):
  other = [{'id': 1, 'name': 'dog'}, {'id': 4, 'name': 'cat'}]
  reading, images = read(tmp_path, {
    'annotations/instances_train2017.json': content([BOX]),
    'annotations/instances_val2017.json': content([BOX, BOX | {'category_id': 4}], categories=other),
    'annotations/captions_val2017.json': content()}, ['train2017/a.jpg', 'val2017/a.jpg'])
  assert [(image.split, image.file) for image in images] == [('train', 'train2017/a.jpg'), ('val', 'val2017/a.jpg')]
  assert {key: entry['name'] for key, entry in reading.categories.items()} == {1: 'cat', 2: 'dog'}
  assert [one['category'] for one in images[1].instances] == [2, 1]


@pytest.mark.parametrize('used', [False, True])
def test_the_project_of_roboflow_that_has_the_name_of_its_class(tmp_path, caplog, used):
  reading, _ = read(tmp_path, {'train/_annotations.coco.json': content(
    [BOX] + used * [BOX | {'category_id': 0}],
    categories=[{'id': 0, 'name': 'cat', 'supercategory': 'none'}, {'id': 1, 'name': 'cat', 'supercategory': 'cat'}])},
    ['train/a.jpg'])
  assert reading.superfluous == {0} and ('both named' in caplog.text) == used


def test_images_of_lvis_have_an_address_and_no_name(tmp_path):
  one = content([BOX])
  one['images'] = [{'id': 0, 'coco_url': 'http://images.cocodataset.org/train2017/a.jpg', 'height': 8, 'width': 9}]
  _, (image, _) = read(tmp_path, {'lvis_v1_train.json': one, 'lvis_v1_val.json': content()},
                       ['train2017/a.jpg', 'val2017/a.jpg'])
  assert (image.file, image.split, len(image.instances)) == ('train2017/a.jpg', 'train', 1)


def test_areas_of_large_objects_are_kept(tmp_path):
  areas = [2.5e6, 1e300, '3', None]
  _, (image,) = read(tmp_path, {'a.json': content([BOX | {'area': area} for area in areas])})
  assert [one.get('area') for one in image.instances] == [2.5e6, None, None, None]


def test_keypoints_of_each_split(tmp_path):
  _, images = read(tmp_path, {f'annotations/person_keypoints_{split}.json': content([BOX])
                              for split in ('Train', 'Validation')}, ['images/Train/a.jpg', 'images/Validation/a.jpg'])
  assert [image.split for image in images] == ['train', 'val']


@pytest.mark.parametrize('above', [['animal'], {}, 3, None])
def test_a_supercategory_that_is_no_name(tmp_path, above):
  reading, (image,) = read(tmp_path, {'a.json': content([BOX], categories=[
    {'id': 0, 'name': 'things', 'supercategory': 'none'}, {'id': 1, 'name': 'cat', 'supercategory': above}])})
  assert len(image.instances) == 1 and not reading.superfluous


@pytest.mark.parametrize('degrees, bbox', [
  (90.0, [45, 5, 10, 80]), (180, [10, 40, 80, 10]), (-90, [45, 5, 10, 80]), (None, [10, 40, 80, 10]),
  ('90', [10, 40, 80, 10]), (float('inf'), [10, 40, 80, 10])])
def test_rotated_rectangles_of_cvat(tmp_path, degrees, bbox):
  box = {'bbox': [10, 40, 80, 10], 'attributes': {'occluded': False, 'rotation': degrees}, 'segmentation': []}
  outline = [[10, 40, 90, 40, 90, 50]]
  reading, (image,) = read(tmp_path, {'annotations/instances_default.json': content(
    [box, box | {'segmentation': outline}])}, ['images/a.jpg'])
  turned, outlined = image.instances
  assert turned['bbox'] == bbox and outlined['bbox'] == box['bbox']
  assert reading.problems.counts[ROTATED] == (degrees in (90, 180, -90))


def test_annotations_without_an_image_or_a_class_are_counted(tmp_path):
  whole = content([BOX])
  whole['annotations'] += [{'id': 7, 'image_id': 0, 'bbox': [1, 1, 5, 5]}, {'id': 8, 'category_id': 1}, 9]
  reading, (image,) = read(tmp_path, {'a.json': whole})
  assert len(image.instances) == 1
  assert (reading.problems.counts[NO_CLASS], reading.problems.counts[coco_json.NOT_LISTED]) == (1, 2)
  with pytest.raises(UserError, match='"annotations" should be a list'):
    read(tmp_path, {'a.json': whole | {'annotations': {}}})


def test_an_image_of_another_split_is_not_taken(tmp_path):
  reading, images = read(tmp_path, {'train/_annotations.coco.json': content([BOX], ['a.jpg', 'b.jpg']),
                                    'valid/_annotations.coco.json': content([BOX], ['b.jpg'])},
                         ['train/a.jpg', 'valid/b.jpg'])
  assert [image.file for image in images] == ['train/a.jpg', 'valid/b.jpg'] and reading.problems.counts[NO_IMAGE] == 1


@pytest.mark.parametrize('splits', [('A/train', 'A/valid', 'B/train', 'B/valid'), ('A/train', 'B/valid')])
def test_two_exports_of_roboflow_are_refused(tmp_path, splits):
  files = {f'{split}/_annotations.coco.json': content([BOX]) for split in splits}
  with pytest.raises(UserError, match=r'holds 2 exports of Roboflow \(A, B\): give one of these folders'):
    read(tmp_path, files, [f'{split}/a.jpg' for split in splits])
  assert coco_json.recognize(SourceFolder(str(tmp_path))) == '2 Roboflow exports: A, B'
  reading, _ = read(tmp_path, {}, [], Options(annotation_file='A/train/_annotations.coco.json'))
  assert reading.total == 1
  assert read(tmp_path / 'A', {}, [])[0].total == len(splits) / 2


def test_an_export_of_roboflow_within_another_is_refused(tmp_path):
  files = {f'{folder}/_annotations.coco.json': content([BOX]) for folder in ('train', 'train/B/test')}
  with pytest.raises(UserError, match='the folder train/B is one of 2 exports of Roboflow and lies within another one'):
    read(tmp_path, files, [f'{folder}/a.jpg' for folder in ('train', 'train/B/test')])


def test_panoptic_annotations_are_refused(tmp_path):
  segments = {'image_id': 0, 'file_name': 'a.png', 'segments_info': [{'id': 1, 'category_id': 1, **BOX}]}
  with pytest.raises(UserError, match='panoptic_val.json: is of panoptic segmentation.*instances_'):
    read(tmp_path, {'annotations/panoptic_val.json': content() | {'annotations': [segments]}})


def test_jpeg_files_of_browsers(tmp_path):
  _, images = read(tmp_path, {'result.json': content([BOX], ['a.jfif'])}, ['images/a.JFIF'])
  assert images[0].file == 'images/a.JFIF'


def test_label_studio_export(tmp_path):
  _, images = read(tmp_path, {'result.json': content([BOX], ['images\\1c-a.jpg'])}, ['images/1c-a.jpg'])
  assert [(image.file, image.name) for image in images] == [('images/1c-a.jpg', '1c-a.jpg')]


def test_images_that_are_not_named_are_counted(tmp_path):
  reading, images = read(tmp_path, {'annotations/a.json': content([BOX])}, ['images/a.jpg', 'images/b.jpg', 'logo.png'])
  assert [image.file for image in images] == ['images/a.jpg'] and reading.problems.counts[NOT_NAMED] == 1


def test_several_files_without_a_split_are_named(tmp_path):
  files = {'a.json': content([BOX]), 'b.json': content([BOX])}
  with pytest.raises(UserError, match='a.json, b.json are several COCO json files.*--annotation_file'):
    read(tmp_path, files)
  assert len(read(tmp_path, files, options=Options(annotation_file='b.json'))[1]) == 1


def test_what_is_left_out_is_counted(tmp_path):
  reading, images = read(tmp_path, {'a.json': content([
    BOX, {'bbox': [1, float('nan'), 2, 3]}, BOX | {'category_id': 9}, BOX | {'image_id': 5}, BOX | {'image_id': 1},
    BOX | {'segmentation': [[1, 2, 3, 4]]}, BOX | {'segmentation': 'x'}, {'segmentation': [[1, 1, 5, 1, 5, 5]]},
    BOX | {'category_id': None}, BOX | {'segmentation': [[1, 1, 5, 1, 5, 5], [1, 1]]}, BOX | {'image_id': 'x'},
  ], ['a.jpg', '../../etc/passwd.jpg', 'a.jpg'])})
  counts = {reason: count for reason, count in reading.problems.counts.items() if 'points' not in reason}
  assert counts == {'with a number that is missing or not finite': 1, coco_json.UNKNOWN_CATEGORY: 2,
                    coco_json.NOT_LISTED: 2, MISSING: 1, NO_IMAGE: 1, coco_json.AGAIN: 1, coco_json.BAD_OUTLINE: 2}
  assert len(images) == 1 and len(images[0].instances) == 5
  assert 'bbox' not in images[0].instances[3]  # that of its outline


def test_keypoints_are_kept(tmp_path):
  category = {'id': 1, 'name': 'cat', 'keypoints': ['nose'], 'skeleton': []}
  reading, images = read(tmp_path, {'a.json': content([BOX | {'keypoints': [1, 2, 2], 'num_keypoints': 1}],
                                                     categories=[category])})
  assert images[0].instances[0]['keypoints'] == [1, 2, 2] and reading.categories[1]['keypoints'] == ['nose']


@pytest.mark.parametrize('change, message', [
  ({'images': []}, '"images" is empty'), ({'images': [{'file_name': 'a.jpg'}]}, 'integer id'),
  ({'images': [{'id': 1}, {'id': 1}]}, 'used by more than one image'), ({'categories': [{'id': 1}]}, 'name'),
  ({'images': 3}, '"images" should be a list')])
def test_damaged_files_are_errors_of_one_line(tmp_path, change, message):
  with pytest.raises(UserError, match=message) as raised:
    read(tmp_path, {'a.json': content([BOX]) | change})
  assert '\n' not in str(raised.value)
