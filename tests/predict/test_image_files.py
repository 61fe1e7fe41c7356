"""Image files, arrays and videos as sources: natural order, distinct names, pixels as in evaluation."""

import io
import os
import struct

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from rethink_tf.data.categories import Category
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.images import decode
from rethink_tf.errors import UserError
from rethink_tf.predict.image_files import (
  ImageArrays,
  ImageFiles,
  Video,
  find_images,
  natural_order,
  number,
  output_names,
  relative_names,
)
from tests import small_coco
from tests.small_coco import warnings

CATEGORIES = (Category(1, 'thing'),)


def random_image(height=40, width=60, seed=0):
  return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def write(path, image=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(random_image() if image is None else image).save(path)
  return str(path)


def test_folders_are_searched_in_natural_order(tmp_path):
  for name in ('img10.png', 'img2.JPG', 'img11.jfif', 'deep/er/img1.png', 'notes.txt', 'clip.mp4', 'out/img3.png'):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'x')
  (tmp_path / 'deep' / 'back').symlink_to(tmp_path)  # a circle
  images, videos = find_images([str(tmp_path), str(tmp_path / 'img2.JPG')], leave_out=str(tmp_path / 'out'))
  assert [path.removeprefix(f'{tmp_path}/') for path in images] == ['deep/er/img1.png', 'img2.JPG', 'img10.png',
                                                                         'img11.jfif']
  assert videos == []
  images, videos = find_images([f'{tmp_path}/clip.mp4', f'{tmp_path}/notes.txt'])
  assert (images, videos) == ([f'{tmp_path}/notes.txt'], [f'{tmp_path}/clip.mp4']), 'named files count as images'


def test_numbers_and_letters_can_be_compared():
  assert sorted(['b', '10', '9', 'a1b', 'a', 'a10', 'a9', ''], key=natural_order) == [
    '', '9', '10', 'a', 'a1b', 'a9', 'a10', 'b']


@pytest.mark.parametrize('make, words', [
  (lambda folder: None, ['no images there', 'jpg']),
  (lambda folder: (folder / 'clip.mov').write_bytes(b'x'), ['1 other files', 'videos must be named']),
])
def test_no_images(make, words, tmp_path):
  make(tmp_path)
  with pytest.raises(UserError) as error:
    find_images([str(tmp_path)])
  assert all(word in str(error.value) for word in [str(tmp_path), *words])
  with pytest.raises(UserError, match=f'{tmp_path}/: is also the folder for the results'):
    find_images([f'{tmp_path}/'], str(tmp_path))
  with pytest.raises(UserError, match='nowhere: no such file'):
    find_images([f'{tmp_path}/nowhere'])


@pytest.mark.parametrize('paths, names', [
  (['/a/b/1.jpg', '/a/c/1.jpg'], ['b/1.jpg', 'c/1.jpg']),
  (['/a/b/1.jpg', '/a/b/2.jpg'], ['1.jpg', '2.jpg']),
  (['/a/b/1.jpg'], ['1.jpg']),
  (['/a/1.jpg', '/a/b/1.jpg'], ['1.jpg', 'b/1.jpg']),
  (['gs://one/1.jpg', 'gs://two/1.jpg'], ['one/1.jpg', 'two/1.jpg']),
])
def test_names_of_files_in_different_folders_differ(paths, names):
  assert relative_names(paths) == names


@pytest.mark.parametrize('names, outputs', [
  (['a.png', 'b.JPG', 's/a.png'], ['a.jpg', 'b.jpg', 's/a.jpg']),
  (['a.png', 'a.jpg'], ['a.png.jpg', 'a.jpg']),
  (['a.png', 'a.jpg', 'a.png.jpg'], ['a.png.jpg', 'a.jpg.jpg', 'a.png.jpg.jpg']),
  (['A.jpg', 'a.jpg'], ['A.jpg.jpg', 'a.jpg.jpg']),
])
def test_outputs_do_not_collide(names, outputs):
  assert output_names(names, '.jpg') == outputs


