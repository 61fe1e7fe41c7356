"""Conversion of images with hashtags to shards: complete, shuffled, resumable, atomic."""

import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.data import hashtags_conversion as hashtags_convert
from rethink_tf.data.classification.hashtag_shards import StreamIndex, decode_record
from rethink_tf.data.classification.vocabulary import build_vocabulary
from rethink_tf.data.hashtags_conversion import convert_hashtags
from rethink_tf.data.tfrecord import scan
from rethink_tf.errors import UserError
from tests.in_process import call
from tests.tag_files import render_images, tagged, write_json_lines, write_shards


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """Folder of 50 rendered images, and their names."""
  folder = tmp_path_factory.mktemp('images')
  return folder, [name for name, _ in render_images(folder, 50, side=8)]


def records(folder):
  return [decode_record(payload) for path in sorted(pathlib.Path(folder).glob('*.tfrecord'))
          for _, payload in scan(str(path))]


def prepare(folder, rows):
  """Write JSON Lines in the folder of the images -> (file, vocabulary)."""
  file = write_json_lines(folder / 'images.jsonl', rows)
  return file, build_vocabulary(file)


def test_every_image_with_a_tag_is_written_once_unchanged(tmp_path):
  folder, vocabulary, rows = write_shards(tmp_path, count=60, num_shards=4)
  written = {record.file_name: record for record in records(folder)}
  assert len(records(folder)) == len(written) == 60
  for number, (name, tags) in enumerate(rows):
    record = written[name]
    assert record.row == number and list(record.classes) == vocabulary.classes(tags)
    assert record.encoded == (tmp_path / 'images' / name).read_bytes()
  index = StreamIndex.load(f'{folder}/train-tags-index.json')
  assert [shard.images for shard in index.shards] == [15] * 4
  counts = np.bincount([k for record in written.values() for k in record.classes], minlength=len(vocabulary))
  assert index.tag_counts == counts.tolist() == vocabulary.counts.tolist()
  assert sorted(os.listdir(folder)) == sorted(
    ['train-tags-index.json', 'train-vocabulary.json', *(f'train-{i:05d}-of-00004.tfrecord{end}'
                                                        for i in range(4) for end in ('', '.npz'))])


def test_tensorflow_reads_the_records(tmp_path):
  folder, _, rows = write_shards(tmp_path, count=8, num_shards=1)
  found = [tf.io.parse_single_example(record, {
    'image/filename': tf.io.FixedLenFeature([], tf.string), 'rethink_tf/hashtags': tf.io.VarLenFeature(tf.int64),
    'image/encoded': tf.io.FixedLenFeature([], tf.string)})
    for record in tf.data.TFRecordDataset(tf.io.gfile.glob(f'{folder}/*.tfrecord'))]
  assert sorted(f['image/filename'].numpy().decode() for f in found) == sorted(name for name, _ in rows)
  assert all(tf.io.decode_image(f['image/encoded']).shape == (40, 40, 3) for f in found)


def test_sorted_file_gives_shuffled_shards(tmp_path, images):
  """Each of 10 shards contains the same number of rows of each half of a file that is sorted by tag."""
  folder, names = images
  rows = [(names[i % 50], [('cat', 'dog')[i >= 1000]]) for i in range(2000)]
  file, vocabulary = prepare(folder, rows)
  convert_hashtags(file, vocabulary, str(tmp_path), num_shards=10)
  for path in tmp_path.glob('*.tfrecord'):
    cats = [decode_record(payload).classes[0] for _, payload in scan(str(path))].count(0)
    assert cats == 100  # 10 divides both halves
  first = [decode_record(next(scan(str(path)))[1]).row for path in sorted(tmp_path.glob('*.tfrecord'))]
  assert sorted(first) == list(range(10)) and first != list(range(10))


def test_same_command_finishes_an_interrupted_conversion(tmp_path, monkeypatch, images):
  folder, names = images
  file, vocabulary = prepare(folder, tagged([(name, 'red') for name in names]))
  convert_hashtags(file, vocabulary, str(tmp_path / 'whole'), num_shards=5)
  whole = {path.name: path.read_bytes() for path in (tmp_path / 'whole').glob('*.tfrecord')}

  read, calls = hashtags_convert.read_file, []

  def stop_at(path, name):
    calls.append(path)
    if len(calls) == 25:
      raise KeyboardInterrupt
    return read(path, name)

  monkeypatch.setattr(hashtags_convert, 'read_file', stop_at)
  out = tmp_path / 'out'
  with pytest.raises(KeyboardInterrupt):
    convert_hashtags(file, vocabulary, str(out), num_shards=5, num_workers=1)
  done = {path.name.removesuffix('.npz') for path in out.glob('*.npz')}
  assert 0 < len(done) < 5
  before = {name: (out / name).stat().st_mtime_ns for name in done}
  assert not StreamIndex.load(str(out / 'train-tags-index.json')).shards
  calls.clear()
  monkeypatch.setattr(hashtags_convert, 'read_file', lambda path, name: calls.append(path) or read(path, name))
  index = convert_hashtags(file, vocabulary, str(out), num_shards=5)
  assert len(calls) == 50 - 10 * len(done)  # images of finished shards are not read again
  assert {name: (out / name).stat().st_mtime_ns for name in done} == before
  assert {path.name: path.read_bytes() for path in out.glob('*.tfrecord')} == whole
  assert index.num_images == 50 and not list(out.glob('*rows*')) and not list(out.glob('*.partial'))
  (out / 'train-00002-of-00005.tfrecord').write_bytes(b'damaged')
  calls.clear()
  convert_hashtags(file, vocabulary, str(out), num_shards=5)
  assert len(calls) == 10 and {path.name: path.read_bytes() for path in out.glob('*.tfrecord')} == whole


