"""The Python API: detections equal those of the commands, inputs of all kinds, errors, and docs/python.md."""

import ast
import inspect
import json
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys

import gin
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from rethink_tf import api
from rethink_tf.compare.report import Comparison
from rethink_tf.data.categories import Category
from rethink_tf.distributed import devices
from rethink_tf.errors import UserError
from rethink_tf.evaluation.postprocessing import ImageDetections
from rethink_tf.predict import outputs
from rethink_tf.storage.run_folder import RunFolder
from tests import small_coco, tiny_run
from tests.compare import fake_runs
from tests.test_command_line import call
from tests.tiny import PARAMS

ROOT = pathlib.Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures('no_configuration_is_left')


def test_the_home_directory_stands_for_a_tilde(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  for function in (api.evaluate, api.inspect_run, api.Detector.from_run):
    with pytest.raises(UserError, match=f'{tmp_path}/run'):
      function('~/run')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return tiny_run.make(tmp_path_factory)


@pytest.fixture(scope='module')
def detector(run):
  return api.Detector.from_run(run / 'run', batch=2)


@pytest.fixture(scope='module')
def files(run):
  return sorted((run / 'images').iterdir())


def assert_equal(one, other):
  assert one.size == other.size and one.class_names == other.class_names
  np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
  np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
  assert (one.masks != other.masks).mean() < 1e-4 if one.masks.size else other.masks.size == 0


def test_importing_the_api_does_not_import_tensorflow():
  code = "import sys, rethink_tf.api; sys.exit('tensorflow' in sys.modules)"
  assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, timeout=60).returncode == 0


# A trained detector.


def check_against_entries(detections, entries):
  """Compare with the entries of a predictions.json."""
  assert sum(len(one.scores) for one in detections) == len(entries) > 5
  for one in detections:
    own = [entry for entry in entries if entry['file_name'] == os.path.basename(one.name)]
    assert one.class_names == [entry['category_name'] for entry in own]
    np.testing.assert_allclose(one.scores, [entry['score'] for entry in own], atol=1e-6)
    xywh = np.array([entry['bbox'] for entry in own]).reshape(-1, 4)
    np.testing.assert_allclose(one.boxes, np.hstack([xywh[:, 1::-1], (xywh[:, :2] + xywh[:, 2:])[:, ::-1]]), atol=2e-3)
    for mask, entry in zip(one.masks, own, strict=True):
      np.testing.assert_array_equal(mask, coco_mask.decode(entry['segmentation']).astype(bool))


def test_detections_equal_those_of_the_command(detector, files, tmp_path):
  outputs.write_predictions(detector._detector, [str(path) for path in files], [], str(tmp_path), 0.05)
  detections = detector.predict(files, threshold=0.05)
  check_against_entries(detections, json.loads((tmp_path / 'predictions.json').read_text()))
  assert [one.name for one in detections] == [str(path) for path in files]
  for one, path in zip(detections, files, strict=True):
    count, size = len(one.scores), Image.open(path).size[::-1]
    assert one.size == size and one.boxes.dtype == one.scores.dtype == np.float32 and one.keypoints is None
    assert one.boxes.shape == (count, 4) and one.masks.shape == (count, *size) and one.masks.dtype == bool
    assert set(one.classes) <= set(range(1, 7)) and (np.diff(one.scores) <= 0).all()


def test_arrays_equal_image_files(detector, files):
  arrays = [np.asarray(Image.open(path)) for path in files]
  of_arrays = detector.predict(arrays, threshold=0.05)
  assert [one.name for one in of_arrays] == [0, 1, 2]
  for one, other in zip(of_arrays, detector.predict(files, threshold=0.05), strict=True):
    assert_equal(one, other)
  grey = arrays[0][..., 0]
  assert_equal(*detector.predict([grey, np.dstack([grey] * 3)], threshold=0.05))


def test_the_threshold(detector, files):
  all_scores = np.concatenate([one.scores for one in detector.predict(files, threshold=0.0)])
  limit = float(np.median(all_scores))
  few = np.concatenate([one.scores for one in detector.predict(files, threshold=limit)])
  assert len(few) == (all_scores >= limit).sum() < len(all_scores)
  none = detector.predict(files[0], threshold=1.0)[0]
  assert none.boxes.shape == (0, 4) and none.masks.shape == (0, *none.size) and none.class_names == []


