"""Decoding of image files: formats, EXIF, damaged files, and headers with false sizes."""

import importlib
import io
import os
import resource
import struct
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from rethink_tf.data.image_notes import TURNED, ImageNotes
from rethink_tf.data.images import TURNS, ImageError, decode, header_size, measure, read_file
from rethink_tf.errors import UserError


def encode(pixels, kind='JPEG', **options):
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, kind, **options)
  return stream.getvalue()


def with_orientation(pixels, orientation, kind='JPEG'):
  exif = Image.Exif()
  exif[0x0112] = orientation
  return encode(pixels, kind, exif=exif, **({'lossless': True} if kind == 'WEBP' else {'quality': 95}))


@pytest.fixture(scope='module')
def real_jpeg(real_images):
  return (real_images / 'coco_dev/train2017/000000000009.jpg').read_bytes()


@pytest.fixture
def pixels():
  ramp = np.linspace(0, 255, 64).astype(np.uint8)
  return np.stack(np.broadcast_arrays(ramp[:48, None], ramp[None, :], np.uint8(90)), axis=2)  # [48, 64, 3]


def test_real_images_equal_pillow(real_images):
  for path in sorted((real_images / 'coco_dev/val2017').glob('*.jpg'))[:20]:
    expected = np.asarray(Image.open(path).convert('RGB'))
    decoded = decode(path.read_bytes(), path.name)
    assert decoded.dtype == np.uint8 and decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).max() <= 2


def test_channel_order_is_rgb(pixels):
  red = np.zeros_like(pixels)
  red[..., 0] = 255
  assert (decode(encode(red, 'PNG'), 'red') == red).all()


def test_grey_jpeg_becomes_three_channels(pixels):
  decoded = decode(encode(pixels[..., 0]), 'grey')
  assert decoded.shape == (48, 64, 3)
  assert (decoded == decoded[..., :1]).all()


def test_cmyk_jpeg_has_the_colours_of_pillow(real_jpeg):
  stream = io.BytesIO()
  Image.open(io.BytesIO(real_jpeg)).convert('CMYK').save(stream, 'JPEG', quality=95)
  expected = np.asarray(Image.open(io.BytesIO(stream.getvalue())).convert('RGB')).astype(int)
  assert np.abs(decode(stream.getvalue(), 'cmyk') - expected).max() <= 1


def test_png_with_alpha_keeps_its_colours(pixels):
  rgba = np.dstack([pixels, np.full(pixels.shape[:2], 7, np.uint8)])
  assert (decode(encode(rgba, 'PNG'), 'rgba') == pixels).all()


@pytest.mark.parametrize('damage', [b'', b'\0' * 2000], ids=['opencv', 'pillow'])
def test_16_bit_png_is_scaled_not_clipped(damage):
  deep = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
  data = cv2.imencode('.png', deep)[1].tobytes() + damage  # with trailing bytes, Pillow decodes the file
  assert (decode(data, 'deep') == (deep >> 8)[..., None]).all()


@pytest.mark.parametrize('kind', ['BMP', 'WEBP', 'GIF', 'TIFF'])
def test_other_formats(pixels, kind):
  decoded = decode(encode(pixels, kind), kind)
  assert decoded.shape == pixels.shape and np.abs(decoded.astype(int) - pixels).mean() < 10


def test_trailing_bytes_are_ignored(real_jpeg):
  assert (decode(real_jpeg + b'\0' * 300, 'padded') == decode(real_jpeg, 'whole')).all()
  assert (decode(real_jpeg + b'x' * 5000, 'padded') == decode(real_jpeg, 'whole')).all()


@pytest.mark.parametrize('kept', [0.02, 0.3, 0.7, 0.999])
@pytest.mark.parametrize('filler', [b'', b'\0' * 200_000], ids=['cut', 'zeros'])
def test_truncated_jpeg(real_jpeg, kept, filler, capfd):
  with pytest.raises(ImageError, match=r'^torn\.jpg: .*truncated|^torn\.jpg: .*broken'):
    decode(real_jpeg[:int(len(real_jpeg) * kept)] + filler, 'torn.jpg')
  assert capfd.readouterr().err == ''


def test_jpeg_without_its_last_byte(real_jpeg):
  with pytest.raises(ImageError, match='truncated'):
    decode(real_jpeg[:-1], 'torn.jpg')


