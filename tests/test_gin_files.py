"""Configurations are found from anywhere, and no slip of the pen passes in silence."""

import gin
import pytest

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


@pytest.fixture(autouse=True)
def clean_gin():
  yield
  gin.clear_config()


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
  gin_files.parse(['gin_configs/base.gin'])  # replaces what was parsed before
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


def test_remote_files():
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
  (elsewhere / 'gin_configs').mkdir()  # hides nothing, although Python would take it for a namespace package
  (elsewhere / 'mine.gin').write_text("include 'gin_configs/toy_2x.gin'\ntoy_norm.groups = 2\n")
  monkeypatch.chdir(elsewhere)
  gin_files.parse(['mine.gin'])
  net, steps = toy_run()
  assert (steps, net().norm) == (2, 2)
  (elsewhere / 'gin_configs' / 'base.gin').write_text(BASE.replace('GROUPS = 32', 'GROUPS = 16'))
  gin_files.parse(['gin_configs/toy_2x.gin'])  # a file of the user's own comes first
  assert toy_run()[0]().norm == 16


def test_the_package_ships_its_configurations():
  assert (gin_files.shipped_root() / 'gin_configs').is_dir()


@pytest.mark.parametrize('params, message', [
  (['SCHEDUEL = 2'], '--gin_param: SCHEDUEL is set, but no binding uses it; did you mean SCHEDULE?'),
  (['toy_run.steps = %SCHEDUEL'], '--gin_param: %SCHEDUEL is used, but nothing sets it; did you mean SCHEDULE?'),
  (['toy_nett.depth = 2'], "--gin_param: there is nothing called 'toy_nett' to configure (toy_nett.depth = 2); "
                           'did you mean toy_net?'),
  (['toy_net.dept = 2'], "--gin_param: toy_net has no parameter 'dept' (toy_net.dept = 2); did you mean depth?"),
  (['toy_net.norm = @toy_nomr()'], "--gin_param: there is nothing called 'toy_nomr' to configure "
                                   '(toy_net.norm = @toy_nomr()); did you mean toy_norm?'),
  (['trian/toy_net.depth = 2'], '--gin_param: nothing enters the scope trian/; did you mean train?'),
  (['toy_net.depth 2'], "--gin_param: Couldn't parse statement, expected ':' or '='"),
  (['toy_net.depth = [2,'], '--gin_param: EOF in multi-line statement'),
  (['SCHEDULE = %gin.REQUIRED'], "configuration: SCHEDULE must be given: add --gin_param='SCHEDULE = ...'"),
  (['toy_net.depth = %gin.REQUIRED'], "configuration: toy_net.depth must be given: "
                                      "add --gin_param='toy_net.depth = ...'"),
])
def test_slips_on_the_command_line(folder, params, message):
  with pytest.raises(UserError) as caught:
    gin_files.parse(['gin_configs/base.gin'], params)
  assert str(caught.value) == message


@pytest.mark.parametrize('line, message', [
  ('SCHEDUEL = 2', 'slip.gin:3: SCHEDUEL is set, but no binding uses it; did you mean SCHEDULE?'),
  ('toy_net.dept = 2', "slip.gin:3: toy_net has no parameter 'dept' (toy_net.dept = 2); did you mean depth?"),
  ('toy_net.depth = ', 'slip.gin:3: Unable to parse value'),
  ('import no_such_module', "slip.gin:3: No module named 'no_such_module' (import no_such_module)"),
])
def test_slips_in_a_file(folder, line, message):
  (folder / 'slip.gin').write_text(f"include 'gin_configs/base.gin'\n\n{line}\n")
  with pytest.raises(UserError) as caught:
    gin_files.parse(['slip.gin'])
  assert str(caught.value) == message


def test_scopes_that_a_reference_enters_are_known(folder):
  gin_files.parse(['gin_configs/base.gin'], ['toy_net.norm = @small/toy_norm()', 'small/toy_norm.groups = 1',
                                             'eval/toy_norm.groups = 2'])
  assert toy_run()[0]().norm == 1


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


def test_circle_of_includes(folder):
  (folder / 'a.gin').write_text("include 'b.gin'\n")
  (folder / 'b.gin').write_text("include 'a.gin'\n")
  with pytest.raises(UserError, match='b.gin: include "a.gin" closes a circle'):
    gin_files.parse(['a.gin'])


def test_run_folder_takes_the_name_of_the_first_file():
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
