"""Conversion of COCO json to TFRecords: sharding, interruption, options, and the command line."""

import pathlib

import pytest
import tensorflow as tf
from absl import logging

from rethink_tf.data.conversion import convert
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.records import RecordSource
from rethink_tf.errors import UserError
from tests.in_process import call
from tests.small_coco import annotation, image, write


@pytest.fixture(autouse=True)
def see_logs(caplog):
  logging.set_verbosity(logging.INFO)
  caplog.set_level('INFO', logger='absl')


@pytest.fixture
def source(tmp_path):
  images = [image(i) for i in range(1, 11)]
  return CocoSource(write(tmp_path / 'coco', images, [annotation(i, image_id=i) for i in range(1, 11)]))


def files(folder):
  return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


def test_shards_are_named_and_filled_evenly(source, tmp_path):
  index = convert(source, str(tmp_path / 'out'), 'mine', num_shards=4)
  assert sorted(files(tmp_path / 'out')) == ['mine-00000-of-00004.tfrecord', 'mine-00001-of-00004.tfrecord',
                                             'mine-00002-of-00004.tfrecord', 'mine-00003-of-00004.tfrecord',
                                             'mine-categories.json', 'mine-index.json']
  assert [len(shard.offsets) for shard in index.shards] == [3, 3, 2, 2]
  assert index.complete
  assert RecordSource(str(tmp_path / 'out'), 'mine').image_ids.tolist() == list(range(1, 11))


def test_more_shards_than_images(source, tmp_path):
  assert len(convert(source, str(tmp_path / 'out'), 'mine', num_shards=50).shards) == 10


class Interruption(Exception):
  """Simulates a kill."""


@pytest.mark.parametrize('stop_at', [0, 4, 9])
def test_interrupted_conversion_is_finished_by_the_same_call(source, tmp_path, monkeypatch, caplog, stop_at):
  convert(source, str(tmp_path / 'whole'), 'mine', num_shards=5, num_workers=1)
  out, read = tmp_path / 'out', CocoSource.read

  def stopping_read(self, i):
    if i == stop_at:
      raise Interruption
    return read(self, i)

  monkeypatch.setattr(CocoSource, 'read', stopping_read)
  with pytest.raises(Interruption):
    convert(source, str(out), 'mine', num_shards=5, num_workers=1)
  finished = {path.name: path.stat().st_mtime_ns for path in out.glob('*.tfrecord')}
  assert stop_at // 2 <= len(finished) < 5  # the worker may finish another shard before it is stopped

  wanted = []
  monkeypatch.setattr(CocoSource, 'read', lambda self, i: wanted.append(i) or read(self, i))
  convert(source, str(out), 'mine', num_shards=5, num_workers=1)
  todo = [k for k in range(5) if f'mine-0000{k}-of-00005.tfrecord' not in finished]
  assert stop_at // 2 in todo and wanted == [i for k in todo for i in (2 * k, 2 * k + 1)]  # only the unfinished ones
  assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
  assert files(out) == files(tmp_path / 'whole')
  if finished:
    assert any(f'{len(finished)} of 5 shards exist already' in r.getMessage() for r in caplog.records)


def test_finished_conversion_is_not_repeated(source, tmp_path, monkeypatch):
  convert(source, str(tmp_path / 'out'), 'mine', num_shards=3)
  before = files(tmp_path / 'out')
  monkeypatch.setattr(CocoSource, 'read', lambda self, i: pytest.fail('read again'))
  convert(source, str(tmp_path / 'out'), 'mine', num_shards=3)
  assert files(tmp_path / 'out') == before


def test_missing_or_truncated_shards_are_rewritten(source, tmp_path):
  convert(source, str(tmp_path / 'out'), 'mine', num_shards=3)
  before = files(tmp_path / 'out')
  (tmp_path / 'out/mine-00001-of-00003.tfrecord').unlink()
  (tmp_path / 'out/mine-00002-of-00003.tfrecord').write_bytes(b'half')
  convert(source, str(tmp_path / 'out'), 'mine', num_shards=3)
  assert files(tmp_path / 'out') == before


