"""Drawn pictures under the categories of a run, for what needs a source but no photographs (export)."""

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
  """A few drawn pictures of the sizes that cameras give, without annotated objects.

  categories_file: the list `categories` of a COCO json, as a run leaves it in its folder.

  Raises:
    UserError: the file cannot be read, or holds no categories.
  """

  name = 'placeholder'
  is_placeholder = True  # its images are not reported

  def __init__(self, categories_file: str, num_images: int = 2, training: bool = False):
    del training
    self._drawn = SyntheticSource(num_images, split='val', image_size=(360, 640), object_size=(60, 300))
    self.categories = parse_categories(_read(categories_file), categories_file)
    self.num_classes = len(self.categories)
    self.num_keypoints = max(len(category.keypoints) for category in self.categories)
    self.image_ids, self.sizes = self._drawn.image_ids, self._drawn.sizes
    self.num_instances = np.zeros(num_images, np.int32)

  def load(self, i: int) -> Example:
    return Example(
      image=self._drawn.load(i).image, boxes=np.zeros((0, 4), np.float32), classes=np.zeros(0, np.int32),
      masks=np.zeros((0, MASK_CROP, MASK_CROP), np.uint8),
      keypoints=np.zeros((0, self.num_keypoints, 3), np.float32))


def _read(path: str) -> Any:
  try:
    return load_json(path, max_bytes=_MAX_BYTES)
  except UserError as error:
    raise UserError(f'{error}; the run leaves it when training begins') from error
