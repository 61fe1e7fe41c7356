"""Experiments through gin: training, evaluation, resuming, initial weights, and one-line errors."""

import json
import pathlib
import shutil
import types

import gin
import numpy as np
import pytest
import tensorflow as tf

from rethink_tf import experiment, gin_files
from rethink_tf.compare.run_summary import read_run
from rethink_tf.data.detection.input import TrainInput
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.distributed.workers import Workers
from rethink_tf.errors import UserError, WorkerLost
from rethink_tf.evaluation import on_demand
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.training import loop
from tests import small_voc, tiny, tiny_run
from tests.weights import files, reference

PARAMS = tiny.PARAMS

pytestmark = pytest.mark.usefixtures('no_configuration_is_left')


def configure(*params, files=('gin_configs/demo.gin',)):
  gin_files.parse(files, [*PARAMS, *params])


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Folder of a run of four steps, and its metrics."""
  path = tmp_path_factory.mktemp('run')
  configure()
  metrics = loop.train(experiment.run('train', str(path)))
  gin.clear_config()
  return path, metrics


@pytest.fixture(scope='module')
def short(tmp_path_factory):
  """Folder of the run of two steps that tests share; not to be written to."""
  return tiny_run.make(tmp_path_factory) / 'run'


def test_a_tpu_needs_operations_that_xla_compiles(tmp_path, monkeypatch):
  monkeypatch.setattr(tf.distribute, 'TPUStrategy', tf.distribute.OneDeviceStrategy)
  monkeypatch.setattr(experiment.distribution, 'num_hosts', lambda strategy: 1)
  monkeypatch.setattr(experiment.devices_found, 'report', lambda strategy: None)
  configure()
  with pytest.raises(UserError, match='MaskRCNN.xla = False: .*gin_configs/runtime/tpu.gin'):
    experiment.run('train', str(tmp_path / 'run'))


def test_files_of_the_run_folder(short):
  for name in ('config.gin', 'command.json', 'metrics.jsonl', 'curves.png', 'checkpoints', 'tensorboard', 'eval'):
    assert (short / name).exists(), name
  lines = RunFolder(short, create=False).read_metrics()
  training = [line for line in lines if line['kind'] == 'train']
  assert [(line['step'], line['images']) for line in training] == [(1, 2), (2, 4)]
  assert all(np.isfinite(line['loss/total']) for line in training)
  scored, = (line for line in lines if line['kind'] == 'eval')
  assert scored['step'] == 2
  assert {'box/AP', 'box/AP50', 'box/APs', 'box/AR100', 'mask/AP', 'mask/AP75'} <= set(scored)
  results = json.loads(next((short / 'eval').glob('*2/bbox.json')).read_text())
  assert all(set(result) == {'image_id', 'category_id', 'bbox', 'score'} for result in results)


@pytest.mark.slow
def test_an_evaluation_unlike_those_of_the_run_says_so(short):
  """Its metrics stand beside those of the run."""
  for bindings, notes in (((), []), (
    ('DetectionGenerator.score_threshold = 0.2', 'eval/synthetic.num_images = 2'), [
      'evaluated with other settings than those of the run: DetectionGenerator.score_threshold 0.01 -> 0.2',
      'evaluated on other data than that of the run: 3 -> 2 images, 10 -> 4 instances'])):
    gin_files.parse([str(short / 'config.gin')], ['run.ema = None', *bindings])
    assert experiment.run('evaluate', str(short)).evaluator.notes == notes


@pytest.mark.slow
def test_evaluations_during_training(trained):
  path, metrics = trained
  scored = [line for line in RunFolder(path, create=False).read_metrics() if line['kind'] == 'eval']
  assert [line['step'] for line in scored] == [2, 4] and metrics['box/AP'] == scored[-1]['box/AP']


@pytest.mark.slow
def test_evaluating_the_saved_configuration_gives_the_same_metrics(trained):
  path, metrics = trained
  gin_files.parse([str(path / 'config.gin')])
  again = on_demand.evaluate(experiment.run('evaluate', str(path)))
  assert again == pytest.approx(metrics, abs=1e-6)


@pytest.mark.slow
def test_a_complete_run_is_not_trained_again(trained):
  path, metrics = trained
  configure()
  before = sorted(p.name for p in (path / 'checkpoints').iterdir())
  assert loop.train(experiment.run('train', str(path))) == pytest.approx(metrics, abs=1e-6)
  assert sorted(p.name for p in (path / 'checkpoints').iterdir()) == before


@pytest.mark.slow
def test_a_longer_schedule_continues_with_the_counters(trained):
  path, _ = trained
  configure('SCHEDULE = 1.5')
  loop.train(experiment.run('train', str(path)))
  last = [line for line in RunFolder(path, create=False).read_metrics() if line['kind'] == 'train'][-1]
  assert (last['step'], last['images'], last['epoch']) == (6, 12, 1)


@pytest.mark.slow
def test_a_non_finite_loss_stops_the_run_and_names_loss_step_and_images(tmp_path):
  configure('KTimesSchedule.base_rate = 1e30', 'CocoEvaluator.every = 0')
  with pytest.raises(UserError, match=r'loss/.* step \d') as error:
    loop.train(experiment.run('train', str(tmp_path)))
  assert 'image' in error.value.line()
  steps = [int(p.name.split('-')[-1]) for p in pathlib.Path(tmp_path, 'checkpoints').glob('step-*')] \
    if (tmp_path / 'checkpoints').exists() else []
  for step in steps:
    reader = tf.train.load_checkpoint(str(next((tmp_path / 'checkpoints').glob(f'*{step}'))))
    assert all(np.isfinite(reader.get_tensor(name)).all() for name in reader.get_variable_to_shape_map()
               if reader.get_variable_to_dtype_map()[name].is_floating)


def test_a_run_is_not_resumed_with_another_network(short, tmp_path):
  path = shutil.copytree(short, tmp_path / 'run')
  configure('FPN.channels = 64')
  with pytest.raises(UserError, match='checkpoint') as error:
    loop.train(experiment.run('train', str(path)))
  assert 'checkpoint' in error.value.line()


@pytest.mark.parametrize('binding, text', [
  ('ResNet.freeze_at = 2', 'freeze_at'),
  pytest.param('NORM = @frozen_batch_norm', 'frozen_batch_norm', marks=pytest.mark.slow),
])
def test_a_frozen_layer_with_random_weights_is_refused(binding, text, tmp_path):
  configure(binding)
  with pytest.raises(UserError, match=text):
    loop.train(experiment.run('train', str(tmp_path)))


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  """An ImageNet backbone as torchvision would save it, and its arrays."""
  arrays = {name: 0.1 * array if name.endswith('norm.weight') else array  # else the first steps diverge
            for name, array in reference.random_arrays('bn').items()}
  path = tmp_path_factory.mktemp('weights') / 'resnet14.pth'
  files.zipped(path, *files.plain(files.torchvision_names(arrays), False))
  return str(path), arrays


FROZEN = ('gin_configs/demo.gin', 'gin_configs/norms/frozen_bn.gin', 'gin_configs/init/imagenet_torchvision.gin')


def start_from(path, *params, files=FROZEN):
  configure(f'WEIGHTS = {path!r}', 'ResNet.freeze_at = 2', 'KTimesSchedule.base_rate = 1e-4', 'CocoEvaluator.every = 0',
            *params, files=files)


@pytest.fixture(scope='module')
def tuned_on_voc(weights, tmp_path_factory):
  """Weight file, folder and metrics of a Faster R-CNN that four steps have tuned on three images in VOC's format."""
  folder = tmp_path_factory.mktemp('tuned')
  data = small_voc.write(folder / 'data', {which: {f'{i}': small_voc.xml(small_voc.item()) for i in range(1, 4)}
                                           for which in ('train', 'val')})
  copy = shutil.copy(weights[0], folder / 'copy.pth')
  start_from(str(copy), f'DATA_DIR = {data!r}', "train/voc.sets = ('train',)", "eval/voc.sets = ('val',)",
             files=(*FROZEN, 'gin_configs/models/faster_rcnn.gin', 'gin_configs/data/voc.gin'))
  metrics = loop.train(experiment.run('train', str(folder / 'run')))
  gin.clear_config()
  return copy, folder / 'run', metrics


