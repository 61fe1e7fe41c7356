"""Installs without tf-models-official, as on native Windows: what is imported, and what the commands then do."""

import ast
import functools
import os
import re
import subprocess
import sys

import pytest
import yaml

from rethink_tf.data.categories import Category
from rethink_tf.data.detection import record_format
from rethink_tf.distributed import strategy as distribution
from rethink_tf.errors import UserError
from tests import commands, tiny

PACKAGE = commands.ROOT / 'rethink_tf'
# Modules of packages by another name, and those of optional extras or of programs whose files are read.
DISTRIBUTIONS = {'absl': 'absl-py', 'gin': 'gin-config', 'cv2': 'opencv-python-headless', 'PIL': 'pillow',
                 'yaml': 'pyyaml', 'google': 'tensorflow', 'google_crc32c': 'google-crc32c',
                 'official': 'tf-models-official'}
OPTIONAL = {'tensorflow_addons', 'detectron2'}
OF_EXTRAS = {'onnx', 'onnxruntime', 'tf2onnx'}  # imported by the commands that need them

# What native Windows does not have. TensorFlow is imported before, since this is Linux.
WINDOWS = '''
import fcntl, os, resource, runpy, signal, sys
import tensorflow as tf, tf_keras, cv2, matplotlib.pyplot, scipy.special, h5py, concurrent.futures, subprocess, tempfile
for name in ('official', 'tensorflow_text', 'tensorflow_models', 'fcntl', 'resource', 'pwd', 'grp', 'termios'):
  sys.modules[name] = None
for module, names in ((signal, ('SIGHUP', 'SIGUSR1', 'pthread_kill')), (os, (
    'O_NOFOLLOW', 'O_DIRECTORY', 'O_NONBLOCK', 'pread', 'sched_getaffinity', 'statvfs', 'getuid', 'mkfifo', 'uname',
    'getloadavg'))):
  for name in names:
    if hasattr(module, name):
      delattr(module, name)
command, sys.argv = sys.argv[1], [sys.argv[1], *sys.argv[2:]]
runpy.run_module(command, run_name='__main__', alter_sys=True)
'''


@functools.cache
def imports():
  """File, line, top-level module, and whether it is within `with needs_models(…)`, of every import of the package."""
  found = []
  for path in sorted(PACKAGE.rglob('*.py')):
    text = path.read_text()
    nodes = list(ast.walk(ast.parse(text)))
    guarded = {id(child) for node in nodes if isinstance(node, ast.With)
               and any('needs_models(' in ast.unparse(item) for item in node.items) for child in ast.walk(node)
               } if 'needs_models(' in text else set()
    for node in nodes:
      names = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
               [node.module] if isinstance(node, ast.ImportFrom) else [])
      found += [(path.relative_to(PACKAGE).as_posix(), node.lineno, name.split('.')[0], id(node) in guarded)
                for name in names]
  return found


def test_imports_of_tf_models_official_are_in_functions_that_explain_its_absence():
  found = set()
  for file, line, name, guarded in imports():
    if name in ('official', 'tensorflow_text', 'tensorflow_models'):
      assert guarded, f'{file}:{line}: import it within needs_models()'
      found.add(file)
  assert {file for file in found if not file.startswith('bench/')} == {
    'distributed/strategy.py', 'data/detection/record_format.py'}


def test_modules_that_windows_lacks_may_be_missing():
  found = set()
  for path in sorted(PACKAGE.rglob('*.py')):
    tree = ast.parse(path.read_text())
    tried = {id(child) for node in ast.walk(tree) if isinstance(node, ast.Try) for child in node.body
             if any(ast.unparse(handler.type or ast.Constant('')) == 'ImportError' for handler in node.handlers)}
    for node in ast.walk(tree):
      for alias in node.names if isinstance(node, ast.Import) else ():
        if alias.name in ('fcntl', 'resource', 'pwd', 'grp', 'termios'):
          assert id(node) in tried, f'{path}:{node.lineno}: import {alias.name} within `try`: Windows has none'
          found.add(alias.name)
  assert found == {'fcntl', 'resource'}


def test_every_package_that_is_imported_is_a_requirement():
  """Not only one of tf-models-official."""
  text = (commands.ROOT / 'setup.py').read_text()
  required = re.findall(r"""['"]([\w.-]+)[^'"]*""", text[text.index('install_requires'):text.index('extras_require')])
  extras = re.findall(r"""['"]([\w.-]+)[^'"]*""", text[text.index('extras_require'):])
  assert OF_EXTRAS <= set(extras) - set(required)
  for file, line, name, _ in imports():
    if name not in sys.stdlib_module_names and name not in OPTIONAL | OF_EXTRAS | {'rethink_tf'}:
      assert DISTRIBUTIONS.get(name, name) in required, f'{file}:{line}: {name} is in no requirement of setup.py'


def test_without_tf_models_official_the_error_is_one_line_with_the_fix(monkeypatch):
  for name in ['official', *(name for name in sys.modules if name.startswith('official.'))]:  # imported before, or not
    monkeypatch.setitem(sys.modules, name, None)
  record = record_format.Record('1', 'a.jpg', 4, 4, b'\xff\xd8', [])
  for call, what in ((lambda: distribution.strategy('tpu'), "strategy.kind = 'tpu' needs tf-models-official"),
                     (lambda: record_format.encode(record, [Category(1, 'a')], False), 'writing TFRecords needs')):
    with pytest.raises(UserError, match='tensorflow-text has no wheel') as error:
      call()
    assert what in str(error.value) and '\n' not in str(error.value)


@pytest.mark.slow
def test_train_evaluate_predict_and_compare_without_what_windows_lacks(tmp_path):
  def run(command, *arguments):
    ran = subprocess.run([sys.executable, '-c', WINDOWS, f'rethink_tf.{command}', *arguments], capture_output=True,
                         text=True, check=False, cwd=commands.ROOT, env={**os.environ, 'MPLBACKEND': 'Agg'})
    assert ran.returncode == 0, ran.stderr
    return ran

  params = [f'--gin_param={param}' for param in tiny.PARAMS]
  folder = f'--model_dir={tmp_path}/run'
  first = run('train', '--gin_file=gin_configs/demo.gin', *params, folder).stderr
  assert first.splitlines()[0].startswith('devices: CPU, ')
  assert run('train', '--gin_file=gin_configs/demo.gin', *params, folder)  # resumes a complete run
  assert 'box/AP' in run('evaluate', folder).stderr + (tmp_path / 'run/metrics.jsonl').read_text()
  run('predict', 'docs/images', folder)
  run('compare', str(tmp_path / 'run'), f'--output={tmp_path}/report')
  lines = (tmp_path / 'run/metrics.jsonl').read_bytes()
  assert b'\r' not in lines and lines.count(b'\n') >= 5


def test_continuous_integration_runs_on_each_python_that_is_allowed():
  (job,) = yaml.safe_load((commands.ROOT / '.github/workflows/tests.yml').read_text())['jobs'].values()
  bounds = re.search(r"python_requires='>=3\.(\d+),<3\.(\d+)'", (commands.ROOT / 'setup.py').read_text())
  low, high = map(int, bounds.groups())
  assert job['strategy']['matrix']['python'] == [f'3.{minor}' for minor in range(low, high)]
  assert (commands.ROOT / job['steps'][-1]['run']).stat().st_mode & 0o111