def test_result_does_not_depend_on_the_number_of_workers(source, tmp_path):
  convert(source, str(tmp_path / 'one'), 'mine', num_shards=4, num_workers=1)
  convert(source, str(tmp_path / 'many'), 'mine', num_shards=4, num_workers=8)
  assert files(tmp_path / 'one') == files(tmp_path / 'many')


@pytest.mark.parametrize('options', [{'num_shards': 2}, {'png_masks': False}])
def test_other_options_are_rejected(source, tmp_path, options):
  convert(source, str(tmp_path / 'out'), 'mine', num_shards=3)
  with pytest.raises(UserError, match='other options'):
    convert(source, str(tmp_path / 'out'), 'mine', **{'num_shards': 3} | options)


def test_other_annotations_are_rejected(source, tmp_path):
  convert(source, str(tmp_path / 'out'), 'mine', num_shards=3)
  moved = CocoSource(write(tmp_path / 'moved', [image(i) for i in range(1, 11)], [
    annotation(i, image_id=i, segmentation=[[10, 10, 30, 10, 30, 39, 10, 40]]) for i in range(1, 11)]))
  with pytest.raises(UserError, match='other annotations'):
    convert(moved, str(tmp_path / 'out'), 'mine', num_shards=3)


def test_missing_and_unreadable_images_are_dropped(source, tmp_path, caplog):
  (tmp_path / 'coco/train2017/000003.jpg').unlink()
  (tmp_path / 'coco/train2017/000007.jpg').write_bytes(b'no image')
  index = convert(source, str(tmp_path / 'out'), 'mine', num_shards=3)
  assert len(index.left_out) == 2
  assert any('2 missing or unreadable images were dropped' in r.getMessage() and '000003.jpg' in r.getMessage()
             for r in caplog.records)
  caplog.clear()
  records = RecordSource(str(tmp_path / 'out'), 'mine')
  assert records.image_ids.tolist() == [1, 2, 4, 5, 6, 8, 9, 10]
  assert any('2 images are missing' in record.getMessage() for record in caplog.records)


def test_remote_paths_go_through_gfile(source):
  convert(source, 'ram://records/deep', 'mine', num_shards=2)
  records = RecordSource('ram://records/deep', 'mine')
  assert (records.load(9).image == source.load(9).image).all()
  assert tf.io.gfile.glob('ram://records/deep/*.partial') == []


def test_output_that_cannot_be_written(source, tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='cannot be written: .*; choose another --output_dir, or free space'):
    convert(source, str(tmp_path / 'file'), 'mine')


def test_number_of_shards_out_of_range(source, tmp_path):
  with pytest.raises(UserError, match='num_shards = 0'):
    convert(source, str(tmp_path), 'mine', num_shards=0)


def run(*flags):
  return call('data.convert', *flags)


def test_command_line(source, tmp_path):
  done = run(f'--data_dir={tmp_path}/coco', f'--output_dir={tmp_path}/out', '--num_shards=3')
  assert done.returncode == 0, done.stderr
  assert '10 images in 3 shards' in done.stdout and 'with train2017 and val2017 there, train with ' in done.stdout
  assert f'--gin_file=gin_configs/data/own.gin --data_dir={tmp_path}/out' in done.stdout
  convert(source, str(tmp_path / 'here'), 'train2017', num_shards=3)
  assert files(tmp_path / 'out') == files(tmp_path / 'here')  # byte by byte, though in another process


def test_command_line_error_is_one_line(tmp_path):
  done = run(f'--data_dir={tmp_path}', f'--output_dir={tmp_path}/out')
  assert done.returncode == 1
  assert done.stderr.count('\n') == 1 and done.stderr.startswith('error: ') and 'no such annotation file' in done.stderr
