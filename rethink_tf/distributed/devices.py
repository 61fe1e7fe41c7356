"""The devices of this machine: their description, GPUs without kernels, drivers without a usable GPU."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import glob
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf
from absl import logging

from rethink_tf.console import counted
from rethink_tf.errors import UserError, in_one_line, plain, shortened

CUDA_EXTRA = "pip install -e '.[cuda]', or make install EXTRAS=cuda"
_HIDDEN = 'CUDA_VISIBLE_DEVICES'
_XLA_KNOWS = (9, 0)  # the newest generation in the LLVM of TensorFlow 2.20, if the kernels are of older ones
_SECONDS = 120.0  # for TensorFlow to start in another process and say why it has no GPU
_LOG_LINE = re.compile(r'(?:[\d-]+ [\d:.]+: ([IWEF]) |([IWEF])\d{4} [\d:.]+ +\d+ )(\S+?)\.cc:\d+\] (.*)')
# Of TensorFlow's lines at its start, those about GPUs; it also complains about plugins that are registered twice.
_ABOUT_GPUS = re.compile('gpu_device|cuda_platform|cuda_executor|cuda_diagnostics|cuda_driver|cudart_stub|dso_loader')


class Gpu(NamedTuple):
  """A GPU that TensorFlow lists."""

  index: int
  name: str
  capability: tuple[int, int] | None  # None: TensorFlow does not know it, as on ROCm

  def __str__(self) -> str:
    return f'{self.name} (sm_{self.capability[0]}{self.capability[1]})' if self.capability else self.name


def gpus() -> list[Gpu]:
  """Return the visible GPUs; does not start them."""
  found = []
  for index, device in enumerate(tf.config.list_physical_devices('GPU')):
    details = tf.config.experimental.get_device_details(device)
    capability = details.get('compute_capability')
    found.append(Gpu(index, plain(str(details.get('device_name', 'GPU'))), capability and tuple(capability)))
  return found


def cores() -> int:
  """Return the number of CPU cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def describe(strategy: tf.distribute.Strategy | None = None) -> str:
  """Describe the devices of a strategy, of this worker only.

  '8 x NVIDIA A100-SXM4-80GB (sm_80), CUDA 12.5', 'CPU, 2 cores', 'TPU v3-8, 8 cores'.
  """
  if isinstance(strategy, tf.distribute.TPUStrategy):
    kind = os.environ.get('TPU_ACCELERATOR_TYPE', '')
    hosts = strategy.extended.num_hosts
    several = f' on {hosts} hosts' if hosts > 1 else ''
    return f'TPU {plain(kind)}'.rstrip() + f', {strategy.num_replicas_in_sync} cores{several}'
  found = gpus()
  used = _used(found, strategy)
  workers = ''
  if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
    resolver = strategy.cluster_resolver
    workers = f', worker {resolver.task_id} of {strategy.extended._num_workers}'  # no public attribute
  if not used:
    replicas = strategy.num_replicas_in_sync if strategy is not None and not workers else 1
    split = f' as {replicas} devices' if replicas > 1 else ''
    hidden = f', GPUs hidden by {_HIDDEN}' if gpus_are_hidden() and driver() else ''
    return f'CPU, {counted(cores(), "core")}{split}{hidden}{workers}'
  counts = collections.Counter(str(gpu) for gpu in used)
  text = ' + '.join(f'{count} x {name}' for name, count in counts.items())
  unused = f' (of {len(found)} GPUs)' if len(found) > len(used) else ''
  version = tf.sysconfig.get_build_info().get('cuda_version', '')
  cuda = f', CUDA {".".join(str(version).split(".")[:2])}' if version else ''
  return f'{text}{unused}{cuda}{workers}'


def hardware(strategy: tf.distribute.Strategy) -> str:
  """Describe the devices as `describe` does, with the model of a CPU, on which the choice of kernels and rounding
  depend.

  'CPU, 2 cores (AMD EPYC, family 25, model 17)'.
  """
  text = describe(strategy)
  kind = _cpu() if text.startswith('CPU') else ''
  return f'{text} ({kind})' if kind else text


