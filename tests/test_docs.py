"""README and docs/: every command, file, flag, binding and error text that they name exists, and their code runs."""

import ast
import functools
import importlib.util
import inspect
import itertools
import pathlib
import re
import shlex
import sys

import gin
import numpy as np
import pytest
import tensorflow as tf

import rethink_tf.experiment  # noqa: F401  registers what gin files name
from rethink_tf import gin_files
from rethink_tf.data import own_source
from rethink_tf.data.augment import Resize
from rethink_tf.data.detection.input import TrainInput
from rethink_tf.evaluation.periodic import PeriodicEvaluation
from rethink_tf.study import grid
from tests import commands, tiny

ROOT = commands.ROOT
PAGES = ['README.md', 'CHANGELOG.md',
         *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'docs').glob('*.md'))]
PROGRAMS = ('python ', 'sbatch ', 'launch/')
FOLDERS = '|'.join(['gin_configs', 'rethink_tf', 'tests', 'tools', 'launch', 'results', 'docs', *sorted(
  path.name for path in (ROOT / 'rethink_tf').iterdir()
  if path.is_dir() and path.name not in ('__pycache__', 'data'))])  # data/coco is a folder of the reader
# Files of the reader and of a run folder.
THEIRS = re.compile(r'my_\w+\.py|config\.gin|command\.json|saved_model|'
                    r'\w+\.(json|jsonl|png|yaml|pkl|csv|pth|h5|html|txt|names)$')

pytestmark = pytest.mark.usefixtures('no_configuration_is_left')


@pytest.fixture(scope='module')
def own_parts(tmp_path_factory):
  """{name: module} of the files in docs/extend.md, written and imported as a reader would."""
  folder = tmp_path_factory.mktemp('own')
  blocks = re.findall(r'^```python\n# (\w+)\.py\n(.*?)^```', (ROOT / 'docs/extend.md').read_text(), re.S | re.M)
  for name, text in blocks:
    (folder / f'{name}.py').write_text(text)
  sys.path.insert(0, str(folder))
  yield {name: importlib.import_module(name) for name, _ in blocks}
  sys.path.remove(str(folder))


def fenced(page):
  """Commands in the fenced blocks of a page, with continuation lines joined."""
  text = (ROOT / page).read_text()
  found = re.findall(r'^```(\w*)\n(.*?)^```', text, re.S | re.M)
  lines = '\n'.join(block for language, block in found if not language).replace('\\\n', ' ').splitlines()
  return [line.strip() for line in lines if line.strip().startswith(PROGRAMS)]


def inline(page):
  """Text in backticks outside the fenced blocks of a page."""
  text = re.sub(r'^```.*?^```', '', (ROOT / page).read_text(), flags=re.S | re.M)
  return [' '.join(token.split()) for token in re.findall(r'`([^`]+)`', text)]


def command_lines():
  for page in PAGES:
    for line in [*fenced(page), *(token for token in inline(page) if token.startswith(PROGRAMS) and ' ' in token)]:
      words = shlex.split(line.replace(' … ', ' ').removesuffix('…').strip(), comments=True)
      yield page, words[:words.index('>')] if '>' in words else words


LINES = list(command_lines())


def test_there_are_commands():
  assert len(LINES) > 30 and {page for page, _ in LINES} >= {'README.md', 'docs/extend.md', 'docs/reproduce.md'}


@pytest.mark.parametrize('page, words', LINES, ids=[f'{page}-{i}' for i, (page, _) in enumerate(LINES)])
def test_a_command_names_what_exists(page, words, own_parts, monkeypatch):
  commands.check(words)
  monkeypatch.chdir(ROOT)
  files, params = commands.values(words, 'gin_file'), commands.values(words, 'gin_param')
  files = [name for name in files if name.startswith('gin_configs/')]
  params += [f'WEIGHTS = {path!r}' for path in commands.values(words, 'weights')]
  if 'rethink_tf.study' in words and files:
    found = grid.read_study(files[0], commands.values(words, 'study_param'))
    for trial in found.trials({name: f'runs/{name}' for name in found.pretraining})[::7]:
      gin_files.parse(trial.files, [*trial.params, *params])
    return
  if any(name.count('/') == 1 or '/pretraining/' in name for name in files):  # complete, not one axis alone
    gin_files.parse(files, params)


@pytest.mark.parametrize('line', [
  'python -m rethink_tf.trian', 'python -m rethink_tf.train --gin_fiel=a.gin', 'launch/vertex.sh --count=8',
  'python -m rethink_tf.train --gin_file=gin_configs/scratch_7x.gin', 'launch/tpu_vm.sh --name=a -- --weight=b'])
def test_a_misspelt_command_is_found(line):
  with pytest.raises(AssertionError, match='there is no|has no flag'):
    commands.check(line.split())


