"""Distribution strategies: choice of devices, errors of missing devices and workers."""

import subprocess
import sys
import types
from unittest import mock

import pytest
import tensorflow as tf

from rethink_tf.distributed import devices
from rethink_tf.distributed import strategy as distribution
from rethink_tf.distributed.workers import Workers
from rethink_tf.errors import UserError, WorkerLost
from rethink_tf.storage.run_folder import RunFolder
from tests.two_workers import config


def in_fresh_process(code):
  code = f'from rethink_tf.distributed import strategy as distribution\n{code}'
  return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)


def test_two_replicas_compute_together(two_replicas):
  assert two_replicas.num_replicas_in_sync == 2

  @tf.function
  def total():
    ids = two_replicas.run(lambda: tf.distribute.get_replica_context().replica_id_in_sync_group + 1)
    return two_replicas.reduce('sum', ids, axis=None)

  assert int(total()) == 3


def test_mirrored_strategies_of_the_same_devices_are_one(two_replicas):
  assert distribution.strategy(kind='mirrored', logical_cpus=2) is two_replicas
  assert distribution.strategy() is two_replicas


def test_one_device():
  strategy = distribution.strategy(kind='one_device')
  assert strategy.num_replicas_in_sync == 1
  assert int(strategy.run(lambda: tf.constant(3))) == 3


@pytest.mark.parametrize('arguments, message', [
  ({'kind': 'tpu_pod'}, "strategy.kind = 'tpu_pod' must be"),
  ({'kind': 'multi_worker'}, "strategy.kind = 'multi_worker' needs the environment variable TF_CONFIG"),
  ({'communication': 'mpi'}, "strategy.communication = 'mpi' must be one of auto, ring, nccl"),
  ({'timeout_minutes': 0}, 'strategy.timeout_minutes = 0 must be above 0'),
  ({'timeout_minutes': float('nan')}, 'strategy.timeout_minutes = nan must be above 0, and at most 10080'),
  ({'timeout_minutes': float('inf')}, 'strategy.timeout_minutes = inf must be above 0, and at most 10080'),
  ({'kind': 'tpu', 'num_devices': 4}, "strategy.num_devices = 4 has no effect with strategy.kind = 'tpu'"),
  ({'kind': 'tpu', 'tpu': 'grpc://10.0.0.2:8470'}, 'another machine, where Python cannot read the images'),
  ({'num_devices': 0}, 'strategy.num_devices = 0 must be at least 1'),
  ({'kind': 'mirrored', 'num_devices': 64}, r'num_devices = 64, but TensorFlow finds \d+ GPU\(s\) and 2 CPU'),
  ({'kind': 'one_device', 'num_devices': 2}, "num_devices = 2 needs strategy.kind = 'mirrored'"),
  ({'logical_cpus': 4}, r'logical_cpus = 4: TensorFlow has started with 2 CPU device\(s\)'),
])
def test_impossible_requests_are_user_errors(two_replicas, arguments, message):
  with pytest.raises(UserError, match=message) as caught:
    distribution.strategy(**arguments)
  assert '\n' not in str(caught.value)


@pytest.mark.slow
def test_logical_cpus_in_a_fresh_process():
  result = in_fresh_process('import tensorflow as tf\n'
                            'strategy = distribution.strategy(logical_cpus=3)\n'
                            'print(type(strategy).__name__, strategy.num_replicas_in_sync)\n'
                            'print(type(distribution.strategy("one_device")).__name__)')
  assert result.stdout.split() == ['MirroredStrategy', '3', 'OneDeviceStrategy'], result.stderr


HOSTS = ['a:1', 'b:1', 'c:1']


@pytest.mark.parametrize('arguments, message', [
  ({'kind': 'mirrored'}, "strategy.kind = 'mirrored' is for one machine, but TF_CONFIG lists 3 workers"),
  ({'logical_cpus': 2}, 'strategy.logical_cpus is for one machine'),
])
def test_several_machines_need_a_multi_worker_strategy(monkeypatch, arguments, message):
  monkeypatch.setenv('TF_CONFIG', config({'type': 'worker', 'index': 0}, worker=HOSTS))
  with pytest.raises(UserError, match=message):
    distribution.strategy(**arguments)


def test_a_task_of_type_evaluator_uses_its_own_devices_only(monkeypatch, two_replicas):
  monkeypatch.setenv('TF_CONFIG', config({'type': 'evaluator', 'index': 0}, worker=HOSTS, evaluator=['d:1']))
  assert distribution.strategy(num_devices=1).num_replicas_in_sync == 1


def test_a_task_of_type_evaluator_does_not_train(monkeypatch, two_replicas, tmp_path):
  monkeypatch.setenv('TF_CONFIG', config({'type': 'evaluator', 'index': 0}, worker=HOSTS, evaluator=['d:1']))
  with pytest.raises(UserError, match="'evaluator', which does not train: .* rethink_tf.evaluate --follow"):
    distribution.join_workers(two_replicas, str(tmp_path / 'run'), True, '')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('own, theirs', [(['CPU:0'], ['CPU:0', 'CPU:1']), (['GPU:0'], ['CPU:0'])], ids=str)
