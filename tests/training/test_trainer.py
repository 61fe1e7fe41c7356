"""The train step: micro-batches, replicas, empty images, and that every variable trains."""

import contextlib
import functools
import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError
from rethink_tf.models.keypoints import KeypointHead
from rethink_tf.models.norms import group_norm, sync_batch_norm
from rethink_tf.storage.checkpoints import RunCheckpoints
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.structures import ClassifierOutputs, LabelledImages
from rethink_tf.training.callbacks import StopOnNonFinite
from rethink_tf.training.losses import ClassificationLoss, MaskRCNNLoss
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.schedules import KTimesSchedule
from rethink_tf.training.trainer import Trainer
from tests import tiny


def make(batch, micro_batches=1, **parts):
  tf_keras.utils.set_random_seed(7)
  trainer = Trainer(tiny.detector(**parts), MaskRCNNLoss(), micro_batches)
  trainer.compile(SGD(0.05, weight_decay=0.0))
  trainer.make_variables(batch)
  return trainer


def fit(trainer, batch, steps=1):
  data = tf.data.Dataset.from_tensors(batch).repeat()
  return trainer.fit(data, steps_per_epoch=steps, verbose=0).history


def weights(trainer):
  return {v.name: v.numpy() for v in trainer.detector.trainable_variables}


def largest_difference(a, b):
  assert a.keys() == b.keys()
  return max(np.abs(a[name] - b[name]).max() for name in a)


@pytest.fixture(scope='module')
def four():
  return tiny.batch(4)


@pytest.fixture(scope='module')
def one_device(four):
  """Weights after one step on four images, two at a time."""
  trainer = make(four, micro_batches=2)
  before = weights(trainer)
  history = fit(trainer, four)
  return before, weights(trainer), history


def test_every_variable_trains(one_device):
  before, after, _ = one_device
  still = [name for name in before if np.array_equal(before[name], after[name])]
  assert not still


def test_accumulated_gradient_is_the_mean_over_micro_batches(four, one_device):
  trainer = make(four)
  halves = [tf.nest.map_structure(lambda x, i=i: x[2 * i:2 * i + 2], four) for i in range(2)]
  (first, a), (second, b) = (trainer.gradients(half) for half in halves)
  trainer.micro_batches = 2
  losses, accumulated = trainer.accumulate(four)
  for name in losses:
    np.testing.assert_allclose(losses[name], (first[name] + second[name]) / 2, rtol=1e-5)
  for mean, x, y in zip(accumulated, a, b, strict=True):
    np.testing.assert_allclose(mean, (x + y) / 2, atol=1e-6 + 1e-4 * np.abs(mean).max())


def test_one_and_two_replicas_give_the_same_weights(four, one_device, two_replicas):
  with two_replicas.scope():
    trainer = make(four, micro_batches=1)
  before, after, history = one_device
  assert largest_difference(weights(trainer), before) == 0  # the same start
  split = fit(trainer, four)
  moved = largest_difference(before, after)
  assert largest_difference(weights(trainer), after) < 1e-4 * moved
  for name, values in history.items():
    np.testing.assert_allclose(split[name], values, rtol=1e-5)


@pytest.mark.slow
def test_sync_batch_norm_sees_the_batch_of_all_replicas(four, two_replicas):
  whole = make(four, norm=sync_batch_norm, mask_head=None)
  before = weights(whole)
  fit(whole, four)
  with two_replicas.scope():
    halves = make(four, norm=sync_batch_norm, mask_head=None)
  fit(halves, four)
  moving = [v for v in whole.detector.non_trainable_variables if 'backbone' in v.name and 'moving_mean' in v.name]
  other = {v.name: v for v in halves.detector.non_trainable_variables}
  assert moving
  for variable in moving:
    np.testing.assert_allclose(other[variable.name].numpy(), variable.numpy(), atol=1e-5, rtol=1e-4)
  assert largest_difference(weights(halves), weights(whole)) < 0.05 * largest_difference(before, weights(whole))


def test_images_without_objects_train_the_background_only():
  empty = tiny.batch(2, objects=0)
  trainer = make(empty)
  losses, gradients = trainer.gradients(empty)
  assert all(np.isfinite(value) for value in losses.values())
  assert losses['loss/mask'] == losses['loss/box/regression'] == losses['loss/rpn/box'] == 0
  assert losses['loss/rpn/objectness'] > 0 and losses['loss/box/class'] > 0
  for variable, gradient in zip(trainer.detector.trainable_variables, gradients, strict=True):
    assert np.isfinite(gradient).all(), variable.name
    if 'mask_head' in variable.name or 'mask_predictor' in variable.name:
      assert not np.any(gradient), variable.name


