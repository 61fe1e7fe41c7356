"""Masks of instances as PNG files."""

import json
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from rethink_tf.data.prepare import mask_images
from rethink_tf.data.prepare.layout import Options
from rethink_tf.data.prepare.source_folder import SourceFolder
from rethink_tf.errors import UserError
from tests.exports import rasterise

NUMBERS = np.array([[0, 0, 1, 1], [0, 2, 2, 1], [0, 2, 0, 0]], np.uint8)


def save(path, pixels, mode=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(pixels)
  if mode == 'P':
    image.putpalette([7, 7, 7] * 256)
  image.save(path)


def read(root, masks, images=('images/a.jpg',), files=None):
  for name, pixels in masks.items():
    save(root / name, *(pixels if isinstance(pixels, tuple) else (pixels,)))
  for name, text in {**dict.fromkeys(images, ''), **(files or {})}.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
  folder = SourceFolder(str(root))
  assert mask_images.recognize(folder) is not None
  reading = mask_images.read(folder, Options())
  return reading, list(reading.images)


def found(image):
  """Return the classes and masks of an image."""
  return [(one['category'], rasterise(one['segmentation'], (3, 4)).tolist()) for one in image.instances]


@pytest.mark.parametrize('pixels', [NUMBERS, (NUMBERS, 'P'), NUMBERS.astype(np.uint16) * 400,
                                    np.stack([NUMBERS * 100] * 3, -1)])
@pytest.mark.parametrize('name', ['masks/a.png', 'PedMasks/a_mask.png', 'masks/train/a.png'])
def test_numbered_instances(tmp_path, pixels, name):
  images = ['PNGImages/a.png' if 'Ped' in name else 'images/a.jpg']
  _, (image,) = read(tmp_path, {name: pixels}, images)
  assert found(image) == [('object', (NUMBERS == i).tolist()) for i in (1, 2)] and image.size == (3, 4)


def test_classes_of_numbers_and_of_folders(tmp_path):
  _, (image,) = read(tmp_path / 'json', {'masks/a.png': NUMBERS},
                     files={'masks/classes.json': json.dumps({'a.jpg': {'1': 'cat', '2': 'dog'}})})
  assert [name for name, _ in found(image)] == ['cat', 'dog']
  _, (image,) = read(tmp_path / 'folders', {'masks/cat/a.png': NUMBERS, 'masks/dog/a.png': NUMBERS})
  assert [name for name, _ in found(image)] == ['cat', 'cat', 'dog', 'dog']
  with pytest.raises(UserError, match='should be .*the class of each number'):
    read(tmp_path / 'wrong', {'masks/a.png': NUMBERS}, files={'masks/classes.json': '{"a": ["cat"]}'})


@pytest.mark.parametrize('name, label', [
  ('masks/a/cat_1.png', 'cat'), ('masks/a/black cat-02.png', 'black cat'), ('masks/a/3.png', 'object'),
  ('masks/a/T1_1.png', 'T1'), ('masks/a/face_mask_1.png', 'face_mask'), ('masks/a/cat2.png', 'cat'),
  ('masks/a/2_1.png', 'object'), ('masks/a/a_1.png', 'object'), ('masks/a/a_cat_1.png', 'cat'),
  ('masks/a/mask_3.png', 'object'), ('masks/a/07a9bf1d75.png', 'object'), ('a/masks/1.png', 'object')])
def test_one_file_an_instance(tmp_path, name, label):
  images = ['a/images/a.png'] if name.startswith('a/') else ['images/a.jpg']
  _, (image,) = read(tmp_path, {name: (NUMBERS > 1) * np.uint8(255)}, images)
  assert found(image) == [(label, (NUMBERS > 1).tolist())]


def test_masks_without_a_class_among_others_are_counted(tmp_path):
  one = (NUMBERS > 1) * np.uint8(255)
  reading, (image,) = read(tmp_path, {'masks/a/cat_1.png': one, 'masks/a/1_dog.png': one})
  assert sorted(name for name, _ in found(image)) == ['cat', 'object']
  assert dict(reading.problems.counts) == {"mask whose name has no class (taken for 'object')": 1}


def test_grey_levels_at_the_edge_are_no_objects(tmp_path):
  disc = cv2.circle(np.zeros([40, 40], np.uint8), (20, 20), 12, 255, -1)
  blurred = cv2.GaussianBlur(disc, (9, 9), 0)
  for name, pixels in (('masks/a.png', blurred), ('masks/a/cat_1.png', np.stack([blurred] * 3, -1))):
    reading, (image,) = read(tmp_path / name.replace('/', '_'), {name: pixels})
    mask, = (rasterise(one['segmentation'], (40, 40)) for one in image.instances)
    assert (mask == (blurred >= 128)).all() and sum(reading.problems.counts.values()) == 1
  numbered = np.arange(256).reshape(16, 16).astype(np.uint8).repeat(3, 0).repeat(3, 1)  # objects of 3 x 3 pixels
  reading, (image,) = read(tmp_path / 'numbered', {'masks/a.png': numbered})
  assert len(image.instances) == 255 and not reading.problems.counts


def test_the_border_of_voc_is_no_object(tmp_path):
  pixels = np.where(NUMBERS == 2, 255, NUMBERS).astype(np.uint8)
  image = Image.fromarray(pixels, 'P')
  image.putpalette([*[0] * 765, 224, 224, 192])
  (tmp_path / 'masks').mkdir()
  image.save(tmp_path / 'masks/a.png')
  reading, (labelled,) = read(tmp_path, {})
  assert found(labelled) == [('object', (NUMBERS == 1).tolist())] and sum(reading.problems.counts.values()) == 1


CLASSES = np.tile(np.array([[3, 7], [12, 255]], np.uint8), (3, 3))


@pytest.mark.parametrize('pixels, phrases', [
  (CLASSES, ['the number 255', 'gaps .e.g. masks/a.png: 3, 7, 12.', '4 of 4 objects .*a.png, number 3']),
  (np.repeat([[0, 1, 2, 255]], 3, 0).astype(np.uint8), ['1 of 1 masks have the number 255 beside small ones .*a.png']),
  (np.tile(np.array([[0, 255], [0, 0]], np.uint8), (1, 4)), ['1 of 1 objects are in three or more pieces']),
  (NUMBERS, []), (NUMBERS * 80, []), (NUMBERS * 127, []), ((NUMBERS + 26000 * (NUMBERS > 0)).astype(np.uint16), [])])
def test_numbers_that_may_be_classes_are_noted(tmp_path, pixels, phrases):
  reading, _ = read(tmp_path, {'masks/a.png': pixels})
  assert len(reading.notes) == len(phrases)
  for note, phrase in zip(reading.notes, phrases, strict=True):
    assert re.search(phrase, note)


def test_a_folder_of_masks_below_one_with_a_like_name(tmp_path):
  _, (image,) = read(tmp_path, {'mask_data/masks/a.png': NUMBERS}, ['mask_data/images/a.jpg'])
  assert image.file == 'mask_data/images/a.jpg' and len(image.instances) == 2


def test_what_is_left_out_is_counted(tmp_path):
  reading, images = read(tmp_path, {'masks/a/1.png': NUMBERS, 'masks/a/2.png': NUMBERS[:2], 'masks/b.png': NUMBERS},
                         ['images/a.jpg', 'images/c.jpg'], {'masks/a/3.png': 'no image'})
  assert len(images) == 1 and len(images[0].instances) == 1
  assert dict(reading.problems.counts) == {mask_images.NO_IMAGE: 1, 'image without a mask (not annotated)': 1,
                                           mask_images.OTHER_SIZE: 1, mask_images.DAMAGED: 1}


def test_without_images(tmp_path):
  with pytest.raises(UserError, match='1 masks and 0 images'):
    read(tmp_path, {'masks/a.png': NUMBERS}, ())
  with pytest.raises(UserError, match='no mask has the name of an image'):
    read(tmp_path, {'masks/a.png': NUMBERS}, ['images/b.jpg'])
