"""The split of each image: that of the source, or training and held-out images that are no near-duplicates of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rethink_tf.data.categories import as_text
from rethink_tf.data.prepare import splitting
from rethink_tf.data.prepare.layout import LabelledImage, Reading
from rethink_tf.errors import UserError

VIDEOS = '{frames} frames of {videos} videos: all frames of a video are in one split'
BLOCKS = ('{frames} frames of {videos} video{s}: blocks of successive frames are held out, since there are not enough '
          'videos to hold out whole ones: AP on them is not that on new videos')

UNEVEN = ('this is far from --held_out={asked:g}: near-duplicates stay on one side, and classes of very few images '
          'cannot be divided; a larger --held_out, or splits in the source, change it')
_MANY = 10  # images, of which a fraction can be held out


@dataclass
class Division:
  """How to choose the held-out images.

  fraction: of the images, for a source without splits. seed: of the choice. again: ignore the splits of the source.
  group: keep near-duplicates on one side.
  """

  fraction: float = 0.2
  seed: int = 0
  again: bool = False
  group: bool = True


def divide(root: str, images: Sequence[LabelledImage], classes: Sequence[Sequence[Any]], hashes: np.ndarray,
           thumbnails: np.ndarray, division: Division, reading: Reading) -> list[str]:
  """Return the split of each image: that of the source, if it has images for training and for others.

  Args:
    root: the source, for messages.
    images: sorted by file. classes: of the objects in each of them.
    hashes, thumbnails: of each, as splitting.thumbnail returns them.
    division: how to choose otherwise.
    reading: is given notes on the choice.

  Raises:
    UserError: there is one image only, and no split.
  """
  named = {image.split for image in images}
  if not division.again and None not in named and 'train' in named and len(named) > 1:
    splits = _own_splits(images, reading)
    if division.group:
      reading.notes += _shared_by_splits(images, splits, hashes, thumbnails, ' (--resplit keeps them on one side)')
    return splits
  if None in named and len(named) > 1 and not division.again:
    without = [image.file for image in images if image.split is None]
    reading.notes.append(f'{len(without)} of {len(images)} images, e.g. {as_text(without[0])}, are of no split: those '
                         'of the source are not kept')
  if len(images) < 2:
    raise UserError(f'{root}: one usable image: at least two are needed to hold one out')
  return _held_out(images, classes, hashes, thumbnails, division, reading)


def _own_splits(images: Sequence[LabelledImage], reading: Reading) -> list[str]:
  """Return the split of each image as the source has it; test images are held out if it has no validation images."""
  splits = [image.split for image in images]
  if 'val' not in splits:
    reading.notes.append("the source has no validation images: its test images are the held-out ones ('val')")
    return ['val' if split == 'test' else 'train' for split in splits]
  if 'test' in splits:
    reading.notes.append("test images are written too, and not used: eval/coco.split = 'test' evaluates on them")
  return splits


def _held_out(images: Sequence[LabelledImage], classes: Sequence[Sequence[Any]], hashes: np.ndarray,
              thumbnails: np.ndarray, division: Division, reading: Reading) -> list[str]:
  """Return the split of each image, 'train' or 'val', chosen by the division."""
  names, videos = [image.file for image in images], [image.video for image in images]
  groups = splitting.near_duplicates(names, hashes, thumbnails) if division.group else np.arange(len(images))
  count = len({*videos} - {None}) if division.group else 0
  if count:
    groups, whole = splitting.keep_videos(groups, videos, division.fraction)
    frames = len(videos) - videos.count(None)
    reading.notes.append((VIDEOS if whole else BLOCKS).format(frames=frames, videos=count, s='s' * (count > 1)))
  if len(np.unique(groups)) == 1:
    reading.notes.append('all images are near-duplicates of each other, so that both sides have some')
    groups = np.arange(len(images))
  held = splitting.hold_out(classes, groups, names, division.fraction, division.seed)
  sizes = np.bincount(groups)
  reading.notes.append(
    f'{held.sum()} of {len(images)} images are held out, stratified by class (seed {division.seed})'
    + (f'; {sizes[sizes > 1].sum()} near-duplicates in {(sizes > 1).sum()} groups are kept on one side'
       if (sizes > 1).any() and not count else ''))
  if len(images) >= _MANY and not 0.5 * division.fraction <= held.mean() <= 2 * division.fraction:
    reading.notes.append(UNEVEN.format(asked=division.fraction))
  splits = ['val' if one else 'train' for one in held]
  if count:
    reading.notes += _shared_by_splits(images, splits, hashes, thumbnails)
  return splits


def _shared_by_splits(images: Sequence[LabelledImage], splits: Sequence[str], hashes: np.ndarray,
                      thumbnails: np.ndarray, cure: str = '') -> list[str]:
  """Return a note on held-out images whose near-duplicates are trained on: AP is that of images which are known."""
  trained, held = ([splitting.Look(image.file, bits, small) for image, own, bits, small in zip(
    images, splits, hashes.tolist(), thumbnails, strict=True) if own == split] for split in ('train', 'val'))
  shared = splitting.near_pairs(trained, held)
  return [f'{len(shared)} of {len(held)} held-out images are near-duplicates of training images, e.g. '
          f'{as_text(held[shared[0][1]].name)} of {as_text(trained[shared[0][0]].name)}: AP on them is not that on new '
          f'images{cure}'] if shared else []
