"""TFRecords: equal to the source they are converted from, index, official converter and decoder, hostile input."""

import gzip
import json

import cv2
import gin
import numpy as np
import pytest
import tensorflow as tf
from absl import logging
from pycocotools import mask as mask_api

from rethink_tf.data.categories import Category
from rethink_tf.data.conversion import convert
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.record_format import decode, validate
from rethink_tf.data.detection.record_index import read_index
from rethink_tf.data.detection.records import RecordSource
from rethink_tf.data.detection.segmentation import to_rle
from rethink_tf.data.images import ImageError
from rethink_tf.data.tfrecord import scan
from rethink_tf.errors import UserError
from tests.small_coco import annotation, crowd, image, write

REAL = {
  'coco': {'data_dir': 'coco_dev', 'split': 'val2017', 'keypoints': True},
  'rle': {'data_dir': 'coco_rle_sample', 'split': 'sample', 'annotation_file': 'annotations.json',
          'image_dir': 'images'},
  'balloon': {'data_dir': 'balloon', 'split': 'val'},
}


@pytest.fixture(autouse=True)
def see_logs(caplog):
  logging.set_verbosity(logging.INFO)
  caplog.set_level('INFO', logger='absl')


@pytest.fixture(scope='module')
def converted(real_images, tmp_path_factory):
  """Name of a real data set -> its CocoSource and the folder of its records."""
  sets = {}
  for name, args in REAL.items():
    source = CocoSource(**args | {'data_dir': str(real_images / args['data_dir'])})
    folder = tmp_path_factory.mktemp(name)
    convert(source, str(folder), args['split'], num_shards=3)
    sets[name] = source, folder, args['split']
  return sets


def assert_same(records, source):
  """Every attribute, every Example bit for bit, and the annotations."""
  assert (records.categories, records.num_classes) == (source.categories, source.num_classes)
  assert records.num_keypoints == source.num_keypoints and records.skipped == source.skipped
  for column in ('image_ids', 'sizes', 'num_instances', 'num_visible'):
    ours, expected = getattr(records, column), getattr(source, column)
    assert ours.dtype == expected.dtype and (ours == expected).all()
  for i in range(len(source.image_ids)):
    for ours, expected in zip(records.load(i), source.load(i), strict=True):
      assert ours.dtype == expected.dtype and np.array_equal(ours, expected)
  assert records.annotations() == source.annotations()


@pytest.mark.parametrize('name', REAL)
def test_records_equal_the_converted_source(converted, name):
  source, folder, split = converted[name]
  records = RecordSource(str(folder), split, keypoints=bool(source.num_keypoints))
  assert_same(records, source)


def test_subsets_equal_those_of_the_json(converted, real_images):
  _, folder, split = converted['coco']
  limits = {'training': True, 'fraction': 0.3, 'subset_seed': 5}
  records = RecordSource(str(folder), split, **limits)
  assert len(records.image_ids) == 24 and records.num_keypoints == 0
  assert_same(records, CocoSource(str(real_images / 'coco_dev'), split, **limits))



def test_images_without_a_visible_keypoint_are_dropped_as_from_the_json(converted, tmp_path):
  source, folder, split = converted['coco']
  records = RecordSource(str(folder), split, keypoints=True, training=True)
  assert records.image_ids.tolist() == source.image_ids[source.num_visible > 0].tolist()
  for path in folder.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  (tmp_path / f'{split}-index.json').unlink()
  RecordSource(str(tmp_path), split)  # the scan counts keypoints even if they are not requested
  assert_same(RecordSource(str(tmp_path), split, keypoints=True, training=True), records)


