"""Placeholder source: rendered images with the categories of a run, for commands that need no data set (export)."""

from __future__ import annotations

from typing import Any

import gin
import numpy as np

from rethink_tf.data.categories import parse_categories
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.data.json_files import load_json
from rethink_tf.errors import UserError
from rethink_tf.structures import MASK_CROP, Example

_MAX_BYTES = 64 << 20


@gin.register('placeholder')
class PlaceholderSource:
  """A few rendered images in the usual camera formats, without annotations.

  Args:
    categories_file: the list `categories` of a COCO json, as written in a run folder.
    num_images: number of images.
    training: has no effect.

  Raises:
    UserError: the file cannot be read, or holds no categories.
  """

  name = 'placeholder'
  is_placeholder = True  # inputs do not log its number of images

  def __init__(self, categories_file: str, num_images: int = 2, training: bool = False):
    del training
    self._synthetic = SyntheticSource(num_images, split='val', image_size=(360, 640), object_size=(60, 300))
    self.categories = parse_categories(_read(categories_file), categories_file)
    self.num_classes = len(self.categories)
    self.num_keypoints = max(len(category.keypoints) for category in self.categories)
    self.image_ids, self.sizes = self._synthetic.image_ids, self._synthetic.sizes
    self.num_instances = np.zeros(num_images, np.int32)

  def load(self, i: int) -> Example:
    """Return image i, without annotations."""
    return Example(
      image=self._synthetic.load(i).image, boxes=np.zeros((0, 4), np.float32), classes=np.zeros(0, np.int32),
      masks=np.zeros((0, MASK_CROP, MASK_CROP), np.uint8),
      keypoints=np.zeros((0, self.num_keypoints, 3), np.float32))


def _read(path: str) -> Any:
  try:
    return load_json(path, max_bytes=_MAX_BYTES)
  except UserError as error:
    raise UserError(f'{error}; training writes this file when it starts') from error