@pytest.mark.parametrize('kind', ['PNG', 'BMP', 'WEBP', 'GIF'])
def test_other_truncated_formats(pixels, kind, capfd):
  data = encode(np.tile(pixels, (4, 4, 1)), kind)
  with pytest.raises(ImageError, match='torn'):
    decode(data[:len(data) // 2], 'torn')
  assert capfd.readouterr().err == ''


@pytest.mark.parametrize('data, reason', [(b'', 'empty'), (b'hello, this is no image', 'not an image'),
                                          (b'\xff\xd8\xff\xd9', 'truncated'), (b'\x89PNGIEND\xaeB`\x82', 'cannot')])
def test_not_an_image(data, reason, capfd):
  with pytest.raises(ImageError, match=f'^page.html: .*{reason}') as raised:
    decode(data, 'page.html')
  assert '\n' not in str(raised.value)
  assert capfd.readouterr().err == ''


def test_unexpected_size_is_reported(pixels):
  with pytest.raises(ImageError, match='64x48.*70x50'):
    decode(encode(pixels), 'odd.jpg', (50, 70))


def test_exif_is_ignored_if_the_stored_size_is_expected(pixels):
  data = with_orientation(pixels, 6)
  assert (decode(data, 'p', (48, 64)) == decode(encode(pixels, quality=95), 'p')).all()
  assert decode(data, 'p').shape == (48, 64, 3)


@pytest.mark.parametrize('orientation, turn', [(6, -1), (8, 1)])
def test_exif_is_applied_if_the_upright_size_is_expected(pixels, orientation, turn):
  upright = decode(with_orientation(pixels, orientation), 'p', (64, 48))
  assert (upright == np.rot90(decode(encode(pixels, quality=95), 'p'), turn)).all()
  padded = decode(with_orientation(pixels, orientation) + b'x' * 5000, 'through Pillow', (64, 48))
  assert np.abs(upright.astype(int) - padded).max() <= 2


def test_images_rotated_by_180_degrees_stay_as_stored(pixels):
  assert (decode(with_orientation(pixels, 3), 'p', (48, 64)) == decode(encode(pixels, quality=95), 'p')).all()


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF', 'WEBP'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_in_every_format(pixels, orientation, kind):
  """Pillow applies the orientation of a TIFF alone while it decodes."""
  data, stored = with_orientation(pixels, orientation, kind), decode(with_orientation(pixels, 1, kind), 'p')
  notes = ImageNotes('x')
  assert measure(data) == (48, 64)
  np.testing.assert_array_equal(decode(data, 'p'), stored)
  np.testing.assert_array_equal(decode(data, 'p', (48, 64), notes=notes), stored)
  assert list(notes.names) == ([TURNED] if orientation in (2, 3, 4) else [])
  if orientation >= 5:
    np.testing.assert_array_equal(decode(data, 'p', (64, 48)), TURNS[orientation](stored))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_of_a_tiff_of_16_bits(orientation):
  deep = np.arange(0, 65536, 16, dtype=np.uint16).reshape(32, 128)
  assert (decode(with_orientation(deep, orientation, 'TIFF'), 'deep') == (deep >> 8)[..., None]).all()


def test_swapped_size_without_exif_is_an_error(pixels):
  with pytest.raises(ImageError, match='64x48.*48x64'):
    decode(encode(pixels), 'p', (64, 48))


# Headers with false sizes.


def with_false_size(kind, height, width):
  """Return a small image whose header contains another size."""
  data = encode(np.zeros([16, 16, 3], np.uint8), kind)
  if kind == 'JPEG':
    place = data.index(b'\xff\xc0') + 5
    return data[:place] + struct.pack('>HH', height, width) + data[place + 4:]
  if kind == 'PNG':
    header = b'IHDR' + struct.pack('>II', width, height) + data[24:29]
    return data[:12] + header + struct.pack('>I', zlib.crc32(header)) + data[33:]
  if kind == 'BMP':
    return data[:18] + struct.pack('<ii', width, height) + data[26:]
  return data[:6] + struct.pack('<HH', width, height) + data[10:]  # GIF


def peak_megabytes():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'BMP', 'GIF'])
def test_decompression_bomb_is_rejected_by_its_header(kind):
  before = peak_megabytes()
  with pytest.raises(ImageError, match=r'^bomb: the image is 12000x10000 .*, more than max_pixels = 100,000,000$'):
    decode(with_false_size(kind, 10000, 12000), 'bomb')
  assert peak_megabytes() - before < 100


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
def test_max_pixels(kind):
  data = encode(np.zeros([30, 40, 3], np.uint8), kind)
  assert decode(data, 'p', max_pixels=1200).shape == (30, 40, 3)
  with pytest.raises(ImageError, match='40x30.*max_pixels = 1,199'):
    decode(data, 'p', max_pixels=1199)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_unexpected_size_is_found_before_decoding(kind):
  before = peak_megabytes()
  with pytest.raises(ImageError, match='9000x9000.*annotation says 16x16'):
    decode(with_false_size(kind, 9000, 9000), 'p', (16, 16))
  assert peak_megabytes() - before < 100


