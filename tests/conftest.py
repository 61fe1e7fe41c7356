"""Shared by all tests: the folder of real images, and plots without windows."""

import os
import pathlib
import signal
import sys

import pytest
from absl import logging

os.environ.setdefault('MPLBACKEND', 'Agg')  # before matplotlib is imported anywhere
# The tests of signals wait for them: a job in the background of a script ignores SIGINT, one under nohup SIGHUP.
for signum, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
  if signal.getsignal(signum) is signal.SIG_IGN:
    signal.signal(signum, handler)


# The longest files, which begin first: else one worker is left with them when the other has finished.
LONG = ('test_golden.py', 'test_experiment.py', 'training/test_trainer.py', 'test_train.py', 'test_pretrain.py',
        'test_old_run.py', 'test_own_data.py', 'tools/test_fuzz.py', 'test_xla.py',
        'evaluation/test_test_time_augmentation.py', 'predict/test___main__.py', 'api/test___init__.py',
        'export/test_saved_model.py', 'test_gin_configs.py', 'models/test_cbnet.py', 'models/test_recompute.py',
        'distributed/test_coordination.py', 'training/test_ema.py', 'data/classification/test_hashtag_stream.py')


def pytest_collection_modifyitems(items):
  order = {name: place for place, name in enumerate(LONG)}
  root = pathlib.Path(__file__).parent
  key = lambda item: order.get(item.path.relative_to(root).as_posix(), len(order))  # noqa: E731
  items.sort(key=key)  # stable: a file's tests stay together


@pytest.fixture(scope='session')
def real_images() -> pathlib.Path:
  """Folder with coco_dev, balloon, coco_rle_sample, …: RETHINK_TF_DATA, by default ../shared/data."""
  root = pathlib.Path(__file__).resolve().parents[1]
  folder = (root / os.environ.get('RETHINK_TF_DATA', '../shared/data')).resolve()
  if not folder.is_dir():
    pytest.skip(f'no real images: {folder} is not there (set RETHINK_TF_DATA)')
  return folder


@pytest.fixture(scope='module', autouse=True)
def no_configuration_of_other_modules():
  """Whatever other tests of this process have left parsed: gin would refuse what tf-models-official registers."""
  if (gin := sys.modules.get('gin')) is not None:
    gin.clear_config()


@pytest.fixture
def no_configuration_is_left():
  """What a test has parsed is forgotten after it."""
  import gin

  yield
  gin.clear_config()


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
