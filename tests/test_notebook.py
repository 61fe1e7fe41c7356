"""The notebook of docs/: well formed, without outputs, naming only what exists; and, slow, run from end to end."""

import ast
import json
import re
import shlex

import pytest

from tests import commands

NOTEBOOK = commands.ROOT / 'docs/demo.ipynb'
TINY = {
  'SCRATCH': 0.01,
  'FINE_TUNING': 0.005,
  'BOTH': ['MaskRCNN.pixel_std = (1.0, 1.0, 1.0)', 'KTimesSchedule.warmup_steps = 1', 'CocoEvaluator.every = 8',
           'train/synthetic.num_images = 24', 'eval/synthetic.num_images = 4', 'CocoEvaluator.num_pictures = 2'],
  'PRETRAINING': ['train/synthetic_classes.num_images = 64', 'eval/synthetic_classes.num_images = 10',
                  'EpochSchedule.epochs = 1', 'EpochSchedule.drops = ()'],
  'SCORE': 0.0,
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
  """What the cells set to constants and names made of them: settings and paths."""
  known = {}
  for source in cells():
    for node in ast.parse(source).body:
      if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.List | ast.JoinedStr):
        exec(compile(ast.Module([node], []), 'cell', 'exec'), known)
  return known


def calls(function):
  """(arguments, keywords) of each call of that name in the cells, evaluated where constants suffice, else None."""
  known, found = constants(), []
  for source in cells():
    for node in ast.walk(ast.parse(source)):
      if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function:
        parts = ast.Expression(ast.Tuple([ast.List(node.args, ast.Load()),
                                          ast.Dict([ast.Constant(k.arg) for k in node.keywords],
                                                   [k.value for k in node.keywords])], ast.Load()))
        found.append(eval(compile(ast.fix_missing_locations(parts), 'cell', 'eval'), dict(known))
                     if not any(isinstance(n, ast.Name) and n.id not in known for a in node.args for n in ast.walk(a))
                     else None)
  return found


def test_what_its_commands_name_exists():
  import rethink_tf.experiment  # noqa: F401  registers what gin files name
  from rethink_tf import gin_files
  lines = calls('command')
  assert [arguments[0] for arguments, _ in lines] == [
    'inspect_data', 'train', 'evaluate', 'inspect_run', 'pretrain', 'train', 'compare', 'predict']
  for (door, *arguments), keywords in lines:
    commands.check(['python', '-m', f'rethink_tf.{door}', *arguments])
    files = commands.values(arguments, 'gin_file')
    weights = [f'WEIGHTS = {path!r}' for path in commands.values(arguments, 'weights')]
    if files:
      gin_files.parse(files, [*keywords.get('bindings', ()), *weights])


def test_what_its_words_name_exists():
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
  monkeypatch.setenv('PYTHONPATH', str(commands.ROOT))
  first, *others = cells()
  names = {'__name__': '__main__'}
  exec(compile(first, 'settings', 'exec'), names)
  assert TINY.keys() < names.keys()
  names.update(TINY)
  for number, source in enumerate(others):
    exec(compile(source, f'cell {number}', 'exec'), names)
  shown = [arguments[0] for arguments, _ in filter(None, calls('show'))]
  assert len(shown) >= 6 and all((tmp_path / path).is_file() for path in shown)
  assert (names['evaluation'] / 'pictures.png').is_file()
  assert json.loads((tmp_path / 'runs/notebook/predictions/predictions.json').read_text())
