"""Deterministic runs that are killed and resumed end with the weights of an uninterrupted one."""

import os
import pathlib
import random
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
  while process.poll() is None:
    lines = RunFolder(folder, create=False).read_metrics() if (folder / 'metrics.jsonl').exists() else []
    if any(line['kind'] == 'train' and line['step'] >= step for line in lines):
      process.send_signal(signal.SIGKILL)
      process.wait()
      return process.returncode == -signal.SIGKILL
    time.sleep(0.02)
  return False


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
  folder = tmp_path_factory.mktemp('uninterrupted')
  finish(folder)
  return folder


def test_a_killed_run_ends_with_the_same_weights(uninterrupted, tmp_path):
  assert kill_after(tmp_path, 4)
  finish(tmp_path)
  assert_equal_weights(final_weights(tmp_path), final_weights(uninterrupted))
  steps = [line['step'] for line in RunFolder(tmp_path, create=False).read_metrics() if line['kind'] == 'train']
  assert steps == list(range(1, STEPS + 1))  # lines of lost steps were removed, none is missing


@pytest.mark.slow
def test_a_run_killed_five_times_ends_with_the_same_weights(uninterrupted, tmp_path):
  seed = int(os.environ.get('RETHINK_TF_KILL_SEED', '0'))
  for step in sorted(random.Random(seed).sample(range(1, STEPS), 5)):
    assert kill_after(tmp_path, step)
  finish(tmp_path)
  assert_equal_weights(final_weights(tmp_path), final_weights(uninterrupted))
