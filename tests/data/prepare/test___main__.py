"""The command: from an export to the report of inspect_data."""

import os

import pytest

from tests import exports
from tests.in_process import call


@pytest.fixture(scope='module')
def export(tmp_path_factory):
  folder = tmp_path_factory.mktemp('command')
  exports.ultralytics(*exports.draw(folder / 'data'), folder / 'my export')
  return folder / 'my export'


def test_from_an_export_to_a_folder(export, tmp_path):
  done = call('data.prepare', export, f'--output_dir={tmp_path}/own', '--noinspect', '--copy')
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('read as YOLO text files (data.yaml, ')
  assert 'train: 5 images with 8 objects' in done.stdout
  assert done.stdout.rstrip().endswith(f'--data_dir={tmp_path}/own')
  assert sorted(os.listdir(tmp_path / 'own')) == ['annotations', 'prepared.json', 'train', 'val']


@pytest.mark.slow
def test_the_report_of_inspect_data(export, tmp_path):
  done = call('data.prepare', export, f'--output_dir={tmp_path}/own', f'--report_dir={tmp_path}/report')
  assert done.returncode == 0, done.stderr
  assert 'wide one' in done.stdout and 'images in both training and held-out data' in done.stdout
  assert {'report.txt', 'report.json', 'training.png'} <= set(os.listdir(tmp_path / 'report'))


def test_a_report_that_cannot_be_written(export, tmp_path):
  (tmp_path / 'file').write_text('')
  done = call('data.prepare', export, f'--output_dir={tmp_path}/own', f'--report_dir={tmp_path}/file/report')
  line = done.stderr.splitlines()[-1]
  assert done.returncode == 1 and line.startswith(f'error: {tmp_path}/own is complete, but the report on it failed: ')
  assert '--report_dir' in line and '--output' not in line and os.path.exists(tmp_path / 'own/prepared.json')


@pytest.mark.parametrize('arguments, message', [
  ([], 'name one folder to read'), (['a', 'b'], 'name one folder to read'), (['/nowhere'], '/nowhere: no such folder'),
  (['/', '--copy', '--link'], 'choose one of them')])
def test_wrong_arguments_are_one_line(arguments, message):
  done = call('data.prepare', *arguments, '--output_dir=/tmp/none')
  assert done.returncode == 1 and done.stderr.startswith('error: ') and message in done.stderr
  assert done.stderr.count('\n') == 1
