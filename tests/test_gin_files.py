"""Lookup and order of gin files, one-line errors for misspelt names, and limits of imports."""

import contextlib
from collections.abc import Callable, Sequence

import gin
import pytest

import rethink_tf.experiment  # noqa: F401  registers what gin files name
from rethink_tf import gin_files
from rethink_tf.errors import UserError


@gin.register('toy_net', module='test_gin_files')
class ToyNet:

  def __init__(self, depth=50, norm=None):
    self.depth, self.norm = depth, norm


@gin.register('toy_norm', module='test_gin_files')
def toy_norm(groups=32):
  return groups


@gin.configurable('toy_run', module='test_gin_files')
def toy_run(net=None, steps=1):
  return net, steps


BASE = """
SCHEDULE = 6
GROUPS = 32
toy_run.net = @toy_net
toy_run.steps = %SCHEDULE
toy_net.norm = @toy_norm()
toy_norm.groups = %GROUPS
"""

pytestmark = pytest.mark.usefixtures('no_configuration_is_left')


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A working directory with gin_configs/base.gin and a file that includes it."""
  configs = tmp_path / 'gin_configs'
  configs.mkdir()
  (configs / 'base.gin').write_text(BASE)
  (configs / 'toy_2x.gin').write_text("# a run sheet\ninclude 'gin_configs/base.gin'\n\n"
                                       'SCHEDULE = 2\ntoy_net.depth = 101\n')
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_includes_then_overrides_then_command_line(folder):
  gin_files.parse(['gin_configs/toy_2x.gin'], ['GROUPS = 8'])
  net, steps = toy_run()
  assert (steps, net().depth, net().norm) == (2, 101, 8)
  assert gin.config_is_locked()
  gin_files.parse(['gin_configs/base.gin'])  # replaces the previous configuration
  assert toy_run()[1] == 6 and toy_run()[0]().depth == 50


def test_include_in_the_middle_keeps_the_order(folder):
  (folder / 'middle.gin').write_text("toy_run.steps = 1\ntoy_net.depth = 1\n"
                                     "include 'gin_configs/base.gin'  # with a comment\ntoy_norm.groups = 4\n")
  gin_files.parse(['middle.gin'])
  net, steps = toy_run()
  assert (steps, net().depth, net().norm) == (6, 1, 4)


def test_operative_config_parses_back_to_the_same_run(folder):
  gin_files.parse(['gin_configs/toy_2x.gin'], ['toy_norm.groups = 4'])
  toy_run()[0]()
  text = gin_files.operative_config()
  (folder / 'config.gin').write_text(text)
  gin_files.parse(['config.gin'])
  net, steps = toy_run()
  assert (steps, net().depth, net().norm) == (2, 101, 4)
  assert gin_files.operative_config() == text


def test_remote_files_include_remote_files():
  import tensorflow as tf
  with tf.io.gfile.GFile('ram://configs/base.gin', 'w') as file:
    file.write(BASE)
  with tf.io.gfile.GFile('ram://configs/run.gin', 'w') as file:
    file.write("include 'ram://configs/base.gin'\nSCHEDULE = 3\n")
  gin_files.parse(['ram://configs/run.gin'])
  assert toy_run()[1] == 3


def test_shipped_files_are_found_from_elsewhere(folder, tmp_path_factory, monkeypatch):
  monkeypatch.setattr(gin_files, 'shipped_root', lambda: folder)
  elsewhere = tmp_path_factory.mktemp('elsewhere')
  (elsewhere / 'gin_configs').mkdir()  # hides nothing, although it is a namespace package to Python
  (elsewhere / 'mine.gin').write_text("include 'gin_configs/toy_2x.gin'\ntoy_norm.groups = 2\n")
  monkeypatch.chdir(elsewhere)
  gin_files.parse(['mine.gin'])
  net, steps = toy_run()
  assert (steps, net().norm) == (2, 2)
  (elsewhere / 'gin_configs' / 'base.gin').write_text(BASE.replace('GROUPS = 32', 'GROUPS = 16'))
  gin_files.parse(['gin_configs/toy_2x.gin'])  # files in the working directory come first
  assert toy_run()[0]().norm == 16


def test_the_package_ships_its_configurations():
  assert (gin_files.shipped_root() / 'gin_configs').is_dir()


@pytest.mark.parametrize('params, message', [
  (['SCHEDUEL = 2'], '--gin_param: SCHEDUEL is set, but no binding uses it; did you mean SCHEDULE?'),
  (['toy_run.steps = %SCHEDUEL'], '--gin_param: %SCHEDUEL is used, but nothing sets it; did you mean SCHEDULE?'),
  (['toy_nett.depth = 2'], "--gin_param: there is nothing called 'toy_nett' to configure (toy_nett.depth = 2); "
                           'did you mean toy_net?'),
  (['toy_net.dept = 2'], "--gin_param: toy_net has no parameter 'dept' (toy_net.dept = 2); did you mean depth?"),
  (['run.allow_changes = True'], '--gin_param: run.allow_changes cannot be set in a configuration: it is the option '
                                 '--allow_changes'),
  (['toy_net.norm = @toy_nomr()'], "--gin_param: there is nothing called 'toy_nomr' to configure "
                                   '(toy_net.norm = @toy_nomr()); did you mean toy_norm?'),
  (['trian/toy_net.depth = 2'], '--gin_param: nothing enters the scope trian/; did you mean train?'),
  (['toy_net.depth 2'], "--gin_param: Couldn't parse statement, expected ':' or '='"),
  (['toy_net.depth = [2,'], '--gin_param: a bracket or a quotation mark is opened and not closed'),
  (["toy_net.depth = '''a"], '--gin_param: a bracket or a quotation mark is opened and not closed'),
  (['SCHEDULE = %gin.REQUIRED'], "configuration: SCHEDULE must be given: add --gin_param='SCHEDULE = ...'"),
  (['toy_net.depth = %gin.REQUIRED'], "configuration: toy_net.depth must be given: "
                                      "add --gin_param='toy_net.depth = ...'"),
])
def test_errors_on_the_command_line(folder, params, message):
  with pytest.raises(UserError) as caught:
    gin_files.parse(['gin_configs/base.gin'], params)
  assert str(caught.value) == message


@pytest.mark.parametrize('line, message', [
  ('SCHEDUEL = 2', 'wrong.gin:3: SCHEDUEL is set, but no binding uses it; did you mean SCHEDULE?'),
  ('toy_net.dept = 2', "wrong.gin:3: toy_net has no parameter 'dept' (toy_net.dept = 2); did you mean depth?"),
  ('toy_net.depth = ', 'wrong.gin:3: Unable to parse value'),
  ('import rethink_tf.no_such_module', "wrong.gin:3: No module named 'rethink_tf.no_such_module' "
                                       '(import rethink_tf.no_such_module)'),
])
def test_errors_in_a_file(folder, line, message):
  (folder / 'wrong.gin').write_text(f"include 'gin_configs/base.gin'\n\n{line}\n")
  with pytest.raises(UserError) as caught:
    gin_files.parse(['wrong.gin'])
  assert str(caught.value) == message


@pytest.mark.parametrize('line', [
  'import os', 'import my_parts', 'from my_parts import inner', 'import my_parts as rethink_tf', 'from os import path',
  'import rethink_tf_parts', "toy_run.steps = 1\n  \nimport my_parts"])
def test_a_file_can_import_only_this_package(folder, monkeypatch, line):
  (folder / 'my_parts.py').write_text("raise AssertionError('it ran')\n")
  (folder / 'inner.gin').write_text(f'{line}\n')
  (folder / 'outer.gin').write_text("include 'gin_configs/base.gin'\ninclude 'inner.gin'\n")
  monkeypatch.syspath_prepend(folder)
  for name in ('inner.gin', 'outer.gin'):
    with pytest.raises(UserError, match=r"inner\.gin:\d: imports .*you trust it, add --gin_param='import ") as caught:
      gin_files.parse([name])
    assert '\n' not in str(caught.value)


def test_a_file_can_import_what_the_command_line_imports(folder, monkeypatch):
  (folder / 'parts_of_mine.py').write_text(
    "import gin\n\n@gin.register(module='parts_of_mine')\ndef half_norm(groups=2):\n  return groups / 2\n")
  (folder / 'mine.gin').write_text("import parts_of_mine\nimport rethink_tf.errors\ninclude 'gin_configs/base.gin'\n"
                                   'toy_net.norm = @half_norm()\n')
  monkeypatch.syspath_prepend(folder)
  with pytest.raises(UserError, match="mine.gin:1: imports parts_of_mine"):
    gin_files.parse(['mine.gin'], ['toy_run.steps = 1'])
  gin_files.parse(['mine.gin'], ['toy_norm.groups = 1', 'import parts_of_mine'])  # imported before the files
  assert toy_run()[0]().norm == 1.0
  (folder / 'config.gin').write_text(gin_files.operative_config())
  with pytest.raises(UserError, match='imports parts_of_mine'):  # the receiver of a run must allow it
    gin_files.parse(['config.gin'])


def test_parts_of_one_name_are_reported(folder, monkeypatch):
  """As one of the user's own that is called like one of the package, which its files then no longer tell apart."""
  (folder / 'toy_same.py').write_text('import gin\n' + ''.join(
    f"\n\n@gin.register('toy_same', module='{owner}')\ndef {owner}(): ...\n" for owner in ('ours', 'theirs')))
  (folder / 'toy_raises.py').write_text('raise KeyError\n')
  monkeypatch.syspath_prepend(folder)
  with pytest.raises(UserError, match=r"--gin_param: several parts are called 'toy_same' \(ours.toy_same, "
                                      r'theirs.toy_same\) \(toy_net.norm.*\): give that of your own another name'):
    gin_files.parse(['gin_configs/base.gin'], ['import toy_same', 'toy_net.norm = @toy_same()'])
  with pytest.raises(UserError, match=r'--gin_param: KeyError \(import toy_raises\)'):
    gin_files.parse(['gin_configs/base.gin'], ['import toy_raises'])


