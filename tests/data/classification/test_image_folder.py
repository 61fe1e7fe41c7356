"""ImageFolder: class folders and ImageNet's layouts, lists of labels, damaged data sets."""

import numpy as np
import pytest

from rethink_tf.data.classification.image_folder import ImageFolder, stable_ids
from rethink_tf.data.images import ImageError
from rethink_tf.errors import UserError
from tests.small_classes import COLOURS, noisy_image, write_folders, write_image


def names_of(source):
  return {name: source.categories[k].name for name, k in zip(source.file_names, source.classes[:, 0], strict=True)}


def test_class_folders(tmp_path):
  source = ImageFolder(str(write_folders(tmp_path)), 'train', training=True)
  assert [category.name for category in source.categories] == ['blue', 'green', 'red'] and source.num_classes == 3
  assert names_of(source) == {f'train/{name}/{n}.jpg': name for name in COLOURS for n in range(4)}
  assert source.classes.dtype == np.int32 and source.classes.shape == (12, 1)
  assert source.image_ids.tolist() == list(range(1, 13)) and source.num_instances.tolist() == [1] * 12
  for i in range(12):  # each image has its own label
    expected = COLOURS[source.categories[source.classes[i, 0]].name]
    assert np.abs(source.load(i).mean((0, 1)) - expected).max() < 20


def test_images_at_any_depth_and_other_files(tmp_path):
  write_folders(tmp_path, per_class=1)
  write_image(tmp_path / 'train/red/more/deep/b.PNG', noisy_image(COLOURS['red'], 1))
  (tmp_path / 'train/green/0.jpg').rename(tmp_path / 'train/green/0.JFIF')  # as browsers on Windows save JPEG files
  for junk in ('train/red/notes.txt', 'train/.DS_Store', 'train/red/.hidden.jpg', 'train/.cache/0.jpg',
               'train/__MACOSX/0.jpg', 'README.md'):
    (tmp_path / junk).parent.mkdir(exist_ok=True)
    (tmp_path / junk).write_text('no image')
  write_image(tmp_path / 'train/loose.jpg', noisy_image(COLOURS['red'], 2))
  source = ImageFolder(str(tmp_path), 'train')
  assert source.file_names == ['train/blue/0.jpg', 'train/green/0.JFIF', 'train/red/0.jpg',
                               'train/red/more/deep/b.PNG']
  assert source.load(1).shape[2] == 3


def test_validation_has_the_class_numbers_of_training(tmp_path, see_logs, caplog):
  write_folders(tmp_path, splits=('train',))
  write_folders(tmp_path, splits=('val',), classes=('red',))
  (tmp_path / 'train/yellow').mkdir()  # an empty class folder is a class, and is logged
  source = ImageFolder(str(tmp_path), 'val')
  assert [c.name for c in source.categories] == ['blue', 'green', 'red', 'yellow']
  assert source.classes[:, 0].tolist() == [2] * 4
  ImageFolder(str(tmp_path), 'train', training=True)
  assert '1 of 4 classes have no images here: yellow' in caplog.text


LISTS = {
  'val.txt': 'b_1.JPEG 2\nb_0.JPEG 0\nsub/b_2.JPEG 1\n',
  'LOC_val_solution.csv': 'ImageId,PredictionString\nb_1,red 3 4 50 40\nb_0,blue 1 1 9 9 blue 2 2 8 8\n'
                          'b_2,green 1 1 9 9\n',
  'imagenet_2012_validation_synset_labels.txt': 'blue\nred\ngreen\n',
  'own.txt': 'b_0.JPEG blue\n\nb_1.JPEG red\nb_2.JPEG green\n',
}


@pytest.mark.parametrize('list_name', sorted(LISTS))
def test_flat_folder_with_a_list(tmp_path, list_name):
  write_folders(tmp_path, splits=('train',))
  for n, name in enumerate(('blue', 'red', 'green')):
    path = tmp_path / f'val/b_{n}.JPEG'
    write_image(path, noisy_image(COLOURS[name], n))
  (tmp_path / list_name).write_text(LISTS[list_name])
  source = ImageFolder(str(tmp_path), 'val', labels_file='own.txt' if list_name == 'own.txt' else None)
  assert names_of(source) == {'val/b_0.JPEG': 'blue', 'val/b_1.JPEG': 'red', 'val/b_2.JPEG': 'green'}
  assert source.load(1).mean((0, 1)).argmax() == 0