@pytest.mark.slow
def test_official_decoder_reads_the_records(converted):
  from official.vision.dataloaders import tf_example_decoder
  source, folder, split = converted['coco']
  decoder = tf_example_decoder.TfExampleDecoder(include_mask=True)
  i = 0
  for path in sorted(folder.glob('*.tfrecord')):
    for payload in tf.data.TFRecordDataset(str(path)):
      tensors = {key: value.numpy() for key, value in decoder.decode(payload).items()}
      expected = source.image_annotations(i)
      height, width = source.sizes[i]
      assert int(tensors['source_id']) == source.image_ids[i]
      assert tensors['image'].shape == (height, width, 3)
      assert (tensors['height'], tensors['width']) == (height, width)
      assert tensors['groundtruth_classes'].tolist() == [entry['category_id'] for entry in expected]
      assert tensors['groundtruth_is_crowd'].tolist() == [bool(entry['iscrowd']) for entry in expected]
      assert tensors['groundtruth_instance_masks'].shape == (len(expected), height, width)
      for box, mask, area, entry in zip(tensors['groundtruth_boxes'], tensors['groundtruth_instance_masks'],
                                        tensors['groundtruth_area'], expected, strict=True):
        x, y, w, h = entry['bbox']
        assert np.allclose(box * [height, width, height, width], [y, x, y + h, x + w], atol=1e-3)
        assert (mask == mask_api.decode(to_rle(entry['segmentation'], height, width))).all()
        assert np.isclose(area, entry['area'])
      i += 1
  assert i == len(source.image_ids)


def test_png_masks_are_optional(converted, tmp_path):
  source, folder, split = converted['balloon']
  convert(source, str(tmp_path), split, num_shards=1, png_masks=False)
  assert_same(RecordSource(str(tmp_path), split), source)
  assert next(tmp_path.glob('*.tfrecord')).stat().st_size < sum(p.stat().st_size for p in folder.glob('*.tfrecord'))


def test_records_of_the_official_converter(real_images, tmp_path, caplog):
  from official.vision.data import create_coco_tf_record
  folder = real_images / 'coco_dev'
  content = json.loads((folder / 'annotations/instances_val2017.json').read_text())
  names = {category['id']: category['name'] for category in content['categories']}
  with tf.io.TFRecordWriter(str(tmp_path / 'val-00000-of-00001.tfrecord')) as writer:
    for entry in content['images'][:25]:
      boxes = [a for a in content['annotations'] if a['image_id'] == entry['id']]
      example, _ = create_coco_tf_record.create_tf_example(
        entry, [str(folder / 'val2017')], bbox_annotations=boxes, id_to_name_map=names, include_masks=True)
      writer.write(example.SerializeToString())
  (tmp_path / 'names.json').write_text(json.dumps({'categories': content['categories']}))
  records = RecordSource(str(tmp_path), 'val', 'names.json')
  source = CocoSource(str(folder), 'val2017')
  assert len(records.image_ids) == 25 and records.categories == source.categories
  for i, image_id in enumerate(records.image_ids):
    ours, expected = records.load(i), source.load(source.image_ids.tolist().index(image_id))
    assert (ours.image == expected.image).all() and (ours.classes == expected.classes).all()
    assert np.allclose(ours.boxes, expected.boxes, atol=1e-3)
    large = (ours.boxes[:, 2:] - ours.boxes[:, :2]).min(axis=1, initial=1e9) > 32
    for mask, reference in zip(ours.masks[large], expected.masks[large], strict=True):
      assert (mask & reference).sum() / (mask | reference).sum() > 0.75
  annotations = records.annotations()['annotations']
  assert [entry['id'] for entry in annotations] == list(range(1, len(annotations) + 1))
  assert sum(entry['iscrowd'] for entry in annotations) == sum(
    a['iscrowd'] for a in content['annotations'] if a['image_id'] in set(records.image_ids.tolist()))
  # Without the list of categories, those that occur are used.
  found = RecordSource(str(tmp_path), 'val').categories
  assert 20 < len(found) < 80 and set(found) <= set(source.categories)
  assert any('categories that occur' in record.getMessage() for record in caplog.records)


