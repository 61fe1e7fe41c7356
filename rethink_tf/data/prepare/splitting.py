"""Division of a data set into training and held-out images: stratified by class, near-duplicates on one side.

Stratification is the iterative one for several labels an image (Sechidis et al., "On the stratification of multi-label
data", 2011): the rarest class first, each of its images to the side that lacks most of it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

_HASH = (9, 8)  # width, height of the thumbnail whose differences are hashed
_THUMBNAIL = (16, 16)
_MAX_BITS = 3  # of 64, in which the hashes of near-duplicates differ
_MAX_DIFFERENCE = 4.0  # grey levels, in the mean over the thumbnails of near-duplicates
_NEIGHBOURS = 64  # that an image is compared with, of those whose hash has 16 bits in common
_NO_OBJECT = ('no object',)  # a class of its own: images without objects
_AUGMENTED = re.compile(r'\.rf\.[0-9A-Za-z]+$')  # Roboflow's copies of an image: name_jpg.rf.<hash>


class Look(NamedTuple):
  """An image's appearance, for finding near-duplicates."""

  name: str  # of its file
  bits: int = 0  # difference hash
  thumbnail: np.ndarray | None = None  # uint8 [16, 16]; None: the image cannot be read


def thumbnail(image: np.ndarray) -> tuple[int, np.ndarray]:
  """Return the difference hash of an image, 64 bits, and its thumbnail, uint8 [16, 16]."""
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  small = cv2.resize(grey, _HASH, interpolation=cv2.INTER_AREA).astype(np.int16)
  bits = (small[:, 1:] > small[:, :-1]).ravel()
  return int.from_bytes(np.packbits(bits).tobytes(), 'big'), cv2.resize(grey, _THUMBNAIL, interpolation=cv2.INTER_AREA)


