"""Two workers as processes connected over the loopback device: the same losses, metrics and files as one."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import small_coco, tiny, two_workers

STEPS = 20
PARAMS = (
  *tiny.GIN, 'train/synthetic.num_images = 24', 'eval/synthetic.num_images = 7', 'synthetic.image_size = (64, 64)',
  'synthetic.object_size = (16, 40)', 'ResNet.depth = 14', 'BATCH_SIZE = 4', f'KTimesSchedule.unit = {STEPS / 4}',
  'run.log_every = 1', 'run.checkpoint_every = 10', 'run.eval_images_per_device = 2', 'PreciseStatistics.batches = 4',
  'CocoEvaluator.every = 10', 'CocoEvaluator.num_pictures = 1', 'strategy.timeout_minutes = 15',
)
# One device computes on micro-batches of two images what two devices compute on two images each. Batch statistics of
# SyncBatchNorm are over all devices, so there one device takes the four images at once, and losses that are divided by
# a count over a device's images need the same count on each: no mask head, and so few RoIs that all are in use.
KINDS = {
  'gn': ('run.images_per_device = 2',),
  'syncbn': ('run.images_per_device = 4', '--gin_file=gin_configs/norms/syncbn.gin',
             '--gin_file=gin_configs/models/faster_rcnn.gin', 'RoISampler.batch_size = 4'),
}
TOLERANCE = 1e-5  # relative, of the total loss at a step
# Steps that are compared with one device. At the fifth step of SyncBatchNorm a ReLU of the first stage whose input is
# zero up to rounding opens in one of the two runs only. The losses still agree to 2e-7, the gradients before that layer
# do not, and the runs diverge from there on. So do runs on one device that differ in one bit of one weight: the other
# steps are compared with these.
COMPARED = {'gn': STEPS, 'syncbn': 4}
ONE_BIT = """
import runpy
import numpy as np
from rethink_tf.training import loop
initialise = loop.initialise
def change_one_bit(trainer, *rest):
  weight = trainer.trainable_variables[0]
  values = weight.numpy()
  values.flat[0] = np.nextafter(values.flat[0], np.float32(np.inf))
  weight.assign(values)
  return initialise(trainer, *rest)
loop.initialise = change_one_bit
runpy.run_module('rethink_tf.train', run_name='__main__')
"""


def command(folder, *further, task='train'):
  """Return the arguments of python; further ones that do not begin with -- are gin bindings."""
  files = [one for one in further if one.startswith('--gin_file')]
  flags = [one for one in further if one.startswith('--') and one not in files]
  params = [f'--gin_param={param}' for param in (*PARAMS, *(one for one in further if not one.startswith('--')))]
  return ['-m', f'rethink_tf.{task}', '--gin_file=gin_configs/demo.gin', *files, *flags, f'--model_dir={folder}',
          *params]


def alone(arguments, seconds=900):
  environment = {name: value for name, value in two_workers.environment(0, [1]).items() if name != 'TF_CONFIG'}
  result = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False,
                          timeout=seconds)
  assert result.returncode == 0, result.stdout + result.stderr
  return result


def lines(folder, kind, name='metrics.jsonl'):
  every = [json.loads(line) for line in pathlib.Path(folder, name).read_text().splitlines()]
  return [line for line in every if line['kind'] == kind]


@pytest.fixture(scope='module', params=sorted(KINDS))
def runs(request, tmp_path_factory):
  """Train on one device, two logical CPUs and two workers; return the kind, the folder and the workers' outputs."""
  path, settings = tmp_path_factory.mktemp(request.param), KINDS[request.param]
  alone(command(path / 'one', *settings, "strategy.kind = 'one_device'"))
  alone(command(path / 'two_cpus', *settings, "strategy.kind = 'mirrored'", 'strategy.logical_cpus = 2'))
  results = two_workers.finish(two_workers.start(command(path / 'two_workers', *settings)))
  assert [code for code, _ in results] == [0, 0], results
  return request.param, path, [output for _, output in results]


