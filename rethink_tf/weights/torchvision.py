"""ResNets by torchvision's names (conv1, bn1, layer1.0.conv1, downsample.0, fc), which WSL, SWSL and timm share."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from rethink_tf.weights import config_json
from rethink_tf.weights.contents import (
  DETECTRON2_MEAN,
  SWAV_STD,
  TORCH_STD,
  Array,
  Contents,
  architecture_of,
  norm_of,
)

_RULES = (
  (re.compile(r'conv1\.weight'), 'stem.conv1.weight'),
  (re.compile(r'bn1\.(weight|bias|running_mean|running_var)'), r'stem.conv1.norm.\1'),
  (re.compile(r'(layer[1-4]\.\d+)\.conv([1-3])\.weight'), r'\1.conv\2.weight'),
  (re.compile(r'(layer[1-4]\.\d+)\.bn([1-3])\.(weight|bias|running_mean|running_var)'), r'\1.conv\2.norm.\3'),
  (re.compile(r'(layer[1-4]\.\d+)\.downsample\.0\.weight'), r'\1.shortcut.weight'),
  (re.compile(r'(layer[1-4]\.\d+)\.downsample\.1\.(weight|bias|running_mean|running_var)'), r'\1.shortcut.norm.\2'),
  (re.compile(r'fc\.(weight|bias)'), r'linear.\1'),
)
_CHILDREN = {'0': 'conv1', '1': 'bn1', '4': 'layer1', '5': 'layer2', '6': 'layer3', '7': 'layer4', '9': 'fc'}
_WSL = {8: '32x8d', 16: '32x16d', 32: '32x32d', 48: '32x48d'}


def recognizes(names: Collection[str]) -> bool:
  """Return whether names of arrays are those of a ResNet of torchvision."""
  return 'conv1.weight' in names and 'layer1.0.conv1.weight' in names


def recognizes_children(names: Collection[str]) -> bool:
  """Return whether names are those of nn.Sequential(*list(resnet.children())[:-1])."""
  return '0.weight' in names and '4.0.conv1.weight' in names


def renamed(name: str) -> str:
  """Return torchvision's name of an array of such children: 4.0.conv1.weight -> layer1.0.conv1.weight."""
  child, _, rest = name.partition('.')
  return f'{_CHILDREN[child]}.{rest}' if child in _CHILDREN else name


def contents(arrays: Mapping[str, Array], path: str, container: str, names: str = 'torchvision') -> Contents:
  """Return the contents of a state dict; unknown names are kept, for the loader to refuse.

  Raises:
    UserError: not a ResNet of bottleneck blocks, or a variant by the config.json beside the file.
  """
  converted, ignored = {}, []
  for name, array in arrays.items():
    if name.endswith('num_batches_tracked'):
      ignored.append(name)
    else:
      converted[canonical(name)] = array
  architecture = architecture_of(converted, path)
  config = config_json.beside(path, architecture)
  norm, notes = norm_of(list(converted)), config.notes
  if norm == 'gn':  # or a folded BatchNorm, or one whose statistics were not saved
    norm = config.norm
    notes += ('norms without statistics: GroupNorm or folded BatchNorm, which the file does not specify; or BatchNorm '
              'whose statistics were not saved',) if norm is None else ()
  if config.pixel_mean is None:
    notes += ('mean and standard deviation are torchvision\'s: they are not in the file',)
  licence = 'BSD-3-Clause for torchvision\'s own weights'
  if architecture.depth == 101 and architecture.groups == 32 and architecture.width_per_group in _WSL:
    licence += '; CC BY-NC 4.0 (no commercial use) for the WSL and SWSL weights of this architecture'
  return Contents(path, f'{names} names in {container}', 'backbone', converted, norm=norm, architecture=architecture,
                  channels='rgb', stride_in_1x1=bool(config.stride_in_1x1),
                  pixel_mean=config.pixel_mean or DETECTRON2_MEAN, pixel_std=config.pixel_std or TORCH_STD,
                  licence=licence, ignored=tuple(ignored), notes=notes)


def normalised(contents: Contents, heads: Collection[str]) -> Contents:
  """Return the contents with the pixel_std of SwAV's and DeepCluster-v2's code, if the left out heads are theirs.

  Their multicropdataset.py divides red by 0.228 x 255, where torchvision has 0.229.
  """
  modules = {part for name in heads for part in name.split('.')}
  if {'projection_head', 'prototypes'} <= modules and contents.pixel_std == TORCH_STD:
    return contents._replace(pixel_std=SWAV_STD)
  return contents


def canonical(name: str) -> str:
  """Return Detectron2's name: layer1.0.bn2.weight -> res2.0.conv2.norm.weight."""
  for rule, replacement in _RULES:
    if rule.fullmatch(name):
      name = rule.sub(replacement, name)
      break
  return re.sub(r'^layer([1-4])\.', lambda match: f'res{int(match[1]) + 1}.', name)
