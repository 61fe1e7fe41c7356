"""The format is detected from the content; errors of other files are one line."""

import os
import pickle
import tarfile

import numpy as np
import pytest

from rethink_tf.downloads import cache
from rethink_tf.downloads.remote_file import RemoteFile
from rethink_tf.errors import UserError
from rethink_tf.weights import formats
from tests.downloads.server import serving
from tests.weights import files, reference


class Attack:
  def __reduce__(self):
    return os.system, ('touch attacked',)


def refused(path, message):
  with pytest.raises(UserError, match=message) as error:
    formats.read(str(path))
  assert '\n' not in str(error.value) and str(path) in str(error.value)


def test_a_choice_of_what_holds_one_network_is_refused(tmp_path):
  path = tmp_path / 'a.pkl'
  path.write_bytes(pickle.dumps({'blobs': {'conv1_w': np.zeros([64, 3, 7, 7], 'f')}}))
  with pytest.raises(UserError, match="a file of Detectron holds one network.*out PretrainedWeights.prefix = 'x.'"):
    formats.read(str(path), formats.Choice(prefix='x.'))


@pytest.mark.parametrize('content, message', [
  (b'', 'is empty'), (b'<!DOCTYPE html><html>', 'web page'), (b'\x00' * 2000, 'unknown format'),
  (b'\x93NUMPY' + bytes(100), 'unknown format'), (b'PK\x03\x04' + bytes(100), 'not a complete zip'),
  (b'\x89HDF\r\n\x1a\n' + bytes(100), 'not a complete HDF5'), (b'\x80\x02', 'not a complete pickle'),
  (pickle.dumps([1, 2]), 'no dictionary of arrays'), (pickle.dumps({}), 'no dictionary of arrays'),
  (pickle.dumps({'model': {'w': np.zeros(3)}}), 'belong to no known network'),
  (pickle.dumps({'model': {'stem.conv1.weight': 'text'}}), 'not an array of numbers'),
  (pickle.dumps({'blobs': [1]}), 'not a dictionary'), (pickle.dumps({'conv1_w': {}}), 'not an array of numbers'),
  (pickle.dumps({'conv1_w': np.zeros([64, 3, 7, 7])}), 'no ResNet backbone'),
  (pickle.dumps({'conv1_w': np.zeros(3), 'cls_score_w': np.float32(3), 'bbox_pred_b': np.float32(3)}), 'no ResNet'),
  (pickle.dumps({'model': {'\x1b[2J': np.zeros(3)}}), 'not the name of an array'),
  (pickle.dumps({'model': {'stem.conv1.weight': np.zeros(3), 'a\nb': np.zeros(3)}}), 'not the name of an array'),
  (pickle.dumps({'model': {'res2.' + '9' * 5000 + '.x': np.zeros(3)}}), 'not the name of an array'),
  (pickle.dumps({'model': {7: np.zeros(3)}}), '7 is not the name of an array'),
  (pickle.dumps({'model': {f'a{i}': 0 for i in range(20_001)}}), '20,001 arrays are too many'),
  (pickle.dumps({'model': {'a' * 100_000: np.zeros(3)}}), 'aaa.*… is not the name of an array'),
  (pickle.dumps({'blobs': {'conv1_w': np.zeros(3), 'x\n_momentum': np.zeros(3)}}), 'not the name of an array'),
  (pickle.dumps({'w': Attack()}), r'refers to .*system'),
])
def test_files_that_are_not_weight_files(tmp_path, monkeypatch, content, message):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / 'weights.bin'
  path.write_bytes(content)
  refused(path, message)
  assert not (tmp_path / 'attacked').exists()


def test_a_download_that_is_no_weight_file_says_how_to_repeat_it(tmp_path):
  """Without a checksum of its publisher it is taken for the file: the same command would find it again."""
  (tmp_path / 'page').write_bytes(b'\0' * 2000)
  with serving(b'\0' * 2000) as server:
    path = cache.fetch(RemoteFile(server.url()), str(tmp_path / 'cache'), 'some_name')
  refused(path, r'unknown format.* was downloaded on 2\S+, and is used as long as it is there: delete it and '
                r'\S+/file.bin.download.json\)$')
  refused(tmp_path / 'page', 'of this package$')


@pytest.mark.parametrize('name', ['weights.pkl', 'weights.index'])
def test_only_regular_files_are_read(tmp_path, name):
  """Opening a FIFO would wait for a writer, and a device may never end."""
  os.mkfifo(tmp_path / name)
  refused(tmp_path / name, 'not a regular file')
  with pytest.raises(UserError, match='/dev/zero: cannot be read .not a regular file'):
    formats.read('/dev/zero')


def test_missing_files_and_the_oldest_format_of_torch(tmp_path):
  refused(tmp_path / 'none.pth', 'no such file')
  (tmp_path / 'storages').write_bytes(b'x')
  with tarfile.open(tmp_path / 'old.pth', 'w', format=tarfile.USTAR_FORMAT) as archive:
    archive.add(tmp_path / 'storages', 'storages')
  refused(tmp_path / 'old.pth', 'tar container')


def test_basic_blocks_are_refused(tmp_path):
  arrays = {name: array for name, array in files.torchvision_names(reference.random_arrays('bn')).items()
            if 'conv3' not in name and 'bn3' not in name}
  path = tmp_path / 'resnet18.pth'
  files.legacy(path, *files.plain(arrays, True))
  refused(path, 'basic blocks')


@pytest.mark.parametrize('name', ['backbone.bottom_up.stem.conv1.weight', 'stem.conv1.weight'])
@pytest.mark.parametrize('container', ['pkl', 'pth'])
def test_detectron2_in_every_container(tmp_path, name, container):
  prefix = name.removesuffix('stem.conv1.weight')
  arrays = {prefix + key: array for key, array in reference.random_arrays('bn').items() if 'linear' not in key}
  path = tmp_path / 'x'
  if container == 'pkl':
    path.write_bytes(pickle.dumps({'model': arrays, '__author__': 'torchvision', 'matching_heuristics': True}))
  else:
    files.zipped(path, *files.plain(arrays, False, 'model'))
  contents = formats.read(str(path))
  assert contents.kind == 'backbone' and contents.norm == 'bn' and contents.format == \
    ('Detectron2 .pkl' if container == 'pkl' else 'Detectron2 .pth (zip)')
  assert set(contents.arrays) == {key for key in reference.random_arrays('bn') if 'linear' not in key}
  assert contents.channels == ('rgb' if container == 'pkl' else None)


def truncated(path, content):
  for length in (1, 9, 40, len(content) // 3, len(content) - 7):
    path.write_bytes(content[:length])
    with pytest.raises(UserError) as error:
      formats.read(str(path))
    assert '\n' not in str(error.value), length


def test_truncated_pickles_and_keras_files(tmp_path):
  arrays = reference.random_arrays('folded')
  path = tmp_path / 'x'
  truncated(path, files.python_2_pickle(files.detectron_names(arrays, 'bn')))
  arrays = reference.random_arrays('bn')
  files.keras(tmp_path / 'k.h5', arrays, {name.removesuffix('.weight'): np.zeros(len(array), 'f')
                                          for name, array in arrays.items() if array.ndim == 4})
  truncated(path, (tmp_path / 'k.h5').read_bytes())
