"""The index of annotated images in TFRecords: where each record is, and what its annotations are.

The conversion writes `<split>-index.json`. Without one, or where the shards are others, all of them are scanned.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import tensorflow as tf
from absl import logging

from rethink_tf.data.categories import Category, shorten
from rethink_tf.data.class_names import check_same_names, merge_names
from rethink_tf.data.detection.record_format import decode, identify, validate
from rethink_tf.data.images import ImageError
from rethink_tf.data.json_files import load_json
from rethink_tf.data.problems import Problems
from rethink_tf.data.shards import length_of, scan_readable, warn_of_empty
from rethink_tf.data.tfrecord import DamagedRecord, read_at
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.storage import files

READERS = 16  # threads; on gs:// they are limited by latency


class Shard(NamedTuple):
  """The records of one file, as columns."""

  file: str
  bytes: int
  offsets: list[int]
  source_ids: list[str]
  heights: list[int]
  widths: list[int]
  usable: list[int]  # number of annotations that can be trained on
  visible: list[int]  # number of labelled keypoints of these
  annotations: list[int]  # number of all annotations


class Index(NamedTuple):
  """Contents of <split>-index.json."""

  shards: list[Shard]
  category_ids: list[int]  # of the categories with which the annotations were validated
  problems: Problems  # of the annotations, as the conversion or a scan has found them
  left_out: list[str]  # images that are missing, unreadable or damaged
  fingerprint: str = ''  # hash of the annotations and options of the conversion
  complete: bool = True
  conversion: str = ''  # in each of its records: hash of the fingerprint and the categories; '' of earlier versions
  names: Mapping[str, str] = {}  # category id -> name, of the conversion or as the records name them


def index_path(data_dir: str, split: str) -> str:
  """Return the path of the index of a split."""
  return os.path.join(data_dir, f'{split}-index.json')


def write_index(path: str, index: Index) -> None:
  """Write the index, one shard per line."""
  content = index._asdict() | {'problems': index.problems.to_json()}
  head = json.dumps({key: value for key, value in content.items() if key != 'shards'})
  shards = ',\n'.join(json.dumps(shard._asdict()) for shard in index.shards)
  files.write(path, f'{head[:-1]}, "shards": [\n{shards}\n]}}\n')


def read_index(path: str) -> Index | None:
  """Read an index; None if the file is missing or invalid."""
  if not tf.io.gfile.exists(path):
    return None
  try:
    content = load_json(path)
    index = Index(**{**content, 'shards': [Shard(**shard) for shard in content['shards']],
                     'problems': Problems.from_json(content['problems'])})
    for shard in index.shards:
      check_columns(shard, ('offsets', 'heights', 'widths', 'usable', 'visible', 'annotations'), ('source_ids',))
      if min((*shard.heights, *shard.widths), default=1) < 1:
        raise TypeError('an image without extent')
    if not (isinstance(index.category_ids, list)
            and all(isinstance(text, str) for text in [*index.left_out, index.fingerprint, index.conversion,
                                                       *index.names.values()])
            and all(re.fullmatch(r'\d{1,18}', id_) for id_ in index.names)):
      raise TypeError('a field has a wrong type')
    return index
  except (UserError, TypeError, KeyError, AttributeError) as error:
    logging.warning('%s: is not an index of records: %s', path, in_one_line(error))
    return None


def check_columns(shard: Any, numbers: Sequence[str], texts: Sequence[str]) -> None:
  """Raise TypeError unless a shard of an index has columns of equal length, of integers of at least 0 and of strings.

  Args:
    shard: named tuple with `file`, `bytes` and the columns.
    numbers, texts: names of the columns of integers and of strings.
  """
  columns = {name: getattr(shard, name) for name in (*numbers, *texts)}
  if not isinstance(shard.file, str) or type(shard.bytes) is not int or shard.bytes < 0 or \
      not all(isinstance(column, list) for column in columns.values()) or len(set(map(len, columns.values()))) > 1:
    raise TypeError('a shard without columns of equal length')
  if not all(type(value) is int and 0 <= value < 2 ** 31 for name in numbers if name != 'offsets'
             for value in columns[name]) or \
      not all(type(offset) is int and 0 <= offset < 2 ** 62 for offset in columns['offsets']) or \
      not all(isinstance(value, str) for name in texts for value in columns[name]):
    raise TypeError('a column with values other than integers of at least 0 or strings')


def load_index(path: str, paths: list[str], categories: tuple[Category, ...], max_pixels: int,
               categories_file: str) -> Index:
  """Read the index, or rebuild and write it by a scan of all shards.

  Raises:
    UserError: a shard cannot be read, or is not the one that was converted; categories have other names in the records.
  """
  index = read_index(path)
  if index and not index.complete:
    raise UserError(f'{path}: the conversion was interrupted; run the same command again to finish it')
  category_ids = [category.id for category in categories]
  with ThreadPoolExecutor(READERS) as pool:
    present = list(zip(map(os.path.basename, paths), pool.map(length_of, paths), strict=True))
    same = index is not None and present == [shard[:2] for shard in index.shards]
    if index and same and index.category_ids == category_ids:
      first = list(pool.map(lambda *pair: _check_first(*pair, index.conversion, path), paths, index.shards))
      names = merge_names([(path, {int(id_): name for id_, name in index.names.items()}),
                           *zip(map(os.path.basename, paths), first, strict=True)])
      _check_names(names, path, categories, categories_file)
      return index
    if index and index.fingerprint and not same:
      _refuse_changed(path, present, index.shards)
    logging.warning('%s: %s; scanning %d shards', path, 'is out of date' if index else 'no valid index', len(paths))
    scanned = list(pool.map(lambda shard: _scan_shard(shard, categories, max_pixels), paths))
  problems = Problems()
  for _, found, _, _ in scanned:
    problems.update(found)
  names = merge_names([(shard.file, named) for shard, _, _, named in scanned])
  # The conversion can still be repeated.
  fingerprint, conversion = (index.fingerprint, index.conversion) if index and same else ('', '')
  index = Index([shard for shard, _, _, _ in scanned], category_ids, problems,
                [name for _, _, damaged, _ in scanned for name in damaged], fingerprint,
                conversion=conversion, names={str(id_): name for id_, name in names.items()})
  _check_names(names, os.path.dirname(path), categories, categories_file)
  warn_of_empty(present, path)
  try_to_write(path, lambda: write_index(path, index))
  return index


def names_in(paths: Sequence[str]) -> dict[int, str]:
  """Return category id -> name of all objects in some shards; raises UserError if they do not agree."""
  return merge_names([(os.path.basename(path), _names_of(path)) for path in paths])


def try_to_write(path: str, write: Callable[[], None]) -> None:
  """Call `write`; on read-only storage log that it failed."""
  try:
    write()
  except tf.errors.OpError as error:
    logging.warning('%s: cannot be saved for later runs: %s', path, in_one_line(error))


def _scan_shard(path: str, categories: Sequence[Category],
                max_pixels: int) -> tuple[Shard, Problems, list[str], dict[int, str]]:
  """Scan a file.

  Returns the index of its records, the problems of its annotations, messages of damaged records, and the names of the
  categories.
  """
  shard = Shard(os.path.basename(path), length_of(path), [], [], [], [], [], [], [])
  problems, damaged = Problems(), []
  names: dict[int, str] = {}
  for offset, payload in scan_readable(path):
    try:
      if isinstance(payload, DamagedRecord):
        lost = '' if payload.next_offset else ', and what follows it is lost'
        raise ImageError(f'{payload}{lost}')
      record = decode(payload, max_pixels)
      table = validate(record, 0, tuple(categories), 1)
    except ImageError as error:
      damaged.append(f'{shard.file}: {error}')
      continue
    names |= identify(payload).names
    image_id = int(record.source_id) if re.fullmatch(r'\d{1,18}', record.source_id) else None
    for reason, (outcome, cases) in table.problems.by_reason().items():
      problems.add(reason, table.problems.counts[reason], (case._replace(image_id=image_id) for case in cases),
                   outcome)
    for column, value in zip(shard[2:], (offset, record.source_id, record.height, record.width,
                                         int(table.num_usable[0]), int(table.num_visible[0]),
                                         len(record.annotations)), strict=True):
      column.append(value)
  if damaged and not shard.offsets:
    raise UserError(f'{path}: no record can be read, is it an uncompressed TFRecord of images? {damaged[0]}')
  return shard, problems, damaged, names


def _names_of(path: str) -> dict[int, str]:
  names: dict[int, str] = {}
  for _, payload in scan_readable(path):
    with contextlib.suppress(ImageError):  # reported by the scan for the index
      names |= {} if isinstance(payload, DamagedRecord) else identify(payload).names
  return names


def _check_first(path: str, shard: Shard, conversion: str, index: str) -> dict[int, str]:
  """Check that a shard begins with the image, and is of the conversion, that the index lists; return its categories."""
  if not shard.offsets:
    return {}
  try:
    found = identify(read_at(path, shard.offsets[0]))
  except (OSError, tf.errors.OpError, DamagedRecord, EOFError, ImageError):
    return {}  # reported when it is loaded
  other = ('the shard, or the index, is that of another conversion; copy those of one conversion, or run it again into '
           'another folder')
  if found.source_id != shard.source_ids[0]:
    raise UserError(f'{path}: begins with image {shorten(found.source_id)}, in {index} with '
                    f'{shorten(shard.source_ids[0])}: {other}')
  if conversion and found.conversion != conversion:
    raise UserError(f'{path}: its records are of conversion {shorten(found.conversion)}, those of {index} of '
                    f'{shorten(conversion)}: {other}')
  return found.names


def _check_names(names: Mapping[int, str], where: str, categories: Sequence[Category], file: str) -> None:
  check_same_names(names, where, {category.id: category.name for category in categories}, file)


def _refuse_changed(path: str, present: Sequence[tuple[str, int]], shards: Sequence[Shard]) -> None:
  """Raise UserError if a shard that the conversion has written has another length now."""
  listed = {shard.file: shard.bytes for shard in shards}
  for name, length in present:
    if length != listed.get(name, length):
      raise UserError(f'{os.path.join(os.path.dirname(path), name)}: has {length} bytes, {listed[name]} when it was '
                      'converted: copy it again, or run the same conversion again to rewrite it; to train on what it '
                      f'contains now, delete {path}')