def near_duplicates(names: Sequence[str], hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
  """Return the group of each image, int64 [N], the number of its first one: equal for near-duplicates.

  names: of the files; copies that Roboflow has augmented are duplicates by their names.
  hashes: uint64 [N]. thumbnails: uint8 [N, 16, 16].
  """
  groups = np.arange(len(hashes))

  def root(i: int) -> int:
    while groups[i] != i:
      groups[i] = groups[groups[i]]
      i = groups[i]
    return i

  def join(i: int, j: int) -> None:
    a, b = sorted((root(i), root(j)))
    groups[b] = a

  first: dict[str, int] = {}
  for i, name in enumerate(names):
    stem = name.rpartition('.')[0]
    original = _AUGMENTED.sub('', stem)
    if original != stem:
      join(first.setdefault(original, i), i)
  for shift in range(0, 64, 16):  # hashes that differ in three bits agree in one of four bands
    band = (hashes >> np.uint64(shift)) & np.uint64(0xFFFF)
    order = np.lexsort((np.arange(len(hashes)), hashes, band))
    for step in range(1, min(_NEIGHBOURS, len(order) - 1) + 1):
      one, other = order[:-step], order[step:]
      same = band[one] == band[other]
      if not same.any():
        break
      one, other = one[same], other[same]
      near = _bit_counts(hashes[one] ^ hashes[other]) <= _MAX_BITS
      one, other = one[near], other[near]
      difference = np.abs(thumbnails[one].astype(np.int16) - thumbnails[other]).mean(axis=(1, 2))
      for i, j in zip(one[difference <= _MAX_DIFFERENCE], other[difference <= _MAX_DIFFERENCE], strict=True):
        join(int(i), int(j))
  return np.array([root(i) for i in range(len(groups))], np.int64)


def keep_videos(groups: np.ndarray, videos: Sequence[str | None], fraction: float) -> tuple[np.ndarray, bool]:
  """Return the groups with those of videos in place of those of their frames, and whether videos are whole.

  Frames of a moving camera are no near-duplicates by their looks, and yet show the same objects. With fewer videos than
  are needed to hold out `fraction` of them, each is cut into blocks of successive frames.

  groups: int64 [N], of near-duplicates. videos: that of each frame, in order; None for other images.
  """
  groups, pieces = groups.copy(), math.ceil(1 / fraction - 1e-9)
  members: dict[str, list[int]] = defaultdict(list)
  for i, video in enumerate(videos):
    if video is not None:
      members[video].append(i)
  whole = len(members) >= pieces
  for frames in members.values():
    for block in np.array_split(frames, 1 if whole else min(pieces, len(frames))):
      groups[block] = block[0]
  return groups, whole


def near_pairs(first: Sequence[Look], second: Sequence[Look]) -> list[tuple[int, int]]:
  """Return (index in `first`, index in `second`) of each image of `second` that has a near-duplicate in `first`."""
  one, other = _groups([*first, *second], len(first))
  found = {group: i for i, group in one.items()}
  return [(found[group], i) for i, group in other.items() if group in found]


def near_copies(looks: Sequence[Look]) -> int:
  """Return the number of images that have a near-duplicate among the others."""
  groups, _ = _groups(looks, len(looks))
  return sum(count for count in Counter(groups.values()).values() if count > 1)


def _groups(looks: Sequence[Look], first: int) -> tuple[dict[int, int], dict[int, int]]:
  """Return index -> group of near-duplicates, of the first images and of those after them, which are counted from 0.

  Images that cannot be read are left out, and plain ones of one value, in which there is nothing to recognise. Names do
  not count here: frames of two videos may share them.
  """
  rows = [i for i, look in enumerate(looks) if look.thumbnail is not None and np.ptp(look.thumbnail)]
  groups = near_duplicates([''] * len(rows), np.array([looks[i].bits for i in rows], np.uint64),
                           np.array([looks[i].thumbnail for i in rows], np.uint8).reshape(-1, *_THUMBNAIL)).tolist()
  pairs = [*zip(rows, groups, strict=True)]
  return {i: group for i, group in pairs if i < first}, {i - first: group for i, group in pairs if i >= first}


def hold_out(classes: Sequence[Sequence[object]], groups: np.ndarray, names: Sequence[str], fraction: float,
             seed: int) -> np.ndarray:
  """Return which images are held out, bool [N].

  Args:
    classes: the classes in each image.
    groups: int64 [N], images of a group stay together.
    names: of the images, unique: the choice depends on them and the seed alone, not on their order.
    fraction: of the images, in (0, 1).
    seed: another one gives another choice.
  """
  members: dict[int, list[int]] = defaultdict(list)
  for i, group in enumerate(groups.tolist()):
    members[group].append(i)
  ranks = {group: min(_rank(names[i], seed) for i in images) for group, images in members.items()}
  counts = {group: Counter(label for i in images for label in (set(classes[i]) or {_NO_OBJECT}))
            for group, images in members.items()}
  totals = Counter()
  having: dict[object, set[int]] = defaultdict(set)
  for group, found in counts.items():
    totals.update(found)
    for label in found:
      having[label].add(group)
  lacking = [{label: total * share for label, total in totals.items()} for share in (1 - fraction, fraction)]
  room = [len(names) * (1 - fraction), len(names) * fraction]
  held: dict[int, bool] = {}
  left = Counter(totals)  # images of each class that are not assigned yet
  while left:
    label = min(left, key=lambda one: (left[one], str(one)))
    for group in sorted(having[label] - held.keys(), key=lambda one: (-len(members[one]), ranks[one])):
      needs = [(lacking[side][label], room[side], ranks[group][side]) for side in (0, 1)]
      side = int(needs[1] > needs[0])
      held[group] = bool(side)
      room[side] -= len(members[group])
      for other, count in counts[group].items():
        lacking[side][other] -= count
        left[other] -= count
    left = +left  # those that remain
  _occupy_both(held, members, ranks)
  return np.array([held[group] for group in groups.tolist()])


def _occupy_both(held: dict[int, bool], members: dict[int, list[int]], ranks: dict[int, bytes]) -> None:
  """Move the smallest group if a side is empty."""
  if len(held) > 1 and len(set(held.values())) == 1:
    smallest = min(held, key=lambda group: (len(members[group]), ranks[group]))
    held[smallest] = not held[smallest]


def _rank(name: str, seed: int) -> bytes:
  return hashlib.blake2b(f'{seed} {name}'.encode('utf-8', 'surrogateescape'), digest_size=16).digest()


def _bit_counts(values: np.ndarray) -> np.ndarray:
  return np.unpackbits(np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)