@pytest.mark.parametrize('params', [[], ['import os']])
def test_dynamic_registration_is_refused(folder, params):
  """It would call any function that a file names."""
  (folder / 'hostile.gin').write_text("from __gin__ import dynamic_registration\nimport os\n"
                                   "os.system.command = 'touch attacked'\n")
  with pytest.raises(UserError, match='hostile.gin:1: dynamic registration'):
    gin_files.parse(['hostile.gin'], params)
  with pytest.raises(UserError, match='dynamic registration'):
    gin_files.parse([], ['from __gin__ import dynamic_registration'])
  (folder / 'hostile.gin').write_text('toy_net.norm = @os.system()\n')
  with pytest.raises(UserError, match="nothing called 'os.system'"):
    gin_files.parse(['hostile.gin'], params)
  assert not (folder / 'attacked').exists()


@pytest.mark.parametrize('line', ["include 'a\x7f\x1b[2J.gin'", "toy_net.depth = '\x1b[2J' 5", '\x1b[2J = 1',
                                  'a\x9b = 2'])
def test_errors_contain_no_control_characters_of_a_file(folder, line):
  (folder / 'hostile.gin').write_text(f'{line}\n')
  with pytest.raises(UserError, match='gin') as caught:
    gin_files.parse(['hostile.gin'])
  assert str(caught.value).isprintable()


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_files_of_editors_on_windows(folder, encoding):
  (folder / 'own.gin').write_bytes("toy_net.depth = 7\r\ntoy_run.steps = 1\r\n".encode(encoding))
  if encoding == 'utf-16':
    with pytest.raises(UserError, match='^own.gin: not a text file in UTF-8, as which it should be saved'):
      gin_files.parse(['own.gin'])
  else:
    gin_files.parse(['own.gin'])
    assert gin_files.bound('toy_net.depth') == 7


