"""Hashtags of images: the JSON Lines file, the vocabulary, and the resampling of tags (Mahajan et al. 2018).

A line of the file is {"image": "folder/name.jpg", "tags": ["#Sneakers", "shoe"]}. The file is read as a stream: memory
grows with the number of different tags, at most `max_candidates`, and not with the number of images.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.data.categories import Category, is_text, shorten
from rethink_tf.data.json_files import load_json
from rethink_tf.data.problems import Problems
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.storage import files
from rethink_tf.storage.files import open_regular

SAMPLINGS = ('square_root', 'natural', 'uniform')
MAX_CANDIDATES = 2_000_000  # different tags that are counted at a time: about 200 MB
_CHUNK = 1 << 20  # bytes read at a time
_MAX_LINE = 1 << 20  # bytes; a longer line is invalid
_MAX_TAG = 1000  # characters; the normalisation of a longer tag can take minutes


class Row(NamedTuple):
  """One image of the JSON Lines file."""

  number: int  # 0-based line number, the id of the image
  image: str
  tags: tuple[str, ...]  # as written


def read_rows(path: str, problems: Problems) -> Iterator[Row]:
  """Yield the images of a JSON Lines file, local or gs://, in order; invalid lines are counted in `problems`.

  Raises:
    UserError: the file cannot be read.
  """
  for number, line in read_lines(path):
    row = parse_row(number, line, problems)
    if row is not None:
      yield row


def parse_row(number: int, line: bytes | None, problems: Problems) -> Row | None:
  """Parse a line; None if it is invalid, which is counted in `problems` (except for blank lines)."""
  if line is None:
    problems.add(f'lines longer than {_MAX_LINE} bytes', 1, f'line {number + 1}')
    return None
  if not line.strip():
    return None
  try:
    content = json.loads(line)
  except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
    problems.add('lines that are not JSON', 1, f'line {number + 1}: {shorten(line[:40])}')
    return None
  image = content.get('image') if isinstance(content, dict) else None
  tags = content.get('tags') if isinstance(content, dict) else None
  if not is_text(image) or not image:
    problems.add('lines without "image"', 1, f'line {number + 1}: {shorten(content)}')
  elif not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
    problems.add('lines whose "tags" is not a list of strings', 1, f'line {number + 1}: {shorten(tags)}')
  elif not all(map(_is_tag, tags)):
    problems.add('lines with a tag that is too long or has control characters', 1, f'line {number + 1}')
  elif not tags:
    problems.add('images without a tag', 1, f'line {number + 1}: {image}')
  else:
    return Row(number, image, tuple(tags))
  return None


def _is_tag(tag: str) -> bool:
  return len(tag) <= _MAX_TAG and is_text(''.join(tag.split()))


def read_lines(path: str) -> Iterator[tuple[int, bytes | None]]:
  """Yield number and bytes of each line; None for a line of more than _MAX_LINE bytes.

  Raises:
    UserError: the file cannot be read.
  """
  number, rest, too_long = 0, b'', False
  try:
    with open_regular(path) as file:
      while chunk := file.read(_CHUNK):
        *lines, rest = (rest + chunk).split(b'\n')
        for line in lines:
          yield number, None if too_long or len(line) > _MAX_LINE else line
          number, too_long = number + 1, False
        if len(rest) > _MAX_LINE:
          rest, too_long = b'', True
  except tf.errors.OpError as error:
    raise UserError(f'{path}: cannot be read: {in_one_line(error)}') from error
  if rest or too_long:
    yield number, None if too_long else rest


@functools.lru_cache(maxsize=1 << 14)
def canonical(tag: str) -> str:
  """Return the canonical form of a tag: Unicode NFKC, lower case, without leading '#' and white space; may be empty.

  '#Sneakers', 'ＳＮＥＡＫＥＲＳ' and 'sneakers ' are the same tag.
  """
  words = unicodedata.normalize('NFKC', tag).lower().split()
  # Normalised again, since an accent may combine with another letter without the space before it.
  return unicodedata.normalize('NFKC', ''.join(words)).lstrip('#')


def load_synonyms(path: str) -> dict[str, str]:
  """Load a table of synonyms: tag -> representative tag of its synset (WordNet), both in canonical form.

  A .json file contains one object; any other file is text of two tab-separated columns, in which '#' starts a comment
  only in lines without a tab. Chains of synonyms are resolved.

  Raises:
    UserError: the file has another format, a tag is mapped to two tags, or synonyms form a cycle.
  """
  if path.endswith('.json'):
    content = load_json(path)
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
      raise UserError(f'{path}: should be a JSON object of strings, {{"tag": "canonical tag"}}, is {shorten(content)}')
    pairs = [(f'{path}: {shorten(tag)}', tag, value) for tag, value in content.items()]
  else:
    pairs = list(_read_table(path))
  table: dict[str, str] = {}
  for where, tag, value in pairs:
    if not _is_tag(tag) or not _is_tag(value):
      raise UserError(f'{where}: a tag is too long or has control characters')
    tag, value = canonical(tag), canonical(value)
    if not tag or not value:
      raise UserError(f'{where}: a synonym and its canonical tag should both be words')
    if table.setdefault(tag, value) != value:
      raise UserError(f'{where}: {tag!r} is mapped to {table[tag]!r} in another line and to {value!r} here: keep one')
  ends: dict[str, str] = {}
  for tag in table:
    _follow(table, tag, path, ends)
  return ends


def _read_table(path: str) -> Iterator[tuple[str, str, str]]:
  for number, line in read_lines(path):
    try:
      text = (line or b'').decode().rstrip('\r')
    except UnicodeDecodeError as error:
      raise UserError(f'{path}:{number + 1}: is not UTF-8 text: {error.reason}') from error
    columns = text.split('\t')
    if len(columns) == 1 and (not text.strip() or text.lstrip().startswith('#')):
      continue
    if len(columns) != 2:
      raise UserError(f'{path}:{number + 1}: should be a tag, a tab and its canonical tag, is {shorten(text)}')
    yield f'{path}:{number + 1}', *columns


def _follow(table: dict[str, str], tag: str, path: str, ends: dict[str, str]) -> None:
  """Record in `ends` the end of the chain that begins at a tag, for all its members; each edge is followed once."""
  chain = {tag: None}  # in order
  while tag not in ends and (following := table.get(tag, tag)) != tag:
    if following in chain:
      raise UserError(f'{path}: {tag!r} and {following!r} are synonyms of each other in a cycle: make one of them the '
                      'canonical tag')
    chain[following] = None
    tag = following
  end = ends.get(tag, tag)
  ends.update((member, end) for member in chain if member in table)


class Vocabulary:
  """The tags that are classes, by decreasing count, then by name.

  Attributes:
    tags: [L], class i is tags[i].
    counts: int64 [L], number of images with each tag.
    num_images: number of images with any of the tags.
    synonyms: tag -> tag into which it is merged.
    path: file from which it was loaded, for messages.
  """

  def __init__(self, tags: Iterable[str], counts: Iterable[int], num_images: int, synonyms: dict[str, str],
               path: str = 'vocabulary') -> None:
    self.tags = tuple(tags)
    self.counts = np.array(list(counts), np.int64)
    self.num_images, self.synonyms, self.path = num_images, synonyms, path
    self._classes = {tag: i for i, tag in enumerate(self.tags)}

  def __len__(self) -> int:
    return len(self.tags)

  def classes(self, tags: Iterable[str]) -> list[int]:
    """Return the classes of an image's tags, ascending, each once; tags outside the vocabulary are dropped."""
    classes = (self._classes.get(merged) for merged in _merge(tags, self.synonyms))
    return sorted(i for i in classes if i is not None)

  def categories(self) -> tuple[Category, ...]:
    """Return the tags as categories."""
    return tuple(Category(i, tag) for i, tag in enumerate(self.tags))

  def digest(self) -> str:
    """Return a hash of the classes and of the synonyms merged into them; equal if shards are compatible."""
    content = json.dumps([self.tags, sorted((a, b) for a, b in self.synonyms.items() if b in self._classes)])
    return hashlib.sha256(content.encode()).hexdigest()

  def save(self, path: str) -> None:
    """Write the vocabulary as JSON."""
    used = {a: b for a, b in sorted(self.synonyms.items()) if b in self._classes}
    files.write(path, json.dumps({'num_images': self.num_images, 'tags': self.tags, 'counts': self.counts.tolist(),
                                 'synonyms': used}, ensure_ascii=False))

  @classmethod
  def load(cls, path: str) -> Vocabulary:
    """Load a vocabulary that was written by `save`.

    Raises:
      UserError: the file cannot be read, or is not a vocabulary.
    """
    content = load_json(path)
    try:
      tags, counts = content['tags'], content['counts']
      num_images, synonyms = content['num_images'], content['synonyms']
      valid = (isinstance(num_images, int) and 0 <= num_images < 2 ** 62
               and isinstance(tags, list) and all(map(is_text, tags))
               and isinstance(counts, list) and all(type(count) is int and 0 < count < 2 ** 62 for count in counts)
               and all(isinstance(tag, str) for pair in synonyms.items() for tag in pair)
               and 0 < len(tags) == len(counts) == len(set(tags)))
    except (TypeError, KeyError, AttributeError):
      valid = False
    if not valid:
      raise UserError(f'{path}: is not a vocabulary of hashtags; build one with '
                      f'`python -m rethink_tf.data.classification.hashtags --json=… --vocabulary={path}`')
    return cls(tags, counts, num_images, synonyms, path)


