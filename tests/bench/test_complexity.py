"""Parameters and multiply-adds against published numbers and counts by hand; nothing is allocated."""

import resource
import subprocess
import sys

import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.bench import costs as complexity
from rethink_tf.models.layers import ConvNorm
from rethink_tf.models.norms import group_norm, no_norm, sync_batch_norm
from rethink_tf.models.resnet import ResNet
from tests import tiny

# Trainable parameters with 1000 classes: torchvision's documentation and facebookresearch/WSL-Images.
PUBLISHED = {
  'ResNet-50': 25_557_032, 'ResNet-101': 44_549_160, 'ResNet-152': 60_192_808,
  'ResNeXt-101 32x4d': 44_177_704, 'ResNeXt-101 32x8d': 88_791_336, 'ResNeXt-101 32x16d': 194_026_792,
  'ResNeXt-101 32x32d': 468_530_472, 'ResNeXt-101 32x48d': 828_411_176,
}
GFLOPS = {'ResNeXt-101 32x48d': 306, 'ResNeXt-101 32x32d': 174, 'ResNeXt-101 32x16d': 72}


@pytest.fixture(scope='module')
def counted():
  """The costs of all classifiers, and the increase of this process's peak memory by counting them, in bytes."""
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  costs = complexity.classifier_costs()
  return costs, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


@pytest.fixture
def classifiers(counted):
  return counted[0]


@pytest.mark.slow
@pytest.mark.parametrize('name', PUBLISHED)
def test_parameters_are_the_published_ones(classifiers, name):
  assert classifiers[name].parameters == PUBLISHED[name]


@pytest.mark.slow
@pytest.mark.parametrize('name', GFLOPS)
def test_flops_are_the_published_ones(classifiers, name):
  assert 2e-9 * classifiers[name].multiply_adds == pytest.approx(GFLOPS[name], rel=0.01)


@pytest.mark.slow
def test_resnet_50_has_4_1_billion_multiply_adds(classifiers):
  assert classifiers['ResNet-50'].multiply_adds == 4_089_184_256


@pytest.mark.slow
def test_nothing_is_allocated(counted):
  costs, growth = counted
  assert sum(4 * cost.parameters for cost in costs.values()) > 6.9e9
  assert growth < 1.5e9


@pytest.mark.parametrize('make, shape, expected', [
  (lambda: ConvNorm(8, 3, no_norm, tf_keras.initializers.Zeros, stride=2), [1, 9, 7, 4],
   (3 * 3 * 4 * 8 + 8, 5 * 4 * 8 * 3 * 3 * 4)),
  (lambda: ConvNorm(8, 3, sync_batch_norm, tf_keras.initializers.Zeros, groups=4), [2, 5, 6, 16],
   (3 * 3 * 4 * 8 + 16, 2 * 5 * 6 * 8 * 3 * 3 * 4)),
  (lambda: tf_keras.layers.Conv2DTranspose(6, 2, 2), [3, 5, 4, 7], (2 * 2 * 7 * 6 + 6, 3 * 10 * 8 * 6 * 7)),
  (lambda: tf_keras.layers.Dense(5), [3, 11], (60, 3 * 5 * 11)),
  (lambda: tf_keras.layers.Dense(5), [2, 3, 11], (60, 2 * 3 * 5 * 11)),
], ids=['strided', 'grouped', 'transposed', 'dense', 'dense on rows'])
def test_single_layers_have_the_costs_of_their_formulas(make, shape, expected):
  assert complexity.count(make, shape) == expected


def test_multiply_adds_of_a_transposed_convolution_with_stride_2():
  """2 x 2 at stride 2: every output pixel depends on one input pixel."""
  cost = complexity.count(lambda: tf_keras.layers.Conv2DTranspose(1, 2, 2, use_bias=False), [1, 4, 4, 1])
  assert cost == (4, 8 * 8)


@pytest.mark.slow
def test_norms_have_parameters_but_no_multiply_adds():
  batch, group = (complexity.count(lambda norm=norm: ResNet(14, norm=norm), [1, 64, 64, 3])
                  for norm in (sync_batch_norm, group_norm))
  plain = complexity.count(lambda: ResNet(14, norm=no_norm), [1, 64, 64, 3])
  assert batch == group and batch.multiply_adds == plain.multiply_adds
  assert batch.parameters > plain.parameters  # without a norm: biases in place of gamma and beta


