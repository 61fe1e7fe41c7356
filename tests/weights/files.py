"""Writers of weight files as other programs write them: containers byte by byte, names and layouts of each format."""

from __future__ import annotations

import json
import re
import struct
import zipfile

import h5py
import numpy as np

_TORCH = {'f4': 'FloatStorage', 'f2': 'HalfStorage', 'f8': 'DoubleStorage', 'i8': 'LongStorage', 'u1': 'ByteStorage'}


# Python 2's pickles: byte strings, and NumPy's modules by their names of that time.
def python_2_pickle(content) -> bytes:
  return b'\x80\x02' + _python_2(content) + b'.'


def _python_2(value):
  if isinstance(value, dict):
    return b'}(' + b''.join(_python_2(key) + _python_2(item) for key, item in value.items()) + b'u'
  if isinstance(value, str):
    raw = value.encode('latin1')
    return b'T' + struct.pack('<i', len(raw)) + raw
  array = np.ascontiguousarray(value)
  shape = b'(' + b''.join(b'J' + struct.pack('<i', side) for side in array.shape) + b't'
  kind = array.dtype.str[1:].encode()
  dtype = (b'cnumpy\ndtype\n(U' + bytes([len(kind)]) + kind + b'K\x00K\x01tR(K\x03U\x01<NNN' +
           b'J\xff\xff\xff\xff' * 2 + b'K\x00tb')
  raw = array.tobytes()
  return (b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01' + shape + dtype + b'\x89T' +
          struct.pack('<i', len(raw)) + raw + b'tb')


# torch's pickles, opcode by opcode (protocol 2).
def text(value: str) -> bytes:
  return b'X' + struct.pack('<I', len(value.encode())) + value.encode()


def number(value: int) -> bytes:
  return b'J' + struct.pack('<i', value) if -2**31 <= value < 2**31 else b'\x8a\x08' + struct.pack('<q', value)


def numbers(values) -> bytes:
  return b'(' + b''.join(map(number, values)) + b't'


EMPTY = b'ccollections\nOrderedDict\n)R'


def tensor(kind, key, count, offset, size, stride, legacy, view=b'N') -> bytes:
  """A tensor on the pickle's stack: _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)."""
  storage = (b'(' + text('storage') + b'ctorch\n' + kind.encode() + b'\n' + text(key) + text('cpu') + number(count) +
             (view if legacy else b'') + b'tQ')
  return (b'ctorch._utils\n_rebuild_tensor_v2\n(' + storage + number(offset) + numbers(size) + numbers(stride) +
          b'\x89' + EMPTY + b'tR')


def state_dict(items, wrapper: str | None = None) -> bytes:
  """The pickle of an OrderedDict of (name, pickled tensor), with torch's _metadata, inside another dict if wrapped."""
  body = EMPTY + b'(' + b''.join(text(name) + value for name, value in items) + b'u'
  body += b'}(' + text('_metadata') + EMPTY + b'ub'
  return b'\x80\x02' + (b'}(' + text(wrapper) + body + b'u' if wrapper else body) + b'.'


def strides(shape):
  return [int(np.prod(shape[i + 1:])) for i in range(len(shape))]


def plain(arrays, legacy, wrapper=None):
  """(pickle, {key: bytes}) with one storage for each array."""
  items, storages = [], {}
  for i, (name, array) in enumerate(arrays.items()):
    key = str(94_000_000 + 64 * i) if legacy else str(i)
    storages[key] = array.size, array.tobytes()
    items.append((name, tensor(_TORCH[array.dtype.str[1:]], key, array.size, 0, array.shape, strides(array.shape),
                               legacy)))
  return state_dict(items, wrapper), storages


def torch_object(path, content, old=False):
  """torch.save(content, path): nested dictionaries of arrays, numbers and texts; bytes are a pickled object."""
  storages = {}

  def pickled(value):
    if isinstance(value, dict):
      return b'}(' + b''.join(pickled(key) + pickled(item) for key, item in value.items()) + b'u'
    if isinstance(value, bytes):
      return value
    if isinstance(value, str):
      return text(value)
    if isinstance(value, int):
      return number(value)
    if value is None:
      return b'N'
    key = str(len(storages))
    storages[key] = value.size, value.tobytes()
    return tensor(_TORCH[value.dtype.str[1:]], key, value.size, 0, value.shape, strides(value.shape), old)
  (legacy if old else zipped)(path, b'\x80\x02' + pickled(content) + b'.', storages)


