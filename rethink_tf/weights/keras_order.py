"""Names of a network of keras.applications for layers that a file only numbers.

tf_keras' .weights.h5 and TensorFlow checkpoints of Keras models number the layers in the order of the model: of a
block the convolutions 1 and 2, the shortcut, and 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from rethink_tf.errors import UserError
from rethink_tf.models.vgg import CONVOLUTIONS

Shape = tuple[int, ...]
Layer = tuple[Shape, ...]  # shapes of a layer's variables: kernel and bias, or gamma, beta, mean and variance


def resnet(convolutions: Sequence[Layer], norms: Sequence[Layer], path: str) -> tuple[list[str], list[str]]:
  """Return the names of the convolutions and norms of a ResNet.

  Raises:
    UserError: the shapes are not those of ResNet50, 101 or 152.
  """
  sides = [layer[0][0] for layer in convolutions]
  names, at, stage, block = ['conv1'] if sides[:1] == [7] else [], 1, 1, 0
  while names and at < len(sides):
    # A block ends where the next one begins with a 1x1 and a 3x3 convolution.
    order = next((order for order in ('1203', '123') if sides[at:at + len(order)] == [1, 3, 1, 1][:len(order)] and
                  sides[at + len(order):at + len(order) + 2] in ([1, 3], [])), None)
    if order is None:
      break
    stage, block = (stage + 1, 1) if '0' in order else (stage, block + 1)
    names += [f'conv{stage}_block{block}_{i}' for i in order]
    at += len(order)
  fits = len(names) == len(convolutions) == len(norms) and stage == 5 and all(
    len(layer) == 2 and layer[1] == layer[0][-1:] and norm == (layer[1],) * 4
    for layer, norm in zip(convolutions, norms, strict=True))
  if not fits:
    raise UserError(f'{path}: its layers are numbered, and their shapes are not those of ResNet50, 101 or 152 of '
                    'keras.applications (V2 and ResNeXt are not supported): save it as .keras or .h5, with names')
  return [f'{name}_conv' for name in names], [f'{name}_bn' for name in names]


def vgg(convolutions: Sequence[Layer], matrices: Sequence[Layer], path: str) -> tuple[list[str], list[str]]:
  """Return the names of the convolutions and of the fully connected layers of a VGG.

  Raises:
    UserError: the numbers or shapes are not those of VGG16 or 19.
  """
  groups = {sum(groups): groups for groups in CONVOLUTIONS.values()}.get(len(convolutions))
  if groups is None or any(layer[0][:2] != (3, 3) or len(layer) != 2 for layer in convolutions):
    raise UserError(f'{path}: its layers are numbered, and their shapes are not those of VGG16 or 19 of '
                    'keras.applications: save the model as .keras or .h5, with names')
  names = [f'block{group}_conv{i}' for group, count in enumerate(groups, 1) for i in range(1, count + 1)]
  return names, ['fc1', 'fc2', 'predictions'] if len(matrices) == 3 else [f'dense_{i}' for i in range(len(matrices))]
