"""The output folder: abandoned work, links, names."""

import json
import os
import socket

import pytest

from rethink_tf.data.prepare.writing import OutputFolder, safe_name
from rethink_tf.errors import UserError


def test_work_of_a_killed_process_is_removed(tmp_path):
  dead, alive = 2 ** 22 + 7, os.getppid()
  for number in (dead, alive):
    (tmp_path / f'.own.{socket.gethostname()}-{number}.partial/own').mkdir(parents=True)
  output = OutputFolder(str(tmp_path / 'own'), str(tmp_path / 'source'), {})
  with output.writing():
    output.finish({})
  left = {name for name in os.listdir(tmp_path) if name != 'own'}
  assert left == {f'.own.{socket.gethostname()}-{alive}.partial'}


def test_work_that_is_not_of_a_process_is_left(tmp_path):
  other = tmp_path / f'.own.{socket.gethostname()}-mine.partial'
  other.mkdir()
  output = OutputFolder(str(tmp_path / 'own'), str(tmp_path / 'source'), {})
  with output.writing():
    output.finish({})
  assert sorted(os.listdir(tmp_path)) == sorted(['own', other.name])


def test_a_spool_returns_what_was_added(tmp_path):
  output = OutputFolder(str(tmp_path / 'own'), str(tmp_path / 'source'), {})
  with output.writing():
    spool = output.spool()
    values = [{'a': [1, 2.5]}, 'gr\u00f6\u00dfe\n', None, [], 7]
    places = [spool.add(value) for value in values]
    assert [spool.get(place) for place in reversed(places)] == values[::-1]
    more = spool.add('after a read')
    assert spool.get(more) == 'after a read' and [spool.get(place) for place in places] == values
    spool.close()
    assert os.listdir(output.work) == ['annotations'] and not os.path.exists(output.scratch('spool'))


def prepare(folder, arguments, names=('a.jpg',)):
  output = OutputFolder(str(folder / 'own'), str(folder / 'source'), arguments)
  with output.writing():
    for name in names:
      with open(output.image_path('train', name), 'w') as file:
        file.write(name)
    output.finish({'note': len(names)})
  return sorted(os.listdir(folder / 'own/train'))


def test_a_result_of_the_same_arguments_is_replaced_and_nothing_else(tmp_path):
  (tmp_path / 'own').mkdir()  # empty
  assert prepare(tmp_path, {'seed': 1}) == ['a.jpg']
  assert prepare(tmp_path, {'seed': 1}, ('sub/b.jpg', 'c.jpg')) == ['c.jpg', 'sub']
  assert json.loads((tmp_path / 'own/prepared.json').read_text())['note'] == 2 and os.listdir(tmp_path) == ['own']

  def refused(words, arguments=None):
    before = sorted(map(str, tmp_path.rglob('*')))
    with pytest.raises(UserError, match=f'{words}.*: choose another --output_dir, or delete it'):
      prepare(tmp_path, arguments or {'seed': 1})
    assert sorted(map(str, tmp_path.rglob('*'))) == before

  refused('was prepared from another source or with other arguments', {'seed': 2})
  (tmp_path / 'own/train/mine.txt').write_text('')
  refused('files have been added or removed')
  (tmp_path / 'own/train/mine.txt').unlink()
  (tmp_path / 'own/prepared.json').write_text('{"arguments": ')
  refused('was not written by this command')
  (tmp_path / 'own/prepared.json').unlink()
  refused('was not written by this command')


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  output = OutputFolder(str(tmp_path / 'file/own'), str(tmp_path / 'source'), {})
  with pytest.raises(UserError, match='cannot be written: Not a directory; choose another --output_dir'):
    with output.writing():
      raise AssertionError('not reached')
  with pytest.raises(UserError, match='should be a local folder'):
    OutputFolder('gs://bucket/own', str(tmp_path), {})


@pytest.mark.parametrize('error', [OSError(18, 'Invalid cross-device link'), PermissionError(1, 'not permitted')])
def test_symbolic_links_where_hard_ones_are_not_possible(tmp_path, monkeypatch, error):
  (tmp_path / 'a.jpg').write_bytes(b'x')
  output = OutputFolder(str(tmp_path / 'own'), str(tmp_path / 'source'), {})

  def refuse(*_):
    raise error
  monkeypatch.setattr(os, 'link', refuse)
  with output.writing():
    assert output.place_image(str(tmp_path / 'a.jpg'), 'train', 'sub/a.jpg', copy=False) == 'symbolic link'
    assert output.place_image(str(tmp_path / 'a.jpg'), 'val', 'a.jpg', copy=True) == 'copy'
    output.finish({})
  assert os.readlink(tmp_path / 'own/train/sub/a.jpg') == str(tmp_path / 'a.jpg')
  assert json.loads((tmp_path / 'own/prepared.json').read_text())['files']['count'] == 2


@pytest.mark.parametrize('name, safe', [
  ('a b/gr\u00f6\u00dfe.jpg', 'a b/gr\u00f6\u00dfe.jpg'), ('a\x1b.jpg', 'a_-'), ('a\udcff.jpg', 'a_-'),
  ('x/a\n.jpg', 'x/a_-')])
def test_names_that_json_and_terminals_can_hold(name, safe):
  found = safe_name(name)
  assert found.startswith(safe) and found.endswith('.jpg') and found.isprintable()
  assert found == name or safe_name(name + '\x1b') != found