@pytest.mark.slow
def test_two_workers_train_and_the_chief_writes(tmp_path):
  results = two_workers.finish(two_workers.start(command(
    tmp_path, 'KTimesSchedule.unit = 0.25', 'CocoEvaluator.at_end = False', 'CocoEvaluator.every = 0',
    'run.images_per_device = 2', 'run.checkpoint_every = 1')))
  assert [code for code, _ in results] == [0, 0], results
  train, = lines(tmp_path, 'train')
  assert (train['step'], train['images']) == (1, 4) and np.isfinite(train['loss/total'])
  assert 'step 1/1' in results[0][1] and 'step 1/1' not in results[1][1]
  assert (tmp_path / 'checkpoints/step-00000001').is_dir()


@pytest.mark.slow
def test_losses_equal_those_of_one_device(runs):
  kind, path, _ = runs
  one, cpus, workers = (lines(path / name, 'train') for name in ('one', 'two_cpus', 'two_workers'))
  assert [line['step'] for line in one] == list(range(1, STEPS + 1))
  for a, b, c in zip(one, cpus, workers, strict=True):
    for field in ('step', 'epoch', 'images', 'instances', 'pixels'):
      assert a[field] == b[field] == c[field]
    assert c['loss/total'] == pytest.approx(b['loss/total'], rel=TOLERANCE), a['step']
    if a['step'] <= COMPARED[kind]:
      assert b['loss/total'] == pytest.approx(a['loss/total'], rel=TOLERANCE), a['step']


@pytest.mark.slow
def test_syncbn_on_two_workers_deviates_no_more_than_one_changed_bit(runs, tmp_path):
  kind, path, _ = runs
  if kind != 'syncbn':
    pytest.skip('the losses with GroupNorm are equal')
  alone(['-c', ONE_BIT, *command(tmp_path / 'bit', *KINDS[kind], "strategy.kind = 'one_device'")[2:]])
  one, bit, workers = (np.array([line['loss/total'] for line in lines(folder, 'train')])
                       for folder in (path / 'one', tmp_path / 'bit', path / 'two_workers'))
  by_bit, by_workers = (np.median(np.abs(other / one - 1)[COMPARED[kind]:]) for other in (bit, workers))
  print(f'median deviation of the loss after step {COMPARED[kind]}: one bit {by_bit:.2g}, two workers {by_workers:.2g}')
  assert by_workers < 2 * by_bit


@pytest.mark.slow
def test_only_the_chief_prints_and_writes(runs):
  _, path, (chief, worker) = runs
  assert f'step {STEPS}/{STEPS}' in chief and f'evaluation at step {STEPS}' in chief
  assert 'worker 1 of 2: the chief prints' in worker and 'step 1/' not in worker and 'evaluation' not in worker
  assert [line['step'] for line in lines(path / 'two_workers', 'train')] == list(range(1, STEPS + 1))
  assert [line['step'] for line in lines(path / 'two_workers', 'eval')] == [10, 20]
  assert len(list(path.glob('two_workers/tensorboard/events*'))) == 1
  assert list(path.glob('two_workers/gather/*')) == []


@pytest.mark.slow
def test_metrics_of_two_workers_equal_those_of_one_device(runs):
  """The same checkpoint, scored by two workers during training and by one device afterwards."""
  kind, path, _ = runs
  results = path / f'two_workers/eval/step-{STEPS:08d}'
  before = {name: json.loads((results / name).read_text()) for name in ('bbox.json',)}
  assert len(before['bbox.json']) > 10
  alone(command(path / 'two_workers', *KINDS[kind], "strategy.kind = 'one_device'", task='evaluate'))
  shared, single = lines(path / 'two_workers', 'eval')[-2:]
  assert {name: value for name, value in single.items() if '/A' in name} == {
    name: value for name, value in shared.items() if '/A' in name}
  for a, b in zip(before['bbox.json'], json.loads((results / 'bbox.json').read_text()), strict=True):
    assert (a['image_id'], a['category_id']) == (b['image_id'], b['category_id'])
    assert a['score'] == pytest.approx(b['score'], abs=1e-5) and a['bbox'] == pytest.approx(b['bbox'], abs=0.01)


