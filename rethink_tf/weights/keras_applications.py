"""ResNets and VGGs of keras.applications: convolutions with biases, batch normalisation with epsilon 1.001e-5.

Biases are folded into the moving means, and the loader compensates for the epsilon: the network's function is the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from rethink_tf.errors import UserError, excerpt
from rethink_tf.weights.contents import KERAS_MEAN, UNIT_STD, Array, Contents, Lazy, architecture_of

_EPSILON = 1.001e-5
_LAYERS = {'0': 'shortcut', '1': 'conv1', '2': 'conv2', '3': 'conv3'}
_FULLY_CONNECTED = {'fc1': 'fc6', 'fc2': 'fc7', 'predictions': 'linear'}
_NORM = {'gamma': 'weight', 'beta': 'bias', 'moving_mean': 'running_mean', 'moving_variance': 'running_var'}


def contents(arrays: Mapping[str, Array], path: str, format: str, notes: tuple[str, ...] = ()) -> Contents:
  """Return the contents of {'conv1_conv/kernel': array}, by the names of Keras' layers.

  Raises:
    UserError: not a ResNet or VGG of keras.applications, or one of its V2 (pre-activation) or ResNeXt networks.
  """
  layers = {name.split('/')[0] for name in arrays}
  if 'block1_conv1/kernel' in arrays and 'block5_conv1/kernel' in arrays:
    return _vgg(arrays, path, format, notes)
  if any('preact' in layer or layer == 'post_bn' for layer in layers):
    raise UserError(f'{path}: a ResNet V2 (pre-activation) cannot be loaded: use the file of ResNet50, 101 or 152')
  if any(name.endswith('depthwise_kernel') for name in arrays) and 'conv1_conv/kernel' in arrays:
    raise UserError(f'{path}: ResNeXt files of keras.applications are not supported: use torchvision\'s')
  if 'conv1_conv/kernel' not in arrays:
    first = ', '.join(map(excerpt, sorted(layers)[:3])) or 'none'
    raise UserError(f'{path}: has no layer conv1_conv or block1_conv1, so it is not a ResNet or VGG of '
                    f'keras.applications (its first layers are {first}): use a file such as '
                    'resnet50_weights_tf_dim_ordering_tf_kernels.h5')
  found, ignored = {}, []
  for name, array in arrays.items():
    layer, _, kind = name.partition('/')
    if layer in ('predictions', 'probs'):
      found['linear.weight' if kind == 'kernel' else 'linear.bias'] = _transposed(array, 'matrix')
    elif not re.match(r'conv\d', layer):
      ignored.append(name)
    elif layer.endswith('_bn') and kind in _NORM:
      bias = arrays.get(f'{layer.removesuffix("_bn")}_conv/bias') if kind == 'moving_mean' else None
      found[f'{_canonical(layer)}.norm.{_NORM[kind]}'] = _minus(array, bias, name, path)
    elif kind == 'kernel':
      found[f'{_canonical(layer)}.weight'] = _transposed(array, 'kernel')
    elif kind != 'bias':
      ignored.append(name)
  notes = (*notes, 'biases of convolutions are folded into the moving means', *_left_out(ignored))
  return Contents(path, f'keras.applications {format}', 'backbone', found, norm='bn',
                  architecture=architecture_of(found, path), channels='bgr', stride_in_1x1=True, pixel_mean=KERAS_MEAN,
                  pixel_std=UNIT_STD, epsilon=_EPSILON, licence='Apache-2.0 (Keras; the weights are MSRA\'s, MIT)',
                  ignored=tuple(ignored), notes=notes)


def _vgg(arrays: Mapping[str, Array], path: str, format: str, notes: tuple[str, ...]) -> Contents:
  """Return the contents of VGG16 or 19, by Caffe's names, with fc6 as torch flattens its input: channels first."""
  found, ignored = {}, []
  channels = arrays['block5_conv1/kernel'].shape[-1]
  for name, array in arrays.items():
    layer, _, kind = name.partition('/')
    kind = {'kernel': 'weight'}.get(kind, kind)
    match = re.fullmatch(r'block(\d)_conv(\d)', layer)
    if match:
      found[f'conv{match[1]}_{match[2]}.{kind}'] = _transposed(array, 'kernel') if kind == 'weight' else array
    elif layer == 'fc1' and kind == 'weight':
      found['fc6.weight'] = _channels_first(array, channels, path)
    elif layer in _FULLY_CONNECTED:
      found[f'{_FULLY_CONNECTED[layer]}.{kind}'] = _transposed(array, 'matrix') if kind == 'weight' else array
    else:
      ignored.append(name)
  return Contents(path, f'keras.applications VGG in {format}', 'backbone', found, norm='none', architecture=None,
                  channels='bgr', pixel_mean=KERAS_MEAN, pixel_std=UNIT_STD,
                  licence='CC BY 4.0 (the weights are Oxford\'s)', ignored=tuple(ignored),
                  notes=(*notes, *_left_out(ignored)))


def _left_out(names: Sequence[str]) -> tuple[str, ...]:
  layers = sorted({excerpt(name.split('/')[0]) for name in names})
  return (f'layers that are not of the backbone are left out: {", ".join(layers[:8])}',) if layers else ()


def _channels_first(array: Array, channels: int, path: str) -> Lazy:
  """(h · w · C, out) -> (out, C · h · w)."""
  count, out = array.shape
  side = math.isqrt(count // channels) if channels else 0
  if side * side * channels != count:
    raise UserError(f'{path}: fc1 has the shape {tuple(array.shape)}, which is not of a VGG: download the file again')
  return Lazy((out, count), lambda: np.asarray(array).reshape(side, side, channels, out).transpose(3, 2, 0, 1).reshape(
    out, -1))


def _canonical(layer: str) -> str:
  """Return Detectron2's name: conv3_block2_1_bn -> res3.1.conv1. An unknown layer is returned unchanged."""
  if layer in ('conv1_conv', 'conv1_bn'):
    return 'stem.conv1'
  match = re.fullmatch(r'conv([2-5])_block(\d+)_([0-3])_(conv|bn)', layer)
  return f'res{match[1]}.{int(match[2]) - 1}.{_LAYERS[match[3]]}' if match else layer


def _transposed(array: Array, kind: str) -> Lazy:
  """(h, w, in, out) -> (out, in, h, w); matrices and biases of the classifier are transposed."""
  axes = (3, 2, 0, 1) if kind == 'kernel' and len(array.shape) == 4 else tuple(range(len(array.shape)))[::-1]
  return Lazy([array.shape[axis] for axis in axes], lambda: np.asarray(array).transpose(axes))


def _minus(array: Array, bias: Array | None, name: str, path: str) -> Lazy:
  if bias is not None and tuple(bias.shape) != tuple(array.shape):
    raise UserError(f'{path}: {name} and the bias of its convolution differ in shape: download the file again')
  return Lazy(array.shape, lambda: np.asarray(array) - (0.0 if bias is None else np.asarray(bias, np.float64)))
