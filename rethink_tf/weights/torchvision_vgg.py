"""torchvision's VGG without BatchNorm (features.0 … classifier.6), by Caffe's names: conv1_1 … conv5_3, fc6, fc7."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
import tf_keras

from rethink_tf.errors import UserError
from rethink_tf.weights.contents import DETECTRON2_MEAN, TORCH_STD, Array, Contents
from rethink_tf.weights.detectron2 import Entry, flattened, identity, kernel

if TYPE_CHECKING:
  from rethink_tf.models.vgg import VGG

_FULLY_CONNECTED = {'classifier.0': 'fc6', 'classifier.3': 'fc7', 'classifier.6': 'linear'}


def recognizes(names: Collection[str]) -> bool:
  """Return whether names of arrays are those of a VGG of torchvision."""
  return 'features.0.weight' in names and 'classifier.0.weight' in names


def is_of(contents: Contents) -> bool:
  """Return whether a file holds a VGG."""
  return 'conv1_1.weight' in contents.arrays


def settings(contents: Contents) -> dict[str, int]:
  """Return the model arguments that a file requires: depth and width of the VGG, width of fc6 and fc7."""
  shapes = {name: tuple(array.shape) for name, array in contents.arrays.items()}
  found = {'VGG.depth': 3 + sum(len(shape) == 4 for shape in shapes.values()), 'VGG.width': shapes['conv1_1.weight'][0]}
  return found | ({'BoxHead.fc_width': shapes['fc6.weight'][0]} if len(shapes.get('fc6.weight', ())) == 2 else {})


def is_vgg(backbone: tf_keras.layers.Layer) -> bool:
  return hasattr(backbone, 'stages') and isinstance(getattr(backbone, 'stem', None), (list, tuple))


def contents(arrays: Mapping[str, Array], path: str, container: str) -> Contents:
  """Return the contents of a state dict; unknown names are kept, for the loader to refuse.

  Raises:
    UserError: the VGG has BatchNorm.
  """
  if 'features.1.weight' in arrays:
    raise UserError(f'{path}: holds a VGG with BatchNorm: give one without (torchvision\'s vgg16), as the paper has it')
  numbers = sorted({int(match[1]) for name in arrays if (match := re.fullmatch(r'features\.(\d+)\.weight', name))})
  names, group, member = dict(_FULLY_CONNECTED), 1, 0
  for before, number in zip([numbers[0] - 2, *numbers], numbers, strict=False):
    # Layers of `features` are numbered through: a convolution and its ReLU count two, a pooling one more.
    group, member = (group, member + 1) if number - before == 2 else (group + 1, 1)
    names[f'features.{number}'] = f'conv{group}_{member}'
  converted = {}
  for name, array in arrays.items():
    layer, _, kind = name.rpartition('.')
    converted[f'{names.get(layer, layer)}.{kind}'] = array
  return Contents(path, f'torchvision VGG in {container}', 'backbone', converted, norm='none', architecture=None,
                  channels='rgb', stride_in_1x1=False, pixel_mean=DETECTRON2_MEAN, pixel_std=TORCH_STD,
                  licence='BSD-3-Clause for torchvision\'s own weights',
                  notes=('mean and standard deviation are torchvision\'s: they are not in the file',))


def convolutions(found: Contents) -> dict[str, Array]:
  """Return the arrays of the convolutions."""
  return {name: array for name, array in found.backbone().items() if not name.startswith(('fc6.', 'fc7.'))}


def fully_connected(found: Contents) -> dict[str, Array]:
  """Return the arrays of fc6 and fc7."""
  return {name: array for name, array in found.backbone().items() if name.startswith(('fc6.', 'fc7.'))}


def backbone_table(backbone: VGG, channels: str) -> dict[str, Entry]:
  """Return {'conv1_1.weight': Entry} of every variable of a built VGG.

  Raises:
    UserError: the VGG has norms.
  """
  entries = {}
  for group, layers in enumerate([backbone.stem, *backbone.stages], 1):
    for i, layer in enumerate(layers, 1):
      entries[f'conv{group}_{i}.weight'] = Entry(layer.conv.kernel, kernel)
      if layer.conv.bias is None:
        raise UserError(f'VGG.norm: {layer.name} has a norm, and no bias to load: set VGG.norm = @no_norm')
      entries[f'conv{group}_{i}.bias'] = Entry(layer.conv.bias, identity)
  if channels == 'bgr':
    entries['conv1_1.weight'] = Entry(entries['conv1_1.weight'].variable, lambda w: kernel(w[:, ::-1]))
  return entries


def head_table(detector: tf_keras.layers.Layer) -> dict[str, Entry]:
  """Return the entries of fc6 and fc7 if they are the box head of a detector; {} for any other model."""
  head = getattr(detector, 'box_head', None)
  if head is None or head.convs or len(head.fcs) != 2:
    return {}
  size = detector.box_pooler.size
  return {'fc6.weight': Entry(head.fcs[0].kernel, lambda w: flattened(w, size)),
          'fc6.bias': Entry(head.fcs[0].bias, identity),
          'fc7.weight': Entry(head.fcs[1].kernel, np.transpose), 'fc7.bias': Entry(head.fcs[1].bias, identity)}
