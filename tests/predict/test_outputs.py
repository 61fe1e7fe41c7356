"""Files that predict writes."""

import json
import resource
import types

import cv2
import numpy as np
import pytest
from PIL import Image

from rethink_tf.data.categories import Category
from rethink_tf.errors import UserError
from rethink_tf.evaluation.postprocessing import ImageDetections
from rethink_tf.predict import detectors, outputs


class OneBox:
  """A detector that finds the same box in every image."""

  batch = 2
  categories = (Category(3, 'car'),)
  upright = None

  def detect(self, source, threshold):
    for i, image_id in enumerate(source.image_ids.tolist()):
      source.load(i)
      yield i, lambda image_id=image_id: detectors.above(ImageDetections(
        image_id, np.array([[1.0, 2, 11, 22]]), np.array([0.75]), np.array([1]), None), threshold)


@pytest.fixture
def images(tmp_path):
  paths = []
  for name in ('7.png', '8.jpg'):
    Image.fromarray(np.full((50, 70), 90, np.uint8)).save(tmp_path / name)
    paths.append(str(tmp_path / name))
  return paths


def test_results_of_image_files(images, tmp_path, capsys):
  outputs.write_predictions(OneBox(), images, [], str(tmp_path / 'out'))
  assert json.loads((tmp_path / 'out/predictions.json').read_text()) == [
    {'image_id': i, 'category_id': 3, 'bbox': [2, 1, 20, 10], 'score': 0.75, 'category_name': 'car', 'file_name': name}
    for i, name in ((7, '7.png'), (8, '8.jpg'))]
  content = json.loads((tmp_path / 'out/images.json').read_text())
  assert [image['id'] for image in content['images']] == [7, 8] and content['categories'][0]['name'] == 'car'
  assert sorted(path.name for path in (tmp_path / 'out/images').iterdir()) == ['7.jpg', '8.jpg']
  assert '2 objects in 2 images, score >= 0.5' in capsys.readouterr().out


@pytest.mark.parametrize('trained, asked, shape, words', [
  (None, None, (50, 70), 'ignored; --upright applies it'), (True, None, (70, 50), 'applied, as in training'),
  (False, None, (50, 70), 'ignored, as in training'), (True, False, (50, 70), 'ignored, unlike in training')])
def test_the_exif_orientation_is_that_of_training(tmp_path, monkeypatch, caplog, trained, asked, shape, words):
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(np.zeros((50, 70, 3), np.uint8)).save(tmp_path / '1.jpg', exif=exif)
  monkeypatch.setattr(OneBox, 'upright', trained)
  with caplog.at_level('INFO', logger='absl'):
    outputs.write_predictions(OneBox(), [str(tmp_path / '1.jpg')], [], str(tmp_path / 'out'), upright=asked)
  entry, = json.loads((tmp_path / 'out/images.json').read_text())['images']
  assert (entry['height'], entry['width']) == shape and f'1 images have an EXIF orientation: {words}' in caplog.text


def test_nothing_above_the_threshold_names_the_best_score(images, tmp_path, capsys):
  outputs.write_predictions(OneBox(), images, [], str(tmp_path / 'out'), threshold=0.9)
  assert '0 objects in 2 images: nothing with score >= 0.9; best score 0.75 (--threshold)' in capsys.readouterr().out


