"""Two processes agree on a last step, whichever of them receives a signal."""

import pytest
import tensorflow as tf

from rethink_tf.distributed import coordination
from rethink_tf.distributed.workers import ALONE, Workers
from rethink_tf.errors import UserError, WorkerLost
from tests import two_workers

# Ten steps that no worker can finish without the other, as in training; `signalled` receive SIGTERM during step 3.
SCRIPT = """
import os, signal, sys, time
import tensorflow as tf
from rethink_tf.distributed import strategy as distribution, tf_config
from rethink_tf.distributed.coordination import StopTogether
from rethink_tf.distributed.workers import Workers
from rethink_tf.training.preemption import Interruption

signalled, slow = sys.argv[1].split(','), sys.argv[2]
strategy = distribution.strategy('multi_worker', timeout_minutes=5.)
index = tf_config.cluster().index
sum_over_workers = tf.function(
  lambda: strategy.run(lambda: tf.distribute.get_replica_context().all_reduce('sum', tf.ones(()))))
with Interruption(StopTogether(Workers(index, 2))) as interruption:
  interruption.deferred = True
  for step in range(1, 11):
    sum_over_workers()
    if step == 3 and str(index) in signalled:
      os.kill(os.getpid(), signal.SIGTERM)
    if str(index) == slow:
      time.sleep(0.3)
    if interruption.ends(step, step + 1):
      print('ended after', step, interruption.error().signum.name, flush=True)
      break
  else:
    print('complete', flush=True)
"""


TERMINATED = 'ended after 4 SIGTERM'


@pytest.mark.parametrize('signalled, slow, expected', [
  ('1', '0', TERMINATED),
  *(pytest.param(*case, marks=pytest.mark.slow) for case in (('0', '1', TERMINATED), ('0,1', '0', TERMINATED),
                                                             ('none', '0', 'complete'))),
])
def test_all_workers_end_after_the_same_step(signalled, slow, expected):
  for code, output in two_workers.finish(two_workers.start(['-c', SCRIPT, signalled, slow]), seconds=300):
    assert code == 0, output
    assert output.strip().splitlines()[-1] == expected, output


def of_two_workers(monkeypatch, chief, other, problem):
  """What check_same raises on the chief and on worker 1, whose service is a dictionary."""
  values, errors = {}, []
  monkeypatch.setattr(coordination, 'publish', values.__setitem__)
  monkeypatch.setattr(coordination, 'published', lambda key, seconds: values.pop(key))

  def check(index, value):
    try:
      coordination.check_same(Workers(index, 2), 'data', value, lambda theirs: problem(theirs, value))
    except UserError as error:
      errors.append(error.line())

  values['data'] = chief
  check(1, other)  # it waits for the chief's value, and the chief for its answer
  check(0, chief)
  return errors


@pytest.mark.parametrize('error, reason', [
  (tf.errors.DeadlineExceededError(None, None, 'GetKeyValue() timed out with key: rethink_tf/ready/1 and duration: 2m'),
   'not within 2 minutes'),
  (tf.errors.UnavailableError(None, None, 'recvmsg:Connection reset\nby peer'), 'recvmsg:Connection reset by peer'),
])
def test_a_worker_that_does_not_answer_is_one_line(monkeypatch, error, reason):
  def value(key, seconds):
    raise error

  monkeypatch.setattr(coordination, '_value', value)
  with pytest.raises(WorkerLost) as caught:
    coordination.published('ready/1', 120)
  assert str(caught.value) == (f'another worker does not answer (ready/1): {reason}; look at its log and restart all '
                               'workers')


def test_what_differs_on_a_worker_ends_all(monkeypatch):
  def problem(theirs, own):
    return '' if theirs == own else f'{theirs} is {own} here'

  assert of_two_workers(monkeypatch, 'a', 'a', problem) == []
  assert of_two_workers(monkeypatch, 'a', 'b', problem) == ['a is b here', 'worker 1: a is b here']
  coordination.check_same(ALONE, 'data', 'a', problem)
