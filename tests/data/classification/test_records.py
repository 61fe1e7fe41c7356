"""ImageRecords: TFRecords in the ImageNet schema of tf-models-official."""

import json

import cv2
import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.data.classification.image_folder import ImageFolder
from rethink_tf.data.classification.records import ImageRecords
from rethink_tf.data.images import ImageError
from rethink_tf.errors import UserError
from tests.small_classes import COLOURS, noisy_image, write_folders

NAMES = tuple(COLOURS)


def example(label, seed, **others):
  """Return a record in the format of the ImageNet scripts of tf-models-official, label from 1."""
  encoded = cv2.imencode('.jpg', noisy_image(COLOURS[NAMES[(label - 1) % 3]], seed)[..., ::-1])[1].tobytes()
  features = {'image/encoded': encoded, 'image/class/label': label, 'image/class/text': NAMES[(label - 1) % 3].encode(),
              'image/filename': f'n{label}_{seed}.JPEG'.encode(), 'image/height': 48, 'image/width': 64} | others
  return tf.train.Example(features=tf.train.Features(feature={
    key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value])) if isinstance(value, bytes) else
    tf.train.Feature(int64_list=tf.train.Int64List(value=value if isinstance(value, list) else [value]))
    for key, value in features.items() if value is not None}))


def write_shards(folder, split, labels, shards=2, suffix='', **others):
  for shard in range(shards):
    with tf.io.TFRecordWriter(str(folder / f'{split}-{shard:05d}-of-{shards:05d}{suffix}')) as writer:
      for n in range(shard, len(labels), shards):
        writer.write(example(labels[n], n, **others).SerializeToString())


@pytest.mark.parametrize('suffix', ['', '.tfrecord'])
def test_labels_start_at_one(tmp_path, suffix):
  write_shards(tmp_path, 'train', [1, 2, 3, 3, 1], suffix=suffix)
  write_shards(tmp_path, 'validation', [2, 2], suffix=suffix)
  source = ImageRecords(str(tmp_path), training=True)
  assert [category.name for category in source.categories] == ['blue', 'green', 'red'] and source.num_classes == 3
  assert source.classes[:, 0].tolist() == [0, 2, 0, 1, 2] and source.classes.dtype == np.int32
  assert source.image_ids.tolist() == [1, 2, 3, 4, 5]
  for i, k in enumerate(source.classes[:, 0].tolist()):
    assert np.abs(source.load(i).mean((0, 1)) - COLOURS[NAMES[k]]).max() < 20
  held_out = ImageRecords(str(tmp_path), 'validation')
  assert held_out.categories == source.categories and held_out.classes[:, 0].tolist() == [1, 1]


def test_official_decoder_reads_the_same_labels(tmp_path):
  from official.vision.dataloaders import classification_input
  write_shards(tmp_path, 'train', [3, 1], shards=1)
  decoder = classification_input.Decoder()
  source = ImageRecords(str(tmp_path))
  for i, record in enumerate(tf.data.TFRecordDataset(str(tmp_path / 'train-00000-of-00001'))):
    decoded = decoder.decode(record)
    assert int(decoded['image/class/label']) - 1 == source.classes[i, 0]
    np.testing.assert_array_equal(tf.io.decode_jpeg(decoded['image/encoded'], dct_method='INTEGER_ACCURATE').numpy(),
                                  source.load(i))


def test_index_is_written_once_and_rebuilt_when_shards_change(tmp_path):
  write_shards(tmp_path, 'train', [1, 2, 3])
  first = ImageRecords(str(tmp_path))
  index = tmp_path / 'train-classes-index.json'
  content = json.loads(index.read_text())
  assert [shard['labels'] for shard in content['shards']] == [[1, 3], [2]]
  content['texts']['1'] = 'azure'  # shows that the file is read
  index.write_text(json.dumps(content))
  assert ImageRecords(str(tmp_path)).categories[0].name == 'azure'
  index.write_text('{"shards": [1')
  assert ImageRecords(str(tmp_path)).categories == first.categories
  write_shards(tmp_path, 'train', [1, 2, 3, 3])
  assert len(ImageRecords(str(tmp_path)).image_ids) == 4


def test_validation_shards_only(tmp_path):
  write_shards(tmp_path, 'validation', [1, 3])
  assert ImageRecords(str(tmp_path), 'validation').num_classes == 3


