"""Pixels of 8, 12 and 16 bits and floats, through the decoder of image files."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from rethink_tf.data.bit_depth import to_8_bits
from rethink_tf.data.images import ImageError, decode

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def tiff(values):
  stream = io.BytesIO()
  Image.fromarray(values).save(stream, 'TIFF')
  return stream.getvalue()


def png(values):
  return cv2.imencode('.png', values)[1].tobytes()


@pytest.mark.parametrize('data', [
  tiff((RAMP / 255).astype(np.float32)), tiff(RAMP.astype(np.float32)), tiff(RAMP.astype(np.int32)),
  tiff(RAMP.astype(np.int32) << 8), tiff(RAMP.astype(np.float32) * 257), tiff(RAMP.astype(np.uint16) << 4),
  png(RAMP.astype(np.uint16)), png(RAMP.astype(np.uint16) << 4), png(RAMP.astype(np.uint16) << 8),
  png(RAMP.astype(np.uint16)) + b'\0' * 2000], ids=[
    'float 0..1', 'float 0..255', 'int32 0..255', 'int32 16 bits', 'float 16 bits', '12 bits in a TIFF',
    '8 bits in a PNG',
    '12 bits in a PNG', '16 bits in a PNG', 'by Pillow'])
def test_values_are_scaled_by_what_is_in_them(data):
  assert (decode(data, 'deep') == RAMP[..., None]).all()


def test_colours_of_8_bits_in_a_png_of_16():
  pixels = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)
  for shift in (0, 8):
    decoded = decode(png(pixels[..., ::-1].astype(np.uint16) << shift), 'deep')
    assert decoded.dtype == np.uint8 and (decoded == pixels).all()


@pytest.mark.parametrize('values', [
  np.array([[-1.0, 2]], np.float32), np.array([[np.nan, 2]], np.float32), np.array([[0, 1e9]], np.float32),
  np.array([[0, 70000]], np.int32), np.array([[-5, 7]], np.int32)])
def test_other_values_are_refused(values):
  with pytest.raises(ImageError, match='deep: its pixels have values from .*save it with 8 bits'):
    decode(tiff(values), 'deep')


def test_without_pixels():
  assert to_8_bits(np.zeros([0, 4], np.uint16)).shape == (0, 4)
