"""The report on a data set that has every kind of problem."""

import functools
import json

import cv2
import gin
import numpy as np
import pytest

from rethink_tf.data.augment import Resize
from rethink_tf.data.detection import suspicious as kinds
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.input import TrainInput
from rethink_tf.data.problems import Problems
from rethink_tf.inspect_data import inspection, plots, report, statistics
from tests import small_coco
from tests.in_process import call
from tests.small_coco import annotation, image
from tests.test_command_line import assert_one_line

CATEGORIES = [{'id': 1, 'name': 'thing'}, {'id': 4, 'name': 'seldom'}]


@pytest.fixture(scope='module')
def damaged(tmp_path_factory):
  """Training images 1 to 4 and 201, held-out images 1 and 9; 4 has no objects, 201 has the pixels of both images 1."""
  folder = tmp_path_factory.mktemp('data')
  annotations = [annotation(i, image_id=1 + i % 3, bbox=(5 + i, 10, 20, 30)) for i in range(1, 13)]
  annotations += [annotation(20, image_id=2, bbox=(70, 10, 30, 30)), annotation(21, image_id=201),
                  annotation(22, image_id=201), annotation(23, image_id=3, category_id=4, bbox=(2, 2, 3, 2)),
                  small_coco.crowd(24, image_id=3)]
  small_coco.write(folder, [image(i) for i in (1, 2, 3, 4, 201)], annotations, CATEGORIES, 'train2017')
  small_coco.write(folder, [image(1), image(9)], [annotation(1), annotation(2, image_id=9)], CATEGORIES, 'val2017')
  return folder


def make_inputs(folder, **settings):
  return TrainInput(CocoSource(str(folder), training=True), batch_size=2, resize=Resize((64,), 96), **settings)


