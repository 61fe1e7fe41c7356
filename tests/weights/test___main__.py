"""python -m rethink_tf.weights: the description of a file, and the options that use it; errors are one line."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from rethink_tf.downloads import settings
from rethink_tf.weights import __main__ as command
from tests.in_process import call
from tests.weights import files, reference
from tests.weights.test_state_dicts import CHECKPOINTS

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def the_environment_is_restored(monkeypatch):
  for name in (settings.CACHE, settings.OFFLINE):
    monkeypatch.setenv(name, '')


def test_a_file_is_described(tmp_path, capsys):
  arrays = reference.random_arrays('folded')
  path = tmp_path / 'R-50.pkl'
  path.write_bytes(files.python_2_pickle(files.detectron_names(arrays, 'bn', 'fc1000')))
  command.describe_all([str(path)])
  shown = capsys.readouterr().out
  parameters = sum(array.size for array in arrays.values())
  for text in ('Detectron .pkl', 'ResNet-14', 'folded', 'bgr', '(122.7717, 115.9465, 102.9801)', 'on the first 1x1',
               'CC BY-SA', f'{parameters:,} numbers', f'--weights={path}', 'init/imagenet_msra.gin',
               'norms/frozen_bn.gin', "'ResNet.depth = 14'"):
    assert text in shown, text


def test_an_error_is_one_line_and_exit_code_1(tmp_path):
  result = subprocess.run([sys.executable, '-m', 'rethink_tf.weights', str(tmp_path / 'none.pth')], cwd=tmp_path,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, timeout=300)
  assert result.returncode == 1 and result.stdout == ''
  assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith('error: ') and 'none.pth' in result.stderr


def test_names_are_listed_and_described(tmp_path):
  listed = call('weights', '--list', '--json', f'--cache_dir={tmp_path}')
  assert listed.returncode == 0
  assert {each['address_state'] for each in json.loads(listed.stdout)} == {'address not tried'}
  offline = call('weights', 'swav', '--offline', f'--cache_dir={tmp_path}')
  assert offline.returncode == 1
  assert 'https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar (address not tried)' in offline.stdout
  assert offline.stderr.startswith(f'error: swav: is not at {tmp_path}/weights/swav/swav_800ep_pretrain.pth.tar, and ')
  assert len(offline.stderr.splitlines()) == 1
  path = tmp_path / 'weights/swav/swav_800ep_pretrain.pth.tar'
  path.parent.mkdir(parents=True)
  files.torch_object(path, CHECKPOINTS['SwAV'][0])
  found = call('weights', 'swav', '--offline', f'--cache_dir={tmp_path}')
  assert found.returncode == 0 and '--gin_file=gin_configs/init/swav.gin' in found.stdout
  assert '--weights=swav' in found.stdout and 'CC BY-NC 4.0' in found.stdout
  assert call('weights', '--json').stderr.startswith('error: --json belongs to --list')