def test_header_size(pixels, real_jpeg):
  assert header_size(encode(pixels, progressive=True)) == header_size(encode(pixels, 'PNG')) == (48, 64)
  assert header_size(real_jpeg) == decode(real_jpeg, 'p').shape[:2]
  assert header_size(with_orientation(pixels, 6)) == (48, 64)  # as stored
  for data in (b'', b'\xff\xd8', b'\xff\xd8\xff\xd9', real_jpeg[:40], encode(pixels, 'PNG')[:20], b'GIF89a'):
    assert header_size(data) is None


def test_progressive_jpeg_with_many_empty_scans_is_rejected(pixels):
  """Each one is decoded over all pixels: a thousand of them, 12 kB, take half a minute."""
  data = encode(pixels, progressive=True)
  begin = data.index(b'\xff\xda')
  scan = data[begin:begin + 2 + struct.unpack('>H', data[begin + 2:begin + 4])[0]] + b'\0\0'
  with pytest.raises(ImageError, match='over 100 scans'):
    decode(data[:begin] + scan * 101 + data[begin:], 'slow')
  assert decode(data, 'fine').shape == (48, 64, 3)


@pytest.mark.parametrize('data', [
  b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', b'%PDF-1.4\n', b'\0\0\1\0\1\0\x10\x10' + bytes(60)],
  ids=['eps', 'pdf', 'ico'])
def test_other_formats_are_not_opened(data):
  """Pillow would start Ghostscript for the first one."""
  with pytest.raises(ImageError, match='not an image in a known format'):
    decode(data, 'page')


def test_a_pointer_of_git_lfs_is_named():
  data = b'version https://git-lfs.github.com/spec/v1\noid sha256:4dbb\nsize 266111\n'
  with pytest.raises(ImageError, match='a.jpg: .*a pointer of Git LFS: fetch the files with `git lfs pull`'):
    decode(data, 'a.jpg')
  with pytest.raises(ValueError, match='Git LFS'):
    measure(data)


def test_a_png_chunk_longer_than_the_file_allocates_nothing(pixels):
  """OpenCV allocates a chunk by its length before it reads it: 2 GB for a file of a few kilobytes."""
  data = bytearray(encode(pixels, 'PNG'))
  start = data.index(b'IDAT') - 4
  data[start:start + 4] = struct.pack('>I', 2**31 - 5)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  np.testing.assert_array_equal(decode(bytes(data), 'chunk.png'), pixels)  # the pixels are all there: Pillow reads them
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_an_opencv_that_another_package_has_replaced_is_named(monkeypatch):
  monkeypatch.setattr(cv2, '__version__', '4.12.0')
  monkeypatch.delitem(sys.modules, 'rethink_tf.data.images')
  with pytest.raises(UserError, match='is OpenCV 4.12.0, but 5.0 or later is needed: pip uninstall opencv-python'):
    importlib.import_module('rethink_tf.data.images')


def test_a_name_that_is_not_utf_8(tmp_path):
  """As files from another system may have on a Linux disk; Python reads it with surrogates."""
  name = os.fsdecode(os.fsencode(tmp_path) + b'/gr\xfc\xdf.png')
  with open(name, 'wb') as file:
    file.write(b'content')
  assert read_file(name) == b'content'
  os.remove(name)
  with pytest.raises(ImageError, match='cannot be read'):
    read_file(name)