def test_a_command_of_a_run_sheet_can_be_copied():
  """It is all on one line: the # of a second one would begin a comment of the shell, and its flags be left out."""
  found = 0
  for path in sorted((ROOT / 'gin_configs').rglob('*.gin')):
    lines = path.read_text().splitlines()
    for line, following in itertools.pairwise([*lines, '']):
      if command := re.match(r'# +(?:[A-Z][a-z]+ +)?(python -m .*)', line):
        words = shlex.split(command[1])
        assert all(word.startswith('--') for word in words[3:]) and not re.match('# +--', following), (path.name, line)
        commands.check(words)
        found += 1
  assert found > 100


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
  folder = (ROOT / page).parent
  for target in re.findall(r'\]\(([^)#]+)', (ROOT / page).read_text()):
    assert target.startswith('https://') or (folder / target).exists(), f'{page}: {target}'


def test_make_targets_exist():
  targets = set(re.findall(r'^([\w./]+):', (ROOT / 'Makefile').read_text(), re.M))
  named = {word for page in PAGES for word in re.findall(r'(?:^|`)make (?:\w+=\S+ )?([a-z]\w*)(?=`| {2})',
                                                         (ROOT / page).read_text(), re.M)}
  assert {'demo', 'test'} <= named <= targets


@pytest.mark.parametrize('page', PAGES)
def test_files_in_the_text_exist(page):
  for token in inline(page):
    token = token.removeprefix('--gin_file=')
    if re.fullmatch(rf'({FOLDERS})/[\w/.]*', token) or (
        re.fullmatch(r'\w+\.(py|gin|sh)', token) and not THEIRS.fullmatch(token)):
      places = [ROOT / token, ROOT / 'rethink_tf' / token, ROOT / 'tests' / token]
      assert any(path.exists() for path in places), f'{page}: {token}'


@pytest.mark.parametrize('page', PAGES)
def test_flags_in_the_text_exist(page):
  modules = ['.'.join(path.relative_to(ROOT).with_suffix('').parts) for folder in ('rethink_tf', 'launch', 'tools')
             for path in (ROOT / folder).rglob('*.py') if path.name != '__init__.py']
  known = frozenset().union(*map(commands.flags_of, modules), *(
    commands.flags_of_script(path.relative_to(ROOT).as_posix()) for path in (ROOT / 'launch').glob('*.sh')))
  for token in inline(page):
    for name in re.findall(r'(?:^| )--(\w+)', token) if not token.startswith(('docker', 'tensorboard')) else ():
      assert name in known, f'{page}: --{name}'


def test_configurations_in_the_table_of_rows_exist():
  """`scratch_2x` `3x` stands for scratch_2x and scratch_3x; … for anything."""
  rows = [line.split('|')[1] for line in (ROOT / 'docs/reproduce.md').read_text().splitlines()
          if re.match(r'\| `(scratch|pretrain|keypoints|vgg16|voc|cbnet|demo|lsj)', line)]
  assert len(rows) > 8
  for row in rows:
    prefix = ''
    for name in re.findall(r'`([^`]+)`', row):
      full = name if re.match(r'[a-z…]', name) else f'{prefix}_{name}'
      prefix = full.rsplit('_', 1)[0]
      assert list((ROOT / 'gin_configs').glob(full.replace('…', '*') + ('' if full.endswith('…') else '.gin'))), full


@functools.cache
def python_blocks(page):
  """The Python blocks of a page, parsed."""
  return [ast.parse(block) for block in re.findall(r'^```python\n(.*?)^```', (ROOT / page).read_text(), re.S | re.M)]


def python_names(page):
  """Names and attributes in the Python blocks of a page: in its text they are no bindings."""
  nodes = [node for block in python_blocks(page) for node in ast.walk(block)]
  return ({node.id for node in nodes if isinstance(node, ast.Name)}
          | {node.attr for node in nodes if isinstance(node, ast.Attribute)}
          | {alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names})


@pytest.mark.parametrize('page', PAGES)
def test_python_in_the_pages_imports_what_exists(page):
  for node in (node for block in python_blocks(page) for node in ast.walk(block)):
    if isinstance(node, ast.ImportFrom) and node.module.split('.')[0] == 'rethink_tf':
      module = importlib.import_module(node.module)
      for alias in node.names:
        assert hasattr(module, alias.name) or importlib.util.find_spec(f'{node.module}.{alias.name}'), alias.name


def bindings(page):
  """(configurable, parameter or None) of each binding in the text of a page."""
  for token in inline(page):
    token = re.sub(r'^--gin_param=["\']?', '', token)
    if match := re.match(r'(?:train/|eval/)?([A-Za-z_]\w*)\.([a-z_]\w*)(?: = .*)?["\']?$', token):
      if not THEIRS.search(token) and not re.search(r'\.(py|md|sh|gin)$', token):
        yield match.groups()
    yield from ((name, None) for name in re.findall(r'@([A-Za-z_]\w*)(?!\.?register)', token) if name != 'gin')


