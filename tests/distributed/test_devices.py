"""The line about devices, GPUs that TensorFlow has no kernels for, and drivers without a usable GPU: with fakes."""

import io
import platform
import subprocess
import types

import pytest
import tensorflow as tf

from rethink_tf.distributed import devices
from rethink_tf.errors import UserError

A100, RTX, OLD = ('NVIDIA A100-SXM4-80GB', (8, 0)), ('NVIDIA GeForce RTX 5090', (12, 0)), ('Tesla K80', (3, 7))
WHEEL = {'cuda_version': '12.5.1', 'cuda_compute_capabilities': ['sm_60', 'sm_70', 'sm_80', 'sm_89', 'compute_90']}
# What TensorFlow 2.20 logs: both forms of its lines, and one that is always there.
LOG = '''WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
2026-01-01 10:00:00.000001: E external/local_xla/xla/stream_executor/cuda/cuda_fft.cc:467] Unable to register cuFFT
W0000 00:00:1748720218.610720      27 gpu_device.cc:2431] Cannot dlopen some GPU libraries.  Skipping registering GPUs
2026-01-01 10:00:00.000002: E external/local_xla/xla/stream_executor/cuda/cuda_platform.cc:51] failed call to cuInit: X
'''


@pytest.fixture
def machine(monkeypatch):
  """Set the GPUs of TensorFlow, its build, and the driver."""
  def set_up(*found, build=None, version=None, hidden=None):
    physical = [types.SimpleNamespace(name=f'/physical_device:GPU:{i}', details=gpu) for i, gpu in enumerate(found)]
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind=None: physical if kind == 'GPU' else [])
    monkeypatch.setattr(tf.config.experimental, 'get_device_details', lambda device: {
      'device_name': device.details[0], 'compute_capability': device.details[1]})
    monkeypatch.setattr(tf.sysconfig, 'get_build_info', lambda: WHEEL if build is None else build)
    monkeypatch.setattr(tf.test, 'is_built_with_cuda', lambda: True)
    monkeypatch.setattr(devices, 'driver', lambda: version)
    monkeypatch.setattr(devices, 'cores', lambda: 2)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if hidden is not None:
      monkeypatch.setenv('CUDA_VISIBLE_DEVICES', hidden)
  return set_up


@pytest.mark.parametrize('found, line', [
  ([], 'CPU, 2 cores'),
  ([A100], '1 x NVIDIA A100-SXM4-80GB (sm_80), CUDA 12.5'),
  ([A100, A100, ('Tesla T4', (7, 5))], '2 x NVIDIA A100-SXM4-80GB (sm_80) + 1 x Tesla T4 (sm_75), CUDA 12.5'),
  ([('AMD \x1b[31m', None)], '1 x AMD \\x1b[31m, CUDA 12.5'),
])
def test_devices_of_a_machine(machine, found, line):
  machine(*found)
  assert devices.describe() == line


def test_devices_of_a_strategy(machine, two_replicas):
  machine(A100, A100)
  assert devices.describe(two_replicas) == 'CPU, 2 cores as 2 devices'
  assert devices.describe(tf.distribute.OneDeviceStrategy('/CPU:0')) == 'CPU, 2 cores'
  one = types.SimpleNamespace(extended=types.SimpleNamespace(worker_devices=('/job:localhost/device:GPU:1',)))
  assert devices.describe(one) == '1 x NVIDIA A100-SXM4-80GB (sm_80) (of 2 GPUs), CUDA 12.5'


def test_the_hardware_of_a_run_has_the_kind_of_its_cpu(machine, monkeypatch):
  cpu, gpu = (tf.distribute.OneDeviceStrategy(name) for name in ('/CPU:0', '/GPU:0'))
  machine(A100)
  assert devices.hardware(gpu) == '1 x NVIDIA A100-SXM4-80GB (sm_80), CUDA 12.5'

  def processor(text):
    monkeypatch.setattr(devices, 'open', lambda *_, **__: io.StringIO(text), raising=False)
    return devices.hardware(cpu)
  monkeypatch.setattr(platform, 'processor', lambda: 'arm')
  linux = 'processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nmodel name\t: another\n'
  assert processor(linux) == 'CPU, 2 cores (AMD EPYC, family 25, model 17)'
  assert processor('processor\t: 0\nBogoMIPS\t: 100\n\n') == 'CPU, 2 cores (arm)'
  monkeypatch.setattr(platform, 'processor', str)
  assert processor('') == 'CPU, 2 cores'


