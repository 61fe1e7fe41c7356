"""Moving averages of the weights: closed form on one device and two, independence of training, restoring."""

import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError
from rethink_tf.evaluation.periodic import PeriodicEvaluation
from rethink_tf.models.norms import sync_batch_norm
from rethink_tf.storage.checkpoints import RunCheckpoints
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.structures import AVERAGES, LabelledImages
from rethink_tf.training import loop
from rethink_tf.training.ema import EvaluatorWithAverages, ExponentialMovingAverage, OnAverages, restore
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.trainer import Trainer


class Detector(tf_keras.layers.Layer):
  """Two outputs per image: a dense layer on its mean colour, normalised."""

  def __init__(self):
    super().__init__(name='detector')
    self.dense, self.norm = tf_keras.layers.Dense(2, use_bias=False), sync_batch_norm('norm')

  def call(self, images, image_sizes, labels=None, training=False):
    colour = tf.reduce_mean(tf.cast(images, tf.float32), [1, 2], keepdims=True) / 255
    return tf.reshape(self.norm(self.dense(colour), training=training), [-1, 2])


def losses(outputs, batch):
  return {'class': tf.reduce_mean(tf.square(outputs - tf.one_hot(batch.classes[:, 0], 2)))}


def batch(images=4, seed=0):
  rng = np.random.default_rng(seed)
  return LabelledImages(tf.constant(rng.integers(0, 255, (images, 8, 8, 3)), tf.uint8),
                        tf.fill([images, 2], 8.), tf.range(images, dtype=tf.int64),
                        tf.constant(rng.integers(0, 2, (images, 1)), tf.int32))


def make(micro_batches=1, steps_per_execution=1, **settings):
  tf_keras.utils.set_random_seed(3)
  trainer = Trainer(Detector(), losses, micro_batches)
  trainer.compile(SGD(.5), steps_per_execution=steps_per_execution)
  trainer.make_variables(batch())
  return trainer, ExponentialMovingAverage(trainer, **settings)


class Record(tf_keras.callbacks.Callback):
  """The detector's variables after each step."""

  def __init__(self):
    super().__init__()
    self.values = []

  def on_train_batch_end(self, step, logs=None):
    self.values.append(weights(self.model))


def weights(trainer):
  return [variable.numpy() for variable in trainer.detector.variables]


def averages(average):
  return [variable.numpy() for variable in average.state.averages]


def fit(trainer, callbacks, steps):
  trainer.fit(tf.data.Dataset.from_tensors(batch()).repeat(), steps_per_epoch=steps, verbose=0, callbacks=callbacks)


def closed_form(start, values, decays):
  """decay · average + (1 - decay) · weights, step by step in float64."""
  average = [np.float64(value) for value in start]
  for step, decay in zip(values, decays, strict=True):
    average = [decay * a + (1 - decay) * np.float64(w) for a, w in zip(average, step, strict=True)]
  return average


def assert_close(actual, expected):
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def assert_same(actual, expected):
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('settings, decays', [
  ({'decay': .9, 'warm_up': False}, [.9] * 6),
  ({'decay': .35}, [2 / 11, 3 / 12, 4 / 13, .35, .35, .35]),  # (1 + n) / (10 + n) up to the decay
  ({'decay': 0.}, [0.] * 6)], ids=['constant', 'warm-up', 'none'])
def test_averages_equal_the_closed_form(settings, decays):
  trainer, average = make(**settings)
  start, record = weights(trainer), Record()
  fit(trainer, [average, record], 6)
  assert not np.array_equal(record.values[0][0], record.values[-1][0])  # the weights change
  assert_close(averages(average), closed_form(start, record.values, decays))
  assert average.state.updates.numpy() == 6


def test_statistics_of_norms_are_averaged_like_weights():
  trainer, average = make(decay=.5, warm_up=False)
  names = [variable.name for variable in trainer.detector.variables]
  moving = next(i for i, name in enumerate(names) if 'moving_mean' in name)
  record = Record()
  fit(trainer, [average, record], 3)
  shares = (.125, .25, .5)
  expected = sum(share * np.float64(values[moving]) for share, values in zip(shares, record.values, strict=True))
  np.testing.assert_allclose(averages(average)[moving], expected, rtol=1e-5, atol=1e-7)  # initially zero


