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
  from rethink_tf.weights import formats, loadable

  console.hide_library_info()
  for path in paths:
    contents = formats.read(path)
    print(describe(contents))
    loadable.check(contents)


def describe(contents: Contents) -> str:
  """Return a table of a file's properties, and the options of a run that starts from it."""
  from rethink_tf.weights import loadable, options
  known = options.completed(contents)
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
    *([('detector', ', '.join(f'{name} = {value}' for name, value in contents.settings.items()) or unknown)]
      if contents.kind == 'detector' else []),
    ('licence', contents.licence),
    *(('note', note) for note in known.notes),
    ('ignored', ', '.join(contents.ignored[:4]) + (f', … ({len(contents.ignored)})' if contents.ignored[4:] else '')
     or 'none'),
    *([('use it with', 'nothing: it has arrays of no layer that is built here')] if loadable.unknown(contents) else
      [(label, ' '.join(found)) for label, found in options.alternatives(contents).items()]),
  ]
  return '\n'.join(f'{name:<13} {value}' for name, value in rows)


if __name__ == '__main__':
  process.start(main, takes_arguments=True, interrupted='stopped', result_is_printed=True)
