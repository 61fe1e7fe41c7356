"""The options of a file: gin files and bindings that a complete configuration needs to load it."""

import gin
import pytest

from rethink_tf import gin_files
from rethink_tf.weights import formats, options
from tests.weights import files, reference


@pytest.mark.parametrize('groups', [1, 4])
def test_options_of_a_backbone(tmp_path, groups):
  path = tmp_path / 'x.pth'
  files.zipped(path, *files.plain(files.torchvision_names(reference.random_arrays('bn', groups)), False))
  found = options.command_line(formats.read(str(path)))
  assert '--gin_file=gin_configs/init/imagenet_torchvision.gin' in found
  assert '--gin_file=gin_configs/norms/syncbn.gin' in found and f'--weights={path}' in found
  assert ("--gin_param='ResNet.groups = 4'" in found) == (groups == 4)


@pytest.mark.parametrize('shape, name', options.MODELS.items())
def test_architectures_have_the_shipped_files(shape, name):
  try:
    gin_files.parse([f'gin_configs/models/{name}.gin'])
    values = [gin.query_parameter(f'ResNet.{field}') for field in options._R50._fields]
  finally:
    gin.clear_config()
  assert values == [*shape, 64, 256]


def test_defaults_and_shipped_bindings():
  assert options.default_of('Anchors.offset') == 0.5 and options.default_of('Cascade.ious') == (0.6, 0.7)
  shipped = options.bindings_of('detector_detectron2')
  assert shipped['Anchors.offset'] == 0.0 and shipped['RoIPooler.sampling_ratio'] == 0
  assert options.quoted('A.b', 'c') == '"A.b = \'c\'"' and options.quoted('A.b', '@C()') == "'A.b = @C()'"
