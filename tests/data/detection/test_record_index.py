"""The index of records belongs to the shards beside it, and both to the list of categories."""

import json
import os
import shutil

import pytest
import tensorflow as tf

from rethink_tf.data.class_names import match
from rethink_tf.data.conversion import convert
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.record_index import read_index
from rethink_tf.data.detection.records import RecordSource
from rethink_tf.data.images import ImageError
from rethink_tf.data.tfrecord import scan
from rethink_tf.errors import UserError
from tests.small_coco import annotation, image, warnings, write

NAMES, SWAPPED = ('cat', 'dog', 'cow'), ('dog', 'cat', 'cow')
FIRST, SECOND = 'train2017-00000-of-00002.tfrecord', 'train2017-00001-of-00002.tfrecord'


def converted(folder, names=NAMES):
  """Write 6 images of 3 classes in turn to 2 shards -> the folder of the shards, and a call that does it again."""
  source = CocoSource(write(folder / 'coco', [image(i) for i in range(1, 7)],
                            [annotation(i, i, category_id=1 + i % 3) for i in range(1, 7)],
                            [{'id': k, 'name': name} for k, name in enumerate(names, 1)]))

  def again():
    return convert(source, str(folder / 'records'), 'train2017', 2)
  again()
  return folder / 'records', again


@pytest.mark.parametrize('size', [0, 2000], ids=['empty', 'truncated'])
def test_a_converted_shard_of_another_length_is_refused(tmp_path, size, caplog):
  folder, again = converted(tmp_path)
  shard = folder / SECOND
  shard.write_bytes(shard.read_bytes()[:size])
  with pytest.raises(UserError, match=rf'{SECOND}: has {size} bytes, \d+ when it was converted') as raised:
    RecordSource(str(folder))
  again()  # as the message says
  assert len(RecordSource(str(folder)).image_ids) == 6
  shard.write_bytes(shard.read_bytes()[:size])
  (folder / 'train2017-index.json').unlink()  # the other cure
  assert str(folder / 'train2017-index.json') in str(raised.value)
  assert RecordSource(str(folder)).image_ids.tolist() == ([1, 2, 3] if not size else [1, 2, 3, 4])
  said = ' '.join(warnings(caplog))
  assert (f'1 shards are empty, e.g. {SECOND}' if not size else 'truncated, and what follows it is lost') in said


def test_a_shard_in_place_of_another_of_the_same_length(tmp_path):
  folder, _ = converted(tmp_path)
  shutil.copy(folder / FIRST, folder / SECOND)
  with pytest.raises(UserError, match=f"{SECOND}: begins with image '1', in .*train2017-index.json with '4'"):
    RecordSource(str(folder))


def test_an_index_with_other_offsets(tmp_path):
  """The first record of a shard is looked at when the index is read, each other one when it is loaded."""
  folder, _ = converted(tmp_path)
  path = folder / 'train2017-index.json'
  content = json.loads(path.read_text())
  offsets = content['shards'][0]['offsets']
  content['shards'][0]['offsets'] = [offsets[0], offsets[2], offsets[1]]
  path.write_text(json.dumps(content))
  records = RecordSource(str(folder))
  with pytest.raises(Exception, match="is image '3', in the index '2': delete the index"):
    records.load(1)
  assert records.load(0).classes.tolist() == [2]


@pytest.mark.parametrize('indexed', [True, False])
def test_categories_of_another_conversion(tmp_path, indexed):
  folder, _ = converted(tmp_path / 'a')
  other, _ = converted(tmp_path / 'b', SWAPPED)
  shutil.copy(other / 'train2017-categories.json', folder)
  if not indexed:
    (folder / 'train2017-index.json').unlink()
  with pytest.raises(UserError, match="(1 is the label of 'cat', in .*/train2017-categories.json that of 'dog', "
                                      "and 2 that of 'cat'|2 is the label of 'dog')"):
    RecordSource(str(folder))


@pytest.mark.parametrize('listed', [True, False], ids=['with categories.json', 'without'])
def test_shards_of_conversions_with_classes_in_another_order(tmp_path, listed):
  folder, _ = converted(tmp_path / 'a')
  other, _ = converted(tmp_path / 'b', SWAPPED)
  shutil.copy(other / SECOND, folder)
  (folder / 'train2017-index.json').unlink()
  if not listed:
    (folder / 'train2017-categories.json').unlink()
  with pytest.raises(UserError, match=f"{SECOND}: . is the label of '(cat|dog)', in the others that of"):
    RecordSource(str(folder))


ENDS_SWAPPED = ('cow', 'dog', 'cat')  # the first images of both shards are of class 2


def test_a_shard_of_a_conversion_with_classes_in_another_order_and_the_same_first_image(tmp_path):
  folder, _ = converted(tmp_path / 'a')
  other, again = converted(tmp_path / 'b', ENDS_SWAPPED)
  assert (folder / SECOND).stat().st_size == (other / SECOND).stat().st_size
  shutil.copy(other / SECOND, folder)
  with pytest.raises(UserError, match=f"{SECOND}: its records are of conversion '.*index.json of '"):
    RecordSource(str(folder))
  again()
  assert len(RecordSource(str(other)).image_ids) == 6


