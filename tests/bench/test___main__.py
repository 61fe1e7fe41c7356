"""The door: one table, or JSON, for every task."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]
SMALL = [f'--gin_param={binding}' for binding in (
  *tiny.GIN, 'ResNet.depth = 14', 'synthetic.image_size = (64, 64)', 'synthetic.object_size = (16, 40)',
  'train/synthetic.num_images = 4', 'eval/synthetic.num_images = 2')]


def bench(*arguments):
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
  return subprocess.run([sys.executable, '-m', 'rethink_tf.bench', '--rounds=1', *arguments], cwd=ROOT, text=True,
                        env=environment, capture_output=True, timeout=570)


def test_train_as_json():
  ran = bench('--task=train', '--json', *SMALL)
  assert ran.returncode == 0, ran.stderr
  report = json.loads(ran.stdout)
  row, = report['rows']
  assert row['group'] == 'train 2 x 64 x 64' and row['images'] == 2 and row['gflop'] > 0
  assert row['timing']['fastest'] <= row['timing']['median'] <= row['timing']['slowest']
  assert abs(sum(report['share_by_part'].values()) - 1) < 1e-6
  assert {'backbone', 'norms', 'RPN', 'RoIAlign', 'box head', 'mask head', 'optimizer'} <= set(report['share_by_part'])
  assert report['peak_memory_mb'] > 100 and set(report['peak_gflops']) == {'float32', 'bfloat16'}


@pytest.mark.slow
def test_systems_beside_the_plain_detector():
  ran = bench('--task=systems', '--json', *SMALL)
  assert ran.returncode == 0, ran.stderr
  rows = json.loads(ran.stdout)['rows']
  names = ['plain', 'CBNet dual', 'CBNet triple', 'Cascade R-CNN', 'keypoints for masks']
  assert [row['group'] for row in rows] == ['train 2 x 64 x 64'] * 5 + ['predict 1 x 64 x 64'] * 5
  assert [row['name'] for row in rows] == names * 2
  plain, dual, triple, cascade, _ = (row['parameters'] for row in rows[:5])
  assert triple - dual == dual - plain > 0 and cascade > plain
  assert all(row['timing']['rounds'] == 1 and row['timing']['fastest'] > 0 for row in rows)


@pytest.mark.slow
def test_a_table_for_people():
  ran = bench('--task=paste')
  assert ran.returncode == 0, ran.stderr
  assert 'rethink_tf' in ran.stdout and 'x rethink_tf' in ran.stdout and 'matrix product of this machine' in ran.stdout


@pytest.mark.parametrize('arguments, told', [
  (['--task=nms', '--rounds=0'], '--rounds'),
  (['--task=train', '--gin_file=gin_configs/nothing.gin'], 'gin_configs/nothing.gin'),
])
def test_mistakes_are_one_line(arguments, told):
  ran = bench(*arguments)
  assert ran.returncode == 1
  assert ran.stderr.strip().splitlines()[-1].startswith('error: ') and told in ran.stderr