def test_an_unreadable_video_is_known_before_any_work(images, tmp_path):
  (tmp_path / 'bad.mp4').write_bytes(b'no video')
  with pytest.raises(UserError, match='bad.mp4: OpenCV can read no frame of this video'):
    outputs.write_predictions(OneBox(), images, [str(tmp_path / 'bad.mp4')], str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('options, written', [
  (outputs.OutputOptions(images=False), []), (outputs.OutputOptions(format='png'), ['7.png', '8.png'])])
def test_options_of_images(options, written, images, tmp_path):
  outputs.write_predictions(OneBox(), images, [], str(tmp_path / 'out'), options=options)
  assert sorted(path.name for path in (tmp_path / 'out').glob('images/*')) == written


@pytest.mark.parametrize('options, video, frames', [
  (outputs.OutputOptions(), True, 0), (outputs.OutputOptions(video=False, frames=True), False, 5),
  (outputs.OutputOptions(images=False), False, 0)])
def test_options_of_videos(options, video, frames, tmp_path, capsys):
  outputs.write_predictions(OneBox(), [], [noise(tmp_path / 'clip.avi')], str(tmp_path / 'out'), options=options)
  folder = tmp_path / 'out/clip'
  assert (folder / 'predictions.mp4').exists() == video and len(list(folder.glob('frames/*'))) == frames
  assert len(json.loads((folder / 'predictions.json').read_text())) == 5
  assert '5 objects in 5 frames' in capsys.readouterr().out


def test_results_of_an_earlier_call_are_told_apart(images, tmp_path, capsys):
  out = str(tmp_path / 'out')
  outputs.write_predictions(OneBox(), images, [], out)
  assert 'other images' not in capsys.readouterr().out
  outputs.write_predictions(OneBox(), images, [], out, threshold=0.1)  # replaces all of it
  assert 'other images' not in capsys.readouterr().out
  outputs.write_predictions(OneBox(), images[:1], [], out)
  assert f"1 other images or videos are in it, e.g. {out}/images/8.jpg: not of these results" in capsys.readouterr().out
  outputs.write_predictions(OneBox(), images[:1], [], out, options=outputs.OutputOptions(format='png'))
  assert '2 other images' in capsys.readouterr().out

  class Stopped(OneBox):
    def detect(self, source, threshold):
      yield from ()
      raise KeyboardInterrupt
  with pytest.raises(KeyboardInterrupt):
    outputs.write_predictions(Stopped(), images[1:], [], out)
  assert [image['id'] for image in json.loads((tmp_path / 'out/images.json').read_text())['images']] == [8]
  assert not (tmp_path / 'out/predictions.json').exists()  # whose ids are those of other images


def noise(path, frames=5):
  writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 10.0, (80, 60))
  for _ in range(frames):
    writer.write(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
  writer.release()
  return str(path)


def test_a_video_that_does_not_fit_on_the_disk_is_an_error(tmp_path):
  """OpenCV says nothing of it; a limit of the size of files stands for the full disk."""
  video, limits = noise(tmp_path / 'clip.avi'), resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    with pytest.raises(UserError, match='out/clip/predictions.mp4: cannot be written to its end.*free space'):
      outputs.write_predictions(OneBox(), [], [video], str(tmp_path / 'out'))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert [path.name for path in (tmp_path / 'out/clip').iterdir()] == ['images.json']


def test_damaged_images_are_counted(images, tmp_path, capsys):
  (tmp_path / 'text.jpg').write_text('hello')
  outputs.write_predictions(OneBox(), [*images, f'{tmp_path}/text.jpg'], [], str(tmp_path / 'out'))
  assert '1 of 3 images could not be read' in capsys.readouterr().out
  assert list(json.loads((tmp_path / 'out/images.json').read_text())['skipped']) == ['text.jpg']
  with pytest.raises(UserError, match='none of the images could be read'):
    outputs.write_predictions(OneBox(), [f'{tmp_path}/text.jpg'], [], str(tmp_path / 'out'))


@pytest.mark.parametrize('name', ['7.jpg', '7.png', 'clip/predictions.mp4'])
def test_no_result_replaces_what_it_is_computed_from(tmp_path, name):
  """The folder of a data set, with its images in images/, is a natural --output."""
  given = tmp_path / 'images' / name
  given.parent.mkdir(parents=True)
  Image.fromarray(np.full((50, 70), 90, np.uint8)).save(given, 'JPEG')
  before = given.read_bytes()
  paths = [[str(given)], []] if name.startswith('7') else [[], [f'{given.parent.parent}/clip.avi', str(given)]]
  output = str(tmp_path if name.startswith('7') else tmp_path / 'images')
  (tmp_path / 'link').symlink_to(output)
  options = outputs.OutputOptions(format='png' if name.endswith('png') else 'jpg')
  with pytest.raises(UserError, match='is given to predict, which would replace it.*--output'):
    outputs.write_predictions(OneBox(), *paths, str(tmp_path / 'link'), options=options)
  assert given.read_bytes() == before
  if name.startswith('7'):
    outputs.write_predictions(OneBox(), *paths, output, options=outputs.OutputOptions(images=False))
  assert given.read_bytes() == before


def test_an_output_that_cannot_be_written(images, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot be written.*--output'):
    outputs.write_predictions(OneBox(), images, [], str(tmp_path / 'file/out'))


def test_keypoints_belong_to_the_box_of_their_detection():
  """Of two categories only one has keypoints: they must not shift to the next detection."""
  categories = (Category(3, 'car'), Category(5, 'person', ('nose', 'foot')))
  source = types.SimpleNamespace(categories=categories, image_ids=np.array([7]), file_names=['a.jpg'])
  points = np.arange(18, dtype=np.float64).reshape(3, 2, 3)
  boxes = np.array([[0, 1, 10, 21]] * 3, np.float64)
  found = ImageDetections(7, boxes, np.array([0.9, 0.8, 0.7]), np.array([2, 1, 2]), None, points)
  entries = outputs.results([found], source)
  assert [entry['category_name'] for entry in entries] == ['person', 'car', 'person']
  assert entries[0]['bbox'] == [1, 0, 20, 10] and entries[0]['keypoints'] == [1, 0, 2, 4, 3, 5]
  assert 'keypoints' not in entries[1] and entries[2]['keypoints'] == [13, 12, 14, 16, 15, 17]