def test_a_file_that_is_too_large(folder):
  (folder / 'long.gin').write_text('#' * (1 << 20) + '\n')
  with pytest.raises(UserError, match='long.gin: 1,048,577 bytes are too many'):
    gin_files.parse(['long.gin'])


def test_scopes_of_references_are_known(folder):
  gin_files.parse(['gin_configs/base.gin'], ['toy_net.norm = @small/toy_norm()', 'small/toy_norm.groups = 1'])
  assert toy_run()[0]().norm == 1


def test_references_and_macros_in_blocks_are_known(folder):
  (folder / 'block.gin').write_text('SIZE = 7\ntoy_net:\n  norm = @small/toy_norm()\n  depth = (1, {2: %SIZE})\n'
                                    'small/toy_norm:\n  groups = 1\n')
  for _ in range(2):  # the second time from what was read before
    gin_files.parse(['gin_configs/base.gin', 'block.gin'])
    net = toy_run()[0]()
    assert (net.norm, net.depth) == (1, (1, {2: 7}))


def test_a_binding_in_a_scope_in_which_nothing_calls_its_part_is_refused(folder):
  with pytest.raises(UserError, match=r'--gin_param: eval/toy_norm\.groups has no effect, since nothing calls toy_norm '
                                      r'in the scope eval/: refer to it as @eval/toy_norm'):
    gin_files.parse(['gin_configs/base.gin'], ['eval/toy_norm.groups = 2'])
  # What a part that is called in the scope calls itself is called in it.
  gin_files.parse(['gin_configs/base.gin'], ['toy_run.net = @eval/toy_net', 'eval/toy_norm.groups = 2'])
  assert toy_run()[0]().norm == 2


