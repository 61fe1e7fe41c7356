"""Left and right keypoints, which a horizontal flip exchanges: found by their names, category by category.

Shapes: K categories, P keypoints.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from absl import logging

from rethink_tf.data.categories import Category
from rethink_tf.errors import UserError

_OTHER_SIDE = {'left': 'right', 'right': 'left', 'l': 'r', 'r': 'l'}
_WORDS = re.compile(r'[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+')  # leftEye, LEye, l_eye, LEFT EYE, eye.L, l1


def flip_order(names: Sequence[str], pairs: Sequence[tuple[str, str]] = ()) -> np.ndarray:
  """Return the source index of each keypoint under a horizontal flip: 'left_eye' <-> 'right_eye' -> int [P].

  A name is split into words at underscores, spaces, punctuation, digits and changes of case; 'left' and 'right', or 'l'
  and 'r', are exchanged in any case. A keypoint without a counterpart keeps its place.

  Args:
    names: of the keypoints of one category.
    pairs: names that are exchanged whatever they are; pairs with a name that is not in `names` are ignored.
  """
  order = np.arange(len(names))
  for mirror in (_by_words, _by_syllables):
    found = defaultdict(list)
    for i, name in enumerate(names):
      found[mirror(name, False)].append(i)
    for i, name in enumerate(names):
      others = found.get(mirror(name, True), [])
      if order[i] == i and len(others) == 1 and order[others[0]] == others[0] and len(found[mirror(name, False)]) == 1:
        order[i], order[others[0]] = others[0], i
  for first, second in pairs:
    if first in names and second in names:
      i, j = names.index(first), names.index(second)
      for one in (i, j):
        order[order[one]] = order[one]  # its earlier counterpart keeps its place
      order[i], order[j] = j, i
  return order


def flip_orders(categories: Sequence[Category], num_keypoints: int) -> np.ndarray:
  """Return flip_order of the classes 1..K; keypoints beyond those of a category keep their place -> int [K, P]."""
  orders = np.tile(np.arange(num_keypoints), (len(categories), 1))
  for row, category in zip(orders, categories, strict=True):
    row[:len(category.keypoints)] = flip_order(category.keypoints, category.keypoint_pairs)
  return orders


def warn_of_unpaired(name: str, categories: Sequence[Category]) -> None:
  """Log the keypoints whose names have a side but no counterpart: a flip leaves them on the wrong side."""
  unpaired = []
  for category in categories:
    order = flip_order(category.keypoints, category.keypoint_pairs)
    unpaired += [f'{category.name}: {keypoint}' for i, keypoint in enumerate(category.keypoints)
                 if order[i] == i and not any(keypoint in pair for pair in category.keypoint_pairs)
                 and _has_side(keypoint)]
  if unpaired:
    logging.warning("%s: %d keypoints have a side in their name but no counterpart: a horizontal flip puts them "
                    "on the wrong side (%s%s): name them in keypoint_pairs = (('left name', 'right name'),), or set "
                    'TrainInput.flip = False', name, len(unpaired), ', '.join(unpaired[:6]),
                    ', ...' if len(unpaired) > 6 else '')


def with_pairs(categories: tuple[Category, ...], pairs: Sequence[tuple[str, str]], where: str) -> tuple[Category, ...]:
  """Add pairs of keypoint names to the categories that have them.

  Raises:
    UserError: not pairs of names, or no category has both names of a pair.
  """
  pairs = tuple(pairs or ())
  if not all(isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(one, str) for one in pair)
             for pair in pairs):
    raise UserError(f"{where} = {pairs!r}: write pairs of keypoint names, such as (('left eye', 'right eye'),)")
  added = [tuple(tuple(pair) for pair in pairs if set(pair) <= set(category.keypoints)) for category in categories]
  for pair in pairs:
    if not any(tuple(pair) in own for own in added):
      raise UserError(f'{where}: no category has both keypoints {pair[0]!r} and {pair[1]!r}')
  return tuple(category._replace(keypoint_pairs=category.keypoint_pairs + own)
               for category, own in zip(categories, added, strict=True))


def _has_side(name: str) -> bool:
  return _by_words(name, True) != _by_words(name, False)


def _by_words(name: str, mirrored: bool) -> tuple[str, ...]:
  """Return the words of a name; mirrored: with 'left' and 'right', 'l' and 'r' exchanged."""
  words = tuple(word.casefold() for word in _WORDS.findall(name))
  return tuple(_OTHER_SIDE.get(word, word) for word in words) if mirrored else words


def _by_syllables(name: str, mirrored: bool) -> str:
  """The same for names without boundaries between words: 'lefteye', 'eyeleft'."""
  joined = ''.join(_by_words(name, False))
  return re.sub('left|right', lambda found: _OTHER_SIDE[found.group()], joined) if mirrored else joined
