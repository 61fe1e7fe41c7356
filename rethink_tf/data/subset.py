"""Seeded, nested subsets of a data set (section 5.2: 35k, 10k, 3.5k and 1k images of COCO)."""

import numpy as np
from absl import logging

from rethink_tf.data.keyed_random import splitmix64
from rethink_tf.errors import UserError


def subset(image_ids: np.ndarray, fraction: float = 1.0, num_images: int | None = None, seed: int = 0) -> np.ndarray:
  """Chooses the images of a smaller training set: the lowest ranks by a hash of (seed, image id).

  A rank depends on nothing but seed and image id, so the choice is the same on every machine and in every order of
  the files, and a smaller subset lies inside every larger one of the same seed.

  Args:
    image_ids: int64 [N], all different.
    fraction: part of the N images to keep, in (0, 1].
    num_images: how many to keep, in 1..N; instead of `fraction`.
    seed: another seed gives another family of subsets.

  Returns:
    int64 [n] positions in `image_ids`, ascending.

  Raises:
    UserError: both limits given, or one out of range.
  """
  total = len(image_ids)
  if num_images is not None and fraction != 1.0:
    raise UserError(f'fraction = {fraction} and num_images = {num_images} are both given: give one of them')
  if not 0.0 < fraction <= 1.0:
    raise UserError(f'fraction = {fraction} should be above 0 and at most 1')
  if num_images is None:
    num_images = max(1, int(total * fraction + 0.5)) if total else 0
  elif not 1 <= num_images <= total:
    raise UserError(f'num_images = {num_images} should be between 1 and the {total} images that can be chosen from')
  if num_images == total:
    return np.arange(total)
  return np.sort(np.argpartition(_ranks(image_ids, seed), num_images - 1)[:num_images])


def select(name: str, image_ids: np.ndarray, num_instances: np.ndarray, training: bool, fraction: float,
           num_images: int | None, seed: int, num_visible: np.ndarray | None = None) -> np.ndarray:
  """The images of a source: for training those with a usable box (and a keypoint), and of these the subset.

  Detectron and Detectron2 leave the same images out.

  Args:
    name: of the data set, for messages.
    image_ids: int64 [N].
    num_instances: int32 [N] usable boxes of each image.
    training: whether to leave out images without one.
    fraction, num_images, seed: as for `subset`.
    num_visible: int32 [N] visible keypoints of each image, where keypoints are trained on.

  Returns:
    int64 [n] positions, ascending.

  Raises:
    UserError: nothing left, or as for `subset`.
  """
  if not len(image_ids):
    raise UserError(f'{name}: lists no images')
  positions = np.arange(len(image_ids))
  if training:
    positions = np.flatnonzero(num_instances > 0)
    if not len(positions):
      raise UserError(f'{name}: none of its {len(image_ids)} images has a box to train on')
    if len(positions) < len(image_ids):
      logging.info('%s: %d of %d images have no box to train on (none at all or only crowds) and are left out',
                   name, len(image_ids) - len(positions), len(image_ids))
    if num_visible is not None:
      boxed, positions = len(positions), positions[num_visible[positions] > 0]
      if not len(positions):
        raise UserError(f'{name}: none of its {len(image_ids)} images has a visible keypoint to train on')
      if len(positions) < boxed:
        logging.info('%s: %d of %d images have boxes but no visible keypoint and are left out', name,
                     boxed - len(positions), len(image_ids))
  return positions[subset(image_ids[positions], fraction, num_images, seed)]


def _ranks(image_ids: np.ndarray, seed: int) -> np.ndarray:
  """uint64 [N]. Both mixes are bijections, so different images never share a rank."""
  key = splitmix64(np.array([seed], np.int64).astype(np.uint64))
  return splitmix64(np.asarray(image_ids, np.int64).astype(np.uint64) ^ key)


