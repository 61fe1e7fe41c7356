"""The keypoint head: shapes, upsampling, loss and detections."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError
from rethink_tf.models.keypoints import KeypointHead, KeypointPredictor, bilinear
from rethink_tf.ops.heatmaps import heatmap_targets
from rethink_tf.training.losses import MaskRCNNLoss
from tests import tiny

P = tiny.KEYPOINTS


@pytest.fixture(scope='module')
def detector():
  tf_keras.utils.set_random_seed(2)
  detector = tiny.keypoint_detector()
  train(detector, batch())
  return detector


def batch(images=2):
  return tiny.batch(images, keypoints=P)


def train(detector, batch):
  return detector(batch.images, batch.image_sizes, labels=batch, training=True)


def test_the_papers_head():
  head, predictor = KeypointHead(), KeypointPredictor(17)
  shape = predictor(head(tf.zeros([1, 2, 14, 14, 256]))).shape
  assert shape[2:] == (17, 56, 56)
  assert [conv.conv.kernel.shape[-1] for conv in head.convs] == [512] * 8 and all(c.conv.use_bias for c in head.convs)
  assert predictor.deconv.kernel.shape == (4, 4, 17, 512)
  std = np.sqrt(2 / (16 * 512))  # MSRA, with Detectron2's fan-out
  np.testing.assert_allclose(predictor.deconv.kernel.numpy().std(), std, rtol=0.02)


def test_upsampling_is_bilinear():
  maps = tf.random.stateless_normal([1, 28, 28, 3], [1, 2])
  matrix = bilinear(28)
  ours = np.einsum('Yy,nyxp,Xx->nYXp', matrix, maps, matrix)
  np.testing.assert_allclose(ours, tf.image.resize(maps, [56, 56], 'bilinear'), rtol=1e-5, atol=1e-5)


def test_training_outputs(detector):
  inputs = batch()
  outputs = train(detector, inputs)
  keypoints, rois = outputs.keypoints, outputs.boxes[0].rois
  slots = keypoints.weights.shape[1]
  assert keypoints.logits.shape == (2, slots, P, 56, 56) and keypoints.targets.shape == (2, slots, P)
  points = tf.gather(inputs.gt_keypoints, rois.gt_index[:, :slots], batch_dims=1)
  targets, valid = heatmap_targets(points, rois.boxes[:, :slots])
  foreground = rois.classes[:, :slots].numpy() > 0
  np.testing.assert_array_equal(keypoints.weights, valid.numpy() & foreground[..., None])
  np.testing.assert_array_equal(keypoints.targets, targets)
  assert keypoints.weights.numpy()[..., 1:].any() and not keypoints.weights.numpy()[..., 0].any()  # not labelled
  assert outputs.masks is None


def test_inference_outputs(detector):
  inputs = batch()
  detections = detector(inputs.images, inputs.image_sizes).detections
  points, boxes = detections.keypoints.numpy() + [0.5, 0.5, 0], detections.boxes.numpy()
  assert points.shape == (2, 100, P, 3) and detections.masks is None
  real = detections.classes.numpy() > 0
  assert real.any() and not detections.keypoints.numpy()[~real].any()
  inside = (points[..., :2] >= boxes[:, :, None, :2]) & (points[..., :2] <= np.maximum(
    boxes[:, :, None, 2:], boxes[:, :, None, :2] + 1))
  assert inside[real].all() and ((points[..., 2][real] > 0) & (points[..., 2][real] <= 1)).all()


@pytest.mark.slow
def test_xla_operations_give_the_same_results(detector):
  compiled, inputs = tiny.keypoint_detector(xla=True), batch()
  train(compiled, inputs)
  for a, b in zip(compiled.variables, detector.variables, strict=True):
    a.assign(b)
  ours, theirs = (each(inputs.images, inputs.image_sizes).detections for each in (detector, compiled))
  for x, y in zip(ours, theirs, strict=True):
    if x is not None:
      np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)
  ours, theirs = (train(each, inputs) for each in (detector, compiled))
  losses = [MaskRCNNLoss(min_keypoints=0)(each, inputs)['keypoint'].numpy() for each in (ours, theirs)]
  np.testing.assert_allclose(*losses, rtol=1e-4)
  assert losses[0] > 1


@pytest.mark.slow
def test_without_keypoints_loss_and_gradient_are_zero(detector):
  inputs = batch(1)
  inputs = inputs._replace(gt_keypoints=tf.zeros_like(inputs.gt_keypoints))
  with tf.GradientTape() as tape:
    loss = MaskRCNNLoss()(train(detector, inputs), inputs)['keypoint']
  assert loss == 0
  gradients = tape.gradient(loss, detector.keypoint_head.trainable_variables)
  assert not any(gradient.numpy().any() for gradient in gradients)


@pytest.mark.slow
def test_with_a_cascade():
  """With RoIs of the last stage."""
  detector, inputs = tiny.keypoint_detector(cascade=tiny.cascade()), batch()
  outputs = train(detector, inputs)
  assert len(outputs.boxes) == 3 and outputs.keypoints.logits.shape[2:] == (P, 56, 56)
  assert detector(inputs.images, inputs.image_sizes).detections.keypoints.shape == (2, 100, P, 3)


def test_data_without_keypoints():
  with pytest.raises(UserError, match='the data has no keypoints'):
    tiny.detector(keypoint_head=KeypointHead())


def test_equations_survive_a_converter_that_ignores_case():
  """tf2onnx writes them in lower case, where 'Yy' would be one axis."""
  predictor = KeypointPredictor(17)
  graph = tf.function(predictor).get_concrete_function(tf.TensorSpec([1, None, 14, 14, 8])).graph.as_graph_def()
  equations = [node.attr['equation'].s for node in graph.node if node.op == 'Einsum']
  assert equations and all(equation == equation.lower() for equation in equations)
