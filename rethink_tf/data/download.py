"""Download a data set in the layout of gin_configs/data: python -m rethink_tf.data.download --name=coco2017.

The same command continues an interrupted download. Archives lie in <output_dir>.download/ and are deleted once they are
unpacked (--keep_archives).
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
import sys

from absl import flags, logging

from rethink_tf.data.published_sets import SETS, PublishedSet
from rethink_tf.downloads import settings
from rethink_tf.errors import UserError, in_one_line, plain
from rethink_tf.process import entry

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Define the flags of the command line."""
  here = {'module_name': sys.argv[0]}
  flags.DEFINE_string('name', None, f'data set: {", ".join(SETS)}', **here)
  flags.DEFINE_string('output_dir', None, "folder to write; default: that of its gin file, as 'data/coco'", **here)
  flags.DEFINE_bool('keep_archives', False, 'keep the archives in <output_dir>.download/', **here)
  flags.DEFINE_bool('offline', False, settings.OFFLINE_HELP, **here)


def main() -> None:
  """Download the data set of --name."""
  chosen = find(FLAGS.name)
  settings.apply(None, FLAGS.offline)
  from rethink_tf import console  # imports TensorFlow, which takes seconds: not needed for --help and such errors

  console.hide_library_info()
  folder = os.path.expanduser(FLAGS.output_dir or chosen.folder).rstrip('/')
  print(download(FLAGS.name, chosen, folder, FLAGS.keep_archives))


def find(name: str | None) -> PublishedSet:
  """Return a data set by name. Raises UserError with similar names."""
  if not name:
    raise UserError(f'no data set: give --name={"|".join(SETS)}')
  if name not in SETS:
    close = difflib.get_close_matches(name, SETS, n=1)
    meant = f'; did you mean {close[0]}?' if close else ''
    raise UserError(f'--name={plain(name)}: no such data set{meant}: use one of {", ".join(SETS)}')
  return SETS[name]


def download(name: str, chosen: PublishedSet, folder: str, keep_archives: bool = False) -> str:
  """Download what a folder lacks of a data set, unpack and count it; return how to use it.

  Raises:
    UserError: a download fails, an archive is not the published one, or the unpacked data set is not whole.
  """
  if '://' in folder:
    raise UserError(f'--output_dir={folder}: use a folder of this machine')
  archives = f'{folder}.download'
  lacking = [archive for archive in chosen.archives if (
    not _is_converted(folder) if chosen.class_name else archive.missing(folder))]
  logging.info('%s: %s; %s (%s)', name, chosen.terms, chosen.source,
               f'tried {chosen.tried}' if chosen.tried else 'address not tried')
  from rethink_tf.downloads import archives as unpacking
  from rethink_tf.downloads import cache

  for archive in lacking:
    path = cache.fetch(archive.remote, archives, name)
    unpacked = os.path.join(archives, name) if chosen.class_name else folder
    unpacking.unpack(path, unpacked, archive.below)
    missing = archive.missing(unpacked)
    if missing:
      raise UserError(f'{unpacked}: {missing}, though the archive is unpacked: delete {path}, and the same command '
                      'downloads it again')
    if chosen.class_name:
      _convert(unpacked, folder, chosen.class_name)
    if not keep_archives:
      _delete(path)
  if not keep_archives:
    shutil.rmtree(archives, ignore_errors=True)
  counts = ', '.join(f'{count:,} {suffix} in {place}' for archive in chosen.archives for (place, suffix), count in
                     archive.counts.items()) or ', '.join(
    f'{count:,} images in {os.path.basename(path)}' for archive in chosen.archives for path, count in
    archive.lists.items())
  return (f'{folder}: {counts}\n'
          f'next: python -m rethink_tf.inspect_data --gin_file=gin_configs/scratch_1x.gin {chosen.options} '
          f'--data_dir={folder}')


def _delete(path: str) -> None:
  """Delete an archive whose files are in place; its record stays until all are."""
  try:
    os.remove(path)
  except OSError as error:
    logging.warning('%s: cannot be deleted: %s', path, in_one_line(error))


def _is_converted(folder: str) -> bool:
  files = [os.path.join(folder, 'annotations', f'instances_{split}.json') for split in ('train', 'val')]
  return all(map(os.path.isfile, files))


def _convert(source: str, folder: str, class_name: str) -> None:
  """Write a set in VIA's JSON as COCO's, and name its class."""
  from rethink_tf.data.prepare import preparation
  from rethink_tf.storage import files

  preparation.prepare(source, folder, 'via')
  for split in ('train', 'val'):
    path = os.path.join(folder, 'annotations', f'instances_{split}.json')
    with open(path) as file:
      content = json.load(file)
    for category in content['categories']:
      category['name'] = class_name
    files.write(path, json.dumps(content))


if __name__ == '__main__':
  define_flags()
  entry.start(main, interrupted='stopped; the same command continues')
