"""CVAT's own xml: shapes of every kind, masks, groups."""

import numpy as np
import pytest

from rethink_tf.data.detection.segmentation import ROTATED
from rethink_tf.data.prepare import cvat
from rethink_tf.data.prepare.labelme import BAD_MASK, WITHOUT_AREA
from rethink_tf.data.prepare.layout import (
  AGAIN,
  FEW_POINTS,
  MISSING,
  NO_AREA,
  NO_CLASS,
  NO_IMAGE,
  NOT_FINITE,
  NOT_NAMED,
  OF_AGAIN,
  Options,
)
from rethink_tf.data.prepare.source_folder import SourceFolder
from rethink_tf.errors import UserError
from tests.exports import rasterise


def read(root, shapes='', images=('a.jpg',), text=None, options=None, file='annotations.xml', name='x/a.jpg', more=''):
  """Return the reading of a file of CVAT, and its images."""
  root.mkdir(exist_ok=True)
  (root / file).write_text(text or (
    f'<annotations><version>1.1</version><image id="0" name="{name}" width="30" height="20">{shapes}</image>{more}'
    '</annotations>'))
  for image in images:
    (root / image).write_text('')
  folder = SourceFolder(str(root))
  assert cvat.recognize(folder) is not None
  reading = cvat.read(folder, options or Options())
  return reading, list(reading.images)


def box(x0, y0, x1, y1, label='cat', **fields):
  return (f'<box label="{label}" xtl="{x0}" ytl="{y0}" xbr="{x1}" ybr="{y1}" '
          + ' '.join(f'{key}="{value}"' for key, value in fields.items()) + '/>')


def test_shapes(tmp_path):
  reading, (image,) = read(tmp_path, box(1, 2, 4, 6) + box(10, 5, 20, 9, rotation='90.0') + """
    <polygon label="a dog" points="1.5,1;9,1;9,9"/><ellipse label="cat" cx="10" cy="10" rx="4" ry="2" rotation="90"/>
    <tag label="sunny"/><points label="cat" points="1,2"/><polyline label="cat" points="1,2;3,4;5,5"/>
    <skeleton label="cat"><points label="1" points="1,2"/></skeleton><polygon label="cat" points="1,1;2,2"/>
    <polygon label="cat" points="1,1;2,2;3"/><polygon label="cat"/><box label="cat" xtl="1" ytl="1" xbr="inf" ybr="3"/>
    <ellipse label="cat" cx="10" cy="10" rx="0" ry="2"/>""" + box(1, 1, 1, 5) + box(1, 1, 5, 5, ''))
  upright, turned, outline, ellipse = image.instances
  assert (upright['category'], upright['bbox'], upright['segmentation']) == ('cat', [1, 2, 3, 4], [])
  assert np.allclose(turned['bbox'], [13, 2, 4, 10]) and turned['segmentation'] == []
  assert (outline['category'], outline['segmentation']) == ('a dog', [[1.5, 1, 9, 1, 9, 9]])
  assert np.allclose(ellipse['bbox'], [8, 6, 4, 8]) and image.size == (20, 30)
  assert dict(reading.problems.counts) == {
    ROTATED: 1, cvat.TAG: 1, cvat.SKELETON: 1, f"{WITHOUT_AREA} ('points')": 1, f"{WITHOUT_AREA} ('polyline')": 1,
    FEW_POINTS: 1, NOT_FINITE: 3, NO_AREA: 2, NO_CLASS: 1}


def test_masks_are_runs_in_their_box(tmp_path):
  def mask(rle, left=3, top=2, width=4, height=2):
    return f'<mask label="cat" rle="{rle}" left="{left}" top="{top}" width="{width}" height="{height}"/>'

  bad = ('1, 2, 9', '1, x', '', '-1, 3'), {'left': 28}, {'top': -1}, {'width': 0}
  reading, (image,) = read(tmp_path, mask('1, 2, 2, 3') + mask('8') + ''.join(map(mask, bad[0])) + ''.join(
    mask('1, 2', **place) for place in bad[1:]))
  (one,) = image.instances
  expected = np.zeros([20, 30], np.uint8)
  expected[2, 4:6] = expected[3, 4:7] = 1
  assert np.array_equal(rasterise(one['segmentation'], (20, 30)), expected) and one['bbox'] == [4, 2, 3, 2]
  assert one['area'] == 5 and dict(reading.problems.counts) == {NO_AREA: 1, BAD_MASK: 7}


def test_a_mask_that_begins_with_its_first_pixel(tmp_path):
  """The first run, of pixels outside, is then of length 0; the last one may end the box, or be left out."""
  masks = '<mask label="cat" rle="0, 3, 1, 4" left="26" top="18" width="4" height="2"/>' \
          '<mask label="cat" rle="0, 3" left="0" top="0" width="4" height="2"/>'
  _, (image,) = read(tmp_path, masks)
  expected = np.zeros([2, 20, 30], np.uint8)
  expected[0, 18, 26:29] = expected[0, 19, 26:] = expected[1, 0, :3] = 1
  for one, mask in zip(image.instances, expected, strict=True):
    assert np.array_equal(rasterise(one['segmentation'], (20, 30)), mask)


def test_groups_are_one_object_of_each_label(tmp_path):
  polygon = '<polygon label="{}" points="{},1;9,1;9,9" group_id="{}"/>'
  _, (image,) = read(tmp_path, ''.join(polygon.format(*one) for one in (
    ('cat', 1, 1), ('cat', 2, 1), ('dog', 3, 1), ('cat', 4, 0), ('cat', 5, 0))))
  assert [(one['category'], len(one['segmentation'])) for one in image.instances] == [
    ('cat', 2), ('dog', 1), ('cat', 1), ('cat', 1)]


def test_subsets_and_several_files(tmp_path):
  entry = '<image id="1" name="{}" subset="{}" width="30" height="20">' + box(1, 1, 5, 5) + '</image>'
  (tmp_path / 'job.xml').write_text(f'<annotations>{entry.format("b.jpg", "Validation")}</annotations>')
  reading, images = read(tmp_path, images=('a.jpg', 'b.jpg', 'c.jpg'), more=entry.format('a.jpg', 'Train')
                         + entry.format('gone.jpg', 'Train'))
  assert [(image.file, image.split) for image in images] == [('a.jpg', None), ('b.jpg', 'val')]
  assert dict(reading.problems.counts) == {AGAIN: 1, OF_AGAIN: 1, NO_IMAGE: 1, MISSING: 1, NOT_NAMED: 1}
  _, images = read(tmp_path, options=Options(annotation_file='job.xml'))
  assert [image.file for image in images] == ['b.jpg']


@pytest.mark.parametrize('text, message', [
  ('<annotations><version>1.1</version></annotations>', 'no <image> in it'),
  ('<annotations><image>', 'not valid XML'), ('<!DOCTYPE x []><annotations><image/></annotations>', 'document type')])
def test_errors_of_one_line(tmp_path, text, message):
  with pytest.raises(UserError, match=message) as raised:
    read(tmp_path, text=text)
  assert '\n' not in str(raised.value) and 'annotations.xml' in str(raised.value)


def test_images_of_a_video_task_are_its_frames(tmp_path):
  meta = '<meta><task><id>3</id><mode>{}</mode></task></meta>'
  image = '<image id="0" name="a.jpg" width="30" height="20">' + box(1, 1, 5, 5) + '</image>'
  for mode, video in (('interpolation', 'annotations.xml, 3'), ('annotation', None)):
    _, (found,) = read(tmp_path, text=f'<annotations>{meta.format(mode)}{image}</annotations>')
    assert found.video == video
