"""Two processes agree on a last step, whoever of them is asked to end."""

import pytest

from tests import two_workers

# Ten steps that nobody can finish without the other, as in training; `asked` receive a signal during step 3.
SCRIPT = """
import os, signal, sys, time
import tensorflow as tf
from rethink_tf import distribute
from rethink_tf.coordination import StopTogether
from rethink_tf.interruption import Interruption
from rethink_tf.workers import Workers

asked, late = sys.argv[1].split(','), sys.argv[2]
strategy = distribute.strategy('multi_worker', timeout_minutes=5.)
index = distribute.cluster().index
together = tf.function(lambda: strategy.run(lambda: tf.distribute.get_replica_context().all_reduce('sum', tf.ones(()))))
with Interruption(StopTogether(Workers(index, 2))) as interruption:
  interruption.deferred = True
  for step in range(1, 11):
    together()
    if step == 3 and str(index) in asked:
      os.kill(os.getpid(), signal.SIGTERM)
    if str(index) == late:
      time.sleep(0.3)
    if interruption.ends(step, step + 1):
      print('ended after', step, interruption.error().signum.name, flush=True)
      break
  else:
    print('complete', flush=True)
"""


TERMINATED = 'ended after 4 SIGTERM'


@pytest.mark.parametrize('asked, late, told', [
  ('1', '0', TERMINATED),
  *(pytest.param(*case, marks=pytest.mark.slow) for case in (('0', '1', TERMINATED), ('0,1', '0', TERMINATED),
                                                             ('none', '0', 'complete'))),
])
def test_all_end_after_the_same_step(asked, late, told):
  for code, output in two_workers.finish(two_workers.start(['-c', SCRIPT, asked, late]), seconds=300):
    assert code == 0, output
    assert output.strip().splitlines()[-1] == told, output
