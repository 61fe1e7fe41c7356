"""The listing of a source: links, names from other machines, names that would lead out of it."""

import os

import pytest

from rethink_tf.data.prepare.source_folder import SourceFolder, split_of
from rethink_tf.errors import UserError


def folder(root, *files, **options):
  """Return a SourceFolder of empty files."""
  for name in files:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b'')
  return SourceFolder(str(root), **options)


def test_names_of_other_machines(tmp_path):
  source = folder(tmp_path, 'train/a.jpg', 'valid/a.jpg', 'valid/deep/b.PNG', 'valid/gr\u00f6\u00dfe.jpg', 'notes.txt')
  assert len(source.images) == 4
  for name, found in [('C:\\data\\valid\\a.jpg', 'valid/a.jpg'), ('/home/me/train/a.jpg', 'train/a.jpg'),
                      ('b.png', 'valid/deep/b.PNG'), ('./x/b.PNG', 'valid/deep/b.PNG'), ('a.jpg', None),
                      ('gro\u0308\u00dfe.jpg', 'valid/gr\u00f6\u00dfe.jpg'), ('no.jpg', None), ('', None), (7, None)]:
    assert source.find_image(name) == found, name
  assert source.find_image('a.jpg', of='train/a.json') == source.find_image('a.jpg', 'train') == 'train/a.jpg'
  assert source.image_of('train/a.json') == 'train/a.jpg' and source.image_of('labels/b.txt') == 'valid/deep/b.PNG'
  assert source.image_of('labels/a.txt') is None


@pytest.mark.parametrize('name, found', [
  ('https://host/x/b%20c.jpg?raw=1', 'x/b c.jpg'), ('/data/local-files/?d=x/b%20c.jpg', 'x/b c.jpg'),
  ('/storage-data/uploaded/?filepath=x%2Fb+c.jpg', 'x/b c.jpg'), ('x/b%20c.jpg', 'x/b c.jpg'),
  ('/data/local-files/?d=x/a.jpg', 'x/a.jpg'),
  ('gr%C3%B6%C3%9Fe.jpg', 'gr\u00f6\u00dfe.jpg'), ('100%25.jpg', '100%25.jpg'), ('http://[', None)])
def test_names_that_are_addresses(tmp_path, name, found):
  source = folder(tmp_path, 'x/b c.jpg', 'x/a.jpg', 'a.jpg', 'gr\u00f6\u00dfe.jpg', '100%25.jpg', '100%.jpg')
  assert source.find_image(name) == found


def test_annotation_files_whose_names_are_those_of_addresses(tmp_path):
  source = folder(tmp_path, 'images/b c.jpg', 'images/d.jpg', 'labels/b%20c.txt', 'labels/b%20c.xml')
  assert source.image_of('labels/b%20c.xml') == 'images/b c.jpg'
  assert source.in_any_case('labels/b c.txt') == 'labels/b%20c.txt' and source.in_any_case('labels/d.txt') is None


def test_an_image_of_another_split_is_not_taken(tmp_path):
  source = folder(tmp_path, 'valid/a.jpg', 'valid/a.xml', 'train/a.xml', 'train/b.json')
  assert source.image_of('train/a.xml') is None and source.image_of('valid/a.xml') == 'valid/a.jpg'
  assert source.find_image('a.jpg', of='train/b.json') is None
  assert source.find_image('../valid/a.jpg', of='train/b.json') == 'valid/a.jpg'  # as the name says
  assert source.find_image('obj_train_data/a.jpg', of='train.txt') is None
  assert source.find_image('a.jpg', of='via.json', split='val') == 'valid/a.jpg'
  assert source.find_image('a.jpg', of='via.json', split='train') is None


def test_an_image_with_a_nearer_annotation_file_is_not_taken(tmp_path):
  source = folder(tmp_path, 'one/a.xml', 'two/a.xml', 'two/a.jpg', 'Annotations/x/b.xml', 'Annotations/y/b.xml',
                  'JPEGImages/y/b.jpg', 'one/c.json')
  assert source.image_of('one/a.xml') is None and source.image_of('two/a.xml') == 'two/a.jpg'
  assert source.find_image('a.jpg', of='one/a.xml') is None
  assert source.image_of('Annotations/x/b.xml') is None
  assert source.image_of('Annotations/y/b.xml') == 'JPEGImages/y/b.jpg'
  assert source.find_image('a.jpg', of='one/c.json') == 'two/a.jpg'  # of another name: it says which