@pytest.mark.slow
def test_after_a_kill_of_one_worker_the_other_exits_and_both_resume(tmp_path):
  settings = ('KTimesSchedule.unit = 100', 'CocoEvaluator.every = 0', 'run.checkpoint_every = 5', 'run.log_every = 5')
  processes = two_workers.start(command(tmp_path / 'run', *settings))
  try:
    while not list(tmp_path.glob('run/checkpoints/step-*')):
      assert all(process.poll() is None for process in processes)
      time.sleep(0.2)
    processes[1].send_signal(signal.SIGKILL)
    output, _ = processes[0].communicate(timeout=300)
  finally:
    for process in processes:
      process.kill()
  assert processes[0].returncode == 69, output
  last = output.strip().splitlines()[-1]
  assert last.startswith('error: another worker has ended or cannot be reached'), output
  assert 'Traceback' not in output
  reached = max(int(path.name[5:]) for path in tmp_path.glob('run/checkpoints/step-*'))
  results = two_workers.finish(two_workers.start(command(tmp_path / 'run', *settings,
                                                         f'SCHEDULE = {(reached + 5) / 400}')))
  assert [code for code, _ in results] == [0, 0], results
  assert f'from step {reached} to {reached + 5}' in results[0][1]


@pytest.mark.slow
@pytest.mark.parametrize('signalled', [0, 1])
def test_after_sigterm_to_one_worker_both_save_and_resume(tmp_path, signalled):
  settings = ('KTimesSchedule.unit = 100', 'CocoEvaluator.every = 0', 'run.checkpoint_every = 1000',
              'run.log_every = 1')
  processes = two_workers.start(command(tmp_path / 'run', *settings))
  while not (tmp_path / 'run/metrics.jsonl').exists() or len(lines(tmp_path / 'run', 'train')) < 3:
    assert all(process.poll() is None for process in processes)
    time.sleep(0.1)
  processes[signalled].send_signal(signal.SIGTERM)
  results = two_workers.finish(processes)
  assert [code for code, _ in results] == [75, 75], results
  reported = max(line['step'] for line in lines(tmp_path / 'run', 'train'))
  saved, = tmp_path.glob('run/checkpoints/step-*')
  assert int(saved.name[5:]) == reported
  results = two_workers.finish(two_workers.start(command(tmp_path / 'run', *settings,
                                                         f'SCHEDULE = {(reported + 2) / 400}')))
  assert [code for code, _ in results] == [0, 0], results
  assert f'from step {reported} to {reported + 2}' in results[0][1]


DIES = """
import json, os, runpy, signal
from rethink_tf.training.trainer import Trainer
make_variables = Trainer.make_variables
def die_as_worker_1(self, batch):
  if json.loads(os.environ['TF_CONFIG'])['task']['index'] == 1:
    os.kill(os.getpid(), signal.SIGKILL)
  make_variables(self, batch)
Trainer.make_variables = die_as_worker_1
runpy.run_module('rethink_tf.train', run_name='__main__')
"""


@pytest.mark.slow
def test_a_worker_that_dies_while_the_others_build_the_network(tmp_path):
  (code, output), _ = two_workers.finish(two_workers.start(['-c', DIES, *command(tmp_path / 'run')[2:]]))
  assert code == 69 and 'Traceback' not in output, output
  assert output.strip().splitlines()[-1].startswith('error: another worker has ended or cannot be reached')


