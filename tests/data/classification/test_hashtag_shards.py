"""Shards of images with hashtags: lossless round trip, damaged and inconsistent files."""

import json
import os

import numpy as np
import pytest

from rethink_tf.data.classification.hashtag_shards import (
  HashtagSource,
  ShardColumns,
  StreamIndex,
  StreamShard,
  TagRecord,
  columns_path,
  decode_record,
  encode,
  read_columns,
  write_columns,
  write_stream_index,
)
from rethink_tf.data.classification.vocabulary import Vocabulary
from rethink_tf.data.images import ImageError, decode
from rethink_tf.errors import UserError
from tests.tag_files import write_shards

SHARD = 'train-00001-of-00003.tfrecord'


@pytest.fixture
def shards(tmp_path):
  return write_shards(tmp_path, count=20, num_shards=3)


def test_record_round_trip():
  record = TagRecord(7, 'ä/b.jpg', b'\xff\xd8x', (0, 5, 1 << 20))
  assert decode_record(encode(record)) == record


@pytest.mark.parametrize('payload', [b'', b'nonsense', encode(TagRecord(1, 'a', b'b', ()))[:-9]], ids=range(3))
def test_invalid_record(payload):
  with pytest.raises(ImageError, match='not an image with hashtags'):
    decode_record(payload)


def test_index_and_columns_round_trip(tmp_path):
  index = StreamIndex('f', 'v', [StreamShard('a', 10, 2, 3), StreamShard('b', 0, 0, 0)], [1, 2], 5)
  write_stream_index(str(tmp_path / 'i.json'), index)
  assert StreamIndex.load(str(tmp_path / 'i.json')) == index and index.num_images == 2
  shard = str(tmp_path / 'a')
  (tmp_path / 'a').write_bytes(b'0123456789')
  columns = ShardColumns(np.array([0, 4]), np.array([0, 1, 3]), np.array([5, 5, 6], np.int32), 10, 1, 'f')
  write_columns(shard, columns)
  found = read_columns(shard, 'f')
  for a, b in zip(found, columns, strict=True):
    np.testing.assert_array_equal(a, b)
  assert read_columns(shard, 'another conversion') is None
  (tmp_path / 'a').write_bytes(b'0123')
  assert read_columns(shard, 'f') is None
  (tmp_path / 'a.npz').write_bytes(b'0123')
  assert read_columns(shard, 'f') is None and read_columns(str(tmp_path / 'none'), 'f') is None


def test_source_equals_what_was_written(shards, tmp_path):
  folder, vocabulary, rows = shards
  source = HashtagSource(folder)
  by_pixels = {decode((tmp_path / 'images' / name).read_bytes(), name).tobytes(): tags for name, tags in rows}
  assert source.num_classes == len(vocabulary) and [c.name for c in source.categories] == list(vocabulary.tags)
  assert source.image_ids.tolist() == list(range(20)) and source.name == 'shards/train'
  assert source.classes.shape == (20, max(len(vocabulary.classes(tags)) for _, tags in rows))
  for i in range(20):
    tags = by_pixels.pop(source.load(i).tobytes())
    assert [k for k in source.classes[i] if k >= 0] == vocabulary.classes(tags)
  assert not by_pixels
  np.testing.assert_array_equal(source.tag_counts, vocabulary.counts)


def test_training_source_needs_no_memory_per_image(shards):
  source = HashtagSource(shards[0], training=True)
  assert source.image_ids == range(20)  # not an array
  assert source.load(19).shape == (40, 40, 3)


def test_damaged_record(shards):
  path = os.path.join(shards[0], SHARD)
  with open(path, 'r+b') as file:
    file.seek(60)
    file.write(b'\0\1\2\3')
  source = HashtagSource(shards[0])
  first = int(source.first_images[1])
  with pytest.raises(ImageError, match=f'{SHARD}: the record at byte 0 cannot be read'):
    source.load(first)
  assert source.load(first + 1).shape == (40, 40, 3)


def damage(folder, kind):
  if kind == 'truncated':
    os.truncate(os.path.join(folder, SHARD), 100)
  elif kind == 'missing':
    os.remove(os.path.join(folder, SHARD))
  elif kind == 'no index':
    os.remove(os.path.join(folder, 'train-tags-index.json'))
  else:
    content = {'unfinished': '{"fingerprint": "f", "vocabulary": "v", "shards": []}', 'another index': '{"a": 1}',
               'no json': 'x'}[kind]
    with open(os.path.join(folder, 'train-tags-index.json'), 'w') as file:
      file.write(content)


