"""Describe weight files and the options that use them: python -m rethink_tf.weights FILE …

FILE: a weight file, a TensorFlow checkpoint or a run folder.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rethink_tf import process
from rethink_tf.errors import UserError

if TYPE_CHECKING:
  from rethink_tf.weights.contents import Contents


def main(paths: list[str]) -> None:
  """Print the description of each file."""
  if not paths:
    raise UserError('no weight file: python -m rethink_tf.weights FILE …')
  for path in paths:
    process.check_path(path, 'no such file: give the path of a weight file or a run folder', suffix='.index')
  from rethink_tf import console
  from rethink_tf.weights import formats

  console.hide_library_info()
  for path in paths:
    print(describe(formats.read(path)))


def describe(contents: Contents) -> str:
  """Return a table of a file's properties, and the options of a run that starts from it."""
  parameters = sum(math.prod(array.shape) for array in contents.arrays.values())
  unknown = 'unknown (not in the file)'
  norms = {'bn': 'BatchNorm with statistics', 'folded': 'BatchNorm folded into a fixed affine map', 'gn': 'GroupNorm',
           'none': 'none', None: 'scale and shift without statistics (GroupNorm or folded BatchNorm)'}
  strides = {True: 'on the first 1x1 of a block', False: 'on the 3x3', None: unknown}
  rows = [
    ('file', contents.path),
    ('format', contents.format),
    ('holds', f'{contents.kind}, {len(contents.arrays)} arrays, {parameters:,} numbers'),
    ('architecture', contents.architecture or 'not a ResNet'),
    ('norm', norms[contents.norm] if contents.architecture else 'see the configuration of the run'),
    ('colours', contents.channels or unknown),
    ('mean (RGB)', contents.pixel_mean or unknown),
    ('std (RGB)', contents.pixel_std or unknown),
    ('strides', strides[contents.stride_in_1x1]),
    ('padding', contents.padding if contents.architecture else 'of stride 1'),
    ('epsilon', f'{contents.epsilon:g}' if contents.epsilon else unknown),
    ('licence', contents.licence),
    *(('note', note) for note in contents.notes),
    ('ignored', ', '.join(contents.ignored[:4]) + (f', … ({len(contents.ignored)})' if contents.ignored[4:] else '')
     or 'none'),
    ('use it with', ' '.join(command_line(contents))),
  ]
  return '\n'.join(f'{name:<13} {value}' for name, value in rows)


def command_line(contents: Contents) -> list[str]:
  """Return the options of a run that starts from a file."""
  from rethink_tf.weights import tf_models
  if contents.own:
    init = 'detector' if contents.kind == 'detector' else 'pretrained_run'
  elif contents.kind == 'detector':
    init = 'detector'
  elif contents.format.startswith('keras'):
    init = 'imagenet_keras'
  elif contents.padding == 'same':
    init = 'imagenet_tf_models'
  elif contents.stride_in_1x1:
    init = 'imagenet_msra'
  elif contents.pixel_std is not None and contents.pixel_std[0] > 2:
    init = 'wsl' if 'WSL' in contents.licence else 'imagenet_torchvision'
  else:
    init = 'imagenet'
  options = [f'--gin_file=gin_configs/init/{init}.gin']
  if contents.format.startswith('torchvision VGG'):
    options.insert(0, '--gin_file=gin_configs/models/vgg16.gin')
  norm = {'bn': 'syncbn', 'folded': 'frozen_bn', 'none': 'none'}.get(contents.norm)
  if norm is not None and not contents.own and contents.kind == 'backbone':
    options.append(f'--gin_file=gin_configs/norms/{norm}.gin')
  options.append(f'--weights={contents.path}')
  if contents.architecture is not None:
    defaults = {'depth': 50, 'groups': 1, 'width_per_group': 64, 'stem_width': 64, 'res2_width': 256}
    options += [f"--gin_param='ResNet.{name} = {value}'" for name, value in contents.architecture._asdict().items()
                if value != defaults[name]]
  if contents.stride_in_1x1 is not None and init == 'detector' and contents.stride_in_1x1:
    options.append("--gin_param='ResNet.stride_in_1x1 = True'")
  if contents.own and contents.padding != 'symmetric':
    options.append(f"--gin_param=\"ResNet.padding = '{contents.padding}'\"")
  if contents.epsilon is None:
    options.append(f"--gin_param='PretrainedWeights.epsilon = {tf_models.likely_epsilon(contents.ignored):g}'")
  if contents.channels is None:
    options.append("--gin_param=\"PretrainedWeights.channels = 'bgr'\"")
  return options


if __name__ == '__main__':
  process.start(main, takes_arguments=True, interrupted='stopped', result_is_printed=True)