def _cpu() -> str:
  """Return name, family and model of the first core if the system provides them; the name alone may denote a series."""
  found: dict[str, str] = {}
  # Other systems than Linux have no such file: their name of the processor is all that is recorded.
  with contextlib.suppress(OSError), open('/proc/cpuinfo', encoding='utf-8', errors='replace') as file:
    for line in file:
      name, separator, value = line.partition(':')
      if not separator:
        break  # of the first core
      found[name.strip()] = plain(value.strip())
  name = found.get('model name') or plain(platform.processor())
  parts = [f'{word} {found[key]}' for word, key in (('family', 'cpu family'), ('model', 'model')) if key in found]
  return ', '.join([name, *parts] if name else parts)


def _used(found: Sequence[Gpu], strategy: tf.distribute.Strategy | None) -> list[Gpu]:
  if strategy is None:
    return list(found)
  names = [re.search(r'(GPU|CPU):(\d+)$', str(name)) for name in strategy.extended.worker_devices]
  return [found[int(name[2])] for name in names if name and name[1] == 'GPU' and int(name[2]) < len(found)]


def report(strategy: tf.distribute.Strategy | None = None) -> None:
  """Log the devices in one line."""
  logging.info('devices: %s', describe(strategy))


def check() -> None:
  """Refuse GPUs newer than the kernels of this TensorFlow; warn of unused ones. Compiles nothing.

  Raises:
    UserError: a GPU is of a newer generation than the kernels.
  """
  found = gpus()
  problem = too_new(found)
  if problem is not None:
    raise UserError(problem)
  for warning in (too_old(found), unused_driver()):
    if warning is not None:
      logging.warning('%s', warning)


def too_new(found: Sequence[Gpu]) -> str | None:
  """Return one line about GPUs of a newer generation than the newest kernels of this TensorFlow; None: there are none.

  Kernels would be compiled from PTX, which fails (operations end with CUDA_ERROR_INVALID_HANDLE), and XLA, whose LLVM
  does not know the GPU, aborts the process.
  """
  built = _kernels()
  newest = max([*built, _XLA_KNOWS])[0]
  bad = [gpu for gpu in found if built and gpu.capability and gpu.capability[0] > newest]
  if not bad:
    return None
  visible = os.environ.get(_HIDDEN, '').split(',')
  others = ','.join(visible[gpu.index] if gpu.index < len(visible) > 1 else str(gpu.index)
                    for gpu in found if gpu not in bad)
  other = f'{_HIDDEN}={others} uses the other GPUs, ' if others else ''
  return (f'{bad[0]}, GPU {bad[0].index}, is newer than the kernels of this TensorFlow ({", ".join(built.values())}), '
          f'which would abort there: {other}{_HIDDEN}=-1 the CPU; using it takes a TensorFlow built for '
          f'sm_{"".join(map(str, bad[0].capability))} (docs/devices.md)')


def too_old(found: Sequence[Gpu]) -> str | None:
  """Return one line about GPUs that TensorFlow ignores, since it has no kernels for them; None: there are none."""
  built = _kernels()
  bad = [gpu for gpu in found if built and gpu.capability and gpu.capability < min(built)]
  if not bad:
    return None
  return (f'{bad[0]}, GPU {bad[0].index}, is older than the kernels of this TensorFlow ({", ".join(built.values())}), '
          'which ignores it')


def _kernels() -> dict[tuple[int, int], str]:
  """Return the compute capabilities that TensorFlow's kernels are built for, with their names."""
  names = tf.sysconfig.get_build_info().get('cuda_compute_capabilities', ())
  matches = [match for name in names if (match := re.fullmatch(r'(?:sm|compute)_(\d+)(\d)[af]?', str(name)))]
  return {(int(match[1]), int(match[2])): match[0] for match in matches}


def gpus_are_hidden() -> bool:
  """Whether the user has hidden all GPUs from CUDA."""
  return os.environ.get(_HIDDEN, '0').strip() in ('', '-1', 'NoDevFiles')