@pytest.mark.parametrize('kind, message', [
  ('truncated', f'{SHARD}: has 100 bytes instead of'), ('missing', f'{SHARD}: is missing'),
  ('no index', 'hashtags_convert'), ('unfinished', 'was interrupted'), ('another index', 'is not an index'),
  ('no json', 'not valid JSON')], ids=lambda value: value.split(':')[0])
def test_errors_are_one_line(shards, kind, message):
  damage(shards[0], kind)
  with pytest.raises(UserError, match=message) as error:
    HashtagSource(shards[0])
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('content', [b'', b'PK\3\4 broken'], ids=range(2))
def test_damaged_columns(shards, content):
  source = HashtagSource(shards[0], training=True)
  with open(columns_path(os.path.join(shards[0], SHARD)), 'wb') as file:
    file.write(content)
  with pytest.raises(UserError, match=r'npz: is missing, damaged'):
    source.columns(1)


def test_another_vocabulary_is_rejected(shards, tmp_path):
  folder, vocabulary, _ = shards
  other = Vocabulary(vocabulary.tags[::-1], vocabulary.counts, 20, {})
  other.save(str(tmp_path / 'other.json'))
  with pytest.raises(UserError, match='other.json: the .* are not those with which the shards'):
    HashtagSource(folder, vocabulary=str(tmp_path / 'other.json'))
  vocabulary.save(str(tmp_path / 'same.json'))
  assert HashtagSource(folder, vocabulary=str(tmp_path / 'same.json')).num_classes == len(vocabulary)
  content = json.loads((tmp_path / 'shards' / 'train-vocabulary.json').read_text())
  assert content['tags'] == list(vocabulary.tags)


def change_columns(folder, save=np.savez, **arrays):
  path = columns_path(os.path.join(folder, SHARD))
  content = dict(np.load(path)) | arrays
  with open(path, 'wb') as file:
    save(file, **content)


def change_header(path, shape):
  """Write an array of a few bytes with a header of a large one."""
  import io
  import zipfile
  with np.load(path) as content:
    arrays = dict(content)
  with zipfile.ZipFile(path, 'w') as archive:
    for name, array in arrays.items():
      stream = io.BytesIO()
      np.lib.format.write_array(stream, array, (1, 0))
      raw = stream.getvalue()
      if name == 'tags':
        length = int.from_bytes(raw[8:10], 'little')
        header = f"{{'descr': '<i4', 'fortran_order': False, 'shape': {shape}, }}".ljust(length - 1) + '\n'
        raw = raw[:10] + header.encode() + raw[10 + length:]
      archive.writestr(f'{name}.npy', raw)


@pytest.mark.parametrize('change', [
  lambda folder: change_header(columns_path(os.path.join(folder, SHARD)), '(1000000000000,)'),
  lambda folder: change_columns(folder, np.savez_compressed), lambda folder: change_columns(folder, tags=np.zeros(3)),
  lambda folder: change_columns(folder, tags=np.array([None] * 3)),
  lambda folder: change_columns(folder, starts=np.zeros([2, 2], int)),
  lambda folder: change_columns(folder, tags=np.full(1000, 5)),
  lambda folder: change_columns(folder, offsets=-np.ones(7, int)),
  lambda folder: change_columns(folder, bytes=np.array('x'))],
  ids=['header', 'compressed', 'floats', 'objects', 'table', 'more', 'negative', 'text'])
def test_inconsistent_columns(shards, change):
  folder, _, _ = shards
  change(folder)
  with pytest.raises(UserError, match='is missing, damaged or not of this shard'):
    HashtagSource(folder).columns(1)


def test_columns_with_tags_outside_the_vocabulary(shards):
  folder, vocabulary, _ = shards
  with np.load(columns_path(os.path.join(folder, SHARD))) as content:
    tags = content['tags'].copy()
  tags[0] = len(vocabulary)
  change_columns(folder, tags=tags)
  with pytest.raises(UserError, match='is missing, damaged or not of this shard'):
    HashtagSource(folder).columns(1)


@pytest.mark.parametrize('fields', [
  {'file': '../x.tfrecord'}, {'file': '/etc/passwd'}, {'file': '..'}, {'file': 7}, {'images': -1}, {'images': 1.5},
  {'most_tags': 10 ** 9}, {'bytes': '5'}], ids=str)
def test_index_with_unsafe_paths_or_wrong_types(shards, fields):
  folder, _, _ = shards
  path = os.path.join(folder, 'train-tags-index.json')
  with open(path) as file:
    content = json.load(file)
  content['shards'][0] |= fields
  with open(path, 'w') as file:
    json.dump(content, file)
  with pytest.raises(UserError, match='is not an index of hashtag shards') as error:
    HashtagSource(folder)
  assert '\n' not in str(error.value)
