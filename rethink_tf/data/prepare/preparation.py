"""Converts annotations in any known layout to COCO json in the layout of data/own.gin.

Annotations pass through a file, image by image; only name, size and classes of each image stay in memory.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import posixpath
import sys
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from rethink_tf.console import Progress
from rethink_tf.data import problems as reasons
from rethink_tf.data.categories import as_text
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.image_notes import FEWER_BITS, ImageNotes
from rethink_tf.data.images import ImageError, decode, read_file
from rethink_tf.data.prepare import image_facts, recognition, splitting
from rethink_tf.data.prepare.division import Division, divide
from rethink_tf.data.prepare.layout import NO_IMAGE_FILES, LabelledImage, Options, Reading
from rethink_tf.data.prepare.shapes import scaled
from rethink_tf.data.prepare.source_folder import SourceFolder
from rethink_tf.data.prepare.writing import OutputFolder, Spool, safe_name
from rethink_tf.data.problems import REPAIRED, Problems
from rethink_tf.errors import UserError

OTHER_SIZE = 'image of another size than annotated'
UNREADABLE = 'image that cannot be read'
TURNED = 'image with an EXIF orientation that its size does not show (written upright, as PNG)'
KEYPOINTS = ('objects have keypoints, which data/own.gin and a study without a gin file leave out: train them with '
             '--gin_file=gin_configs/models/keypoints.gin (keypoints_narrow.gin for the narrow network) '
             '--gin_file=gin_configs/data/own_keypoints.gin')
_WORKERS = 4  # each may hold an image


class Prepared(NamedTuple):
  """The result of a preparation."""

  layout: str
  splits: dict[str, tuple[int, int]]  # split -> images, objects
  problems: list[tuple[str, Problems]]  # of reading, and of each split as training reports them
  notes: list[str]


@dataclass(slots=True)
class _Row:
  """An image between reading and writing."""

  image: LabelledImage  # without its instances
  size: tuple[int, int]
  turned: bool
  place: tuple[int, int]  # of its instances in the spool
  classes: tuple[Any, ...]  # keys, one an object
  name: str = ''
  embedded: str | None = None  # file with the image that was within the annotations


def prepare(source: str, output_dir: str, layout: str | None = None, options: Options | None = None,
            division: Division | None = None, copy: bool = False, follow_links: bool = False) -> Prepared:
  """Write a data set in the layout of gin_configs/data/own.gin.

  Args:
    source: folder that an annotation tool has exported; nothing in it is changed.
    output_dir: folder to write; the same arguments write the same again.
    layout: one of recognition.NAMES; None: the one that is found.
    options: on the source. division: of the images.
    copy: copy images instead of linking them.
    follow_links: accept links that lead out of the source.

  Raises:
    UserError: no layout or several are found, nothing is usable, or the output cannot be written.
  """
  options, division = options or Options(), division or Division()
  if not 0 < division.fraction < 1:
    raise UserError(f'--held_out = {division.fraction:g}: use a fraction of the images above 0 and below 1')
  folder = SourceFolder(source, follow_links)
  arguments = {'source': os.path.abspath(folder.root), 'layout': layout, **asdict(options), **asdict(division),
               'copy': copy}
  output = OutputFolder(output_dir, folder.root, arguments)
  found = recognition.choose(folder, layout)
  reading = found.layout.read(folder, options)
  with output.writing():
    spool = output.spool()
    try:
      rows, unique_ids = _read(folder, reading, output, spool)
      rows, splits = _divide(folder, rows, division, reading)
      prepared = _write(folder, reading, output, spool, rows, splits, unique_ids, copy)
    finally:
      spool.close()
    try:
      with _renamed_in_logs(output.work, output.path):
        checked = _check(output.work, [split for split in ('train', 'val', 'test') if split in prepared])
    except UserError as error:
      raise UserError(f'{folder.root}: {str(error).replace(output.work, output.path)}') from error
    problems = [('source', reading.problems), *checked]
    output.finish({'layout': found.layout.NAME, 'splits': {
      split: {'images': images, 'objects': objects} for split, (images, objects) in prepared.items()},
      'notes': reading.notes, 'problems': reading.problems.to_json()})
  return Prepared(str(found), prepared, problems, reading.notes)


def _read(folder: SourceFolder, reading: Reading, output: OutputFolder, spool: Spool) -> tuple[list[_Row], bool]:
  """Read all annotations and the headers of the images; return whether the ids of the annotations are unique."""
  rows: list[_Row] = []
  annotation_ids = array('q')
  progress = Progress('annotations', reading.total, sys.stderr)
  for image, facts in _examined(folder, reading):
    progress.count()
    if isinstance(facts, ImageError):
      other = isinstance(facts, image_facts.OtherSize)
      reading.problems.add(OTHER_SIZE if other else UNREADABLE, 1, as_text(str(facts)))
      reading.leave_out('of an image that is left out', image.file, len(image.instances))
      continue
    height, width = facts.size
    instances = [scaled(one, width, height) for one in image.instances] if image.fractions else image.instances
    annotation_ids.extend(one['id'] if type(one.get('id')) is int and 0 < one['id'] < 1 << 63 else 0
                          for one in instances)
    row = _Row(image._replace(instances=[], data=None), facts.size, facts.turned, spool.add(instances),
               tuple(instance['category'] for instance in instances))
    if image.data is not None:
      row.embedded = output.scratch(f'embedded-{len(rows)}')
      with open(row.embedded, 'wb') as file:
        file.write(image.data)
    if facts.turned:
      reading.problems.add(TURNED, 1, as_text(image.file), REPAIRED)
    rows.append(row)
  progress.close()
  if not rows:
    raise UserError(f'{folder.root}: {reading.layout} without a usable image: '
                    + (reading.examples() or 'its annotations name none' if folder.images else NO_IMAGE_FILES))
  if not any(row.classes for row in rows):
    raise UserError(f'{folder.root}: {reading.layout} without a usable object in {len(rows)} images: '
                    + (reading.examples() or 'no image has an annotation'))
  ids = np.array(annotation_ids)
  return (sorted(rows, key=lambda row: row.image.file), bool((ids > 0).all()) and len(np.unique(ids)) == len(ids))


def _examined(folder: SourceFolder, reading: Reading) -> Iterator[tuple[LabelledImage, Any]]:
  """Yield images with their facts, or the ImageError that they raise, in order."""
  def examine(image: LabelledImage) -> Any:
    try:
      return image_facts.examine(folder, image, reading.upright)
    except ImageError as error:
      return error

  yield from _in_parallel(examine, reading.images)


def _in_parallel(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
  """Yield (item, result) in order; only a few items are read ahead, so that an interruption need not wait for more."""
  with ThreadPoolExecutor(_WORKERS) as pool:
    waiting: deque = deque()
    for item in items:
      waiting.append((item, pool.submit(function, item)))
      if len(waiting) > 2 * _WORKERS:
        first, future = waiting.popleft()
        yield first, future.result()
    for item, future in waiting:
      yield item, future.result()


def _divide(folder: SourceFolder, rows: list[_Row], division: Division,
            reading: Reading) -> tuple[list[_Row], list[str]]:
  """Return the images that can be decoded, and the split of each."""
  rows, hashes, thumbnails = _look_at(folder, rows, reading)
  if not rows:
    raise UserError(f'{folder.root}: none of its images can be decoded')
  images, classes = [row.image for row in rows], [row.classes for row in rows]
  return rows, divide(folder.root, images, classes, hashes, thumbnails, division, reading)


def _look_at(folder: SourceFolder, rows: list[_Row], reading: Reading) -> tuple[list[_Row], np.ndarray, np.ndarray]:
  """Decode all images; return those that can be decoded, with their hashes and thumbnails."""
  progress = Progress('images', len(rows), sys.stderr)
  notes = ImageNotes(folder.root, quiet=True)

  def look(row: _Row) -> Any:
    try:
      path = row.embedded or folder.path(row.image.file)
      return splitting.thumbnail(decode(read_file(path, row.image.file), row.image.file, notes=notes))
    except ImageError as error:
      return error
    finally:
      progress.count()

  usable = []
  for row, result in _in_parallel(look, rows):
    if isinstance(result, ImageError):
      reading.problems.add(UNREADABLE, 1, as_text(str(result)))
      reading.leave_out('of an image that is left out', row.image.file, len(row.classes))
    else:
      usable.append((row, *result))
  progress.close()
  if fewer := notes.names.get(FEWER_BITS):
    reading.problems.add(f'images {FEWER_BITS}', len(fewer), as_text(min(fewer)), reasons.SUSPICIOUS)
  return ([row for row, _, _ in usable], np.array([bits for _, bits, _ in usable], np.uint64),
          np.array([small for _, _, small in usable], np.uint8).reshape(-1, 16, 16))


def _write(folder: SourceFolder, reading: Reading, output: OutputFolder, spool: Spool, rows: list[_Row],
           splits: list[str], unique_ids: bool, copy: bool) -> dict[str, tuple[int, int]]:
  """Write images and annotations; return images and objects of each split."""
  categories, ids = _number(reading, rows)
  _name(rows, splits)
  kept = [row.image.id for row in rows]
  renumber = None in kept or len(set(kept)) < len(kept)
  progress = Progress('images written', len(rows), sys.stderr)
  written: dict[str, tuple[int, int]] = {}
  numbers = None if unique_ids else itertools.count(1)
  hows = Counter()
  for split in dict.fromkeys(('train', 'val', *splits)):
    own = [(i, row) for i, row in enumerate(rows, start=1) if splits[i - 1] == split]
    images = [{'id': i if renumber else row.image.id, 'file_name': row.name, 'height': row.size[0],
               'width': row.size[1]} for i, row in own]
    for _, row in own:
      hows[_place(folder, output, row, split, copy)] += 1
      progress.count()
    annotations = _annotations(spool, (row for _, row in own), [image['id'] for image in images], ids, numbers)
    output.write_annotations(split, images, annotations, categories)
    written[split] = (len(own), sum(len(row.classes) for _, row in own))
  progress.close()
  if hows['symbolic link']:
    reading.notes.append(f'{hows["symbolic link"]} images are symbolic links to the source, which must stay where '
                         'it is (--copy copies them)')
  return written


def _number(reading: Reading, rows: list[_Row]) -> tuple[list[dict[str, Any]], dict[Any, int]]:
  """Return the categories, and {key: id}."""
  used = {key for row in rows for key in row.classes}
  if reading.categories is None:
    found = {name: {'id': i, 'name': name} for i, name in enumerate(sorted(used), start=1)}
  else:
    dropped = reading.superfluous - used
    for key in sorted(dropped):
      reading.notes.append(f"category {key} ({reading.categories[key]['name']!r}), which Roboflow adds for the project "
                           'and no object has, is left out')
    found = {key: entry for key, entry in reading.categories.items() if key not in dropped}
  if any(entry.get('keypoints') for entry in found.values()):
    reading.notes.append(KEYPOINTS)
  return (sorted(found.values(), key=lambda entry: entry['id']), {key: entry['id'] for key, entry in found.items()})


def _name(rows: list[_Row], splits: list[str]) -> None:
  """Set unique names of all images in their folders, also where case is ignored."""
  def suffixed(name: str, row: _Row) -> str:
    return f'{posixpath.splitext(name)[0]}.png' if row.turned else name

  names = [safe_name(suffixed(row.image.name, row)) for row in rows]
  counts = Counter((split, name.casefold()) for split, name in zip(splits, names, strict=True))
  taken: set[tuple[str, str]] = set()
  for row, split, name in zip(rows, splits, names, strict=True):
    if counts[split, name.casefold()] > 1:
      name = safe_name(suffixed(row.image.file, row))
    stem, suffix = posixpath.splitext(name)
    for i in itertools.count(2):
      if (split, name.casefold()) not in taken:
        break
      name = f'{stem}-{i}{suffix}'
    taken.add((split, name.casefold()))
    row.name = name


def _place(folder: SourceFolder, output: OutputFolder, row: _Row, split: str, copy: bool) -> str:
  source = row.embedded or folder.path(row.image.file)
  if row.turned:
    try:
      image_facts.write_upright(source, output.image_path(split, row.name))
    except ImageError as error:
      raise UserError(f'{error}: remove it from the source') from error
    return 'upright'
  return output.place_image(source, split, row.name, copy or row.embedded is not None)


def _annotations(spool: Spool, rows: Iterable[_Row], image_ids: list[int], ids: dict[Any, int],
                 numbers: Iterator[int] | None) -> Iterator[dict[str, Any]]:
  """Yield the annotations of images. numbers: new ids; None: their own ones."""
  for row, image_id in zip(rows, image_ids, strict=True):
    for instance in spool.get(row.place):
      key = instance.pop('category')
      own = instance.pop('id', None)
      yield {'id': own if numbers is None else next(numbers), 'image_id': image_id, 'category_id': ids[key],
             'iscrowd': 0, **instance}


def _check(folder: str, splits: list[str]) -> list[tuple[str, Problems]]:
  """Read the written data set as training does; return what it reports."""
  found = []
  for split in splits:
    found.append((split, CocoSource(folder, split).problems))
  return found


@contextlib.contextmanager
def _renamed_in_logs(work: str, path: str) -> Iterator[None]:
  """Replace the path of the temporary folder by that of the output folder in log messages."""
  def rename(record: Any) -> bool:
    if isinstance(record.args, tuple):
      record.args = tuple(one.replace(work, path) if isinstance(one, str) else one for one in record.args)
    return True

  logger = logging.get_absl_logger()
  logger.addFilter(rename)
  try:
    yield
  finally:
    logger.removeFilter(rename)


def report(prepared: Prepared, output_dir: str) -> str:
  """Return a text on what was found, written, left out and changed."""
  lines = [f'read as {prepared.layout}', f'written to {output_dir}: ' + ', '.join(
    f'{split}: {images} images with {objects} objects' for split, (images, objects) in prepared.splits.items())]
  lines += [f'  {note}' for note in prepared.notes]
  table = reasons.table(prepared.problems)
  return '\n'.join([*lines, *(['left out, changed or suspicious', *table] if table else []), ''])
