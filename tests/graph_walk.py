"""Operations of graphs that a kind of device has no kernel for, by TensorFlow's registry.

The wheel lists its kernels for GPUs and those of XLA on every machine, except for TPUs.
"""

from collections.abc import Collection

import tensorflow as tf
from tensorflow.python.framework import kernels  # TensorFlow's registry of kernels has no public API

from rethink_tf.data.augment import Resize
from rethink_tf.data.categories import Category
from rethink_tf.export.saved_model import Serving
from rethink_tf.training.losses import MaskRCNNLoss
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.trainer import Trainer

GPU, XLA = ({'GPU'}, {'DEFAULT'}), ({'XLA_CPU_JIT', 'XLA_GPU_JIT'},)  # one of these sets of kernels is enough
BY_THE_RUNTIME = {'Placeholder': 'an argument of the graph', 'NoOp': 'only an order', 'IdentityN': 'forwarded'}
FILES = {'DecodeJpeg': 'decoding of image files', 'DecodePng': 'decoding of image files',
         'Substr': 'recognises their format', 'StringJoin': 'names the bad rows',
         'TensorSliceDataset': 'the files of a batch', 'MapDataset': 'the files of a batch',
         'IgnoreErrorsDataset': 'the files of a batch', 'ReduceDataset': 'the files of a batch'}


def kernels_of(operation: str) -> set[str]:
  """Return the types of devices for which an operation has a kernel."""
  return {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(operation).kernel}


def operations(graph: tf.Graph) -> set[str]:
  """Return the types of all operations of a graph and of the functions that it calls."""
  graph = graph.as_graph_def()
  return {node.op for nodes in (graph.node, *(f.node_def for f in graph.library.function)) for node in nodes}


def without_kernel(graph: tf.Graph, wanted: Collection[set[str]]) -> set[str]:
  """Return the types of operations of a graph that have none of the wanted sets of kernels."""
  found = operations(graph)
  assert len(found) > 50
  return {op for op in found - set(BY_THE_RUNTIME) if not any(one <= kernels_of(op) for one in wanted)}


def graphs(detector, batch) -> dict[str, tf.Graph]:
  """Return the graphs of a training step, of a prediction and of a SavedModel's two signatures; nothing runs."""
  trainer = Trainer(detector, MaskRCNNLoss())
  trainer.compile(SGD(0.01))
  trainer.make_variables(batch)

  def train(inputs):
    losses, gradients = trainer.gradients(inputs)
    trainer.optimizer.apply_gradients(zip(gradients, trainer.detector.trainable_variables, strict=True))
    return losses

  serving = Serving(detector, Resize((64,), 64), [Category(k, str(k)) for k in (1, 2, 3)], 0.05)
  return {'train': tf.function(train, autograph=False).get_concrete_function(batch).graph,
          'predict': tf.function(trainer.predict_step, autograph=False).get_concrete_function(batch).graph,
          'image': serving.image.get_concrete_function().graph,
          'files': serving.encoded.get_concrete_function().graph}
