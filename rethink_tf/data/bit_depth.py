"""Pixels of more than 8 bits, scaled to 8 by the values that an image holds."""

from __future__ import annotations

import numpy as np


def to_8_bits(values: np.ndarray) -> np.ndarray:
  """Scale the pixels of an image to uint8 of the same shape.

  Integers use 8, 12 or 16 bits, whichever is the least that holds the largest value: files of 16 bits often hold the
  8 or 12 of a camera. Floats lie in 0..1, 0..255 or 0..65535.

  Raises:
    ValueError: values that are negative, not finite or larger; the message is one line.
  """
  if values.dtype == np.uint8 or not values.size:
    return values.astype(np.uint8)
  low, high = values.min(), values.max()
  if not (low >= 0 and high <= 65535):  # also for NaN
    raise ValueError(f'its pixels have values from {low:g} to {high:g}: save it with 8 bits, 0 to 255')
  bits = bits_of(values)
  if values.dtype.kind == 'f':
    return np.rint(values * {1: 255, 8: 1, 16: 1 / 257}[bits]).astype(np.uint8)
  return (values >> (bits - 8)).astype(np.uint8)


def bits_of(values: np.ndarray) -> int:
  """Return the number of bits that an image's values are taken to have: 8, 12 or 16; for floats 1 (0..1), 8 or 16."""
  high = values.max()
  if values.dtype.kind == 'f':
    return 1 if high <= 1 else 8 if high <= 255 else 16
  return 8 if high <= 255 else 12 if high <= 4095 else 16
