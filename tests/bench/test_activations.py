"""Memory counted in graphs: layers by hand, aliases once, nothing allocated."""

import functools
import resource
from typing import NamedTuple

import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.bench import activations
from rethink_tf.bench import costs as complexity
from rethink_tf.models.norms import group_norm, sync_batch_norm
from rethink_tf.models.recompute import recomputed
from rethink_tf.training.losses import MaskRCNNLoss
from tests import tiny


class Images(NamedTuple):
  images: tf.Tensor
  image_sizes: tf.Tensor


SPEC = Images(tf.TensorSpec([1, 8, 8, 4]), tf.TensorSpec([1, 2]))
MAP = 8 * 8 * 4 * 4  # bytes of a float32 [1, 8, 8, 4]


class Chain(tf_keras.layers.Layer):
  """A sequence of layers."""

  def __init__(self, *layers):
    super().__init__()
    self.chain = list(layers)

  def call(self, images, image_sizes, labels=None, training=False):
    del image_sizes, labels
    for layer in self.chain:
      images = layer(images)
    return images


def total(outputs, batch):
  del batch
  return {'sum': tf.reduce_sum(outputs)}


def conv(**settings):
  return tf_keras.layers.Conv2D(4, 3, padding='same', use_bias=False, **settings)


def of(*layers):
  return activations.of_training(lambda: Chain(*(layer() for layer in layers)), total, SPEC)


def test_a_convolution_keeps_its_input_and_a_relu_its_output():
  """The input of the first one is the image, which is not counted."""
  assert of(conv).activations == 0
  assert of(conv, conv).activations == MAP
  relu = functools.partial(tf_keras.layers.Activation, 'relu')
  assert of(conv, relu, conv).activations == MAP  # one tensor, read by both
  assert of(conv, relu, conv, relu).activations == 2 * MAP


def test_a_reshape_shares_memory():
  def reshaped():
    return tf_keras.layers.Lambda(lambda x: tf.reshape(tf.reshape(x, [1, -1]), tf.shape(x)))
  assert of(conv, reshaped, conv).activations == MAP


def test_a_grouped_convolution_keeps_its_input_once():
  """tf_keras wraps it in a function, which returns its input too."""
  relu = functools.partial(tf_keras.layers.Activation, 'relu')
  assert of(conv, relu, functools.partial(conv, groups=2)).activations == MAP


def test_group_norm_keeps_its_input_and_two_numbers_per_channel():
  norm = functools.partial(group_norm, 'norm', groups=2)
  assert of(conv, norm).activations == MAP + 2 * 4 * 4


def test_sync_batch_norm_keeps_its_input_and_a_few_numbers_per_channel():
  kept = of(conv, functools.partial(sync_batch_norm, 'norm')).activations
  assert MAP <= kept <= MAP + 4 * 4 * 4


def test_fixed_memory_is_values_gradients_and_velocities():
  kernel = 3 * 3 * 4 * 4
  assert of(conv)[:2] == (kernel, 3 * 4 * kernel)
  norm = functools.partial(sync_batch_norm, 'norm')
  assert of(conv, norm)[:2] == (kernel + 8, 3 * 4 * (kernel + 8) + 4 * 8)  # moving statistics: no gradient

  def frozen():
    layer = conv()
    layer.trainable = False
    return layer
  assert of(frozen, conv) == (kernel, 4 * kernel + 3 * 4 * kernel, MAP)
  assert of(frozen, frozen, conv).activations == MAP  # nothing is kept for layers without gradient


def test_mixed_precision_keeps_half_as_much_and_a_copy_of_each_kernel(bfloat16):
  relu = functools.partial(tf_keras.layers.Activation, 'relu')
  kernel = 3 * 3 * 4 * 4
  # The image is cast to 16 bit, too, and the gradient of the first kernel reads it.
  assert of(conv, relu, conv) == (2 * kernel, 2 * 3 * 4 * kernel + 2 * 2 * kernel, 2 * MAP // 2)
  shared = conv()

  def twice():
    return tf_keras.layers.Lambda(lambda x: shared(shared(x)))
  assert of(lambda: shared, twice).fixed == 3 * 4 * kernel + 2 * kernel  # one copy, not three


def test_recomputation_keeps_the_input_of_a_block_and_computes_it_twice():
  class Block(tf_keras.layers.Layer):
    def __init__(self, recompute):
      super().__init__()
      self.convs, self.recompute = [conv(activation='relu') for _ in range(3)], recompute

    def call(self, x):
      def block(x):
        for layer in self.convs:
          x = layer(x)
        return x
      return recomputed(block)(x) if self.recompute else block(x)

  one = 8 * 8 * 4 * 4 * 9
  plain, recomputing = (activations.of_step(lambda r=r: Chain(conv(), Block(r)), total, SPEC) for r in (False, True))
  assert plain[0].activations == 4 * MAP and recomputing[0].activations <= 2 * MAP
  assert plain[0][:2] == recomputing[0][:2]
  assert plain[1].forward == recomputing[1].forward == 4 * one and recomputing[1].all - plain[1].all == 3 * one


@pytest.mark.slow
def test_memory_of_a_detector_is_proportional_to_its_images():
  """Memory is proportional to the images; parameters and multiply-adds equal those of costs.py."""
  def make():
    model = tiny.detector()
    model.xla = True
    return model

  specs = [tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), tiny.batch(n)) for n in (1, 2)]
  one, two = (activations.of_training(make, MaskRCNNLoss(), spec) for spec in specs)
  costs = complexity.count_detector(tiny.detector, 64, 64)
  assert one.parameters == two.parameters == costs['total'].parameters
  assert one.fixed == 12 * one.parameters
  assert two.activations == pytest.approx(2 * one.activations, rel=0.02)
  _, graph = activations.traced(make, lambda model, batch: model(batch.images, batch.image_sizes).predictions, specs[0])
  assert complexity.multiply_adds_of(graph) == costs['total'].multiply_adds


def test_nothing_is_allocated():
  spec = Images(tf.TensorSpec([1, 256]), tf.TensorSpec([1, 2]))
  layers = [functools.partial(tf_keras.layers.Dense, size) for size in (20_000, 30_000)]
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  memory = activations.of_training(lambda: Chain(*(layer() for layer in layers)), total, spec)
  assert memory.fixed > 7e9
  assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 0.5e9


def test_unknown_shapes_are_an_error():
  with pytest.raises(ValueError, match='not static'):
    activations.of_training(lambda: Chain(conv(), conv()), total, Images(tf.TensorSpec([None, 8, 8, 4]), SPEC[1]))