def example(**features):
  def feature(value):
    value = value if isinstance(value, list) else [value]
    if isinstance(value[0], bytes):
      return tf.train.Feature(bytes_list=tf.train.BytesList(value=value))
    if isinstance(value[0], int):
      return tf.train.Feature(int64_list=tf.train.Int64List(value=value))
    return tf.train.Feature(float_list=tf.train.FloatList(value=value))
  names = {key.replace('__', '/'): feature(value) for key, value in features.items()}
  return tf.train.Example(features=tf.train.Features(feature=names)).SerializeToString()


def test_minimal_records_of_another_converter(tmp_path):
  """No size, no numeric source id, no area, crowd or mask."""
  encoded = tf.io.encode_png(np.full([60, 80, 3], 9, np.uint8)).numpy()
  boxes = {'image__object__bbox__xmin': [.25, .5], 'image__object__bbox__xmax': [.5, 1.],
           'image__object__bbox__ymin': [0., .5], 'image__object__bbox__ymax': [.5, 1.],
           'image__object__class__label': [3, 5]}
  with tf.io.TFRecordWriter(str(tmp_path / 'train-00000-of-00001')) as writer:
    writer.write(example(image__encoded=encoded, image__source_id=b'a', **boxes))
    writer.write(example(image__encoded=encoded, image__source_id=b'b'))
  records = RecordSource(str(tmp_path), 'train')
  assert records.image_ids.tolist() == [1, 2] and records.sizes.tolist() == [[60, 80]] * 2
  assert [category.name for category in records.categories] == ['3', '5']
  first = records.load(0)
  assert first.boxes.tolist() == [[0, 20, 30, 40], [30, 40, 60, 80]] and first.classes.tolist() == [1, 2]
  assert first.masks.all()
  assert records.load(1).boxes.shape == (0, 4)


# The index.


def test_index_is_rebuilt_by_a_scan(converted, caplog):
  source, folder, split = converted['rle']
  path = folder / f'{split}-index.json'
  written = read_index(str(path))
  path.unlink()
  records = RecordSource(str(folder), split)
  assert any('no valid index; scanning 2 shards' in record.getMessage() for record in caplog.records)
  assert read_index(str(path)).shards == written.shards
  assert (records.image_ids == source.image_ids).all() and records.annotations() == source.annotations()


@pytest.mark.parametrize('content', ['', '[]', '{"shards": [{}]}', '{"shards": [], "x": 1}'])
def test_broken_index_is_rebuilt(tmp_path, content):
  records, source = small(tmp_path)
  (records / 'train2017-index.json').write_text(content)
  assert_same(RecordSource(str(records)), source)


def test_unfinished_index(tmp_path):
  records, _ = small(tmp_path)
  path = records / 'train2017-index.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'complete': False}))
  with pytest.raises(UserError, match='interrupted'):
    RecordSource(str(records))


def small(tmp_path, num_images=4, num_shards=2):
  """Write a small data set -> folder of its records, and its source."""
  images = [image(i) for i in range(1, num_images + 1)]
  entries = [annotation(i, image_id=i) for i in range(1, num_images + 1)] + [crowd(100, image_id=2)]
  source = CocoSource(write(tmp_path / 'coco', images, entries))
  convert(source, str(tmp_path / 'records'), 'train2017', num_shards)
  return tmp_path / 'records', source


# Hostile input.


def test_damaged_record(tmp_path, caplog):
  folder, _ = small(tmp_path)
  shard = sorted(folder.glob('*.tfrecord'))[0]
  offsets = [offset for offset, _ in scan(str(shard))]
  content = bytearray(shard.read_bytes())
  content[offsets[1] + 40] ^= 1
  shard.write_bytes(content)
  records = RecordSource(str(folder))
  with pytest.raises(ImageError, match='checksum'):
    records.load(1)
  assert all(records.load(i).image.any() for i in (0, 2, 3))
  described = records.annotations()
  assert len(described['images']) == 4 and {a['image_id'] for a in described['annotations']} == {1, 3, 4}
  # Without an index the scan cannot tell which image it was.
  (folder / 'train2017-index.json').unlink()
  rebuilt = RecordSource(str(folder))
  assert rebuilt.image_ids.tolist() == [1, 3, 4]
  assert any('1 images are missing, unreadable or damaged' in record.getMessage() for record in caplog.records)


