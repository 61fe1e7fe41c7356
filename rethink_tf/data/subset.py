"""Seeded, nested subsets of a data set (section 5.2: 35k, 10k, 3.5k and 1k images of COCO)."""

import numpy as np
from absl import logging

from rethink_tf.data.keyed_random import splitmix64
from rethink_tf.errors import UserError


def subset(image_ids: np.ndarray, fraction: float = 1.0, num_images: int | None = None, seed: int = 0,
           name: str = 'images') -> np.ndarray:
  """Select the images of a smaller training set: those with the lowest hash of (seed, image id).

  The hash depends on seed and image id alone, so that the selection is the same on every machine and for every order of
  the files, and a smaller subset is contained in every larger one of the same seed.

  Args:
    image_ids: int64 [N], unique.
    fraction: fraction of the N images to keep, in (0, 1].
    num_images: number of images to keep, in 1..N; instead of `fraction`.
    seed: another seed gives another family of subsets.
    name: of the data set, for messages.

  Returns:
    int64 [n] positions in `image_ids`, ascending.

  Raises:
    UserError: both limits are given, or one is out of range.
  """
  total = len(image_ids)
  if num_images is not None and fraction != 1.0:
    raise UserError(f'{name}: fraction = {fraction} and num_images = {num_images} are both set: leave '
                    'one at its default, fraction = 1.0 or num_images = None')
  if not 0.0 < fraction <= 1.0:
    raise UserError(f'{name}: fraction = {fraction} should be above 0 and at most 1, which is all images')
  if num_images is None:
    num_images = max(1, int(total * fraction + 0.5)) if total else 0
  elif not 1 <= num_images <= total:
    raise UserError(f'{name}: num_images = {num_images} should be between 1 and the {total} images that can be chosen '
                    'from; None is all of them')
  if num_images == total:
    return np.arange(total)
  return np.sort(np.argpartition(_ranks(image_ids, seed), num_images - 1)[:num_images])


def whose_images(source: str, chosen: int, total: int) -> tuple[str, str]:
  """Return in words which images training has, and the advice if a subset is too small.

  source: the configurable with `num_images` and `fraction`. chosen, total: numbers of images.
  """
  if chosen == total:
    return 'images', ''
  return f'{chosen} images of the subset', f': raise {source}.num_images or {source}.fraction'


def select(name: str, image_ids: np.ndarray, num_instances: np.ndarray, training: bool, fraction: float,
           num_images: int | None, seed: int, num_visible: np.ndarray | None = None,
           filter_empty: bool = True) -> np.ndarray:
  """Select the images of a source: for training those with a usable box (and a keypoint), and of these a subset.

  Detectron and Detectron2 drop the same images.

  Args:
    name: of the data set, for messages.
    image_ids: int64 [N].
    num_instances: int32 [N] usable boxes of each image.
    training: drop images without a usable box.
    fraction, num_images, seed: as for `subset`.
    num_visible: int32 [N] visible keypoints of each image, if keypoints are trained.
    filter_empty: False keeps images without a usable box or visible keypoint in training too.

  Returns:
    int64 [n] positions, ascending.

  Raises:
    UserError: no image remains, or as for `subset`.
  """
  if not len(image_ids):
    raise UserError(f'{name}: lists no images')
  positions = np.arange(len(image_ids))
  if training:
    positions = np.flatnonzero(num_instances > 0)
    if not len(positions):
      raise UserError(f'{name}: none of its {len(image_ids)} images has a box to train on')
    if not filter_empty:
      logging.info('%s: %d of %d images have no box to train on: all of them is background (filter_empty = False)',
                   name, len(image_ids) - len(positions), len(image_ids))
      chosen = subset(image_ids, fraction, num_images, seed, name)
      if not num_instances[chosen].any():
        raise UserError(f'{name}: none of the {len(chosen)} images of the subset has a box to train on (filter_empty = '
                        'False keeps all): raise num_images or fraction, or set filter_empty = True')
      return chosen
    if len(positions) < len(image_ids):
      logging.info('%s: %d of %d images have no box to train on (no annotation or only crowds) and are dropped',
                   name, len(image_ids) - len(positions), len(image_ids))
    if num_visible is not None:
      boxed, positions = len(positions), positions[num_visible[positions] > 0]
      if not len(positions):
        raise UserError(f'{name}: none of its {len(image_ids)} images has a visible keypoint to train on')
      if len(positions) < boxed:
        logging.info('%s: %d of %d images have boxes but no visible keypoint and are dropped', name,
                     boxed - len(positions), len(image_ids))
  return positions[subset(image_ids[positions], fraction, num_images, seed, name)]


def _ranks(image_ids: np.ndarray, seed: int) -> np.ndarray:
  """Hash image ids -> uint64 [N]. Both mixes are bijections, so that different images never have equal ranks."""
  key = splitmix64(np.array([seed], np.int64).astype(np.uint64))
  return splitmix64(np.asarray(image_ids, np.int64).astype(np.uint64) ^ key)
