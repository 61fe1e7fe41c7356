"""Reports, counters, the stop at a non-finite loss and checkpoints, by global step and across restarts."""

import json
import math
import os
import signal
import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.errors import Interrupted, UserError
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.training.callbacks import ProgressAndMetrics, SamplesSeen, SaveCheckpoints, StopOnNonFinite
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.preemption import Interruption
from rethink_tf.training.schedules import KTimesSchedule


class Regression(tf_keras.Model):
  """One weight, with losses proportional to the mean of the input, so that tests choose them."""

  def __init__(self):
    super().__init__()
    self.kernel = tf.Variable(0., name='kernel')
    names = ('loss/total', 'loss/rpn/objectness', 'loss/rpn/box', 'loss/mask')
    self.means = {name: tf_keras.metrics.Mean(name) for name in names}

  def train_step(self, batch):
    loss = tf.reduce_mean(batch)
    self.optimizer.apply_gradients([(tf.constant(1.), self.kernel)])
    for mean, share in zip(self.means.values(), (1., .25, .25, .5), strict=True):
      mean.update_state(share * loss)
    return {name: mean.result() for name, mean in self.means.items()}

  @property
  def metrics(self):
    return list(self.means.values())


class Saved:
  """A fake RunCheckpoints."""

  def __init__(self, succeeds=True):
    self.calls, self.succeeds = [], succeeds

  def save(self, step, trackables, state):
    self.calls.append((step, sorted(trackables), dict(state)))
    return self.succeeds


def facts(step):
  """Two images a step, ten steps an epoch."""
  return types.SimpleNamespace(epoch=step // 10, image_ids=np.array([2 * step, 2 * step + 1]), instances=step,
                               pixels=100, padded_pixels=120)