def test_subsets_are_those_of_file_names(tmp_path):
  write_shards(tmp_path, 'train', [1, 2, 3] * 8, shards=3)
  small, large = (ImageRecords(str(tmp_path), num_images=n) for n in (5, 11))
  assert set(small.file_names) < set(large.file_names) and len(small.image_ids) == 5
  whole = ImageRecords(str(tmp_path))
  for i, image_id in enumerate(small.image_ids):
    assert small.file_names[i] == whole.file_names[image_id - 1] and small.classes[i] == whole.classes[image_id - 1]
    np.testing.assert_array_equal(small.load(i), whole.load(image_id - 1))


def test_a_subset_of_one_class_is_refused(tmp_path):
  write_shards(tmp_path, 'train', [1, 2] * 4)
  assert len(ImageRecords(str(tmp_path), num_images=1).image_ids) == 1
  with pytest.raises(UserError, match='all 1 images of the subset are of one class.*: raise image_records.num_images'):
    ImageRecords(str(tmp_path), num_images=1, training=True)


def test_damaged_records_are_counted_and_dropped(tmp_path, see_logs, caplog):
  write_shards(tmp_path, 'train', [1, 2, 3, 1], shards=1)
  path = tmp_path / 'train-00000-of-00001'
  with tf.io.TFRecordWriter(str(tmp_path / 'more')) as writer:
    writer.write(b'no example')
    writer.write(example(1, 0, **{'image/class/label': [1, 2]}).SerializeToString())
    writer.write(example(1, 0, **{'image/encoded': None}).SerializeToString())
  data = bytearray(path.read_bytes())
  data[300] ^= 0xFF  # inside the first image
  path.write_bytes(bytes(data) + (tmp_path / 'more').read_bytes())
  source = ImageRecords(str(tmp_path))
  assert source.classes[:, 0].tolist() == [1, 2, 0]
  assert '4 records are dropped' in caplog.text and 'damaged (1)' in caplog.text
  path.write_bytes(path.read_bytes()[:1000])
  with pytest.raises(ImageError, match='cannot be read'):
    source.load(2)


def test_unusable_records_are_one_line(tmp_path):
  for folder in ('zero', 'more', 'one', 'bare', 'gap'):
    (tmp_path / folder).mkdir()
  write_shards(tmp_path / 'zero', 'train', [1, 2], **{'image/class/label': 0})
  write_shards(tmp_path / 'more', 'train', [1, 2])
  write_shards(tmp_path / 'more', 'validation', [3, 3])
  write_shards(tmp_path / 'one', 'train', [2, 2])
  write_shards(tmp_path / 'bare', 'train', [1, 2], **{'image/class/label': None})
  write_shards(tmp_path / 'gap', 'train', [1, 2])
  (tmp_path / 'gap/train-00001-of-00002').unlink()
  for folder, split, message in (('zero', 'train', 'first_label'), ('more', 'validation', 'class_split'),
                              ('one', 'train', 'one class'), ('bare', 'train', 'image/class/label'),
                              ('gap', 'train', '1 of the 2 shards'), ('gap', 'test', '--data_dir')):
    with pytest.raises(UserError, match=message) as error:
      ImageRecords(str(tmp_path / folder), split, training=True)
    assert '\n' not in str(error.value)
  assert ImageRecords(str(tmp_path / 'zero'), first_label=0).num_classes == 1


def test_folders_and_records_have_the_same_attributes(tmp_path):
  write_shards(tmp_path, 'train', [1, 2])
  records, folders = ImageRecords(str(tmp_path)), ImageFolder(str(write_folders(tmp_path / 'folders')))
  for name in ('name', 'categories', 'num_classes', 'image_ids', 'classes', 'num_instances', 'file_names'):
    assert type(getattr(records, name)) is type(getattr(folders, name)), name


def test_labels_out_of_range_are_dropped(tmp_path, see_logs, caplog):
  """As many classes would exhaust the memory."""
  write_shards(tmp_path, 'train', [1, 2, 2 ** 62, -5])
  source = ImageRecords(str(tmp_path))
  assert source.num_classes == 2 and len(source.image_ids) == 2
  assert 'with a label that is not from 0 to 1000000 (2)' in caplog.text


@pytest.mark.parametrize('fields', [{'labels': [2 ** 62]}, {'labels': ['1']}, {'offsets': [-1]}, {'names': [None]},
                                    {'labels': []}], ids=str)
def test_index_with_wrong_types_is_rebuilt(tmp_path, fields):
  write_shards(tmp_path, 'train', [1], shards=1)
  ImageRecords(str(tmp_path))
  path = tmp_path / 'train-classes-index.json'
  content = json.loads(path.read_text())
  content['shards'][0] |= fields
  path.write_text(json.dumps(content))
  assert ImageRecords(str(tmp_path)).num_classes == 1


