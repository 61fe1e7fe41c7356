"""The Docker image: pinned, small, not root, and built from files that exist."""

import pathlib
import re

import pytest

from rethink_tf import train

ROOT = pathlib.Path(__file__).resolve().parents[2]
IGNORED = [line for line in (ROOT / '.dockerignore').read_text().splitlines() if line and not line.startswith('#')]


@pytest.fixture(scope='module')
def stages():
  """The Dockerfile as stages of (instruction, arguments)."""
  text = re.sub(r'^\s*#.*\n', '', (ROOT / 'Dockerfile').read_text(), flags=re.MULTILINE)
  found = []
  for line in re.sub(r'\\\n', ' ', text).splitlines():
    if line.strip():
      instruction, arguments = line.split(None, 1)
      assert instruction.isupper(), line
      if instruction == 'FROM':
        found.append([])
      found[-1].append((instruction, ' '.join(arguments.split())))
  return found


def of(stage, instruction):
  return [arguments for name, arguments in stage if name == instruction]


def included(name):
  """Whether .dockerignore includes a path of the checkout in the build."""
  allowed = True
  for pattern in IGNORED:
    bare = pattern.lstrip('!')
    components = name.split('/')
    if bare in ('*', components[0]) or bare.startswith('**/') and bare[3:] in components:
      allowed = pattern.startswith('!')
  return allowed


def test_base_images_are_pinned_to_a_supported_python(stages):
  bases = [of(stage, 'FROM')[0].split()[0] for stage in stages]
  assert len(set(bases)) == 1  # built on the base that it runs on
  assert re.fullmatch(r'python:3\.(10|11|12)\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?', bases[0]), bases


def test_every_installation_is_constrained(stages):
  installs = [command for run in of(stages[0], 'RUN') for command in re.split(r'&&|;;|; ', run)
              if 'pip install' in command]
  assert len(installs) >= 3
  for install in installs:
    assert '-c constraints.txt' in install or '--no-deps' in install, install
    assert 'http' not in install and '-i ' not in install
  assert 'PIP_NO_CACHE_DIR=1' in ' '.join(of(stages[0], 'ENV'))


def test_the_default_tensorflow_is_that_of_setup(stages):
  assert of(stages[0], 'ARG') == ['TENSORFLOW=tensorflow[and-cuda]']
  version = re.search(r'^tensorflow==(\S+)', (ROOT / 'constraints.txt').read_text(), re.MULTILINE).group(1)
  assert f'tensorflow-tpu=={version}' in ' '.join(of(stages[0], 'RUN'))


def test_the_image_runs_training_and_not_as_root(stages):
  last = stages[-1]
  names = [name for name, _ in last]
  assert of(last, 'USER') == ['trainer'] and names.index('USER') < names.index('ENTRYPOINT')
  assert any('useradd' in run and 'trainer' in run for run in of(last, 'RUN'))
  assert of(last, 'ENTRYPOINT') == ['["python", "-m", "rethink_tf.train"]']  # no shell in between: signals reach Python
  assert train.__name__ == 'rethink_tf.train' and not of(last, 'ADD') and not of(stages[0], 'ADD')
  assert not any('sudo' in run or 'apt-get' in run for run in of(last, 'RUN'))


def test_copied_files_exist_and_are_included(stages):
  sources = [source for stage in stages for copied in of(stage, 'COPY') if not copied.startswith('--from')
             for source in copied.split()[:-1] if source != '.']
  assert 'constraints.txt' in sources
  for source in sources:
    assert (ROOT / source).exists() and included(source), source


@pytest.mark.parametrize('name, expected', [
  ('rethink_tf/train.py', True), ('gin_configs/scratch_6x.gin', True), ('README.md', True), ('setup.py', True),
  ('runs/demo/config.gin', False), ('.git/config', False), ('.venv/bin/python', False), ('data/coco/x.jpg', False),
  ('tests/test_train.py', False), ('rethink_tf/__pycache__/train.pyc', False), ('key.json', False), ('.env', False),
])
def test_files_included_in_the_build(name, expected):
  assert included(name) == expected
