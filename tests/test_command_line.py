"""Commands: errors are one line with exit code 1 and no other output; --help lists the flags."""

import os
import pathlib
import subprocess
import sys

import pytest

from rethink_tf import gin_files
from rethink_tf.__main__ import COMMANDS, main
from tests import tiny
from tests.in_process import call

ROOT = pathlib.Path(__file__).resolve().parents[1]


def call_process(command, *arguments, cwd):
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
  environment.pop('TF_CPP_MIN_LOG_LEVEL', None)
  return subprocess.run([sys.executable, '-m', f'rethink_tf.{command}', *arguments], cwd=cwd, env=environment,
                        capture_output=True, text=True, timeout=300)


def assert_one_line(result, *words):
  assert result.returncode == 1, result.stderr
  assert result.stdout == ''
  lines = result.stderr.splitlines()
  lines = lines[lines[:1] != [] and lines[0].startswith('devices: '):]  # of what is found out once TensorFlow runs
  assert len(lines) == 1 and lines[0].startswith('error: '), result.stderr
  for word in words:
    assert word in lines[0], lines[0]


@pytest.mark.parametrize('command', ['evaluate', 'predict', 'export', 'inspect_run'])
def test_the_home_directory_stands_for_a_tilde(command, tmp_path, monkeypatch):
  """Shells leave it alone after --model_dir=; train has always replaced it."""
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'run').mkdir()
  result = call(command, '--model_dir=~/run', *(['image.png'] if command == 'predict' else []), cwd=tmp_path)
  assert_one_line(result, f'{tmp_path}/run')
  assert '~' not in result.stderr


@pytest.mark.parametrize('command, arguments, name', [
  ('train', ['--gin_file=gin_configs/demo.gin', '--data_dir='], '--data_dir'),
  ('train', ['--gin_file=gin_configs/demo.gin', '--model_dir='], '--model_dir'),
  ('train', ['--gin_file=gin_configs/demo.gin', '--weights', ''], '--weights'),
  ('train', ['--gin_file='], '--gin_file'),
  ('evaluate', ['--model_dir=run', '--cache_dir='], '--cache_dir'),
  ('predict', ['photos', '--saved_model=', '--model_dir=run'], '--saved_model'),
  ('predict', ['photos', '', '--model_dir=run'], 'argument 2'),
  ('compare', ['', 'runs/b'], 'argument 1'),
  ('export', ['--model_dir=run', '--format=onnx', '--image_size='], '--image_size'),
  ('inspect_run', ['--model_dir=run', '--results='], '--results'),
  ('doctor', ['--data_dir='], '--data_dir'),
  ('study', ['--gin_file=gin_configs/studies/demo.gin', '--output='], '--output'),
  ('data.prepare', ['photos', '--output_dir='], '--output_dir'),
  ('data.convert', ['--data_dir=', '--output_dir=out'], '--data_dir'),
])
def test_what_is_empty_is_not_the_default(command, arguments, name, tmp_path):
  """As --data_dir=$FOLDER of a variable that is not set."""
  assert_one_line(call(command, *arguments, cwd=tmp_path), f'error: {name}', 'is empty', 'not set')
  assert not list(tmp_path.iterdir())


def test_the_command_of_the_readme_without_a_data_set(tmp_path):
  """From any folder: the error names where the data set was looked for, and the flag to set."""
  result = call('train', '--gin_file=gin_configs/scratch_6x.gin', cwd=tmp_path)
  assert_one_line(result, 'data/coco', 'instances_val2017.json', '--data_dir')


@pytest.mark.parametrize('arguments, words', [
  (['--gin_file=gin_configs/scratch_7x.gin'], ['scratch_7x.gin', 'scratch_']),
  (['--gin_file=gin_configs/demo.gin', '--gin_param=SCHEDUEL = 2'], ['SCHEDUEL', 'SCHEDULE']),
  (['--gin_file=gin_configs/demo.gin', '--gin_param=ResNet.dpeth = 50'], ['dpeth', 'depth']),
  ([], ['--gin_file=']),
])
def test_a_wrong_configuration(arguments, words, tmp_path):
  assert_one_line(call('train', *arguments, cwd=tmp_path), *words)


@pytest.mark.parametrize('binding, words', [
  ('Anchors.sizes = (32, 64)', ['Anchors.sizes has 2 sizes', 'P2', 'one per level']),
  ('Anchors.ratios = (0.5, 1.0)', ['RPNHead.anchors_per_cell = 3', 'set RPNHead.anchors_per_cell = 2']),
  ('group_norm.groups = 7', ['group_norm.groups = 7 does not divide']),
])
def test_an_error_inside_a_layer_is_not_reworded_by_keras(binding, words, tmp_path):
  params = [f'--gin_param={one}' for one in (*tiny.PARAMS, binding)]
  result = call('train', '--gin_file=gin_configs/demo.gin', *params, f'--model_dir={tmp_path}/run')
  line = result.stderr.splitlines()[-1]
  assert result.returncode == 1 and line.startswith('error: ') and all(word in line for word in words), result.stderr