def test_unreadable_images_are_counted(tmp_path, images):
  folder, names = images
  (folder / 'broken.png').write_bytes(b'no image')
  rows = [(names[0], ['a']), ('missing.png', ['a']), ('broken.png', ['a', 'b']), ('a\0b', ['a']), ('.', ['a'])]
  file, vocabulary = prepare(folder, rows)
  index = convert_hashtags(file, vocabulary, str(tmp_path), num_shards=1)
  # The fourth one is not a file name: it is counted as an invalid line.
  assert (index.num_images, index.left_out, index.tag_counts) == (1, 3, [1, 0])


def test_unknown_tags_and_too_many_tags(tmp_path, images, caplog):
  folder, names = images
  file, vocabulary = prepare(folder, [(names[0], ['a', 'b', 'c', 'd'])])
  file = write_json_lines(folder / 'other.jsonl', [
    (names[0], ['z']), 'broken', (names[1], ['a', 'z']), (names[2], ['a', 'b', 'c', 'd'])])
  index = convert_hashtags(file, vocabulary, str(tmp_path), num_shards=1, max_tags=3)
  assert index.tag_counts == [2, 1, 1, 0] and index.shards[0].most_tags == 3
  for reason in ('not JSON', 'without a tag of the vocabulary', 'max_tags = 3'):
    assert reason in caplog.text


def test_number_of_shards(tmp_path, images, monkeypatch):
  folder, names = images
  file, vocabulary = prepare(folder, [(name, ['a']) for name in names])
  monkeypatch.setattr(hashtags_convert, 'IMAGES_PER_SHARD', 20)
  assert [s.images for s in convert_hashtags(file, vocabulary, str(tmp_path / 'a')).shards] in (
    [17, 17, 16], [17, 16, 17], [16, 17, 17])
  many = convert_hashtags(file, vocabulary, str(tmp_path / 'b'), num_shards=60)
  assert sum(shard.images for shard in many.shards) == 50 and max(shard.images for shard in many.shards) == 1


def test_errors_are_one_line(tmp_path, images):
  folder, names = images
  file, vocabulary = prepare(folder, [(names[0], ['a'])])
  other = write_json_lines(folder / 'b.jsonl', [(names[0], ['b'])])
  absent = write_json_lines(folder / 'c.jsonl', [('absent.png', ['a'])])
  out = str(tmp_path / 'out')
  convert_hashtags(file, vocabulary, out, num_shards=1)
  for arguments, message in (
      ((file, vocabulary, out, 'train', None, 2), 'belongs to a conversion of another file'),
      ((other, vocabulary, str(tmp_path / 'b')), 'no image has a tag of the vocabulary'),
      ((absent, vocabulary, str(tmp_path / 'c')), 'none of the 1 images can be read'),
      (('none.jsonl', vocabulary, str(tmp_path / 'd')), 'none.jsonl: cannot be read'),
      ((file, vocabulary, out, 'train', None, 0), 'num_shards = 0'),
      ((file, vocabulary, f'{file}/below'), 'cannot be written: .*; choose another --output_dir, or free space')):
    with pytest.raises(UserError, match=message) as error:
      convert_hashtags(*arguments)
    assert '\n' not in str(error.value)


def test_command_line(tmp_path, images):
  folder, names = images
  file, vocabulary = prepare(folder, [(name, ['a']) for name in names])
  vocabulary.save(str(tmp_path / 'v.json'))
  done = call('data.hashtags_convert', f'--json={file}', '--vocabulary=v.json', '--out=out', '--num_shards=2',
              cwd=tmp_path)
  assert done.returncode == 0 and '50 images in 2 shards in out' in done.stdout, done.stderr
  assert len(records(tmp_path / 'out')) == 50


def test_images_outside_the_folder_are_not_read(tmp_path, images, caplog):
  folder, names = images
  inside = tmp_path / 'inside'
  inside.mkdir()
  (tmp_path / 'secret.png').write_bytes((folder / names[0]).read_bytes())
  (inside / 'a.png').write_bytes((folder / names[0]).read_bytes())
  rows = [(name, ['a']) for name in ('a.png', str(inside / 'a.png'), '../secret.png', str(tmp_path / 'secret.png'),
                                     '~/secret.png')]
  file, vocabulary = prepare(inside, rows)
  index = convert_hashtags(file, vocabulary, str(tmp_path / 'out'), num_shards=1)
  assert (index.num_images, index.left_out) == (2, 3)
  assert "'../secret.png': is not in the folder" in caplog.text


def test_shards_of_others_are_not_replaced(tmp_path, images):
  folder, names = images
  file, vocabulary = prepare(folder, [(name, ['cat']) for name in names[:6]])
  (tmp_path / 'train-00000-of-00001.tfrecord').write_bytes(b'of somebody else')
  with pytest.raises(UserError, match='contains shards that this conversion has not written .train-00000-of-00001'):
    convert_hashtags(file, vocabulary, str(tmp_path), num_shards=1)
  assert os.listdir(tmp_path) == ['train-00000-of-00001.tfrecord']