def build_vocabulary(path: str, synonyms: dict[str, str] | None = None, min_count: int = 1,
                     only_synonyms: bool = False, max_candidates: int = MAX_CANDIDATES) -> Vocabulary:
  """Count the tags of a JSON Lines file, merged by `synonyms`.

  Args:
    path: the file, local or gs://.
    synonyms: table of `load_synonyms`.
    min_count: minimum number of images of a tag.
    only_synonyms: keep only tags of the table, as in the paper's WordNet vocabularies.
    max_candidates: different tags that are counted at a time. Beyond it the rarest are discarded, and counted from zero
      if they occur again (lossy counting); the largest possible error of a count is logged.

  Raises:
    UserError: the file cannot be read, or no tag remains.
  """
  synonyms = synonyms or {}
  allowed = set(synonyms.values()) if only_synonyms else None
  if min_count < 1 or max_candidates < 1:
    raise UserError(f'min_count = {min_count} and max_candidates = {max_candidates} should be at least 1')
  problems = Problems()
  counts: Counter[str] = Counter()
  lost = 0  # largest number of images that a discarded tag can have had
  for row in read_rows(path, problems):
    tags = _merge(row.tags, synonyms)
    counts.update(tags if allowed is None else tags & allowed)
    if len(counts) > max_candidates:
      lost += 1
      while len(counts := Counter({tag: n for tag, n in counts.items() if n > lost})) > max_candidates // 2:
        lost += 1
  problems.log(path)
  if lost:
    logging.warning('%s: has more than %d different tags; counts of rare ones may be up to %d too low '
                    '(max_candidates)', path, max_candidates, lost)
  kept = sorted(((tag, n) for tag, n in counts.items() if n >= min_count), key=lambda pair: (-pair[1], pair[0]))
  if not kept:
    most = max(counts.items(), key=lambda pair: pair[1], default=None)
    raise UserError(f'{path}: no tag has min_count = {min_count} images; ' + (
        f'the most frequent one, {most[0]!r}, has {most[1]}' if most else 'there are no valid tags'))
  vocabulary = Vocabulary([tag for tag, _ in kept], [n for _, n in kept], 0, synonyms)
  vocabulary.num_images = sum(bool(vocabulary.classes(row.tags)) for row in read_rows(path, Problems()))
  logging.info('%s: %d tags of %d are kept, %d images have one of them', path, len(kept), len(counts),
               vocabulary.num_images)
  return vocabulary


