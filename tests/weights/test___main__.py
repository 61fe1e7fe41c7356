"""python -m rethink_tf.weights: the description of a file, and the options that use it; errors are one line."""

import os
import pathlib
import subprocess
import sys

from rethink_tf.weights import __main__ as command
from tests.weights import files, reference

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_file_is_described(tmp_path, capsys):
  arrays = reference.random_arrays('folded')
  path = tmp_path / 'R-50.pkl'
  path.write_bytes(files.python_2_pickle(files.detectron_names(arrays, 'bn', 'fc1000')))
  command.main([str(path)])
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
