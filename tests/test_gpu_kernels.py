"""Operations of the train, predict and export graphs that no GPU has a kernel for, by TensorFlow's registry.

The wheel lists its kernels for GPUs on every machine. Each of these operations makes a step wait for the host.
"""

import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels  # TensorFlow's registry of kernels has no public API

from rethink_tf.data.augment import Resize
from rethink_tf.data.categories import Category
from rethink_tf.export.saved_model import Serving
from rethink_tf.training.losses import MaskRCNNLoss
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.trainer import Trainer
from tests import tiny

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not tf.test.is_built_with_cuda(),
                                                   reason='this TensorFlow has no kernels for GPUs')]
BY_THE_RUNTIME = {'Placeholder': 'an argument of the graph', 'NoOp': 'only an order', 'IdentityN': 'forwarded'}
FILES = {'DecodeJpeg': 'decoding of image files', 'Substr': 'recognises their format',
         'TensorSliceDataset': 'the files of a batch', 'MapDataset': 'the files of a batch',
         'IgnoreErrorsDataset': 'the files of a batch', 'ReduceDataset': 'the files of a batch'}
REASONS = {'train': {}, 'predict': {}, 'image': {}, 'files': FILES}


def without_kernel(graph):
  """Types of operations of a graph and its functions with neither a kernel for GPUs nor one for all devices."""
  graph = graph.as_graph_def()
  types = {node.op for nodes in (graph.node, *(f.node_def for f in graph.library.function)) for node in nodes}
  assert len(types) > 50
  return {op for op in types - set(BY_THE_RUNTIME) if not {'GPU', 'DEFAULT'} & {
    kernel.device_type for kernel in kernels.get_registered_kernels_for_op(op).kernel}}


@pytest.fixture(scope='module')
def graphs():
  """For a GPU, which need not exist: nothing runs."""
  batch = tiny.batch(2)
  trainer = Trainer(tiny.detector(), MaskRCNNLoss())
  trainer.compile(SGD(0.01))
  trainer.make_variables(batch)

  def train(inputs):
    losses, gradients = trainer.gradients(inputs)
    trainer.optimizer.apply_gradients(zip(gradients, trainer.detector.trainable_variables, strict=True))
    return losses

  serving = Serving(trainer.detector, Resize((64,), 64), [Category(k, str(k)) for k in (1, 2, 3)], 0.05)
  with tf.device('/GPU:0'):
    return {'train': tf.function(train, autograph=False).get_concrete_function(batch).graph,
            'predict': tf.function(trainer.predict_step, autograph=False).get_concrete_function(batch).graph,
            'image': serving.image.get_concrete_function().graph,
            'files': serving.encoded.get_concrete_function().graph}


def test_the_registry_knows_gpus():
  def on(op):
    return {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(op).kernel}
  assert 'GPU' in on('Conv2D') and 'GPU' in on('NonMaxSuppressionV4') and on('CombinedNonMaxSuppression') == {'CPU'}


@pytest.mark.parametrize('name', REASONS)
def test_every_operation_has_a_gpu_kernel_or_a_reason(graphs, name):
  found = without_kernel(graphs[name])
  assert found == set(REASONS[name]), 'give it a kernel, or a reason here; strike off what is not found'