@pytest.mark.parametrize('annotations, images', [
  ('labels/{}/0.json', 'images/{}/0.jpg'), ('{}/labels/0.json', '{}/images/0.jpg'), ('{}/0.json', 'photos/{}/0.jpg')])
@pytest.mark.parametrize('names', [('train', 'val'), ('monday', 'tuesday')])
def test_names_that_repeat_are_told_apart_by_their_folders(tmp_path, annotations, images, names):
  source = folder(tmp_path, *(pattern.format(name) for pattern in (annotations, images) for name in names))
  for name in names:
    assert source.image_of(annotations.format(name)) == images.format(name)
    assert source.find_image('0.jpg', of=annotations.format(name)) == images.format(name)


def test_paths_in_any_case(tmp_path):
  source = folder(tmp_path, 'Labels/a.TXT', 'x/b.txt', 'X/b.txt')
  assert source.in_any_case('labels/a.txt') == 'Labels/a.TXT' and source.in_any_case('X/b.txt') == 'X/b.txt'
  assert source.in_any_case('x/B.txt') is None and source.in_any_case('no') is None
  assert source.size('x/b.txt') == source.size('no') == 0


def test_no_name_leads_out(tmp_path):
  (tmp_path / 'secret.jpg').write_bytes(b'')
  source = folder(tmp_path / 'in', 'a.jpg')
  for name in ('../secret.jpg', str(tmp_path / 'secret.jpg'), '..\\secret.jpg', 'in/../../secret.jpg', '\0', '/'):
    assert source.find_image(name) is None


def test_links(tmp_path):
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'elsewhere/b.jpg').write_bytes(b'')
  folder(tmp_path / 'in', 'x/a.jpg')
  os.symlink(tmp_path / 'in', tmp_path / 'in/x/loop')
  os.symlink(tmp_path / 'in/x/a.jpg', tmp_path / 'in/same.jpg')
  os.symlink('itself.jpg', tmp_path / 'in/itself.jpg')
  os.symlink('nothing.jpg', tmp_path / 'in/broken.jpg')
  assert SourceFolder(str(tmp_path / 'in')).images == ['same.jpg', 'x/a.jpg']
  os.symlink(tmp_path / 'elsewhere', tmp_path / 'in/out')
  with pytest.raises(UserError, match='outside of the folder.*--follow_links'):
    SourceFolder(str(tmp_path / 'in'))
  assert 'out/b.jpg' in SourceFolder(str(tmp_path / 'in'), follow_links=True)


def test_what_is_no_folder(tmp_path):
  (tmp_path / 'export.zip').write_bytes(b'PK')
  for path, message in [('export.zip', 'unpack it'), ('no', 'no such folder')]:
    with pytest.raises(UserError, match=message):
      SourceFolder(str(tmp_path / path))
  with pytest.raises(UserError, match='should be a local folder'):
    SourceFolder('gs://bucket/data')


def test_what_is_no_file_is_not_listed(tmp_path):
  os.mkfifo(tmp_path / 'pipe.jpg')
  assert folder(tmp_path, '.hidden.jpg', '__MACOSX/a.jpg', 'b.jpg').files == ['b.jpg']


def test_shapes_of_json(tmp_path):
  source = folder(tmp_path, 'deep.json', 'cut.json', 'list.json', 'text.json', 'number.json')
  (tmp_path / 'deep.json').write_text('[' * 100_000)
  (tmp_path / 'cut.json').write_text('{"images": [{"id": 1}')
  (tmp_path / 'list.json').write_text('[{"data": {"image": 1}}, 3]')
  (tmp_path / 'number.json').write_text('7')
  shapes = {name: source.json_shape(name) for name in source.files}
  assert [name for name, shape in shapes.items() if shape] == ['list.json']
  assert shapes['list.json'][0].keys == ('data',) and shapes['list.json'][0].first.keys == ('image',)


@pytest.mark.parametrize('path, split', [
  ('train/a.json', 'train'), ('annotations/instances_val2017.json', 'val'), ('obj_train_data/x.txt', 'train'),
  ('valid', 'val'), ('images/test', 'test'), ('via_project_train.json', 'train'),
  ('person_keypoints_Validation.json', 'val'), ('data/train_labels.csv', 'train'), ('my_test_drive/a.json', None),
  ('trains/a.json', None), ('train_val.json', None), ('data.json', None), ('test/train/a.json', 'train')])
def test_splits_by_name(path, split):
  assert split_of(path) == split
