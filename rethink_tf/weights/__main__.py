"""Describe weights and the options that use them: python -m rethink_tf.weights FILE | NAME …

FILE: a weight file, a TensorFlow checkpoint or a run folder. NAME: published weights, which are downloaded unless they
are in the cache; --list lists them, with further words those alone that have all of them (--list resnet-50 bn).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from rethink_tf.downloads import settings
from rethink_tf.errors import UserError, plain
from rethink_tf.process import entry
from rethink_tf.weights import catalog, listing

if TYPE_CHECKING:
  from rethink_tf.weights.contents import Contents

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Define the flags of the command line."""
  here = {'module_name': sys.argv[0]}
  flags.DEFINE_bool('list', False, 'list the published weights by name; further words select some of them', **here)
  flags.DEFINE_bool('json', False, 'with --list: as JSON, with addresses, checksums and sources', **here)
  flags.DEFINE_string('cache_dir', None, settings.CACHE_HELP, **here)
  flags.DEFINE_bool('offline', False, settings.OFFLINE_HELP, **here)


def main(arguments: list[str]) -> None:
  """Print the table of published weights, or the description of each file or name."""
  settings.apply(FLAGS.cache_dir, FLAGS.offline)
  if FLAGS.list:
    print((listing.as_json if FLAGS.json else listing.table)(listing.matching(catalog.entries().values(), arguments)))
  elif FLAGS.json:
    raise UserError('--json belongs to --list: python -m rethink_tf.weights --list --json')
  elif not arguments:
    raise UserError(f'no weight file: python -m rethink_tf.weights FILE …, or a name of {catalog.LIST}')
  else:
    describe_all(arguments)


def describe_all(arguments: list[str]) -> None:
  """Print the description of each file or name; those of names are downloaded unless they are in the cache."""
  for text in arguments:
    catalog.check(text)
  from rethink_tf import console
  from rethink_tf.weights import formats, loadable

  console.hide_library_info()
  for text in arguments:
    entry = catalog.find(text)
    if entry is not None:
      print(as_table(listing.description(entry)), flush=True)
    contents = formats.read(catalog.local_path(text))
    if entry is not None:
      contents = entry.completed(contents)._replace(licence=entry.licence)
    print(describe(contents, text, None if entry is None else entry.init))
    loadable.check(contents)


def as_table(rows: list[tuple[str, object]]) -> str:
  return '\n'.join(f'{name:<13} {value}' for name, value in rows)


def describe(contents: Contents, given: str | None = None, init: str | None = None) -> str:
  """Return a table of a file's properties, and the options of a run that starts from it.

  given: how a command names it, if not by the path of the file. init: its file of gin_configs/init, if it is known.
  """
  from rethink_tf.weights import class_layers, loadable, options, torchvision_vgg
  known = options.completed(contents)
  parameters = sum(math.prod(array.shape) for array in contents.arrays.values())
  unknown = 'unknown (not in the file)'
  norms = {'bn': 'BatchNorm with statistics', 'folded': 'BatchNorm folded into a fixed affine map', 'gn': 'GroupNorm',
           'none': 'none', 'own': f'{contents.norm_part}, not of this package',
           None: 'scale and shift without statistics (GroupNorm or folded BatchNorm)'}
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
    ('padding', contents.padding if contents.architecture else
     'of stride 1' if torchvision_vgg.is_of(contents) else 'see the configuration of the run'),
    ('epsilon', f'{contents.epsilon:g}' if contents.epsilon else unknown),
    *([('detector', ', '.join(f'{name} = {value}' for name, value in contents.settings.items()) or unknown)]
      if contents.kind == 'detector' else []),
    *([('classes', _listed(class_layers.names_of(contents)) or unknown)] if contents.kind == 'detector' else []),
    ('licence', contents.licence),
    *(('note', note) for note in known.notes),
    ('ignored', ', '.join(contents.ignored[:4]) + (f', … ({len(contents.ignored)})' if contents.ignored[4:] else '')
     or 'none'),
    *([('use it with', 'nothing: it has arrays of no layer that is built here')] if loadable.unknown(contents) else
      [(label, ' '.join(found)) for label, found in
      options.alternatives(contents._replace(path=given or contents.path), init).items()]),
  ]
  return as_table(rows)


def _listed(classes: Sequence[str] | None) -> str:
  more = ', …' if classes and len(classes) > 8 else ''
  return plain(f'{len(classes)}: {", ".join(classes[:8])}{more}') if classes else ''


if __name__ == '__main__':
  define_flags()
  entry.start(main, takes_arguments=True, interrupted='stopped', result_is_printed=True)