def test_shards_of_before_their_records_named_the_conversion(tmp_path):
  """They are accepted; classes in another order are found when their objects are read."""
  folder, _ = converted(tmp_path / 'a')
  other, _ = converted(tmp_path / 'b', ENDS_SWAPPED)
  path = folder / 'train2017-index.json'
  content = json.loads(path.read_text())
  del content['conversion']
  path.write_text(json.dumps(content))
  assert [RecordSource(str(folder)).load(i).classes.tolist() for i in range(6)] == [[2], [3], [1]] * 2
  shutil.copy(other / SECOND, folder)
  source = RecordSource(str(folder))
  assert [source.load(i).classes.tolist() for i in range(4)] == [[2], [3], [1], [2]]
  with pytest.raises(ImageError, match=f"{SECOND}: in the record at .* 3 is the label of 'cat', in the categories"):
    source.load(4)


def test_a_conversion_with_other_names_into_the_folder_of_one(tmp_path):
  """Its shards would be kept, and their index and list of categories replaced."""
  converted(tmp_path)
  with pytest.raises(UserError, match="with other categories [(]1 is 'cat' there, 'cow' here[)]; use another"):
    converted(tmp_path, ENDS_SWAPPED)


def test_a_renamed_class_is_logged(tmp_path, caplog):
  folder, _ = converted(tmp_path)
  path = folder / 'train2017-categories.json'
  path.write_text(path.read_text().replace('cow', 'Kuh'))
  assert [category.name for category in RecordSource(str(folder)).categories] == ['cat', 'dog', 'Kuh']
  assert any("label 3 is named 'cow', in " in text and '(1 labels differ)' in text for text in warnings(caplog))


def test_an_index_of_before_it_had_names(tmp_path):
  folder, _ = converted(tmp_path)
  path = folder / 'train2017-index.json'
  content = json.loads(path.read_text())
  del content['names']
  path.write_text(json.dumps(content))
  assert len(RecordSource(str(folder)).image_ids) == 6
  content = json.loads((folder / 'train2017-categories.json').read_text())
  content['categories'][1]['name'], content['categories'][2]['name'] = 'cow', 'dog'  # first image: class 2
  (folder / 'train2017-categories.json').write_text(json.dumps(content))
  with pytest.raises(UserError, match="2 is the label of 'dog'"):
    RecordSource(str(folder))


def test_other_categories_leave_the_conversion_its_journal(tmp_path):
  """The index is rebuilt for a list of fewer categories; the conversion is still known to be that of the folder."""
  folder, again = converted(tmp_path)
  (folder / 'two.json').write_text(json.dumps({'categories': [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}]}))
  fingerprint = read_index(str(folder / 'train2017-index.json')).fingerprint
  assert len(RecordSource(str(folder), categories_file='two.json', training=True).image_ids) == 4
  assert read_index(str(folder / 'train2017-index.json')).fingerprint == fingerprint
  again()
  assert len(RecordSource(str(folder), training=True).image_ids) == 6


def test_a_scanned_index_is_rebuilt_when_its_shards_change(tmp_path, caplog):
  folder, _ = converted(tmp_path)
  (folder / 'train2017-index.json').unlink()
  RecordSource(str(folder))
  payloads = [payload for _, payload in scan(str(folder / FIRST))]
  with tf.io.TFRecordWriter(str(folder / FIRST)) as writer:
    writer.write(payloads[1])
  assert RecordSource(str(folder)).image_ids.tolist() == [2, 4, 5, 6]
  assert any('out of date' in text for text in warnings(caplog))


@pytest.mark.parametrize('kind', ['folder', 'FIFO'])
def test_what_is_no_file_is_one_line(tmp_path, kind):
  folder, _ = converted(tmp_path)
  (folder / 'train2017-index.json').unlink()
  (folder / FIRST).unlink()
  (folder / FIRST).mkdir() if kind == 'folder' else os.mkfifo(folder / FIRST)
  with pytest.raises(UserError, match=rf'{FIRST}: cannot be read: (it is a folder|not a regular file)$'):
    RecordSource(str(folder))


def test_one_list_of_categories_for_splits_that_name_different_ones(tmp_path):
  """Records of other converters have no list: that of each split is what occurs in it."""
  folder, _ = converted(tmp_path)
  for path in [*folder.glob('*.json'), folder / FIRST]:
    path.unlink()
  first = next(scan(str(folder / SECOND)))[1]  # of class 2
  (folder / SECOND).rename(folder / 'train2017-00000-of-00001.tfrecord')
  with tf.io.TFRecordWriter(str(folder / 'val2017-00000-of-00001.tfrecord')) as writer:
    writer.write(first)
  train, held_out = RecordSource(str(folder)), RecordSource(str(folder), 'val2017')
  with pytest.raises(UserError, match=r'different categories.*one for both splits with records\.categories_file'):
    match(held_out, train.categories, train.name)
  same = RecordSource(str(folder), 'val2017', categories_file='train2017-categories.json')
  assert same.load(0).classes.tolist() == [2] and match(same, train.categories, train.name) is same
