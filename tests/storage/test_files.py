"""Atomic writing of single files; only regular ones are read."""

import csv
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
from rethink_tf.inspect_run import results
from rethink_tf.predict import image_files
from rethink_tf.storage import files
from rethink_tf.storage.checkpoints import RunCheckpoints
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.study import execution
from rethink_tf.weights import formats
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


@pytest.fixture
def small_files():
  """A function that limits the size of files, as a full disk would."""
  resource = pytest.importorskip('resource')  # not on Windows
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_of_several_outputs_all_are_written_or_none(tmp_path, small_files):
  files.write_outputs(f'{tmp_path}/out', {'a.svg': b'old', 'b.html': b'old', 'c.png': b'old'})
  small_files(1000)
  with pytest.raises(UserError, match='--output') as caught:
    files.write_outputs(f'{tmp_path}/out', {'a.svg': b'new', 'b.html': b'x' * 2000, 'c.png': None})
  small_files(3000)
  assert str(caught.value) == (f'{tmp_path}/out/b.html: cannot be written: File too large; choose another place with '
                               '--output, or free space'), 'without the name of a temporary file'
  assert {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()} == dict.fromkeys(
    ('a.svg', 'b.html', 'c.png'), b'old')
  files.write_outputs(f'{tmp_path}/out', {'a.svg': b'new', 'b.html': b'x' * 2000, 'c.png': None})
  assert {path.name: path.stat().st_size for path in (tmp_path / 'out').iterdir()} == {'a.svg': 3, 'b.html': 2000}


def test_an_output_that_there_is_none_of_this_time(tmp_path):
  files.write_output(f'{tmp_path}/a.png', b'x')
  for _ in range(2):
    files.write_output(f'{tmp_path}/a.png', None)
    assert not list(tmp_path.iterdir())
  with pytest.raises(UserError, match='/no/a.png: cannot be written.*--output'):
    (tmp_path / 'no/a.png').mkdir(parents=True)
    files.write_output(f'{tmp_path}/no/a.png', None)


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


def test_cells_are_no_formulas():
  """A spreadsheet runs what begins with =, +, - or @; numbers and the heads of our own columns stay."""
  rows = [['run', '+ pre-training'], ['=1+1', '-'], ["@SUM(1)", '-1.5'], ["-2+3+cmd|' /C calc'!A0", '+0.25'],
          ['+1+1', 'nan'], ['a\x1b[2Jb\nc', 'x,"y"'], ['\t=1', 7]]
  assert list(csv.reader(files.as_csv(rows).decode().splitlines())) == [
    ['run', '+ pre-training'], ["'=1+1", '-'], ["'@SUM(1)", '-1.5'], ["'-2+3+cmd|' /C calc'!A0", '+0.25'],
    ["'+1+1", 'nan'], ['a\\x1b[2Jb\\nc', 'x,"y"'], ['\\t=1', '7']]


def test_links_in_a_run_folder_are_refused(tmp_path):
  """A downloaded folder may hold links to files of this machine; nothing is written where they point."""
  outside = tmp_path / 'outside'
  outside.mkdir()
  (outside / 'notes').write_text('mine')
  for name, target in (('metrics.jsonl', outside / 'notes'), ('eval', outside), ('.writer', tmp_path / 'none')):
    folder = tmp_path / f'run of {name}'
    (folder / 'checkpoints').mkdir(parents=True)
    os.symlink(target, folder / name)
    with pytest.raises(UserError, match=f'{name}: is a symbolic link to .*--model_dir'):
      RunFolder(str(folder))
    assert sorted(os.listdir(folder)) == sorted(['checkpoints', name])
    reading = RunFolder(str(folder), create=False)
    reading.append_metrics({'kind': 'eval', 'step': 1})
    with pytest.raises(UserError, match='is a symbolic link'):
      results.newest_results(str(folder))
  assert (outside / 'notes').read_text() == 'mine' and os.listdir(outside) == ['notes']
  os.symlink(tmp_path / 'run of eval/checkpoints', tmp_path / 'a link to a run')
  RunFolder(str(tmp_path / 'a link to a run'))  # of the user


@pytest.mark.parametrize('name, of_pattern', [('lr=[0.1]', '['), ('what?', '?'), ('a*b', '*')])
def test_a_path_that_tensorflow_takes_for_a_pattern_is_refused(tmp_path, name, of_pattern):
  """Its checkpoints would be written and never be found: they are not damaged."""
  trained = {'detector': tf.Module()}
  RunCheckpoints(RunFolder(str(tmp_path / 'run'))).save(1, trained, {})
  (tmp_path / 'run').rename(tmp_path / name)
  run = str(tmp_path / name)
  for action in (lambda: RunFolder(run), lambda: RunFolder(f'{run}/another'), lambda: execution.Runner(f'{run}/study'),
                 lambda: RunCheckpoints(RunFolder(run, create=False)).restore(trained), lambda: formats.read(run)):
    with pytest.raises(UserError, match=re.escape(f'TensorFlow finds no checkpoint in a path with {of_pattern},')):
      action()
  assert os.listdir(run) == ['checkpoints']


def test_the_temporary_file_is_no_link(tmp_path):
  (tmp_path / 'notes').write_text('mine')
  os.symlink(tmp_path / 'notes', tmp_path / f'.x.{os.getpid()}.partial')
  files.write(str(tmp_path / 'x'), 'new')
  assert (tmp_path / 'notes').read_text() == 'mine' and (tmp_path / 'x').read_text() == 'new'
