"""README's way from a folder of one's own images to a study, in miniature."""

import json
import pathlib
import shutil

import cv2
import numpy as np
import pytest

from tests import small_coco, tiny
from tests.in_process import call
from tests.test_command_line import ROOT

SMALL = [f'--gin_param={binding}' for binding in (
  *tiny.GIN, 'ResNet.depth = 14', "strategy.kind = 'one_device'", 'BATCH_SIZE = 2', 'KTimesSchedule.unit = 0.25',
  'CocoEvaluator.every = 0', 'run.images_per_device = 2')]


@pytest.fixture(scope='module')
def my_images(tmp_path_factory):
  """Two classes of bright rectangles: six images to train on, three held out."""
  folder = tmp_path_factory.mktemp('own') / 'my_images'
  categories = [{'id': 7, 'name': 'tall'}, {'id': 3, 'name': 'wide'}]
  for split, count in (('train', 6), ('val', 3)):
    images = [small_coco.image(i) for i in range(1, count + 1)]
    annotations = [small_coco.annotation(i, i, (10, 10, 20, 30) if i % 2 else (5, 20, 40, 15),
                                         category_id=7 if i % 2 else 3) for i in range(1, count + 1)]
    small_coco.write(folder, images, annotations, categories, split)
    for entry, found in zip(images, annotations, strict=True):
      path = str(folder / split / entry['file_name'])
      pixels, (x, y, w, h) = np.full([60, 80, 3], 20 + entry['id'], np.uint8), found['bbox']
      pixels[y:y + h, x:x + w] = 230
      cv2.imwrite(path, pixels)
  return folder


def run(command, data, *arguments):
  result = call(command, *arguments, f'--data_dir={data}', cwd=ROOT)
  assert result.returncode == 0, result.stderr
  return result.stdout


def test_the_commands_of_the_readme(my_images, tmp_path):
  data = ('--gin_file=gin_configs/demo.gin', '--gin_file=gin_configs/data/own.gin')
  report = run('inspect_data', my_images, *data, f'--output={tmp_path}/data', '--images=2')
  assert 'tall' in report and (tmp_path / 'data/training.png').exists()
  plan = run('study', my_images, '--gin_file=gin_configs/studies/own_data_narrow.gin', '--dry_run',
             '--nocalibrate', f'--output={tmp_path}/study')
  assert plan.count('scratch_') >= 6 and plan.count('shapes_') >= 6 and plan.count('target_') >= 6
  model_dir = f'--model_dir={tmp_path}/mine'
  run('train', my_images, *data, *SMALL, model_dir)
  names = [category['name'] for category in json.loads(pathlib.Path(tmp_path, 'mine/categories.json').read_text())]
  assert sorted(names) == ['tall', 'wide']
  lines = [json.loads(line) for line in (tmp_path / 'mine/metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines if line['kind'] == 'train'] == [1, 2]
  assert 0 <= lines[-1]['box/AP'] <= 100


@pytest.mark.parametrize('split, limit', [('train', 'TrainInput'), ('val', 'EvalInput')])
def test_missing_images_are_known_before_the_first_step(my_images, tmp_path, split, limit):
  data = shutil.copytree(my_images, tmp_path / 'data')
  for name in ('000001.jpg', '000002.jpg'):
    (data / split / name).unlink()
  result = call('train', '--gin_file=gin_configs/demo.gin', '--gin_file=gin_configs/data/own.gin', *SMALL,
                f'--data_dir={data}', f'--model_dir={tmp_path}/mine', cwd=ROOT)
  assert result.returncode == 1
  assert result.stderr.splitlines()[-1].startswith(f'error: data/{split}: 2 of ')
  assert f'more than {limit}.max_unreadable = 0.1' in result.stderr and 'Traceback' not in result.stderr
  assert 'trainable parameters' not in result.stderr  # the network is not built yet
