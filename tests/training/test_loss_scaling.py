"""float16: steps with overflowing gradients are skipped, divergence stops training, and a resumed run is equal."""

import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError
from rethink_tf.models.norms import sync_batch_norm
from rethink_tf.storage.checkpoints import RunCheckpoints
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.structures import ClassifierOutputs, LabelledImages
from rethink_tf.training.callbacks import StopOnNonFinite
from rethink_tf.training.loss_scaling import LossScaleTrainer
from rethink_tf.training.losses import ClassificationLoss
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.schedules import KTimesSchedule
from rethink_tf.training.trainer import Trainer
from tests.tiny import precision


class Toy(tf_keras.layers.Layer):
  """The smallest network that can overflow: a convolution and a norm in 16 bit, and a prediction in float32."""

  def __init__(self):
    super().__init__(autocast=False)
    self.conv = tf_keras.layers.Conv2D(8, 3, name='conv')
    self.norm = sync_batch_norm('norm')
    self.classes = tf_keras.layers.Dense(3, dtype='float32', name='classes')

  def call(self, images, image_sizes, labels=None, training=False):
    x = self.norm(self.conv(tf.cast(images, tf.float32) / 255.0), training=training)
    return ClassifierOutputs({'C2': x}, self.classes(tf.reduce_mean(tf.cast(x, tf.float32), [1, 2])))


STEEP, UNDEFINED = 99, 97  # image ids: a gradient that no float16 holds, and a loss that is not a number


def toy_loss(outputs, batch):
  logits = outputs.logits
  steep = tf.reduce_any(batch.image_ids == STEEP)
  nothing = tf.reduce_sum(logits) - tf.stop_gradient(tf.reduce_sum(logits))
  undefined = tf.reduce_any(batch.image_ids == UNDEFINED)
  loss = ClassificationLoss()(outputs, batch)['class'] + tf.where(steep, 1e25, 0.0) * nothing
  return {'class': tf.where(undefined, float('nan'), loss)}


def toy_batch(first_id, images=4):
  pixels = np.random.default_rng(first_id).integers(0, 255, (images, 8, 8, 3))
  ids = np.array([first_id, *range(1, images)])
  return LabelledImages(tf.constant(pixels, tf.uint8), tf.fill([images, 2], 8.0), tf.constant(ids),
                        tf.constant(ids[:, None] % 3, tf.int32))


SCHEDULE = KTimesSchedule(boundaries=(2, 4), total=30, warmup_steps=0, base_rate=0.1)


def toy(scale=2.0**15, micro_batches=1, policy='mixed_float16', **scaling):
  tf_keras.utils.set_random_seed(3)
  with precision(policy):
    scaled = policy == 'mixed_float16'
    trainer = (LossScaleTrainer if scaled else Trainer)(Toy(), toy_loss, micro_batches)
    optimizer = SGD(SCHEDULE)
    if scaled:
      optimizer = tf_keras.mixed_precision.LossScaleOptimizer(optimizer, initial_scale=scale, **scaling)
    trainer.compile(optimizer)
    trainer.make_variables(toy_batch(0))
  return trainer


def toy_fit(trainer, ids):
  """Train on one batch per id with StopOnNonFinite; return the logs of each step."""
  logs = []
  facts = lambda step: types.SimpleNamespace(image_ids=[ids[step]])  # noqa: E731
  record = tf_keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, found: logs.append(dict(found)))
  batches = [toy_batch(first_id) for first_id in ids]
  data = tf.data.Dataset.from_tensor_slices(tf.nest.map_structure(lambda *x: tf.stack(x), *batches))
  trainer.fit(data, verbose=0, callbacks=[record, StopOnNonFinite(facts)])
  return logs


def state(trainer):
  """All variables of a training."""
  optimizer = trainer.optimizer
  return [v.numpy() for v in [*trainer.detector.variables, *optimizer.variables, optimizer.loss_scale,
                              optimizer.dynamic_counter]]


def weights_and_velocities(trainer):
  return [v.numpy() for v in [*trainer.detector.trainable_variables, *trainer.optimizer.inner_optimizer.velocities]]


def test_an_overflowing_step_is_skipped_and_counted():
  trainer = toy()
  toy_fit(trainer, [0])
  before = weights_and_velocities(trainer)
  trainer.reset_metrics()
  logs, = toy_fit(trainer, [STEEP])
  for a, b in zip(before, weights_and_velocities(trainer), strict=True):
    np.testing.assert_array_equal(b, a)  # neither decay nor momentum
  assert trainer.optimizer.iterations.numpy() == 2 and trainer.optimizer.loss_scale.numpy() == 2.0**14
  assert np.isfinite(logs['loss/total']) and not trainer.overflowed  # the loss itself is finite, and is reported
  assert logs['skipped_steps'] == 1 and logs['loss_scale'] == 2.0**14
  trainer.reset_metrics()
  logs, = toy_fit(trainer, [1])
  np.testing.assert_allclose(trainer.optimizer.learning_rate.numpy(), SCHEDULE(2))  # of the third iteration
  assert logs['skipped_steps'] == 0 and trainer.optimizer.iterations.numpy() == 3
  assert any((a != b).any() for a, b in zip(before, weights_and_velocities(trainer), strict=True))