@pytest.mark.parametrize('command, arguments', [
  ('evaluate', ['--model_dir={}']), ('predict', ['{}/1.jpg', '--model_dir={}']), ('inspect_run', ['--model_dir={}']),
  ('export', ['--model_dir={}']), ('compare', ['{}', '{}/b']),
  ('train', ['--gin_file=gin_configs/scratch_1x.gin', '--data_dir={}'])])
def test_an_address_that_cannot_be_read_is_named(command, arguments, tmp_path):
  address = 'https://example.com/a'
  result = call(command, *(one.format(address) for one in arguments), cwd=tmp_path)
  assert result.returncode == 1 and 'Traceback' not in result.stderr, result.stderr
  line = result.stderr.splitlines()[-1]
  assert line.startswith(f'error: {address}') and ': TensorFlow cannot open https:// on this machine' in line, line


@pytest.mark.parametrize('command, words', [
  ('train', 'stopped; the same command resumes from the last checkpoint'), ('inspect_run', 'stopped'),
  ('evaluate', 'stopped; the same command evaluates again'), ('export', 'stopped; nothing was written')])
def test_a_command_that_is_stopped_says_what_is_left(command, words, monkeypatch, tmp_path):
  def stop(*_, **__):
    raise KeyboardInterrupt
  monkeypatch.setattr(os, '_exit', sys.exit)
  monkeypatch.setattr(gin_files, 'default_run_folder', stop)
  monkeypatch.setattr(gin_files, 'find', stop)
  result = call(command, *(['--gin_file=gin_configs/demo.gin'] if command == 'train' else []), cwd=tmp_path)
  assert (result.returncode, result.stderr.splitlines()[-1]) == (130, words)


def test_weights_need_a_configuration_that_uses_them(tmp_path):
  (tmp_path / 'R-50.pkl').touch()
  result = call('train', '--gin_file=gin_configs/demo.gin', '--weights=R-50.pkl', cwd=tmp_path)
  assert_one_line(result, '--weights', 'random weights', 'gin_configs/init/imagenet.gin')
  result = call('train', '--gin_file=gin_configs/pretrain_6x.gin', cwd=tmp_path)
  assert_one_line(result, 'WEIGHTS')


@pytest.mark.parametrize('command, arguments', [
  ('evaluate', []), ('predict', ['a.jpg']), ('export', []), ('inspect_run', [])])
def test_where_the_weights_are_those_of_a_run_others_are_refused(command, arguments, tmp_path):
  result = call(command, *arguments, '--model_dir=run', '--weights=other_run', cwd=tmp_path)
  assert_one_line(result, '--weights=other_run is what training starts from', '--checkpoint')


def test_a_run_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  result = call('train', '--gin_file=gin_configs/demo.gin', f'--model_dir={tmp_path}/file/run', cwd=tmp_path)
  assert_one_line(result, f'{tmp_path}/file/run', '--model_dir')


@pytest.mark.parametrize('command, flag', [('predict', ''), ('evaluate', '--model_dir=')])
def test_a_path_of_another_file_system(command, flag, tmp_path):
  others = [f'--model_dir={tmp_path}', '--gin_file=gin_configs/demo.gin'] if command == 'predict' else []
  (tmp_path / 'config.gin').touch()
  result = call(command, f'{flag}http://host/a', *others, cwd=tmp_path)
  assert_one_line(result, 'http://host/a', 'cannot open http:// on this machine: use a local path or gs://')


def test_evaluating_a_missing_run(tmp_path):
  assert_one_line(call('evaluate', f'--model_dir={tmp_path}/nothing', cwd=tmp_path), 'nothing', '--model_dir')


def test_help_names_the_flags_quickly(tmp_path):
  result = call('train', '--help', cwd=tmp_path)
  for flag in ('--gin_file', '--gin_param', '--model_dir', '--data_dir', '--weights'):
    assert flag in result.stdout.replace('--[no]', '--'), result.stdout
  assert 'scratch_6x.gin' in result.stdout


FURTHER = ('bench.rows', 'bench.complexity', 'bench.scaling', 'data.hashtags_convert', 'data.classification.hashtags')
OTHERS = {'bench.precision': 'needs TensorFlow for its flags', 'doctor.worker': 'takes JSON from the doctor',
          'study.worker': 'takes JSON from the study', 'redaction': 'a filter for shell scripts',
          '__main__': 'lists the commands'}


def call_without_tensorflow(command, *arguments, cwd):
  """Call a command in a process in which the import of TensorFlow, which takes seconds, fails."""
  (cwd / 'tensorflow.py').write_text('raise SystemExit("TensorFlow was imported")')
  environment = {**os.environ, 'PYTHONPATH': f'{cwd}{os.pathsep}{ROOT}'}
  return subprocess.run([sys.executable, '-m', f'rethink_tf.{command}', *arguments], cwd=cwd, env=environment,
                        capture_output=True, text=True)


@pytest.mark.parametrize('command', [*COMMANDS, *FURTHER])
def test_help_is_printed_without_tensorflow(command, tmp_path):
  result = call_without_tensorflow(command, '--help', cwd=tmp_path)
  assert (result.returncode, result.stderr) == (0, '') and f'rethink_tf.{command}' in result.stdout