def legacy(path, pickled, storages, little_endian=True, magic=0x1950a86a20f9469cfc6c):
  """Before torch 1.6: magic, protocol, system, object, keys; then counts and raw storages."""
  system = (b'\x80\x02}(' + text('protocol_version') + number(1001) + text('little_endian') +
            (b'\x88' if little_endian else b'\x89') + text('type_sizes') + b'}' + b'u.')
  keys = b'\x80\x02](' + b''.join(map(text, sorted(storages))) + b'e.'
  with open(path, 'wb') as file:
    file.write(b'\x80\x02\x8a\x0a' + magic.to_bytes(10, 'little') + b'.' + b'\x80\x02M\xe9\x03.' + system + pickled)
    file.write(keys)
    for key in sorted(storages):
      count, raw = storages[key]
      file.write(struct.pack('<q', count) + raw)


def zipped(path, pickled, storages, byteorder=b'little', compression=zipfile.ZIP_STORED):
  """Since torch 1.6: archive/data.pkl, archive/byteorder, archive/data/<key>, archive/version."""
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('archive/data.pkl', pickled)
    if byteorder is not None:
      archive.writestr('archive/byteorder', byteorder)
    for key, (_, raw) in storages.items():
      archive.writestr(f'archive/data/{key}', raw)
    archive.writestr('archive/version', b'3\n')


def torchvision_names(arrays):
  """Detectron2's names -> torchvision's, with BatchNorm's counters of batches."""
  found = {}
  for name, array in arrays.items():
    name = name.replace('linear.', 'fc.').replace('stem.conv1.norm', 'bn1').replace('stem.conv1', 'conv1')
    name = re.sub(r'res(\d)\.', lambda m: f'layer{int(m[1]) - 1}.', name)
    name = name.replace('shortcut.norm', 'downsample.1').replace('shortcut', 'downsample.0')
    name = re.sub(r'conv(\d)\.norm', r'bn\1', name)
    found[name] = array
    if name.endswith('running_var'):
      found[name.replace('running_var', 'num_batches_tracked')] = np.array([3], np.int64)
  return found


def transformers_names(arrays):
  """torchvision's names -> those of ResNetForImageClassification."""
  found = {}
  for name, array in arrays.items():
    name = re.sub(r'^conv1', 'embedder.embedder.convolution', name)
    name = re.sub(r'^bn1', 'embedder.embedder.normalization', name)
    name = re.sub(r'^layer(\d)\.(\d+)', lambda m: f'encoder.stages.{int(m[1]) - 1}.layers.{m[2]}', name)
    name = name.replace('downsample.0', 'shortcut.convolution').replace('downsample.1', 'shortcut.normalization')
    name = re.sub(r'\.(?:conv|bn)(\d)\.', lambda m: f'.layer.{int(m[1]) - 1}.' + (
      'convolution.' if 'conv' in m[0] else 'normalization.'), name)
    found[name.replace('fc.', 'classifier.1.') if name.startswith('fc.') else f'resnet.{name}'] = array
  return found


def children_names(arrays):
  """torchvision's names -> those of nn.Sequential(*list(resnet.children())[:-1])."""
  numbers = {'conv1': '0', 'bn1': '1', 'layer1': '4', 'layer2': '5', 'layer3': '6', 'layer4': '7'}
  split = [(name.partition('.'), array) for name, array in arrays.items()]
  return {f'{numbers[first]}.{rest}': array for (first, _, rest), array in split if first in numbers}


def converted_names(arrays):
  """torchvision's names -> those of the scripts that convert for Detectron2."""
  found = {}
  for name, array in arrays.items():
    name = name if name.startswith('layer') else f'stem.{name}'
    name = re.sub(r'layer(\d)', lambda m: f'res{int(m[1]) + 1}', re.sub(r'bn(\d)', r'conv\1.norm', name))
    found[name.replace('downsample.0', 'shortcut').replace('downsample.1', 'shortcut.norm')] = array
  return found


def detectron_names(arrays, norm: str, classifier: str = 'pred'):
  """Detectron2's names of a backbone -> Detectron's; norm: 'bn' or 'gn'."""
  branches = {'conv1': '2a', 'conv2': '2b', 'conv3': '2c', 'shortcut': '1'}
  suffixes = {'weight': '_w', 'bias': '_b', 'norm.weight': f'_{norm}_s', 'norm.bias': f'_{norm}_b',
              'norm.running_mean': '_bn_rm', 'norm.running_var': '_bn_riv'}
  found = {}
  for name, array in arrays.items():
    if match := re.fullmatch(r'res(\d)\.(\d+)\.(\w+?)\.(.+)', name):
      found[f'res{match[1]}_{match[2]}_branch{branches[match[3]]}{suffixes[match[4]]}'] = array
    elif match := re.fullmatch(r'stem\.conv1\.(.+)', name):
      found[f'{"res_conv1" if match[1] != "weight" and norm == "bn" else "conv1"}{suffixes[match[1]]}'] = array
    else:
      found[f'{classifier}{suffixes[name.removeprefix("linear.")]}'] = array
    found['conv1_w_momentum'] = np.zeros([3], 'f')
  return found