@pytest.mark.parametrize('page', PAGES)
def test_bindings_in_the_text_exist(page, own_parts):
  for name, parameter in bindings(page):
    if name in python_names(page) or name.startswith('My'):  # of the reader
      continue
    if name in ('rethink_tf', 'tensorboard', 'Study'):
      assert name != 'rethink_tf' or commands.flags_of(f'rethink_tf.{parameter}'), parameter
      continue
    configurable = gin.config._REGISTRY.get_match(name)  # gin has no public list of what is registered
    assert configurable is not None, f'{page}: there is no {name}'
    assert parameter is None or parameter in inspect.signature(configurable.wrapped).parameters, (
      f'{page}: {name}.{parameter}')


# Error texts.


@functools.cache
def texts():
  """Lines of every string of the sources, with … for each formatted value."""
  found = []
  for path in [*(ROOT / 'rethink_tf').rglob('*.py'), *(ROOT / 'launch').glob('*.py')]:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Constant) and isinstance(node.value, str):
        found.append(node.value)
      elif isinstance(node, ast.JoinedStr):
        found.append(''.join(value.value if isinstance(value, ast.Constant) else '…' for value in node.values))
  found += [path.read_text() for path in [ROOT / 'Makefile', *(ROOT / 'launch').glob('*.sh')]]
  return re.sub(r'%\.?\d*[sdrf]', '…', '\n'.join(found)).splitlines()


def occurs(phrase):
  fixed = phrase.split('…')
  pattern, longest = re.compile('.*?'.join(map(re.escape, fixed))), max(fixed, key=len)
  return any(longest in line and pattern.search(line) for line in texts())


def quoted():
  rows = re.findall(r'^\| (`.*?) \|', (ROOT / 'docs/troubleshooting.md').read_text(), re.M)
  return [phrase for row in rows for phrase in re.findall(r'`([^`]+)`', row)]


def test_quoted_errors_are_those_of_the_sources():
  phrases = quoted()
  assert len(phrases) > 80
  assert not [phrase for phrase in phrases if not occurs(phrase)]


def test_only_texts_of_the_sources_occur():
  assert occurs('no config.gin in …: check --model_dir') and occurs('… layers would stay at random values')
  assert not occurs('no config.gin in …: check --data_dir') and not occurs('layers should stay at random values')


# Python code.


def test_the_norm_of_the_page_trains(own_parts):
  takes_a_step(tiny.detector(norm=own_parts['my_parts'].layer_norm))
  assert not own_parts['my_parts'].layer_norm('n', zero_gamma=True)(tf.ones([1, 2, 2, 4])).numpy().any()


def test_the_backbone_of_the_page_trains(own_parts):
  features = own_parts['my_backbone'].PlainNet(width=32)(tf.zeros([1, 64, 96, 3]))
  assert {name: tuple(x.shape) for name, x in features.items()} == {
    f'C{level}': (1, 64 >> level, 96 >> level, 32 << level - 2) for level in range(2, 6)}
  norm = own_parts['my_parts'].layer_norm  # GroupNorm compiles each shape: half a minute in all
  takes_a_step(tiny.detector(norm=norm, backbone=own_parts['my_backbone'].PlainNet(norm, width=32)))


def test_the_source_of_the_page_is_one(own_parts):
  source = own_source.checked(own_parts['my_source'].Squares('val', num_images=5), scored=True)
  batch = TrainInput(source, 2, resize=Resize((128,), 160)).batch(0)
  assert batch.gt_classes[:, :2].tolist() == [[1, 0]] * 2
  for image, (y0, x0, y1, x1) in zip(batch.images, batch.gt_boxes[:, 0].astype(int), strict=True):
    assert (image[y0:y1, x0:x1] == 255).all() and image.sum() == 255 * 3 * 40 * 40


def takes_a_step(detector):
  """Assert finite losses and a gradient for every variable."""
  from rethink_tf.training.losses import MaskRCNNLoss
  batch = tiny.batch(1)
  with tf.GradientTape() as tape:
    outputs = detector(batch.images, batch.image_sizes, labels=batch, training=True)
    losses = MaskRCNNLoss()(outputs, batch)
    total = tf.add_n(list(losses.values()))
  assert all(np.isfinite(value) for value in losses.values())
  gradients = tape.gradient(total, detector.trainable_variables)
  assert detector.trainable_variables and all(gradient is not None for gradient in gradients)


def test_the_evaluator_of_the_page_has_the_signature_that_is_called():
  _, *names = inspect.signature(PeriodicEvaluation.evaluate).parameters
  assert f'`evaluate({", ".join(names)}=None)`' in (ROOT / 'docs/extend.md').read_text()


def test_every_code_block_of_the_page_is_tested(own_parts):
  text = (ROOT / 'docs/extend.md').read_text()
  assert text.count('```python') == len(own_parts) == 3
  assert pathlib.Path(own_parts['my_parts'].__file__).name == 'my_parts.py'
