"""Equal files in the training and the held-out images: in all three formats, without reading more than is needed."""

import shutil

import cv2
import numpy as np
import pytest

from rethink_tf.data.conversion import convert
from rethink_tf.data.detection import duplicates
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.duplicates import HELD_OUT, HELD_OUT_TOO, LISTED_TWICE, TRAINING
from rethink_tf.data.detection.records import RecordSource
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.data.detection.voc import VocSource
from tests import small_coco, small_voc
from tests.small_coco import annotation, image


@pytest.fixture
def folder(tmp_path):
  """Training images 1 to 4, of which 4 is 2, and the held-out 1 is 3; 2 is listed twice."""
  images = [image(i) for i in (1, 2, 3, 4)] + [image(9) | {'file_name': '000002.jpg'}]
  small_coco.write(tmp_path, images, [annotation(i, i) for i in (1, 2, 3, 4, 9)])
  small_coco.write(tmp_path, [image(1), image(7)], [annotation(1), annotation(2, 7)], split='val2017')
  rng = np.random.default_rng(0)
  for path in sorted(tmp_path.glob('*2017/*.jpg')):
    cv2.imwrite(str(path), rng.integers(0, 255, (60, 80, 3), np.uint8))
  shutil.copy(tmp_path / 'train2017/000002.jpg', tmp_path / 'train2017/000004.jpg')
  shutil.copy(tmp_path / 'train2017/000003.jpg', tmp_path / 'val2017/000001.jpg')
  return tmp_path


def sources(folder):
  return {TRAINING: CocoSource(str(folder), training=True), HELD_OUT: CocoSource(str(folder), 'val2017')}


def test_pairs_are_named(folder):
  found = duplicates.find(sources(folder))
  assert dict(found[TRAINING].counts) == {HELD_OUT_TOO: 1, LISTED_TWICE: 3} and not found[HELD_OUT].counts
  by_reason = found[TRAINING].by_reason()
  assert by_reason[HELD_OUT_TOO].cases[0].text == '000003.jpg (id 3) = 000001.jpg (id 1)'
  assert '000002.jpg (id 2)' in by_reason[LISTED_TWICE].cases[0].text


def test_records(folder):
  for split in ('train2017', 'val2017'):
    convert(CocoSource(str(folder), split), str(folder / 'records'), split, 2)
  packed = {TRAINING: RecordSource(str(folder / 'records')), HELD_OUT: RecordSource(str(folder / 'records'), 'val2017')}
  assert {split: dict(found.counts) for split, found in duplicates.find(packed).items()} == {
    TRAINING: {HELD_OUT_TOO: 1, LISTED_TWICE: 3}, HELD_OUT: {}}


def test_voc(tmp_path):
  files = {name: small_voc.xml(small_voc.item()) for name in ('1', '2')}
  folder = small_voc.write(tmp_path, {'train': files, 'val': {'2': files['2'], '3': files['1']}})
  for name in '123':
    cv2.imwrite(str(tmp_path / f'JPEGImages/{name}.jpg'), np.full([60, 80, 3], 50 * int(name), np.uint8))
  found = duplicates.find({TRAINING: VocSource(folder, sets=('train',)), HELD_OUT: VocSource(folder, sets=('val',))})
  assert dict(found[TRAINING].counts) == {HELD_OUT_TOO: 1}  # by its path


def test_only_files_of_equal_size_are_read(folder, monkeypatch):
  read = []
  original = CocoSource.read
  monkeypatch.setattr(CocoSource, 'read', lambda self, i: read.append(self.file_names[i]) or original(self, i))
  duplicates.find(sources(folder))
  assert len(read) <= 4
  monkeypatch.setattr(duplicates, '_MAX_FILES', 3)  # of larger data sets only paths are compared
  read.clear()
  found = duplicates.find(sources(folder))
  assert not read and dict(found[TRAINING].counts) == {LISTED_TWICE: 2}


def test_sources_without_files_and_missing_files(folder):
  assert duplicates.find({TRAINING: SyntheticSource(2), HELD_OUT: SyntheticSource(2)})[TRAINING].counts == {}
  held_out = CocoSource(str(folder), 'val2017')
  (folder / 'val2017/000001.jpg').unlink()
  assert duplicates.find({HELD_OUT: held_out})[HELD_OUT].counts == {}


def test_images_that_look_alike(folder):
  """Whatever their size and quality: large JPEG files are decoded at an eighth of theirs."""
  training, held_out = sources(folder).values()
  assert duplicates.near(training, held_out)[:2] == ([('000001.jpg', '000003.jpg')], 0)
  scene = cv2.resize(np.random.default_rng(1).integers(0, 255, (12, 16, 3), np.uint8), (960, 720))
  cv2.imwrite(str(folder / 'train2017/000001.jpg'), scene)
  cv2.imwrite(str(folder / 'val2017/000007.jpg'), cv2.resize(scene, (80, 60)), [cv2.IMWRITE_JPEG_QUALITY, 60])
  (folder / 'val2017/000001.jpg').write_bytes(b'damaged')
  assert duplicates.near(training, held_out)[:2] == ([('000007.jpg', '000001.jpg')], 0)
  shutil.copy(folder / 'val2017/000007.jpg', folder / 'val2017/000001.jpg')
  assert duplicates.near(training, held_out).copies == 2
  assert duplicates.near(SyntheticSource(2), held_out)[:2] == ([], 0)


def test_of_many_images_neighbours_by_name_are_looked_at(tmp_path, monkeypatch):
  """Every fourth frame of a video is held out: each is like the frames beside it, and like no other."""
  rng = np.random.default_rng(0)
  frames = range(1, 41)
  for split, own in (('train2017', [i for i in frames if i % 4]), ('val2017', [i for i in frames if i % 4 == 0])):
    small_coco.write(tmp_path, [image(i) for i in own], [annotation(i, i) for i in own], split=split)
  scenes = [cv2.resize(rng.integers(0, 255, (6, 8, 3), np.uint8), (80, 60)) for _ in range(10)]
  for path in tmp_path.glob('*2017/*.jpg'):
    cv2.imwrite(str(path), scenes[(int(path.stem) - 1) // 4])
  training, held_out = sources(tmp_path).values()
  assert len(duplicates.near(training, held_out).trained) == 10
  assert not duplicates.near(training, held_out).sampled(training, held_out)
  monkeypatch.setattr(duplicates, '_MAX_DECODED', 16)
  monkeypatch.setattr(duplicates, '_BLOCK', 4)
  found = duplicates.near(training, held_out)
  assert found.held_out + found.training == 16 and found.sampled(training, held_out)
  assert len(found.trained) >= 2, 'both held-out frames beside which others were looked at'
