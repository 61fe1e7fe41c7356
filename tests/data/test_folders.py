"""File names: paths outside the folder are rejected, files are found in either form of Unicode."""

import os

import pytest

from rethink_tf.data.folders import find_files, inside, list_names
from rethink_tf.errors import UserError


@pytest.mark.parametrize('name', [
  '../x.jpg', 'a/../../x.jpg', '/etc/passwd', '/data/images2/x.jpg', '..', '.', '', 'a\0b', 'gs://b/x.jpg',
  'http://a/x.jpg', '/data/images', '/data/images/../x.jpg'])
@pytest.mark.parametrize('folder', ['/data/images', '/data/images/', 'gs://bucket/images'])
def test_paths_outside_the_folder(folder, name):
  assert inside(folder, name) is None


@pytest.mark.parametrize('folder, name, path', [
  ('/data', 'x.jpg', '/data/x.jpg'), ('/data', 'a/./b/../x.jpg', '/data/a/x.jpg'),
  ('/data/', '~root/x', '/data/~root/x'), ('/data', '/data/a/x.jpg', '/data/a/x.jpg'),
  ('/', '/data/x.jpg', '/data/x.jpg'), ('/data', '..x.jpg', '/data/..x.jpg'),
  ('gs://b/p', 'a/x.jpg', 'gs://b/p/a/x.jpg'), ('gs://b/p/', 'gs://b/p/x.jpg', 'gs://b/p/x.jpg')])
def test_paths_inside_the_folder(folder, name, path):
  assert inside(folder, name) == path


def test_relative_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert inside('images', 'x.jpg') == str(tmp_path / 'images/x.jpg') and inside('images', '../x.jpg') is None


def test_name_that_is_not_utf_8_is_reported(tmp_path):
  (tmp_path / 'a.jpg').touch()
  assert list_names(str(tmp_path)) == ['a.jpg']
  open(os.path.join(os.fsencode(tmp_path), b'caf\xe9.jpg'), 'w').close()
  with pytest.raises(UserError, match=r'name of a file in it is not UTF-8 .*caf\\xe9') as error:
    list_names(str(tmp_path))
  assert '\n' not in str(error.value)


def test_files_are_found_as_they_are_on_the_disk(tmp_path):
  """In folders, by listing; accents decomposed, as macOS stores them, or composed."""
  (tmp_path / 'a').mkdir()
  composed, decomposed = 'caf\u00e9.jpg', 'cafe\u0301.jpg'
  for name in (f'a/{decomposed}', 'plain.jpg', composed):
    (tmp_path / name).touch()
  assert find_files(str(tmp_path), [f'a/{composed}', 'plain.jpg', 'gone.jpg', 'b/plain.jpg', decomposed, composed]) == [
    f'a/{decomposed}', 'plain.jpg', None, None, composed, composed]
