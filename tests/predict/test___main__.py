"""The door to a trained detector: what evaluation finds, it finds; and whatever people point it at."""

import json
import types

import cv2
import gin
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from rethink_tf.predict.real_images import Photographs

from rethink_tf import experiment, gin_files
from rethink_tf.data.detection import placeholder  # noqa: F401  so that gin finds it
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.evaluation.postprocessing import ImageDetections
from rethink_tf.predict import detectors, outputs
from rethink_tf.training import ema
from tests.test_command_line import assert_one_line, call
from tests.test_experiment import PARAMS

TTA = ('run.test_augmentation = @TestTimeAugmentation()', 'TestTimeAugmentation.views = ((64, 64), (48, 64))',
       'TestTimeAugmentation.keypoint_area = None')
# Random weights hardly find anything: let them.
EAGER = ('DetectionGenerator.score_threshold = 0.01',)
SIZE = ('synthetic.image_size = (60, 90)',)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of two steps with its last evaluation, and the photographs of that in a folder."""
  path = tmp_path_factory.mktemp('run')
  gin_files.parse(['gin_configs/demo.gin'], [*PARAMS, *EAGER, *SIZE, 'KTimesSchedule.unit = 0.25',
                                             'CocoEvaluator.every = 0', 'run.eval_images_per_device = 2',
                                             'run.ema = @ExponentialMovingAverage'])
  experiment.run('train', str(path / 'run'))
  gin.clear_config()
  source = SyntheticSource(3, split='val', image_size=(60, 90), object_size=(16, 40))
  (path / 'photographs').mkdir()
  for i, image_id in enumerate(source.image_ids.tolist()):
    Image.fromarray(source.load(i).image).save(path / 'photographs' / f'{image_id:06d}.png')
  return path


@pytest.fixture(autouse=True)
def no_configuration_is_left():
  yield
  gin.clear_config()


def predicted(run, *params, batch=2, averages=False):
  """What the door's own path finds in the photographs, as entries of predictions.json."""
  files = sorted(str(path) for path in (run / 'photographs').iterdir())
  kept = {}

  def task(parts):
    source = Photographs(files, parts.scoring.source.categories)
    with ema.restored(parts, str(run), averages):
      found = {index: make() for index, make in detectors.by_run(parts, source, 'accurate')}
    kept['entries'] = outputs.results([found[i] for i in sorted(found)], source)

  gin_files.parse([str(run / 'run' / 'config.gin')], [
    f'run.eval_images_per_device = {batch}', 'run.eval_source = @placeholder',
    f"placeholder.categories_file = '{run}/run/categories.json'", *params])
  experiment.run(task, str(run / 'run'))
  gin.clear_config()
  return kept['entries']


def evaluated(run, name='run'):
  folder = sorted((run / name / 'eval').glob('step-*'))[-1]
  return [json.loads((folder / file).read_text()) for file in ('bbox.json', 'segm.json')]


def assert_same(entries, boxes, masks):
  assert len(entries) == len(boxes) > 5
  order = lambda entry: (entry['image_id'], -entry['score'], entry['category_id'])  # noqa: E731
  for one, box, mask in zip(*(sorted(each, key=order) for each in (entries, boxes, masks)), strict=True):
    assert (one['image_id'], one['category_id']) == (box['image_id'], box['category_id'])
    np.testing.assert_allclose(one['bbox'], box['bbox'], atol=2e-3)
    assert one['score'] == pytest.approx(box['score'], abs=1e-5)
    different = coco_mask.decode(one['segmentation']) != coco_mask.decode(mask['segmentation'])
    assert different.mean() < 0.002
    assert one['file_name'] == f'{one["image_id"]:06d}.png' and one['category_name']


def test_the_same_as_evaluation(run):
  assert_same(predicted(run), *evaluated(run))


def test_averages_find_what_their_evaluation_finds(run):
  boxes, masks = evaluated(run, 'run/ema')
  assert [box['score'] for box in boxes] != [box['score'] for box in evaluated(run)[0]]
  assert_same(predicted(run, averages=True), boxes, masks)


@pytest.mark.slow
def test_the_same_with_views(run):
  """Test-time augmentation is the same switch, and the same answer."""
  gin_files.parse([str(run / 'run' / 'config.gin')], TTA)
  experiment.run('evaluate', str(run / 'run'))
  gin.clear_config()
  assert_same(predicted(run, *TTA, batch=1), *evaluated(run))


