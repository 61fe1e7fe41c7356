"""Records for graphs: what Python reads from a record, without Python."""

import io

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from rethink_tf.data.categories import Category
from rethink_tf.data.detection.graph_record import decode_pixels, features, parse
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
