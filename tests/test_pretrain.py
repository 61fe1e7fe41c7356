"""Pre-training through gin from class folders: training, resuming, evaluation, averages, and one-line errors."""

import json
import os
import pathlib
import signal
import threading
import time

import cv2
import gin
import numpy as np
import pytest
import tensorflow as tf

from rethink_tf import experiment, gin_files
from rethink_tf.data.classification.image_folder import ImageFolder
from rethink_tf.data.classification.input import ClassificationEvalInput
from rethink_tf.errors import Interrupted, UserError
from rethink_tf.evaluation import on_demand
from rethink_tf.models.classifier import Classifier
from rethink_tf.models.resnet import ResNet
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.training import loop
from rethink_tf.training.losses import ClassificationLoss
from rethink_tf.training.trainer import Trainer
from tests.in_process import call
from tests.small_classes import write_folders

ROOT = pathlib.Path(__file__).resolve().parents[1]
PARAMS = (
  'ResNet.depth = 14', 'ResNet.stem_width = 32', 'ResNet.res2_width = 32', "strategy.kind = 'one_device'",
  'BATCH_SIZE = 6', 'CROP_SIZE = 32', 'SHORT_SIDE = 36', 'run.eval_images_per_device = 5', 'run.images_per_device = 6',
  'EpochSchedule.base_batch = 6', 'EpochSchedule.base_rate = 0.02', 'EpochSchedule.drops = ()',
  "eval/image_folder.split = 'val'", 'EpochSchedule.warmup_epochs = 0', 'TopKEvaluator.every = 0',
  'run.log_every = 1', 'run.checkpoint_every = 2',
)

pytestmark = pytest.mark.usefixtures('no_configuration_is_left')