def test_workers_with_other_devices_are_refused(monkeypatch, tmp_path, own, theirs):
  """TensorFlow divides a batch, and waits for gradients, as if all workers had the devices of each."""
  monkeypatch.setenv('TF_CONFIG', config({'type': 'worker', 'index': 1}, worker=HOSTS[:2]))
  published = {}

  def worker(devices):
    strategy = mock.create_autospec(tf.distribute.MultiWorkerMirroredStrategy, instance=True, timeout_seconds=1)
    prefix = '/job:worker/replica:0/task:1/device:'
    strategy.extended = types.SimpleNamespace(worker_devices=tuple(f'{prefix}{device}' for device in devices))
    return strategy

  def as_chief(key, seconds):
    return f'token\n--model_dir={tmp_path}\n{distribution.software()}\n{distribution.replicas(worker(theirs))}\n'

  monkeypatch.setattr(distribution, 'published', as_chief)
  monkeypatch.setattr(distribution, 'publish', published.__setitem__)
  with pytest.raises(UserError, match='another configuration than the chief: 1 device.* here; . device.* on the chief'):
    distribution.join_workers(worker(own), str(tmp_path), True, '')
  assert 'on the chief' in published['ready/1']


def test_a_slice_of_several_hosts_is_a_strategy(monkeypatch, two_replicas):
  from official.common import distribute_utils
  slice_ = mock.create_autospec(tf.distribute.TPUStrategy, instance=True, num_replicas_in_sync=16)
  slice_.extended = types.SimpleNamespace(num_hosts=4)
  monkeypatch.setattr(distribute_utils, 'get_distribution_strategy', lambda kind, tpu_address: slice_)
  monkeypatch.setenv('TPU_ACCELERATOR_TYPE', 'v4-32')
  assert distribution.strategy('tpu', tpu='my-slice') is slice_
  assert distribution.num_hosts(slice_) == 4 and distribution.num_hosts(two_replicas) == 1
  assert devices.describe(slice_) == 'TPU v4-32, 16 cores on 4 hosts'


def test_the_reason_without_a_tpu_ends_with_a_whole_word(monkeypatch):
  from official.common import distribute_utils

  def fails(kind, tpu_address):
    raise ValueError('TPUs not found in the cluster. ' + 40 * 'ConfigureDistributedTPU ')
  monkeypatch.setattr(distribute_utils, 'get_distribution_strategy', fails)
  with pytest.raises(UserError, match=r'no TPU found \(TPUs not found in the cluster. (ConfigureDistributedTPU ?)+…\)'):
    distribution.strategy('tpu')


@pytest.mark.slow
def test_without_a_tpu_the_error_is_one_line():
  result = in_fresh_process('from rethink_tf.errors import UserError\n'
                            'try:\n  distribution.strategy("tpu")\n'
                            'except UserError as error:\n  print(error)')
  assert result.stdout.startswith("strategy.tpu = 'local': no TPU found"), result.stderr
  assert result.stdout.count('\n') == 1


def test_only_the_chief_writes(tmp_path):
  chief = RunFolder(str(tmp_path / 'run'))
  chief.append_metrics({'kind': 'train', 'step': 1})
  (tmp_path / 'run/gather').mkdir()
  (tmp_path / 'run/gather/token').write_text('token')
  before = sorted(path for path in tmp_path.rglob('*'))
  worker = distribution.ReadOnlyFolder(chief.path, 'token')
  worker.append_metrics({'kind': 'train', 'step': 2})
  worker.write_text('a.json', '{}')
  worker.put_text('b.json', '{}')
  worker.save_provenance(['train'], 'x = 1')
  worker.add_scalars(1, {'loss': 1.0})
  worker.continue_at(1)
  worker.subfolder('ema').append_metrics({'kind': 'eval', 'step': 2})
  with worker.writer().as_default(step=1):
    tf.summary.scalar('loss', 1.0)
  worker.flush()
  assert [line['step'] for line in worker.read_metrics()] == [1]
  assert sorted(path for path in tmp_path.rglob('*')) == before


def test_a_folder_that_is_not_the_chiefs_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(distribution, '_POLL_SECONDS', 20)
  monkeypatch.setattr(distribution.time, 'sleep', lambda seconds: None)
  with pytest.raises(UserError, match='not the one that the chief writes to'):
    distribution.ReadOnlyFolder(str(tmp_path), 'token')


def test_differences_of_configuration_are_listed():
  chief = '--model_dir=runs/a\nBATCH_SIZE = 16\nrun.seed = 0'
  distribution.check_same_settings(chief, chief)
  with pytest.raises(UserError, match='BATCH_SIZE = 8 here; BATCH_SIZE = 16 on the chief') as caught:
    distribution.check_same_settings(chief, chief.replace('16', '8'))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('error, workers, expected', [
  (tf.errors.UnavailableError(None, None, 'Error:\n\nCollective ops is aborted by: task 1 is down\nx'), 2,
   r'another worker has ended .*\(Collective ops is aborted by: task 1 is down x\)'),
  (tf.errors.UnavailableError(None, None, 'Collective ops is aborted'), 1, None),
  (tf.errors.InternalError(None, None, 'out of something else'), 2, None),
])
def test_a_lost_worker_is_reported_in_one_line(error, workers, expected):
  here = Workers(0, workers)
  with pytest.raises(WorkerLost if expected else tf.errors.OpError, match=expected) as caught:
    with distribution.report_lost_workers(here):
      raise error
  if expected:
    assert '\n' not in str(caught.value) and caught.value.exit_code == 69
    with pytest.raises(WorkerLost):  # without waiting
      next(here.receive(FakeFolder(), 'x'))


class FakeFolder:
  def join(self, *components):
    return '/'.join(('/nowhere', *components))
