"""What the description of a file prints loads, for each layout; of other files it prints no options."""

import pickle
import re
import shlex
import types

import gin
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from rethink_tf import experiment, gin_files
from rethink_tf.errors import UserError
from rethink_tf.weights import formats, loadable
from rethink_tf.weights.__main__ import describe
from tests.in_process import call
from tests.weights import files, reference
from tests.weights import test_keras_files as keras
from tests.weights import test_state_dicts as wrapped
from tests.weights import test_torchvision_vgg as vgg

BN, GN, FOLDED = (reference.random_arrays(norm) for norm in ('bn', 'gn', 'folded'))
slow = pytest.mark.slow


def torch(content):
  return lambda path: files.torch_object(path, content)


def pkl(arrays, author):
  return lambda path: path.write_bytes(pickle.dumps({'model': arrays, '__author__': author}))


def in_python_2(arrays, *names):
  return lambda path: path.write_bytes(files.python_2_pickle(files.detectron_names(arrays, *names)))


def vgg_of_keras(path):
  content = formats.torchvision_vgg.contents(vgg.arrays(), 'x', 'x').arrays
  layers = {name.removesuffix('.weight').replace('conv', 'block').replace('_', '_conv'): {
    'kernel': array.transpose(2, 3, 1, 0), 'bias': content[name.replace('weight', 'bias')]}
    for name, array in content.items() if array.ndim == 4}
  files.keras_weights(path, layers, named=False)


LAYOUTS = {
  'torchvision': torch(files.torchvision_names(BN)), 'WSL, wide': torch(files.torchvision_names(
    reference.random_arrays('bn', 4))), 'without statistics': torch(files.torchvision_names(GN)),
  'safetensors': lambda path: safetensors.numpy.save_file(wrapped.names(), path),
  **{name: torch(content) for name, (content, _, _) in wrapped.CHECKPOINTS.items()},
  'MoCo for Detectron2': pkl(files.converted_names(wrapped.names()), 'MOCO'),
  'Detectron2': pkl(BN, 'x'), 'Detectron2 without statistics': pkl(GN, 'x'),
  'Detectron, folded': in_python_2(FOLDED, 'bn', 'fc1000'), 'Detectron, GN': in_python_2(GN, 'gn'),
  'Keras .h5': lambda path: files.keras(path, BN, keras.BIASES),
  'Keras .weights.h5': lambda path: files.keras_weights(path, keras.LAYERS, named=False),
  'Keras .keras': lambda path: files.keras_archive(path, keras.LAYERS, list(keras.LAYERS)),
  'VGG': torch(vgg.arrays()), 'VGG of Keras': vgg_of_keras,
}
BY_DEFAULT = ('MoCo v3', 'Keras .weights.h5')


def load(options):
  """Build the backbone and the box head that options configure, and load the file; return what was loaded."""
  assert experiment.run  # its imports register the parts
  found = shlex.split(options)
  assert all(re.match('--(?:gin_file|gin_param|weights)=', option) for option in found), found
  values = {kind: [option.partition('=')[2] for option in found if option.startswith(f'--{kind}=')]
            for kind in ('gin_file', 'gin_param', 'weights')}
  try:
    gin_files.parse(['gin_configs/pretrain_2x.gin', *values['gin_file']],
                    [*values['gin_param'], f'WEIGHTS = {values["weights"][0]!r}'])
    is_vgg = any('vgg' in name for name in values['gin_file'])
    backbone = gin.get_configurable('VGG' if is_vgg else 'ResNet')()
    backbone(tf.zeros([1, 32, 32, 3]))
    model = types.SimpleNamespace(backbone=backbone, **{
      name: gin.query_parameter(f'MaskRCNN.{name}') for name in ('pixel_mean', 'pixel_std')})
    if is_vgg:
      model.box_head, model.box_pooler = gin.get_configurable('BoxHead')(), types.SimpleNamespace(size=7)
      model.box_head(tf.zeros([1, 1, 7, 7, backbone.widths[-1]]))
    return gin.get_configurable('PretrainedWeights')()(model)
  finally:
    gin.clear_config()


@pytest.mark.parametrize('layout', [
  name if name in BY_DEFAULT else pytest.param(name, marks=slow) for name in LAYOUTS])
def test_the_printed_options_load(tmp_path, layout):
  path = tmp_path / 'x'
  LAYOUTS[layout](path)
  description = describe(formats.read(str(path)))
  printed = re.findall(r'^(?:use it with|if GroupNorm|if folded BN) +(--.*)$', description, re.MULTILINE)
  assert printed, description
  for options in printed:
    loaded = load(options)
    assert len(loaded.names) >= 16
  assert len(printed) == (2 if 'without statistics' in layout else 1)


@pytest.mark.parametrize('change, message', [
  ({'layer1.0.se.fc1.weight': [4, 4, 1, 1], 'layer1.0.se.fc1.bias': [4]}, '2 of its arrays .*squeeze-and-excitation'),
  ({'layer1.0.conv1.bias': [32]}, "'res2.0.conv1.bias'.*BatchNorm is fused"),
  ({'attnpool.q_proj.weight': [4, 4], 'conv2.weight': [4, 4, 3, 3]}, "CLIP's"),
  ({'extra.weight': [3]}, 'see the names'),
])
def test_no_options_are_printed_for_what_does_not_load(tmp_path, change, message):
  path = tmp_path / 'x.pth'
  files.torch_object(path, wrapped.names() | {name: np.ones(shape, 'f') for name, shape in change.items()})
  contents = formats.read(str(path))
  with pytest.raises(UserError, match=message) as error:
    loadable.check(contents)
  assert '\n' not in str(error.value)
  assert '--weights' not in describe(contents) and 'no layer that is built here' in describe(contents)


def test_the_command_fails_for_what_does_not_load(tmp_path):
  path = tmp_path / 'x.pth'
  files.torch_object(path, wrapped.names() | {'layer1.0.se.fc1.weight': np.ones([4, 4, 1, 1], 'f')})
  result = call('weights', path)
  assert result.returncode == 1 and 'ResNet-14' in result.stdout and 'squeeze-and-excitation' in result.stderr
