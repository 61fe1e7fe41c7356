"""CocoSource: real data sets, subsets, malformed annotation files, missing and damaged images."""

import functools
import json
import pathlib
import shutil

import gin
import numpy as np
import pytest
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rethink_tf.data.detection.annotation_reader import KEYPOINTS_ELSEWHERE
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.images import ImageError
from rethink_tf.data.json_files import load_json
from rethink_tf.errors import UserError
from rethink_tf.structures import LeftOut
from tests.small_coco import annotation, crowd, image, warnings, write, write_json

pytestmark = pytest.mark.usefixtures('see_logs')

# Real data sets.


@pytest.fixture(scope='module')
def coco_dev(real_images):
  return CocoSource(str(real_images / 'coco_dev'))


def test_every_real_image(coco_dev, real_images):
  raw = json.loads((real_images / 'coco_dev/annotations/instances_train2017.json').read_text())
  of_image = {image['id']: [] for image in raw['images']}
  for entry in raw['annotations']:
    if not entry['iscrowd']:
      of_image[entry['image_id']].append(entry)
  names = {category['id']: category['name'] for category in raw['categories']}
  assert coco_dev.num_classes == 80 and coco_dev.num_keypoints == 0
  assert coco_dev.image_ids.tolist() == sorted(of_image)
  for i, image_id in enumerate(coco_dev.image_ids.tolist()):
    example, expected = coco_dev.load(i), of_image[image_id]
    assert example.image.shape == (*coco_dev.sizes[i], 3)
    assert len(example.boxes) == coco_dev.num_instances[i] == len(expected)
    assert example.boxes.dtype == np.float32 and example.classes.dtype == np.int32
    assert example.masks.shape == (len(expected), 112, 112) and example.keypoints.shape == (len(expected), 0, 3)
    for box, label, mask, entry in zip(example.boxes, example.classes, example.masks, expected, strict=True):
      x, y, w, h = entry['bbox']
      assert np.allclose(box, [y, x, y + h, x + w], atol=0.02)
      assert coco_dev.categories[label - 1].name == names[entry['category_id']]
      # The crop covers the same fraction of the box as the object; not checked for narrow boxes.
      if min(w, h) > 16:
        assert abs(mask.mean() - entry['area'] / (w * h)) < 0.06
  assert coco_dev.skipped == {}


@pytest.mark.slow
def test_annotations_are_scored_like_the_file_itself(coco_dev, real_images, tmp_path):
  (tmp_path / 'ours.json').write_text(json.dumps(coco_dev.annotations()))
  file = COCO(real_images / 'coco_dev/annotations/instances_train2017.json')
  ours = COCO(tmp_path / 'ours.json')
  assert len(ours.anns) == len(file.anns)
  rng = np.random.default_rng(0)
  results = [{'image_id': a['image_id'], 'category_id': a['category_id'], 'score': float(rng.random()),
              'segmentation': file.annToRLE(a)} for a in file.anns.values() if rng.random() < 0.7]
  stats = []
  for truth in (file, ours):
    evaluation = COCOeval(truth, truth.loadRes([dict(result) for result in results]), 'segm')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    stats.append(evaluation.stats)
  assert (stats[0] == stats[1]).all() and stats[0][0] > 0.5


def test_training_drops_images_without_boxes(coco_dev, real_images):
  training = CocoSource(str(real_images / 'coco_dev'), training=True)
  assert len(training.image_ids) == (coco_dev.num_instances > 0).sum() == 206
  assert (training.num_instances > 0).all()


def test_other_file_names_and_polygons_outside_the_image(real_images):
  source = CocoSource(str(real_images / 'balloon'), 'train', training=True)
  assert len(source.image_ids) == 61 and source.num_instances.sum() == 255
  for i in range(0, 61, 6):
    example = source.load(i)
    assert (example.boxes >= 0).all() and (example.boxes[:, 2:] <= source.sizes[i]).all()
    assert (example.boxes[:, 2:] > example.boxes[:, :2]).all()
    assert example.masks.mean(axis=(1, 2)).min() > 0.2
  assert source.skipped == {'clipped to the image': 13}