def test_a_run_starts_from_pre_trained_weights_once(weights, tuned_on_voc):
  """Frozen layers are allowed with weights of a file; resuming and evaluating do not need the file."""
  (_, arrays), (copy, folder, metrics) = weights, tuned_on_voc
  record = json.loads((folder / 'initial_weights.json').read_text())
  assert record['path'] == str(copy) and len(record['sha256']) == 64 and 'torchvision' in record['format']
  newest = sorted((folder / 'checkpoints').iterdir())[-1]
  reader = tf.train.load_checkpoint(str(newest / 'weights'))
  value = '/.ATTRIBUTES/VARIABLE_VALUE'
  np.testing.assert_array_equal(reader.get_tensor(f'detector/backbone/stem/conv/kernel{value}'),
                                arrays['stem.conv1.weight'].transpose(2, 3, 1, 0))  # frozen
  tuned = reader.get_tensor(f'detector/backbone/stages/3/0/conv2/conv/kernel{value}')
  start = arrays['res5.0.conv2.weight'].transpose(2, 3, 1, 0)
  assert 0 < np.abs(tuned - start).max() < 0.1  # trained from the value in the file
  copy.unlink()
  gin_files.parse([str(folder / 'config.gin')])
  assert on_demand.evaluate(experiment.run('evaluate', str(folder))) == pytest.approx(metrics, abs=1e-6)