def _merge(tags: Iterable[str], synonyms: dict[str, str]) -> set[str]:
  """Return the canonical tags of an image, with synonyms merged."""
  return {synonyms.get(tag, tag) for tag in map(canonical, tags) if tag}


def replication(counts: np.ndarray, sampling: str = 'square_root', threshold: float | None = None) -> np.ndarray:
  """Return the replication factor of each tag in an epoch: r(h) = max(1, phi(t / f(h))) (Mahajan et al. 2018).

  phi is the square root (the paper's choice), the identity for 'uniform' and 1 for 'natural'. An image is replicated by
  the factor of its rarest tag, r(I) = max over its tags, so that frequent tags that occur together with rare ones occur
  more than r(h) times.

  Args:
    counts: int [L], images of each tag.
    sampling: 'square_root', 'natural' or 'uniform'.
    threshold: t, in images: more frequent tags are not replicated. None is the count of the most frequent tag. The
      paper does not state its value.

  Returns:
    float64 [L], at least 1.

  Raises:
    UserError: unknown sampling, or a threshold that is not positive.
  """
  if sampling not in SAMPLINGS:
    raise UserError(f'sampling = {sampling!r}: use one of {", ".join(SAMPLINGS)}')
  if threshold is not None and not threshold > 0:
    raise UserError(f'threshold = {threshold} should be a number of images above 0, or None')
  counts = np.maximum(np.asarray(counts, np.float64), 1)  # 0 if none of the images of a tag could be read
  ratio = (counts.max() if threshold is None else threshold) / counts
  factor = {'square_root': np.sqrt(ratio), 'uniform': ratio, 'natural': np.ones_like(ratio)}[sampling]
  return np.maximum(factor, 1)


def image_replication(tag_factors: np.ndarray, tags: np.ndarray, starts: np.ndarray) -> np.ndarray:
  """Return the replication factor of each image: r(I) = max over its tags -> float64 [n].

  Args:
    tag_factors: float64 [L], of `replication`.
    tags: int [m], the tags of all images, concatenated.
    starts: int [n + 1], tags[starts[i]:starts[i + 1]] are those of image i, at least one.
  """
  if len(starts) < 2:
    return np.zeros(0)
  return np.maximum.reduceat(tag_factors[tags], starts[:-1])


def write_vocabulary(output: str, json_file: str, synonyms_file: str | None = None, min_count: int = 1,
                     only_synonyms: bool = False, max_candidates: int = MAX_CANDIDATES) -> Vocabulary:
  """Build a vocabulary and write it to a file; arguments as for `build_vocabulary`.

  Raises:
    UserError: as raised by `load_synonyms` and `build_vocabulary`, or the file cannot be written.
  """
  if only_synonyms and not synonyms_file:
    raise UserError('--only_synonyms needs a table of synonyms: add --synonyms=FILE')
  synonyms = load_synonyms(synonyms_file) if synonyms_file else None
  vocabulary = build_vocabulary(os.path.expanduser(json_file), synonyms, min_count, only_synonyms, max_candidates)
  try:
    vocabulary.save(output)
  except tf.errors.OpError as error:
    raise UserError(f'{output}: cannot be written: {in_one_line(error)}') from error
  return vocabulary
