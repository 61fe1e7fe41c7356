"""What is noticed about image files: EXIF orientations that the size does not decide, and images of one value."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.image_notes import (
  FEWER_BITS,
  ONE_VALUE,
  PAGES,
  TURNED,
  ImageNotes,
  has_one_value,
  has_pages,
  orientation,
)
from rethink_tf.data.images import decode
from rethink_tf.predict.image_files import ImageFiles
from tests.small_coco import annotation, image, warnings, write


def file_of(pixels, turn, kind='JPEG'):
  exif = Image.Exif()
  exif[0x0112] = turn
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, kind, exif=exif)
  return stream.getvalue()


def noise(height, width):
  return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF', 'WEBP'])
def test_orientation(kind):
  assert [orientation(file_of(noise(8, 8), turn, kind)) for turn in range(1, 9)] == list(range(1, 9))
  data = file_of(noise(8, 8), 3, kind)
  assert all(orientation(data[:length]) in (1, 3) for length in range(len(data)))
  assert orientation(b'') == orientation(b'II*\0') == orientation(b'\xff\xd8\xff\xe1\0') == 1
  assert orientation(b'RIFF') == orientation(b'RIFF\0\0\0\0WEBPVP8X') == 1


def test_one_value():
  grey = np.full([40, 40, 3], 7, np.uint8)
  assert has_one_value(grey)
  grey[33, 1] = 8
  assert not has_one_value(grey)


@pytest.mark.parametrize('kind', ['GIF', 'PNG', 'TIFF', 'WEBP'])
def test_files_of_several_frames_or_pages_are_noticed(kind, tmp_path, caplog):
  frames = [Image.fromarray(noise(60, 80) // (i + 1)) for i in range(3)]
  first, path = tmp_path / f'one.{kind.lower()}', tmp_path / f'three.{kind.lower()}'
  frames[0].save(first)
  frames[0].save(path, save_all=True, append_images=frames[1:])
  data = path.read_bytes()
  assert has_pages(data) and not has_pages(first.read_bytes())
  assert all(has_pages(data[:length]) in (True, False) for length in range(0, len(data), 7))
  source = ImageFiles([str(first), str(path)], [])
  for i in range(2):
    source.load(i)
  assert warnings(caplog) == [f'image files: 1 images {PAGES} (e.g. {path})']
  decode(data, 'x', notes=(notes := ImageNotes('x')))
  assert notes.names == {PAGES: {'x'}}


def test_images_are_counted_when_they_are_read(tmp_path, caplog):
  sizes = {1: (60, 80), 2: (60, 80), 3: (50, 50), 4: (60, 80), 5: (60, 80)}
  folder = write(tmp_path, [image(i, *size) for i, size in sizes.items()],
                 [annotation(i, i, (5, 5, 20, 20)) for i in sizes])
  for i, turn in ((2, 3), (3, 6), (4, 6), (5, 1)):  # 4: the annotated size decides that it is not turned
    (tmp_path / f'train2017/{i:06d}.jpg').write_bytes(file_of(noise(*sizes[i]), turn))
  source = CocoSource(folder)
  for _ in range(2):
    for i in range(5):
      source.load(i)
  assert source.notes.names == {ONE_VALUE: {'000001.jpg'}, TURNED: {'000002.jpg', '000003.jpg'}}
  assert [line.split(' (e.g.')[0] for line in warnings(caplog)] == [
    f'{source.name}: 1 images {reason}' for reason in (ONE_VALUE, TURNED)]


@pytest.mark.parametrize('suffix', ['png', 'tif'])
@pytest.mark.parametrize('largest, fewer', [((4000, 4200, 3000), '02'), ((4000, 4000, 300), ''), ((250, 40000), '0'),
                                            ((250, 4095, 4096, 0), '01')])
def test_images_that_are_scaled_otherwise_than_others(suffix, largest, fewer, caplog):
  notes = ImageNotes('x')
  for i, value in enumerate(largest):
    pixels = np.full([30, 30, 3], value // 2, np.uint16)
    pixels[0, 0] = value
    decode(cv2.imencode(f'.{suffix}', pixels)[1].tobytes(), str(i), notes=notes)
  assert notes.names.get(FEWER_BITS, set()) == set(fewer)
  assert [FEWER_BITS in line for line in warnings(caplog)].count(True) == bool(fewer)


def test_powers_of_ten_are_logged(caplog):
  notes = ImageNotes('x')
  for i in range(120):
    notes.add(ONE_VALUE, f'{i}.jpg')
  assert [line.split()[1] for line in warnings(caplog)] == ['1', '10', '100']
