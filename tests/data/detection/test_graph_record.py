"""Records for graphs: what Python reads from a record, without Python."""

import io
import zlib

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from rethink_tf.data.categories import Category
from rethink_tf.data.detection.graph_record import CROPS, decode_pixels, features, parse, read
from rethink_tf.data.images import decode
from rethink_tf.structures import NO_MASK, Example

CATEGORIES = (Category(3, 'a', ('nose', 'tail')), Category(7, 'b'))


@pytest.fixture(scope='module')
def pixels():
  coarse = np.random.default_rng(0).integers(0, 256, [6, 8, 3]).astype(np.uint8)
  return cv2.resize(coarse, (80, 60), interpolation=cv2.INTER_CUBIC)


def saved(pixels, kind, mode='RGB', **options):
  file = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(file, kind, **options)
  return file.getvalue()


def example(image, classes=(2, 1)):
  rng = np.random.default_rng(1)
  masks = rng.integers(0, 2, [len(classes), 112, 112]).astype(np.uint8)
  masks[1:] = NO_MASK
  return Example(image, rng.uniform(0, 60, [len(classes), 4]).astype(np.float32), np.array(classes, np.int32), masks,
                 rng.uniform(0, 60, [len(classes), 2, 3]).astype(np.float32))


def payload(stored, encoded):
  feature = {'image/encoded': tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))}
  feature |= features(stored, encoded, CATEGORIES)
  return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


@pytest.mark.parametrize('classes', [(2, 1), ()])
def test_what_is_stored_is_read(pixels, classes):
  encoded = saved(pixels, 'JPEG')
  stored = example(decode(encoded, ''), classes)
  found = parse(tf.constant(payload(stored, encoded)), CATEGORIES, 2)
  assert np.array_equal(decode_pixels(found.encoded), stored.image)
  for ours, expected in zip(found[1:], stored[1:], strict=True):
    assert ours.dtype.as_numpy_dtype == expected.dtype and np.array_equal(ours, expected)


def test_classes_are_those_of_the_reader(pixels):
  encoded = saved(pixels, 'JPEG')
  stored = payload(example(decode(encoded, '')), encoded)
  assert parse(stored, CATEGORIES[::-1], 0).classes.numpy().tolist() == [1, 2]
  one = parse(stored, CATEGORIES[:1], 0)
  assert one.classes.numpy().tolist() == [1] and one.masks.shape[0] == one.boxes.shape[0] == 1
  assert one.keypoints.shape == [1, 0, 3] and (one.masks == NO_MASK).numpy().all()


def test_files_that_tensorflow_reads_differently_are_stored_again(pixels):
  turned = Image.Exif()
  turned[0x0112] = 6
  files = {'grey': saved(pixels, 'JPEG', 'L'), 'progressive': saved(pixels, 'JPEG', progressive=True),
           'palette': saved(pixels, 'PNG', 'P'), 'cmyk': saved(pixels, 'JPEG', 'CMYK'), 'tiff': saved(pixels, 'TIFF'),
           '16 bits': cv2.imencode('.png', pixels.astype(np.uint16) * 200)[1].tobytes(),
           'turned': saved(pixels, 'JPEG', exif=turned)}
  again = set()
  for name, encoded in files.items():
    image = decode(encoded, name, (80, 60) if name == 'turned' else None)
    found = parse(payload(example(image), encoded), CATEGORIES, 2)
    assert np.array_equal(decode_pixels(found.encoded), image), name
    again |= {name} if found.encoded.numpy() != encoded else set()
  assert {'tiff', 'turned'} <= again and not again & {'grey', 'progressive', 'palette'}


def stored_features(stored):
  return tf.train.Example.FromString(payload(stored, b'')).features.feature


def boxed(pixels, classes=(2, 1)):
  boxes = np.tile(np.float32([1, 2, 30.5, 80]), [len(classes), 1])
  return example(pixels, classes)._replace(boxes=boxes)


@pytest.mark.parametrize('classes', [(2, 1), ()])
def test_python_reads_the_same(pixels, classes):
  stored = boxed(pixels, classes)
  for ours, expected in zip(read(stored_features(stored), (60, 80), CATEGORIES, 2), stored[1:], strict=True):
    assert ours.dtype == expected.dtype and ours.shape == expected.shape and np.array_equal(ours, expected)


def test_python_reads_the_classes_of_the_reader(pixels):
  stored = stored_features(boxed(pixels))
  assert read(stored, (60, 80), CATEGORIES[::-1], 0)[1].tolist() == [1, 2]
  boxes, classes, masks, keypoints = read(stored, (60, 80), CATEGORIES[:1], 0)
  assert classes.tolist() == [1] and len(boxes) == 1 and masks.min() == NO_MASK and keypoints.shape == (1, 0, 3)


def test_what_is_not_stored_is_left_to_the_annotations(pixels):
  stored = boxed(pixels)
  assert read(stored_features(stored._replace(keypoints=stored.keypoints[:, :0])), (60, 80), CATEGORIES, 2) is None
  others = stored_features(stored)
  del others[CROPS]
  assert read(others, (60, 80), CATEGORIES, 2) is None


@pytest.mark.parametrize('field, value, message', [
  ('boxes', np.float32([[1, 2, 30, 81]] * 2), 'a box has no area, or leaves the image'),
  ('boxes', np.float32([[30, 2, 30, 80]] * 2), 'a box has no area'),
  ('boxes', np.float32([[np.nan, 2, 30, 80]] * 2), 'a box has no area'),
  ('boxes', np.float32([[1, 2, 30, 80]]), '2 categories, 4 edges of boxes'),
  ('masks', np.full([2, 112, 112], 3, np.uint8), 'do not belong together'),
  ('masks', np.zeros([1, 112, 112], np.uint8), '12544 bytes of masks or more in place of 25088'),
  ('masks', np.zeros([200, 112, 112], np.uint8), '25089 bytes of masks or more in place of 25088'),
])
def test_arrays_that_do_not_fit(pixels, field, value, message):
  with pytest.raises(ValueError, match=message) as error:
    read(stored_features(boxed(pixels)._replace(**{field: value})), (60, 80), CATEGORIES, 2)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('crops', [[], [b''], [b'no zlib'], [zlib.compress(b'1' * 25088)[:40]]])
def test_masks_that_cannot_be_read(pixels, crops):
  stored = stored_features(boxed(pixels))
  stored[CROPS].CopyFrom(tf.train.Feature(bytes_list=tf.train.BytesList(value=crops)))
  with pytest.raises(ValueError, match='masks cannot be read|0 bytes of masks|bytes of masks or more'):
    read(stored, (60, 80), CATEGORIES, 2)