def test_prediction_is_the_same_on_one_and_two_replicas(four, two_replicas):
  alone = make(four)
  with two_replicas.scope():
    shared = make(four)
  for a, b in zip(alone.predict_batch(four), shared.predict_batch(four), strict=True):
    if a is None:
      assert b is None  # keypoints
    else:
      np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_prediction_without_masks_on_two_replicas(four, two_replicas):
  with two_replicas.scope():
    shared = make(four, mask_head=None)
  detections = shared.predict_batch(four)
  assert detections.masks is None and detections.boxes.shape[0] == len(detections.scores) == 4


def test_a_detector_without_masks_has_no_mask_loss(four):
  losses, _ = make(four, mask_head=None).gradients(four)
  assert set(losses) == {'loss/total', 'loss/rpn/objectness', 'loss/rpn/box', 'loss/box/class', 'loss/box/regression'}


def test_gradients_repeat_to_the_last_bit():
  """Sums of three gradients did not, in one step of seven: which came first was a matter of timing."""
  two = tiny.batch(2)
  trainer = make(two)
  step = tf.function(lambda: trainer.gradients(two)[1], autograph=False)
  first = [gradient.numpy() for gradient in step()]
  for _ in range(60):
    for a, b in zip(first, step(), strict=True):
      np.testing.assert_array_equal(b.numpy(), a)


@contextlib.contextmanager
def precision(policy):
  tf_keras.mixed_precision.set_global_policy(policy)
  try:
    yield
  finally:
    tf_keras.mixed_precision.set_global_policy('float32')


def make_mixed(batch, policy, **parts):
  with precision(policy):
    trainer = Trainer(tiny.detector(**parts), MaskRCNNLoss())
    optimizer = SGD(0.05)
    trainer.compile(tf_keras.mixed_precision.LossScaleOptimizer(optimizer) if policy == 'mixed_float16' else optimizer)
    trainer.make_variables(batch)
  return trainer


def operations(graph):
  """All operations of a graph and of the functions it calls."""
  for op in graph.get_operations():
    yield op
    for name in op.node_def.attr:
      value = op.node_def.attr[name]
      for function in [value.func, *value.list.func]:
        if function.name and graph._is_function(function.name):
          yield from operations(graph._get_function(function.name).graph)


HALF = (tf.float16, tf.bfloat16)
# What moves numbers, multiplies matrices or adds two tensors. Exponentials, logarithms, roots, quotients, comparisons,
# sorting, suppression and everything else must not meet a 16-bit number.
ALLOWED_IN_HALF = {
  'Conv2D', 'Conv2DBackpropInput', 'Conv2DBackpropFilter', 'MatMul', 'BiasAdd', 'BiasAddGrad', 'Relu', 'ReluGrad',
  'IsFinite', 'MaxPool', 'MaxPoolGrad', 'AddV2', 'AddN', 'Sum', 'Cast', 'Reshape', 'Pad', 'Slice', 'StridedSlice',
  'StridedSliceGrad', 'Identity', 'IdentityN', 'BroadcastTo', 'ConcatV2', 'Const', 'Fill', 'ZerosLike', 'Shape',
  'ShapeN', 'Size', 'Rank', 'Pack', 'ExpandDims', 'Squeeze', 'Split', 'Placeholder', 'PartitionedCall',
  'StatefulPartitionedCall',
}
EXACT_SCOPES = {'losses', 'proposals', 'samples', 'objectness', 'deltas', 'box_predictor', 'mask_predictor',
                'keypoint_predictor', 'SGD'}

def inexact(graph):
  """Operations that a 16-bit number must not meet but does: {'type at scope'}."""
  found = set()
  for op in operations(graph):
    if any(x.dtype in HALF for x in (*op.inputs, *op.outputs)):
      scopes = set(op.name.split('/')) & EXACT_SCOPES
      entry = op.type == 'Cast' or (op.type in ('Identity', 'Reshape', 'PartitionedCall') and not scopes)
      fused = op.type.startswith('FusedBatchNorm') and op.get_attr('U') == tf.float32  # type of the statistics
      third = op.type == 'Mul' and 'scale_gradient' in op.name  # of the gradient of features, between cascade stages
      if not (op.type in ALLOWED_IN_HALF or fused or third) or (scopes and not entry):
        found.add(f'{op.type} at {op.name}')
  return found


def graph_of_step(trainer, batch):
  return tf.function(trainer.train_step, autograph=False).get_concrete_function(batch).graph


def slow(*values):
  return pytest.param(*values, marks=pytest.mark.slow, id='-'.join(values))


@pytest.mark.parametrize('flavour, policy', [
  ('plain', 'mixed_float16'), *(slow(flavour, policy) for policy in ('mixed_bfloat16', 'mixed_float16')
                                for flavour in ('cascade', 'keypoints', 'sync_batch_norm')),
  slow('plain', 'mixed_bfloat16')])