def test_ids_are_the_names_where_those_are_numbers():
  assert number(['000000000139.jpg', '285.jpg']).tolist() == [139, 285]
  assert number(['000139.jpg', '139.png']).tolist() == [1, 2]
  assert number(['1.jpg', 'two.jpg']).tolist() == [1, 2]


def test_all_kinds_of_images(tmp_path):
  """Grey, CMYK, 16 bit, transparent: decoded as in training."""
  image = random_image()
  paths = [write(tmp_path / 'a.png', image), str(tmp_path / 'grey.png'), str(tmp_path / 'cmyk.jpg'),
           str(tmp_path / 'deep.png'), str(tmp_path / 'clear.png')]
  Image.fromarray(image).convert('L').save(paths[1])
  Image.fromarray(image).convert('CMYK').save(paths[2])
  Image.fromarray(image[..., 0].astype(np.uint16) * 257).save(paths[3])
  Image.fromarray(image).convert('RGBA').save(paths[4])
  source = ImageFiles(paths, CATEGORIES)
  assert source.sizes.tolist() == [[40, 60]] * 5 and source.skipped == {}
  loaded = [source.load(i).image for i in range(5)]
  assert all(one.shape == (40, 60, 3) and one.dtype == np.uint8 for one in loaded)
  np.testing.assert_array_equal(loaded[0], image)
  np.testing.assert_array_equal(loaded[3], np.repeat(image[..., :1], 3, axis=2))
  np.testing.assert_array_equal(source.take(0), image)
  assert source.take(0) is None, 'taken once'


