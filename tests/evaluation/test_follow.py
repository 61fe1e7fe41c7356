"""A follower evaluates every checkpoint once, until the last step or a timeout."""

import json
import os
import types

import pytest
import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.evaluation import follow
from rethink_tf.storage import run_folder
from rethink_tf.storage.checkpoints import RunCheckpoints
from rethink_tf.storage.metrics_lines import ON_DEMAND
from rethink_tf.storage.run_folder import RunFolder


class Run:
  """A training job: each listing of its checkpoints is preceded by the next event."""

  def __init__(self, path, events):
    self.folder, self.events, self.present, self.evaluated = RunFolder(str(path)), list(events), [], []
    self.follower = follow.FollowedFolder(str(path))

  def steps(self):
    if self.events:
      self.events.pop(0)(self)
    return list(self.present)

  def is_sound(self, step):
    return step in self.present

  def evaluate(self, step):
    if step not in self.present:
      raise UserError(f'no checkpoint of step {step}')
    self.evaluated.append(step)
    self.follower.append_metrics({'kind': 'eval', 'step': step, 'box/AP': float(step), 'time': 100.0 + step})

  def follow(self, minutes=0.0):
    follow.follow_checkpoints(self, self.evaluate, self.follower, minutes, poll_seconds=0)


def saved(*steps):
  return lambda run: setattr(run, 'present', list(steps))


def nothing(run):
  pass


def trained(run):
  run.folder.append_metrics({'kind': 'train', 'step': 30, 'time': 90.0})


def test_every_checkpoint_is_evaluated_once_until_the_last(tmp_path):
  run = Run(tmp_path, [nothing, saved(10), saved(10, 20), trained, saved(20, 30)])
  run_folder.write_schedule(run.folder, 30)
  run.follow(minutes=60)
  assert run.evaluated == [10, 20, 30]
  assert [line['step'] for line in RunFolder(str(tmp_path)).read_metrics()] == [30, 10, 20, 30]
  assert (tmp_path / 'metrics.jsonl').read_text().count('eval') == 0  # the file of training is unchanged


def test_a_restarted_follower_continues(tmp_path):
  run = Run(tmp_path, [saved(10, 20, 30)])
  run_folder.write_schedule(run.folder, 30)
  run.follower.append_metrics({'kind': 'eval', 'step': 10, 'box/AP': 1.0, 'time': 1.0})
  run.follow(minutes=60)
  assert run.evaluated == [20, 30]


def test_evaluations_on_demand_are_not_those_of_the_follower(tmp_path):
  run = Run(tmp_path, [saved(10, 20)])
  run_folder.write_schedule(run.folder, 20)
  run.folder.append_metrics({'kind': 'eval', 'step': 20, 'box/AP': 99.0, 'time': 1.0, ON_DEMAND: True})
  run.follow(minutes=60)
  assert run.evaluated == [10, 20]


def test_repeated_steps_of_a_resumed_run_are_evaluated_again(tmp_path):
  run = Run(tmp_path, [saved(10, 20)])
  run_folder.write_schedule(run.folder, 20)
  run.follower.append_metrics({'kind': 'eval', 'step': 20, 'box/AP': 1.0, 'time': 1.0})
  run.folder.append_metrics({'kind': 'resume', 'step': 10, 'time': 2.0})
  run.follow(minutes=60)
  assert run.evaluated == [10, 20]


@pytest.mark.parametrize('ahead', [-3600.0, 3600.0])
def test_clocks_of_two_machines_may_differ(tmp_path, ahead):
  """A start of training whose time is later than that of an evaluation of its steps does not cancel it."""
  run = Run(tmp_path, [saved(10), saved(10, 20)])
  run_folder.write_schedule(run.folder, 20)
  run.folder.append_metrics({'kind': 'resume', 'step': 0, 'time': 100.0 + ahead})
  run.folder.append_metrics({'kind': 'train', 'step': 20, 'time': 101.0 + ahead})
  run.follow(minutes=60)
  assert run.evaluated == [10, 20]
  assert [line['step'] for line in RunFolder(str(tmp_path)).read_metrics() if line['kind'] == 'eval'] == [10, 20]
  run.folder.append_metrics({'kind': 'resume', 'step': 10, 'time': 160.0 + ahead})  # and repeats its steps
  run.follow(minutes=60)
  assert run.evaluated == [10, 20, 20]


def test_a_removed_checkpoint_is_skipped(tmp_path, caplog):
  run = Run(tmp_path, [saved(10), lambda run: (saved(20)(run))])
  run_folder.write_schedule(run.folder, 20)
  run.evaluate, evaluate = lambda step: (saved(20)(run), evaluate(step)), run.evaluate
  run.follow(minutes=60)
  assert run.evaluated == [20]
  assert 'the checkpoint of step 10 was removed before it was evaluated' in caplog.text


def test_a_removed_checkpoint_that_is_trained_again_is_evaluated(tmp_path):
  """Training has resumed from an earlier step, and writes the step once more."""
  run = Run(tmp_path, [saved(10), saved(), saved(10), saved(10, 20)])
  run_folder.write_schedule(run.folder, 20)
  run.evaluate, evaluate = lambda step: evaluate(step), run.evaluate
  first = []

  def removed_at_first(step):
    if not first:
      first.append(step)
      run.present.clear()
      run.events.insert(0, saved())
    evaluate(step)

  run.evaluate = removed_at_first
  run.follow(minutes=60)
  assert first == [10] and run.evaluated == [10, 20]


