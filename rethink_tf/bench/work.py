"""Floating-point operations of a step, counted in its graph: convolutions and matrix products."""

from __future__ import annotations

import math

import tensorflow as tf

from rethink_tf.structures import Batch
from rethink_tf.training.trainer import Trainer

_CONVOLUTIONS = {'Conv2D', 'Conv2DBackpropInput', 'Conv2DBackpropFilter'}


def train_step(trainer: Trainer, batch: Batch) -> float:
  """Return GFLOP of a train step, forward and backward, over all micro-batches; a multiply-add counts as two.

  The mask head is counted for the number of RoIs in the first micro-batch.
  """
  images = batch.images.shape[0] // trainer.micro_batches
  micro_batch = tf.nest.map_structure(lambda x: x[:images], batch)
  masks = trainer(micro_batch, training=True).masks
  rois = 0 if masks is None else int(tf.size(masks.weights))
  graph = tf.function(trainer.gradients, autograph=False).get_concrete_function(micro_batch).graph
  return gflop(graph, rois) * trainer.micro_batches


def predict_step(trainer: Trainer, batch: Batch) -> float:
  """Return GFLOP of detection in a batch."""
  detections = trainer.predict_batch(batch)
  rois = int(tf.reduce_max(tf.reduce_sum(tf.cast(detections.classes > 0, tf.int32), 1))) * batch.images.shape[0]
  graph = tf.function(trainer.predict_step, autograph=False).get_concrete_function(batch).graph
  return gflop(graph, rois)


def gflop(graph: tf.Graph, unknown: int) -> float:
  """Return GFLOP of the convolutions and matrix products of a graph. unknown: value of non-static dimensions."""
  return sum(_operation(op, unknown) for op in graph.get_operations()) / 1e9


def _operation(op: tf.Operation, unknown: int) -> float:
  if op.type in _CONVOLUTIONS:
    return _convolution(op, unknown)
  if op.type in ('MatMul', 'BatchMatMulV2'):
    a, out = _shape(op.inputs[0], unknown), _shape(op.outputs[0], unknown)
    adjoint = op.get_attr('transpose_a' if op.type == 'MatMul' else 'adj_x')
    return 2.0 * math.prod(out) * (a[-2] if adjoint else a[-1])
  return 0.0


def _convolution(op: tf.Operation, unknown: int) -> float:
  """In all three directions each output pixel of the forward convolution is combined with the whole kernel once."""
  if op.type == 'Conv2D':
    pixels, kernel = op.outputs[0], op.inputs[1]
  elif op.type == 'Conv2DBackpropInput':
    pixels, kernel = op.inputs[2], op.inputs[1]
  else:
    pixels, kernel = op.inputs[2], op.outputs[0]
  batch, height, width, _ = _shape(pixels, unknown)
  shape = kernel.shape
  if not shape.is_fully_defined():  # the gradient of a filter, whose shape is an argument
    shape = tf.TensorShape(tf.get_static_value(op.inputs[1]))
  return 2.0 * batch * height * width * math.prod(shape.as_list())


def _shape(tensor: tf.Tensor, unknown: int) -> list[int]:
  return [unknown if side is None else side for side in tensor.shape.as_list()]