@pytest.mark.slow
def test_the_command(run):
  """Folders of equal names, damaged files, pictures of all kinds, a film; from the run folder alone; and once more."""
  folder = run / 'mixed'
  for name in ('a', 'b'):
    (folder / name).mkdir(parents=True)
    Image.fromarray(np.full((50, 70), 90, np.uint8)).save(folder / name / 'same.jpg')
  Image.fromarray(np.zeros((1, 3, 3), np.uint8)).save(folder / 'tiny.png')
  (folder / 'text.jpg').write_text('hello')
  colours = np.random.default_rng(0).integers(0, 255, (40, 60, 4), np.uint8)
  Image.fromarray(colours[..., :3]).save(folder / 'cut.jpg')
  whole = (folder / 'cut.jpg').read_bytes()
  (folder / 'cut.jpg').write_bytes(whole[:len(whole) * 3 // 4])  # only decoding finds that out
  Image.fromarray(colours).save(folder / 'clear.png')
  Image.fromarray(colours[..., 0].astype(np.uint16) * 257).save(folder / 'deep.png')
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(colours[..., :3]).save(folder / 'turned.jpg', exif=exif)
  film = cv2.VideoWriter(str(run / 'clip.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 10.0, (80, 60))
  for frame in range(5):
    film.write(np.full((60, 80, 3), 40 * frame, np.uint8))
  film.release()
  out = run / 'out'
  command = ['predict', str(folder), str(run / 'clip.mp4'), f'--model_dir={run}/run', f'--output={out}',
             '--threshold=0.05', '--batch=2', '--frames']
  result = call(*command, cwd=run)
  assert result.returncode == 0, result.stderr
  assert '2 of 13 pictures could not be read' in result.stdout
  assert 'text.jpg: cannot' in result.stderr and 'cut.jpg: the JPEG is truncated; skipped' in result.stderr
  assert '1 photographs say by EXIF' in result.stderr and 'stand-in' not in result.stderr + result.stdout
  pictures = [f'pictures/{name}.jpg' for name in ('a/same', 'b/same', 'clear', 'deep', 'tiny', 'turned')]
  assert sorted(path.relative_to(out).as_posix() for path in (out / 'pictures').rglob('*.jpg')) == pictures
  assert cv2.imread(str(out / 'pictures/turned.jpg')).shape[:2] == (427, 640), 'as stored, and enlarged'
  about = json.loads((out / 'images.json').read_text())
  assert [image['file_name'] for image in about['images']] == [
    'a/same.jpg', 'b/same.jpg', 'clear.png', 'cut.jpg', 'deep.png', 'tiny.png', 'turned.jpg']
  assert set(about['skipped']) == {'text.jpg', 'cut.jpg'} and len(about['categories']) == 6
  names = {category['id']: category['name'] for category in about['categories']}
  entries = json.loads((out / 'predictions.json').read_text())
  assert all(entry['score'] >= 0.05 and entry['category_name'] == names[entry['category_id']] for entry in entries)
  same = [[(e['bbox'], e['score']) for e in entries if e['file_name'] == f'{name}/same.jpg'] for name in 'ab']
  np.testing.assert_allclose([e[1] for e in same[0]], [e[1] for e in same[1]], atol=1e-5)
  capture = cv2.VideoCapture(str(out / 'clip' / 'predictions.mp4'))
  assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 5 and capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
  assert len(list((out / 'clip' / 'frames').iterdir())) == 5
  assert len(json.loads((out / 'clip' / 'images.json').read_text())['images']) == 5
  (out / 'predictions.json').write_text('of another run')
  limit = float(np.median([entry['score'] for entry in entries]))
  again = call(*command, f'--threshold={limit}', '--nofilm', cwd=run)
  assert again.returncode == 0, again.stderr
  sure = json.loads((out / 'predictions.json').read_text())
  assert len(sure) == pytest.approx(len(entries) / 2, abs=3) and min(entry['score'] for entry in sure) >= limit


@pytest.mark.slow
def test_a_saved_model(run):
  exported = call('export', f'--model_dir={run}/run', f'--out={run}/saved', cwd=run)
  assert exported.returncode == 0, exported.stderr
  result = call('predict', str(run / 'photographs'), f'--saved_model={run}/saved', f'--output={run}/from_saved',
                '--threshold=0.01', '--nopictures', cwd=run)
  assert result.returncode == 0, result.stderr
  entries = json.loads((run / 'from_saved' / 'predictions.json').read_text())
  own = [entry for entry in predicted(run) if entry['score'] >= 0.01]
  assert len(entries) == pytest.approx(len(own), abs=2) and len(own) > 5
  assert not (run / 'from_saved' / 'pictures').exists() and 'custom gradient' not in result.stderr
  np.testing.assert_allclose(sorted(e['score'] for e in entries)[-5:], sorted(e['score'] for e in own)[-5:], atol=0.01)
  together = call('predict', str(run / 'photographs'), f'--saved_model={run}/saved', f'--output={run}/together',
                  '--threshold=0.01', '--batch=2', '--nopictures', cwd=run)
  assert together.returncode == 0, together.stderr
  of_batches = json.loads((run / 'together' / 'predictions.json').read_text())
  for one, alone in zip(of_batches, entries, strict=True):
    assert {**one, 'score': 0} == {**alone, 'score': 0} and one['score'] == pytest.approx(alone['score'], abs=1e-6)


@pytest.mark.parametrize('arguments, words', [
  ([], ['no pictures', '--model_dir']),
  (['{here}', '--model_dir=runs/x'], ['no pictures there']),
  (['{here}/a.jpg'], ['--model_dir', '--saved_model']),
  (['{here}/a.jpg', '--model_dir=runs/x', '--threshold=50'], ['--threshold', '0 to 1']),
  (['{here}/a.jpg', '--saved_model=x', '--averages'], ['SavedModel', '--averages']),
], ids=['nothing', 'empty', 'no-run', 'threshold', 'averages-of-a-file'])
def test_refusals(arguments, words, tmp_path):
  if '{here}/a.jpg' in arguments:
    (tmp_path / 'a.jpg').write_bytes(b'x')
  arguments = [argument.format(here=tmp_path) for argument in arguments]
  assert_one_line(call('predict', *arguments, cwd=tmp_path), *words)


def test_a_run_that_is_none(tmp_path):
  (tmp_path / 'a.jpg').write_bytes(b'x')
  (tmp_path / 'run').mkdir()
  assert_one_line(call('predict', f'{tmp_path}/a.jpg', f'--model_dir={tmp_path}/run', cwd=tmp_path), 'config.gin')
  assert_one_line(call('predict', f'{tmp_path}/a.jpg', f'--saved_model={tmp_path}/run', cwd=tmp_path),
                  'no SavedModel', str(tmp_path / 'run'))


def test_the_threshold_cuts_every_field():
  found = ImageDetections(7, np.zeros([3, 4]), np.array([0.9, 0.5, 0.2]), np.array([1, 2, 1]), [{'size': [1, 1]}] * 3,
                np.zeros([3, 2, 3]))
  kept = outputs.above(found, 0.5)
  assert kept.image_id == 7 and [len(field) for field in kept[1:]] == [2] * 5
  assert outputs.above(found._replace(masks=None, keypoints=None), 1.0).scores.tolist() == []


def test_keypoints_stand_beside_the_box_of_their_detection():
  """Only one of two categories has keypoints: they must not slip to the next detection."""
  from rethink_tf.data.categories import Category
  categories = (Category(3, 'car'), Category(5, 'person', ('nose', 'foot')))
  source = types.SimpleNamespace(categories=categories, image_ids=np.array([7]), file_names=['a.jpg'])
  points = np.arange(18, dtype=np.float64).reshape(3, 2, 3)
  boxes = np.array([[0, 1, 10, 21]] * 3, np.float64)
  found = ImageDetections(7, boxes, np.array([0.9, 0.8, 0.7]), np.array([2, 1, 2]), None, points)
  entries = outputs.results([found], source)
  assert [entry['category_name'] for entry in entries] == ['person', 'car', 'person']
  assert entries[0]['bbox'] == [1, 0, 20, 10] and entries[0]['keypoints'] == [1, 0, 2, 4, 3, 5]
  assert 'keypoints' not in entries[1] and entries[2]['keypoints'] == [13, 12, 14, 16, 15, 17]
