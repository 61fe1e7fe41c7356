"""A run folder written by version 0.1.0, before its layout of modules changed, works in every command.

tests/old_run: six steps of a very narrow demo.gin (its command line is in command.json), without images and events.
"""

import json
import pathlib
import shutil
import traceback

import cv2
import numpy as np
import pytest

import rethink_tf
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.models.mask_rcnn import MaskRCNN
from rethink_tf.storage.run_folder import RunFolder
from tests.in_process import call

PACKAGE = pathlib.Path(rethink_tf.__file__).parent
OLD = pathlib.Path(__file__).parent / 'old_run'
ONE_DEVICE = "--gin_param=strategy.kind = 'one_device'"


@pytest.fixture
def run(tmp_path):
  return pathlib.Path(shutil.copytree(OLD, tmp_path / 'run'))


def metrics(run, kind):
  return [line for line in RunFolder(str(run), create=False).read_metrics() if line['kind'] == kind]


def boxes(results):
  return np.array([[entry['image_id'], entry['category_id'], *entry['bbox'], entry['score']] for entry in results])


def test_evaluate_finds_what_was_found_then(run):
  before = json.loads((OLD / 'eval/step-00000006/bbox.json').read_text())
  shutil.rmtree(run / 'eval')
  result = call('evaluate', f'--model_dir={run}', ONE_DEVICE)
  assert result.returncode == 0, result.stderr
  after = json.loads((run / 'eval/step-00000006/bbox.json').read_text())
  assert len(before) == len(after) > 10
  np.testing.assert_allclose(boxes(after), boxes(before), atol=2e-2)
  assert metrics(run, 'eval')[-1]['box/AP'] == pytest.approx(metrics(OLD, 'eval')[-1]['box/AP'], abs=0.1)
  assert 'notes' not in metrics(run, 'eval')[-1]


@pytest.mark.slow
def test_predict_and_export(run, tmp_path):
  source = SyntheticSource(1, split='val', image_size=(64, 64), object_size=(16, 40))
  cv2.imwrite(str(tmp_path / 'image.png'), source.load(0).image[..., ::-1])
  result = call('predict', tmp_path / 'image.png', f'--model_dir={run}', '--threshold=0', f'--output={tmp_path}/found')
  assert result.returncode == 0, result.stderr
  found = json.loads((tmp_path / 'found/predictions.json').read_text())
  assert found and {entry['category_name'] for entry in found} <= {c.name for c in source.categories}
  result = call('export', f'--model_dir={run}', '--format=detectron2', f'--out={tmp_path}/model.pkl')
  assert result.returncode == 1 and '2 groups of its norm, there 32' in result.stderr  # Detectron2 cannot compute it
  assert not (tmp_path / 'model.pkl').exists()


@pytest.mark.slow
def test_export_writes_a_saved_model(run, tmp_path):
  result = call('export', f'--model_dir={run}', f'--out={tmp_path}/saved_model')
  assert result.returncode == 0, result.stderr
  assert (tmp_path / 'saved_model/saved_model.pb').exists() and 'step 6' in result.stdout


def test_train_continues_it_and_calls_the_detector_within_eight_frames(run, monkeypatch):
  stacks, inner = [], MaskRCNN.call

  def recorded(self, *arguments, **settings):
    frames = [frame.name for frame in traceback.extract_stack() if PACKAGE in pathlib.Path(frame.filename).parents]
    stacks.append(frames)
    return inner(self, *arguments, **settings)

  monkeypatch.setattr(MaskRCNN, 'call', recorded)
  result = call('train', f'--gin_file={run}/config.gin', f'--model_dir={run}', ONE_DEVICE,
                '--gin_param=KTimesSchedule.unit = 1.75', '--gin_param=CocoEvaluator.at_end = False')
  assert result.returncode == 0, result.stderr
  lines = metrics(run, 'train')
  assert [line['step'] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
  assert lines[-1]['images'] == 28 and (run / 'checkpoints/step-00000007').is_dir()
  assert len(json.loads((run / 'command.json').read_text())['earlier_starts']) == 1
  (train,) = {tuple(frames) for frames in stacks if 'train_step' in frames}
  assert train[0] == '<module>' and len(train) - 1 <= 8, train


def test_compare_reads_it(run, tmp_path):
  other = shutil.copytree(run, tmp_path / 'other')
  result = call('compare', run, other, f'--output={tmp_path}/comparison')
  assert result.returncode == 0, result.stderr
  assert (tmp_path / 'comparison/index.html').exists() and 'box/AP' in result.stdout
