"""Colour jitter for detection: one linear map of the three channels, so that boxes and masks stay."""

import dataclasses

import cv2
import gin
import numpy as np

from rethink_tf.data.augment import contiguous
from rethink_tf.errors import UserError, check_fractions

_LUMA = np.array([0.299, 0.587, 0.114])  # of R, G, B: the grey value of a pixel
# Rec. 601: Y, and the plane of the colour differences I and Q, in which a hue is an angle.
_YIQ = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB = np.linalg.inv(_YIQ)


@gin.register
@dataclasses.dataclass(frozen=True)
class ColourJitter:
  """Random brightness, contrast, saturation and hue, sampled again for each image and epoch.

  Args:
    brightness, contrast, saturation: each is multiplied by a factor of 1 - value .. 1 + value; 0 is off.
    hue: largest shift in either direction, as a fraction of the colour circle; 0 is off, 0.5 any hue.
    probability: that an image is changed at all.

  Raises:
    UserError: a value out of range.
  """

  brightness: float = 0.4
  contrast: float = 0.4
  saturation: float = 0.4
  hue: float = 0.05
  probability: float = 1.0

  def __post_init__(self) -> None:
    check_fractions('ColourJitter', brightness=self.brightness, contrast=self.contrast, saturation=self.saturation,
                    probability=self.probability)
    if not 0 <= self.hue <= 0.5:
      raise UserError(f'ColourJitter.hue = {self.hue}: use a fraction of the colour circle, 0 to 0.5')

  def __call__(self, image: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Change the colours of a uint8 RGB image by five numbers in [0, 1) -> uint8, or the image itself."""
    if uniform[0] >= self.probability:
      return image
    image = contiguous(image)
    ranges = np.array([self.brightness, self.contrast, self.saturation, self.hue])
    brightness, contrast, saturation, hue = np.array([1, 1, 1, 0]) + ranges * (2 * np.asarray(uniform[1:]) - 1)
    # In this order, clipped at the end alone: one pass over the image in place of four.
    grey = brightness * float(_LUMA @ cv2.mean(image)[:3])
    turned, desaturated = _turn_of_hue(hue), saturation * np.eye(3) + (1 - saturation) * _LUMA
    colours = turned @ desaturated
    matrix = np.concatenate([brightness * contrast * colours, colours.sum(axis=1, keepdims=True)
                             * (1 - contrast) * grey], axis=1)
    return cv2.transform(image, matrix)


def _turn_of_hue(fraction: float) -> np.ndarray:
  """Return the matrix [3, 3] that turns the hue of RGB by a fraction of the circle; greys stay."""
  sine, cosine = np.sin(2 * np.pi * fraction), np.cos(2 * np.pi * fraction)
  return _RGB @ np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) @ _YIQ
