"""The choice of portable operations: within its context only, and only for the thread that made it."""

import threading

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.models.norms import group_norm
from rethink_tf.models.rois import RoIPooler
from rethink_tf.ops import portable
from rethink_tf.ops.roi_align import flatten


def test_the_choice_ends_with_its_context_and_thread():
  found = []
  with pytest.raises(ZeroDivisionError), portable.operations():
    thread = threading.Thread(target=lambda: found.append(portable.chosen()))
    thread.start()
    thread.join()
    found.append(portable.chosen())
    raise ZeroDivisionError
  assert found == [False, True] and not portable.chosen()


def operations_of(build, *shapes):
  function = tf.function(build, [tf.TensorSpec(shape) for shape in shapes], autograph=False)
  graph = function.get_concrete_function().graph.as_graph_def()
  return {node.op for node in [*graph.node, *(node for one in graph.library.function for node in one.node_def)]}


def test_parts_build_portable_graphs_inside():
  norm, pooler = group_norm('norm', groups=2), RoIPooler(2)
  norm.build(tf.TensorShape([1, 8, 8, 4]))

  def pool(feature, boxes):
    return pooler(flatten([feature]), boxes, False)

  shapes = (norm, [1, 8, 8, 4]), (pool, [1, 8, 8, 4], [1, 3, 4])
  plain = set().union(*(operations_of(*one) for one in shapes))
  assert {'PartitionedCall', 'SparseMatrixMatMul'} <= plain | {name.removeprefix('Stateful') for name in plain}
  with portable.operations():
    found = set().union(*(operations_of(*one) for one in shapes))
  assert not any('PartitionedCall' in name or 'Sparse' in name for name in found), found
  x = np.random.default_rng(0).normal(size=[1, 8, 8, 4]).astype(np.float32)
  expected = norm(x)
  with portable.operations():
    np.testing.assert_allclose(norm(x), expected, atol=1e-5)
