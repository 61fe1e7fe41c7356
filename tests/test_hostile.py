"""Nothing in an input file is executed: the sources are searched for calls that could do so."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = [path for folder in ('rethink_tf', 'tools', 'launch') for path in sorted((ROOT / folder).rglob('*.py'))]
READER = 'rethink_tf/weights/pickles.py'  # the only module that interprets pickles, by its allow-list
# Module that imports pickle -> the attributes of pickle that it may use.
PICKLE = {
  READER: {'_Unpickler', 'UnpicklingError', 'BUILD', 'SETITEM', 'SETITEMS', 'DICT', 'INST', 'OBJ', 'NEWOBJ',
           'NEWOBJ_EX', 'EXT1', 'EXT2', 'EXT4', 'EMPTY_SET', 'ADDITEMS', 'FROZENSET', 'REDUCE', 'MARK', 'INT', 'LONG',
           'LONG4', 'BYTEARRAY8'},
  'rethink_tf/export/detectron2.py': {'dumps'},
  'tools/fuzz_weights.py': {'dumps'},
  'tools/weights_files.py': {'load'},  # reads only what this package has exported, in another Python
}
MODULES = {'marshal', 'shelve', 'dill', 'cloudpickle', 'joblib', 'torch', 'yaml', 'xmlrpc', 'code', 'runpy', 'cPickle',
           'pickletools', 'jsonpickle', 'pandas'}
# Module that imports one of these -> the attributes of it that it may use; None: all.
IMPORTS = {
  ('rethink_tf/weights/settings_files.py', 'yaml'): {'safe_load', 'YAMLError'},  # builds plain values, no objects
  ('rethink_tf/data/prepare/yaml_text.py', 'yaml'): {'load', 'BaseLoader', 'YAMLError'},  # strings, lists and mappings
  ('tools/weights_files.py', 'torch'): None,  # runs in another Python and reads only what it has written
}
NAMES = {'eval', 'exec', 'compile', '__import__'}
CALLS = {
  ('os', 'system'), ('os', 'popen'), ('np', 'fromregex'), ('importlib', 'import_module'), ('tf_keras', 'models'),
  ('tf', 'py_function'), ('ET', 'parse'), ('ElementTree', 'parse'), ('ElementTree', 'fromstring'), ('minidom', 'parse'),
  ('tempfile', 'mktemp'), ('gin', 'parse_config_file'), ('gin', 'parse_config_files_and_bindings'),
  ('archive', 'extractall'), ('tarfile', 'open')}
# (Module, call) -> why it is allowed there.
EXCEPTIONS = {
  ('rethink_tf/export/saved_model.py', 'tf.saved_model.load'): 'loads exports; predict checks them first',
  ('rethink_tf/predict/detectors.py', 'saved_model.load'): 'after operations.check',
  ('rethink_tf/bench/precision.py', 'np.load'): 'loads the results that the same command has just written',
  ('rethink_tf/evaluation/top_k_evaluator.py', 'np.load'): 'loads the results of a worker of the same job',
  ('rethink_tf/downloads/archives.py', 'tarfile.open'): 'members are checked, and written one by one',
  ('tools/weights_files.py', 'importlib.import_module'): 'imports the module that this package has exported',
  ('tools/weights_table.py', 'np.load'): 'loads the results that the same command has just written',
  ('tools/exports.py', 'saved_model.load'): 'loads the SavedModel that the same command has written',
  ('tools/fuzz_data.py', 'np.load'): 'loads valid files of its own',
  ('tools/operative_configs.py', 'gin.parse_config_file'): 'parses the gin files of this repository',
}

identify = {'ids': lambda path: path.relative_to(ROOT).as_posix()}


def dotted(node):
  """np.lib.format.read -> 'np.lib.format.read'; '' for other expressions."""
  attributes = []
  while isinstance(node, ast.Attribute):
    attributes.append(node.attr)
    node = node.value
  return '.'.join([node.id, *attributes[::-1]]) if isinstance(node, ast.Name) else ''


def breaches(text, path):
  """(line, name) of every use of a function that could execute the content of a file."""
  tree = ast.parse(text)
  for node in ast.walk(tree):
    if isinstance(node, ast.Import | ast.ImportFrom):
      modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or '']
      for module in modules:
        top = module.split('.')[0]
        if (top in MODULES and (path, top) not in IMPORTS) or (
            top == 'pickle' and (path not in PICKLE or isinstance(node, ast.ImportFrom))):
          yield node.lineno, f'imports {module}'
    elif isinstance(node, ast.Attribute) and dotted(node).startswith('pickle.') and dotted(node).count('.') == 1:
      if node.attr not in PICKLE.get(path, ()):
        yield node.lineno, dotted(node)
    elif isinstance(node, ast.Attribute) and node.attr not in (IMPORTS.get((path, dotted(node.value))) or {node.attr}):
      yield node.lineno, dotted(node)
    elif isinstance(node, ast.Call):
      name = dotted(node.func)
      keywords = {keyword.arg: keyword.value for keyword in node.keywords}
      allow = keywords.get('allow_pickle')
      if name in NAMES:
        yield node.lineno, f'{name}()'
      if tuple(name.split('.')[-2:]) in CALLS and (path, name) not in EXCEPTIONS:
        yield node.lineno, name
      if 'allow_pickle' in keywords and not (isinstance(allow, ast.Constant) and allow.value is False):
        yield node.lineno, f'{name} with allow_pickle'
      # np.load allocates memory by the header, also without pickles; a SavedModel is a program.
      if (name in ('np.load', 'numpy.load') or name.endswith((
          'saved_model.load', 'load_model', 'model_from_json', 'load_weights'))) and (path, name) not in EXCEPTIONS:
        yield node.lineno, name
      if isinstance(keywords.get('shell'), ast.Constant) and keywords['shell'].value:
        yield node.lineno, f'{name} with a shell'


@pytest.mark.parametrize('path', SOURCES, **identify)
def test_no_file_is_executed(path):
  found = list(breaches(path.read_text(), path.relative_to(ROOT).as_posix()))
  assert not found, f'{path}: {found}'


def test_every_exception_is_in_use():
  for path, name in EXCEPTIONS:
    assert f'{name}(' in (ROOT / path).read_text(), (path, name)
  for path in PICKLE:
    assert 'import pickle' in (ROOT / path).read_text(), path


@pytest.mark.parametrize('line', [
  'import pickle', 'from pickle import loads', 'import torch', 'from torch import load', 'import yaml', 'eval(text)',
  'exec(text)', 'os.system(text)', 'np.load(path)', 'np.load(path, allow_pickle=False)', 'f(allow_pickle=True)',
  'f(allow_pickle=flag)', 'tf.saved_model.load(path)', 'tf_keras.models.load_model(path)', 'model.load_weights(path)',
  'subprocess.run(line, shell=True)', 'import marshal', '__import__(name)', 'importlib.import_module(name)',
  'xml.etree.ElementTree.parse(path)', 'gin.parse_config_file(path)'])
def test_every_breach_is_found(line):
  assert list(breaches(line, 'rethink_tf/x.py'))


def test_yaml_is_read_without_objects():
  path = 'rethink_tf/weights/settings_files.py'
  for call in ('yaml.load(text)', 'yaml.unsafe_load(text)', 'yaml.load(text, Loader=yaml.Loader)'):
    assert list(breaches(f'import yaml\n{call}', path))
  assert not list(breaches('import yaml\nyaml.safe_load(text)', path))
  text = (ROOT / 'rethink_tf/data/prepare/yaml_text.py').read_text()
  assert text.count('yaml.load(') == text.count('yaml.load(text, yaml.BaseLoader)') == 1


def test_no_module_may_use_the_unpickler_of_python():
  for line in ('pickle.load(file)', 'pickle.loads(data)', 'pickle.Unpickler(file)', 'pickle.whichmodule'):
    assert list(breaches(f'import pickle\n{line}', READER))
    assert list(breaches(f'import pickle\n{line}', 'rethink_tf/export/detectron2.py'))
  assert not list(breaches('import pickle\npickle.dumps(data)', 'rethink_tf/export/detectron2.py'))
