"""Devices: what is there is used, what is missing is said."""

import subprocess
import sys

import pytest
import tensorflow as tf

from rethink_tf import distribute
from rethink_tf.errors import UserError


def in_fresh_process(code):
  return subprocess.run([sys.executable, '-c', f'from rethink_tf import distribute\n{code}'], capture_output=True,
                        text=True, check=False)


def test_two_replicas_compute_together(two_replicas):
  assert two_replicas.num_replicas_in_sync == 2

  @tf.function
  def total():
    ids = two_replicas.run(lambda: tf.distribute.get_replica_context().replica_id_in_sync_group + 1)
    return two_replicas.reduce('sum', ids, axis=None)

  assert int(total()) == 3


def test_one_device():
  strategy = distribute.strategy(kind='one_device')
  assert strategy.num_replicas_in_sync == 1
  assert int(strategy.run(lambda: tf.constant(3))) == 3


@pytest.mark.parametrize('arguments, message', [
  ({'kind': 'tpu_pod'}, "strategy.kind = 'tpu_pod' must be"),
  ({'num_devices': 0}, 'strategy.num_devices = 0 must be at least 1'),
  ({'kind': 'mirrored', 'num_devices': 64}, r'num_devices = 64, but TensorFlow finds \d+ GPU\(s\) and 2 CPU'),
  ({'kind': 'one_device', 'num_devices': 2}, "num_devices = 2 needs strategy.kind = 'mirrored'"),
  ({'logical_cpus': 4}, r'logical_cpus = 4: TensorFlow has started with 2 CPU device\(s\)'),
])
def test_requests_that_cannot_be_met(two_replicas, arguments, message):
  with pytest.raises(UserError, match=message) as caught:
    distribute.strategy(**arguments)
  assert '\n' not in str(caught.value)


def test_logical_cpus_in_a_fresh_process():
  result = in_fresh_process('import tensorflow as tf\n'
                            'strategy = distribute.strategy(logical_cpus=3)\n'
                            'print(type(strategy).__name__, strategy.num_replicas_in_sync)\n'
                            'print(type(distribute.strategy("one_device")).__name__)')
  assert result.stdout.split() == ['MirroredStrategy', '3', 'OneDeviceStrategy'], result.stderr
