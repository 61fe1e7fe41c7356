"""Atomic writing of single files; only regular ones are read."""

import os
import pathlib
import re

import pytest
import tensorflow as tf

from rethink_tf import gin_files
from rethink_tf.compare import run_summary
from rethink_tf.data import json_files, tfrecord
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.images import ImageError
from rethink_tf.errors import UserError
from rethink_tf.predict import image_files
from rethink_tf.storage import files
from rethink_tf.storage.run_folder import RunFolder
from tests import small_coco


@pytest.mark.parametrize('root', ['local', 'ram://'])
def test_an_error_while_writing_leaves_the_old_file(tmp_path, root):
  folder = str(tmp_path) if root == 'local' else f'ram://{tmp_path.name}'
  tf.io.gfile.makedirs(folder)
  path = f'{folder}/data.txt'
  for text in ('old', 'new'):
    files.write(path, text)
    with tf.io.gfile.GFile(path) as file:
      assert file.read() == text
  with pytest.raises(KeyboardInterrupt), files.replacing(path) as temporary:
    with tf.io.gfile.GFile(temporary, 'w') as file:
      file.write('incomplete')
    raise KeyboardInterrupt
  with tf.io.gfile.GFile(path) as file:
    assert file.read() == 'new'
  assert tf.io.gfile.listdir(folder) == ['data.txt']


def test_the_folder_of_an_output_is_created(tmp_path):
  files.write_output(str(tmp_path / 'a/b/report.md'), b'text')
  assert (tmp_path / 'a/b/report.md').read_text() == 'text'
  with pytest.raises(UserError, match='report.md/c.md: cannot be written: .*--output') as caught:
    files.write_output(str(tmp_path / 'a/b/report.md/c.md'), 'text')
  assert '\n' not in str(caught.value) and os.listdir(tmp_path / 'a/b') == ['report.md']


def test_only_regular_files_are_opened(tmp_path):
  os.mkfifo(tmp_path / 'fifo')
  os.symlink(tmp_path / 'fifo', tmp_path / 'link')
  for path in (tmp_path / 'fifo', tmp_path / 'link', '/dev/zero'):
    with pytest.raises(tf.errors.FailedPreconditionError, match='not a regular file'):
      files.open_regular(str(path))
  (tmp_path / 'x').write_text('text')
  os.symlink(tmp_path / 'x', tmp_path / 'link to x')
  with files.open_regular(str(tmp_path / 'link to x'), 'r') as file:
    assert file.read() == 'text'
  for path in ('gs://bucket/x', str(tmp_path), str(tmp_path / 'none'), 'a\0b'):
    files.require_regular(path)


def test_no_other_module_opens_files_of_users():
  """What a FIFO or a device would do to a command is decided in one place."""
  allowed = {
    'storage/files.py': 'this place', 'gin_files.py': 'stands on the same floor, and looks itself',
    'distributed/workers.py': 'results of a worker of the same job',
    'export/saved_model.py': 'the file that it has just written'}
  package = pathlib.Path(files.__file__).parents[1]
  for path in sorted(package.rglob('*.py')):
    opened = [found for found in re.findall(r"GFile\((?!path: str).*\) as", path.read_text())
              if not re.search(r"'[wa]b?'\) as$", found)]
    assert not opened or path.relative_to(package).as_posix() in allowed, (path, opened)


@pytest.mark.parametrize('read, message', [
  (json_files.load_json, 'cannot be read: not a regular file'), (lambda path: gin_files.parse([path]), 'not a regular'),
  (lambda path: next(tfrecord.scan(path)), 'not a regular file'),
  (lambda path: image_files.Video(path, ()), 'not a regular file'),
  (lambda path: run_summary.read_settings(RunFolder(os.path.dirname(path), create=False)), 'not a regular file'),
], ids=['json', 'gin', 'TFRecord', 'video.mp4', 'config.gin'])
def test_commands_do_not_wait_for_a_fifo(tmp_path, request, read, message):
  path = str(tmp_path / request.node.callspec.id)
  os.mkfifo(path)
  with pytest.raises((UserError, ImageError, tf.errors.FailedPreconditionError), match=message):
    read(path)


def test_a_fifo_among_the_images_of_a_data_set(tmp_path):
  source = CocoSource(small_coco.write(tmp_path, annotations=[small_coco.annotation(1)]), 'train2017')
  os.remove(tmp_path / 'train2017/000001.jpg')
  os.mkfifo(tmp_path / 'train2017/000001.jpg')
  with pytest.raises(ImageError, match='000001.jpg: cannot be read: not a regular file'):
    source.load(0)
  fifo = str(tmp_path / 'train2017/000001.jpg')
  assert 'not a regular file' in str(image_files.ImageFiles([fifo], ()).skipped)  # of predict
