"""Held-out images: how many of them there are."""

import numpy as np
import pytest

from rethink_tf.data.prepare import division
from rethink_tf.data.prepare.layout import LabelledImage, Reading


def notes(classes, images_each):
  """Divide images of one class each, all of them different; return held-out share and notes."""
  count = classes * images_each
  images = [LabelledImage(f'{i:04}.jpg', f'{i:04}.jpg', None, []) for i in range(count)]
  reading = Reading('drawn', iter(()), count)
  random = np.random.default_rng(0)
  splits = division.divide('source', images, [[i % classes] for i in range(count)],
                           random.integers(0, 1 << 63, count, dtype=np.uint64),
                           random.integers(0, 255, (count, 16, 16), dtype=np.uint8), division.Division(), reading)
  return splits.count('val') / count, reading.notes


@pytest.mark.parametrize('classes, images_each, uneven', [
  (4, 20, False), (100, 5, False), (100, 2, True), (1, 2, False)])
def test_a_share_far_from_the_one_asked_for_is_said(classes, images_each, uneven):
  """Of classes with two images each, none can hold out a fifth."""
  share, found = notes(classes, images_each)
  assert (share < 0.1) == uneven and (division.UNEVEN.format(asked=0.2) in found) == uneven
