"""Pytest plugin (pyproject: -p tests.replicas): two replicas on any machine.

The CPU is split before TensorFlow starts, and all tests share one MirroredStrategy: a second one in the
same process fails on CPU, because its collective keys start anew.
"""

import os

import pytest

# Kernels that run for milliseconds need not be optimised by LLVM, which takes longer than the tests themselves.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')

# isort: off
import rethink_tf  # noqa: F401  first of all: it sets environment variables that TensorFlow reads when it is imported
import tensorflow as tf
# isort: on

from rethink_tf.distributed import strategy

_TWO_CPUS = [tf.config.LogicalDeviceConfiguration()] * 2
# Nor is a graph that runs twice worth optimising: a quarter of the time of a detector's first step.
tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': True})
tf.config.set_logical_device_configuration(tf.config.list_physical_devices('CPU')[0], _TWO_CPUS)


@pytest.fixture(scope='session')
def two_replicas():
  """A MirroredStrategy over two logical CPUs."""
  return strategy.strategy(kind='mirrored', logical_cpus=2)
