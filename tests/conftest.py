"""What all tests share: the folder of real photographs, and no windows."""

import os
import pathlib

import pytest
from absl import logging

os.environ.setdefault('MPLBACKEND', 'Agg')  # before matplotlib is imported anywhere


# The longest files, begun first: else one worker is left with them when the other has nothing more to do.
LONG = ('experiment', 'trainer', 'tta', 'xla', 'golden', 'gin_configs', 'pretrain', 'train', 'serving', 'predict',
        'precise_statistics', 'cbnet', 'bench', 'side_by_side', 'recompute', 'faults', 'fuzz', 'rows', 'stream',
        'hashtags', 'complexity', 'plain_run')


def pytest_collection_modifyitems(items):
  order = {f'test_{name}.py': place for place, name in enumerate(LONG)}
  items.sort(key=lambda item: order.get(item.path.name, len(order)))  # stable: a file's tests stay together


@pytest.fixture(scope='session')
def real_images() -> pathlib.Path:
  """Folder with coco_dev, balloon, coco_rle_sample, …: RETHINK_TF_DATA, by default ../shared/data."""
  root = pathlib.Path(__file__).resolve().parents[1]
  folder = (root / os.environ.get('RETHINK_TF_DATA', '../shared/data')).resolve()
  if not folder.is_dir():
    pytest.skip(f'no real photographs: {folder} is not there (set RETHINK_TF_DATA)')
  return folder


@pytest.fixture
def see_logs(caplog):
  """Lets `caplog` see what the package logs for information."""
  logging.set_verbosity(logging.INFO)
  caplog.set_level('INFO', logger='absl')


@pytest.fixture
def bfloat16():
  """The policy of mixed precision, for one test."""
  import tf_keras

  tf_keras.mixed_precision.set_global_policy('mixed_bfloat16')
  yield
  tf_keras.mixed_precision.set_global_policy('float32')