@pytest.mark.slow
def test_a_cascade_continues_from_a_plain_run(trained, tmp_path):
  configure(f"WEIGHTS = '{trained[0]}/checkpoints/step-00000002'", 'run.initial_weights = @PlainRun()',
            'PlainRun.path = %WEIGHTS', 'MaskRCNN.pixel_std = (58.0, 58.0, 58.0)',
            files=('gin_configs/demo.gin', 'gin_configs/init/detector.gin', 'gin_configs/models/cascade.gin'))
  loop.train(experiment.run('train', str(tmp_path)))
  before, after = ([line for line in RunFolder(str(path)).read_metrics() if line['kind'] == 'train']
                   for path in (trained[0], tmp_path))
  assert [line['step'] for line in after] == [3, 4]
  before = [line for line in before if line['step'] in (3, 4)]
  assert [line['images'] for line in after] == [line['images'] for line in before]  # the counters continue
  assert 'loss/box/class/stage3' in after[-1] and after[-1]['learning_rate'] == before[-1]['learning_rate']


@pytest.mark.slow
def test_detectors_of_other_classes_start_each_other_and_their_costs_add_up(short, tmp_path, caplog):
  """Six classes, then two of them without masks, then three with: what led to a run counts as a whole."""
  caplog.set_level('INFO')
  seen, before = [], []
  for start, to, classes, *more in ((short, 'two', 2, 'gin_configs/models/faster_rcnn.gin'),
                                    (tmp_path / 'two', 'three', 3)):
    configure(f'WEIGHTS = {str(start)!r}', 'MaskRCNN.pixel_std = (58.0, 58.0, 58.0)', 'KTimesSchedule.unit = 0.25',
              f'synthetic.num_classes = {classes}', 'CocoEvaluator.every = 0',
              files=('gin_configs/demo.gin', *more, 'gin_configs/init/detector_new_classes.gin'))
    loop.train(experiment.run('train', str(tmp_path / to)))
    gin.clear_config()
    seen.append([line for line in RunFolder(str(start)).read_metrics() if line['kind'] == 'train'][-1]['pixels'])
    before.append(json.loads((tmp_path / to / 'initial_weights.json').read_text()))
  assert '2 of 2 classes take their outputs from it' in caplog.text
  assert 'mask_head, mask_predictor is not loaded' in caplog.text  # faster_rcnn.gin has none
  assert '2 of 3 classes take their outputs from it' in caplog.text
  assert 'mask_head, mask_predictor is not in it and is reinitialized' in caplog.text
  assert [record['seen']['pixels'] for record in before] == [seen[0], seen[0] + seen[1]]
  assert before[0]['before'] is None and str(short) in before[1]['before']
  after = read_run(RunFolder(str(tmp_path / 'three')), 'three')
  assert after.init == 'pre-trained' and after.pretraining.pixels == sum(seen)


@pytest.mark.slow
def test_layers_without_weights_in_the_file_cannot_be_frozen(weights, tmp_path):
  start_from(weights[0], 'FPN.norm = @frozen_batch_norm')
  with pytest.raises(UserError, match='would stay at random values'):
    loop.train(experiment.run('train', str(tmp_path)))


def test_a_missing_weight_file_is_one_line(tmp_path):
  start_from(str(tmp_path / 'none.pth'))
  with pytest.raises(UserError, match='none.pth: no such file') as error:
    loop.train(experiment.run('train', str(tmp_path / 'run')))
  assert 'none.pth' in error.value.line()


