"""The train step: micro-batches, replicas, images without objects, precision; every variable trains."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.models import initializers
from rethink_tf.models.keypoints import KeypointHead
from rethink_tf.models.layers import ConvNorm
from rethink_tf.models.norms import group_norm, sync_batch_norm
from rethink_tf.models.rois import RoIPooler
from rethink_tf.training.loss_scaling import LossScaleTrainer
from rethink_tf.training.losses import MaskRCNNLoss
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.trainer import Trainer
from tests import tiny
from tests.tiny import precision


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
  """Weights after one step on four images, two at a time; test_golden.py checks the gradients of masks."""
  trainer = make(four, micro_batches=2, mask_head=None)
  before = weights(trainer)
  history = fit(trainer, four)
  return before, weights(trainer), history


@pytest.mark.slow
def test_variables_that_are_not_trained_keep_their_initial_values(four):
  """A blank image is seen before them; with XLA none is, and the variables are the same."""
  made = [{v.name: v.numpy() for v in make(four, norm=sync_batch_norm, mask_head=None, xla=xla).detector.variables}
          for xla in (False, True)]
  assert list(made[0]) == list(made[1]) and all(np.array_equal(made[0][name], made[1][name]) for name in made[0])
  moving = {name: value for name, value in made[0].items() if 'moving' in name}
  assert moving and all(np.all(value == (0 if 'mean' in name else 1)) for name, value in moving.items())


def test_variables_of_adaptive_roi_align(four):
  """That of Detectron2's detectors, of which there is no portable form."""
  assert make(four, roi_pooler=functools.partial(RoIPooler, sampling_ratio=0, aligned=True), mask_head=None).built


def test_every_variable_trains(one_device):
  before, after, _ = one_device
  unchanged = [name for name in before if np.array_equal(before[name], after[name])]
  assert not unchanged


@pytest.mark.slow
def test_accumulated_gradient_is_the_mean_over_micro_batches(four, one_device):
  trainer = make(four)
  halves = [tf.nest.map_structure(lambda x, i=i: x[2 * i:2 * i + 2], four) for i in range(2)]
  (first, a), (second, b) = (trainer.gradients(half) for half in halves)
  trainer.micro_batches = 2
  losses, accumulated = trainer.accumulated_gradients(four)
  for name in losses:
    np.testing.assert_allclose(losses[name], (first[name] + second[name]) / 2, rtol=1e-5)
  for mean, x, y in zip(accumulated, a, b, strict=True):
    np.testing.assert_allclose(mean, (x + y) / 2, atol=1e-6 + 1e-4 * np.abs(mean).max())


def test_one_and_two_replicas_give_the_same_weights(four, one_device, two_replicas):
  with two_replicas.scope():
    trainer = make(four, micro_batches=1, mask_head=None)
  before, after, history = one_device
  assert largest_difference(weights(trainer), before) == 0  # equal initial weights
  split = fit(trainer, four)
  update = largest_difference(before, after)
  assert largest_difference(weights(trainer), after) < 1e-4 * update
  for name, values in history.items():
    np.testing.assert_allclose(split[name], values, rtol=1e-5)


@pytest.mark.slow
def test_sync_batch_norm_uses_the_global_batch(four, two_replicas):
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


class _SmallNetwork(tf_keras.layers.Layer):
  """A convolution with SyncBatchNorm, whose output is the only one: traced in a second."""

  def __init__(self):
    super().__init__(autocast=False)
    self.layer = ConvNorm(4, 3, sync_batch_norm, initializers.msra)

  def call(self, images, image_sizes, labels=None, training=False):
    return self.layer(tf.cast(images, tf.float32) / 255, training=training)


