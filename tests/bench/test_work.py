"""Floating-point operations counted in a graph, against the arithmetic of the layers."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.bench import work
from rethink_tf.training.losses import MaskRCNNLoss
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.trainer import Trainer
from tests import tiny


def gradient_graph(forward, *shapes):
  @tf.function(autograph=False)
  def step(*arguments):
    with tf.GradientTape() as tape:
      tape.watch(arguments)
      y = forward(*arguments)
    return tape.gradient(y, arguments)
  return step.get_concrete_function(*(tf.TensorSpec(shape, tf.float32) for shape in shapes)).graph


def test_a_convolution_costs_three_times_its_forward_pass():
  graph = gradient_graph(lambda x, w: tf.nn.conv2d(x, w, 2, 'SAME') ** 2, [2, 8, 8, 3], [3, 3, 3, 5])
  assert work.gflop(graph, 0) * 1e9 == pytest.approx(3 * 2 * (2 * 4 * 4) * (3 * 3 * 3 * 5))


def test_grouped_and_transposed_convolutions():
  graph = gradient_graph(lambda x, w: tf.nn.conv2d(x, w, 1, 'SAME') ** 2, [1, 4, 4, 8], [3, 3, 2, 8])  # 4 groups
  assert work.gflop(graph, 0) * 1e9 == pytest.approx(3 * 2 * 16 * 3 * 3 * 2 * 8)
  forward = tf.function(lambda x, w: tf.nn.conv2d_transpose(x, w, [1, 8, 8, 5], 2)).get_concrete_function(
    tf.TensorSpec([1, 4, 4, 3]), tf.TensorSpec([2, 2, 5, 3])).graph
  assert work.gflop(forward, 0) * 1e9 == pytest.approx(2 * 16 * 2 * 2 * 5 * 3)


@pytest.mark.parametrize('transpose', [False, True])
def test_matrix_products(transpose):
  shape = [6, 4] if transpose else [4, 6]
  graph = gradient_graph(lambda a, b: tf.matmul(a, b, transpose_a=transpose) ** 2, shape, [6, 5])
  assert work.gflop(graph, 0) * 1e9 == pytest.approx(3 * 2 * 4 * 5 * 6)


def test_dimensions_that_are_not_static_are_given():
  graph = tf.function(lambda a, b: tf.matmul(a, b)).get_concrete_function(
    tf.TensorSpec([None, 6]), tf.TensorSpec([6, 5])).graph
  assert work.gflop(graph, 7) * 1e9 == pytest.approx(2 * 7 * 6 * 5)


@pytest.mark.slow
def test_micro_batches_multiply_the_work_and_the_mask_head_counts_its_rois():
  def counted(micro_batches):
    trainer = Trainer(tiny.detector(), MaskRCNNLoss(), micro_batches)
    trainer.compile(optimizer=SGD(0.01))
    batch = tiny.batch(2)
    trainer.make_variables(batch)
    return trainer, work.train_step(trainer, batch)

  trainer, whole = counted(1)
  _, halves = counted(2)
  # Equal but for the RoIs of the mask head, whose number is rounded up to a multiple of eight.
  assert np.isclose(whole, halves, rtol=0.2) and whole > 0
  batch = tiny.batch(2)
  forward = tf.function(trainer.predict_step, autograph=False).get_concrete_function(batch).graph
  without_masks = work.gflop(forward, 0)
  assert 0 < without_masks < whole / 2  # backward costs twice as much as forward
  assert work.predict_step(trainer, batch) > without_masks