def numeric_folders(tmp_path, names, text):
  """Write class folders, a flat folder of three images and a list; return the names of the classes by image."""
  for n, name in enumerate(names):
    write_image(tmp_path / f'train/{name}/0.jpg', noisy_image(COLOURS['red'], n))
  for n in range(3):
    write_image(tmp_path / f'val/{n}.jpg', noisy_image(COLOURS['red'], n))
  (tmp_path / 'val.txt').write_text(text)
  return list(names_of(ImageFolder(str(tmp_path), 'val')).values())


@pytest.mark.parametrize('names, text, expected', [
  ('1 2 10', '0.jpg 0\n1.jpg 1\n2.jpg 2\n', '1 10 2'),  # numbers: no folder is named 0
  ('1 2 10', '0.jpg 1\n1.jpg 10\n2.jpg 2\n', '1 10 2'),  # folders: there is no class 10
  ('1 2 10', '1\n2\n1\n', '1 2 1'),
  ('0 1 2', '0.jpg 2\n1.jpg 1\n2.jpg 0\n', '2 1 0'),  # both, which agree
  ('0 1 cat', '0.jpg cat\n1.jpg 1\n2.jpg 0\n', 'cat 1 0'),
])
def test_folders_named_by_numbers(tmp_path, names, text, expected):
  assert numeric_folders(tmp_path, names.split(), text) == expected.split()


@pytest.mark.parametrize('names, text, message', [
  ('1 2 10', '0.jpg 1\n1.jpg 2\n2.jpg 1\n', 'val.txt:1: 1 is a class folder and also the number, from 0, of .10.: '),
  ('1 2 10', '0.jpg 10\n1.jpg 2\n2.jpg 0\n', 'val.txt: line 1 has the class folder .10., line 3 the class number 0: '),
  ('a b c', '0.jpg 0\n1.jpg b\n2.jpg b\n', 'val.txt: line 2 has the class folder .b., line 1 the class number 0: '),
])
def test_folders_or_numbers_throughout(tmp_path, names, text, message):
  with pytest.raises(UserError, match=f'{message}.*write class folders') as error:
    numeric_folders(tmp_path, names.split(), text)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('text, message', [
  ('b_0.JPEG 3\n', r':1: .* from 0 to 2'), ('b_0.JPEG mauve\n', 'mauve'), ('490\n', 'lists 1 labels for 2 images'),
  ('1\n2\n', r'own.txt:1: .*'), ('', 'names none of the 2 images'), ('other.JPEG 1\n', 'names none of the 2'),
  ('b_0.JPEG red\nb_1.JPEG red\nx/b_0.JPEG blue\n', r":3: b_0.JPEG has the class 'blue' here and 'red' in a"),
  ('b_0.JPEG\nb_1.JPEG red\n', r':1: should be an image and its class'),
])
def test_invalid_list_is_one_line(tmp_path, text, message):
  write_folders(tmp_path, splits=('train',), per_class=1)
  for n in range(2):
    write_image(tmp_path / f'val/b_{n}.JPEG', noisy_image(COLOURS['red'], n))
  (tmp_path / 'own.txt').write_text(text)
  with pytest.raises(UserError, match=message) as error:
    ImageFolder(str(tmp_path), 'val', labels_file='own.txt')
  assert '\n' not in str(error.value)


def test_images_without_a_line_are_dropped_and_counted(tmp_path, see_logs, caplog):
  write_folders(tmp_path, splits=('train',), per_class=1)
  for n in range(3):
    write_image(tmp_path / f'val/b_{n}.JPEG', noisy_image(COLOURS['red'], n))
  (tmp_path / 'val.txt').write_text('b_2.JPEG 1\nb_7.JPEG 1\n')
  assert ImageFolder(str(tmp_path), 'val').file_names == ['val/b_2.JPEG']
  assert '1 of its lines name no image, 2 of 3 images have no line' in caplog.text


def test_subsets_are_nested_and_stable_when_images_are_added(tmp_path):
  write_folders(tmp_path, per_class=12)
  chosen = [set(ImageFolder(str(tmp_path), num_images=n, subset_seed=3).file_names) for n in (5, 10, 36)]
  assert chosen[0] < chosen[1] < chosen[2] and [len(names) for names in chosen] == [5, 10, 36]
  assert set(ImageFolder(str(tmp_path), num_images=5, subset_seed=4).file_names) != chosen[0]
  write_image(tmp_path / 'train/blue/00.jpg', noisy_image(COLOURS['blue'], 99))
  assert len(set(ImageFolder(str(tmp_path), num_images=5, subset_seed=3).file_names) & chosen[0]) >= 4
  quarter, whole = ImageFolder(str(tmp_path), fraction=0.25), ImageFolder(str(tmp_path))
  ids = dict(zip(whole.file_names, whole.image_ids.tolist(), strict=True))
  assert [ids[name] for name in quarter.file_names] == quarter.image_ids.tolist()  # an image keeps its id in a subset


