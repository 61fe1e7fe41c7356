"""On a GPU, if there is one: kernels and a train step give what they give on the CPU."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.ops.group_norm import group_norm
from rethink_tf.training.losses import MaskRCNNLoss
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.trainer import Trainer
from tests import tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(
  not tf.config.list_physical_devices('GPU'), reason='TensorFlow finds no GPU')]
DEVICES = ('/CPU:0', '/GPU:0')


def test_group_norm_forward_and_backward_equal_float64():
  rng = np.random.default_rng(0)
  x, dy = rng.normal(3, 2, (2, 8, 10, 64)), rng.normal(size=(2, 8, 10, 64))
  gamma, beta = rng.normal(1, 0.1, 64), rng.normal(size=64)
  grouped = x.reshape(2, 80, 32, 2)
  mean, variance = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
  normalised = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
  with tf.device('/GPU:0'):
    tensors = [tf.constant(value, tf.float32) for value in (x, gamma, beta)]
    with tf.GradientTape() as tape:
      tape.watch(tensors)
      y = group_norm(*tensors, 32, 1e-5)
    gradients = tape.gradient(y, tensors, output_gradients=tf.constant(dy, tf.float32))
  np.testing.assert_allclose(y, normalised * gamma + beta, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(gradients[1], (dy * normalised).sum((0, 1, 2)), rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(gradients[2], dy.sum((0, 1, 2)), rtol=1e-4, atol=1e-3)


def test_a_train_step_and_detections_equal_those_of_the_cpu():
  batch, results = tiny.batch(2), []
  for device in DEVICES:
    with tf.distribute.OneDeviceStrategy(device).scope():
      tf_keras.utils.set_random_seed(7)
      trainer = Trainer(tiny.detector(), MaskRCNNLoss())
      trainer.compile(SGD(0.05))
      trainer.make_variables(batch)
      detections = trainer.predict_batch(batch)
      losses = trainer.fit(tf.data.Dataset.from_tensors(batch), verbose=0).history
    results.append((losses, detections.scores.numpy(), [v.numpy() for v in trainer.detector.trainable_variables]))
  (cpu, cpu_scores, cpu_weights), (gpu, gpu_scores, gpu_weights) = results
  for name in cpu:
    np.testing.assert_allclose(gpu[name], cpu[name], rtol=1e-3, err_msg=name)
  np.testing.assert_allclose(gpu_scores, cpu_scores, atol=1e-3)
  for a, b in zip(cpu_weights, gpu_weights, strict=True):
    np.testing.assert_allclose(b, a, atol=1e-2 * np.abs(a).max() + 1e-5)