def test_gpus_that_the_user_has_hidden_are_no_reason_to_warn(machine):
  machine(version='550.54', hidden='-1')
  assert devices.describe() == 'CPU, 2 cores, GPUs hidden by CUDA_VISIBLE_DEVICES'
  assert devices.unused_driver() is None


@pytest.mark.parametrize('found, hidden, words', [
  ([RTX], None, ['NVIDIA GeForce RTX 5090 (sm_120), GPU 0, is newer than', 'compute_90', 'built for sm_120',
                 'CUDA_VISIBLE_DEVICES=-1 the CPU']),
  ([A100, RTX, A100], None, ['GPU 1', 'CUDA_VISIBLE_DEVICES=0,2 uses the other GPUs']),
  ([RTX, A100], '3,5', ['CUDA_VISIBLE_DEVICES=5 uses']),
])
def test_a_gpu_newer_than_the_kernels_is_an_error_before_anything_compiles(machine, found, hidden, words):
  machine(*found, hidden=hidden)
  with pytest.raises(UserError) as error:
    devices.check()
  assert '\n' not in str(error.value) and all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize('found, build', [
  ([A100, ('H100', (9, 0)), ('RTX 4090', (8, 9)), ('AMD', None)], WHEEL),
  ([RTX], {}),  # of a build that does not say what it has
  ([RTX], {'cuda_compute_capabilities': ['sm_90', 'sm_120a']}),
  ([('H100', (9, 0))], {'cuda_compute_capabilities': ['sm_80', 'compute_80']}),
])
def test_gpus_with_kernels(machine, found, build, see_logs, caplog):
  machine(*found, build=build)
  devices.check()
  assert not caplog.records


def test_a_gpu_older_than_the_kernels_is_a_warning(machine, caplog):
  machine(OLD, A100)
  devices.check()
  assert 'Tesla K80 (sm_37), GPU 0, is older than the kernels' in caplog.text


@pytest.mark.parametrize('log, files, words', [
  (LOG, ['/dev/nvidia0'], ['Cannot dlopen some GPU libraries', "pip install -e '.[cuda]'", 'make install EXTRAS=cuda']),
  ('', ['/dev/nvidia0'], ['computes on the CPU: install the CUDA libraries']),
  ('2026-01-01 10:00:00.1: E a/cuda_platform.cc:51] failed call to cuInit: CUDA driver version is insufficient',
   ['/dev/nvidia0'], ['is insufficient', 'update the driver']),
  (LOG, [], ['/dev/nvidia0', '--gpus=all']),
])
def test_a_driver_without_a_gpu_is_a_warning_with_reason_and_fix(machine, monkeypatch, caplog, log, files, words):
  machine(version='550.54.15')
  monkeypatch.setattr(devices.glob, 'glob', lambda pattern: files if pattern.startswith('/dev/nv') else [])
  ran = []
  monkeypatch.setattr(devices.subprocess, 'run', lambda arguments, env, **_: ran.append(env) or
                      types.SimpleNamespace(stderr=log, returncode=0))
  devices.check()
  line, = [record.getMessage() for record in caplog.records]
  assert ran[0]['TF_CPP_MIN_LOG_LEVEL'] == '0' and '550.54.15' in line and '\n' not in line
  assert all(word in line for word in words) and 'cuFFT' not in line, line


def test_a_build_without_cuda_is_the_first_reason(machine, monkeypatch):
  machine(version='550.54')
  monkeypatch.setattr(devices, '_reason', lambda: '')
  monkeypatch.setattr(tf.test, 'is_built_with_cuda', lambda: False)
  assert "this TensorFlow is built without CUDA: pip install -e '.[cuda]'" in devices.unused_driver()


def test_a_driver_is_known_by_nvidia_smi_where_linux_has_no_file(monkeypatch):
  monkeypatch.setattr('builtins.open', lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
  monkeypatch.setattr(devices, '_libcuda_has_a_gpu', lambda: False)
  monkeypatch.setattr(devices.shutil, 'which', lambda name: name)
  for output, code, version in (('560.35.03\n', 0, '560.35.03'), ('No devices were found\n', 0, None),
                                ('NVIDIA-SMI has failed\n', 9, None)):
    monkeypatch.setattr(devices.subprocess, 'run', lambda *_, output=output, code=code, **__:
                        types.SimpleNamespace(stdout=output, returncode=code))
    assert devices.driver() == version
  monkeypatch.setattr(devices.subprocess, 'run', lambda *_, **__: (_ for _ in ()).throw(
    subprocess.TimeoutExpired('nvidia-smi', 20)))
  assert devices.driver() is None