def test_stored_instances_that_leave_the_image(tmp_path):
  folder, source = small(tmp_path, num_shards=1)
  shard = next(folder.glob('*.tfrecord'))
  payloads = [payload for _, payload in scan(str(shard))]
  with tf.io.TFRecordWriter(str(shard)) as writer:
    for i, payload in enumerate(payloads):
      message = tf.train.Example.FromString(payload)
      if i == 1:
        message.features.feature['rethink_tf/box'].float_list.value[2] = 4000
      writer.write(message.SerializeToString(deterministic=True))
  records = RecordSource(str(folder))
  with pytest.raises(ImageError, match='train2017-00000-of-00001.tfrecord: .*a box has no area, or leaves the image'):
    records.load(1)
  assert all(np.array_equal(records.load(i).masks, source.load(i).masks) for i in (0, 2, 3))


def test_shards_missing(tmp_path):
  folder, _ = small(tmp_path)
  sorted(folder.glob('*.tfrecord'))[1].unlink()
  with pytest.raises(UserError, match='1 of the 2 shards of train2017 are missing'):
    RecordSource(str(folder))


def test_two_sets_of_shards(tmp_path):
  folder, _ = small(tmp_path)
  (folder / 'train2017-00000-of-00007.tfrecord').touch()
  with pytest.raises(UserError, match='two sets.*00002.tfrecord and .*00007.tfrecord'):
    RecordSource(str(folder))


def test_no_shards(tmp_path):
  for folder in (tmp_path, tmp_path / 'nowhere'):
    with pytest.raises(UserError, match='no shards train2017.*rethink_tf.data.convert') as raised:
      RecordSource(str(folder))
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize('content', [b'hello', gzip.compress(b'x' * 500, mtime=0), b'\0' * 500],
                         ids=['text', 'gzip', 'zeros'])
def test_no_tfrecords(tmp_path, content):
  (tmp_path / 'train2017-00000-of-00001.tfrecord').write_bytes(content)
  (tmp_path / 'train2017-categories.json').write_text('[{"id": 1, "name": "a"}]')
  with pytest.raises(UserError, match='no record can be read'):
    RecordSource(str(tmp_path))


@pytest.mark.parametrize('payload', [b'hello', example(image__height=3), example(image__encoded=b'no image'),
                                     example(image__encoded=b'x', image__height=4, image__width=4,
                                             image__object__class__label=[1, 2])],
                         ids=['text', 'single field', 'no image', 'labels without boxes'])
def test_payload_is_not_an_annotated_image(payload):
  with pytest.raises(ImageError, match='not an example|not a tf.train.Example'):
    decode(payload)


def test_missing_keypoints(tmp_path):
  folder, _ = small(tmp_path)
  with pytest.raises(UserError, match='no keypoints'):
    RecordSource(str(folder), keypoints=True)


def test_gin_name(tmp_path):
  folder, _ = small(tmp_path)
  gin.clear_config()
  gin.parse_config(f"records.data_dir = '{folder}'")
  assert len(gin.get_configurable('records')().image_ids) == 4
  gin.clear_config()


@pytest.mark.parametrize('fields', [
  {'offsets': [-5]}, {'offsets': ['0']}, {'offsets': [0.0]}, {'offsets': {}}, {'heights': [0]}, {'heights': [True]},
  {'widths': [2 ** 31]}, {'usable': [-1]}, {'annotations': [None]}, {'source_ids': [7]}, {'source_ids': 'a'},
  {'bytes': '9'}, {'file': None}, {'offsets': [0, 1]}, {'visible': [2 ** 70]}], ids=str)
