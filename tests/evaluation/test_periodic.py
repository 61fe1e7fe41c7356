"""When evaluations take place: every n steps, at the end, and after a restart."""

import types

import pytest
import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.evaluation.periodic import PeriodicEvaluation
from rethink_tf.storage.metrics_lines import ON_DEMAND
from rethink_tf.storage.run_folder import RunFolder


class Recorder(PeriodicEvaluation):
  """Writes the line of an evaluation and nothing else."""

  def evaluate(self, step, extra=None):
    self._run_folder.append_metrics({'kind': 'eval', 'step': step})
    self._keep(step, {'box/AP': 1.0})
    return self.last


def evaluated(path, steps, begin=0, **settings):
  """Call the hooks as `fit` does, for iterations begin + 1 to steps; return the steps evaluated so far."""
  evaluator, iterations = Recorder(RunFolder(str(path)), **settings), tf.Variable(begin)
  evaluator.set_model(types.SimpleNamespace(optimizer=types.SimpleNamespace(iterations=iterations)))
  evaluator.on_train_begin()
  for step in range(begin + 1, steps + 1):
    iterations.assign(step)
    evaluator.on_train_batch_end(step - 1)
  evaluator.on_train_end()
  return [line['step'] for line in RunFolder(str(path)).read_metrics()]


@pytest.mark.parametrize('every, at_end, expected', [(2, True, [2, 4, 5]), (5, True, [5]), (0, True, [5]),
                                                     (0, False, []), (2, False, [2, 4])])
def test_evaluates_every_n_steps_and_at_the_end(tmp_path, every, at_end, expected):
  assert evaluated(tmp_path, 5, every=every, at_end=at_end) == expected


def test_a_negative_interval_is_a_user_error(tmp_path):
  with pytest.raises(UserError, match=r'Recorder\.every = -1: use a number of steps, or 0'):
    evaluated(tmp_path, 5, every=-1, at_end=True)


def test_a_lost_evaluation_is_repeated_after_a_restart(tmp_path):
  """The run resumes from the checkpoint of the step whose evaluation was lost."""
  assert evaluated(tmp_path, 5, begin=4, every=2, at_end=True) == [4, 5]
  assert evaluated(tmp_path, 5, begin=4, every=2, at_end=False) == [4, 5]  # not again


def test_an_evaluation_on_demand_does_not_replace_a_lost_one(tmp_path):
  RunFolder(str(tmp_path)).append_metrics({'kind': 'eval', 'step': 4, ON_DEMAND: True})
  assert evaluated(tmp_path, 5, begin=4, every=2, at_end=False) == [4, 4]
  assert evaluated(tmp_path, 5, begin=4, every=2, at_end=False) == [4, 4]  # not again
