"""Cascade R-CNN: one stage equals the plain head; RoIs of further stages, gradients, losses and scores."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError
from rethink_tf.models.cascade import Cascade, refine, scale_gradient
from rethink_tf.ops import boxes as box_ops
from rethink_tf.structures import BoxOutputs, RoISamples
from rethink_tf.training.losses import MaskRCNNLoss
from tests import tiny

WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))


def make(**settings):
  tf_keras.utils.set_random_seed(5)
  return tiny.detector(cascade=tiny.cascade(**settings))


def train(detector, batch):
  return detector(batch.images, batch.image_sizes, labels=batch, training=True)


@functools.cache
def trained():
  detector, batch = make(), tiny.batch(2)
  return detector, batch, train(detector, batch)


def copy(source, target):
  """Copy variables by name."""
  named = {v.name: v for v in source.variables}
  for v in target.variables:
    v.assign(named[v.name])


def test_one_stage_equals_the_plain_head():
  """With the same class-agnostic weights, by the cascade and without it."""
  one = make(ious=(), box_weights=(), gradient_scales=(1.0,))
  plain = make(ious=(), box_weights=(), gradient_scales=(1.0,))
  batch = tiny.batch(2)
  train(one, batch)
  train(plain, batch)
  copy(one, plain)
  plain.cascade = None
  for ours, theirs in ((train(one, batch), train(plain, batch)),
                       (one(batch.images, batch.image_sizes), plain(batch.images, batch.image_sizes))):
    assert len(ours.boxes) == 1
    for x, y in zip(tf.nest.flatten(ours), tf.nest.flatten(theirs), strict=True):
      if x is not None:
        np.testing.assert_allclose(tf.cast(x, tf.float32), tf.cast(y, tf.float32), rtol=1e-6, atol=1e-6)


def test_shapes_and_names_of_losses():
  detector, batch, outputs = trained()
  assert [stage.box_deltas.shape for stage in outputs.boxes] == [(2, 16, 1, 4)] * 3
  assert set(MaskRCNNLoss()(outputs, batch)) == {
    'rpn/objectness', 'rpn/box', 'mask',
    *(f'box/{loss}/stage{stage}' for loss in ('class', 'regression') for stage in (1, 2, 3))}
  detections = detector(batch.images, batch.image_sizes).detections
  assert detections.boxes.shape == (2, 100, 4) and detections.masks.shape == (2, 100, 28, 28)
  names = {v.name.split('/')[1] for v in detector.variables}
  assert {f'{layer}{stage}' for layer in ('box_head', 'box_predictor') for stage in ('', 2, 3)} < names


def test_each_stage_trains_on_the_boxes_of_the_previous_one():
  _, batch, outputs = trained()
  gt = batch.gt_boxes.numpy()
  for stage, iou in ((1, 0.6), (2, 0.7)):
    before, rois = outputs.boxes[stage - 1], outputs.boxes[stage].rois
    refined = refine(before, before.rois.boxes, WEIGHTS[stage - 1], batch.image_sizes).numpy()
    for i in range(2):
      used = rois.weights[i].numpy() > 0
      ours, theirs = rois.boxes[i].numpy()[used], refined[i][before.rois.weights[i].numpy() > 0]
      assert len(ours) == len(theirs)  # all, in another order
      np.testing.assert_allclose(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)], rtol=1e-5, atol=1e-4)
      best = box_ops.iou(tf.constant(ours), tf.constant(gt[i])).numpy().max(1)
      np.testing.assert_array_equal(rois.classes[i].numpy()[used] > 0, best >= iou)
      assert (np.diff((rois.classes[i].numpy() > 0).astype(int)) <= 0).all()  # foreground first
    matched = tf.gather(batch.gt_boxes, rois.gt_index, batch_dims=1)
    foreground = (rois.classes > 0)[..., None]
    back = box_ops.decode(rois.target_deltas, rois.boxes, WEIGHTS[stage])
    np.testing.assert_allclose(tf.where(foreground, back, 0.0), tf.where(foreground, matched, 0.0), atol=1e-2)


def samples(batch, boxes, deltas):
  """Outputs of a stage on the given RoIs."""
  boxes = tf.constant(boxes, tf.float32)
  n = boxes.shape[1]
  rois = RoISamples(boxes, tf.zeros([1, n], tf.int32), tf.zeros([1, n], tf.int32), tf.ones([1, n]), tf.zeros([1, n, 4]))
  return BoxOutputs(tf.zeros([1, n, 4]), tf.constant(deltas, tf.float32)[:, :, None], rois)


def test_boxes_are_clipped_and_empty_ones_unused():
  batch = tiny.batch(1)
  outputs = samples(batch, [[[10, 10, 30, 30], [40, 40, 60, 60]]], [[[0, 0, 0, 0], [500, 0, 0, 0]]])
  rois = Cascade(3, functools.partial(lambda name: tf_keras.layers.Layer(name=name))).next_samples(
    outputs, WEIGHTS[0], 1, batch.image_sizes, batch)
  np.testing.assert_array_equal(rois.weights, [[1, 0]])  # the second lies outside the image
  np.testing.assert_allclose(rois.boxes[0, 0], [10, 10, 30, 30], atol=1e-4)


def test_ground_truth_is_appended_once_per_stage():
  batch = tiny.batch(1)
  truth = batch.gt_boxes[0].numpy()  # three objects in four slots
  cascade = Cascade(3, functools.partial(lambda name: tf_keras.layers.Layer(name=name)), append_ground_truth=True)
  boxes = np.concatenate([truth[:3], [[10, 10, 30, 30]]])[None]
  first = cascade.next_samples(samples(batch, boxes, np.full([1, 4, 4], 0.3)), WEIGHTS[0], 1, batch.image_sizes, batch)
  assert first.boxes.shape == (1, 8, 4) and first.weights.numpy().sum() == 4  # three appended, and one proposal
  used = first.boxes[0].numpy()[first.weights[0].numpy() > 0]
  for box in truth[:3]:
    assert (np.abs(used - box).max(1) < 1e-6).sum() == 1
  outputs = BoxOutputs(tf.zeros([1, 8, 4]), tf.fill([1, 8, 1, 4], 0.3), first)
  second = cascade.next_samples(outputs, WEIGHTS[1], 2, batch.image_sizes, batch)
  assert second.boxes.shape == (1, 8, 4) and second.weights.numpy().sum() == 4


def test_scaled_gradients():
  x = tf.Variable([1.0, 2.0])
  with tf.GradientTape() as tape:
    y = tf.reduce_sum(tf.square(scale_gradient(x, 0.25)))
  assert y == 5
  np.testing.assert_allclose(tape.gradient(y, x), [0.5, 1.0])


def gradients(detector, batch, stage):
  """Gradients of one stage's class loss: of its head, of the pyramid, and of the first head."""
  with tf.GradientTape() as tape:
    outputs = train(detector, batch)
    loss = MaskRCNNLoss()(outputs, batch)[f'box/class/stage{stage}']
  head = detector.box_head if stage == 1 else detector.cascade.heads[stage - 2]
  kernels = head.fcs[0].kernel, detector.fpn.outputs[0].conv.kernel, detector.box_head.fcs[0].kernel
  found = tape.gradient(loss, kernels)
  return [None if g is None else g.numpy() for g in found]