def test_compressed_rle_and_annotation_id_zero(real_images):
  source = CocoSource(str(real_images / 'coco_rle_sample'), 'sample', 'annotations.json', 'images')
  assert source.num_classes == 133 and source.num_instances.sum() == 47
  assert sorted(a['id'] for a in source.annotations()['annotations']) == list(range(1, 51))
  assert list(source.skipped) == ['renumbered, since ids are missing, repeated or below 1']
  for i in range(2):
    example = source.load(i)
    kept = [a for a in source.image_annotations(i) if not a['iscrowd']]
    for box, mask, entry in zip(example.boxes, example.masks, kept, strict=True):
      assert abs(mask.mean() * np.prod(box[2:] - box[:2]) - mask_api.area(entry['segmentation'])) <= max(
        4, 0.1 * entry['area'])


def test_keypoints_of_a_file_of_their_own(real_images):
  folder = real_images / 'coco_dev'
  source = CocoSource(str(folder), keypoints=True)
  raw = json.loads((folder / 'annotations/person_keypoints_train2017.json').read_text())
  labelled = {a['id']: a['keypoints'] for a in raw['annotations'] if a['num_keypoints']}
  person = next(category for category in source.categories if category.name == 'person')
  assert source.num_keypoints == 17 and person.keypoints[0] == 'nose' and person.skeleton[0] == (16, 14)
  found = 0
  for i in range(len(source.image_ids)):
    entries = [a for a in source.image_annotations(i) if not a['iscrowd']]
    keypoints = source.load(i).keypoints
    assert keypoints.shape == (len(entries), 17, 3)
    for row, entry in zip(keypoints, entries, strict=True):
      expected = np.reshape(labelled.get(entry['id'], np.zeros(51)), [17, 3])
      assert (row == expected[:, [1, 0, 2]]).all()
      assert ('keypoints' in entry) == (entry['category_id'] == 1)
      if entry['id'] in labelled:
        found += 1
        assert entry['keypoints'] == labelled[entry['id']]
        assert entry['num_keypoints'] == (expected[:, 2] > 0).sum()
  assert found > 50



def test_training_on_keypoints_needs_a_visible_one(tmp_path, caplog):
  """Image 1: one visible, one occluded; 2: none labelled; 3: only of a crowd; 4: malformed; 5: no box."""
  person = [{'id': 1, 'name': 'person', 'keypoints': ['nose', 'tail'], 'skeleton': []}]
  entries = [annotation(1, 1, keypoints=[12, 12, 2, 14, 14, 1]), annotation(2, 2, keypoints=[0] * 6), annotation(3, 3),
             crowd(4, 3) | {'keypoints': [9, 9, 2, 0, 0, 0]}, annotation(5, 4, keypoints=[1, 1, 2])]
  folder = write(tmp_path, [image(i) for i in range(1, 6)], entries, person)
  whole = CocoSource(folder, keypoints=True)
  assert whole.num_visible.tolist() == [2, 0, 0, 0, 0] and len(whole.image_ids) == 5
  assert CocoSource(folder, keypoints=True, training=True).image_ids.tolist() == [1]
  assert 'images have boxes but no visible keypoint' in caplog.text
  boxes_only = CocoSource(folder, training=True)
  assert boxes_only.image_ids.tolist() == [1, 2, 3, 4] and boxes_only.num_visible.tolist() == [0] * 4


def test_subsets_are_nested_and_restrict_annotations(real_images):
  make = functools.partial(CocoSource, str(real_images / 'coco_dev'), training=True)
  tenth, half = make(fraction=0.1), make(num_images=103)
  assert len(tenth.image_ids) == 21 and len(half.image_ids) == 103
  assert set(tenth.image_ids) < set(half.image_ids)
  assert set(make(fraction=0.1, subset_seed=1).image_ids) != set(tenth.image_ids)
  content = tenth.annotations()
  assert [entry['id'] for entry in content['images']] == tenth.image_ids.tolist()
  assert {entry['image_id'] for entry in content['annotations']} == set(tenth.image_ids.tolist())
  assert tenth.load(3).image.shape[:2] == tuple(tenth.sizes[3])


def test_gin_name(real_images):
  gin.clear_config()
  gin.parse_config(f"coco.data_dir = '{real_images}/coco_dev'\ncoco.split = 'val2017'")
  assert len(gin.get_configurable('coco')().image_ids) == 79
  gin.clear_config()