def test_a_subset_may_lack_classes(tmp_path, see_logs, caplog):
  data = str(write_folders(tmp_path / 'data'))
  with pytest.raises(UserError, match="all 1 images of the subset are of class .*: raise image_folder.num_images"):
    ImageFolder(data, num_images=1, training=True)
  two = next(n for n in range(2, 13) if len(np.unique(ImageFolder(data, num_images=n).classes)) == 2)
  caplog.clear()
  assert len(ImageFolder(data, num_images=two, training=True).file_names) == two
  assert '1 of 3 classes have no images here' in caplog.text


def test_stable_ids_are_positive_and_unique():
  ids = stable_ids(f'{n}.jpg' for n in range(10000))
  assert ids.dtype == np.int64 and (ids >= 0).all() and len(np.unique(ids)) == 10000
  assert stable_ids([]).shape == (0,)


def test_unusable_folders_are_one_line(tmp_path):
  data = str(write_folders(tmp_path / 'data'))
  (tmp_path / 'data/val/mauve').mkdir()
  (tmp_path / 'empty/train').mkdir(parents=True)
  (tmp_path / 'hollow/train/a').mkdir(parents=True)
  write_folders(tmp_path / 'one', classes=('red',))
  write_image(tmp_path / 'flat/train/0.jpg', noisy_image(COLOURS['red'], 0))
  write_folders(tmp_path / 'unlisted', splits=('train',), per_class=1)
  write_image(tmp_path / 'unlisted/val/0.jpg', noisy_image(COLOURS['red'], 0))
  for arguments, message in (
      ((data, 'val'), "'mauve'"), ((data, 'test'), 'test: no such folder'), ((str(tmp_path / 'no'),), '--data_dir'),
      ((str(tmp_path / 'empty'),), 'contains no images'), ((str(tmp_path / 'hollow'),), 'there are no images'),
      ((str(tmp_path / 'flat'),), 'only 1 images'), ((str(tmp_path / 'unlisted'), 'val'), 'labels_file')):
    with pytest.raises(UserError, match=message) as error:
      ImageFolder(*arguments)
    assert '\n' not in str(error.value)
  with pytest.raises(UserError, match="all images are of class 'red'"):
    ImageFolder(str(tmp_path / 'one'), training=True)


def test_damaged_images(tmp_path):
  write_folders(tmp_path, per_class=2)
  data = (tmp_path / 'train/blue/1.jpg').read_bytes()
  (tmp_path / 'train/blue/1.jpg').write_bytes(data[:len(data) // 2])
  (tmp_path / 'train/green/0.jpg').write_bytes(b'')
  source = ImageFolder(str(tmp_path))
  (tmp_path / 'train/red/0.jpg').unlink()
  for i, name in ((1, 'blue/1.jpg'), (2, 'green/0.jpg'), (4, 'red/0.jpg')):
    with pytest.raises(ImageError, match=name):
      source.load(i)


def test_binary_list_is_one_line(tmp_path):
  write_folders(tmp_path, splits=('train',))
  write_image(tmp_path / 'val/0.jpg', noisy_image(COLOURS['red'], 1))
  (tmp_path / 'val.txt').write_bytes(b'0.jpg caf\xe9\n')
  with pytest.raises(UserError, match='val.txt: not a text file of names and classes') as error:
    ImageFolder(str(tmp_path), 'val')
  assert '\n' not in str(error.value)


def test_cyclic_links_are_ignored(tmp_path, see_logs, caplog):
  write_folders(tmp_path, per_class=1, splits=('train',))
  for name in 'ab':  # with two links, the number of paths doubles at each level
    (tmp_path / f'train/red/{name}').symlink_to(tmp_path / 'train/red', target_is_directory=True)
  assert len(ImageFolder(str(tmp_path), 'train').file_names) == 3
  assert 'is a link to its parent folder' in caplog.text


def test_folder_with_a_terminal_escape_sequence(tmp_path):
  write_folders(tmp_path, per_class=1, splits=('train',), classes=('blue', 'red'))
  (tmp_path / 'train/red').rename(tmp_path / 'train/red\x1b[2J')
  assert [category.name for category in ImageFolder(str(tmp_path), 'train').categories] == ['blue', 'red\ufffd[2J']


def test_too_many_pixels(tmp_path):
  source = ImageFolder(str(write_folders(tmp_path)), 'train', max_pixels=100)
  with pytest.raises(ImageError, match='max_pixels = 100'):
    source.load(0)