def test_a_padded_shape_is_traced_once(detector, files):
  trainer = detector._detector._predict.__self__
  detector.predict(files)
  traces = trainer._predict.experimental_get_tracing_count()
  assert traces == 1
  detector.predict(files[0])
  detector.predict(np.zeros([60, 90, 3], np.uint8))
  assert trainer._predict.experimental_get_tracing_count() == traces


def test_categories_are_those_of_the_run(detector, run):
  saved = json.loads((run / 'run/categories.json').read_text())
  assert detector.class_names == [category['name'] for category in saved]
  assert [category.id for category in detector.categories] == [category['id'] for category in saved]


@pytest.mark.slow
def test_evaluation_equals_that_of_training(run, tmp_path):
  shutil.copytree(run / 'run', tmp_path / 'run')
  trained = [line for line in RunFolder(str(run / 'run'), create=False).read_metrics() if line['kind'] == 'eval'][-1]
  metrics = api.evaluate(tmp_path / 'run')
  assert {'box/AP', 'mask/AP', 'ema/box/AP'} <= set(metrics)
  assert {name: trained[name] for name in metrics if name in trained} == pytest.approx(
    {name: value for name, value in metrics.items() if name in trained}, abs=0.1)


def test_inspections_write_their_files_and_return_what_they_found(run, tmp_path):
  breakdowns = api.inspect_run(run / 'run', tmp_path / 'errors')
  assert set(breakdowns) == {'box', 'mask'} and (tmp_path / 'errors/errors_box.png').is_file()
  training, held_out = api.inspect_data('gin_configs/demo.gin', PARAMS, tmp_path / 'data')
  assert (len(training.source.image_ids), len(held_out.source.image_ids)) == (8, 3)
  assert (tmp_path / 'data/report.txt').is_file()


def test_a_comparison_returns_its_verdicts_and_page(tmp_path):
  paths = [fake_runs.write(tmp_path / 'scratch', fake_runs.HALF, k=6, images=1200),
           fake_runs.write(tmp_path / 'pretrained', fake_runs.HALF, k=2, init='R50.pkl')]
  comparison = api.compare(paths, tmp_path / 'out', metric='box/AP')
  assert comparison.metric == 'box/AP' and len(comparison.verdicts) == 1 and comparison.verdicts[0].words
  assert (tmp_path / 'out/index.html').is_file() and comparison.page == f'{tmp_path}/out/index.html'


