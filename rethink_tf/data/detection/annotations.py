"""The annotations of a data set as columns: validated once, then looked up by image.

Shapes: A annotations, N images. COCO's 118,000 images with 860,000 annotations take about half a gigabyte.
"""

import hashlib
from array import array
from typing import Any

import numpy as np

from rethink_tf.data.categories import Category, classes_of, shorten
from rethink_tf.data.detection.segmentation import Segmentations, crop_segmentation
from rethink_tf.data.problems import Problems
from rethink_tf.structures import MASK_CROP, Example

_NO_ID = -1
_MAX_COORDINATE = 1e6  # pixels; larger coordinates are errors, and overflow in rasterisation
_BAD_KEYPOINTS = 'with malformed keypoints (treated as not labelled)'


class FieldError(Exception):
  """A field of an annotation is missing or has a wrong type; the message names the field."""


class AnnotationReader:
  """Collects annotations, COCO json objects added one at a time, and keeps only the columns that are needed."""

  def __init__(self, with_keypoints: bool = False) -> None:
    self.ids, self.image_ids, self.category_ids = array('q'), array('q'), array('q')
    self.xywh, self.areas, self.crowds = array('d'), array('d'), array('b')
    self.segmentations = Segmentations()
    self.keypoints: dict[int, array] | None = {} if with_keypoints else None
    self.malformed: list[int] = []  # rows with an invalid segmentation
    self.problems = Problems()

  def __len__(self) -> int:
    return len(self.ids)

  def add(self, entry: dict[str, Any]) -> None:
    """Add one object of the `annotations` list.

    Raises:
      FieldError: a field is missing or has a wrong type.
    """
    row = len(self)
    for column, field, default in ((self.image_ids, 'image_id', None), (self.category_ids, 'category_id', None),
                                   (self.crowds, 'iscrowd', 0), (self.ids, 'id', _NO_ID)):
      try:
        column.append(entry.get(field, default))
      except (TypeError, OverflowError):
        raise FieldError(f'{field} should be an integer, is {shorten(entry.get(field))}') from None
    bbox = entry.get('bbox')
    try:
      if len(bbox) != 4:
        raise TypeError
      self.xywh.fromlist(bbox)
    except (TypeError, OverflowError):
      raise FieldError(f'bbox should be four numbers [x, y, width, height], is {shorten(bbox)}') from None
    if entry.get('area') is None:
      self._count('without an area (that of the box is used)', row)
    try:
      self.areas.append(bbox[2] * bbox[3] if entry.get('area') is None else entry['area'])
    except (TypeError, OverflowError):
      raise FieldError(f'area should be a number, is {shorten(entry.get("area"))}') from None
    self._add_segmentation(row, entry.get('segmentation'), bbox)
    if self.keypoints is not None and 'keypoints' in entry:
      self.add_keypoints(row, entry['keypoints'])

  def add_keypoints(self, row: int, keypoints: Any) -> None:
    """Add x, y, visibility of every keypoint to an existing row."""
    try:
      self.keypoints[row] = array('d', keypoints)
    except (TypeError, OverflowError):
      self._count(_BAD_KEYPOINTS, row)

  def _add_segmentation(self, row: int, segmentation: Any, bbox: list[float]) -> None:
    if not segmentation:  # a data set with boxes only: evaluator and mask head still need a mask
      self._count('without a segmentation (its box is used)', row)
      x, y, w, h = bbox
      segmentation = [[x, y, x, y + h, x + w, y + h, x + w, y]]
    try:
      self.segmentations.append(segmentation)
    except ValueError:
      self.segmentations.append([])
      self.malformed.append(row)

  def _count(self, reason: str, row: int) -> None:
    self.problems.add(reason, 1, f'annotation {self.ids[row]} of image {self.image_ids[row]}')


