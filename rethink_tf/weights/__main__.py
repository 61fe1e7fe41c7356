"""Shows what a weight file holds and which gin lines use it: python -m rethink_tf.weights FILE."""

from __future__ import annotations

import math
import sys

from rethink_tf.errors import UserError


def main(arguments: list[str]) -> int:
  """Prints the description of each file; exit code 1 and one line for one that cannot be read."""
  from rethink_tf import console
  console.hide_library_info()
  from rethink_tf.weights import formats
  if not arguments or any(argument.startswith('-') for argument in arguments):
    print('usage: python -m rethink_tf.weights FILE …   (a weight file, a TensorFlow checkpoint or a run folder)')
    return 0 if arguments in (['-h'], ['--help'], ['--helpshort']) else 2
  try:
    for path in arguments:
      print(describe(formats.read(path)))
  except UserError as error:
    print(f'error: {error.line()}', file=sys.stderr)
    return 1
  return 0


def describe(contents) -> str:
  """A table of what is known about a file, and the command line that starts from it."""
  parameters = sum(math.prod(array.shape) for array in contents.arrays.values())
  unknown = 'the file does not tell'
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
    ('licence', contents.licence),
    *(('note', note) for note in contents.notes),
    ('left aside', ', '.join(contents.ignored[:4]) + (f', … ({len(contents.ignored)})' if contents.ignored[4:] else '')
     or 'nothing'),
    ('use it with', ' '.join(command_line(contents))),
  ]
  return '\n'.join(f'{name:<13} {value}' for name, value in rows)


def command_line(contents) -> list[str]:
  """The options that start a run from a file."""
  if contents.own:
    init = 'detector' if contents.kind == 'detector' else 'pretrained_run'
  elif contents.kind == 'detector':
    init = 'detector'
  elif contents.format.startswith('keras'):
    init = 'imagenet_keras'
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
  shape = contents.architecture
  if shape is not None:
    usual = {'depth': 50, 'groups': 1, 'width_per_group': 64, 'stem_width': 64, 'res2_width': 256}
    options += [f"--gin_param='ResNet.{name} = {value}'" for name, value in shape._asdict().items()
                if value != usual[name]]
  if contents.stride_in_1x1 is not None and init == 'detector' and contents.stride_in_1x1:
    options.append("--gin_param='ResNet.stride_in_1x1 = True'")
  if contents.channels is None:
    options.append("--gin_param=\"PretrainedWeights.channels = 'bgr'\"")
  return options


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