def test_a_step_that_doubles_the_loss_scale_is_not_skipped():
  trainer = toy(dynamic_growth_steps=2)
  logs = toy_fit(trainer, [0, 1, 2, 3])
  assert trainer.optimizer.loss_scale.numpy() == 2.0**17 and logs[-1]['skipped_steps'] == 0


def test_a_float16_overflow_in_the_network_does_not_stop_training():
  trainer = toy()
  kernel = trainer.detector.conv.kernel
  initial = kernel.numpy()
  kernel.assign(np.full_like(initial, 1e5))  # finite, but beyond float16
  logs, = toy_fit(trainer, [0])  # under StopOnNonFinite
  assert np.isnan(logs['loss/total']) and trainer.overflowed and logs['skipped_steps'] == 1
  assert all(np.isfinite(v.numpy()).all() for v in trainer.detector.variables)  # including moving statistics
  kernel.assign(initial)
  logs = toy_fit(trainer, [1, 2])
  assert np.isfinite(logs[-1]['loss/total']) and not trainer.overflowed
  alone = toy()
  alone.optimizer.iterations.assign(1)
  np.testing.assert_allclose([x['loss/total'] for x in logs], [x['loss/total'] for x in toy_fit(alone, [1, 2])])


@pytest.mark.parametrize('cause', ['network', 'gradient'])
def test_a_persistent_overflow_stops_training(cause):
  """At a loss scale of 1 a smaller scale cannot help."""
  trainer = toy(scale=8.0)
  if cause == 'network':
    trainer.detector.conv.kernel.assign(np.full(trainer.detector.conv.kernel.shape, 1e5))
  with pytest.raises(UserError, match='loss/total.* not finite at step 4'):
    toy_fit(trainer, [STEEP if cause == 'gradient' else 0] * 9)


@pytest.mark.parametrize('cause', ['loss', 'weights'])
def test_divergence_stops_training_at_once(cause):
  trainer = toy()
  if cause == 'weights':
    trainer.detector.conv.kernel.assign(np.full(trainer.detector.conv.kernel.shape, np.nan))
  with pytest.raises(UserError, match=r'not finite at step [12], image ids \d'):
    toy_fit(trainer, [0, UNDEFINED, 1])
  assert trainer.optimizer.iterations.numpy() == (2 if cause == 'loss' else 1)


def test_gradients_of_micro_batches_are_unscaled_once():
  results = []
  for scale, micro_batches, policy in ((2.0**15, 2, 'mixed_float16'), (2.0**3, 2, 'mixed_float16'), (0, 2, 'float32')):
    trainer = toy(scale, micro_batches, policy)
    losses, gradients = trainer.accumulated_gradients(toy_batch(0))
    gradients = trainer.unscaled(gradients)
    assert {g.dtype for g in gradients} == {tf.float32}
    results.append([losses['loss/total'], *gradients])
  scaled, little, exact = results
  for a, b, c in zip(scaled, little, exact, strict=True):
    np.testing.assert_allclose(a, c, atol=2e-3 * np.abs(exact[1]).max() + 1e-3)
    np.testing.assert_allclose(a, b, atol=2e-3 * np.abs(exact[1]).max() + 1e-3)


def test_an_overflow_in_one_micro_batch_skips_the_whole_step():
  trainer = toy(micro_batches=2)
  before = weights_and_velocities(trainer)
  logs, = toy_fit(trainer, [STEEP])  # the image is in the first half
  for a, b in zip(before, weights_and_velocities(trainer), strict=True):
    np.testing.assert_array_equal(b, a)
  assert logs['skipped_steps'] == 1 and trainer.optimizer.iterations.numpy() == 1


def test_a_run_with_skipped_steps_is_resumed_exactly(tmp_path):
  ids = [0, STEEP, 1, STEEP, 2, 3]
  whole = toy()
  toy_fit(whole, ids)
  checkpoints = RunCheckpoints(RunFolder(str(tmp_path)))
  half = toy()
  toy_fit(half, ids[:3])
  assert checkpoints.save(3, {'detector': half.detector, 'optimizer': half.optimizer}, {})
  resumed = toy(scale=2.0)
  checkpoints.restore({'detector': resumed.detector, 'optimizer': resumed.optimizer})
  assert resumed.optimizer.loss_scale.numpy() == 2.0**14 and resumed.optimizer.dynamic_counter.numpy() == 1
  assert resumed.optimizer.iterations.numpy() == 3
  toy_fit(resumed, ids[3:])
  for a, b in zip(state(whole), state(resumed), strict=True):
    np.testing.assert_array_equal(b, a)


def test_an_overflow_on_one_replica_skips_the_step_on_both(two_replicas):
  with two_replicas.scope():
    trainer = toy()
  before = weights_and_velocities(trainer)
  pixels, sizes, ids, classes = toy_batch(STEEP)
  data = tf.data.Dataset.from_tensors(LabelledImages(pixels, sizes, tf.reverse(ids, [0]), classes)).repeat(2)
  history = trainer.fit(data, verbose=0).history
  for a, b in zip(before, weights_and_velocities(trainer), strict=True):
    np.testing.assert_array_equal(b, a)
  assert trainer.optimizer.iterations.numpy() == 2 and trainer.optimizer.loss_scale.numpy() == 2.0**13
  assert history['skipped_steps'] == [2] and np.isfinite(history['loss/total']).all() and not trainer.overflowed
  toy_fit(trainer, [0])
  assert any((a != b).any() for a, b in zip(before, weights_and_velocities(trainer), strict=True))
