"""Numbered layers of keras.applications: the order of the model, and refusals of other shapes."""

import pytest

from rethink_tf.errors import UserError
from rethink_tf.weights import keras_order


def layers(blocks=(3, 4, 6, 3)):
  """Shapes of convolutions and norms of a ResNet in the order of the model, with their names."""
  shapes, names, into = [(7, 7, 3, 64)], ['conv1'], 64
  for stage, count in enumerate(blocks, 2):
    inner, out = 16 * 2**stage, 64 * 2**stage
    for block in range(1, count + 1):
      shapes += [(1, 1, into, inner), (3, 3, inner, inner)] + [(1, 1, into, out)] * (block == 1) + [(1, 1, inner, out)]
      names += [f'conv{stage}_block{block}_{i}' for i in ('1203' if block == 1 else '123')]
      into = out
  return [(shape, shape[-1:]) for shape in shapes], [(shape[-1:],) * 4 for shape in shapes], names


@pytest.mark.parametrize('blocks', [(3, 4, 6, 3), (3, 4, 23, 3), (1, 1, 1, 1)])
def test_names_of_a_resnet(blocks):
  convolutions, norms, names = layers(blocks)
  assert keras_order.resnet(convolutions, norms, 'x') == ([f'{name}_conv' for name in names],
                                                          [f'{name}_bn' for name in names])


@pytest.mark.parametrize('change', [
  lambda convs, norms: (convs[:-1], norms[:-1]), lambda convs, norms: (convs, norms[:-1]),
  lambda convs, norms: ([layer[:1] for layer in convs], norms), lambda convs, norms: (convs[1:], norms[1:]),
  lambda convs, norms: (convs[:11], norms[:11]), lambda convs, norms: (convs, norms[::-1]),
  lambda convs, norms: ([], [])],
  ids=['shorter', 'norms', 'no biases', 'no stem', 'one stage', 'order', 'empty'])
def test_other_networks_are_refused(change):
  with pytest.raises(UserError, match='not those of ResNet50'):
    keras_order.resnet(*change(*layers()[:2]), 'x')


def test_names_of_a_vgg():
  convolution = ((3, 3, 4, 4), (4,))
  names, matrices = keras_order.vgg([convolution] * 16, [((4, 4), (4,))] * 3, 'x')
  assert names[:3] + names[-1:] == ['block1_conv1', 'block1_conv2', 'block2_conv1', 'block5_conv4']
  assert matrices == ['fc1', 'fc2', 'predictions']
  assert keras_order.vgg([convolution] * 13, [], 'x')[0][-1] == 'block5_conv3'
  for other in ([convolution] * 12, [((1, 1, 4, 4), (4,))] * 13):
    with pytest.raises(UserError, match='not those of VGG16'):
      keras_order.vgg(other, [], 'x')
