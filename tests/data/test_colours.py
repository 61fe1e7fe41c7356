"""Colour jitter: equal to the same operations one after the other, in range, refused where out of range."""

import numpy as np
import pytest

from rethink_tf.data.colours import ColourJitter
from rethink_tf.errors import UserError

LUMA = np.array([0.299, 0.587, 0.114])


@pytest.fixture(scope='module')
def image():
  return np.random.default_rng(0).integers(60, 180, (20, 30, 3), dtype=np.uint8)


def one_by_one(image, brightness, contrast, saturation):
  x = image.astype(float) * brightness
  mean = (x @ LUMA).mean()
  x = mean + contrast * (x - mean)
  grey = (x @ LUMA)[..., None]
  return grey + saturation * (x - grey)


@pytest.mark.parametrize('uniform', [(0.1, 0.9, 0.5, 0.5), (0.3, 0.5, 0.1, 0.5), (0.4, 0.5, 0.5, 0.9),
                                     (0.2, 0.3, 0.8, 0.2)])
def test_equals_the_operations_one_after_the_other(image, uniform):
  jitter = ColourJitter(0.3, 0.3, 0.3, hue=0.0)
  expected = one_by_one(image, *(1 + 0.3 * (2 * np.array(uniform[1:]) - 1)))
  assert expected.min() > 1 and expected.max() < 254  # nothing is clipped
  np.testing.assert_allclose(jitter(image, np.array([*uniform, 0.99])), expected, atol=1)


def test_hue_turns_colours_and_keeps_greys_and_brightness(image):
  jitter = ColourJitter(0, 0, 0, hue=0.5)
  quarter = np.array([0.0, 0.5, 0.5, 0.5, 0.75])  # 0.25 of the circle
  grey = np.repeat(image[..., :1], 3, axis=2)
  np.testing.assert_allclose(jitter(grey, quarter), grey, atol=1)
  turned = jitter(image // 4 + 90, quarter)
  np.testing.assert_allclose(turned @ LUMA, (image // 4 + 90) @ LUMA, atol=1.5)
  assert np.abs(turned.astype(int) - (image // 4 + 90)).max() > 8
  whole = image // 4 + 90
  for _ in range(4):
    whole = jitter(whole, quarter)
  np.testing.assert_allclose(whole, image // 4 + 90, atol=4)


def test_probability(image):
  jitter = ColourJitter(probability=0.4)
  assert jitter(image, np.array([0.4, 0.9, 0.9, 0.9, 0.9])) is image
  changed = jitter(image, np.array([0.39, 0.9, 0.9, 0.9, 0.9]))
  assert changed.dtype == np.uint8 and changed.shape == image.shape and np.any(changed != image)
  unchanged = ColourJitter(0, 0, 0, 0)(image, np.full(5, 0.3))
  np.testing.assert_array_equal(unchanged, image)


@pytest.mark.parametrize('arguments', [dict(brightness=1.2), dict(contrast=-0.1), dict(saturation=2), dict(hue=0.6),
                                       dict(probability=1.01)])
def test_settings_out_of_range(arguments):
  name = next(iter(arguments))
  with pytest.raises(UserError, match=f'ColourJitter.{name} = '):
    ColourJitter(**arguments)