# Missing and malformed files.


def test_missing_annotation_file(tmp_path):
  write(tmp_path, split='train')
  with pytest.raises(UserError) as raised:
    CocoSource(str(tmp_path))
  message = str(raised.value)
  assert '\n' not in message
  assert str(tmp_path / 'annotations/instances_train2017.json') in message
  for text in ('instances_train.json', 'cocodataset.org', 'coco.annotation_file', 'data/synthetic.gin'):
    assert text in message


def test_missing_folder(tmp_path):
  with pytest.raises(UserError, match='no such annotation file'):
    CocoSource(str(tmp_path / 'nowhere'))


GOOD = {'images': [image(1)], 'annotations': [annotation(1)], 'categories': [{'id': 1, 'name': 'thing'}]}


def changed(**fields):
  return GOOD | fields


MALFORMED = {
  'syntax': ('{"images": [', 'not valid JSON.*line 1'),
  'empty file': ('', 'not valid JSON'),
  'deep': ('[' * 100_000, 'not valid JSON'),
  'list': ([annotation(1)], 'object with the lists'),
  'one annotation': (annotation(1), 'contains an annotation'),
  'results': ([{'image_id': 1, 'category_id': 1, 'score': 0.5}], r'annotations\[0\].bbox'),
  'no images': ({'annotations': [], 'categories': []}, '"images" should be a list, is missing'),
  'annotations': (changed(annotations={}), '"annotations" should be a list'),
  'no categories': ({'images': [], 'annotations': []}, '"categories" should be a list, is missing'),
  'empty categories': (changed(categories=[]), '"categories".*at least one'),
  'image': (changed(images=[image(1), 7]), r'images\[1\] should be an object'),
  'image without id': (changed(images=[image(1), {'file_name': 'x.jpg', 'height': 1, 'width': 1}]), r'images\[1\].id'),
  'image id': (changed(images=[image(1) | {'id': '1'}]), r"images\[0\].id .*'1'"),
  'image id below 0': (changed(images=[image(1) | {'id': -3}]), r'images\[0\].id should be .* of at least 0, is -3'),
  'no height': (changed(images=[{'id': 1, 'file_name': 'x.jpg', 'width': 5}]), r'images\[0\].height .*missing'),
  'zero width': (changed(images=[image(1) | {'width': 0}]), r'images\[0\].width .*above 0, is 0'),
  'no file name': (changed(images=[{'id': 1, 'height': 4, 'width': 5}]), r'images\[0\].file_name'),
  'repeated image id': (changed(images=[image(3), image(1), image(3)]), r'id 3 .*images\[0\] and images\[2\]'),
  'parent': (changed(images=[image(1) | {'file_name': '../../etc/passwd'}]), r'images\[0\].file_name.*inside'),
  'hidden parent': (changed(images=[image(1) | {'file_name': 'a/../../b.jpg'}]), 'inside the image folder'),
  'parent behind a backslash': (changed(images=[image(1) | {'file_name': '..\\x.jpg'}]), 'inside the image folder'),
  'line break': (changed(images=[image(1) | {'file_name': 'a\nb.jpg'}]), r'images\[0\].file_name'),
  'NUL': (changed(images=[image(1) | {'file_name': 'a\0b.jpg'}]), r'images\[0\].file_name'),
  'surrogate': (changed(images=[image(1) | {'file_name': '\ud800.jpg'}]), r'images\[0\].file_name'),
  'terminal escape sequence': (changed(categories=[{'id': 1, 'name': '\x1b[2J'}]), r'categories\[0\].name'),
  'other url': (changed(images=[image(1) | {'file_name': 's3+a://other/x.jpg'}]), 'inside the image folder'),
  'too many pixels': (changed(images=[image(1) | {'height': 2 ** 30, 'width': 2 ** 30}]),
                      r'images\[0\] is .*max_pixels'),
  'category id beyond int64': (changed(categories=[{'id': 2 ** 70, 'name': 'a'}]), r'categories\[0\].id'),
  'deep in a field': ('{"images": ' + '[' * 5000, 'not valid JSON'),
  'absolute': (changed(images=[image(1) | {'file_name': '/etc/passwd'}]), 'inside the image folder'),
  'drive': (changed(images=[image(1) | {'file_name': 'C:\\x.jpg'}]), 'inside the image folder'),
  'url': (changed(images=[image(1) | {'file_name': 'gs://other/x.jpg'}]), 'inside the image folder'),
  'annotation': (changed(annotations=[annotation(1), None]), r'annotations\[1\] should be an object'),
  'caption': (changed(annotations=[{'id': 1, 'image_id': 1, 'caption': 'a'}]), r'annotations\[0\].*category_id'),
  'image id of annotation': (changed(annotations=[annotation(1), annotation(2, image_id='1')]),
                             r"annotations\[1\].image_id.*'1'"),
  'category of annotation': (changed(annotations=[annotation(1, category_id=1.5)]), r'annotations\[0\].category_id'),
  'no box': (changed(annotations=[{'id': 1, 'image_id': 1, 'category_id': 1}]), r'annotations\[0\].bbox.*missing'),
  'short box': (changed(annotations=[annotation(1) | {'bbox': [1, 2, 3]}]), r'annotations\[0\].bbox.*\[1, 2, 3\]'),
  'box of strings': (changed(annotations=[annotation(1) | {'bbox': ['1', 2, 3, 4]}]), r'annotations\[0\].bbox'),
  'area': (changed(annotations=[annotation(1, area='7')]), r'annotations\[0\].area'),
  'iscrowd': (changed(annotations=[annotation(1, iscrowd='no')]), r'annotations\[0\].iscrowd'),
  'category id': (changed(categories=[{'id': -1, 'name': 'a'}]), r'categories\[0\].id'),
  'category name': (changed(categories=[{'id': 1}]), r'categories\[0\].name.*missing'),
  'repeated category id': (changed(categories=[{'id': 1, 'name': 'a'}, {'id': 1, 'name': 'b'}]), "1 .*'a' and 'b'"),
}


