"""Memory of a training step by a rule, read off its graph: nothing is allocated and nothing computed.

Fixed: every variable, a gradient and a velocity for each that trains, and the copies of kernels in 16 bit under a mixed
policy. Per image: the tensors of the forward pass that the backward pass reads, each once, which is what is alive when
the backward pass begins. Not in it: what exists
for a moment only (the largest pair of gradients, convolution workspaces), the framework, and the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import tensorflow as tf

from rethink_tf.bench import complexity

# Operations whose result is their input's memory, and those whose result is no activation.
_ALIASES = {'Identity', 'IdentityN', 'StopGradient', 'PreventGradient', 'Reshape', 'Squeeze', 'ExpandDims',
            'EnsureShape'}
_FREE = {'Placeholder', 'Const', 'ReadVariableOp', 'VarHandleOp'}
_WORKSPACE = ('FusedBatchNormV3', 5)  # cuDNN's, which alone knows its size
_CALLS = {'PartitionedCall', 'StatefulPartitionedCall'}


class Memory(NamedTuple):
  """Bytes."""

  parameters: int  # how many train, moving statistics and frozen layers apart
  fixed: int
  activations: int


class Work(NamedTuple):
  """Multiply-adds of convolutions and matrix products (complexity.py counts no gradients of kernels)."""

  forward: int
  all: int  # forward, and backward as far as they are counted: what recomputation adds shows here


def of_training(make: Callable[[], Any], losses: Callable[[Any, Any], dict[str, tf.Tensor]], batch: Any) -> Memory:
  """What a train step on a batch of the given tf.TensorSpecs (static shapes) needs, under the current policy.

  make: builds model(images, image_sizes, labels, training).

  Raises:
    ValueError: the shape of a tensor that is kept is not static.
  """
  return of_step(make, losses, batch)[0]


def of_step(make: Callable[[], Any], losses: Callable[[Any, Any], dict[str, tf.Tensor]], batch: Any
            ) -> tuple[Memory, Work]:
  """The same, with the work that it does."""
  forward, work = [], []

  def step(model, batch):
    outputs = model(batch.images, batch.image_sizes, labels=batch, training=True)
    total = tf.add_n(list(losses(outputs, batch).values()))
    graph = tf.compat.v1.get_default_graph()
    forward.extend(graph.get_operations())
    work.append(complexity.multiply_adds_of(graph))
    return [gradient for gradient in tf.gradients(total, model.trainable_variables) if gradient is not None]

  model, graph = traced(make, step, batch)
  every, trained = (sum(map(_bytes, variables)) for variables in (model.variables, model.trainable_variables))
  activations, copies = kept(graph, forward)
  memory = Memory(trained // 4, every + 2 * trained + copies, activations)
  return memory, Work(work[0], complexity.multiply_adds_of(graph))


def traced(make: Callable[[], Any], call: Callable[[Any, Any], Any], batch: Any) -> tuple[Any, tf.Graph]:
  """The model that `make()` builds, its variables without values, and the graph of call(model, batch)."""
  # There is no public way to a variable without a value. TensorFlow's plain graphs have such, but compare tensors by
  # identity.
  from tensorflow.python.ops.resource_variable_ops import UninitializedVariable

  def create(_, **settings):
    names = ('name', 'shape', 'dtype', 'trainable', 'synchronization', 'aggregation')
    return UninitializedVariable(**{name: settings[name] for name in names if name in settings})

  with tf.variable_creator_scope(create):
    model = make()
    function = tf.function(lambda *fields: call(model, type(batch)(*fields)), autograph=False)
    return model, function.get_concrete_function(*batch).graph


def kept(graph: tf.Graph, forward: Iterable[tf.Operation]) -> tuple[int, int]:
  """Bytes of the tensors that `forward` operations make and the graph's other operations read: results, and variables
  in another precision."""
  names = {op.name for op in forward}
  read = (tensor for op in graph.get_operations() if op.name not in names for tensor in op.inputs
          if tensor.op.name in names)
  sources = {source.name: source for source in map(_source, read)}
  results = [source for source in sources.values()
             if source.op.type not in _FREE and source.dtype not in (tf.resource, tf.variant)
             and (source.op.type, source.value_index) != _WORKSPACE]
  copies = [source for source in results if _copied(source.op) is not None]
  # One a variable: TensorFlow merges casts of the same, such as those of a head that runs on every level.
  unlike = {_copied(source.op): source for source in copies}
  return sum(map(_bytes, results)) - sum(map(_bytes, copies)), sum(map(_bytes, unlike.values()))


def _copied(op: tf.Operation) -> str | None:
  """The variable that an operation copies to another precision."""
  read = _source(op.inputs[0]).op if op.type == 'Cast' else op
  return read.inputs[0].name if op.type == 'Cast' and read.type == 'ReadVariableOp' else None


def _source(tensor: tf.Tensor) -> tf.Tensor:
  """The tensor whose memory this one is."""
  while True:
    op = tensor.op
    if op.type in _ALIASES:
      tensor = op.inputs[tensor.value_index if op.type == 'IdentityN' else 0]
    elif op.type in _CALLS:
      # There is no public way from a call to its graph.
      inner = op.graph._get_function(op.get_attr('f').name).graph
      found = _source(inner.outputs[tensor.value_index])
      places = [i for i, given in enumerate(inner.inputs) if given is found]
      if not places:
        return found if found.op.type in _FREE else tensor
      tensor = op.inputs[places[0]]
    else:
      return tensor


def _bytes(x: tf.Tensor | tf.Variable) -> int:
  if not x.shape.is_fully_defined():
    raise ValueError(f'{x.name}: the shape {x.shape} is not static, so its memory cannot be counted')
  return math.prod(x.shape.as_list()) * x.dtype.size