@pytest.mark.slow
def test_different_configurations_are_refused(tmp_path):
  processes = two_workers.start(command(tmp_path / 'run'), others=['--gin_param=BATCH_SIZE = 8'])
  for code, output in two_workers.finish(processes):
    assert code == 1 and 'Traceback' not in output
    assert 'BATCH_SIZE = 8 here; BATCH_SIZE = 4 on the chief' in output.strip().splitlines()[-1]


@pytest.mark.slow
def test_different_data_is_refused(tmp_path):
  """Each machine has a copy of the data under the same name, one of which is older."""
  for name, objects in (('chief', 2), ('other', 1)):
    entries = [small_coco.annotation(k + 1, 1, (10 * k, 5, 20, 30)) for k in range(objects)]
    for split in ('train', 'val'):
      small_coco.write(tmp_path / name / 'data', None, entries, split=split)
  arguments = [one for one in command(tmp_path / 'run', '--gin_file=gin_configs/data/own.gin', '--data_dir=data')
               if 'synthetic' not in one]
  processes = two_workers.start(arguments, folders=[tmp_path / 'chief', tmp_path / 'other'])
  for code, output in two_workers.finish(processes):
    assert code == 1 and 'Traceback' not in output, output
    assert 'other data than the chief (chief -> this worker, train: 2 -> 1 instances' in output.strip().splitlines()[-1]
  assert not (tmp_path / 'run/metrics.jsonl').exists()


@pytest.mark.slow
def test_a_missing_worker_is_an_error_after_the_timeout(tmp_path):
  process, other = two_workers.start(command(tmp_path / 'run', 'strategy.timeout_minutes = 0.2'))
  other.kill()
  output, _ = process.communicate(timeout=600)
  assert process.returncode == 69, output
  assert 'worker 0 of 2 could not connect to the other workers within 0.2 minutes' in output.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize('taken, reported', [
  (0, 'worker 1 of 2 could not connect to the other workers within 0.5 minutes'),
  (1, 'worker 1 of 2 cannot start: "worker 1 cannot listen on port '),  # workers report to the chief
])
def test_a_port_that_is_taken_ends_both_workers_within_the_timeout(tmp_path, taken, reported):
  with socket.create_server(('127.0.0.1', 0)) as server:
    ports = two_workers.free_ports(1)
    ports.insert(taken, server.getsockname()[1])
    begin = time.monotonic()
    results = two_workers.finish(two_workers.start(command(tmp_path / 'run', 'strategy.timeout_minutes = 0.5'),
                                                   ports=ports), 300)
  assert time.monotonic() - begin < 120
  (code, output), (other, reason) = results[taken], results[1 - taken]
  assert code == 1 and f'cannot listen on port {ports[taken]} of TF_CONFIG: ' in output.strip().splitlines()[-1], output
  assert other == 69 and reported in reason.strip().splitlines()[-1]
  assert not any('Traceback' in text for _, text in results)
  assert not (tmp_path / 'run/metrics.jsonl').exists()


@pytest.mark.slow
def test_a_follower_evaluates_the_checkpoints_of_another_job(tmp_path):
  folder, settings = tmp_path / 'run', ('run.own_evaluation = False',)
  environment = {name: value for name, value in two_workers.environment(0, [1]).items() if name != 'TF_CONFIG'}
  follower = subprocess.Popen(
    [sys.executable, '-m', 'rethink_tf.evaluate', '--follow', '--follow_minutes=15', f'--model_dir={folder}'],
    env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  alone(command(folder, *settings, "strategy.kind = 'one_device'"))
  [(code, output)] = two_workers.finish([follower])
  assert code == 0, output
  assert lines(folder, 'eval') == []
  assert [line['step'] for line in lines(folder, 'eval', 'metrics-evaluator.jsonl')] == [10, 20]
  assert list(folder.glob('tensorboard/evaluator/events*')) and os.path.isdir(folder / f'eval/step-{STEPS:08d}')
