"""Drawn pictures of one shape each, with its class: what a classifier is pre-trained on without any download."""

from __future__ import annotations

import gin
import numpy as np

from rethink_tf.data.detection.synthetic import SyntheticSource


@gin.register('synthetic_classes')
class SyntheticClasses:
  """One textured shape a picture, labelled with its outline; the classification twin of `synthetic`.

  num_images, split, seed, num_classes, image_size, object_size: as for `synthetic`. Another seed than that of the
  detection set makes pictures that detection never shows.
  fraction, subset_seed: a seeded, nested subset.

  Attributes:
    classes: int32 [N, 1], from 0; num_instances: int32 [N], all 1; image_ids: int64 [N].

  Raises:
    UserError: a value out of range.
  """

  name = 'synthetic_classes'

  def __init__(self, num_images: int = 10_000, split: str = 'train', seed: int = 1, num_classes: int = 6,
               image_size: tuple[int, int] = (96, 112), object_size: tuple[int, int] = (32, 88), fraction: float = 1.0,
               subset_seed: int = 0, training: bool = False):
    del training
    self._drawn = SyntheticSource(num_images, fraction, subset_seed, split, seed, num_classes, image_size, object_size,
                                  max_objects=1)
    self.categories, self.num_classes = self._drawn.categories, num_classes
    self.image_ids = self._drawn.image_ids
    self.classes = np.array([self._drawn.labels(i)[0] - 1 for i in range(len(self.image_ids))], np.int32)[:, None]
    self.num_instances = np.ones(len(self.image_ids), np.int32)

  def load(self, i: int) -> np.ndarray:
    """Image i, uint8 [h, w, 3] RGB."""
    return self._drawn.load(i).image
