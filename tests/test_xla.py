"""Train and predict steps for TPUs: compiled as a whole, for every padded shape, without calls to the host."""

import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.data.buckets import bucket_shapes
from rethink_tf.models.heads import MaskHead
from rethink_tf.models.mask_rcnn import MaskRCNN
from rethink_tf.training.losses import MaskRCNNLoss
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.trainer import Trainer
from tests import graph_walk, tiny

SHAPES = [tuple(shape) for shape in bucket_shapes(160, 267).tolist()]  # as many as 800/1333 has, a fifth as large
REAL_SHAPES = [tuple(shape) for shape in bucket_shapes(800, 1333).tolist()]
# Operations that call Python, and those without a kernel in XLA.
FORBIDDEN = re.compile(
  'PyFunc|Numpy|Print|SparseMatrix|SparseTensor|CombinedNonMax|CropAndResize|DynamicStitch|DynamicPartition|'
  'HostCompute|XlaSend|XlaRecv|Outfeed|Infeed|Assert|Where$|Unique')
# Operations without an XLA kernel, which run before or after what is compiled.
HOST = {'train': {}, 'predict': {}, 'image': {}, 'files': graph_walk.FILES}


def batch(padded_shape, side=160, keypoints=0):
  """An image without padding, with objects in its upper left corner."""
  height, width = padded_shape
  pixels = np.random.default_rng([height, width]).integers(0, 255, (1, height, width, 3))
  return tiny.batch(1, side=side, keypoints=keypoints)._replace(
    images=tf.constant(pixels, tf.uint8), image_sizes=tf.constant([[height, width]], tf.float32))


def make(detector, inputs):
  trainer = Trainer(detector, MaskRCNNLoss())
  trainer.compile(SGD(0.01))
  trainer.make_variables(inputs)
  return trainer


DETECTORS = {
  'plain': lambda: tiny.detector(xla=True),
  'cascade': lambda: tiny.detector(xla=True, cascade=tiny.cascade(append_ground_truth=True, score_rois='last')),
  'keypoints': lambda: tiny.keypoint_detector(xla=True),
}


def tiny_trainer(inputs, kind='plain'):
  tf_keras.utils.set_random_seed(7)
  return make(DETECTORS[kind](), inputs)


def steps(trainer, jit=True):
  """One step of training (forward, losses, gradients, SGD) and one of prediction."""
  def train(inputs):
    losses, gradients = trainer.gradients(inputs)
    trainer.optimizer.apply_gradients(zip(gradients, trainer.detector.trainable_variables, strict=True))
    return losses

  return {'train': tf.function(train, autograph=False, jit_compile=jit),
          'predict': tf.function(trainer.predict_step, autograph=False, jit_compile=jit)}


def operations(function, inputs):
  """Types of all operations of a traced step, nested functions included."""
  graph = function.get_concrete_function(inputs).graph.as_graph_def()
  return {node.op for nodes in (graph.node, *(f.node_def for f in graph.library.function)) for node in nodes}


@pytest.fixture(scope='module')
def trainer():
  return tiny_trainer(batch(SHAPES[0]))


def test_there_are_as_many_shapes_as_at_full_size():
  assert len(SHAPES) == len(REAL_SHAPES) == 7


@pytest.mark.slow
@pytest.mark.parametrize('padded_shape', [
  *SHAPES[:1], *(pytest.param(shape, marks=pytest.mark.slow) for shape in SHAPES[1:])], ids=str)
def test_no_operation_needs_the_host(trainer, padded_shape):
  inputs = batch(padded_shape)
  for name, step in steps(trainer).items():
    found = operations(step, inputs)
    assert {'Conv2D', 'TopKV2'} <= found, name
    assert not [op for op in found if FORBIDDEN.search(op)], name


@pytest.fixture(scope='module')
def graphs():
  tf.function(lambda x: x + 1.0, jit_compile=True)(tf.constant(0.0))  # registers XLA's kernels
  return graph_walk.graphs(tiny.detector(xla=True), batch(SHAPES[0]))


@pytest.mark.slow
@pytest.mark.parametrize('name', HOST)
def test_every_operation_has_an_xla_kernel_or_a_reason(graphs, name):
  compiled = graph_walk.kernels_of('Conv2D')
  assert compiled >= {'XLA_CPU_JIT', 'XLA_GPU_JIT'} and not any(
    kernel.startswith('XLA_') for op in ('CombinedNonMaxSuppression', 'CropAndResize')
    for kernel in graph_walk.kernels_of(op))
  found = graph_walk.without_kernel(graphs[name], graph_walk.XLA)
  assert found == set(HOST[name]), 'give it a kernel, or a reason here; strike off what is not found'


@pytest.mark.slow
def test_convolutions_are_bfloat16_except_for_predictions(bfloat16):
  inputs = batch(SHAPES[0])
  trainer = tiny_trainer(inputs)
  assert all(variable.dtype == tf.float32 for variable in trainer.detector.variables)
  predictions = re.compile('rpn_head/Conv2D|box_predictor/(classes|deltas)/|mask_predictor/conv/')
  found = {}
  for name, step in steps(trainer).items():
    graph = step.get_concrete_function(inputs).graph.as_graph_def()
    nodes = [node for nodes in (graph.node, *(f.node_def for f in graph.library.function)) for node in nodes]
    convolutions = [node for node in nodes if node.op == 'Conv2D']
    found[name] = {dtype: [node.name for node in convolutions if node.attr['T'].type == dtype.as_datatype_enum]
                   for dtype in (tf.float32, tf.bfloat16)}
    # Statistics of norms, losses and scores of boxes are float32; gradients of bfloat16 tensors are summed in bfloat16.
    precise = {'Sum', 'Mean', 'Exp', 'Log1p', 'SquaredDifference', 'Rsqrt', 'TopKV2', 'SoftmaxCrossEntropyWithLogits'}
    rough = [f'{node.op} {node.name}' for node in nodes if node.op in precise and 'gradient_tape' not in node.name
             and node.attr['T'].type == tf.bfloat16.as_datatype_enum]
    assert not rough, (name, rough)
  assert all(predictions.search(node) for node in found['predict'][tf.float32])
  assert len(found['predict'][tf.bfloat16]) > 2 * len(found['predict'][tf.float32])
  assert len(found['train'][tf.float32]) == len(found['predict'][tf.float32])