def test_accumulated_gradients_are_one_step():
  trainer, average = make(micro_batches=2, decay=.9, warm_up=False)
  start, record = weights(trainer), Record()
  fit(trainer, [average, record], 3)
  assert average.state.updates.numpy() == 3
  assert_close(averages(average), closed_form(start, record.values, [.9] * 3))


def test_several_steps_per_execution_average_the_last_of_each():
  trainer, average = make(steps_per_execution=3, decay=.9, warm_up=False)
  start, record = weights(trainer), Record()
  fit(trainer, [average, record], 6)
  assert average.state.updates.numpy() == 6 and len(record.values) == 2
  assert_close(averages(average), closed_form(start, record.values, [.9 ** 3] * 2))


def test_two_replicas_have_the_averages_of_one(two_replicas):
  alone, of_one = make(decay=.8)
  fit(alone, [of_one], 4)
  with two_replicas.scope():
    shared, of_two = make(decay=.8)
  data = two_replicas.experimental_distribute_dataset(tf.data.Dataset.from_tensors(batch()).repeat())
  shared.fit(data, steps_per_epoch=4, verbose=0, callbacks=[of_two])
  for one, two in zip(of_one.state.averages, of_two.state.averages, strict=True):
    for value in two_replicas.experimental_local_results(two):
      np.testing.assert_allclose(value, one, atol=2e-4)
  before = weights(shared)
  with of_two.applied():
    assert_same(weights(shared), averages_then := [value.numpy() for value in shared.detector.variables])
    assert not np.array_equal(averages_then[0], before[0])
  assert_same(weights(shared), before)


def test_training_does_not_depend_on_the_averages():
  plain, _ = make()
  fit(plain, [], 4)
  trainer, average = make(decay=.9)
  seen = []

  class Look(tf_keras.callbacks.Callback):
    def on_train_batch_end(self, step, logs=None):
      seen.append(weights(trainer))

  fit(trainer, [average, OnAverages(average, Look(), lambda step: step % 2 == 0)], 4)
  assert_same(weights(trainer), weights(plain))
  assert len(seen) == 2 and not np.array_equal(seen[0][0], seen[1][0])
  assert_same(seen[1], averages(average))


def test_the_exchange_is_undone_exactly_even_after_an_error():
  trainer, average = make(decay=.9)
  fit(trainer, [average], 3)
  raw, averaged = weights(trainer), averages(average)
  with pytest.raises(ZeroDivisionError), average.applied():
    assert_same(weights(trainer), averaged)
    assert_same(averages(average), raw)
    raise ZeroDivisionError
  assert_same(weights(trainer), raw)
  assert_same(averages(average), averaged)


def test_a_resumed_run_has_the_averages_of_an_uninterrupted_one(tmp_path):
  whole, of_whole = make(decay=.9)
  fit(whole, [of_whole], 5)
  first, of_first = make(decay=.9)
  fit(first, [of_first], 2)
  checkpoints = RunCheckpoints(RunFolder(str(tmp_path)))
  checkpoints.save(2, {'detector': first.detector, 'optimizer': first.optimizer, 'ema': of_first.state}, {})
  second, of_second = make(decay=.9)
  second.detector.dense.kernel.assign_add(tf.ones([3, 2]))
  checkpoints.restore({'detector': second.detector, 'optimizer': second.optimizer, 'ema': of_second.state})
  fit(second, [of_second], 3)
  assert_same(averages(of_second), averages(of_whole))
  assert of_second.state.updates.numpy() == 5