def test_splits_and_shards_with_classes_in_another_order(tmp_path):
  write_shards(tmp_path, 'train', [1, 2, 3, 1])
  other = tmp_path / 'other'
  other.mkdir()
  for split in ('train', 'validation'):
    write_shards(other, split, [1, 1], **{'image/class/text': b'green'})
  (other / 'validation-00000-of-00002').rename(tmp_path / 'validation-00000-of-00001')
  with pytest.raises(UserError, match="/validation: 1 is the label of 'green', in train that of 'blue', and 2 that "
                                      "of 'green'"):
    ImageRecords(str(tmp_path), 'validation')
  (other / 'train-00000-of-00002').rename(tmp_path / 'train-00000-of-00002')  # label 2 is in the other shard
  with pytest.raises(UserError, match="train-00000-of-00002: 1 is the label of 'green', in the others that of 'blue'|"
                                      "train-00001-of-00002: 1 is the label of 'blue', in the others"):
    ImageRecords(str(tmp_path))


@pytest.mark.parametrize('labels', [[3, 2, 1, 3], [1, 2, 1, 3]], ids=['first', 'other'])
def test_shards_of_the_same_length_with_classes_in_another_order(tmp_path, labels, see_logs, caplog):
  """The index lists the classes of records; shards in place of those that were scanned may have others."""
  same = {'image/encoded': cv2.imencode('.jpg', noisy_image(COLOURS['blue'], 0))[1].tobytes(),
          'image/filename': b'a.JPEG', 'image/class/text': b'a class'}
  write_shards(tmp_path, 'train', [1, 2, 3, 1], **same)
  ImageRecords(str(tmp_path))
  lengths = [path.stat().st_size for path in sorted(tmp_path.glob('train-*-of-*'))]
  write_shards(tmp_path, 'train', labels, **same)
  assert [path.stat().st_size for path in sorted(tmp_path.glob('train-*-of-*'))] == lengths
  source = ImageRecords(str(tmp_path))
  if labels[0] != 1:
    assert source.classes[:, 0].tolist() == [2, 0, 1, 2]
    assert 'its first record has label 3, in the index 1' in caplog.text
  else:
    with pytest.raises(ImageError, match='has label 1, in the index 3: delete train-classes-index.json to rebuild it'):
      source.load(1)
    assert source.load(0).shape == (48, 64, 3)


def test_other_spellings_of_a_class_are_accepted_and_the_name_of_another_is_not(tmp_path):
  write_shards(tmp_path, 'train', [1, 2, 1, 2], shards=1)
  path = tmp_path / 'train-00000-of-00001'
  ImageRecords(str(tmp_path))
  with tf.io.TFRecordWriter(str(path)) as writer:
    for n, (label, text) in enumerate([(1, b'blue'), (2, b'green'), (1, b'Blau'), (2, b'blue ')]):
      writer.write(example(label, n, **{'image/class/text': text.strip()}).SerializeToString())
  index = tmp_path / 'train-classes-index.json'
  content = json.loads(index.read_text())
  source = ImageRecords(str(tmp_path))
  content['shards'] = json.loads(index.read_text())['shards']  # offsets of the new file, names of the earlier one
  index.write_text(json.dumps(content))
  source = ImageRecords(str(tmp_path))
  assert source.load(2).shape == (48, 64, 3)
  with pytest.raises(ImageError, match="is of class 'blue', in the index of 'green'"):
    source.load(3)


def test_empty_and_truncated_shards_are_said(tmp_path, see_logs, caplog):
  write_shards(tmp_path, 'train', [1, 2, 3, 1, 2, 3], shards=3)
  (tmp_path / 'train-00001-of-00003').write_bytes(b'')
  whole = (tmp_path / 'train-00002-of-00003').read_bytes()
  (tmp_path / 'train-00002-of-00003').write_bytes(whole[:-9])
  assert len(ImageRecords(str(tmp_path)).image_ids) == 3
  assert '1 shards are empty, e.g. train-00001-of-00003' in caplog.text
  assert 'truncated, with all that follow in the file (1)' in caplog.text
  (tmp_path / 'train-00001-of-00003').unlink()
  (tmp_path / 'train-00001-of-00003').mkdir()
  with pytest.raises(UserError, match='train-00001-of-00003: cannot be read: it is a folder'):
    ImageRecords(str(tmp_path))
