"""What all tests share: the folder of real photographs, and no windows."""

import os
import pathlib

import pytest
from absl import logging

os.environ.setdefault('MPLBACKEND', 'Agg')  # before matplotlib is imported anywhere


@pytest.fixture(scope='session')
def photographs() -> pathlib.Path:
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