def test_what_must_be_exact_is_float32_under_every_policy(flavour, policy):
  """Statistics, losses, box arithmetic, suppression, predictions and the update, forward and backward."""
  batch = tiny.batch(1, keypoints=tiny.KEYPOINTS if flavour == 'keypoints' else 0)
  parts = {
    'plain': {}, 'cascade': {'cascade': tiny.cascade()}, 'sync_batch_norm': {'norm': sync_batch_norm},
    'keypoints': {'mask_head': None, 'keypoint_head': KeypointHead(2, 32), 'num_keypoints': tiny.KEYPOINTS}}[flavour]
  trainer = make_mixed(batch, policy, **parts)
  graph = tf.function(trainer.train_step, autograph=False).get_concrete_function(batch).graph
  half = [op for op in operations(graph) if op.type.startswith('Conv2D') and op.outputs[0].dtype in HALF]
  assert len(half) > 60  # the convolutions themselves are in 16 bit, in all three directions
  assert not inexact(graph)
  trained = [*trainer.detector.variables, *trainer.optimizer.variables]
  assert {v.dtype for v in trained} <= {tf.float32, tf.int64}


def test_statistics_in_16_bit_would_be_found():
  """tf_keras' own GroupNormalization computes them in the input's type; ours, beside it, does not."""
  x = tf.TensorSpec([1, 8, 8, 32], tf.bfloat16)
  with precision('mixed_bfloat16'):
    norms = tf_keras.layers.GroupNormalization(32), group_norm('norm')

  def step(norm, x):
    with tf.GradientTape() as tape:
      y = norm(x)
    return tape.gradient(y, norm.trainable_variables)

  theirs, ours = (inexact(tf.function(functools.partial(step, norm), autograph=False).get_concrete_function(x).graph)
                  for norm in norms)
  assert theirs and not ours


class Toy(tf_keras.layers.Layer):
  """The least that can overflow: a convolution and a norm in 16 bit, and a prediction in float32."""

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


def toy(scale=2.0**15, micro_batches=1, policy='mixed_float16', loss=toy_loss, **scaling):
  tf_keras.utils.set_random_seed(3)
  with precision(policy):
    trainer = Trainer(Toy(), loss, micro_batches)
    optimizer = SGD(SCHEDULE)
    if policy == 'mixed_float16':
      optimizer = tf_keras.mixed_precision.LossScaleOptimizer(optimizer, initial_scale=scale, **scaling)
    trainer.compile(optimizer)
    trainer.make_variables(toy_batch(0))
  return trainer


def toy_fit(trainer, ids):
  """Trains on one batch an id, with the watchdog; returns the logs of each step."""
  logs = []
  facts = lambda step: types.SimpleNamespace(image_ids=[ids[step]])  # noqa: E731
  note = tf_keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, found: logs.append(dict(found)))
  batches = [toy_batch(first_id) for first_id in ids]
  data = tf.data.Dataset.from_tensor_slices(tf.nest.map_structure(lambda *parts: tf.stack(parts), *batches))
  trainer.fit(data, verbose=0, callbacks=[note, StopOnNonFinite(facts)])
  return logs


def state(trainer):
  """All that training has changed."""
  optimizer = trainer.optimizer
  return [v.numpy() for v in [*trainer.detector.variables, *optimizer.variables, optimizer.loss_scale,
                              optimizer.dynamic_counter]]


def moved(trainer):
  return [v.numpy() for v in [*trainer.detector.trainable_variables, *trainer.optimizer.inner_optimizer.velocities]]


def test_a_step_that_overflows_is_skipped_and_counts():
  trainer = toy()
  toy_fit(trainer, [0])
  before = moved(trainer)
  trainer.reset_metrics()
  logs, = toy_fit(trainer, [STEEP])
  for a, b in zip(before, moved(trainer), strict=True):
    np.testing.assert_array_equal(b, a)  # no decay and no momentum either
  assert trainer.optimizer.iterations.numpy() == 2 and trainer.optimizer.loss_scale.numpy() == 2.0**14
  assert np.isfinite(logs['loss/total']) and not trainer.overflowed  # the loss itself was sound, and is reported
  assert logs['skipped_steps'] == 1 and logs['loss_scale'] == 2.0**14
  trainer.reset_metrics()
  logs, = toy_fit(trainer, [1])
  np.testing.assert_allclose(trainer.optimizer.learning_rate.numpy(), SCHEDULE(2))  # of the third iteration
  assert logs['skipped_steps'] == 0 and trainer.optimizer.iterations.numpy() == 3
  assert any((a != b).any() for a, b in zip(before, moved(trainer), strict=True))


