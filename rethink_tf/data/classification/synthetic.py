"""Synthetic classification data: rendered images of one shape each, for pre-training without a download."""

from __future__ import annotations

import gin
import numpy as np

from rethink_tf.data.detection.synthetic import SyntheticSource


@gin.register('synthetic_classes')
class SyntheticClasses:
  """Images of one textured shape, labelled with its outline; the classification counterpart of `synthetic`.

  Args:
    num_images, split, seed, num_classes, image_size, object_size: as for `synthetic`. With another seed than the
      detection data, the two have no image in common.
    fraction, subset_seed: a seeded, nested subset.
    training: has no effect.

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
    self._synthetic = SyntheticSource(num_images, fraction, subset_seed, split, seed, num_classes, image_size,
                                      object_size, max_objects=1)
    self.categories, self.num_classes = self._synthetic.categories, num_classes
    self.image_ids = self._synthetic.image_ids
    self.classes = np.array([self._synthetic.labels(i)[0] - 1 for i in range(len(self.image_ids))], np.int32)[:, None]
    self.num_instances = np.ones(len(self.image_ids), np.int32)

  def load(self, i: int) -> np.ndarray:
    """Return image i, uint8 [h, w, 3] RGB."""
    return self._synthetic.load(i).image