def test_index_with_wrong_types_is_rebuilt(tmp_path, fields, caplog):
  folder, _ = small(tmp_path, num_images=1, num_shards=1)
  path = folder / 'train2017-index.json'
  content = json.loads(path.read_text())
  content['shards'][0] |= fields
  path.write_text(json.dumps(content))
  assert read_index(str(path)) is None and 'is not an index of records' in caplog.text
  assert RecordSource(str(folder)).load(0).image.shape == (60, 80, 3)


@pytest.mark.parametrize('fields', [{'problems': {'a': 'b'}}, {'problems': [1]}, {'left_out': [7]}, {'category_ids': 5},
                                    {'fingerprint': None}, {'shards': [{}]}], ids=str)
def test_index_with_wrong_fields_is_rebuilt(tmp_path, fields):
  folder, _ = small(tmp_path, num_images=1, num_shards=1)
  path = folder / 'train2017-index.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))
  assert read_index(str(path)) is None
  assert len(RecordSource(str(folder)).image_ids) == 1


def test_images_of_too_many_pixels(tmp_path):
  folder, _ = small(tmp_path)
  with pytest.raises(UserError, match='more than records.max_pixels = 4,799'):
    RecordSource(str(folder), max_pixels=4799)
  (folder / 'train2017-index.json').unlink()
  with pytest.raises(UserError, match='no record can be read.*more than max_pixels = 4,799'):
    RecordSource(str(folder), max_pixels=4799)


def jpeg():
  return cv2.imencode('.jpg', np.zeros([6, 8, 3], np.uint8))[1].tobytes()


@pytest.mark.parametrize('fields', [
  {'image/height': [2 ** 40], 'image/width': [2 ** 40]}, {'image/height': [2 ** 62], 'image/width': [1]},
  {'image/encoded': [5]}, {'image/encoded': [b'']}, {'rethink_tf/annotation': [b'[' * 100_000]},
  {'rethink_tf/annotation': [b'7']}, {'rethink_tf/annotation': [b'{']}, {'rethink_tf/annotation': [7]},
  {'image/object/mask': [b'no PNG'], 'image/object/class/label': [1]}], ids=str)
def test_invalid_fields(fields):
  features = {'image/encoded': [jpeg()], 'image/height': [6], 'image/width': [8], 'image/object/bbox/xmin': [0.0],
              'image/object/bbox/xmax': [1.0], 'image/object/bbox/ymin': [0.0],
              'image/object/bbox/ymax': [1.0]} | fields
  with pytest.raises(ImageError, match='not an example|max_pixels') as error:
    decode(raw_example(features))
  assert '\n' not in str(error.value)


def raw_example(features):
  def feature(values):
    kinds = {bytes: ('bytes_list', tf.train.BytesList), float: ('float_list', tf.train.FloatList),
             int: ('int64_list', tf.train.Int64List)}
    name, kind = kinds[type(values[0])]
    return tf.train.Feature(**{name: kind(value=values)})
  return tf.train.Example(features=tf.train.Features(
    feature={name: feature(values) for name, values in features.items()})).SerializeToString()


def test_mask_of_another_size_is_not_decoded():
  """Its header may contain any size; the annotation is counted as one with a malformed segmentation."""
  mask = cv2.imencode('.png', np.zeros([60, 80], np.uint8))[1].tobytes()
  record = decode(raw_example({
    'image/encoded': [jpeg()], 'image/height': [6], 'image/width': [8], 'image/object/class/label': [1],
    'image/object/bbox/xmin': [0.0], 'image/object/bbox/xmax': [1.0], 'image/object/bbox/ymin': [0.0],
    'image/object/bbox/ymax': [1.0], 'image/object/mask': [mask], 'image/filename': [b'a\x1b[2J.jpg']}))
  assert record.annotations[0]['segmentation'] == {'size': [60, 80], 'counts': None}
  assert record.file_name == 'a\ufffd[2J.jpg'
  problems = validate(record, 1, (Category(1, 'a'),), 1).problems
  assert problems.counts['with a malformed segmentation (trained without a mask)'] == 1