@pytest.mark.parametrize('name, params, message', [
  ('demo', ['synthetic.num_images = 4'], r'synthetic\.num_images has no effect.* set train/synthetic.num_images and '
                                         'eval/synthetic.num_images'),
  ('voc_scratch', ["voc.sets = ('train',)"], r'voc\.sets has no effect'),
  ('scratch_1x', ["coco.annotation_file = 'a.json'"], r'coco\.annotation_file has no effect'),
  ('scratch_1x', ['coco.num_images = 4'], None),  # of the training images
  ('demo', ['run.eval_source = @synthetic()', 'synthetic.num_images = 4'], None)])
def test_a_binding_that_those_of_its_scopes_hide_is_refused(name, params, message):
  with pytest.raises(UserError, match=message) if message else contextlib.nullcontext():
    gin_files.parse([f'gin_configs/{name}.gin'], params)


Odd = float


@gin.register('toy_typed', module='test_gin_files')
def toy_typed(count: 'int' = 1, rate: 'float | None' = None, name: 'str' = '', on: 'bool' = False,
              sides: 'int | tuple[int, ...]' = (), pairs: Sequence[tuple[int, int]] = (),
              area: 'tuple[float, float]' = (0, 1), words: 'Sequence[str] | None' = None, steps: int = 1,
              width: int = None, net: 'Callable[..., int] | None' = None, norm: 'toy_norm | None' = None,
              odd: 'Odd' = 0):
  return count, rate, name, on, sides, pairs, area, words, steps, width, net, norm, odd


@pytest.mark.parametrize('value, words', [
  ('count = 1.0', 'toy_typed.count should be an integer, is 1.0'),
  ("rate = '2'", "toy_typed.rate should be a number or None, is '2'"),
  ('count = True', 'toy_typed.count should be an integer, is True'),
  ('name = 3', 'toy_typed.name should be a string, is 3'),
  ('name = None', 'toy_typed.name should be a string, is None'),
  ('sides = None', 'toy_typed.sides should be an integer or a list of integers, is None'),
  ('count = {}', 'toy_typed.count should be an integer, is an object of type dict'),
  ("rate = b'1'", "toy_typed.rate should be a number or None, is b'1'"),
  ('pairs = ({}, 2)', r'pairs should be a list of lists of 2 integers, is \(an object of type dict, 2\)'),
  ('on = 1', 'toy_typed.on should be True or False, is 1'),
  ('rate = True', 'toy_typed.rate should be a number or None, is True'),
  ("steps = '2'", "toy_typed.steps should be an integer, is '2'"),  # annotated by a class, not by a text
  ('sides = (2, 2.5)', r'toy_typed.sides should be an integer or a list of integers, is \(2, 2.5\)'),
  ('pairs = (800, 1333)', r'toy_typed.pairs should be a list of lists of 2 integers, is \(800, 1333\): '
                          r'write \(\(800, 1333\),\)'),
  ('pairs = [(800,)]', r'toy_typed.pairs should be a list of lists of 2 integers, is \(\(800,\),\)'),
  ('area = 0.5', 'toy_typed.area should be a list of 2 numbers, is 0.5'),
  ('area = (1,)', r'toy_typed.area should be a list of 2 numbers, is \(1,\)'),
  ("words = 'fc'", r"toy_typed.words should be a list of strings or None, is 'fc': write \('fc',\)"),
  ('net = 4.5', r'toy_typed.net should be a part \(@NAME\) or None, is 4.5'),
  ("net = 'toy_net'", r"toy_typed.net should be a part \(@NAME\) or None, is 'toy_net': write @toy_net"),
  ('norm = True', r'toy_typed.norm should be a part \(@toy_norm\(\)\) or None, is True'),
  ('norm = @toy_norm', r"should be a part \(@toy_norm\(\)\) or None, is '@toy_norm': write @toy_norm\(\)")])
def test_values_of_another_type_are_refused(folder, value, words):
  with pytest.raises(UserError, match=words):
    gin_files.parse(['gin_configs/base.gin'], [f'toy_typed.{value}'])
  with pytest.raises(UserError, match=words):
    name, _, literal = value.partition(' = ')
    gin_files.parse(['gin_configs/base.gin'], [f'VALUE = {literal}', f'toy_typed.{name} = %VALUE'])


def test_values_of_the_annotated_type_are_taken(folder):
  values = {'count': 2, 'rate': 3, 'on': True, 'sides': 4, 'pairs': [(1, 2), [3, 4]], 'area': (0.5, 1),
            'words': None, 'width': None,  # the latter's default
            'odd': 4.5}  # annotated by a name that may stand for anything
  gin_files.parse(['gin_configs/base.gin'], [f'toy_typed.{name} = {value!r}' for name, value in values.items()])
  assert {name: gin_files.bound(f'toy_typed.{name}') for name in values} == values


