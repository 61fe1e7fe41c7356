"""Memory of a training step, counted in its graph: nothing is allocated or computed.

Fixed: all variables, a gradient and a velocity for each trainable one, and the 16-bit copies of kernels under a mixed
policy. Per image: the tensors of the forward pass that the backward pass reads, each once: those alive when the
backward pass begins. Not counted: short-lived tensors (the largest pair of gradients, convolution workspaces), the
framework, and the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras

from rethink_tf.bench import costs

# Operations whose output shares the memory of their input, and those whose output is not an activation.
_ALIASES = {'Identity', 'IdentityN', 'StopGradient', 'PreventGradient', 'Reshape', 'Squeeze', 'ExpandDims',
            'EnsureShape'}
_FREE = {'Placeholder', 'Const', 'ReadVariableOp', 'VarHandleOp'}
_WORKSPACE = ('FusedBatchNormV3', 5)  # cuDNN's, of unknown size
_CALLS = {'PartitionedCall', 'StatefulPartitionedCall'}

MakeModel = Callable[[], tf_keras.layers.Layer]
Losses = Callable[[Any, Any], dict[str, tf.Tensor]]  # (outputs, batch)


class Memory(NamedTuple):
  """Bytes."""

  parameters: int  # number of trainable ones, without moving statistics and frozen layers
  fixed: int
  activations: int


class Work(NamedTuple):
  """Multiply-adds of convolutions and matrix products, without gradients of kernels (costs.py)."""

  forward: int
  all: int  # forward and backward; includes what recomputation adds


def of_training(make: MakeModel, losses: Losses, batch: NamedTuple) -> Memory:
  """Return the memory of a train step on a batch of tf.TensorSpecs (static shapes) under the current policy.

  make: builds model(images, image_sizes, labels, training).

  Raises:
    ValueError: the shape of a counted tensor is not static.
  """
  return of_step(make, losses, batch)[0]


def of_step(make: MakeModel, losses: Losses, batch: NamedTuple) -> tuple[Memory, Work]:
  """Return the memory of a train step as `of_training`, and its work."""
  forward: list[tf.Operation] = []
  work: list[int] = []

  def step(model: tf_keras.layers.Layer, batch: Any) -> list[tf.Tensor]:
    outputs = model(batch.images, batch.image_sizes, labels=batch, training=True)
    total = tf.add_n(list(losses(outputs, batch).values()))
    graph = tf.compat.v1.get_default_graph()
    forward.extend(graph.get_operations())
    work.append(costs.multiply_adds_of(graph))
    return [gradient for gradient in tf.gradients(total, model.trainable_variables) if gradient is not None]

  model, graph = traced(make, step, batch)
  every, trained = (sum(map(_bytes, variables)) for variables in (model.variables, model.trainable_variables))
  activations, copies = kept(graph, forward)
  memory = Memory(trained // 4, every + 2 * trained + copies, activations)
  return memory, Work(work[0], costs.multiply_adds_of(graph))


def traced(make: MakeModel, call: Callable[[tf_keras.layers.Layer, Any], Any], batch: NamedTuple
           ) -> tuple[tf_keras.layers.Layer, tf.Graph]:
  """Return the model that `make()` builds, with variables without values, and the graph of call(model, batch)."""
  # Private API: variables without values exist publicly only in tf.Graph, where tensors compare by identity.
  from tensorflow.python.ops.resource_variable_ops import UninitializedVariable

  def create(_: Callable[..., tf.Variable], **settings: Any) -> tf.Variable:
    names = ('name', 'shape', 'dtype', 'trainable', 'synchronization', 'aggregation')
    return UninitializedVariable(**{name: settings[name] for name in names if name in settings})

  with tf.variable_creator_scope(create):
    model = make()
    function = tf.function(lambda *fields: call(model, type(batch)(*fields)), autograph=False)
    return model, function.get_concrete_function(*batch).graph


def kept(graph: tf.Graph, forward: Iterable[tf.Operation]) -> tuple[int, int]:
  """Return bytes of the outputs of `forward` operations that other operations of the graph read.

  Two numbers: of results, and of copies of variables in another precision.
  """
  names = {op.name for op in forward}
  read = (tensor for op in graph.get_operations() if op.name not in names for tensor in op.inputs
          if tensor.op.name in names)
  sources = {source.name: source for source in map(_source, read)}
  results = [source for source in sources.values()
             if source.op.type not in _FREE and source.dtype not in (tf.resource, tf.variant)
             and (source.op.type, source.value_index) != _WORKSPACE]
  copies = [source for source in results if _copied(source.op) is not None]
  # One per variable: TensorFlow merges equal casts, such as those of a head that runs on every level.
  unique = {_copied(source.op): source for source in copies}
  return sum(map(_bytes, results)) - sum(map(_bytes, copies)), sum(map(_bytes, unique.values()))


def _copied(op: tf.Operation) -> str | None:
  """Return the name of the variable that an operation casts to another precision, or None."""
  read = _source(op.inputs[0]).op if op.type == 'Cast' else op
  return read.inputs[0].name if op.type == 'Cast' and read.type == 'ReadVariableOp' else None


def _source(tensor: tf.Tensor) -> tf.Tensor:
  """Return the tensor whose memory this one shares."""
  while True:
    op = tensor.op
    if op.type in _ALIASES:
      tensor = op.inputs[tensor.value_index if op.type == 'IdentityN' else 0]
    elif op.type in _CALLS:
      # Private API: there is no public way from a call to its graph.
      inner = op.graph._get_function(op.get_attr('f').name).graph
      found = _source(inner.outputs[tensor.value_index])
      positions = [i for i, argument in enumerate(inner.inputs) if argument is found]
      if not positions:
        return found if found.op.type in _FREE else tensor
      tensor = op.inputs[positions[0]]
    else:
      return tensor


def _bytes(x: tf.Tensor | tf.Variable) -> int:
  if not x.shape.is_fully_defined():
    raise ValueError(f'{x.name}: the shape {x.shape} is not static, so its memory cannot be counted')
  return math.prod(x.shape.as_list()) * x.dtype.size
