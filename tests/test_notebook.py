"""The notebook docs/demo.ipynb: valid, without outputs, naming only what exists; and, slow, running from end to end."""

import ast
import inspect
import json
import operator
import re
import shlex

import gin
import pytest

from rethink_tf import api, gin_files
from tests import commands

NOTEBOOK = commands.ROOT / 'docs/demo.ipynb'
TINY = {
  'SCRATCH': 0.01,
  'FINE_TUNING': 0.005,
  'BOTH': ['MaskRCNN.pixel_std = (1.0, 1.0, 1.0)', 'KTimesSchedule.warmup_steps = 1', 'CocoEvaluator.every = 8',
           'train/synthetic.num_images = 24', 'eval/synthetic.num_images = 4', 'CocoEvaluator.num_pictures = 2'],
  'PRETRAINING': ['train/synthetic_classes.num_images = 64', 'eval/synthetic_classes.num_images = 10',
                  'EpochSchedule.epochs = 1', 'EpochSchedule.drops = ()'],
  'SCORE': 0.0,  # so that there are detections
}


def cells(kind='code'):
  return [''.join(cell['source']) for cell in json.loads(NOTEBOOK.read_text())['cells'] if cell['cell_type'] == kind]


def test_it_is_a_notebook_of_format_4_without_outputs():
  notebook = json.loads(NOTEBOOK.read_text())
  assert notebook.keys() == {'cells', 'metadata', 'nbformat', 'nbformat_minor'}
  assert (notebook['nbformat'], notebook['nbformat_minor']) == (4, 4)  # from 4.5 on, each cell needs an id
  assert notebook['metadata']['kernelspec']['name'] == 'python3'
  for cell in notebook['cells']:
    code = {'execution_count', 'outputs'} if cell['cell_type'] == 'code' else set()
    assert cell.keys() == {'cell_type', 'metadata', 'source', *code}
    assert cell['cell_type'] in ('code', 'markdown') and cell['metadata'] == {}
    assert not cell.get('outputs') and cell.get('execution_count') is None
    assert ''.join(cell['source']).strip() and all(isinstance(line, str) for line in cell['source'])
    assert all(line.endswith('\n') for line in cell['source'][:-1]) and not cell['source'][-1].endswith('\n')


def test_cells_are_plain_python():
  for source in cells():
    ast.parse(source)
    assert all(len(line) <= 120 for line in source.splitlines())


def constants():
  """Values that the cells assign as constants: settings and paths."""
  known = {}
  for source in cells():
    for node in ast.parse(source).body:
      if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.List | ast.JoinedStr):
        exec(compile(ast.Module([node], []), 'cell', 'exec'), known)
  return known


def calls():
  """Yield (name, arguments by parameter) of each call api.<name>(...), evaluated with the constants."""
  known = {'__builtins__': {}, **constants()}
  for source in cells():
    for node in ast.walk(ast.parse(source)):
      if isinstance(node, ast.Call) and ast.unparse(node.func).startswith('api.'):
        name = ast.unparse(node.func).removeprefix('api.')
        signature = inspect.signature(operator.attrgetter(name)(api))
        arguments = eval(f'bind({", ".join(map(ast.unparse, [*node.args, *node.keywords]))})',
                         known | {'bind': signature.bind})
        yield name, arguments.arguments


def test_its_calls_of_the_api_are_valid():
  import rethink_tf.experiment  # noqa: F401  registers what gin files name
  found = list(calls())
  assert [name for name, _ in found] == [
    'inspect_data', 'train', 'evaluate', 'inspect_run', 'train', 'train', 'compare', 'Detector.from_run']
  for _, arguments in found:
    files = arguments.get('gin_files', [])
    weights = [f'WEIGHTS = {arguments["weights"]!r}'] if 'weights' in arguments else []
    if files:
      gin_files.parse([files] if isinstance(files, str) else files, [*arguments.get('gin_params', []), *weights])
  gin.clear_config()


def test_what_its_text_names_exists():
  for text in [*cells('markdown'), *cells()]:
    for name in re.findall(r'gin_configs/[\w/]+\.gin', text):
      assert (commands.ROOT / name).is_file(), name
    for name in re.findall(r'\]\((\w+\.md)\)', text):
      assert (NOTEBOOK.parent / name).is_file(), name
    for line in re.findall(r'`(python -m [^`]+)`', text):
      commands.check(shlex.split(line))


@pytest.mark.slow
def test_it_runs_from_its_first_cell_to_its_last(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  first, *others = cells()
  names = {'__name__': '__main__'}
  exec(compile(first, 'settings', 'exec'), names)
  assert TINY.keys() < names.keys()
  names.update(TINY)
  for number, source in enumerate(others):
    exec(compile(source, f'cell {number}', 'exec'), names)
  assert (names['evaluation'] / 'predictions.png').is_file()
  assert names['metrics'].keys() >= {'box/AP', 'mask/AP'} and len(names['comparison'].runs) == 2
  assert len(names['detections'].scores) and names['detections'].masks.any()
