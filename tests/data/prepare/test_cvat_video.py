"""CVAT's tracks: frames in which an object is outside, frames that are missing, held-out frames."""

import json

import cv2
import numpy as np
import pytest

from rethink_tf.data.prepare import cvat
from rethink_tf.data.prepare.division import BLOCKS, VIDEOS
from rethink_tf.data.prepare.layout import MISSING, NO_IMAGE, NOT_FINITE, Options
from rethink_tf.data.prepare.preparation import Division, prepare
from rethink_tf.errors import UserError
from tests.data.prepare.layouts import reading_of

FRAMES = tuple(f'images/frame_{i:06d}.PNG' for i in range(4))
SIZE = '<meta><task><original_size><width>30</width><height>20</height></original_size></task></meta>'


def box(frame, outside=0, x=1, **fields):
  more = ' '.join(f'{key}="{value}"' for key, value in fields.items())
  return (f'<box frame="{frame}" keyframe="1" outside="{outside}" occluded="1" xtl="{x}" ytl="2" xbr="9" ybr="8" '
          f'{more}/>')


def track(*shapes, label='cat', **fields):
  more = ' '.join(f'{key}="{value}"' for key, value in fields.items())
  return f'<track id="0" label="{label}" source="manual" {more}>{"".join(shapes)}</track>'


def read(root, *tracks, images=FRAMES, meta='', file='annotations.xml', options=None):
  """Return the reading of a file of CVAT, and its images."""
  return reading_of(cvat, root, {file: f'<annotations>{meta}{"".join(tracks)}</annotations>'}, images, options)


def test_an_object_is_in_the_frames_in_which_it_is_not_outside(tmp_path):
  polygon = '<polygon frame="{}" keyframe="0" outside="0" points="1,1;9,1;9,9"/>'
  mask = '<mask frame="2" outside="0" rle="1, 2, 2, 3" left="3" top="2" width="4" height="2"/>'
  reading, images = read(
    tmp_path, track(box(0), box(1, x=3), box(2, 1)), track(polygon.format(1), polygon.format(2), label='a dog'),
    track(mask, '<skeleton frame="2"/>', '<points frame="2" outside="0" points="1,2"/>'), meta=SIZE)
  assert [(image.file, [(one['category'], one['bbox'][:2]) for one in image.instances]) for image in images] == [
    (FRAMES[0], [('cat', [1, 2])]), (FRAMES[1], [('cat', [3, 2]), ('a dog', [1, 1])]),
    (FRAMES[2], [('a dog', [1, 1]), ('cat', [4, 2])]), (FRAMES[3], [])]
  assert {(image.size, image.video) for image in images} == {((20, 30), 'annotations.xml')}
  assert reading.notes == [cvat.NO_TRACK.format(count=1, file='annotations.xml')]
  assert reading.problems.counts[cvat.SKELETON] == 1 and sum(reading.problems.counts.values()) == 2


def test_tracks_of_one_group_are_one_object(tmp_path):
  _, (image, *_) = read(tmp_path, track(box(0), group_id=1), track(box(0, x=5), group_id=1), track(box(0)))
  assert [one['bbox'] for one in image.instances] == [[1, 2, 8, 6], [1, 2, 8, 6]]


def test_frames_without_an_image_and_wrong_numbers_are_counted(tmp_path):
  reading, images = read(tmp_path, track(box(0), box(7), box('x'), box('-1'), box('9' * 30), box(''), box(1, x='nan')),
                         images=FRAMES[:2])
  assert [(image.file, len(image.instances)) for image in images] == [(FRAMES[0], 1), (FRAMES[1], 0)]
  assert dict(reading.problems.counts) == {NO_IMAGE: 2, MISSING: 5, NOT_FINITE: 1}


@pytest.mark.parametrize('tracks, images, message', [
  ([track(box(0))], ['a.png'], "no image frame_000000.PNG, … is beside it: export with images, .*'COCO 1.0'"),
  ([track(box(0), task_id=1), track(box(0), task_id=2)], FRAMES, 'tracks of several tasks'),
  ([track(box(0))], [*FRAMES, 'other/frame_000000.PNG'], r'frames are in 2 folders \(images, other\)')])
def test_errors_of_one_line(tmp_path, tracks, images, message):
  with pytest.raises(UserError, match=message) as raised:
    read(tmp_path, *tracks, images=images)
  assert '\n' not in str(raised.value) and 'annotations.xml' in str(raised.value)


def test_each_video_has_its_own_frames(tmp_path):
  frames = [f'{video}/{frame}' for video in ('one', 'two') for frame in FRAMES[:2]]
  read(tmp_path, track(box(0)), images=frames, file='one/annotations.xml')
  reading, images = read(tmp_path, track(box(1)), images=(), file='two/annotations.xml')
  assert [(image.file, image.video, len(image.instances)) for image in images] == [
    (frames[0], 'one/annotations.xml', 1), (frames[1], 'one/annotations.xml', 0),
    (frames[2], 'two/annotations.xml', 0), (frames[3], 'two/annotations.xml', 1)]
  with pytest.raises(UserError, match='have tracks over the same frames: export the whole task'):
    read(tmp_path, track(box(0)), images=(), file='two/job.xml')
  _, images = read(tmp_path, track(box(0)), images=(), file='two/job.xml', options=Options('two/job.xml'))
  assert [image.file for image in images] == frames[2:]


def write_video(folder, frames, shift, seed=0):
  """Write a video over noise that moves by some pixels a frame, with an object in each."""
  noise = cv2.resize(np.random.default_rng(seed).integers(0, 255, [24, 60, 3]).astype(np.uint8), (600, 240))
  (folder / 'images').mkdir(parents=True)
  for i in range(frames):
    cv2.imwrite(str(folder / f'images/frame_{i:06d}.PNG'), noise[:, shift * i:shift * i + 300])
  (folder / 'annotations.xml').write_text(f'<annotations>{track(*map(box, range(frames)))}</annotations>')


def held_out(own):
  content = json.loads((own / 'annotations/instances_val.json').read_text())
  return [image['file_name'] for image in content['images']]


@pytest.mark.parametrize('shift', [0, 12])
def test_of_one_video_a_block_of_frames_is_held_out(tmp_path, shift):
  write_video(tmp_path / 'export', 20, shift)
  prepared = prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  numbers = [int(name[6:12]) for name in held_out(tmp_path / 'own')]
  assert numbers == list(range(numbers[0], numbers[0] + 4))
  assert BLOCKS.format(frames=20, videos=1, s='') in prepared.notes
  # A camera that stands still shows the same in both splits, which is said.
  assert any('held-out images are near-duplicates of training images' in note for note in prepared.notes) == (not shift)
  assert not any('all images are near-duplicates' in note for note in prepared.notes)


def test_of_several_videos_whole_ones_are_held_out(tmp_path):
  for i in range(5):
    write_video(tmp_path / f'export/video{i}', 4, 12, seed=i)
  prepared = prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  assert len({name.split('/')[0] for name in held_out(tmp_path / 'own')}) == 1 and len(held_out(tmp_path / 'own')) == 4
  assert VIDEOS.format(frames=20, videos=5) in prepared.notes
  prepared = prepare(str(tmp_path / 'export'), str(tmp_path / 'apart'), division=Division(group=False))
  assert not any('videos' in note for note in prepared.notes)