@pytest.mark.parametrize('stage, scale', [pytest.param(2, 0.5, marks=pytest.mark.slow), (3, 0.25)])
def test_the_scale_of_a_stage_affects_only_the_shared_features(stage, scale):
  detector, batch, _ = trained()
  scaled = gradients(detector, batch, stage)
  configured, detector.cascade.gradient_scales = detector.cascade.gradient_scales, (1.0, 1.0, 1.0)
  plain = gradients(detector, batch, stage)
  detector.cascade.gradient_scales = configured
  np.testing.assert_allclose(scaled[0], plain[0], rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(scaled[1], scale * plain[1], rtol=1e-3, atol=1e-7)
  assert scaled[2] is None  # a stage's boxes have no gradient


def test_stage_weights_scale_losses():
  _, batch, outputs = trained()
  plain, weighted = (MaskRCNNLoss(stage_weights=weights)(outputs, batch) for weights in (None, (1, 0.5, 0.25)))
  for stage, weight in ((1, 1), (2, 0.5), (3, 0.25)):
    for loss in ('class', 'regression'):
      name = f'box/{loss}/stage{stage}'
      np.testing.assert_allclose(weighted[name], weight * plain[name], rtol=1e-6)
  assert weighted['mask'] == plain['mask']


@pytest.mark.parametrize('score_rois', ['own', 'last'])
def test_scores_are_means_over_the_stages(score_rois):
  detector, batch, _ = trained()
  detector.cascade.score_rois = score_rois
  outputs = detector(batch.images, batch.image_sizes)
  detector.cascade.score_rois = 'own'
  mean = np.mean([tf.nn.softmax(stage.class_logits) for stage in outputs.boxes], axis=0)[..., 1:]
  found = outputs.detections
  for i in range(2):
    kept = found.classes[i].numpy() > 0
    assert kept.any()
    candidates = mean[i][:, found.classes[i].numpy()[kept] - 1]  # [N, kept]
    assert (np.abs(candidates - found.scores[i].numpy()[kept]).min(0) < 1e-6).all()


def test_masks_train_on_the_configured_stage():
  detector, batch, outputs = trained()
  slots = outputs.masks.weights.shape[1]
  np.testing.assert_array_equal(outputs.masks.weights, (outputs.boxes[2].rois.classes[:, :slots].numpy() > 0))
  detector.cascade.mask_stage = 'first'
  outputs = train(detector, batch)
  detector.cascade.mask_stage = 'last'
  np.testing.assert_array_equal(outputs.masks.weights,
                                outputs.boxes[0].rois.classes[:, :outputs.masks.weights.shape[1]].numpy() > 0)


@pytest.mark.parametrize('settings, message', [
  (dict(ious=(0.6,)), '1 ious, 2 box_weights'), (dict(score_rois='all'), "score_rois = 'all'"),
  (dict(mask_stage='middle'), "mask_stage = 'middle'")])
def test_invalid_arguments(settings, message):
  with pytest.raises(UserError, match=message):
    Cascade(3, **settings)