@pytest.mark.parametrize('binding, text', [
  ("run.precision = 'float8'", 'run.precision'),
  ('ResNet.depth = 51', 'ResNet.depth'),
  ('train/synthetic.num_images = 0', 'num_images'),
  *((f'{name} = 0', f'{name} = 0: use 1 or more') for name in (
    'BATCH_SIZE', 'run.images_per_device', 'run.eval_images_per_device', 'run.log_every', 'run.checkpoint_every',
    'run.keep_checkpoints')),
  ('run.checkpoint_every = -3', 'run.checkpoint_every = -3: use 1 or more'),
  ('run.seed = -1', 'run.seed = -1: use 0 to 4294967295'),
])
def test_a_value_out_of_range_is_one_line(binding, text, tmp_path):
  configure(binding)
  with pytest.raises(UserError, match=text) as error:
    loop.train(experiment.run('train', str(tmp_path)))
  assert text in error.value.line()


@pytest.mark.parametrize('where', ['building', 'restoring', 'evaluating'])
def test_a_worker_that_ends_before_training_is_reported_in_one_line(tmp_path, monkeypatch, where):
  """Variables are created together, and restored together: the other workers wait for the one that has ended."""
  def ended(*arguments, **settings):
    raise tf.errors.UnavailableError(None, None, 'Error:\nCollective ops is aborted by: task 1 is down')

  others = Workers(0, 2)
  with pytest.raises(WorkerLost, match='another worker has ended .*task 1 is down') as caught:
    if where == 'building':
      monkeypatch.setattr(experiment, '_open_folder', lambda *_: (RunFolder(str(tmp_path)), others))
      monkeypatch.setattr(experiment, '_set_up', ended)
      configure()
      experiment.run('train', str(tmp_path))
    elif where == 'restoring':
      monkeypatch.setattr(loop, '_start', ended)
      loop.train(types.SimpleNamespace(folder=RunFolder(str(tmp_path)), trainer=None, workers=others, total_steps=4,
                                       train_input=None, evaluator=None))
    else:
      monkeypatch.setattr(on_demand.digest, 'summarize', ended)
      on_demand.evaluate(types.SimpleNamespace(workers=others, eval_input=types.SimpleNamespace(source=None)))
  assert '\n' not in caught.value.line()


@pytest.mark.slow
def test_evaluating_without_a_checkpoint(tmp_path):
  configure()
  with pytest.raises(UserError, match='no checkpoint'):
    on_demand.evaluate(experiment.run('evaluate', str(tmp_path)))


def test_both_data_sets_must_have_the_same_classes(tmp_path):
  configure('eval/synthetic.num_classes = 2')
  with pytest.raises(UserError, match='categories'):
    loop.train(experiment.run('train', str(tmp_path)))


@pytest.mark.slow
def test_the_best_checkpoint_of_keypoints(tmp_path):
  configure('run.keep_checkpoints = 1', files=('gin_configs/demo.gin', 'gin_configs/models/keypoints.gin'))
  metrics = loop.train(experiment.run('train', str(tmp_path)))
  best = json.loads((tmp_path / 'best.json').read_text())
  values = {line['step']: line['keypoint/AP'] for line in RunFolder(tmp_path, create=False).read_metrics()
            if line['kind'] == 'eval'}
  assert set(values) == {2, 4} and metrics['keypoint/AP'] == values[4]
  assert best['metric'] == 'keypoint/AP' and best['value'] == values[best['step']] == max(values.values())


def test_faster_r_cnn_on_voc_by_its_own_metric(tuned_on_voc):
  _, folder, metrics = tuned_on_voc
  assert set(metrics) == {'voc/mAP', 'voc/AP75', 'voc/AP'} and 0 <= metrics['voc/mAP'] <= 100
  lines = RunFolder(folder, create=False).read_metrics()
  training, scored = ([line for line in lines if line['kind'] == kind] for kind in ('train', 'eval'))
  assert scored[0]['step'] == 4 and scored[0]['voc/mAP'] == metrics['voc/mAP'] and 'loss/mask' not in training[0]
  assert (folder / 'eval/step-00000004/comp4_det_test_dog.txt').exists()


def test_on_several_hosts_only_records_are_read():
  inputs = TrainInput(SyntheticSource(num_images=2))
  experiment.check_hosts(inputs, 1)
  with pytest.raises(UserError, match='is read by Python, which runs on one host of this TPU only: convert it'):
    experiment.check_hosts(inputs, 4)
  with pytest.raises(UserError, match='reads in Python, which runs on one of the 4 hosts of this TPU only'):
    experiment.check_hosts(types.SimpleNamespace(source=inputs.source), 4)