@pytest.mark.slow
@pytest.mark.parametrize('replicas, steps_per_execution', [
  (1, 1), pytest.param(1, 2, marks=pytest.mark.slow), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_fit_traces_every_padded_shape_with_its_static_size(two_replicas, replicas, steps_per_execution):
  shapes, padded_shapes, expected = [], [(64, 96), (96, 64), (64, 96), (64, 96)], {(64, 96), (96, 64)}
  batches = [tf.nest.map_structure(lambda x: tf.concat([x] * replicas, 0), batch(shape, 64)) for shape in padded_shapes]
  spec = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), batches[0])
  spec = spec._replace(images=tf.TensorSpec([replicas, None, None, 3], tf.uint8))
  data = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=spec)
  strategy = two_replicas if replicas == 2 else tf.distribute.get_strategy()
  tf_keras.utils.set_random_seed(7)
  with strategy.scope():
    trainer = Trainer(tiny.detector(xla=True), MaskRCNNLoss())
    trainer.compile(SGD(0.01), steps_per_execution=steps_per_execution)
    trainer.make_variables(spec)
  inner = trainer.gradients
  trainer.gradients = lambda inputs: (shapes.append(tuple(inputs.images.shape)), inner(inputs))[1]
  history = trainer.fit(data, steps_per_epoch=4, verbose=0).history
  assert {shape[1:3] for shape in shapes} == expected and {shape[0] for shape in shapes} == {1}
  assert len(shapes) == replicas * len(expected)
  assert int(trainer.optimizer.iterations.numpy()) == 4
  assert all(np.isfinite(values).all() for values in history.values())


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['keypoints', 'cascade'])
def test_no_operation_of_further_heads_needs_the_host(kind):
  inputs = batch(SHAPES[0], keypoints=tiny.KEYPOINTS)
  for name, step in steps(tiny_trainer(inputs, kind)).items():
    assert not [op for op in operations(step, inputs) if FORBIDDEN.search(op)], name


def check_compiled(padded_shape, kind='plain'):
  """Each compiled step gives the same results as the graph without compilation."""
  inputs = batch(padded_shape, keypoints=tiny.KEYPOINTS)
  results = []
  for jit in (True, False):
    trainer = tiny_trainer(inputs, kind)
    both = steps(trainer, jit)
    detections, losses = both['predict'](inputs), both['train'](inputs)
    results.append((losses, detections, [v.numpy() for v in trainer.detector.trainable_variables]))
  compiled, plain = results
  for name, loss in plain[0].items():
    np.testing.assert_allclose(compiled[0][name], loss, rtol=1e-4, atol=1e-6, err_msg=name)
  np.testing.assert_array_equal(compiled[1].classes, plain[1].classes)
  for a, b in zip(tf.nest.flatten(compiled[1]), tf.nest.flatten(plain[1]), strict=True):
    if b is None:
      continue  # not predicted by this detector
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
  for a, b in zip(compiled[2], plain[2], strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * max(np.abs(b).max(), 1e-2))


@pytest.mark.slow
def test_compiled_steps_give_the_same_results():
  check_compiled(SHAPES[-1])


@pytest.mark.slow
@pytest.mark.parametrize('padded_shape', SHAPES[:-1], ids=str)
def test_compiled_steps_give_the_same_results_for_every_shape(padded_shape):
  check_compiled(padded_shape)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['cascade', 'keypoints'])
def test_compiled_steps_of_further_heads_give_the_same_results(kind):
  check_compiled(SHAPES[-1], kind)


def check_lowered(step, inputs):
  """The step is one XLA module of XLA's own operations, without custom calls or transfers to the host."""
  text = step.experimental_get_compiler_ir(inputs)(stage='hlo')
  assert text.count(' convolution(') > 10
  assert not re.findall(r' (custom-call|infeed|outfeed|send|recv)\(.*', text)


@pytest.mark.slow
def test_the_module_has_only_operations_of_xla(trainer):
  for step in steps(trainer).values():
    check_lowered(step, batch(SHAPES[1]))


@pytest.fixture(scope='module')
def real_trainer():
  tf_keras.utils.set_random_seed(7)
  return make(MaskRCNN(80, mask_head=MaskHead(), xla=True), batch(REAL_SHAPES[0]))


@pytest.mark.slow
@pytest.mark.parametrize('padded_shape', REAL_SHAPES, ids=str)
def test_the_papers_detector_lowers_for_every_shape(real_trainer, padded_shape):
  for step in steps(real_trainer).values():
    check_lowered(step, batch(padded_shape))


@pytest.mark.slow
def test_the_papers_detector_compiles_and_runs(real_trainer):
  inputs = batch(REAL_SHAPES[0])
  both = steps(real_trainer)
  assert all(np.isfinite(loss) for loss in both['train'](inputs).values())
  assert np.isfinite(both['predict'](inputs).boxes).all()
