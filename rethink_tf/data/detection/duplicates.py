"""Finds images that a data set has twice, or that are both trained on and held out: equal files, near-duplicates."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow as tf

from rethink_tf import console
from rethink_tf.data.images import ImageError, decode, header_size
from rethink_tf.data.prepare import splitting
from rethink_tf.data.problems import SUSPICIOUS, Case, Problems
from rethink_tf.structures import Source

TRAINING, HELD_OUT = 'training', 'held out'
HELD_OUT_TOO = 'image that is held out too (same file): AP is not that of unseen images'
LISTED_TWICE = 'image with the same file as another'
_MAX_FILES = 20_000  # whose sizes are looked up; of more, or on gs://, only paths are compared
_MAX_BYTES = 1 << 28  # that are read to compare files; inspect_data reads all
_READERS, _DECODERS = 16, 4  # threads
_MAX_DECODED = 5_000  # images that are decoded to find near-duplicates
_BLOCK = 9  # files next to each other by name, of a sample
_LARGE = 512  # shorter side of images that need not be decoded whole


class _File(NamedTuple):
  split: str
  index: int  # in its source
  source: Source

  @property
  def image_id(self) -> int:
    return int(self.source.image_ids[self.index])

  @property
  def name(self) -> str:
    names = getattr(self.source, 'file_names', None)
    return names[self.index] if names is not None else f'image {self.image_id}'


def find(sources: Mapping[str, Source]) -> dict[str, Problems]:
  """Return the images that are the same file as another image, by split (TRAINING, HELD_OUT).

  Files are the same if their paths are, or their contents, which are compared where their sizes are equal.
  """
  problems = {split: Problems() for split in sources}
  for group in _same_files(sources):
    for split, found in problems.items():
      own, others = ([file for file in group if (file.split == split) == mine] for mine in (True, False))
      if own and others and split == TRAINING:
        found.add(HELD_OUT_TOO, len(own), [_case(own[0], others[0])], SUSPICIOUS)
      if len(own) > 1:
        found.add(LISTED_TWICE, len(own), [_case(own[1], own[0])], SUSPICIOUS)
  return problems


class Near(NamedTuple):
  """Near-duplicates (splitting) among the held-out images, or among a sample of them."""

  trained: list[tuple[str, str]]  # names of a held-out image and of a training image like it
  copies: int  # held-out images that are like another one of them
  held_out: int  # images that were looked at
  training: int

  def sampled(self, training: Source, held_out: Source) -> bool:
    """Whether there are more images in the sources."""
    return self.held_out + self.training < len(training.image_ids) + len(held_out.image_ids)


def near(training: Source, held_out: Source) -> Near:
  """Return the near-duplicates; none of sources without files.

  All images are decoded, or a sample of 5,000: a minute for photographs of 12 megapixels.
  """
  if not all(hasattr(source, 'read') for source in (training, held_out)):
    return Near([], 0, len(held_out.image_ids), len(training.image_ids))
  files = _sample([_File(split, i, source) for split, source in ((TRAINING, training), (HELD_OUT, held_out))
                  for i in range(len(source.image_ids))])
  progress = console.Progress('images looked at for near-duplicates', len(files), sys.stderr)

  def look(file: _File) -> splitting.Look:
    try:
      return splitting.Look(file.name, *splitting.thumbnail(_small(file.source.read(file.index), file.name)))
    except (ImageError, OSError, tf.errors.OpError):
      return splitting.Look(file.name)
    finally:
      progress.count()

  with ThreadPoolExecutor(_DECODERS) as pool:
    trained, held = ([*pool.map(look, [file for file in files if file.split == split])]
                     for split in (TRAINING, HELD_OUT))
  progress.close()
  return Near([(held[j].name, trained[i].name) for i, j in splitting.near_pairs(trained, held)],
              splitting.near_copies(held), len(held), len(trained))


def _sample(files: list[_File]) -> list[_File]:
  """Return _MAX_DECODED of the files at most: half of them held-out images with their neighbours by name, half others.

  Frames of a video, and copies with another ending, have names that are next to each other: of files at random few
  would have their duplicate in the sample. The others, evenly spread, are for names that say nothing.
  """
  if len(files) <= _MAX_DECODED:
    return files
  ranked = sorted(files, key=lambda file: (os.path.basename(file.name), file.split))
  held_out = [i for i, file in enumerate(ranked) if file.split == HELD_OUT]
  middle = _evenly(held_out, _MAX_DECODED // 2 // _BLOCK)
  chosen = {i for at in middle for i in range(max(at - _BLOCK // 2, 0), min(at + (_BLOCK + 1) // 2, len(ranked)))}
  rest = [i for i in range(len(ranked)) if i not in chosen]
  return [ranked[i] for i in sorted(chosen.union(_evenly(rest, _MAX_DECODED - len(chosen))))]


def _evenly(values: list[int], most: int) -> list[int]:
  """Return evenly spread values, not more than so many."""
  return [values[i] for i in np.linspace(0, len(values) - 1, min(most, len(values))).astype(int)] if values else []


def _small(data: bytes, name: str) -> np.ndarray:
  """Decode an image, a large JPEG at an eighth of its size, which takes a fifth of the time."""
  size = header_size(data) if data.startswith(b'\xff\xd8') else None
  if size is not None and min(size) >= _LARGE:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_8 | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is not None:
      return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
  return decode(data, name)


def _case(file: _File, other: _File) -> Case:
  return Case(f'{file.name} (id {file.image_id}) = {other.name} (id {other.image_id})', file.image_id)


def _same_files(sources: Mapping[str, Source]) -> list[list[_File]]:
  """Return groups of equal files."""
  files = [_File(split, i, source) for split, source in sources.items()
           if hasattr(source, 'read') for i in range(len(source.image_ids))]
  paths = {file: file.source.path(file.index) for file in files if hasattr(file.source, 'path')}
  groups = _equal((os.path.normpath(path), file) for file, path in paths.items())
  if len(files) <= _MAX_FILES:
    once = {group[0]: group for group in groups}
    repeated = {file for group in groups for file in group[1:]}
    local = [file for file in files if file not in repeated and '://' not in paths.get(file, '')]
    same = _equal_contents(_of_equal_size(local, paths))
    groups = [[one for file in group for one in once.pop(file, [file])] for group in same] + list(once.values())
  return groups


def _of_equal_size(files: list[_File], paths: Mapping[_File, str]) -> list[_File]:
  """Return the files that share their size with another; of records, whose images have no file, all of a small set."""
  sized = _equal(pair for pair in _map(lambda file: (_size(paths[file]), file), [f for f in files if f in paths])
                 if pair[0] > 0)
  packed = [file for file in files if file not in paths]
  small = sum({id(file.source): file.source.total_bytes for file in packed}.values()) <= _MAX_BYTES
  return [file for group in sized for file in group] + packed * small


def _equal_contents(files: list[_File]) -> list[list[_File]]:
  left = _MAX_BYTES

  def digest(file: _File) -> tuple[str | None, _File]:
    nonlocal left
    with contextlib.suppress(ImageError, OSError, tf.errors.OpError):
      if left > 0:
        data = file.source.read(file.index)
        left -= len(data)
        return hashlib.blake2b(data, digest_size=16).hexdigest(), file
    return None, file

  return _equal(pair for pair in _map(digest, files) if pair[0])


def _map(function: Callable[[Any], Any], files: list[Any]) -> list[Any]:
  with ThreadPoolExecutor(_READERS) as pool:
    return list(pool.map(function, files))


def _size(path: str) -> int:
  try:
    return os.stat(path).st_size
  except OSError:
    return 0


def _equal(keyed: Iterable[tuple[object, _File]]) -> list[list[_File]]:
  """Return groups of several files with equal keys."""
  groups: dict[object, list[_File]] = defaultdict(list)
  for key, file in keyed:
    groups[key].append(file)
  return [group for group in groups.values() if len(group) > 1]