def test_a_step_that_doubles_the_loss_scale_is_not_skipped():
  trainer = toy(dynamic_growth_steps=2)
  logs = toy_fit(trainer, [0, 1, 2, 3])
  assert trainer.optimizer.loss_scale.numpy() == 2.0**17 and logs[-1]['skipped_steps'] == 0


def test_a_float16_overflow_in_the_network_neither_stops_training_nor_stays():
  trainer = toy()
  kernel = trainer.detector.conv.kernel
  sound = kernel.numpy()
  kernel.assign(np.full_like(sound, 1e5))  # finite, but no float16
  logs, = toy_fit(trainer, [0])  # the watchdog looks on
  assert np.isnan(logs['loss/total']) and trainer.overflowed and logs['skipped_steps'] == 1
  assert all(np.isfinite(v.numpy()).all() for v in trainer.detector.variables)  # moving statistics among them
  kernel.assign(sound)
  logs = toy_fit(trainer, [1, 2])
  assert np.isfinite(logs[-1]['loss/total']) and not trainer.overflowed
  alone = toy()
  alone.optimizer.iterations.assign(1)
  np.testing.assert_allclose([x['loss/total'] for x in logs], [x['loss/total'] for x in toy_fit(alone, [1, 2])])


@pytest.mark.parametrize('cause', ['network', 'gradient'])
def test_an_overflow_that_does_not_end_stops_training(cause):
  """At a loss scale of 1 it is the network's, not the scale's."""
  trainer = toy(scale=8.0)
  if cause == 'network':
    trainer.detector.conv.kernel.assign(np.full(trainer.detector.conv.kernel.shape, 1e5))
  with pytest.raises(UserError, match='loss/total.* not finite at step 4'):
    toy_fit(trainer, [STEEP if cause == 'gradient' else 0] * 9)


@pytest.mark.parametrize('cause', ['loss', 'weights'])
def test_what_is_really_not_a_number_stops_training_at_once(cause):
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
    losses, gradients = trainer.accumulate(toy_batch(0))
    assert {g.dtype for g in gradients} == {tf.float32}
    results.append([losses['loss/total'], *gradients])
  scaled, little, exact = results
  for a, b, c in zip(scaled, little, exact, strict=True):
    np.testing.assert_allclose(a, c, atol=2e-3 * np.abs(exact[1]).max() + 1e-3)
    np.testing.assert_allclose(a, b, atol=2e-3 * np.abs(exact[1]).max() + 1e-3)


def test_one_micro_batch_that_overflows_skips_the_whole_step():
  trainer = toy(micro_batches=2)
  before = moved(trainer)
  logs, = toy_fit(trainer, [STEEP])  # the image is in the first half
  for a, b in zip(before, moved(trainer), strict=True):
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
  before = moved(trainer)
  pixels, sizes, ids, classes = toy_batch(STEEP)
  data = tf.data.Dataset.from_tensors(LabelledImages(pixels, sizes, tf.reverse(ids, [0]), classes)).repeat(2)
  history = trainer.fit(data, verbose=0).history
  for a, b in zip(before, moved(trainer), strict=True):
    np.testing.assert_array_equal(b, a)
  assert trainer.optimizer.iterations.numpy() == 2 and trainer.optimizer.loss_scale.numpy() == 2.0**13
  assert history['skipped_steps'] == [2] and np.isfinite(history['loss/total']).all() and not trainer.overflowed
  toy_fit(trainer, [0])
  assert any((a != b).any() for a, b in zip(before, moved(trainer), strict=True))


def test_a_step_that_does_not_fit_in_memory_says_what_to_change():
  def hungry(outputs, batch):
    elements = tf.cast(batch.image_ids[0] + 1, tf.int64) * 2**46  # 256 TiB, not known before the step
    return {'class': toy_loss(outputs, batch)['class'] + tf.reduce_sum(tf.fill([elements], outputs.logits[0, 0]))}

  trainer = toy(policy='float32', loss=hungry)
  with pytest.raises(UserError, match='OOM when allocating') as error:
    toy_fit(trainer, [0])
  line = error.value.line()
  assert 'run.images_per_device' in line and 'gin_configs/runtime/recompute.gin' in line and len(str(line)) < 600
  assert isinstance(error.value.__cause__, tf.errors.ResourceExhaustedError)


def test_a_full_disk_is_no_lack_of_memory():
  def write(*_):
    raise tf.errors.ResourceExhaustedError(None, None, 'metrics.jsonl; No space left on device')

  with pytest.raises(tf.errors.ResourceExhaustedError, match='No space left'):
    toy(policy='float32').fit(tf.data.Dataset.from_tensors(toy_batch(0)), verbose=0,
                              callbacks=[tf_keras.callbacks.LambdaCallback(on_train_batch_end=write)])