def test_help_is_printed_by_a_command_that_needs_tensorflow():
  result = call('bench.precision', '--help')
  assert result.returncode == 0 and 'rethink_tf.bench.precision' in result.stdout


def test_every_module_that_runs_is_tried_here():
  runs = [path for path in (ROOT / 'rethink_tf').rglob('*.py') if "\nif __name__ == '__main__':" in path.read_text()]
  names = {'.'.join(path.relative_to(ROOT / 'rethink_tf').with_suffix('').parts) for path in runs}
  assert {name.removesuffix('.__main__') for name in names} == {*COMMANDS, *FURTHER, *OTHERS}


@pytest.mark.parametrize('command, arguments, words', [
  ('train', ['--gin_file=gin_configs/scratch_7x.gin'], ['scratch_7x.gin', 'did you mean']),
  ('train', [], ['no configuration', '--gin_file']),
  ('train', ['--gin_file=gin_configs/scratch_6x.gin', '--data_dir=nowhere'], ['nowhere', '--data_dir']),
  ('train', ['--gin_file=gin_configs/pretrain_6x.gin', '--weights=R-50.pkl'], ['R-50.pkl', 'no such file']),
  ('train', ['--gin_file=gin_configs/pretrain_6x.gin', '--weights=moco'], ['did you mean moco_v2?']),
  ('train', ['gin_file=x'], ["'gin_file=x'"]),
  ('pretrain', [], ['no configuration', '--gin_file=gin_configs/pretraining/']),
  ('evaluate', [], ['no run to evaluate', '--model_dir']),
  ('evaluate', ['--model_dir=nothing'], ['no config.gin in nothing']),
  ('predict', ['--model_dir=nothing', 'a.jpg'], ['no config.gin in nothing']),
  ('predict', ['--saved_model=nothing', 'a.jpg'], ['nothing: no such folder']),
  ('compare', ['runs/a'], ['runs/a: no such run folder']),
  ('study', ['--gin_file=gin_configs/studies/no.gin'], ['no gin file']),
  ('export', ['--model_dir=nothing'], ['no config.gin in nothing']),
  ('inspect_run', ['--model_dir=nothing'], ['nothing: no such run folder']),
  ('inspect_data', ['--data_dir=foo'], ['--gin_file']),
  ('weights', ['R-50.pkl'], ['R-50.pkl: no such file']),
  ('weights', [], ['no weight file']),
  ('weights', ['resnet50_v2'], ['did you mean torchvision_resnet50_v2']),
  ('study', ['--gin_file=gin_configs/studies/figure1.gin', '--weights=R-50-GN.pkl'], ['--weights=detectron_r50_gn']),
  ('data.download', ['--name=coco17'], ['--name=coco17: no such data set; did you mean coco2017?']),
  ('data.convert', ['--data_dir=nowhere', '--output_dir=out'], ['nowhere: no such']),
])
def test_errors_that_need_no_tensorflow_come_without_it(command, arguments, words, tmp_path):
  assert_one_line(call_without_tensorflow(command, *arguments, cwd=tmp_path), *words)


def test_a_process_prints_an_error_in_one_line_and_nothing_else(tmp_path):
  result = call_process('train', '--gin_file=gin_configs/scratch_6x.gin', cwd=tmp_path)
  assert_one_line(result, 'data/coco', 'instances_val2017.json', '--data_dir')


def test_the_package_lists_its_commands(tmp_path):
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
  result = subprocess.run([sys.executable, '-m', 'rethink_tf'], cwd=tmp_path, env=environment,
                          capture_output=True, text=True)
  assert all(f'python -m rethink_tf.{command} ' in result.stdout for command in COMMANDS)


@pytest.mark.parametrize('arguments, line', [
  (['train', '--gin_file=gin_configs/demo.gin'], "unexpected argument 'train': write python -m rethink_tf.train ..."),
  (['evalute'], "unexpected argument 'evalute': write python -m rethink_tf.evaluate ..."),
  (['--data_dir=https://me:secret@host'],
   "unexpected argument '--data_dir=https://***@host': python -m rethink_tf lists the commands"),
])
def test_a_command_after_a_space_is_an_error(arguments, line, capsys):
  """Until 0.2.0 the list was printed, with exit code 0: a script took it for a training that had succeeded."""
  assert main(arguments) == 1
  assert capsys.readouterr() == ('', f'error: {line}\n')
  assert main(['--help']) == 0 and 'python -m rethink_tf.train' in capsys.readouterr().out


def test_the_list_may_be_read_in_part():
  """`python -m rethink_tf | head`: nobody reads the rest."""
  reading, writing = os.pipe()
  os.close(reading)
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONUNBUFFERED': '1'}
  result = subprocess.run([sys.executable, '-m', 'rethink_tf'], env=environment, stdout=writing,
                          stderr=subprocess.PIPE, text=True)
  os.close(writing)
  assert (result.returncode, result.stderr) == (0, '')
