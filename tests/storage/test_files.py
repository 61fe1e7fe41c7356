"""Atomic writing of single files."""

import os

import pytest
import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.storage import files


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