@pytest.mark.parametrize('content, message', MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_json(tmp_path, content, message):
  write(tmp_path)
  write_json(tmp_path, content)
  with pytest.raises(UserError, match=message) as raised:
    CocoSource(str(tmp_path))
  assert 'instances_train2017.json' in str(raised.value) and '\n' not in str(raised.value)


def test_binary_file(tmp_path):
  write(tmp_path)
  (tmp_path / 'annotations/instances_train2017.json').write_bytes(b'\xff\xfe\x80' * 9)
  with pytest.raises(UserError, match='not valid JSON'):
    CocoSource(str(tmp_path))


def test_empty_split(tmp_path):
  with pytest.raises(UserError, match='has no images'):
    CocoSource(write(tmp_path, images=[]))


@pytest.mark.parametrize('name', ['annotation_file', 'image_dir', 'split', 'data_dir'])
def test_several_paths_are_one_line(tmp_path, name):
  with pytest.raises(UserError, match=rf"coco.{name} = .*'a.json', 'b.json'.* should be one path"):
    CocoSource(**{'data_dir': write(tmp_path), name: ('a.json', 'b.json')})


def test_images_without_objects_can_be_trained_on(tmp_path):
  folder = write(tmp_path, [image(1), image(2), image(3)], [annotation(1, image_id=2), crowd(2, image_id=1)])
  source = CocoSource(folder, training=True, filter_empty=False)
  assert source.image_ids.tolist() == [1, 2, 3] and source.num_instances.tolist() == [0, 1, 0]
  assert CocoSource(folder, training=True).image_ids.tolist() == [2]
  with pytest.raises(UserError, match='has a box to train on'):
    CocoSource(write(tmp_path / 'none'), training=True, filter_empty=False)


def write_keypoints(folder, annotations, categories):
  """Write a file of keypoints beside an annotation file; return the folder."""
  content = {'annotations': annotations, 'categories': categories}  # the names follow, as in COCO's files
  (folder / 'annotations/person_keypoints_train2017.json').write_text(json.dumps(content))
  return str(folder)


PERSON = {'id': 2, 'name': 'person'}
EYES = {'keypoints': ['left_eye', 'right_eye'], 'skeleton': []}
POINTS = [12, 12, 2, 14, 14, 2]


def test_keypoints_are_those_of_the_same_image_and_category(tmp_path, caplog):
  """The file numbers its categories otherwise, and gives ids to other annotations."""
  entries = [annotation(1), annotation(2, category_id=2), annotation(3, 2, category_id=2), annotation(4, 2)]
  write(tmp_path, [image(1), image(2)], entries, [{'id': 1, 'name': 'dog'}, PERSON])
  found = [annotation(2, category_id=1), annotation(3, 1, category_id=1), annotation(4, 2, category_id=1),
           annotation(5, 2, category_id=1), annotation(1, category_id='x')]
  folder = write_keypoints(tmp_path, [entry | {'keypoints': POINTS, 'num_keypoints': 2} for entry in found],
                           [PERSON | EYES | {'id': 1}, {'id': 2, 'name': 'dog'}])
  source = CocoSource(folder, keypoints=True)
  assert [(c.id, c.name, c.keypoints) for c in source.categories] == [
    (1, 'dog', ()), (2, 'person', ('left_eye', 'right_eye'))]
  assert source.num_visible.tolist() == [2, 0]
  assert {a['id']: a['keypoints'] for a in source.annotations()['annotations'] if a.get('num_keypoints')} == {2: POINTS}
  assert source.skipped == {KEYPOINTS_ELSEWHERE: 3}
  assert '1 annotations with keypoints are not in the annotation file' in caplog.text


def test_other_keypoints_leave_those_of_the_annotation_file(tmp_path):
  entries = [annotation(1, keypoints=POINTS), annotation(2, 2, keypoints=POINTS)]
  write(tmp_path, [image(1), image(2)], entries, [{'id': 1, 'name': 'person'} | EYES])
  other = [20, 20, 2, 0, 0, 0]
  folder = write_keypoints(tmp_path, [annotation(1, keypoints=other), annotation(2, 2, category_id=2, keypoints=other)],
                           [{'id': 1, 'name': 'person'} | EYES, {'id': 2, 'name': 'dog'}])
  source = CocoSource(folder, keypoints=True, keypoints_file='annotations/person_keypoints_train2017.json')
  assert [a['keypoints'] for a in source.annotations()['annotations']] == [other, POINTS]


@pytest.mark.parametrize('entry, category, message', [
  (annotation(1, 2), {'name': 'thing'}, 'none of its annotations with keypoints has the id, image and category'),
  (annotation(7), {'name': 'thing'}, 'none of its annotations with keypoints has the id, image and category'),
  (annotation(1, category_id=3), {'name': 'thing'}, 'none of its annotations with keypoints'),
  (annotation(1), {'name': 'person'}, r'its categories with keypoints \(person\) are not in the annotation file'),
])
def test_keypoints_of_other_data(tmp_path, entry, category, message):
  write(tmp_path, [image(1), image(2)], [annotation(1)])
  folder = write_keypoints(tmp_path, [entry | {'keypoints': POINTS}], [{'id': 1} | category | EYES])
  with pytest.raises(UserError, match=f'person_keypoints_train2017.json: {message}'):
    CocoSource(folder, keypoints=True)


def test_keypoints_without_a_file(tmp_path):
  with pytest.raises(UserError, match='instances_train2017.json: no category has keypoints, and there is no '
                                      '.*person_keypoints_train2017.json with them: name one'):
    CocoSource(write(tmp_path), keypoints=True)


# Images.


def test_missing_images(tmp_path, caplog):
  folder = write(tmp_path, [image(i) for i in range(1, 6)], [annotation(i, image_id=i) for i in range(1, 6)])
  for name in ('000002.jpg', '000004.jpg'):
    (tmp_path / 'train2017' / name).unlink()
  for training in (True, False):
    caplog.clear()
    source = CocoSource(folder, training=training)
    assert source.image_ids.tolist() == [1, 3, 5] and len(source.annotations()['annotations']) == 3
    assert '2 of 5 images are missing and left out, e.g. 000002.jpg, 000004.jpg' in warnings(caplog)[-1]
    assert source.left_out == LeftOut({'missing, e.g. 000002.jpg, 000004.jpg': 2}, 5)
  (tmp_path / 'train2017/000003.jpg').unlink()  # after the start
  with pytest.raises(ImageError, match='000003.jpg'):
    source.load(1)


def test_all_images_missing(tmp_path):
  folder = write(tmp_path, [image(1), image(2)])
  shutil.rmtree(tmp_path / 'train2017')
  with pytest.raises(UserError, match='none of the 2 images was found.*coco.image_dir'):
    CocoSource(folder)


def test_images_in_subfolders_and_relative_names(tmp_path):
  folder = write(tmp_path, [image(1), image(2)])
  (tmp_path / 'elsewhere/train/deep').mkdir(parents=True)
  (tmp_path / 'train2017/000001.jpg').rename(tmp_path / 'elsewhere/train/deep/a.jpg')
  (tmp_path / 'train2017/000002.jpg').rename(tmp_path / 'elsewhere/train/b.jpg')
  images = [image(1) | {'file_name': 'train/./deep/a.jpg'}, image(2) | {'file_name': 'train\\b.jpg'}]
  write_json(tmp_path, {'images': images, 'annotations': [], 'categories': [{'id': 1, 'name': 'a'}]}, 'mine')
  source = CocoSource(folder, 'mine', image_dir='elsewhere')
  assert [source.load(i).image.shape for i in range(2)] == [(60, 80, 3)] * 2


def test_damaged_images(tmp_path, real_images):
  folder = write(tmp_path, [image(1), image(2), image(3, 480, 640)])
  (tmp_path / 'train2017/000001.jpg').write_bytes(b'')
  (tmp_path / 'train2017/000002.jpg').write_bytes(b'<html>404</html>')
  whole = (real_images / 'coco_dev/train2017/000000000009.jpg').read_bytes()
  (tmp_path / 'train2017/000003.jpg').write_bytes(whole[:len(whole) // 2])
  source = CocoSource(folder)
  for i, reason in enumerate(('empty', 'not an image', 'truncated')):
    with pytest.raises(ImageError, match=f'00000{i + 1}.jpg.*{reason}'):
      source.load(i)


def test_image_of_another_size(tmp_path):
  folder = write(tmp_path, [image(1, 60, 80)])
  write_json(tmp_path, {'images': [image(1, 50, 80)], 'annotations': [], 'categories': [{'id': 1, 'name': 'a'}]})
  with pytest.raises(ImageError, match='80x60.*80x50'):
    CocoSource(folder).load(0)


def test_remote_paths_go_through_gfile(tmp_path):
  import tensorflow as tf
  local = pathlib.Path(write(tmp_path, annotations=[annotation(1)]))
  for path in local.rglob('*.*'):
    tf.io.gfile.copy(str(path), f'ram://coco/{path.relative_to(local)}', overwrite=True)
  source = CocoSource('ram://coco')
  assert source.load(0).boxes.tolist() == [[10, 10, 40, 30]]


def test_tilde_is_not_expanded(tmp_path, monkeypatch):
  """A name from the json is not a path given by the user."""
  home = tmp_path / 'home'
  home.mkdir()
  shutil.copy(write(tmp_path / 'data') + '/train2017/000001.jpg', home / 'x.jpg')
  monkeypatch.setenv('HOME', str(home))
  images = [image(1), image(2) | {'file_name': '~/x.jpg'}]
  write_json(tmp_path / 'data', {'images': images, 'annotations': [], 'categories': [{'id': 1, 'name': 'a'}]})
  assert CocoSource(str(tmp_path / 'data')).missing == ['~/x.jpg']


def test_limits(tmp_path):
  folder = write(tmp_path)
  assert CocoSource(folder, max_pixels=4800).load(0).image.shape == (60, 80, 3)
  with pytest.raises(UserError, match=r'images\[0\] is 80x60, more than coco.max_pixels = 4,799'):
    CocoSource(folder, max_pixels=4799)
  file = str(tmp_path / 'annotations/instances_train2017.json')
  assert load_json(file)['images']
  with pytest.raises(UserError, match='bytes exceed the limit of 100'):
    load_json(file, max_bytes=100)


def test_too_large_file(tmp_path):
  source = CocoSource(write(tmp_path))
  with open(tmp_path / 'train2017/000001.jpg', 'r+b') as file:
    file.truncate(1 << 31)  # a sparse file
  with pytest.raises(ImageError, match='000001.jpg: 2,147,483,648 bytes are too many'):
    source.load(0)