def test_what_a_function_passes_itself_is_refused(folder):
  passed = {'net': {'depth': 'bind toy_run.steps'}}
  for binding, whole in (('toy_net.depth = 3', 'toy_net'), ('small/toy_net.depth = 3', 'small/toy_net')):
    gin_files.parse(['gin_configs/base.gin'], [binding, 'toy_run.net = @small/toy_net'][:2 if '/' in binding else 1])
    with pytest.raises(UserError, match=f'^{whole}.depth has no effect, since toy_run passes its own: bind toy_run'):
      gin_files.without_effect(toy_run, passed)
  gin_files.parse(['gin_configs/base.gin'])
  gin_files.without_effect(toy_run, passed)


def test_missing_files(folder, monkeypatch):
  monkeypatch.setattr(gin_files, 'shipped_root', lambda: folder)
  with pytest.raises(UserError, match=r'no gin file gin_configs/toy_2.gin in .*; did you mean gin_configs/toy_2x.gin'):
    gin_files.parse(['gin_configs/toy_2.gin'])
  (folder / 'outer.gin').write_text("include 'gin_configs/bas.gin'\n")
  with pytest.raises(UserError, match='included by outer.gin; did you mean gin_configs/base.gin'):
    gin_files.parse(['outer.gin'])
  with pytest.raises(UserError, match='no gin file gin_configs'):
    gin_files.parse(['gin_configs'])  # a folder
  with pytest.raises(UserError, match='no gin file ram://nowhere/x.gin'):
    gin_files.parse(['ram://nowhere/x.gin'])


def test_circular_include(folder):
  (folder / 'a.gin').write_text("include 'b.gin'\n")
  (folder / 'b.gin').write_text("include 'a.gin'\n")
  with pytest.raises(UserError, match='b.gin: include "a.gin" is circular'):
    gin_files.parse(['a.gin'])


def test_the_run_folder_has_the_name_of_the_first_file():
  files = ['gin_configs/scratch_6x.gin', 'gin_configs/data/coco_10k.gin']
  assert gin_files.default_run_folder(files) == 'runs/scratch_6x'
  assert gin_files.default_run_folder(['gs://bucket/mine.gin']) == 'runs/mine'
  assert gin_files.default_run_folder([]) is None


def test_configuration_of_a_run(tmp_path):
  with pytest.raises(UserError, match='no config.gin in .*: check --model_dir'):
    gin_files.saved_config(str(tmp_path))
  (tmp_path / 'config.gin').write_text('toy_run.steps = 4\n')
  gin_files.parse([gin_files.saved_config(f'{tmp_path}/')])
  assert toy_run()[1] == 4


def test_arguments_as_gin_would_pass_them(folder):
  """References and macros are resolved; without a binding it is the default."""
  gin_files.parse(['gin_configs/toy_2x.gin'])
  assert gin_files.argument(toy_run, 'steps') == 2
  net = gin_files.argument(toy_run, 'net')
  assert (net().depth, net().norm) == (101, 32)
  gin_files.parse([], ['toy_run.steps = 3'])
  assert gin_files.argument(toy_run, 'net') is None


@pytest.mark.parametrize('lines, message', [
  (['A0 = 1', *(f'A{i} = (%A{i - 1}, %A{i - 1})' for i in range(1, 40)), 'toy_run.steps = %A39'],
   'refers to over 10,000 others: write the values themselves'),
  (['A0 = 1', *(f'A{i} = %A{i - 1}' for i in range(1, 100)), 'toy_run.steps = %A99'],
   'nested over 50 deep: write the values themselves'),
  (['A = %B', 'B = %A', 'toy_run.steps = %A'], 'nested over 50 deep')], ids=['doubled', 'deep', 'circular'])
def test_macros_of_any_size_are_refused(tmp_path, lines, message):
  """gin would copy the value of a macro wherever it is used: 2 ** 39 times here."""
  (tmp_path / 'x.gin').write_text('\n'.join(lines) + '\n')
  with pytest.raises(UserError, match=message) as error:
    gin_files.parse([str(tmp_path / 'x.gin')])
  assert 'x.gin:' in str(error.value) and '\n' not in str(error.value)


def test_includes_that_repeat_each_other_end(tmp_path):
  """A file that includes the next one twice, which does the same: 2 ** 30 reads."""
  for i in range(30):
    (tmp_path / f'{i}.gin').write_text(f"include '{tmp_path}/{i + 1}.gin'\n" * 2)
  (tmp_path / '30.gin').write_text('')
  with pytest.raises(UserError, match='over 1000 includes'):
    gin_files.parse([str(tmp_path / '0.gin')])