def test_a_damaged_checkpoint_that_is_written_again_is_evaluated(tmp_path):
  run = Run(tmp_path, [saved(10, 20)] * 8)
  run_folder.write_schedule(run.folder, 20)
  manifest = tmp_path / 'checkpoints/step-00000010/manifest.json'
  manifest.parent.mkdir(parents=True)
  manifest.write_text('{}')
  evaluate, damaged = run.evaluate, [10]
  run.is_sound = lambda step: step not in damaged

  def restore(step):
    if step in damaged:
      raise UserError('is damaged')
    if step == 20:  # meanwhile training repeats step 10
      damaged.clear()
      os.utime(manifest, ns=(0, manifest.stat().st_mtime_ns + 10**9))
    evaluate(step)

  run.evaluate = restore
  run.folder.append_metrics({'kind': 'train', 'step': 10, 'time': 1.0})
  run_folder.write_schedule(run.folder, 30)
  with pytest.raises(UserError, match='no new checkpoint'):
    run.follow()
  assert run.evaluated == [20, 10]


def test_a_schedule_that_ends_before_the_newest_checkpoint(tmp_path):
  """It was shortened when the run was beyond its end: no checkpoint of its last step will come."""
  run = Run(tmp_path, [saved(10, 20)])
  run_folder.write_schedule(run.folder, 15)
  run.follow(minutes=60)
  assert run.evaluated == [10, 20]


def test_an_evaluation_during_which_training_resumes_from_an_earlier_step(tmp_path):
  """It is of weights that are gone: those of the same step that training reaches again are evaluated, too."""
  run = Run(tmp_path, [saved(20), saved(20)])
  run_folder.write_schedule(run.folder, 20)
  evaluate = run.evaluate

  def restarted(step):
    if not run.evaluated:
      run.folder.append_metrics({'kind': 'resume', 'step': 10, 'time': 1.0})
    evaluate(step)

  run.evaluate = restarted
  run.follow(minutes=60)
  assert run.evaluated == [20, 20]


def test_a_damaged_checkpoint_is_skipped_unless_it_is_the_last(tmp_path, caplog):
  run = Run(tmp_path, [saved(10, 20), saved(10, 20), saved(10, 20), saved(10, 20, 30)])
  run_folder.write_schedule(run.folder, 30)
  evaluate, damaged = run.evaluate, [10]
  run.is_sound = lambda step: step not in damaged

  def restore(step):
    if step in damaged:
      raise UserError(f'the checkpoint of step {step} is damaged')
    evaluate(step)

  run.evaluate = restore
  run.follow(minutes=60)
  assert run.evaluated == [20, 30] and 'the checkpoint of step 10 was damaged before it was evaluated' in caplog.text
  run.evaluated.clear()
  run.folder.append_metrics({'kind': 'resume', 'step': 20, 'time': 1e9})
  damaged.append(30)
  with pytest.raises(UserError, match='the checkpoint of step 30 is damaged'):
    run.follow(minutes=60)


def test_without_new_checkpoints_the_follower_ends(tmp_path):
  run = Run(tmp_path, [saved(10)])
  run_folder.write_schedule(run.folder, 30)
  with pytest.raises(UserError, match='no new checkpoint in .* for 0 minutes .* of step 10, the last step is 30'):
    run.follow()
  assert run.evaluated == [10]


def test_an_error_of_restoring_ends_the_follower(tmp_path):
  run = Run(tmp_path, [saved(10)])
  def wrong(step):
    raise UserError('wrong checkpoint')
  run.evaluate = wrong
  with pytest.raises(UserError, match='wrong checkpoint'):
    run.follow(minutes=60)


def test_the_best_checkpoint_is_recorded_once_training_has_ended(tmp_path):
  folder = RunFolder(str(tmp_path))
  trained = {'detector': tf.Module()}
  for step in (10, 20):
    RunCheckpoints(folder).save(step, trained, {})
  run_folder.write_schedule(folder, 20)
  follower = follow.FollowedFolder(str(tmp_path))

  def evaluate(step):
    follower.append_metrics({'kind': 'eval', 'step': step, 'box/AP': float(step)})

  follow.follow(types.SimpleNamespace(
    folder=follower, checkpoints=RunCheckpoints(follower), trackables=trained, recorded=True, keep_best=True,
    metric='box/AP', follow_minutes=1.0, evaluator=types.SimpleNamespace(evaluate=evaluate, last={})))
  assert json.loads((tmp_path / 'best.json').read_text())['step'] == 20


def test_events_are_written_to_the_run_evaluator(tmp_path):
  run = Run(tmp_path, [])
  run.follower.add_scalars(10, {'eval/box/AP': 1.0})
  run.follower.flush()
  assert list((tmp_path / 'tensorboard/evaluator').glob('events*'))


def test_a_missing_folder_is_a_user_error(tmp_path):
  with pytest.raises(UserError, match='no run folder'):
    follow.FollowedFolder(str(tmp_path / 'none'))