@pytest.mark.slow
def test_a_saved_model_detects_what_the_run_detects(run, files, tmp_path):
  result = call('export', f'--model_dir={run}/run', f'--output={tmp_path}/saved', cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  of_run = api.Detector.from_run(run / 'run').predict(files, threshold=0.05)
  for batch in (1, 2):
    saved = api.Detector.from_saved_model(tmp_path / 'saved', batch=batch)
    assert saved.class_names == api.Detector.from_run(run / 'run').class_names
    for one, other in zip(saved.predict(files, threshold=0.05), of_run, strict=True):
      assert_equal(one, other)


@pytest.mark.slow
def test_detections_equal_those_of_the_command_in_a_process(run, files, tmp_path):
  result = call('predict', str(run / 'images'), f'--model_dir={run}/run', f'--output={tmp_path}/out', '--averages',
                '--threshold=0.05', '--noimages', cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  detections = api.Detector.from_run(run / 'run', averages=True).predict(run / 'images', threshold=0.05)
  check_against_entries(detections, json.loads((tmp_path / 'out/predictions.json').read_text()))


# Inputs; with a detector that returns the top left pixel as a box, so that nothing is trained.


class FirstPixel:
  """Finds one object in every image, at the values of its first pixel."""

  batch = 2
  categories = (Category(3, 'car'), Category(5, 'person', ('nose', 'foot')))
  upright = None

  def detect(self, source, threshold):
    for i in reversed(range(len(source.image_ids))):
      box = np.append(source.load(i).image[0, 0], 255).astype(np.float64)
      yield i, lambda i=i, box=box: ImageDetections(
        int(source.image_ids[i]), box[None], np.array([0.75]), np.array([2]), None, np.full([1, 2, 3], 7.0))


@pytest.fixture
def first_pixel():
  return api.Detector(FirstPixel())


def image(value, height=4, width=6):
  return np.full([height, width, 3], value, np.uint8)


@pytest.fixture
def folder(tmp_path):
  for name, value in (('img10.png', 10), ('img2.png', 2), ('deep/img1.png', 1)):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    Image.fromarray(image(value)).save(tmp_path / name)
  return tmp_path


def test_the_order_is_that_of_the_inputs(first_pixel, folder):
  inputs = [image(40), str(folder / 'img2.png'), image(41, 5, 3), folder, folder / 'img2.png', image(42)[..., 0]]
  detections = first_pixel.predict(inputs)
  assert [int(one.boxes[0, 0]) for one in detections] == [40, 2, 41, 1, 2, 10, 2, 42]
  relative = [one.name.removeprefix(f'{folder}/') if isinstance(one.name, str) else one.name for one in detections]
  assert relative == [0, 'img2.png', 2, 'deep/img1.png', 'img2.png', 'img10.png', 'img2.png', 5]
  assert [one.size for one in detections][:3] == [(4, 6), (4, 6), (5, 3)]


@pytest.mark.parametrize('make', [lambda folder: folder / 'img2.png', lambda folder: str(folder / 'img2.png'),
                                  lambda folder: image(2), lambda folder: image(2)[..., 0],
                                  lambda folder: iter([image(2)])])
def test_one_image_gives_one_result(make, first_pixel, folder):
  one, = first_pixel.predict(make(folder))
  assert one.boxes[0, 0] == 2 and one.class_names == ['person'] and one.classes.tolist() == [2]
  assert one.masks is None and one.keypoints.shape == (1, 2, 3) and one.keypoints.dtype == np.float32


@pytest.mark.parametrize('nothing', [[], (), iter([])])
def test_no_images_give_no_results(nothing, first_pixel):
  assert first_pixel.predict(nothing) == []


def test_the_exif_orientation(first_pixel, tmp_path, monkeypatch):
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(image(1, 4, 6)).save(tmp_path / 'a.png', exif=exif)
  asked = (False, True, None)
  for trained, sizes in ((None, [(4, 6), (6, 4), (4, 6)]), (True, [(4, 6), (6, 4), (6, 4)])):
    monkeypatch.setattr(FirstPixel, 'upright', trained)
    assert [first_pixel.predict(tmp_path / 'a.png', upright=upright)[0].size for upright in asked] == sizes


def test_damaged_files_are_logged_and_left_out(first_pixel, folder, caplog):
  (folder / 'img3.png').write_text('hello')
  whole = (folder / 'img2.png').read_bytes()
  (folder / 'img2.png').write_bytes(whole[:len(whole) - 20])  # only decoding detects it
  with caplog.at_level(logging.WARNING, logger='absl'):
    detections = first_pixel.predict([image(40), folder])
  assert [int(one.boxes[0, 0]) for one in detections] == [40, 1, 10]
  assert 'img3.png' in caplog.text and 'img2.png' in caplog.text and 'skipped' in caplog.text
  assert first_pixel.predict(folder / 'img3.png') == []


@pytest.mark.parametrize('images, words', [
  (image(1) / 255.0, 'image 0 is an array of float64'), ([image(1), image(1)[..., :2]], r'image 1 .*\[4, 6, 2\]'),
  (image(1)[None], r'\[1, 4, 6, 3\]'), ([image(1)[:0]], r'\[0, 6, 3\]'), (7, 'type int'), ([[1, 2]], 'type list'),
  ('nowhere.png', 'nowhere.png: no such file'), ('{folder}/text', 'no images there'),
  ('{folder}/clip.mp4', 'is a video')])
def test_wrong_inputs_are_one_line(images, words, first_pixel, tmp_path):
  (tmp_path / 'text').mkdir()
  (tmp_path / 'clip.mp4').write_text('')
  images = images.format(folder=tmp_path) if isinstance(images, str) else images
  with pytest.raises(UserError, match=words) as error:
    first_pixel.predict(images)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('pixels', [image(2, 40, 60), image(2, 40, 60)[..., 0]])
def test_detections_are_drawn_on_their_own_image_only(pixels, first_pixel):
  detections, = first_pixel.predict(pixels)
  rendered = first_pixel.draw(pixels, detections)
  assert rendered.dtype == np.uint8 and rendered.shape == (427, 640, 3) and len(np.unique(rendered)) > 10
  with pytest.raises(UserError, match='40 x 60'):
    first_pixel.draw(pixels[1:], detections)


def test_wrong_arguments(first_pixel, tmp_path):
  for make, words in ((lambda: first_pixel.predict([], threshold=50), 'threshold = 50'),
                      (lambda: api.Detector.from_run(tmp_path, batch=0), 'batch = 0'),
                      (lambda: api.Detector.from_run(tmp_path), 'no categories.json in'),
                      (lambda: api.Detector.from_saved_model(tmp_path), 'no SavedModel there'),
                      (lambda: api.train([]), 'no configuration'), (lambda: api.evaluate(tmp_path), 'no config.gin'),
                      (lambda: api.inspect_run(tmp_path), 'no evaluation'),
                      (lambda: api.train('gin_configs/demo.gin', 'SCHEDUEL = 2'), 'did you mean SCHEDULE')):
    with pytest.raises(UserError, match=words):
      make()
    assert not gin.config_is_locked(), 'parts can be registered'


def test_a_gpu_newer_than_the_kernels_is_refused_before_anything_is_loaded(first_pixel, run, tmp_path, monkeypatch):
  monkeypatch.setattr(devices, 'too_new', lambda found: 'a GPU is newer than the kernels')
  for make in (lambda: api.Detector.from_saved_model(tmp_path), lambda: api.Detector.from_run(run / 'run')):
    with pytest.raises(UserError, match='a GPU is newer than the kernels'):
      make()


# docs/python.md.

BLOCKS = re.findall(r'^```python\n(.*?)^```', (ROOT / 'docs/python.md').read_text(), re.S | re.M)
OBJECTS = {'api': api, 'detector': api.Detector, 'detections': api.Detections, 'comparison': Comparison}


def test_the_names_in_the_documentation_exist():
  used = set()
  for node in ast.walk(ast.parse('\n'.join(BLOCKS))):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in OBJECTS:
      assert hasattr(OBJECTS[node.value.id], node.attr), f'{node.value.id}.{node.attr}'
      used.add(node.attr)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
      owner = node.func.value
      owner = OBJECTS.get(owner.id) if isinstance(owner, ast.Name) else getattr(api, owner.attr, None)
      if owner is not None:
        parameters = inspect.signature(getattr(owner, node.func.attr)).parameters
        assert {keyword.arg for keyword in node.keywords} <= set(parameters), ast.unparse(node)
  assert used >= {*api.__all__, *api.Detections._fields, 'predict', 'draw', 'categories'} - {'Detections'}
  assert all(f'api.Detector.{name}(' in ''.join(BLOCKS) for name in ('from_run', 'from_saved_model'))


@pytest.mark.slow
def test_the_documentation_runs(tmp_path, monkeypatch):
  """As written, from the first block to the last, with little data and short schedules."""
  from tests.test_notebook import TINY
  original = api.train

  def train(gin_files, gin_params=(), **options):
    tiny = TINY['PRETRAINING'] if 'pretraining' in str(gin_files) else [*TINY['BOTH'], 'SCHEDULE = 0.01']
    return original(gin_files, [*([gin_params] if isinstance(gin_params, str) else gin_params), *tiny], **options)

  monkeypatch.setattr(api, 'train', train)
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'photos').mkdir()
  for i in range(2):
    Image.fromarray(np.random.default_rng(i).integers(0, 255, (90, 120, 3), np.uint8)).save(f'photos/{i}.jpg')
  for number, split in enumerate(('train2017', 'val2017'), start=1):
    small_coco.write('my_export', [small_coco.image(number)], [small_coco.annotation(1, number)], split=split)
  names = {}
  for number, block in enumerate(BLOCKS):
    if 'from_saved_model' in block:
      result = call('export', '--model_dir=runs/demo', cwd=tmp_path)
      assert result.returncode == 0, result.stderr
    exec(compile(block, f'block {number} of docs/python.md', 'exec'), names)
  assert pathlib.Path('runs/comparison/index.html').is_file() and pathlib.Path('runs/demo/saved_model').is_dir()


def test_errors_of_a_run_with_parts_of_its_own(run, tmp_path, monkeypatch):
  shutil.copytree(run / 'run', tmp_path / 'run')
  config = tmp_path / 'run' / 'config.gin'
  config.write_text(f'import parts_of_its_own\n{config.read_text()}')
  (tmp_path / 'parts_of_its_own.py').write_text('')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(UserError, match="add --gin_param='import parts_of_its_own' .from Python: gin_params"):
    api.inspect_run(tmp_path / 'run')
  with pytest.raises(UserError, match='score'):  # the import is no longer what stops it
    api.inspect_run(tmp_path / 'run', gin_params='import parts_of_its_own', score=2)
