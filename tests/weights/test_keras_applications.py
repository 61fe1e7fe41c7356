"""Files of keras.applications: biases, epsilon, Caffe's channel order and strides on the first 1x1."""

import h5py
import numpy as np
import pytest

from rethink_tf.errors import UserError
from rethink_tf.models.norms import frozen_batch_norm, sync_batch_norm
from rethink_tf.weights import formats, torchvision_vgg
from tests.weights import files, reference
from tests.weights import test_torchvision_vgg as vgg


def with_biases(arrays, seed=5):
  rng = np.random.default_rng(seed)
  return {name.removesuffix('.weight'): rng.normal(0, 0.5, len(array)).astype('f')
          for name, array in arrays.items() if array.ndim == 4}


@pytest.mark.parametrize('norm, notop', [(frozen_batch_norm, False), (sync_batch_norm, True)])
def test_features_are_those_of_the_source(tmp_path, norm, notop):
  arrays = reference.random_arrays('bn')
  biases = with_biases(arrays)
  path = tmp_path / 'resnet.h5'
  files.keras(path, arrays, biases, notop)
  image = reference.random_image()
  source = arrays | {f'{name}.bias': bias for name, bias in biases.items()}
  expected = reference.features(source, image, norm='bn', epsilon=1.001e-5, stride_in_1x1=True, **reference.CAFFE)
  model = reference.detector(norm, reference.CAFFE['mean'][::-1], stride_in_1x1=True)
  reference.check(path, model, expected, image)


@pytest.mark.parametrize('layers, message', [
  (['conv1_conv', 'conv2_block1_preact_bn'], 'V2'), (['conv1_conv', 'conv2_block1_2_conv/depthwise_kernel'], 'ResNeXt'),
  (['dense_1'], 'conv1_conv')])
def test_other_networks_are_refused(tmp_path, layers, message):
  path = tmp_path / 'other.h5'
  with h5py.File(path, 'w') as file:
    file.attrs['layer_names'] = [layer.split('/')[0].encode() for layer in layers]
    for layer in layers:
      name, _, kind = layer.partition('/')
      weight = f'{name}/{kind or "kernel"}:0'
      group = file.create_group(name)
      group.attrs['weight_names'] = [weight.encode()]
      group.create_dataset(weight, data=np.zeros([1, 1, 3, 3], 'f'))
  with pytest.raises(UserError, match=message) as error:
    formats.read(str(path))
  assert '\n' not in str(error.value)


def test_data_sets_in_other_files_are_refused(tmp_path):
  (tmp_path / 'secret').write_bytes(bytes(64))
  path = tmp_path / 'link.h5'
  with h5py.File(path, 'w') as file:
    file.attrs['layer_names'] = [b'conv1_conv']
    group = file.create_group('conv1_conv')
    group.attrs['weight_names'] = [b'conv1_conv/kernel:0']
    group.create_dataset('conv1_conv/kernel:0', (1, 1, 4, 4), 'f', external=[(str(tmp_path / 'secret'), 0, 64)])
  with pytest.raises(UserError, match='not an array of numbers in this file'):
    formats.read(str(path))


@pytest.mark.parametrize('numbered', [False, True])
def test_a_vgg_has_the_arrays_of_torch(tmp_path, numbered):
  """fc1 takes channels last in Keras, channels first in torch."""
  content = vgg.arrays()
  expected = torchvision_vgg.contents(content, 'x', 'x').arrays
  kernels = {name.removesuffix('.weight'): array for name, array in expected.items() if name.endswith('weight')}
  layers = {}
  for name, array in kernels.items():
    layer = {'fc6': 'fc1', 'fc7': 'fc2', 'linear': 'predictions'}.get(name, name.replace('conv', 'block').replace(
      '_', '_conv'))
    if name == 'fc6':
      array = array.reshape(len(array), -1, 7, 7).transpose(2, 3, 1, 0).reshape(-1, len(array))
    else:
      array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    layers[layer] = {'kernel': array, 'bias': expected[f'{name}.bias']}
  path = tmp_path / 'vgg16'
  files.keras_weights(path, layers, named=not numbered)
  found = formats.read(str(path))
  assert found.arrays.keys() == expected.keys() and (found.channels, found.norm) == ('bgr', 'none')
  for name, array in expected.items():
    np.testing.assert_array_equal(np.asarray(found.arrays[name]), array, err_msg=name)
