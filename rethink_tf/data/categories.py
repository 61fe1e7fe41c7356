"""Categories of a data set: class k of 1..K is the category with the k-th smallest id, class 0 is the background."""

import re
import reprlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from rethink_tf.errors import UserError

_MAX_KEYPOINTS = 1000  # of a category; every annotation allocates memory for all of them

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 100
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 30


class Category(NamedTuple):
  """A category with its id in the annotation file: any integer of at least 0, gaps allowed."""

  id: int
  name: str
  keypoints: tuple[str, ...] = ()
  skeleton: tuple[tuple[int, int], ...] = ()  # pairs of keypoint numbers, 1-based as in COCO
  keypoint_pairs: tuple[tuple[str, str], ...] = ()  # that a flip exchanges, besides those found by name


def parse_categories(entries: Any, file: str, quiet: bool = False) -> tuple[Category, ...]:
  """Validate the `categories` list of a COCO json, and return it sorted by id.

  A repeated name is logged, unless `quiet`, and kept as two classes: classes are identified by id, not by name.

  Raises:
    UserError: not a list of objects with an integer id >= 0 and a printable name, empty, or with a repeated id.
  """
  if not isinstance(entries, list) or not entries:
    raise UserError(f'{file}: "categories" should be a list with at least one category, is {shorten(entries)}')
  categories = [_parse_category(entry, f'{file}: categories[{i}]') for i, entry in enumerate(entries)]
  by_id: dict[int, Category] = {}
  for category in categories:
    if category.id in by_id:
      raise UserError(f'{file}: category id {category.id} is used by both {by_id[category.id].name!r} and '
                      f'{category.name!r}: category ids must be unique')
    by_id[category.id] = category
  if not quiet:
    warn_of_names(categories, file)
  return tuple(by_id[i] for i in sorted(by_id))


def warn_of_names(categories: Iterable[Category], file: str) -> None:
  """Log names that two categories have, and those that differ only in spelling."""
  by_name: dict[str, Category] = {}
  for category in categories:
    if category.name in by_name:
      logging.warning('%s: categories %d and %d are both named %r; they are kept as two separate classes',
                      file, by_name[category.name].id, category.id, category.name)
    by_name[category.name] = category
  warn_of_similar(by_name, file)


def warn_of_similar(names: Iterable[str], where: str) -> None:
  """Log names that differ only in case, spaces, underscores and hyphens: each is a class of its own."""
  groups: dict[str, list[str]] = {}
  for name in dict.fromkeys(names):
    groups.setdefault(re.sub(r'[\s_-]', '', name.casefold()), []).append(name)
  similar = [' and '.join(map(repr, group)) for group in groups.values() if len(group) > 1]
  if similar:
    logging.warning('%s: names that differ only in spelling are separate classes: %s', where, '; '.join(similar[:5]))


def categories_to_json(categories: Sequence[Category]) -> list[dict[str, Any]]:
  """Convert categories to the `categories` list of a COCO json; inverse of `parse_categories`."""
  entries = []
  for category in categories:
    entry: dict[str, Any] = {'id': category.id, 'name': category.name}
    if category.keypoints:
      entry['keypoints'] = list(category.keypoints)
      entry['skeleton'] = [list(bone) for bone in category.skeleton]
      if category.keypoint_pairs:
        entry['keypoint_pairs'] = [list(pair) for pair in category.keypoint_pairs]
    entries.append(entry)
  return entries


def without_keypoints(categories: tuple[Category, ...]) -> tuple[Category, ...]:
  """Return the categories without keypoints, for a detector of boxes and masks."""
  return tuple(Category(category.id, category.name) for category in categories)


def classes_of(category_ids: np.ndarray, categories: tuple[Category, ...]) -> np.ndarray:
  """Map category ids [n] to int32 classes [n] in 1..K, 0 for unknown ids."""
  known = np.array([category.id for category in categories], np.int64)  # ascending
  positions = np.minimum(np.searchsorted(known, category_ids), len(known) - 1)
  return np.where(known[positions] == category_ids, positions + 1, 0).astype(np.int32)


def _parse_category(entry: Any, where: str) -> Category:
  if not isinstance(entry, dict):
    raise UserError(f'{where} should be an object with "id" and "name", is {shorten(entry)}')
  id_, name = entry.get('id'), entry.get('name')
  if type(id_) is not int or not 0 <= id_ < 2 ** 63:
    raise UserError(f'{where}.id should be an integer of at least 0, is {shorten(id_)}')
  if not is_text(name):
    raise UserError(f'{where}.name should be a string without control characters, is {shorten(name)}')
  keypoints, skeleton, pairs = ([] if entry.get(field) is None else entry[field]
                                for field in ('keypoints', 'skeleton', 'keypoint_pairs'))
  if not isinstance(keypoints, list) or not all(map(is_text, keypoints)) or len(keypoints) > _MAX_KEYPOINTS:
    raise UserError(f'{where}.keypoints should be a list of at most {_MAX_KEYPOINTS} names, is {shorten(keypoints)}')
  if not _are_pairs(skeleton, lambda end: type(end) is int):
    raise UserError(f'{where}.skeleton should be a list of pairs of keypoint numbers, is {shorten(skeleton)}')
  if not _are_pairs(pairs, lambda end: end in keypoints):
    raise UserError(f'{where}.keypoint_pairs should be a list of pairs of its keypoints, is {shorten(pairs)}')
  bones = tuple((a, b) for a, b in skeleton if 1 <= min(a, b) and max(a, b) <= len(keypoints))
  if len(bones) < len(skeleton):
    logging.warning('%s.skeleton: %d of %d edges refer to keypoints that do not exist (1 to %d) and are dropped', where,
                    len(skeleton) - len(bones), len(skeleton), len(keypoints))
  return Category(id_, name, tuple(keypoints), bones, tuple((a, b) for a, b in pairs))


def _are_pairs(value: Any, is_end: Callable[[Any], bool]) -> bool:
  return isinstance(value, list) and all(
    isinstance(pair, list) and len(pair) == 2 and all(map(is_end, pair)) for pair in value)


def is_text(value: Any) -> bool:
  """Whether a value from a file is a string that is safe in terminals, tables and file names.

  It has no control characters (terminal escape sequences) and no surrogates (which cannot be encoded).
  """
  return isinstance(value, str) and (
    value.isprintable() or not any(unicodedata.category(letter) in ('Cc', 'Cs') for letter in value))


def as_text(value: str) -> str:
  """Replace the characters that `is_text` rejects by U+FFFD."""
  return ''.join(letter if is_text(letter) else '\ufffd' for letter in value)


def shorten(value: Any) -> str:
  """Format a value from a file for a message: printable, at most 60 characters; a large one is not formatted whole."""
  try:
    text = 'missing' if value is None else _REPR.repr(value)
  except (RecursionError, ValueError):  # an integer with more digits than Python converts
    text = f'a {type(value).__name__}'
  text = as_text(text)
  return text if len(text) <= 60 else text[:57] + '...'
