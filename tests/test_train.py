"""Deterministic runs that are killed and resumed end with the weights of an uninterrupted one."""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.storage.run_folder import RunFolder
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = 9
PARAMS = (
  *tiny.GIN, 'train/synthetic.num_images = 10', 'eval/synthetic.num_images = 2', 'ResNet.depth = 14',
  'synthetic.image_size = (64, 64)', 'synthetic.object_size = (16, 40)', 'BATCH_SIZE = 2',
  f'KTimesSchedule.unit = {STEPS / 8}', 'CocoEvaluator.every = 0', 'CocoEvaluator.at_end = False',
  'run.log_every = 1', 'run.checkpoint_every = 3',
  'group_norm.xla = False',  # its kernels, compiled anew in each process, are a quarter of it
)


def start(folder):
  command = [sys.executable, '-m', 'rethink_tf.train', '--gin_file=gin_configs/demo.gin',
             '--gin_file=gin_configs/models/faster_rcnn.gin',  # half the graph; tools/faults.py has masks
             '--gin_file=gin_configs/runtime/deterministic.gin', f'--model_dir={folder}',
             *(f'--gin_param={param}' for param in PARAMS)]
  return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(folder):
  process = start(folder)
  _, errors = process.communicate(timeout=600)
  assert process.returncode == 0, errors[-2000:]


def kill_after(folder, step):
  """Start or resume a run and kill it once it has reported `step`; False if it ended before."""
  process = start(folder)
  wait_for(process, folder, step)
  process.send_signal(signal.SIGKILL)
  process.wait()
  return process.returncode == -signal.SIGKILL


def wait_for(process, folder, step):
  """Wait until a run has reported `step`, or has ended."""
  while process.poll() is None:
    lines = RunFolder(folder, create=False).read_metrics() if (folder / 'metrics.jsonl').exists() else []
    if any(line['kind'] == 'train' and line['step'] >= step for line in lines):
      return
    time.sleep(0.02)


def finish_and_copy(folder, step, copy):
  """Run to the end; stop the process once it has reported `step`, and copy what a kill would leave at that moment."""
  process = start(folder)
  wait_for(process, folder, step)
  process.send_signal(signal.SIGSTOP)
  os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
  shutil.copytree(folder, copy)
  process.send_signal(signal.SIGCONT)
  _, errors = process.communicate(timeout=600)
  assert process.returncode == 0, errors[-2000:]


def final_weights(folder):
  index = max((folder / 'checkpoints').glob('*/*.index'))
  reader = tf.train.load_checkpoint(str(index.with_suffix('')))
  return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()
          if name.endswith('VARIABLE_VALUE') and 'save_counter' not in name}


def assert_equal_weights(a, b):
  assert a.keys() == b.keys() and len(a) > 100
  assert not [name for name in a if not np.array_equal(a[name], b[name])]


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  """A complete run, and its folder as it was after the fourth step."""
  folder = tmp_path_factory.mktemp('uninterrupted')
  finish_and_copy(folder / 'whole', 4, folder / 'killed')
  return folder


def trained_steps(folder):
  return [line['step'] for line in RunFolder(folder, create=False).read_metrics() if line['kind'] == 'train']


def test_a_killed_run_ends_with_the_same_weights(uninterrupted, tmp_path):
  """What a kill leaves is what is in the folder while the process stands still; the slow test kills."""
  folder = shutil.copytree(uninterrupted / 'killed', tmp_path / 'run')
  assert 4 <= max(trained_steps(folder)) < STEPS and list((folder / 'checkpoints').iterdir())
  finish(folder)
  assert_equal_weights(final_weights(folder), final_weights(uninterrupted / 'whole'))
  assert trained_steps(folder) == list(range(1, STEPS + 1))  # lines of lost steps were removed, none is missing


@pytest.mark.slow
def test_a_run_killed_five_times_ends_with_the_same_weights(uninterrupted, tmp_path):
  seed = int(os.environ.get('RETHINK_TF_KILL_SEED', '0'))
  for step in sorted(random.Random(seed).sample(range(1, STEPS), 5)):
    assert kill_after(tmp_path, step)
  finish(tmp_path)
  assert_equal_weights(final_weights(tmp_path), final_weights(uninterrupted / 'whole'))
