"""Shards are those of one conversion: each number once, none beyond the total, none empty without a word."""

import shutil

import pytest

from rethink_tf.data.conversion import convert
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.shards import find_shards, length_of
from rethink_tf.errors import UserError
from tests.in_process import call
from tests.small_coco import annotation, image, write

SHARD = 'train2017-{:05d}-of-00003.tfrecord'


def converted(folder):
  """Write 6 images to 3 shards -> the folder of the shards."""
  source = CocoSource(write(folder / 'coco', [image(i) for i in range(1, 7)],
                            [annotation(i, image_id=i) for i in range(1, 7)]))
  convert(source, str(folder / 'records'), 'train2017', 3)
  return folder / 'records'


@pytest.mark.parametrize('keep', [True, False], ids=['one too many', 'in place of a missing one'])
def test_a_number_beyond_the_total(tmp_path, keep):
  folder = converted(tmp_path)
  shutil.copy(folder / SHARD.format(1), folder / SHARD.format(7))
  if not keep:
    (folder / SHARD.format(1)).unlink()
  with pytest.raises(UserError, match='train2017-00007-of-00003.tfrecord: 3 shards have numbers from 00000 to 00002'):
    find_shards(str(folder), 'train2017')


def test_missing_shards_are_named(tmp_path):
  folder = converted(tmp_path)
  (folder / SHARD.format(1)).unlink()
  with pytest.raises(UserError, match='1 of the 3 shards of train2017 are missing, e.g. 00001; if'):
    find_shards(str(folder), 'train2017')


def test_shards_are_in_the_order_of_their_numbers(tmp_path):
  folder = converted(tmp_path)
  assert find_shards(str(folder), 'train2017') == [str(folder / SHARD.format(i)) for i in range(3)]


def test_a_folder_in_place_of_a_shard(tmp_path):
  (tmp_path / SHARD.format(0)).mkdir()
  with pytest.raises(UserError, match='00000-of-00003.tfrecord: cannot be read: it is a folder'):
    length_of(str(tmp_path / SHARD.format(0)))


def test_a_conversion_replaces_no_shards_of_others(tmp_path):
  """Those of another conversion whose index is gone, or of another number, stay as they are."""
  folder = converted(tmp_path)
  (folder / 'train2017-index.json').unlink()
  (folder / SHARD.format(0)).write_bytes(b'of somebody else')
  for shards in (3, 2):
    done = call('data.convert', f'--data_dir={tmp_path}/coco', f'--output_dir={folder}', f'--num_shards={shards}')
    assert done.returncode == 1 and 'contains shards that this conversion has not written (train2017-00000-of-00003.' \
      'tfrecord and 2 more): choose another folder, or delete them' in done.stderr
  assert (folder / SHARD.format(0)).read_bytes() == b'of somebody else'
  assert not list(folder.glob('*-of-00002*'))
