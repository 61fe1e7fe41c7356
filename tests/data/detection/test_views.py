"""Batches for test-time augmentation: the same images at several sizes."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.data.augment import Resize
from rethink_tf.data.detection.input import EvalInput
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.data.detection.views import ViewsInput
from rethink_tf.errors import UserError
from tests import small_coco
from tests.data.detection.test_input import SMALL, Changed, unreadable


@pytest.fixture(scope='module')
def source():
  return SyntheticSource(num_images=40)


def test_views_are_the_same_images_at_several_sizes(source):
  plain = EvalInput(source, 4, SMALL)
  resizes = [SMALL, Resize(64, 70), Resize(200, 400)]
  inputs = ViewsInput(plain, resizes)
  spec, seen = inputs.dataset().element_spec, []
  for views in inputs.dataset():
    assert [len(field) for field in views[2:]] == [3, 3, 3]
    assert all(s.is_compatible_with(x) for x, s in zip(tf.nest.flatten(views), tf.nest.flatten(spec), strict=True))
    for row, image_id in enumerate(views.image_ids.numpy().tolist()):
      if image_id < 0:
        assert not any(images[row].numpy().any() for images in views.images)
        continue
      seen.append(image_id)
      example = source.load(image_id - 1)
      for images, sizes, scales, resize in zip(*views[2:], resizes, strict=True):
        height, width = resize.largest_sizes(np.array([example.image.shape[:2]]))[0].tolist()
        np.testing.assert_array_equal(sizes[row], [height, width])
        np.testing.assert_allclose(scales[row], np.array([height, width]) / example.image.shape[:2], rtol=1e-6)
        np.testing.assert_array_equal(images[row, :height, :width], cv2.resize(example.image, (width, height)))
        assert not images[row, height:].numpy().any() and not images[row, :, width:].numpy().any()
  assert sorted(seen) == sorted(source.image_ids.tolist())
  with pytest.raises(UserError, match='no views'):
    ViewsInput(plain, [])


def test_views_of_an_unreadable_image_are_grey(source, caplog):
  inputs = ViewsInput(EvalInput(Changed(source, unreadable(3)), 2, SMALL), [SMALL, Resize(64, 80)])
  views = next(views for views in map(inputs.batch, range(inputs.num_batches)) if 4 in views.image_ids)
  row = views.image_ids.tolist().index(4)
  for images, sizes in zip(views.images, views.image_sizes, strict=True):
    height, width = sizes[row].astype(int)
    assert np.all(images[row, :height, :width] == 127)
  assert len(small_coco.warnings(caplog)) == 1