def test_damaged_files_are_skipped_and_counted(tmp_path, caplog):
  good = write(tmp_path / 'good.jpg')
  data = (tmp_path / 'good.jpg').read_bytes()
  (tmp_path / 'cut.jpg').write_bytes(data[:len(data) // 2])
  (tmp_path / 'text.png').write_text('hello')
  (tmp_path / 'empty.jpg').write_text('')
  source = ImageFiles([str(tmp_path / name) for name in ('cut.jpg', 'empty.jpg', 'good.jpg', 'text.png')], CATEGORIES)
  assert source.file_names == ['cut.jpg', 'good.jpg'], 'only headers are read so far'
  assert source.load(0).image.shape == (40, 60, 3) and source.take(0) is None
  assert source.load(1).image.any() and source.take(1) is not None
  assert set(source.skipped) == {'cut.jpg', 'empty.jpg', 'text.png'} and 'truncated' in source.skipped['cut.jpg']
  assert len(warnings(caplog)) == 3 and good not in ' '.join(warnings(caplog))


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'tif', 'webp'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(orientation, suffix, tmp_path):
  exif = Image.Exif()
  exif[0x0112] = orientation
  path, plain = tmp_path / f'turned.{suffix}', tmp_path / f'plain.{suffix}'
  options = {'webp': {'lossless': True}}.get(suffix, {})
  Image.fromarray(random_image()).save(path, exif=exif, **options)
  Image.fromarray(random_image()).save(plain, **options)
  pixels = decode(plain.read_bytes(), 'plain')
  stored, upright = (ImageFiles([str(path)], CATEGORIES, upright) for upright in (False, True))
  np.testing.assert_array_equal(stored.load(0).image, pixels)
  png = io.BytesIO()
  Image.fromarray(pixels).save(png, 'PNG', exif=exif)
  with Image.open(png) as opened:
    expected = np.asarray(ImageOps.exif_transpose(opened))
  np.testing.assert_array_equal(upright.load(0).image, expected)
  assert upright.sizes[0].tolist() == list(expected.shape[:2]) and upright.turned == (orientation > 1)


def test_a_rotated_jpeg_has_the_pixels_of_training(tmp_path):
  """Pixels as stored, unless the annotations have another size."""
  exif = Image.Exif()
  exif[0x0112] = 6
  folder = small_coco.write(tmp_path, [small_coco.image(1, 40, 60)], [small_coco.annotation(1, bbox=(5, 5, 9, 9))])
  path = tmp_path / 'train2017' / '000001.jpg'
  Image.fromarray(random_image()).save(path, exif=exif)
  source = ImageFiles([str(path)], CATEGORIES)
  assert source.turned == 1 and source.sizes.tolist() == [[40, 60]]
  np.testing.assert_array_equal(source.load(0).image, CocoSource(folder).load(0).image)


def write_video(path, frames=7, height=48, width=64):
  writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 12.0, (width, height))
  for frame in range(frames):
    writer.write(np.full((height, width, 3), 30 * frame, np.uint8))
  writer.release()
  return str(path)


def test_frames_can_be_loaded_in_any_order(tmp_path):
  source = Video(write_video(tmp_path / 'clip.avi'), CATEGORIES)
  assert source.image_ids.tolist() == [1, 2, 3, 4, 5, 6, 7] and source.frames_per_second == pytest.approx(12)
  assert source.sizes.tolist() == [[48, 64]] * 7 and source.file_names[2] == 'clip.avi#3'
  for i in (2, 0, 1, 6):
    assert abs(int(source.load(i).image.mean()) - 30 * i) < 4
  assert abs(int(source.take(5).mean()) - 150) < 4 and source.take(5) is None


def test_a_file_that_is_no_video(tmp_path):
  (tmp_path / 'text.mp4').write_text('hello')
  with pytest.raises(UserError, match='text.mp4.*no frame'):
    Video(str(tmp_path / 'text.mp4'), CATEGORIES)


def test_a_header_of_too_many_pixels_is_skipped(tmp_path):
  """It would be replaced by a grey image of that size."""
  data = cv2.imencode('.bmp', random_image())[1].tobytes()
  (tmp_path / 'bomb.bmp').write_bytes(data[:18] + struct.pack('<ii', 12000, 10000) + data[26:])
  source = ImageFiles([write(tmp_path / 'a.png'), str(tmp_path / 'bomb.bmp')], CATEGORIES)
  assert source.file_names == ['a.png'] and 'more than max_pixels' in source.skipped['bomb.bmp']


def test_names_that_are_not_text_are_skipped(tmp_path, caplog):
  write(tmp_path / 'a.png')
  for name in (b'caf\xe9.png', b'a\x1b[2J.png'):
    with open(os.path.join(os.fsencode(tmp_path), name), 'wb') as file:
      file.write((tmp_path / 'a.png').read_bytes())
  images, _ = find_images([str(tmp_path)])
  source = ImageFiles(images, CATEGORIES)
  assert source.file_names == ['a.png'] and len(source.skipped) == 2
  assert all(line.isprintable() and 'rename it' in line for line in warnings(caplog))


def test_a_named_path_that_is_not_text():
  with pytest.raises(UserError, match='not UTF-8'):
    find_images(['caf\udce9.png'])


def test_a_file_that_is_named_twice_is_loaded_twice(tmp_path):
  path = write(tmp_path / '1.png')
  source = ImageFiles([path, path], CATEGORIES)
  assert source.image_ids.tolist() == [1, 2] and source.positions == [0, 1]
  np.testing.assert_array_equal(source.load(0).image, source.load(1).image)


def test_arrays():
  images = [random_image(), random_image(30, 20)[..., 0], random_image(40, 60)[:, ::-1]]
  source = ImageArrays(images, CATEGORIES)
  assert source.sizes.tolist() == [[40, 60], [30, 20], [40, 60]] and source.file_names == ['0', '1', '2']
  for i, image in enumerate(images):
    expected = np.dstack([image] * 3) if image.ndim == 2 else image
    np.testing.assert_array_equal(source.load(i).image, expected)
    np.testing.assert_array_equal(source.take(i), expected)
  assert ImageArrays([], CATEGORIES).sizes.shape == (0, 2)


@pytest.mark.parametrize('image, words', [
  (random_image().astype(np.float32), 'float32'), (random_image()[..., :2], r'\[40, 60, 2\]'),
  (random_image()[None], r'\[1, 40, 60, 3\]'), (random_image(0), r'\[0, 60, 3\]'), ([[1, 2]], 'type list')])
def test_arrays_of_another_type_or_shape(image, words):
  with pytest.raises(UserError, match=f'image 1 is .*{words}.*uint8') as error:
    ImageArrays([random_image(), image], CATEGORIES)
  assert '\n' not in str(error.value)