def test_sync_batch_norm_of_several_replicas_with_accumulated_gradients(two_replicas):
  """Micro-batches of two replicas equal those of one device that hold the images of both."""
  def trained(batch):
    tf_keras.utils.set_random_seed(7)
    trainer = Trainer(_SmallNetwork(), lambda outputs, batch: {'mean': tf.reduce_mean(outputs[..., :2] ** 4)}, 2)
    trainer.compile(SGD(0.05))
    trainer.make_variables(batch)
    return trainer

  pixels = np.random.default_rng(0).integers(0, 255, (8, 16, 16, 3)).astype(np.uint8)
  pixels[4:] //= 2  # so that statistics of one replica are others
  batch = tiny.batch(8)._replace(images=tf.constant(pixels))
  together = tf.nest.map_structure(lambda x: tf.gather(x, [0, 1, 4, 5, 2, 3, 6, 7]), batch)
  whole = trained(together)
  before = [v.numpy() for v in whole.detector.variables]
  losses = fit(whole, together)
  with two_replicas.scope():
    halves = trained(batch)
  split = fit(halves, batch)
  for one, other, initial in zip(whole.detector.variables, halves.detector.variables, before, strict=True):
    assert np.abs(one.numpy() - initial).max() > 1e-6
    np.testing.assert_allclose(other.numpy(), one.numpy(), rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(split['loss/total'], losses['loss/total'], rtol=1e-5)


@pytest.mark.slow
def test_images_without_objects_train_only_the_background():
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_detector_without_masks_has_no_mask_loss(four):
  losses, _ = make(four, mask_head=None).gradients(four)
  assert set(losses) == {'loss/total', 'loss/rpn/objectness', 'loss/rpn/box', 'loss/box/class', 'loss/box/regression'}


@pytest.mark.slow
def test_gradients_repeat_to_the_last_bit():
  """Sums of three gradients once depended on timing, in one step of seven."""
  two = tiny.batch(2)
  trainer = make(two)
  step = tf.function(lambda: trainer.gradients(two)[1], autograph=False)
  first = [gradient.numpy() for gradient in step()]
  for _ in range(60):
    for a, b in zip(first, step(), strict=True):
      np.testing.assert_array_equal(b.numpy(), a)


def make_mixed(batch, policy, **parts):
  with precision(policy):
    scaled = policy == 'mixed_float16'
    trainer = (LossScaleTrainer if scaled else Trainer)(tiny.detector(**parts), MaskRCNNLoss())
    optimizer = SGD(0.05)
    trainer.compile(tf_keras.mixed_precision.LossScaleOptimizer(optimizer) if scaled else optimizer)
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
# Data movement, matrix products and additions of two tensors. Everything else, such as exponentials, logarithms, roots,
# quotients, comparisons, sorting and suppression, must not have a 16-bit input or output.
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
  """Operations in 16 bit that must be in float32: {'type at scope'}."""
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


def slow(*values):
  return pytest.param(*values, marks=pytest.mark.slow, id='-'.join(values))


@pytest.mark.parametrize('flavour, policy', [
  ('plain', 'mixed_float16'), *(slow(flavour, policy) for policy in ('mixed_bfloat16', 'mixed_float16')
                                for flavour in ('cascade', 'keypoints', 'sync_batch_norm')),
  slow('plain', 'mixed_bfloat16')])
def test_exact_operations_are_float32_under_every_policy(flavour, policy):
  """Statistics, losses, box arithmetic, suppression, predictions and the update, forward and backward."""
  batch = tiny.batch(1, keypoints=tiny.KEYPOINTS if flavour == 'keypoints' else 0)
  components = {
    'plain': {}, 'cascade': {'cascade': tiny.cascade()}, 'sync_batch_norm': {'norm': sync_batch_norm},
    'keypoints': {'mask_head': None, 'keypoint_head': KeypointHead(2, 32), 'num_keypoints': tiny.KEYPOINTS}}[flavour]
  trainer = make_mixed(batch, policy, **components)
  graph = tf.function(trainer.train_step, autograph=False).get_concrete_function(batch).graph
  half = [op for op in operations(graph) if op.type.startswith('Conv2D') and op.outputs[0].dtype in HALF]
  assert len(half) > 60  # the convolutions are in 16 bit, in all three directions
  assert not inexact(graph)
  trained = [*trainer.detector.variables, *trainer.optimizer.variables]
  assert {v.dtype for v in trained} <= {tf.float32, tf.int64}


def test_statistics_in_16_bit_are_detected():
  """tf_keras' GroupNormalization computes them in the type of its input; ours does not."""
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