def fit(callbacks, losses, start=0, epochs=1):
  """Trains on these losses, one a step."""
  model = Regression()
  model.compile(SGD(KTimesSchedule(boundaries=(5,), total=100, warmup_steps=0)))
  model.optimizer.build([model.kernel])
  model.optimizer.iterations.assign(start)
  data = tf.data.Dataset.from_tensor_slices(tf.constant(losses, tf.float32)).map(lambda loss: tf.fill([2], loss))
  model.fit(data, steps_per_epoch=len(losses) // epochs, epochs=epochs, callbacks=callbacks, verbose=0)
  return model


@pytest.fixture
def folder(tmp_path):
  return RunFolder(str(tmp_path))


def test_reports_are_means_since_the_last_report(folder, capsys):
  fit([ProgressAndMetrics(folder, 9, facts, every=4)], [8., 1., 2., 3., 1., 1., 1., 5., 7.])
  lines = folder.read_metrics()
  assert [line['step'] for line in lines] == [1, 4, 8, 9]
  assert [line['loss/total'] for line in lines] == [8., 2., 2., 7.]
  np.testing.assert_allclose([line['learning_rate'] for line in lines], [.02, .02, .002, .002], rtol=1e-6)
  assert [line['images'] for line in lines] == [2, 8, 16, 18]
  assert [line['instances'] for line in lines] == [0, 6, 28, 36]  # 0 + 1 + 2 + ...
  assert lines[-1]['pixels'] == 900 and lines[-1]['padded_pixels'] == 1080
  assert {'kind', 'time', 'epoch', 'seconds', 'images_per_second', 'loss/rpn/box'} <= lines[0].keys()
  printed = capsys.readouterr().out
  assert '\r' not in printed
  first, second = printed.splitlines()[:2]
  assert first == 'step 1/9 (11.1 %)  loss 8  rpn 4 mask 4  lr 0.02'  # no speed: the first step is mostly tracing
  assert second.startswith('step 4/9 (44.4 %)  loss 2  rpn 1 mask 1  lr 0.02  ')


def test_reports_by_time(folder, capsys, monkeypatch):
  clock = iter(range(0, 10_000, 3))
  monkeypatch.setattr('rethink_tf.training.callbacks.time', types.SimpleNamespace(
    monotonic=lambda: next(clock), time=lambda: 0.))
  fit([ProgressAndMetrics(folder, 12, facts, seconds=20.)], [1.] * 12)
  steps = [line['step'] for line in folder.read_metrics()]
  assert steps[0] == 1 and steps[-1] == 12 and 3 <= len(steps) <= 6
  assert 'img/s' in capsys.readouterr().out


def test_speed_excludes_evaluation(folder, monkeypatch):
  now = [0.]
  clock = types.SimpleNamespace(monotonic=lambda: now[0], time=lambda: 0.)
  monkeypatch.setattr('rethink_tf.training.callbacks.time', clock)

  class Clock(tf_keras.callbacks.Callback):
    """Half a second in each step, an hour of evaluation after it."""

    def on_train_batch_begin(self, batch, logs=None):
      now[0] += .5

    def on_train_batch_end(self, batch, logs=None):
      now[0] += 3600.

  fit([progress := ProgressAndMetrics(folder, 4, facts, every=2), Clock()], [1.] * 4)
  assert [line['images_per_second'] for line in folder.read_metrics()] == [4., 4., 4.]
  assert progress.state()['seconds'] == 2.


def test_tensorboard_scalars(folder):
  fit([ProgressAndMetrics(folder, 4, facts, every=2)], [1.] * 4)
  (events,) = tf.io.gfile.glob(folder.join('tensorboard', '*'))
  found = {(value.tag, event.step) for event in tf.compat.v1.train.summary_iterator(events)
           for value in event.summary.value}
  tags = ('train/loss/total', 'train/loss/rpn/objectness', 'train/learning_rate', 'train/images', 'train/pixels')
  assert {(tag, step) for tag in tags for step in (1, 2, 4)} <= found


def test_steps_at_the_end_of_an_epoch_of_fit_are_reported(folder):
  fit([ProgressAndMetrics(folder, 6, facts, every=100)], [1., 2., 2., 3., 4., 5.], epochs=2)
  assert [(line['step'], line['loss/total']) for line in folder.read_metrics()] == [(1, 1.), (3, 2.), (6, 4.)]


def test_counters_survive_a_restart(folder):
  whole = ProgressAndMetrics(folder, 6, facts, every=1)
  fit([whole], [1.] * 6)
  expected = [{key: line[key] for key in ('step', 'images', 'instances', 'pixels', 'epoch')}
              for line in folder.read_metrics()]
  first = ProgressAndMetrics(folder, 6, facts, every=1)
  fit([first], [1.] * 4)
  saved = json.loads(json.dumps(first.state()))
  fit([first], [1.] * 1, start=4)  # lost: the checkpoint is that of step 4
  second = ProgressAndMetrics(folder, 6, facts, every=1, start_state=saved)
  fit([second], [1.] * 2, start=4)
  lines = folder.read_metrics()
  assert [{key: line[key] for key in expected[0]} for line in lines] == expected
  assert {**second.state(), 'seconds': 0} == {**whole.state(), 'seconds': 0}
  assert second.state()['seconds'] > saved['seconds'] > 0


def test_epochs_are_epochs_of_the_data(folder):
  fit([ProgressAndMetrics(folder, 12, facts, every=1)], [1.] * 4, start=8)
  assert [line['epoch'] for line in folder.read_metrics()] == [0, 0, 1, 1]


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_training_stops_at_the_first_non_finite_loss(folder, bad):
  saved = Saved()
  progress = ProgressAndMetrics(folder, 8, facts, every=1)
  with pytest.raises(UserError) as caught:
    fit([StopOnNonFinite(facts), progress, SaveCheckpoints(saved, {}, dict, every=1)], [1., 2., bad, 1.], start=4)
  message = str(caught.value)
  assert 'loss/total' in message and 'loss/mask' in message
  assert 'at step 7, image ids 12, 13' in message  # the third step from 4 on consumed the batch of index 6
  assert '\n' not in message
  assert [step for step, _, _ in saved.calls] == [5, 6]  # and none after
  assert [line['step'] for line in folder.read_metrics()] == [5, 6]


def test_checkpoints_at_multiples_and_at_the_end(folder):
  saved = Saved()
  progress = ProgressAndMetrics(folder, 11, facts, every=1)
  trackables, state = {'model': None, 'optimizer': None}, lambda: {'progress': progress.state()}
  fit([progress, SaveCheckpoints(saved, trackables, state, every=4)], [1.] * 9, start=2)
  assert [step for step, _, _ in saved.calls] == [4, 8, 11]
  assert saved.calls[0][1] == ['model', 'optimizer']
  assert [state['progress']['images'] for _, _, state in saved.calls] == [4, 12, 18]


def test_the_last_step_is_saved_once():
  saved = Saved()
  fit([SaveCheckpoints(saved, {}, dict, every=2)], [1.] * 4)
  assert [step for step, _, _ in saved.calls] == [2, 4]


def test_a_failed_checkpoint_is_an_error_only_at_the_end():
  saved = Saved(succeeds=False)
  with pytest.raises(UserError, match=r'the last checkpoint \(step 5\) could not be written'):
    fit([SaveCheckpoints(saved, {}, dict, every=2)], [1.] * 5)
  assert [step for step, _, _ in saved.calls] == [2, 4, 5]


class Signal(tf_keras.callbacks.Callback):
  """Sends SIGTERM to this process when a step begins or ends."""

  def __init__(self, step, moment='begin'):
    super().__init__()
    self.step, self.moment = step, moment

  def on_train_batch_begin(self, batch, logs=None):
    if self.moment == 'begin' and self.model.optimizer.iterations.numpy() == self.step - 1:
      os.kill(os.getpid(), signal.SIGTERM)

  def on_train_batch_end(self, batch, logs=None):
    if self.moment == 'end' and self.model.optimizer.iterations.numpy() == self.step:
      os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_saves_at_the_end_of_the_step(folder):
  saved, interruption = Saved(), Interruption()
  progress = ProgressAndMetrics(folder, 8, facts, every=1)
  saving = SaveCheckpoints(saved, {}, lambda: {'progress': progress.state()}, every=5, interruption=interruption)
  with pytest.raises(Interrupted, match='resumes from step 3') as caught, interruption:
    fit([progress, saving, Signal(3)], [1.] * 8)
  assert caught.value.signum == signal.SIGTERM
  assert [(step, state['progress']['images']) for step, _, state in saved.calls] == [(3, 6)]


@pytest.mark.parametrize('step, expected', [(4, [4]), (3, [4])])
def test_a_signal_between_steps(step, expected):
  """Right after a checkpoint training ends at once, otherwise at the end of the next step."""
  saved, interruption = Saved(), Interruption()
  saving = SaveCheckpoints(saved, {}, dict, every=4, interruption=interruption)
  with pytest.raises(Interrupted, match='resumes from step 4'), interruption:
    fit([saving, Signal(step, 'end')], [1.] * 8)
  assert [step for step, _, _ in saved.calls] == expected


def test_a_signal_while_a_checkpoint_is_written_ends_training_with_it():
  class Signalled(Saved):
    def save(self, step, trackables, state):
      if not self.calls:
        os.kill(os.getpid(), signal.SIGTERM)
      return super().save(step, trackables, state)

  saved, interruption = Signalled(), Interruption()
  saving = SaveCheckpoints(saved, {}, dict, every=2, interruption=interruption)
  with pytest.raises(Interrupted, match='resumes from step 2'), interruption:
    fit([saving], [1.] * 8)
  assert [step for step, _, _ in saved.calls] == [2]


def test_a_signal_in_the_first_step_ends_training_at_once():
  saved, interruption = Saved(), Interruption()
  saving = SaveCheckpoints(saved, {}, dict, every=1, interruption=interruption)
  with pytest.raises(Interrupted, match='resumes from step 2'), interruption:
    fit([saving, Signal(3)], [1.] * 4, start=2)
  assert not saved.calls


def test_a_signal_ends_training_when_the_disk_is_full():
  interruption = Interruption()
  saving = SaveCheckpoints(Saved(succeeds=False), {}, dict, every=2, interruption=interruption)
  with pytest.raises(Interrupted, match='resumes from step 0'), interruption:
    fit([saving, Signal(3)], [1.] * 8)


@pytest.mark.parametrize('every', [3, 5], ids=['saved', 'unsaved'])
def test_a_signal_ends_training_that_waits_for_data_forever(every):
  """With a checkpoint, between two steps, since the main thread waits where it handles signals."""
  def data_ready(step, seconds):
    if step == 3:
      os.kill(os.getpid(), signal.SIGHUP)
    return step < 3

  saved, interruption = Saved(), Interruption()
  saving = SaveCheckpoints(saved, {}, dict, every=every, interruption=interruption, data_ready=data_ready)
  with pytest.raises(Interrupted, match='resumes from step 3') as caught, interruption:
    fit([saving], [1.] * 8)
  assert caught.value.signum == signal.SIGHUP and [step for step, _, _ in saved.calls] == [3]


def test_evaluated_steps_are_saved():
  saved = Saved()
  fit([SaveCheckpoints(saved, {}, dict, every=4, also=lambda step: step % 3 == 0)], [1.] * 8)
  assert [step for step, _, _ in saved.calls] == [3, 4, 6, 8]


def test_metrics_and_checkpoints_of_two_replicas_count_each_step_once(folder, two_replicas):
  with two_replicas.scope():
    model = Regression()
    model.compile(SGD(.01))
  saved = Saved()
  progress = ProgressAndMetrics(folder, 3, facts, every=1)
  data = tf.data.Dataset.from_tensor_slices(tf.ones([3, 2]))
  model.fit(data, callbacks=[StopOnNonFinite(facts), progress, SaveCheckpoints(saved, {}, progress.state, every=2)],
            verbose=0)
  assert [line['loss/total'] for line in folder.read_metrics()] == [1., 1., 1.]
  assert [step for step, _, _ in saved.calls] == [2, 3]
  assert progress.state()['images'] == 6


def test_counters_of_another_version_begin_at_zero(caplog):
  assert SamplesSeen.restored(None) == SamplesSeen() and not caplog.messages
  state = {'images': 4, 'instances': 'many', 'pixels': 5, 'padded_pixels': float('nan'), 'seconds': 2.5, 'tokens': 9}
  assert SamplesSeen.restored(state) == SamplesSeen(images=4, pixels=5, seconds=2.5)
  assert len(caplog.messages) == 1 and 'tokens' in caplog.messages[0] and 'instances' in caplog.messages[0]
  assert SamplesSeen.restored([1]) == SamplesSeen()
