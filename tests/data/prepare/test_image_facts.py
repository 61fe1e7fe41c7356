"""Sizes by the header, with EXIF orientation."""

import numpy as np
import pytest
from PIL import Image

from rethink_tf.data.images import ImageError
from rethink_tf.data.prepare.image_facts import ImageFacts, OtherSize, examine, write_upright
from rethink_tf.data.prepare.layout import LabelledImage
from rethink_tf.data.prepare.source_folder import SourceFolder


@pytest.mark.parametrize('turn, recorded, upright, facts', [
  (1, None, True, ImageFacts((6, 9), False)), (6, None, True, ImageFacts((9, 6), False)),
  (6, None, None, ImageFacts((6, 9), False)), (6, (9, 6), None, ImageFacts((9, 6), False)),
  (6, (6, 9), True, ImageFacts((6, 9), False)), (3, None, True, ImageFacts((6, 9), True)),
  (3, (6, 9), True, ImageFacts((6, 9), True)), (3, (6, 9), None, ImageFacts((6, 9), False)),
  (1, (6, 8), True, None)])
@pytest.mark.parametrize('suffix', ['jpg', 'png', 'tif', 'webp'])
def test_orientation(tmp_path, turn, recorded, upright, facts, suffix):
  exif = Image.Exif()
  exif[0x0112] = turn
  Image.fromarray(np.zeros([6, 9, 3], np.uint8)).save(tmp_path / f'a.{suffix}', exif=exif)
  image = LabelledImage(f'a.{suffix}', 'a', None, [], recorded)
  source = SourceFolder(str(tmp_path))
  if facts is None:
    with pytest.raises(OtherSize, match='annotated as 8x6 .*the file is 9x6'):
      examine(source, image, upright)
  else:
    assert examine(source, image, upright) == facts


@pytest.mark.parametrize('data', [b'', b'no image', b'\x89PNG\r\n\x1a\n' + b'\0\0\0\rIHDR' + b'\0' * 8 + b'\0' * 9,
                                  b'\x89PNG\r\n\x1a\n' + b'\0\0\0\rIHDR' + b'\x7f\xff\xff\xff' * 2])
def test_damaged_and_huge_files(tmp_path, data):
  (tmp_path / 'a.png').write_bytes(data)
  with pytest.raises(ImageError, match='a.png'):
    examine(SourceFolder(str(tmp_path)), LabelledImage('a.png', 'a', None, []), None)
  with pytest.raises(ImageError, match='cannot be decoded'):
    write_upright(str(tmp_path / 'a.png'), str(tmp_path / 'b.png'))


@pytest.mark.parametrize('suffix', ['png', 'tif', 'webp'])
@pytest.mark.parametrize('turn', [2, 3, 4, 5, 6, 7, 8])
def test_upright_copies(tmp_path, suffix, turn):
  upright = np.random.default_rng(0).integers(0, 255, [6, 9, 3], np.uint8)
  way = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_270}[turn]  # the inverse of what a viewer does
  exif = Image.Exif()
  exif[0x0112] = turn
  options = {'lossless': True} if suffix == 'webp' else {}
  Image.fromarray(upright).transpose(way).save(tmp_path / f'a.{suffix}', exif=exif, **options)
  write_upright(str(tmp_path / f'a.{suffix}'), str(tmp_path / 'b.png'))
  assert (np.asarray(Image.open(tmp_path / 'b.png')) == upright).all()