def test_averages_that_a_run_did_not_have_start_at_its_weights(tmp_path):
  """run.ema switched on by --allow_changes; where nothing is trained they cannot be had."""
  before, _ = make()
  fit(before, [], 2)
  checkpoints = RunCheckpoints(folder := RunFolder(str(tmp_path)))
  checkpoints.save(2, {'detector': before.detector, 'optimizer': before.optimizer}, {'progress': {'images': 8}})
  trainer, average = make(decay=.9)
  trainer.detector.dense.kernel.assign_add(tf.ones([3, 2]))
  trackables = {'detector': trainer.detector, 'optimizer': trainer.optimizer, 'ema': average.state}
  with pytest.raises(UserError, match="no averages of the weights, .*--gin_param='run.ema = None'"):
    checkpoints.restore(trackables)
  state = loop.restore_or_initialise(types.SimpleNamespace(
    folder=folder, trackables=trackables, checkpoints=checkpoints, averages=average,
    strategy=tf.distribute.get_strategy()))
  assert state['progress'] == {'images': 8} and trainer.optimizer.iterations.numpy() == 2
  assert_same(weights(trainer), weights(before))
  assert_same(averages(average), weights(before))
  assert average.state.updates.numpy() == 0
  with pytest.raises(UserError, match='only in the model: optimizer/'):  # nothing else may be missing
    checkpoints.save(3, {'detector': before.detector}, {})
    checkpoints.restore(trackables, otherwise={'ema': average.restart})


def test_restoring_the_weights_or_their_averages(tmp_path):
  """As export and predict do; with the errors of a run without averages or without a checkpoint."""
  trainer, average = make(decay=.5, warm_up=False)
  checkpoints = RunCheckpoints(RunFolder(str(tmp_path)))
  saved = []
  for step in (2, 4):
    fit(trainer, [average], 2)
    checkpoints.save(step, {'detector': trainer.detector, 'ema': average.state}, {})
    saved.append((weights(trainer), averages(average)))
  fresh, of_fresh = make()
  experiment = types.SimpleNamespace(trainer=fresh, checkpoints=checkpoints, averages=of_fresh,
                                     folder=RunFolder(str(tmp_path)))
  for averaged in (0, 1):
    for step, values in ((None, saved[1]), (2, saved[0])):
      restore(experiment, bool(averaged), step)
      assert_same(weights(fresh), values[averaged])
  experiment.averages = None
  with pytest.raises(UserError, match='--averages.*run.ema is not set'):
    restore(experiment, True)
  experiment.folder = RunFolder(str(tmp_path / 'new'))
  experiment.checkpoints = RunCheckpoints(experiment.folder)
  with pytest.raises(UserError, match='no checkpoint in .*new.*--model_dir'):
    restore(experiment, False)


def test_restart_sets_the_averages_to_the_current_weights():
  trainer, average = make(decay=.9)
  fit(trainer, [average], 2)
  average.restart()
  assert_same(averages(average), weights(trainer))
  assert average.state.updates.numpy() == 0


class Kernel(PeriodicEvaluation):
  """Its only metric is the first weight."""

  main_metric = 'kernel'

  def __init__(self, trainer, run_folder):
    super().__init__(run_folder, every=2, at_end=True)
    self._trainer = trainer

  def evaluate(self, step, extra=None):
    metrics = {'kernel': float(self._trainer.detector.dense.kernel[0, 0])}
    self._run_folder.append_metrics({'kind': 'eval', 'step': step, **(extra or {}), **metrics})
    self._keep(step, metrics)
    return metrics


def test_weights_and_averages_are_evaluated_under_different_names(tmp_path):
  trainer, average = make(decay=.9)
  folder = RunFolder(str(tmp_path))
  of_averages = Kernel(trainer, folder.subfolder(AVERAGES))
  both = EvaluatorWithAverages(Kernel(trainer, folder), of_averages, average)
  record = Record()
  fit(trainer, [average, record, both], 5)
  lines = folder.read_metrics()
  assert [(line['kind'], line['step']) for line in lines] == [
    (kind, step) for step in (2, 4, 5) for kind in ('eval', 'eval/ema')]
  assert lines[-2]['kernel'] == record.values[-1][0][0, 0]
  assert lines[-1]['ema/kernel'] == averages(average)[0][0, 0] != lines[-2]['kernel']
  assert both.last == {'kernel': lines[-2]['kernel'], 'ema/kernel': lines[-1]['ema/kernel']}
  assert both.main_metric == 'kernel' and both.evaluated_step == 5 and both.due(4) and not both.due(5)
  assert both.evaluate(5, {'on_demand': True}) == both.last
  assert folder.read_metrics()[-1]['ema/on_demand'] is True


@pytest.mark.parametrize('decay', [-.1, 1., 2.])
def test_decay_out_of_range(decay):
  with pytest.raises(UserError, match='ExponentialMovingAverage.decay'):
    make(decay=decay)
