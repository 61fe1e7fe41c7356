"""The door: a run folder in, files out, and the refusals."""

import pathlib
import pickle

import numpy as np
import pytest
import tensorflow as tf

from tests.test_command_line import assert_one_line, call
from tests.test_experiment import PARAMS


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of two steps."""
  path = tmp_path_factory.mktemp('run') / 'tiny'
  params = [*PARAMS, 'KTimesSchedule.unit = 0.25', 'CocoEvaluator.every = 0', 'CocoEvaluator.at_end = False',
            'run.ema = @ExponentialMovingAverage']
  result = call('train', '--gin_file=gin_configs/demo.gin', f'--model_dir={path}',
                *(f'--gin_param={param}' for param in params), cwd=path.parent)
  assert result.returncode == 0, result.stderr
  return path


@pytest.mark.slow
def test_a_saved_model_without_the_data_set(run):
  """The configuration of the run is told of another data set, which is not there."""
  config = run / 'config.gin'
  config.write_text(config.read_text().replace('run.eval_source = @eval/synthetic', 'run.eval_source = @eval/coco'))
  result = call('export', f'--model_dir={run}', '--score_threshold=0.01', cwd=run.parent)
  assert result.returncode == 0, result.stderr
  assert 'saved_model: step 2, 6 categories' in result.stdout and 'agree' in result.stderr
  loaded = tf.saved_model.load(str(run / 'saved_model'))
  assert set(loaded.signatures) == {'serving_default', 'image', 'categories'}
  again = call('export', f'--model_dir={run}', cwd=run.parent)
  assert_one_line_at_end(again, 'exists already', '--out')


@pytest.mark.slow
def test_a_detectron2_checkpoint(run, tmp_path):
  out = tmp_path / 'deep' / 'model.pkl'
  result = call('export', f'--model_dir={run}', '--format=detectron2', f'--out={out}', '--channels=rgb', cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  content = pickle.loads(out.read_bytes())
  assert content['model']['roi_heads.box_predictor.cls_score.weight'].shape[0] == 7
  assert 'FORMAT: RGB' in pathlib.Path(tmp_path / 'deep' / 'model.yaml').read_text()


@pytest.mark.slow
@pytest.mark.parametrize('averaged', [True, False], ids=['averages', 'weights'])
def test_what_is_written_is_in_the_checkpoint(run, tmp_path, averaged):
  result = call('export', f'--model_dir={run}', '--format=detectron2', f'--out={tmp_path}/model.pkl',
                *['--averages'] * averaged, cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  assert ('averages of the weights' in result.stdout) == averaged
  written = pickle.loads((tmp_path / 'model.pkl').read_bytes())['model']['roi_heads.box_predictor.cls_score.weight']
  reader = tf.train.load_checkpoint(str(run / 'checkpoints' / 'step-00000002' / 'weights'))
  kernel = reader.get_tensor('detector/box_predictor/classes/kernel/.ATTRIBUTES/VARIABLE_VALUE')
  averages = [reader.get_tensor(name) for name, shape in reader.get_variable_to_shape_map().items()
              if name.startswith('ema/averages/') and shape == list(kernel.shape)]
  wanted = averages if averaged else [kernel]
  foreign = [kernel] if averaged else averages
  same = lambda array: np.array_equal(np.roll(array.T, -1, 0), written)  # noqa: E731  background comes last there
  assert any(map(same, wanted)) and not any(map(same, foreign))


@pytest.mark.slow
@pytest.mark.parametrize('door', [['export'], ['predict', 'a.png']], ids=['export', 'predict'])
def test_a_run_without_averages(run, tmp_path, door):
  (tmp_path / 'a.png').write_bytes(tf.io.encode_png(np.zeros([60, 60, 3], np.uint8)).numpy())
  result = call(*door, f'--model_dir={run}', '--averages', '--gin_param=run.ema = None', cwd=tmp_path)
  assert_one_line_at_end(result, '--averages', 'run.ema')


def test_what_was_never_trained(tmp_path):
  assert_one_line(call('export', f'--model_dir={tmp_path}/nothing', cwd=tmp_path), 'nothing', '--model_dir')
  assert_one_line(call('export', cwd=tmp_path), '--model_dir')


def test_an_unknown_format(tmp_path):
  result = call('export', '--format=onnx', cwd=tmp_path)
  assert result.returncode == 1 and 'saved_model|detectron2' in result.stderr


def assert_one_line_at_end(result, *words):
  assert result.returncode == 1 and result.stdout == ''
  last = result.stderr.splitlines()[-1]
  assert last.startswith('error: ') and all(word in last for word in words), result.stderr
