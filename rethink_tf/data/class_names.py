"""Matching of classes by name: a network's class k is the category of that name, whatever its id in another file."""

from __future__ import annotations

import collections
import functools
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from rethink_tf.data.categories import Category, shorten
from rethink_tf.errors import UserError
from rethink_tf.structures import Example, Source


def match(source: Source, reference: Sequence[Category], whose: str) -> Source:
  """Return a source whose class k has the name of the k-th reference category: `source` itself if it has already.

  reference: in the order of classes. whose: for messages, what has these classes.

  Raises:
    UserError: a name is on one side only, or the keypoints of a category have another order.
  """
  positions = order(_names(source.categories), _names(reference), source.name, whose)
  if getattr(source, 'num_keypoints', 0):
    _check_keypoints(source, [source.categories[i] for i in positions], reference, whose)
  if positions == list(range(len(positions))):
    return source
  if not (hasattr(source, 'annotations') or hasattr(source, 'classes')):  # labels that are read as a stream
    raise UserError(f'{source.name}: has the categories of {whose} in another order, which a source of this kind '
                    'cannot change: convert the data with the list of categories of the run')
  return Reordered(source, positions)


def order(names: Sequence[str], reference: Sequence[str], what: str, whose: str) -> list[int]:
  """Return the index in `names` of each reference name; both have the same names, the k-th of equal ones is the k-th.

  Raises:
    UserError: a name is on one side only.
  """
  here, there = _numbered(names), _numbered(reference)
  only_here = [name for name in here if name not in there]
  only_there = [name for name in there if name not in here]
  if only_here or only_there:
    texts = [f'{shorten(found[0][0])} is only {where}{f" (with {len(found) - 1} more)" if found[1:] else ""}'
             for found, where in ((only_here, 'there'), (only_there, f'in {whose}')) if found]
    raise UserError(f'{what} and {whose} have different categories: {" and ".join(texts)}: classes are matched by '
                    'name, so use annotation files of one data set, or rename the categories (TFRecords without such a '
                    'list: name one for both splits with records.categories_file)')
  places = {name: i for i, name in enumerate(here)}
  return [places[name] for name in there]


def merge_names(named: Sequence[tuple[str, Mapping[int, str]]]) -> dict[int, str]:
  """Merge label -> name of several files; of labels with several names the first is kept.

  Raises:
    UserError: the label of a file has the name of another label in the others.
  """
  merged: dict[int, str] = {}
  for _, names in named:
    merged = {label: name for label, name in names.items() if name not in ('', str(label))} | merged
  for file, names in named:
    check_same_names(names, file, merged, 'the others')
  return {label: name for _, names in named for label, name in names.items()} | merged


def check_same_names(names: Mapping[int, str], where: str, reference: Mapping[int, str], whose: str) -> None:
  """Check that labels have the same names on both sides, so that class k means one thing.

  A name that the other side does not have may be a renamed class: it is logged. Labels without a name have their
  number.

  Raises:
    UserError: one of two different names of a label is that of another label, too.
  """
  other = {label: name for label, name in names.items()
           if name not in ('', str(label), reference.get(label)) and label in reference}
  for label, name in other.items():
    pair = name, reference[label]
    elsewhere = next(((text, k) for side in (reference, names) for k, text in side.items()
                      if k != label and text in pair), None)
    if elsewhere:
      raise UserError(f'{where}: {label} is the label of {shorten(name)}, in {whose} that of '
                      f'{shorten(reference[label])}, and {elsewhere[1]} that of {shorten(elsewhere[0])}: they belong '
                      'to two conversions or splits with other lists of classes; use the files of one')
  if other:
    label, name = next(iter(other.items()))
    logging.warning('%s: label %d is named %s, in %s %s (%d labels differ): if the class was not renamed, the files '
                    'belong to different data', where, label, shorten(name), whose, shorten(reference[label]),
                    len(other))


class Reordered:
  """A source with its classes in another order, otherwise unchanged.

  positions: of the k-th class among the source's categories.
  """

  def __init__(self, source: Source, positions: Sequence[int]):
    self._source = source
    self.categories = tuple(source.categories[i] for i in positions)
    self._numbers = np.argsort(positions).astype(np.int32)  # of the source's categories here, from 0
    if hasattr(source, 'digest'):  # of the objects with their classes here: names may have changed places
      self.digest = functools.partial(source.digest, self._numbers)

  def __getattr__(self, name: str) -> Any:
    if name.startswith('__') or name == '_source':
      raise AttributeError(name)
    return getattr(self._source, name)

  def load(self, i: int) -> Any:
    """Return the Example of index i with its classes in this order, or the image of a classification source."""
    example = self._source.load(i)
    if not isinstance(example, Example):
      return example
    return example._replace(classes=np.concatenate([[0], 1 + self._numbers])[example.classes].astype(np.int32))

  @functools.cached_property
  def classes(self) -> np.ndarray:
    """Labels of a classification source, int32 [N, T], -1 = none."""
    return np.append(self._numbers, -1)[self._source.classes].astype(np.int32)


def _names(categories: Sequence[Category]) -> list[str]:
  return [category.name for category in categories]


def _numbered(names: Sequence[str]) -> list[tuple[str, int]]:
  """Return (name, how many equal ones precede it)."""
  counts: collections.Counter[str] = collections.Counter()
  found = []
  for name in names:
    name = unicodedata.normalize('NFC', name)
    found.append((name, counts[name]))
    counts[name] += 1
  return found


def _check_keypoints(source: Source, categories: Sequence[Category], reference: Sequence[Category], whose: str) -> None:
  for ours, theirs in zip(categories, reference, strict=True):
    if ours.keypoints and theirs.keypoints and tuple(ours.keypoints) != tuple(theirs.keypoints):
      k = next((k for k, pair in enumerate(zip(ours.keypoints, theirs.keypoints, strict=False)) if pair[0] != pair[1]),
               min(len(ours.keypoints), len(theirs.keypoints)))
      here, there = (shorten(one.keypoints[k] if k < len(one.keypoints) else None) for one in (ours, theirs))
      raise UserError(f'{source.name}: keypoint {k + 1} of {shorten(ours.name)} is {here}, in {whose} {there}: list '
                      'the keypoints in the same order')