def configure(data, *params):
  gin_files.parse(['gin_configs/pretraining/clothing.gin'], [f'DATA_DIR = {str(data)!r}', *PARAMS, *params])


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Data, folder and metrics of a run of 24 steps on 12 images, evaluated on the same images."""
  data = write_folders(tmp_path_factory.mktemp('data'))
  path = tmp_path_factory.mktemp('run')
  configure(data, "eval/image_folder.split = 'train'", 'EpochSchedule.epochs = 12')
  metrics = loop.train(experiment.run('train', str(path)))
  gin.clear_config()
  return data, path, metrics


def test_training_overfits_12_images(trained):
  _, path, metrics = trained
  assert metrics['top-1'] == 100 and metrics['top-5'] == 100 and metrics['cross-entropy'] < 0.7
  lines = [line for line in RunFolder(path, create=False).read_metrics() if line['kind'] == 'train']
  assert [line['images'] for line in lines] == list(range(6, 150, 6)) and lines[-1]['epoch'] == 11
  assert lines[-1]['instances'] == 144 and lines[-1]['pixels'] == 144 * 32 * 32
  assert lines[-1]['loss/class'] < lines[0]['loss/class'] / 2
  for name in ('config.gin', 'curves.png', 'checkpoints', 'tensorboard', 'eval'):
    assert (path / name).exists(), name


@pytest.mark.parametrize('command, words', [
  (['predict', 'image.png'], 'predict and export need the run of a detector'),
  (['export'], 'predict and export need the run of a detector'),
  (['inspect_data'], 'this configuration trains a classifier: inspect_data supports detection data only')])
def test_commands_of_detectors_refuse_the_run_of_a_classifier(trained, tmp_path, command, words):
  _, path, _ = trained
  cv2.imwrite(str(tmp_path / 'image.png'), np.zeros((8, 8, 3), np.uint8))
  result = call(*command, f'--model_dir={path}', cwd=tmp_path)
  assert result.returncode == 1 and 'Traceback' not in result.stderr, result.stderr
  assert result.stderr.splitlines()[-1].startswith('error: ') and words in result.stderr.splitlines()[-1], result.stderr


@pytest.mark.slow
def test_evaluating_the_saved_configuration_gives_the_same_metrics(trained):
  _, path, metrics = trained
  gin_files.parse([str(path / 'config.gin')])
  assert on_demand.evaluate(experiment.run('evaluate', str(path))) == pytest.approx(metrics, abs=1e-5)


@pytest.mark.slow
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(trained, tmp_path):
  data, _, _ = trained
  runs = {}
  for name, lengths in (('whole', (4,)), ('resumed', (2, 4))):
    for epochs in lengths:
      configure(data, f'EpochSchedule.epochs = {epochs}')
      loop.train(experiment.run('train', str(tmp_path / name)))
      gin.clear_config()
    runs[name] = [line for line in RunFolder(tmp_path / name, create=False).read_metrics() if line['kind'] == 'train']
  assert [line['step'] for line in runs['resumed']] == [line['step'] for line in runs['whole']] == list(range(1, 9))
  np.testing.assert_allclose(*([line['loss/class'] for line in run] for run in runs.values()), rtol=1e-2)


def variables(path):
  (newest,) = sorted((path / 'checkpoints').glob('step-*'))[-1:]
  reader = tf.train.load_checkpoint(str(newest / 'weights'))
  return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()
          if name.endswith('VARIABLE_VALUE') and 'save_counter' not in name}


@pytest.mark.slow
def test_averages_are_evaluated_beside_the_weights(trained, tmp_path):
  """They are saved, restored and evaluated again, and their metric chooses the best checkpoint."""
  data, _, _ = trained
  params = ('run.ema = @ExponentialMovingAverage', 'TopKEvaluator.every = 2', 'run.keep_checkpoints = 1',
            "run.keep_best = 'ema/top-1'", 'NORM = @sync_batch_norm')
  for epochs in (1, 2):  # the second resumes
    configure(data, f'EpochSchedule.epochs = {epochs}', *params)
    metrics = loop.train(experiment.run('train', str(tmp_path)))
    gin.clear_config()
  lines = RunFolder(tmp_path, create=False).read_metrics()
  assert [(line['kind'], line['step']) for line in lines if line['kind'] != 'train'] == [
    (kind, step) for step in (2, 4) for kind in ('eval', 'eval/ema')]
  assert metrics['ema/cross-entropy'] == lines[-1]['ema/cross-entropy'] != metrics['cross-entropy']
  assert (tmp_path / 'ema/eval/step-00000004/categories.csv').exists()
  saved = variables(tmp_path)
  assert saved['ema/updates/.ATTRIBUTES/VARIABLE_VALUE'] == 4
  best = json.loads((tmp_path / 'best.json').read_text())
  assert best['metric'] == 'ema/top-1' and best['step'] in (2, 4)
  assert {path.name for path in (tmp_path / 'checkpoints').iterdir()} == {'step-00000004', f'step-{best["step"]:08d}'}
  gin_files.parse([str(tmp_path / 'config.gin')])
  latest, chosen = (on_demand.evaluate(experiment.run('evaluate', str(tmp_path), checkpoint=which))
                    for which in ('4', 'best'))
  assert latest == pytest.approx(metrics, abs=1e-4)
  assert chosen['ema/top-1'] == pytest.approx(best['value'])
  with pytest.raises(UserError, match='no checkpoint of step 3'):
    on_demand.evaluate(experiment.run('evaluate', str(tmp_path), checkpoint='3'))


def test_a_preempted_run_saves_its_last_step(trained, tmp_path):
  data, _, _ = trained
  configure(data, 'EpochSchedule.epochs = 1000', 'run.checkpoint_every = 1000')
  folder = RunFolder(tmp_path)

  def preempt():
    while not any(line['kind'] == 'train' and line['step'] >= 3 for line in folder.read_metrics()):
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

  thread = threading.Thread(target=preempt)
  thread.start()
  with pytest.raises(Interrupted, match='resumes from step') as caught:
    loop.train(experiment.run('train', str(tmp_path)))
  thread.join()
  assert caught.value.signum == signal.SIGTERM
  last = folder.read_metrics()[-1]['step']
  assert 3 <= last < 2000 and [path.name for path in (tmp_path / 'checkpoints').iterdir()] == [f'step-{last:08d}']
  configure(data, f'EpochSchedule.epochs = {last // 2 + 1}')
  loop.train(experiment.run('train', str(tmp_path)))
  steps = [line['step'] for line in folder.read_metrics() if line['kind'] == 'train']
  assert steps == list(range(1, 2 * (last // 2 + 1) + 1))  # no step was lost or trained twice


@pytest.mark.slow
def test_micro_batches_and_several_settings_of_the_input(trained, tmp_path):
  data, _, _ = trained
  configure(data, 'run.images_per_device = 3', 'EpochSchedule.epochs = 1', 'ClassificationTrainInput.lighting = 0.1',
            'ClassificationTrainInput.colour_jitter = 0.4', 'ClassificationLoss.label_smoothing = 0.1',
            'train/image_folder.fraction = 0.5', 'NORM = @sync_batch_norm')
  metrics = loop.train(experiment.run('train', str(tmp_path)))
  assert metrics['top-5'] == 100
  assert [line['images'] for line in RunFolder(tmp_path, create=False).read_metrics() if line['kind'] == 'train'] == [6]


@pytest.mark.slow
def test_prediction_on_two_replicas_equals_one(trained, two_replicas):
  inputs = ClassificationEvalInput(ImageFolder(str(trained[0]), 'val'), 4, crop_size=32, short_side=32)
  batch = next(iter(inputs.dataset()))
  with two_replicas.scope():
    trainer = Trainer(Classifier(3, ResNet(14, stem_width=32, res2_width=32, width_per_group=32)), ClassificationLoss())
    trainer.compile('sgd')
    trainer.make_variables(batch)
  one = trainer.detector(batch.images, batch.image_sizes).logits
  np.testing.assert_allclose(trainer.predict_batch(batch), one, rtol=1e-4, atol=1e-5)


def test_unusable_data_is_one_line(tmp_path):
  write_folders(tmp_path / 'other', splits=('train',))
  write_folders(tmp_path / 'other', splits=('val',), classes=('red',))
  (tmp_path / 'other/val/mauve').mkdir()
  for data, text in ((tmp_path / 'other', "'mauve'"), (tmp_path / 'none', '--data_dir')):
    configure(data)
    with pytest.raises(UserError, match=text):
      loop.train(experiment.run('train', str(tmp_path / 'run')))


def test_an_error_of_the_command_is_one_line(tmp_path):
  done = call('pretrain', '--gin_file=gin_configs/pretraining/clothing.gin', f'--data_dir={tmp_path}/none',
              f'--model_dir={tmp_path}/run', "--gin_param=strategy.kind = 'one_device'")
  assert done.returncode == 1 and 'Traceback' not in done.stderr
  assert done.stderr.strip().splitlines()[-1].startswith('error: ') and '--data_dir' in done.stderr
