"""The architecture, enforced: floors, sizes, names."""

import ast
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'rethink_tf'
MODULES = sorted(PACKAGE.rglob('*.py'))

# A module imports only what stands on a floor below its own; a folder counts as one module. The ground is for all.
GROUND = {'errors', 'process', 'redaction', 'structures'}
FLOORS = [
  {'ops'},
  {'models', 'storage', 'console', 'gin_files'},
  {'downloads'},
  {'weights', 'data', 'distributed', 'visualization'},
  {'training', 'evaluation'},
  {'experiment'},
  {'command_line', 'compare'},
  {'study'},
  {'train', 'evaluate', 'pretrain', 'export', 'bench', 'doctor', 'inspect_data', 'inspect_run'},
  {'predict', 'data.prepare'},
  {'api'},
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}

identify = {'ids': lambda path: path.relative_to(ROOT).as_posix()}


def module(path):
  """The module or folder of the package that a file belongs to: rethink_tf/data/detection/coco.py -> data.

  A command within a folder of shared modules stands above them: rethink_tf/data/prepare/__main__.py -> data.prepare.
  """
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  return '.'.join(parts[:-1]) if len(parts) > 2 and parts[-1] == '__main__' else parts[0]


def imported_modules(tree):
  """Modules and folders of rethink_tf that a module imports, at any depth of its code, with their lines.

  What is imported for type annotations alone (if TYPE_CHECKING) is no import at run time.
  """
  types = {id(child) for node in ast.walk(tree) if isinstance(node, ast.If) and
           getattr(node.test, 'id', '') == 'TYPE_CHECKING' for child in ast.walk(node)}
  for node in ast.walk(tree):
    if id(node) in types:
      continue
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'line {node.lineno}: write imports in full'
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    for name in names:
      components = name.split('.')
      if components[0] == 'rethink_tf' and len(components) > 1:
        yield components[1], node.lineno


@pytest.mark.parametrize('path', MODULES, **identify)
def test_imports_point_downwards(path):
  own = module(path)
  if own in ('__init__', '__main__'):
    return
  assert own in FLOOR_OF or own in GROUND, f'{own} has no floor yet: give it one in tests/test_layout.py'
  for name, line in imported_modules(ast.parse(path.read_text())):
    if name == own or name in GROUND or name == '__version__':
      continue
    assert own not in GROUND, f'{path}:{line}: {own} stands on the ground and imports {name}'
    assert FLOOR_OF[name] < FLOOR_OF[own], (
      f'{path}:{line}: {own} (floor {FLOOR_OF[own]}) imports {name} (floor {FLOOR_OF[name]})')


@pytest.mark.parametrize('path', MODULES, **identify)
def test_sizes(path):
  text = path.read_text()
  lines = text.splitlines()
  assert len(lines) <= 400, f'{path} has {len(lines)} lines: split it'
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno + 1 > 60:
      # A reason at its head: a comment right above the function.
      assert lines[node.lineno - 2 - len(node.decorator_list)].strip().startswith('#'), (
        f'{path}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines and gives no reason')


def test_the_root_stays_small():
  assert len([path for path in PACKAGE.glob('*.py') if not path.stem.startswith('__')]) <= 10


def test_no_file_is_empty():
  listed = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
  if listed.returncode:
    pytest.skip('no git repository: which files belong to the project is not known')
  paths = [ROOT / name for name in listed.stdout.splitlines()]
  assert [path for path in paths if path.exists() and not path.stat().st_size and path.name != '__init__.py'] == []


def test_no_drawer():
  assert not [path for path in MODULES if path.stem in ('utils', 'helpers', 'common', 'misc')]


def test_tests_mirror_the_package():
  modules = {path.relative_to(PACKAGE).as_posix() for path in MODULES}
  modules |= {path.relative_to(ROOT).as_posix() for name in ('launch', 'tools') for path in (ROOT / name).glob('*.py')}
  # Tests of no single module.
  whole = {'fuzz', 'layout', 'gin', 'gin_configs', 'golden', 'hostile', 'package', 'xla', 'dockerfile',
           'scripts', 'multi_worker', 'docs', 'notebook', 'old_run', 'own_data',
           'gpu', 'gpu_kernels', 'platforms'}
  for test in sorted((ROOT / 'tests').rglob('test_*.py')):
    name = test.stem.removeprefix('test_')
    folder = test.parent.relative_to(ROOT / 'tests').as_posix()
    assert name in whole or f'{folder}/{name}.py'.removeprefix('./') in modules, f'{test} mirrors no module'