def driver() -> str | None:
  """Return the version of the NVIDIA driver, 'of unknown version', or None without a driver or without a GPU for it."""
  try:
    with open('/proc/driver/nvidia/version') as file:
      version = re.search(r'\b\d{3}\.\d+(?:\.\d+)?\b', file.read(4096))
    return version[0] if version else 'of unknown version'
  except (OSError, UnicodeDecodeError):
    pass
  return _driver_of_nvidia_smi() or ('of unknown version' if _libcuda_has_a_gpu() else None)


def _driver_of_nvidia_smi() -> str | None:
  program = shutil.which('nvidia-smi') or next(iter(glob.glob('/usr/lib/wsl/lib/nvidia-smi')), None)
  if program is None:
    return None
  try:
    ran = subprocess.run([program, '--query-gpu=driver_version', '--format=csv,noheader'], capture_output=True,
                         text=True, errors='replace', timeout=20, check=False, stdin=subprocess.DEVNULL)
  except (OSError, subprocess.SubprocessError):
    return None
  version = re.search(r'^\d+\.\d+(?:\.\d+)?', ran.stdout)
  return version[0] if ran.returncode == 0 and version else None


def _libcuda_has_a_gpu() -> bool:
  """Whether CUDA's driver library counts a GPU; container images hold the library without one."""
  for name in ('libcuda.so.1', '/usr/lib/wsl/lib/libcuda.so.1'):
    try:
      library, count = ctypes.CDLL(name), ctypes.c_int(0)
      return library.cuInit(0) == 0 and library.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
      continue
  return False


def unused_driver() -> str | None:
  """Return one line about an NVIDIA driver whose GPU TensorFlow cannot use: its reason and the fix. None: all is well.

  Starts TensorFlow in another process if there is such a driver: it gives its reason in its log only.
  """
  if tf.config.list_physical_devices('GPU') or gpus_are_hidden():
    return None
  version = driver()
  if version is None:
    return None
  reason = _reason()
  said = f' (TensorFlow: {reason})' if reason else ''
  return (f'an NVIDIA driver ({version}) is installed, but TensorFlow finds no GPU and computes on the CPU{said}: '
          f'{_cure(reason)}; {_HIDDEN}=-1 if that is intended')


def _cure(reason: str) -> str:
  if sys.platform == 'win32':
    return 'on Windows TensorFlow has no GPU support: use WSL2 (docs/devices.md)'
  if not tf.test.is_built_with_cuda():
    return f'this TensorFlow is built without CUDA: {CUDA_EXTRA}'
  if not glob.glob('/dev/nvidia[0-9]*') and not os.path.exists('/dev/dxg'):  # the latter is WSL2's
    return 'there is no /dev/nvidia0: start the container with --gpus=all, or ask the batch system for a GPU'
  if re.search('insufficient|(?i:driver version|too old|version mismatch)', reason):
    return 'update the driver to 525.60.13 or later, or restart the machine after an update'
  if re.search(r'dlopen|librar|\.so', reason) or not reason:
    return f'install the CUDA libraries: {CUDA_EXTRA}'
  return 'nvidia-smi should list it; docs/devices.md'


def _reason() -> str:
  """Return what TensorFlow logs about GPUs that it does not find, at most 300 characters; '' if nothing."""
  environment = {**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '0', 'TF_CPP_MAX_VLOG_LEVEL': '0'}
  code = "import tensorflow as tf; tf.config.list_physical_devices('GPU')"
  try:
    ran = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True,
                         errors='replace', timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL)
  except (OSError, subprocess.SubprocessError) as error:
    logging.info('why TensorFlow finds no GPU is not known: %s', in_one_line(error))
    return ''
  return reason_in(ran.stderr)


def reason_in(log: str) -> str:
  """Return the lines of TensorFlow's log about GPUs, the most severe first, in one line of at most 300 characters."""
  found: list[tuple[int, str]] = []
  for line in log.splitlines():
    match = _LOG_LINE.match(line)
    if match and _ABOUT_GPUS.search(match[3]):
      found.append(('FEWI'.index(match[1] or match[2]), ' '.join(plain(match[4]).split())))
  return shortened('; '.join(dict.fromkeys(text for _, text in sorted(found, key=lambda entry: entry[0]))), 300)
