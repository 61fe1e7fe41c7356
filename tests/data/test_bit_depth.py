"""Pixels of 8, 12 and 16 bits and floats, through the decoder of image files."""

import io
import itertools
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from rethink_tf.data.bit_depth import to_8_bits
from rethink_tf.data.images import TURNS, ImageError, decode

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
LARGE = RAMP.repeat(4, axis=0).repeat(4, axis=1)  # OpenCV writes no JPEG 2000 of 16 pixels


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
  for shift, more in itertools.product((0, 4, 8), (b'', bytes(2000))):  # more: Pillow reads the file
    decoded = decode(png(pixels[..., ::-1].astype(np.uint16) << shift) + more, 'deep')
    assert decoded.dtype == np.uint8 and (decoded == pixels).all()


@pytest.mark.parametrize('shift', [0, 4, 8])
@pytest.mark.parametrize('suffix, channels, options', [
  *((suffix, channels, []) for suffix in ('.png', '.tiff', '.ppm', '.jp2') for channels in (1, 3)),
  ('.tiff', 3, [cv2.IMWRITE_TIFF_COMPRESSION, 1]), ('.png', 4, []), ('.tiff', 4, [])])
def test_bits_of_every_format(suffix, channels, options, shift):
  """Of colours in formats other than PNG, Pillow returns the upper 8 bits: 15 at most of 12 bits."""
  pixels = np.stack([LARGE, LARGE[::-1], LARGE.T, np.full_like(LARGE, 255)][:channels], axis=-1)
  written = pixels[..., [2, 1, 0, 3][:channels]] if channels > 1 else pixels
  data = cv2.imencode('.pgm' if (suffix, channels) == ('.ppm', 1) else suffix, written.astype(np.uint16) << shift,
                      options)[1].tobytes()
  expected = np.broadcast_to(pixels[..., :3], (64, 64, 3))
  assert np.abs(decode(data, 'deep').astype(int) - expected).max() <= (suffix == '.ppm' and shift == 8)


def colours_of_12_bits(pixels, orientation):
  """Return a TIFF file without compression."""
  height, width, _ = pixels.shape
  values = pixels.astype('<u2') << 4
  tags = [(256, width), (257, height), (258, 134), (259, 1), (262, 2), (273, 140), (274, orientation), (277, 3),
          (278, height), (279, values.nbytes)]
  entries = b''.join(struct.pack('<HHII', tag, 4, 3 if tag == 258 else 1, value) for tag, value in tags)
  entries = entries.replace(struct.pack('<HH', 258, 4), struct.pack('<HH', 258, 3))
  header = struct.pack('<2sHIH', b'II', 42, 8, len(tags))
  return header + entries + bytes(4) + struct.pack('<3H', 16, 16, 16) + values.tobytes()


@pytest.mark.parametrize('orientation', range(1, 9))
def test_colours_of_12_bits_that_are_turned(orientation):
  pixels = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)[:12]
  data = colours_of_12_bits(pixels, orientation)
  np.testing.assert_array_equal(decode(data, 'deep', (12, 16)), pixels)
  if orientation >= 5:
    np.testing.assert_array_equal(decode(data, 'deep', (16, 12)), TURNS[orientation](pixels))


def test_dark_images_of_8_bits_stay_dark():
  dark = np.stack([LARGE, LARGE.T, LARGE], axis=-1) // 16
  for suffix in ('.tiff', '.ppm', '.jp2'):
    np.testing.assert_array_equal(decode(cv2.imencode(suffix, dark[..., ::-1])[1].tobytes(), 'dark'), dark)


def test_max_pixels_of_a_deep_image():
  data = colours_of_12_bits(np.zeros([12, 16, 3], np.uint8), 6)
  with pytest.raises(ImageError, match='max_pixels = 191'):
    decode(data, 'deep', max_pixels=191)


@pytest.mark.parametrize('values', [
  np.array([[-1.0, 2]], np.float32), np.array([[np.nan, 2]], np.float32), np.array([[0, 1e9]], np.float32),
  np.array([[0, 70000]], np.int32), np.array([[-5, 7]], np.int32)])
def test_other_values_are_refused(values):
  with pytest.raises(ImageError, match='deep: its pixels have values from .*save it with 8 bits'):
    decode(tiff(values), 'deep')


def test_without_pixels():
  assert to_8_bits(np.zeros([0, 4], np.uint16)).shape == (0, 4)
