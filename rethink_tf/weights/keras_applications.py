"""ResNets of keras.applications (.h5): convolutions with biases, batch normalisation with epsilon 1.001e-5.

Biases are folded into the moving means, and the loader compensates for the epsilon: the network's function is the same.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import h5py
import numpy as np

from rethink_tf.errors import UserError, in_one_line
from rethink_tf.weights.contents import MAX_ARRAYS, UNIT_STD, Contents, Lazy, architecture_of, check_names

_EPSILON = 1.001e-5
_MEAN = (123.68, 116.779, 103.939)
_LAYERS = {'0': 'shortcut', '1': 'conv1', '2': 'conv2', '3': 'conv3'}
_NORM = {'gamma': 'weight', 'beta': 'bias', 'moving_mean': 'running_mean', 'moving_variance': 'running_var'}


def read(path: str) -> Contents:
  """Return the contents of an .h5 file.

  Raises:
    UserError: damaged, not a ResNet of keras.applications, or one of its V2 (pre-activation) or ResNeXt networks.
  """
  try:
    file = h5py.File(path, 'r')
    datasets = _datasets(file, path)
  except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
    raise UserError(f'{path}: not a complete HDF5 weight file ({in_one_line(error)[:200]}): fetch it '
                    'again') from error
  layers = {name.split('/')[0] for name in datasets}
  if any('preact' in layer or layer == 'post_bn' for layer in layers):
    raise UserError(f'{path}: a ResNet V2 (pre-activation) cannot be loaded: use the file of ResNet50, 101 or 152')
  if any(name.endswith('depthwise_kernel') for name in datasets):
    raise UserError(f'{path}: ResNeXt files of keras.applications are not supported: use torchvision\'s')
  if 'conv1_conv/kernel' not in datasets:
    raise UserError(f'{path}: has no layer conv1_conv, so it is not a ResNet of keras.applications: use a file such as '
                    'resnet50_weights_tf_dim_ordering_tf_kernels.h5')
  arrays, ignored = {}, []
  for name, dataset in datasets.items():
    layer, _, kind = name.partition('/')
    if layer in ('predictions', 'probs'):
      arrays['linear.weight' if kind == 'kernel' else 'linear.bias'] = _transposed(dataset, 'matrix')
    elif layer.endswith('_bn') and kind in _NORM:
      bias = datasets.get(f'{layer.removesuffix("_bn")}_conv/bias') if kind == 'moving_mean' else None
      arrays[f'{_canonical(layer)}.norm.{_NORM[kind]}'] = _minus(dataset, bias, name, path)
    elif kind == 'kernel':
      arrays[f'{_canonical(layer)}.weight'] = _transposed(dataset, 'kernel')
    elif kind != 'bias':
      ignored.append(name)
  return Contents(path, 'keras.applications .h5', 'backbone', arrays, 'bn', architecture_of(arrays, path), 'bgr', True,
                  _MEAN, UNIT_STD, _EPSILON, licence='Apache-2.0 (Keras; the weights are MSRA\'s, MIT)',
                  ignored=tuple(ignored), notes=('biases of convolutions are folded into the moving means',))


def _datasets(file: h5py.File, path: str) -> dict[str, h5py.Dataset]:
  """Return {'conv1_conv/kernel': dataset}, by the lists of names that Keras stores as attributes."""
  root = file['model_weights'] if 'model_weights' in file else file
  names = list(itertools.islice(_names(root), MAX_ARRAYS + 1))
  check_names([f'{layer}/{weight}' for layer, weight in names], path)
  datasets = {}
  for layer, weight in names:
    dataset = root[layer][weight]
    # A data set may refer to any other file of this machine.
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual or \
        dataset.file.filename != file.filename or dataset.dtype.kind not in 'fiu':
      raise UserError(f'{path}: {layer}/{weight} is not an array of numbers in this file: fetch it again')
    datasets[f'{layer}/{weight.split("/")[-1].split(":")[0]}'] = dataset
  return datasets


def _names(root: h5py.Group) -> Iterator[tuple[str, str]]:
  """Yield the names of layers, also of those that a file lists many times, with those of their weights."""
  for layer in map(_text, root.attrs['layer_names']):
    for weight in map(_text, root[layer].attrs['weight_names']):
      yield layer, weight


def _text(name: bytes | str) -> str:
  return name.decode() if isinstance(name, bytes) else str(name)


def _canonical(layer: str) -> str:
  """Return Detectron2's name: conv3_block2_1_bn -> res3.1.conv1. An unknown layer is returned unchanged."""
  if layer in ('conv1_conv', 'conv1_bn'):
    return 'stem.conv1'
  match = re.fullmatch(r'conv([2-5])_block(\d+)_([0-3])_(conv|bn)', layer)
  return f'res{match[1]}.{int(match[2]) - 1}.{_LAYERS[match[3]]}' if match else layer


def _transposed(dataset: h5py.Dataset, kind: str) -> Lazy:
  """(h, w, in, out) -> (out, in, h, w); matrices and biases of the classifier are transposed."""
  axes = (3, 2, 0, 1) if kind == 'kernel' and len(dataset.shape) == 4 else tuple(range(len(dataset.shape)))[::-1]
  return Lazy([dataset.shape[axis] for axis in axes], lambda: dataset[...].transpose(axes))


def _minus(dataset: h5py.Dataset, bias: h5py.Dataset | None, name: str, path: str) -> Lazy:
  if bias is not None and bias.shape != dataset.shape:
    raise UserError(f'{path}: {name} and the bias of its convolution differ in shape: fetch the file again')
  return Lazy(dataset.shape, lambda: dataset[...] if bias is None else np.float64(dataset[...]) - bias[...])
