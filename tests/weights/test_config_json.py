"""config.json beside a file: variants with the same names and shapes are refused, and normalisation is read."""

import json

import pytest
import safetensors.numpy

from rethink_tf.errors import UserError
from rethink_tf.weights import formats
from tests.weights import files, reference

CFG = {'mean': [0.5, 0.5, 0.5], 'std': [0.25, 0.25, 0.25]}


def write(tmp_path, config, norm='bn', names=lambda arrays: arrays):
  path = tmp_path / 'model.safetensors'
  safetensors.numpy.save_file(names(files.torchvision_names(reference.random_arrays(norm))), path)
  (tmp_path / 'config.json').write_text(config if isinstance(config, str) else json.dumps(config))
  return str(path)


@pytest.mark.parametrize('name', ['resnet14', 'resnet14.a1_in1k', 'tv_resnet14', 'wide_resnet14_2', 'resnext14_32x4d'])
def test_plain_networks_have_the_normalisation_of_the_file(tmp_path, name):
  found = formats.read(write(tmp_path, {'architecture': name, 'pretrained_cfg': CFG, 'model_args': {'num_classes': 5}}))
  assert found.pixel_mean == (127.5,) * 3 and found.pixel_std == (63.75,) * 3
  assert any(name in note and 'config.json' in note for note in found.notes)
  assert not any('torchvision' in note or 'resnetaa50' in note for note in found.notes)


@pytest.mark.parametrize('config', [
  {'architecture': 'resnetaa14'}, {'architecture': 'resnetblur14d'}, {'architecture': 'resnet14t.x'},
  {'architecture': 'resnet14', 'model_args': {'output_stride': 8}},
  {'model_type': 'resnet', 'hidden_act': 'gelu'}, {'model_type': 'resnet', 'downsample_in_first_stage': True}])
def test_variants_are_refused(tmp_path, config):
  with pytest.raises(UserError, match='config.json, which is not built here') as error:
    formats.read(write(tmp_path, config))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('config', [{'architecture': 'resnetaa50'}, {'model_type': 'resnet', 'depths': [3, 4, 6, 3]},
                                    {'model_type': 'bert'}, [1], '{', '{"architecture": 3}', '\x00'])
def test_a_config_of_another_network_is_not_used(tmp_path, config):
  """What cannot be told is said."""
  found = formats.read(write(tmp_path, config))
  assert found.pixel_mean[0] == 123.675 and any('resnetaa50' in note or 'not used' in note for note in found.notes)


def test_without_a_config_the_variants_are_named(tmp_path):
  path = write(tmp_path, {})
  (tmp_path / 'config.json').unlink()
  assert any('resnetaa50 and resnetblur50' in note for note in formats.read(path).notes)


def test_group_norm_is_told_by_the_config_alone(tmp_path):
  assert formats.read(write(tmp_path, {'architecture': 'resnet14_gn'}, 'gn')).norm == 'gn'
  found = formats.read(write(tmp_path, {'architecture': 'resnet14'}, 'gn'))
  assert found.norm is None and any('whose statistics were not saved' in note for note in found.notes)


@pytest.mark.parametrize('in_1x1', [False, True])
def test_strides_of_transformers(tmp_path, in_1x1):
  config = {'model_type': 'resnet', 'depths': [1, 1, 1, 1], 'downsample_in_bottleneck': in_1x1, 'hidden_act': 'relu'}
  found = formats.read(write(tmp_path, config, names=files.transformers_names))
  assert found.stride_in_1x1 is in_1x1 and found.format.startswith('transformers names')