@pytest.mark.slow
def test_components_of_a_detector_add_up():
  costs = complexity.count_detector(tiny.detector, 64, 96)
  assert list(costs) == ['backbone', 'fpn', 'rpn', 'box head', 'mask head', 'total']
  model = tiny.detector()
  batch = tiny.batch(1)
  tf.function(lambda b: model(b.images, b.image_sizes, labels=b, training=True),
              autograph=False).get_concrete_function(batch)
  assert costs['total'].parameters == sum(int(tf.size(v)) for v in model.trainable_variables)
  assert costs['total'].multiply_adds == sum(cost.multiply_adds for name, cost in costs.items() if name != 'total')
  boxes = 20 * (7 * 7 * 32 * 32 * 9 + 7 * 7 * 32 * 32 + 32 * (4 + 12))  # 20 proposals: a convolution, fc1, predictors
  assert costs['box head'].multiply_adds == boxes
  masks = 100 * (14 * 14 * 32 * 32 * 9 + 14 * 14 * 4 * 32 * 32 + 28 * 28 * 32 * 3)
  assert costs['mask head'].multiply_adds == masks
  assert costs['rpn'].multiply_adds == 32 * (32 * 9 + 15) * sum(16 * 24 // 4**level for level in range(4)) + \
    32 * (32 * 9 + 15) * 2  # P6 is 1 x 2
  without = complexity.count_detector(lambda: tiny.detector(mask_head=None), 64, 96)
  assert list(without) == ['backbone', 'fpn', 'rpn', 'box head', 'total']


@pytest.mark.parametrize('name, component, parameters', [
  # two networks, their connectors without bias (as counted by CBNet's code) and gamma and beta of these
  ('Mask R-CNN CBNet dual R50-FPN', 'backbone', 2 * 23_508_032 + 2_768_896 + 2 * (64 + 256 + 512 + 1024)),
  # two further heads of four convolutions with a norm and fc1, 81 scores and 4 deltas each
  ('Cascade Mask R-CNN R50-FPN', 'cascade',
   2 * (4 * (256 * 256 * 9 + 2 * 256) + (49 * 256 + 1) * 1024 + (1024 + 1) * (81 + 4))),
  # eight convolutions and a deconvolution with biases
  ('Keypoint R-CNN R50-FPN, one class', 'keypoint head',
   (256 * 9 + 1) * 512 + 7 * (512 * 9 + 1) * 512 + 512 * 17 * 16 + 17),
  ('Faster R-CNN VGG-16, one level, no norm', 'backbone', 14_714_688),  # torchvision's `features`
])
@pytest.mark.slow
def test_components_of_further_systems(name, component, parameters):
  assert complexity.count_detector(complexity.DETECTORS[name])[component].parameters == parameters


def test_unknown_shapes_are_an_error():
  with tf.Graph().as_default():
    layer = tf_keras.layers.Conv2D(3, 1)
    layer(tf.compat.v1.placeholder(tf.float32, [None, 4, 4, 3]))
    with pytest.raises(ValueError, match='not static'):
      complexity.cost_of(layer)


LARGEST = '''
import resource, sys
import tensorflow as tf
from rethink_tf.models.norms import sync_batch_norm
from rethink_tf.models.resnet import ResNet

tf.random.stateless_normal([10], [0, 0])
peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
backbone = ResNet(101, norm=sync_batch_norm, groups=32, width_per_group=48)
tf.function(backbone, autograph=False).get_concrete_function(tf.TensorSpec([1, 224, 224, 3]))
size = sum(4 * int(tf.size(v)) for v in backbone.variables)
std = float(tf.math.reduce_std(backbone.stages[3][2].conv2.conv.kernel[0, 0, 0]))
print(size, (peak() - before) / size, std)
'''


@pytest.mark.slow
def test_the_largest_is_not_allocated_twice():
  """ResNeXt-101 32x48d, 3.3 GB: no second copy of the variables exists while they are initialised."""
  result = subprocess.run([sys.executable, '-c', LARGEST], capture_output=True, text=True, timeout=1800)
  assert result.returncode == 0, result.stderr
  size, ratio, std = map(float, result.stdout.split())
  print(f'{size / 1e9:.2f} GB of variables, peak {ratio:.2f} times as much')
  assert size > 3.2e9 and std > 0
  assert ratio < 1.3
