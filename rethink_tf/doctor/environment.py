"""Checks of the environment: versions, devices, the driver, memory, the data and the run folder."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

import rethink_tf
from rethink_tf.data import images, tfrecord
from rethink_tf.data.classification.image_folder import IMAGE_EXTENSIONS
from rethink_tf.data.detection.input import TrainInput
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.distributed import devices
from rethink_tf.doctor.rows import FAILED, OK, WARNING, Row
from rethink_tf.errors import in_one_line
from rethink_tf.storage import files

_PACKAGES = ('tensorflow', 'tensorflow-tpu', 'tf_keras', 'tf-models-official', 'numpy', 'pycocotools', 'hotcoco',
             'opencv-python-headless', 'tensorboard', 'nvidia-cudnn-cu12', 'nvidia-cuda-nvcc-cu12')
_SHARD = re.compile(r'.+-\d{5}-of-\d{5}(\.tfrecords?)?|.*\.tfrecords?')
_SHARD_BYTES = 16 << 20  # that are read of each
_READ_SECONDS = 3.0
CPU = 'CPU'
_LISTED = 20_000  # files of a data folder


def facts() -> dict[str, str]:
  """Return versions, the machine and its memory, for a report."""
  found = {'rethink_tf': rethink_tf.__version__, 'python': platform.python_version(), 'system': platform.platform()}
  for name in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  build = tf.sysconfig.get_build_info()
  if build.get('cuda_version'):
    kernels = ', '.join(map(str, build.get('cuda_compute_capabilities', ())))
    found['CUDA of TensorFlow'] = f'{build["cuda_version"]}, cuDNN {build.get("cudnn_version", "?")}, {kernels}'
  found |= {'devices': devices.describe(), 'NVIDIA driver': devices.driver() or 'none', 'memory': memory()}
  found |= {name: os.environ[name] for name in ('CUDA_VISIBLE_DEVICES', 'TF_CONFIG', 'XLA_FLAGS', 'TF_XLA_FLAGS',
                                                'TF_ENABLE_ONEDNN_OPTS', 'TPU_ACCELERATOR_TYPE') if name in os.environ}
  return found


def memory() -> str:
  """Return the memory of this machine and of its NVIDIA GPUs."""
  text = 'unknown'
  with contextlib.suppress(OSError, KeyError, ValueError):
    with open('/proc/meminfo') as file:
      lines = dict(line.split(':', 1) for line in file)
    total, free = (int(lines[name].split()[0]) / 2**20 for name in ('MemTotal', 'MemAvailable'))
    text = f'{free:.1f} of {total:.1f} GiB available'
  with contextlib.suppress(OSError, ValueError):
    with open('/sys/fs/cgroup/memory.max') as file:
      text += f', {int(file.read()) / 2**30:.1f} GiB allowed to this container'
  if shutil.which('nvidia-smi'):
    with contextlib.suppress(OSError, subprocess.SubprocessError):
      ran = subprocess.run(['nvidia-smi', '--query-gpu=memory.total', '--format=csv,noheader'], capture_output=True,
                           text=True, errors='replace', timeout=20, check=False, stdin=subprocess.DEVNULL)
      if ran.returncode == 0 and ran.stdout.strip():
        text += f'; GPUs {", ".join(ran.stdout.split(chr(10))).strip(", ")}'
  return text


def check_devices() -> Iterator[Row]:
  """Check for GPUs without kernels, and for a driver without a GPU."""
  found = devices.gpus()
  yield Row('devices', '', OK, note=devices.describe())
  for problem, result in ((devices.too_new(found), FAILED), (devices.too_old(found), WARNING),
                          (devices.unused_driver(), WARNING)):
    if problem is not None:
      yield Row('devices', '', result, note=problem)


def input_speed() -> Iterator[Row]:
  """Measure the training input at 800/1333 with masks and flips, on synthetic images."""
  source = TrainInput(SyntheticSource(32, image_size=(480, 640), object_size=(40, 200)), 2)
  iterator = iter(source.dataset())
  next(iterator)
  start, number = time.perf_counter(), 0
  while time.perf_counter() - start < _READ_SECONDS:
    number += next(iterator).images.shape[0]
  speed = number / (time.perf_counter() - start)
  yield Row('input', CPU, OK, note=f'{speed:.3g} images/s at 800/1333 with masks and flips, synthetic images')


def check_data(folder: str) -> Iterator[Row]:
  """Read and decode image files of a data folder for some seconds, or read shards."""
  check = 'data folder'
  folder = os.path.expanduser(folder)
  if not tf.io.gfile.isdir(folder):
    yield Row(check, CPU, FAILED, note=f'{folder}: no such folder: check --data_dir')
    return
  paths = []
  for place, _, names in tf.io.gfile.walk(folder):
    paths += [os.path.join(place, name) for name in sorted(names)]
    if len(paths) >= _LISTED:
      break
  image_files = [path for path in paths if path.lower().endswith(IMAGE_EXTENSIONS)]
  shards = [path for path in paths if _SHARD.fullmatch(os.path.basename(path))]
  if not image_files and not shards:
    yield Row(check, CPU, WARNING, note=f'{folder}: no image files and no shards below it')
    return
  start = time.perf_counter()
  sizes, bad = _read_for_seconds(image_files or shards, _read_image if image_files else _read_shard)
  seconds = time.perf_counter() - start
  kind = 'images read and decoded' if image_files else 'shards read'
  note = f'{len(sizes)} {kind}, {len(sizes) / seconds:.3g}/s by one thread, {sum(sizes) / seconds / 1e6:.3g} MB/s'
  if bad:
    note = f'{len(bad)} cannot be read: {bad[0]}; {note}'
  yield Row(check, CPU, FAILED if bad and not sizes else WARNING if bad else OK, note=note)


def _read_for_seconds(paths: Sequence[str], read: Callable[[str], int]) -> tuple[list[int], list[str]]:
  """Read files in random order for _READ_SECONDS; return the bytes of each, and the errors of those that cannot be."""
  start, sizes, bad = time.perf_counter(), [], []
  for path in np.random.default_rng(0).permutation(paths).tolist():
    if time.perf_counter() - start > _READ_SECONDS:
      break
    try:
      sizes.append(read(path))
    except (images.ImageError, OSError, tf.errors.OpError) as error:
      bad.append(in_one_line(error))
    except tfrecord.DamagedRecord as error:
      bad.append(f'{path}: {error}')
  return sizes, bad


def _read_image(path: str) -> int:
  """Read and decode an image file; return its bytes."""
  content = images.read_file(path)
  images.decode(content, path)
  return len(content)


def _read_shard(path: str) -> int:
  """Read the first records of a shard, verifying their checksums; return their bytes.

  Raises:
    DamagedRecord: one is damaged, or there is none. OSError, tf.errors.OpError.
  """
  size = 0
  for _, payload in tfrecord.scan(path):
    if isinstance(payload, tfrecord.DamagedRecord):
      raise payload
    size += len(payload)
    if size >= _SHARD_BYTES:
      break
  if not size:
    raise tfrecord.DamagedRecord('holds no record')
  return size


def check_run_folder(folder: str) -> Iterator[Row]:
  """Write, replace, read and remove a file in the run folder, or where it would be created."""
  check, folder = 'run folder', os.path.expanduser(folder)
  place = folder
  while '://' not in place and not tf.io.gfile.exists(place):
    place = os.path.dirname(place) or '.'
  path, content = os.path.join(place, f'.doctor-{uuid.uuid4().hex}'), os.urandom(1 << 20)
  start = time.perf_counter()
  try:
    for _ in range(2):  # the second time it replaces the first
      files.write(path, content)
    with files.open_regular(path) as file:
      same = file.read() == content
    tf.io.gfile.remove(path)
  except (OSError, tf.errors.OpError) as error:
    with contextlib.suppress(OSError, tf.errors.OpError):
      tf.io.gfile.remove(path)
    yield Row(check, CPU, FAILED, note=f'{place}: cannot be written: {in_one_line(error)}: choose another --model_dir')
    return
  seconds = time.perf_counter() - start
  note = f'{place}: 1 MiB written, replaced and read in {seconds:.2g} s'
  if '://' not in place:
    free = shutil.disk_usage(place).free / 2**30
    note += f', {free:.1f} GiB free'
    if free < 5.0:
      yield Row(check, CPU, WARNING, note=f'{note}: a checkpoint of R50 takes about 0.4 GiB, and a run keeps four')
      return
  yield Row(check, CPU, OK if same else FAILED, note=note if same else f'{place}: what is read is not what was written')
