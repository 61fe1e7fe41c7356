"""Pytest plugin (pyproject: -p tests.replicas): two replicas on any machine.

The CPU is split before TensorFlow starts, and all tests share one MirroredStrategy: a second one in the
same process fails on CPU, because its collective keys start anew.
"""

import gc
import os

import pytest

# Kernels that run for milliseconds need not be optimised by LLVM, which takes longer than the tests themselves.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')


def pytest_configure(config: pytest.Config) -> None:
  """Start TensorFlow where tests run: in a worker of pytest-xdist, or in the only process."""
  if 'PYTEST_XDIST_WORKER' not in os.environ and config.getoption('numprocesses', None):
    return

  # isort: off
  import rethink_tf  # noqa: F401  first of all: it sets environment variables that TensorFlow reads when imported
  import tensorflow as tf
  # isort: on

  tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices('CPU')[0], [tf.config.LogicalDeviceConfiguration()] * 2)
  # Nor is a graph that runs twice worth optimising: a quarter of the time of a detector's first step.
  tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': True})


@pytest.fixture(scope='session')
def two_replicas():
  """A MirroredStrategy over two logical CPUs."""
  from rethink_tf.distributed import strategy

  return strategy.strategy(kind='mirrored', logical_cpus=2)


def pytest_collection_finish() -> None:
  """Leave what is imported by now to itself: else the garbage collector walks it again and again during traces.

  Graphs are full of small objects, for which it would start every few seconds: up to a sixth of the time of a file of
  tests, whose peak of memory is the same when it starts more rarely.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(20_000, 10, 10)