def keras(path, arrays, biases, drop_linear=False):
  """Keras' .h5: groups of layers, with lists of their names. Arguments as of keras_layers."""
  layers = {'input_1': {}} | keras_layers(arrays, biases, drop_linear)
  with h5py.File(path, 'w') as file:
    file.attrs['layer_names'] = [name.encode() for name in layers]
    for layer, weights in layers.items():
      group = file.create_group(layer)
      group.attrs['weight_names'] = [f'{layer}/{kind}:0'.encode() for kind in weights]
      for kind, array in weights.items():
        group.create_dataset(f'{layer}/{kind}:0', data=array)


def keras_weights(path, layers, named=True, container='layers'):
  """Keras' .weights.h5: layers/<class>_<n>/vars/<k>; Keras 3 adds the names of layers, tf_keras does not."""
  counts = {}
  with h5py.File(path, 'w') as file:
    for name, weights in layers.items():
      kind = 'batch_normalization' if 'gamma' in weights else 'conv2d' if weights['kernel'].ndim == 4 else 'dense'
      counts[kind] = counts.get(kind, -1) + 1
      group = file.create_group(f'{container}/{kind}{f"_{counts[kind]}" if counts[kind] else ""}/vars')
      if named:
        group.attrs['name'] = name
      for k, array in enumerate(weights.values()):
        group.create_dataset(str(k), data=array)


def keras_archive(path, layers, names, compression=zipfile.ZIP_STORED):
  """A .keras file; names: of the layers in its configuration."""
  classes = {4: 'BatchNormalization', 2: 'Conv2D'}
  keras_weights(f'{path}.unpacked', layers, named=False)
  config = [{'class_name': 'InputLayer', 'config': {'name': 'input_1'}}] + [
    {'class_name': classes[len(weights)] if weights.get('kernel', weights.get('gamma')).ndim != 2 else 'Dense',
     'config': {'name': name}} for name, weights in zip(names, layers.values(), strict=True)]
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('metadata.json', '{"keras_version": "2.20.1"}')
    archive.writestr('config.json', json.dumps({'class_name': 'Functional', 'config': {'layers': config}}))
    archive.write(f'{path}.unpacked', 'model.weights.h5')


def in_order(layers):
  """keras.applications' layers in the order of the model: of a block 1, 2, the shortcut 0, and 3."""
  def place(name):
    block, _, rest = name.rpartition('_block') if 'block' in name else (name[:5], '', '')
    number = (rest.split('_') + ['', ''])[1]
    return block[:5], rest.split('_')[0], '1203'.find(number) if number else 0, name.endswith('bn')
  return dict(sorted(layers.items(), key=lambda item: (item[0] == 'predictions', place(item[0]))))


def keras_layers(arrays, biases, drop_linear=False):
  """keras.applications' layers: conv1_conv, conv1_bn, conv2_block1_0_conv …; biases: {conv name: array}."""
  numbers = {'shortcut': 0, 'conv1': 1, 'conv2': 2, 'conv3': 3}
  kinds = {'weight': 'gamma', 'bias': 'beta', 'running_mean': 'moving_mean', 'running_var': 'moving_variance'}
  layers: dict[str, dict[str, np.ndarray]] = {}
  for name, array in arrays.items():
    if name.startswith('linear.'):
      if not drop_linear:
        layers.setdefault('predictions', {})['kernel' if name.endswith('weight') else 'bias'] = array.T
      continue
    match = re.fullmatch(r'(?:stem\.conv1|res(\d)\.(\d+)\.(\w+?))\.(norm\.)?(\w+)', name)
    layer = f'conv{match[1]}_block{int(match[2]) + 1}_{numbers[match[3]]}' if match[1] else 'conv1'
    if match[4]:
      layers.setdefault(f'{layer}_bn', {})[kinds[match[5]]] = array
    else:
      layers.setdefault(f'{layer}_conv', {})['kernel'] = array.transpose(2, 3, 1, 0)
      layers[f'{layer}_conv']['bias'] = biases[name.removesuffix('.weight')]
  return layers