def test_the_command_counts_damaged_files_and_annotations(damaged, tmp_path):
  out = tmp_path / 'runs/data' / damaged.name
  result = call('inspect_data', '--gin_file=gin_configs/scratch_6x.gin', f'--data_dir={damaged}',
                '--gin_param=Resize.short_side = (64,)', '--gin_param=Resize.max_side = 96', '--images=6',
                '--gin_param=BATCH_SIZE = 2', cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  found = json.loads((out / 'report.json').read_text())
  training = found['training']
  assert (training['images'], training['instances'], training['crowds']) == (5, 16, 1)
  assert training['images_without_objects'] == 1 and training['few'] == ['seldom']
  suspicious = {(suspect['kind'], suspect['annotation_id'], suspect['image_id']) for suspect in training['suspicious']}
  assert {(kinds.OUTSIDE, 20, 2), (kinds.REPEATED, 22, 201), (kinds.TINY_BOX, 23, 3)} <= suspicious
  assert found['in_both'] == {'id': [[1, 1]], 'name': [[1, 1]], 'content': [[1, 1]]}
  assert found['padding'][-1]['images'] == 4
  text = (out / 'report.txt').read_text()
  assert text in result.stdout
  assert training['problems']['clipped to the image']['examples'][0]['annotation_id'] == 20
  for line in ('4 images are trained on; 1 are dropped', '1         -  clipped to the image', 'annotation 20',
               '2 images with the same file content as another: 1 = 201', '1 images without objects',
               '1 classes with fewer than 10 instances: seldom',
               '0 unreadable files (not decoded: --files=decode finds damaged ones)'):
    assert line in text, line
  for name in ('training.png', 'statistics.png', 'suspicious.png'):
    assert cv2.imread(str(out / name)).std() > 5, name


def test_missing_images_and_limits_are_named(tmp_path, capsys):
  objects = [annotation(10 * i + k, i, (7 * k, 10, 5, 5)) for i in (1, 2, 3) for k in range(6)]
  for split in ('train2017', 'val2017'):
    small_coco.write(tmp_path / 'data', [image(i) for i in (1, 2, 3)], objects, split=split)
  (tmp_path / 'data/val2017/000002.jpg').unlink()
  (tmp_path / 'out').mkdir()
  for name in ('training.png', 'suspicious.png'):  # of an earlier call, before the data was mended
    (tmp_path / 'out' / name).write_text('')
  make = functools.partial(CocoSource, str(tmp_path / 'data'))
  gin.parse_config(['DetectionGenerator.max_detections = 4', 'TrainInput.max_instances = 5'])
  try:
    inspection.inspect(make, functools.partial(make, 'val2017'), lambda source: TrainInput(
      source, batch_size=2, resize=Resize((64,), 96)), str(tmp_path / 'out'), 0)
  finally:
    gin.clear_config()
  printed = capsys.readouterr().out
  for line in ('data/val2017: 1 of 3 images cannot be used: 1 missing, e.g. 000002.jpg',
               'data/train2017: 3 of 3 images have more objects than TrainInput.max_instances = 5: at most 83.3 %',
               'data/val2017: 2 of 2 images have more objects than DetectionGenerator.max_detections = 4: at most '):
    assert line in printed
  assert len(json.loads((tmp_path / 'out/report.json').read_text())['notes']) == 3
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['report.json', 'report.txt', 'statistics.png']


@pytest.mark.parametrize('names', [('cat', 'dog'), ('cat',), ('cat', 'cow')])
def test_classes_of_the_splits_are_compared_by_name(tmp_path, capsys, names):
  """Held out are three objects of the class cat and one of the other, if there is one, whatever their ids."""
  ids = {name: k for k, name in enumerate(names, 1)}
  categories = [{'id': k, 'name': name} for name, k in ids.items()]
  small_coco.write(tmp_path / 'data', [image(1)], [annotation(1, category_id=7), annotation(2, category_id=8)],
                   [{'id': 7, 'name': 'dog'}, {'id': 8, 'name': 'cat'}])
  small_coco.write(tmp_path / 'data', [image(2)], [annotation(k, 2, category_id=ids['cat']) for k in (1, 2, 3)] + [
    annotation(4, 2, category_id=k) for name, k in ids.items() if name != 'cat'], categories, split='val2017')
  make = functools.partial(CocoSource, str(tmp_path / 'data'))
  training, held_out = inspection.inspect(make, functools.partial(make, 'val2017'), lambda source: TrainInput(
    source, batch_size=1, resize=Resize((64,), 96)), str(tmp_path / 'out'), 0)
  classes = [each['name'] for each in training.summary['classes']]
  counts = dict(zip(classes, plots.instances_by_name(held_out.summary['classes'], classes), strict=True))
  assert counts == {'cat': 3, 'dog': 1 if 'dog' in names else 0}
  refused = 'training refuses these splits: data/val2017 and data/train2017 have different categories'
  assert (refused in capsys.readouterr().out) == (set(names) != {'cat', 'dog'})


@pytest.mark.parametrize('subset', [{'fraction': 0.5}, {'num_images': 4}])
def test_the_subset_that_is_trained_on_is_described(tmp_path, capsys, subset):
  """It is one of the images with objects, of which any other subset has others."""
  ids = range(1, 21)
  objects = [annotation(10 * i + k, i, (7 * k, 10, 5, 5)) for i in ids if i % 2 for k in range(i % 10)]
  for split in ('train2017', 'val2017'):
    small_coco.write(tmp_path / 'data', [image(i) for i in ids], objects, split=split)
  make, part = (functools.partial(CocoSource, str(tmp_path / 'data'), **settings) for settings in ({}, subset))
  training, _ = inspection.inspect(part, functools.partial(make, 'val2017'), lambda source: TrainInput(
    source, batch_size=2, resize=Resize((64,), 96)), str(tmp_path / 'out'), 0)
  trained = part(training=True)
  assert training.source.image_ids.tolist() == trained.image_ids.tolist()
  assert training.summary['instances'] == trained.num_instances.sum()
  note = f'data/train2017: only the {len(trained.image_ids)} images that are trained on are described'
  assert note in capsys.readouterr().out
  whole = report.analyse('training', make, 'none', make(training=True))
  assert whole.summary['images_without_objects'] == 10


def test_images_in_both_splits(damaged):
  def analyse(name):
    source = CocoSource(str(damaged), name)
    return report.Split(name, source, None, {}, [], Problems(), statistics.fingerprints(source, False))

  pairs = report.shared_images(analyse('train2017'), analyse('val2017'))
  assert pairs == {'id': [(0, 0)], 'name': [(0, 0)], 'content': [(0, 0)]}


def test_near_duplicates_in_both_splits(tmp_path, capsys):
  """Found where all images are decoded: the same picture, saved again."""
  pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
  for split, numbers in (('train', (1, 2)), ('val', (3, 4))):
    small_coco.write(tmp_path, [small_coco.image(i) for i in numbers], [small_coco.annotation(i, i) for i in numbers],
                     split=split)
  cv2.imwrite(str(tmp_path / 'train/000002.jpg'), pixels)
  cv2.imwrite(str(tmp_path / 'val/000003.jpg'), pixels, [cv2.IMWRITE_JPEG_QUALITY, 80])
  inspection.inspect(
    lambda training: CocoSource(str(tmp_path), 'train', training=training), lambda training: CocoSource(
      str(tmp_path), 'val'), lambda source: TrainInput(source, batch_size=2, resize=Resize((64,), 96)),
    str(tmp_path / 'out'), 0, 'decode')
  shown = capsys.readouterr().out
  assert 'near-duplicates      1 images: 000002.jpg = 000003.jpg' in shown and 'not decoded' not in shown
  assert json.loads((tmp_path / 'out/report.json').read_text())['in_both']['near-duplicates'] == [[2, 3]]


def test_padding_by_padded_shape(damaged):
  rows = report.padding(make_inputs(damaged))
  # 60 x 80 resized to 64 x 85, padded to 64 x 96.
  assert rows == [{'padded_shape': [64, 96], 'images': 4, 'waste': pytest.approx(1 - 85 / 96, abs=1e-4)},
                  {'padded_shape': None, 'images': 4, 'waste': pytest.approx(1 - 85 / 96, abs=1e-4)}]


def test_grid_of_training_images(damaged):
  data = plots.plot_training_images(make_inputs(damaged), 5)
  grid = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
  assert grid.shape[1] == plots.COLUMNS * 492 + 12
  assert grid.shape[0] > 2 * 300, 'two rows'


@pytest.mark.parametrize('outline, painted', [
  ([20, 20, 60, 20, 60, 50, 20, 50], False), ([20, 35, 40, 20, 60, 35, 40, 50], True)], ids=['box', 'diamond'])
def test_masks_that_fill_their_boxes_are_not_drawn(outline, painted, tmp_path):
  objects = [annotation(1, bbox=(20, 20, 40, 30), segmentation=[outline])]
  inputs = make_inputs(small_coco.write(tmp_path, [image(1)], objects))
  grid = cv2.imdecode(np.frombuffer(plots.plot_training_images(inputs, 1), np.uint8), cv2.IMREAD_COLOR)
  scale = 480 / 96 * 64 / 60  # from the image file to the cell
  centre = grid[round(38 + 35 * scale), round(12 + 40 * scale)]  # of a grey image
  assert (np.ptp(centre.astype(int)) > 20) == painted


def test_errors_are_one_line(tmp_path):
  assert_one_line(call('inspect_data', cwd=tmp_path), '--gin_file')
  assert_one_line(call('inspect_data', '--gin_file=gin_configs/scratch_6x.gin', cwd=tmp_path), 'instances_train2017')
