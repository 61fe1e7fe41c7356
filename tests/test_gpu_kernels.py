"""Operations of the train, predict and export graphs that no GPU has a kernel for: a step would wait for the host."""

import pytest
import tensorflow as tf

from tests import graph_walk, tiny

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not tf.test.is_built_with_cuda(),
                                                   reason='this TensorFlow has no kernels for GPUs')]
REASONS = {'train': {}, 'predict': {}, 'image': {}, 'files': graph_walk.FILES}


@pytest.fixture(scope='module')
def graphs():
  """For a GPU, which need not exist."""
  with tf.device('/GPU:0'):
    return graph_walk.graphs(tiny.detector(), tiny.batch(2))


def test_the_registry_knows_gpus():
  assert 'GPU' in graph_walk.kernels_of('Conv2D') & graph_walk.kernels_of('NonMaxSuppressionV4')
  assert graph_walk.kernels_of('CombinedNonMaxSuppression') == {'CPU'}


@pytest.mark.parametrize('name', REASONS)
def test_every_operation_has_a_gpu_kernel_or_a_reason(graphs, name):
  found = graph_walk.without_kernel(graphs[name], graph_walk.GPU)
  assert found == set(REASONS[name]), 'give it a kernel, or a reason here; strike off what is not found'