class Annotations:
  """All annotations of N images, validated.

  An annotation is *kept* if a COCO evaluator can read it: its image, category, numbers and segmentation are valid. It
  is *usable* for training if, in addition, it is not a crowd, its area is positive and its box is not empty after
  clipping to the image (Detectron's rule). Dropped and changed annotations are counted by reason.

  Attributes:
    boxes: float32 [A, 4] y0, x0, y1, x1; classes: int32 [A] 1..K; usable: bool [A].
    num_usable: int32 [N] usable annotations of each image.
    num_visible: int32 [N] labelled keypoints (visibility above 0) of these, 0 without keypoints.
    problems: counts of dropped and changed annotations.
  """

  def __init__(self, reader: AnnotationReader, image_ids: np.ndarray, sizes: np.ndarray,
               categories: tuple[Category, ...]) -> None:
    """`image_ids`: int64 [N], ascending. `sizes`: int32 [N, 2] height, width."""
    self.categories = categories
    self.num_keypoints = max(len(category.keypoints) for category in categories)
    self.problems = reader.problems
    self._reader = reader
    self._image_ids, self._sizes = image_ids, sizes
    self._ids = np.array(reader.ids, np.int64)
    self._crowds = np.array(reader.crowds, bool)
    self._xywh = np.array(reader.xywh, np.float64).reshape(-1, 4)
    self.classes = classes_of(np.array(reader.category_ids, np.int64), categories)

    of_image = self._of_image = np.array(reader.image_ids, np.int64)
    images = np.minimum(np.searchsorted(image_ids, of_image), len(image_ids) - 1)
    kept = self._drop('of an image that is not listed', image_ids[images] != of_image, np.ones(len(reader), bool))
    kept = self._drop('of an unknown category', self.classes == 0, kept)
    finite = np.isfinite(self._xywh).all(axis=1) & np.isfinite(reader.areas)
    kept = self._drop('with a number that is not finite', ~finite, kept)
    kept = self._drop('with a box out of range', ~(np.abs(self._xywh) <= _MAX_COORDINATE).all(axis=1), kept)
    kept = self._drop('with a malformed segmentation', self._malformed(sizes[images]), kept)
    self.boxes, overhang = _clip(np.where(kept[:, None], self._xywh, 0.0), sizes[images])
    self.usable = self._find_usable(kept)
    # Not worth a message below this: COCO's own boxes, rounded to hundredths, exceed their images by less.
    self._count('clipped to the image', self.usable & (overhang > 0.1))

    rows = np.flatnonzero(kept)
    self._rows = rows[np.argsort(images[rows], kind='stable')]  # by image, in the order of the file
    self._starts = np.searchsorted(images[self._rows], np.arange(len(image_ids) + 1))
    self.num_usable = np.bincount(images[self.usable], minlength=len(image_ids)).astype(np.int32)
    self._renumber()
    self._drop_malformed_keypoints()
    self.num_visible = self._count_visible(images)

  def example(self, i: int, image: np.ndarray) -> Example:
    """Return the Example of image i: its pixels and usable annotations."""
    rows = self._rows[self._starts[i]:self._starts[i + 1]]
    rows = rows[self.usable[rows]]
    boxes, (height, width) = self.boxes[rows], self._sizes[i]
    masks = np.zeros([len(rows), MASK_CROP, MASK_CROP], np.uint8)
    keypoints = np.zeros([len(rows), self.num_keypoints, 3], np.float32)
    for k, row in enumerate(rows):
      masks[k] = crop_segmentation(self._reader.segmentations[row], boxes[k], int(height), int(width))
      if self.num_keypoints and row in self._reader.keypoints:
        xyv = np.reshape(self._reader.keypoints[row], [-1, 3])
        keypoints[k, :len(xyv)] = xyv[:, [1, 0, 2]]
    return Example(image, boxes, self.classes[rows], masks, keypoints)

  def to_json(self, i: int) -> list[dict[str, Any]]:
    """Return the kept annotations of image i, crowds included, as COCO json objects."""
    return [self._row_to_json(row, int(self._image_ids[i])) for row in self._rows[self._starts[i]:self._starts[i + 1]]]

  def digest(self) -> str:
    """Return a hash of the images and annotations."""
    digest = hashlib.sha256()
    for column in (self._image_ids, self._sizes, self._ids, self._xywh, self._crowds, self.classes, self._rows):
      digest.update(np.ascontiguousarray(column))
    self._reader.segmentations.update_digest(digest)
    for row, keypoints in (self._reader.keypoints or {}).items():
      digest.update(np.int64(row))
      digest.update(keypoints)
    return digest.hexdigest()

  def _row_to_json(self, row: int, image_id: int) -> dict[str, Any]:
    category = self.categories[self.classes[row] - 1]
    entry = {'id': int(self._ids[row]), 'image_id': image_id, 'category_id': category.id,
             'bbox': self._xywh[row].tolist(), 'area': self._reader.areas[row], 'iscrowd': int(self._crowds[row]),
             'segmentation': self._reader.segmentations.to_json(row)}
    if category.keypoints:
      keypoints = self._reader.keypoints.get(row, [0.0] * (3 * len(category.keypoints)))
      entry |= {'keypoints': list(keypoints), 'num_keypoints': sum(v > 0 for v in keypoints[2::3])}
    return entry

  def _malformed(self, sizes: np.ndarray) -> np.ndarray:
    bad = np.zeros(len(sizes), bool)
    bad[self._reader.malformed] = True
    bad[self._reader.segmentations.rows_out_of_range()] = True
    for row, size in self._reader.segmentations.rle_sizes().items():
      bad[row] = size != tuple(sizes[row])
    return bad

  def _drop(self, reason: str, bad: np.ndarray, kept: np.ndarray) -> np.ndarray:
    self._count(reason, bad & kept)
    return kept & ~bad

  def _count(self, reason: str, rows: np.ndarray) -> None:
    if rows.any():
      row = int(np.argmax(rows))
      self.problems.add(reason, int(rows.sum()), f'annotation {self._ids[row]} of image {self._of_image[row]}')

  def _find_usable(self, kept: np.ndarray) -> np.ndarray:
    no_area = (self._xywh[:, 2:] <= 0).any(axis=1) | (np.array(self._reader.areas) <= 0)
    outside = (self.boxes[:, 2:] <= self.boxes[:, :2]).any(axis=1)
    usable = kept & ~self._crowds
    usable = self._drop('without area (not trained on)', no_area, usable)
    return self._drop('with a box outside the image (not trained on)', outside, usable)

  def _renumber(self) -> None:
    """Replace annotation ids by 1, 2, ... if any is missing, repeated or 0 (pycocotools takes 0 for "no match")."""
    ids = self._ids[self._rows]
    if len(ids) and (ids.min() < 1 or len(np.unique(ids)) < len(ids)):
      self._ids[self._rows] = np.arange(1, len(ids) + 1)
      self.problems.add('renumbered, since ids are missing, repeated or below 1', len(ids), 'all of them')

  def _drop_malformed_keypoints(self) -> None:
    for row, keypoints in list((self._reader.keypoints or {}).items()):
      expected = 3 * len(self.categories[self.classes[row] - 1].keypoints) if self.classes[row] else 0
      if len(keypoints) != expected or not (np.abs(keypoints) <= _MAX_COORDINATE).all():  # False for NaN too
        del self._reader.keypoints[row]
        if expected or len(keypoints):
          self.problems.add(_BAD_KEYPOINTS, 1, f'annotation {self._ids[row]}')

  def _count_visible(self, images: np.ndarray) -> np.ndarray:
    visible = np.zeros(len(self._image_ids), np.int32)
    for row, keypoints in (self._reader.keypoints or {}).items():
      if self.usable[row]:
        visible[images[row]] += sum(v > 0 for v in keypoints[2::3])
    return visible


def _clip(xywh: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Clip boxes float64 xywh [A, 4] to the image -> float32 y0, x0, y1, x1 [A, 4], and the pixels clipped off [A]."""
  corner = xywh[:, 1::-1]  # [A, 2] y, x
  corners = np.concatenate([corner, corner + xywh[:, :1:-1]], axis=1)  # [A, 4]
  boxes = np.clip(corners, 0.0, np.tile(sizes, 2))
  return boxes.astype(np.float32), np.abs(boxes - corners).max(axis=1, initial=0.0)
