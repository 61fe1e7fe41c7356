"""torchvision's names: the features of the source, from every container."""

import numpy as np
import pytest

from rethink_tf.models.norms import frozen_batch_norm, sync_batch_norm
from rethink_tf.weights import formats, torchvision
from tests.weights import files, reference

RGB = reference.RGB


@pytest.mark.parametrize('legacy, wrapper, prefix, groups', [
  (True, None, '', 1), (False, None, '', 1), (True, 'state_dict', 'module.', 1), (False, 'model', '', 4)])
def test_features_are_those_of_the_source(tmp_path, legacy, wrapper, prefix, groups):
  arrays = reference.random_arrays('bn', groups)
  named = {prefix + name: array for name, array in files.torchvision_names(arrays).items()}
  path = tmp_path / 'weights.bin'
  (files.legacy if legacy else files.zipped)(path, *files.plain(named, legacy, wrapper))
  image = reference.random_image()
  expected = reference.features(arrays, image, norm='bn', groups=groups, **RGB)
  norm = sync_batch_norm if legacy else frozen_batch_norm
  model = reference.detector(norm, RGB['mean'], RGB['std'], groups=groups, width_per_group=32 // groups)
  loaded = reference.check(path, model, expected, image)
  assert len(loaded.names) == len(arrays) - 2  # without the classifier
  contents = formats.read(str(path))
  assert (contents.norm, contents.channels, contents.stride_in_1x1) == ('bn', 'rgb', False)
  assert contents.architecture.groups == groups and contents.architecture.depth == 14
  assert (contents.pixel_mean, contents.pixel_std) == ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
  assert any("torchvision's: they are not in the file" in note for note in contents.notes)


def test_children_of_a_network_are_its_layers(tmp_path):
  """nn.Sequential(*list(resnet.children())[:-1]) numbers them."""
  named = {name: array for name, array in files.torchvision_names(reference.random_arrays('bn')).items()
           if not name.startswith('fc')}
  numbers = {'conv1': '0', 'bn1': '1', **{f'layer{k}': str(k + 3) for k in (1, 2, 3, 4)}}
  numbered = {'.'.join([numbers[name.split('.')[0]], *name.split('.')[1:]]): array for name, array in named.items()}
  found = []
  for name, arrays in (('whole', named), ('children', numbered)):
    files.zipped(tmp_path / name, *files.plain(arrays, False, None))
    found.append(formats.read(str(tmp_path / name)))
  whole, children = found
  assert whole.arrays.keys() == children.arrays.keys() and 'stem.conv1.weight' in children.arrays
  for name, array in whole.arrays.items():
    np.testing.assert_array_equal(np.asarray(children.arrays[name]), np.asarray(array))
  assert (children.pixel_std, children.channels, children.norm) == (whole.pixel_std, 'rgb', 'bn')


def test_the_licence_of_wsl():
  shapes = {'conv1.weight': [64, 3, 7, 7]}
  for stage, blocks in enumerate((3, 4, 23, 3), 1):
    for block in range(blocks):
      inner = 32 * 16 * 2**(stage - 1)
      shapes |= {f'layer{stage}.{block}.conv1.weight': [inner, 8, 1, 1],
                 f'layer{stage}.{block}.conv2.weight': [inner, inner // 32, 3, 3],
                 f'layer{stage}.{block}.conv3.weight': [256 * 2**(stage - 1), inner, 1, 1]}
  arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
  contents = torchvision.contents(arrays, 'x.pth', '.pth')
  assert contents.architecture == (101, 32, 16, 64, 256)
  assert 'CC BY-NC' in contents.licence
  assert str(contents.architecture) == 'ResNeXt-101 32x16d'


def test_names_become_canonical_ones():
  assert torchvision.canonical('layer3.22.downsample.1.running_var') == 'res4.22.shortcut.norm.running_var'
  assert torchvision.canonical('bn1.bias') == 'stem.conv1.norm.bias'
  assert torchvision.canonical('layer1.0.se.weight') == 'res2.0.se.weight'  # unknown: refused by the loader
