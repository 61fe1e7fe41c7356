"""The command export: from a run folder to a SavedModel or a Detectron2 checkpoint, and its errors."""

import json
import pathlib
import pickle
import shutil

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.export import onnx_format
from tests import tiny_run
from tests.in_process import call
from tests.test_command_line import assert_one_line


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A copy of the run, to write into."""
  path = tmp_path_factory.mktemp('run') / 'tiny'
  shutil.copytree(tiny_run.make(tmp_path_factory) / 'run', path)
  return path


@pytest.mark.slow
def test_a_saved_model_without_the_data_set(run):
  """The configuration names a data set that does not exist here."""
  config = run / 'config.gin'
  config.write_text(config.read_text() + '\nrun.eval_source = @eval/coco\n')
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
  assert f"import {out.with_name('model_backbone.py')} before it is built" in result.stdout + result.stderr
  content = pickle.loads(out.read_bytes())
  assert content['model']['roi_heads.box_predictor.cls_score.weight'].shape[0] == 7
  assert 'FORMAT: RGB' in pathlib.Path(tmp_path / 'deep' / 'model.yaml').read_text()


@pytest.mark.slow
@pytest.mark.parametrize('averaged', [True, False], ids=['averages', 'weights'])
def test_the_written_weights_are_those_of_the_checkpoint(run, tmp_path, averaged):
  result = call('export', f'--model_dir={run}', '--format=detectron2', f'--out={tmp_path}/model.pkl',
                *['--averages'] * averaged, cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  assert ('averages of the weights' in result.stdout) == averaged
  written = pickle.loads((tmp_path / 'model.pkl').read_bytes())['model']['roi_heads.box_predictor.cls_score.weight']
  reader = tf.train.load_checkpoint(str(run / 'checkpoints' / 'step-00000002' / 'weights'))
  kernel = reader.get_tensor('detector/box_predictor/classes/kernel/.ATTRIBUTES/VARIABLE_VALUE')
  averages = [reader.get_tensor(name) for name, shape in reader.get_variable_to_shape_map().items()
              if name.startswith('ema/averages/') and shape == list(kernel.shape)]
  expected, others = (averages, [kernel]) if averaged else ([kernel], averages)
  same = lambda array: np.array_equal(np.roll(array.T, -1, 0), written)  # noqa: E731  background is the last class
  assert any(map(same, expected)) and not any(map(same, others))


@pytest.mark.slow
@pytest.mark.parametrize('command', [['export'], ['predict', 'a.png']], ids=['export', 'predict'])
def test_a_run_without_averages(run, tmp_path, command):
  (tmp_path / 'a.png').write_bytes(tf.io.encode_png(np.zeros([60, 60, 3], np.uint8)).numpy())
  result = call(*command, f'--model_dir={run}', '--averages', '--gin_param=run.ema = None', cwd=tmp_path)
  assert_one_line_at_end(result, '--averages', 'run.ema')


def test_a_folder_without_a_run(tmp_path):
  assert_one_line(call('export', f'--model_dir={tmp_path}/nothing', cwd=tmp_path), 'nothing', '--model_dir')
  assert_one_line(call('export', cwd=tmp_path), '--model_dir')


def test_an_unknown_format(tmp_path):
  result = call('export', '--format=torch', cwd=tmp_path)
  assert result.returncode == 1 and 'saved_model|detectron2|onnx|tflite' in result.stderr


@pytest.mark.parametrize('size, form, words', [
  ('480', 'onnx', ('--image_size=480', 'height and width')), ('0,640', 'tflite', ('--image_size=0,640',)),
  ('a,b', 'onnx', ('--image_size=a,b',)), ('480,640', 'saved_model', ('--image_size', 'leave it out for saved_model'))])
def test_wrong_image_sizes_are_one_line(tmp_path, size, form, words):
  result = call('export', f'--model_dir={tmp_path}', f'--image_size={size}', f'--format={form}', cwd=tmp_path)
  assert_one_line(result, *words)


@pytest.mark.parametrize('form, flag, words', [
  ('detectron2', '--score_threshold=0.9', ('--score_threshold', 'SCORE_THRESH_TEST')),
  *((form, '--channels=rgb', ('--channels', f'leave it out for {form}')) for form in ('saved_model', 'tflite'))])
def test_flags_of_other_formats_are_refused(tmp_path, form, flag, words):
  assert_one_line(call('export', f'--model_dir={tmp_path}', f'--format={form}', flag, cwd=tmp_path), *words)


def test_the_extra_is_missing(tmp_path, monkeypatch):
  shutil.copy(pathlib.Path(__file__).parents[1] / 'old_run/config.gin', tmp_path)
  monkeypatch.setattr(onnx_format, 'PACKAGES', ('tf3onnx',))
  result = call('export', f'--model_dir={tmp_path}', '--format=onnx', cwd=tmp_path)
  assert_one_line(result, "pip install 'rethink_tf[onnx]'", 'needs tf3onnx')


@pytest.mark.slow
def test_test_time_augmentation_is_not_exported(run, tmp_path):
  arguments = [f'--model_dir={run}', '--format=detectron2', f'--out={tmp_path}/model.pkl']
  warning = 'run.test_augmentation is not exported: the file detects in one view'
  result = call('export', *arguments, '--gin_param=run.test_augmentation = @TestTimeAugmentation()', cwd=tmp_path)
  assert result.returncode == 0 and warning in result.stderr, result.stderr
  assert warning not in call('export', *arguments, cwd=tmp_path).stderr


@pytest.mark.slow
@pytest.mark.parametrize('which', ['best', '2', 'latest'])
def test_any_checkpoint_and_its_description(run, tmp_path, which):
  result = call('export', f'--model_dir={run}', '--format=detectron2', f'--out={tmp_path}/model.pkl',
                f'--checkpoint={which}', cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  about = json.loads((tmp_path / 'model.json').read_text())
  assert 'step 2' in result.stdout and about['step'] == 2
  trained = json.loads((run / 'categories.json').read_text())  # with keypoints, which this detector has no head for
  assert about['categories'] == [{'id': one['id'], 'name': one['name']} for one in trained]
  for wrong, word in (('7', 'no checkpoint of step 7'), ('newest', 'latest, best or a step')):
    result = call('export', f'--model_dir={run}', f'--out={tmp_path}/x', f'--checkpoint={wrong}', cwd=tmp_path)
    assert_one_line_at_end(result, word)


def assert_one_line_at_end(result, *words):
  assert result.returncode == 1 and result.stdout == ''
  last = result.stderr.splitlines()[-1]
  assert last.startswith('error: ') and all(word in last for word in words), result.stderr
