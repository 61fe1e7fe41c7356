"""The annotations of a data set as columns: validated once, then looked up by image.

Shapes: A annotations, N images. COCO's 118,000 images with 860,000 annotations take about half a gigabyte.
"""

import abc
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from pycocotools import mask as mask_api

from rethink_tf.data.categories import Category, categories_to_json, classes_of
from rethink_tf.data.detection import suspicious
from rethink_tf.data.detection.annotation_reader import BAD_KEYPOINTS, NO_ID, AnnotationReader
from rethink_tf.data.detection.segmentation import crop_segmentation, to_rle
from rethink_tf.data.problems import LEFT_OUT, REPAIRED, SUSPICIOUS, Case, Problems
from rethink_tf.errors import UserError
from rethink_tf.structures import MASK_CROP, NO_MASK, Example

_MAX_COORDINATE = 1e6  # pixels; larger coordinates are errors, and overflow in rasterisation

UNMASKED = 'without a segmentation (its box is used)'
UNMASKED_AMONG_MASKED = 'without a segmentation (trained without a mask)'
MALFORMED = 'with a malformed segmentation (trained without a mask)'
MARKED = 'marked as without a mask'
WRONG_MASK = 'with {} (trained without a mask)'
BOX_OF_MASK = 'without a box (that of the mask is used)'
KEYPOINTS_ASTRAY = 'all labelled keypoints far from the box'
AREA_OF_MASK = 'without a valid area (that of the mask or box is used)'


class Annotations:
  """All annotations of N images, validated.

  An annotation is *kept* if a COCO evaluator can read it: its image, category and numbers are valid. A box or an area
  that is missing is that of the mask; a mask that is malformed or cannot be that of its box is dropped. It is *usable*
  for training if, in addition, it is not a crowd, its area is positive and its box is not empty after clipping to the
  image (Detectron's rule). Repaired, dropped and suspicious annotations are counted by reason.

  Attributes:
    boxes: float32 [A, 4] y0, x0, y1, x1; classes: int32 [A] 1..K; usable: bool [A].
    num_usable: int32 [N] usable annotations of each image.
    num_visible: int32 [N] labelled keypoints (visibility above 0) of these, 0 without keypoints.
  """

  def __init__(self, reader: AnnotationReader, image_ids: np.ndarray, sizes: np.ndarray,
               categories: tuple[Category, ...], file_names: Sequence[str] | None = None) -> None:
    """`image_ids`: int64 [N], ascending. `sizes`: int32 [N, 2] height, width. `file_names`: [N], for examples."""
    self.categories = categories
    self.num_keypoints = max(len(category.keypoints) for category in categories)
    self._reader, self._file_names = reader, file_names
    self._found: list[tuple[str, str, np.ndarray]] = [  # reason, outcome, rows
      (reason, REPAIRED, np.array(rows)) for reason, rows in reader.found.items()]
    self._image_ids, self._sizes = image_ids, sizes
    self._ids = np.array(reader.ids, np.int64)
    self._listed_ids = self._ids.copy()
    self._crowds = np.array(reader.crowds, bool)
    self._xywh = np.array(reader.xywh, np.float64).reshape(-1, 4)
    self._areas = np.array(reader.areas, np.float64)
    self.classes = classes_of(np.array(reader.category_ids, np.int64), categories)

    of_image = self._of_image = np.array(reader.image_ids, np.int64)
    images = self._images = np.minimum(np.searchsorted(image_ids, of_image), len(image_ids) - 1)
    limits = sizes[images]
    kept = self._drop('of an image that is not listed', image_ids[images] != of_image, np.ones(len(reader), bool))
    kept = self._drop('of an unknown category', self.classes == 0, kept)
    masks = self._read_masks(limits, kept)
    self._repair_boxes(kept)
    kept = self._drop('with a number that is missing or not finite', ~np.isfinite(self._xywh).all(axis=1), kept)
    kept = self._drop('with a box out of range', ~(np.abs(self._xywh) <= _MAX_COORDINATE).all(axis=1), kept)
    for reason, rows in masks:
      self._count(reason, rows & kept, REPAIRED)
    self.boxes, overhang = _clip(np.where(kept[:, None], self._xywh, 0.0), limits)
    self.usable = self._find_usable(kept)
    self._drop_wrong_masks(limits)
    # Not worth a message below this: COCO's own boxes, rounded to hundredths, exceed their images by less.
    self._count('clipped to the image', self.usable & (overhang > 0.1), REPAIRED)

    rows = np.flatnonzero(kept)
    self._rows = rows[np.argsort(images[rows], kind='stable')]  # by image, in the order of the file
    self._starts = np.searchsorted(images[self._rows], np.arange(len(image_ids) + 1))
    self.num_usable = np.bincount(images[self.usable], minlength=len(image_ids)).astype(np.int32)
    self._renumber()
    self._drop_malformed_keypoints()
    self.num_visible = self._count_visible(images)

  @functools.cached_property
  def problems(self) -> Problems:
    """Counts and examples of the annotations that were repaired, dropped or look wrong."""
    problems = Problems()
    for reason, outcome, rows in self._found:
      problems.add(reason, len(rows), map(self._case, rows[:6].tolist()), outcome)
    table = self._table()
    for kind, row, other in suspicious.find_suspicious(table, self._sizes):
      if kind not in (suspicious.OUTSIDE, suspicious.DEGENERATE):  # repaired or dropped above
        case = self._case(int(self._rows[row]))
        if other is not None:
          case = case._replace(other=tuple(table.boxes[other].tolist()))
        elif kind == suspicious.MASK_ELSEWHERE:
          case = case._replace(other=tuple(table.mask_boxes[row].tolist()))
        problems.add(kind, 1, [case], SUSPICIOUS)
    astray = [row for row in (self._reader.keypoints or ()) if self.usable[row] and self._keypoints_are_astray(row)]
    if astray:
      problems.add(KEYPOINTS_ASTRAY, len(astray), map(self._case, astray[:6]), SUSPICIOUS)
    objects = self._rows[~self._crowds[self._rows]]
    for kind, found in suspicious.find_other_units(_corners(self._xywh[objects]), self._sizes[self._images[objects]]):
      if found.any():
        problems.add(kind, int(found.sum()), map(self._case, objects[found][:6].tolist()), SUSPICIOUS)
    return problems

  @property
  def has_masks(self) -> bool:
    """Whether any usable object has a mask of its own, not that of its box."""
    return bool((self.usable & ~self._no_mask & ~self._box_masks).any())

  def example(self, i: int, image: np.ndarray) -> Example:
    """Return the Example of image i: its pixels and usable annotations."""
    rows = self._rows[self._starts[i]:self._starts[i + 1]]
    rows = rows[self.usable[rows]]
    boxes, (height, width) = self.boxes[rows], self._sizes[i]
    masks = np.zeros([len(rows), MASK_CROP, MASK_CROP], np.uint8)
    keypoints = np.zeros([len(rows), self.num_keypoints, 3], np.float32)
    for k, row in enumerate(rows):
      masks[k] = self._crop(row, boxes[k], int(height), int(width))
      if self.num_keypoints and row in self._reader.keypoints:
        xyv = np.reshape(self._reader.keypoints[row], [-1, 3])
        keypoints[k, :len(xyv)] = xyv[:, [1, 0, 2]]
    return Example(image, boxes, self.classes[rows], masks, keypoints)

  def to_json(self, i: int) -> list[dict[str, Any]]:
    """Return the kept annotations of image i, crowds included, as COCO json objects."""
    return [self._row_to_json(row, int(self._image_ids[i])) for row in self._rows[self._starts[i]:self._starts[i + 1]]]

  def warn_of_unused_classes(self, name: str, chosen: np.ndarray) -> None:
    """Log the categories without an object to train on in the chosen images [n]: they cannot be learnt."""
    rows = self.usable & np.isin(self._images, chosen)
    counts = np.bincount(self.classes[rows], minlength=len(self.categories) + 1)[1:]
    unused = [category.name for category, count in zip(self.categories, counts, strict=True) if not count]
    if unused:
      logging.warning('%s: %d of %d classes have no object to train on: %s%s', name, len(unused), len(counts),
                      ', '.join(unused[:5]), ', ...' if len(unused) > 5 else '')

  def digest(self, numbers: np.ndarray | None = None) -> str:
    """Return a hash of the images and annotations; numbers: of the categories, from 0, in an order that is not ours."""
    digest = hashlib.sha256()
    classes = self.classes if numbers is None else 1 + numbers[self.classes - 1].astype(self.classes.dtype)
    for column in (self._image_ids, self._sizes, self._ids, self._xywh, self._crowds, classes, self._rows):
      digest.update(np.ascontiguousarray(column))
    self._reader.segmentations.update_digest(digest)
    digest.update(self._no_mask.tobytes())
    for row, keypoints in (self._reader.keypoints or {}).items():
      digest.update(np.int64(row))
      digest.update(keypoints)
    return digest.hexdigest()

  def _crop(self, row: int, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the mask of a row in its box, NO_MASK where it is not known."""
    if self._no_mask[row]:
      return np.full([MASK_CROP, MASK_CROP], NO_MASK, np.uint8)
    if self._box_masks[row]:
      return np.ones([MASK_CROP, MASK_CROP], np.uint8)
    mask = crop_segmentation(self._reader.segmentations[row], box, height, width)
    return mask if mask.any() else np.full_like(mask, NO_MASK)

  def _row_to_json(self, row: int, image_id: int) -> dict[str, Any]:
    category = self.categories[self.classes[row] - 1]
    masked = not self._no_mask[row] and not self._box_masks[row]
    x, y, w, h = self._xywh[row].tolist()
    entry = {'id': int(self._ids[row]), 'image_id': image_id, 'category_id': category.id,
             'bbox': [x, y, w, h], 'area': float(self._areas[row]), 'iscrowd': int(self._crowds[row]),
             'segmentation': self._reader.segmentations.to_json(row) if masked else
                             [[x, y, x, y + h, x + w, y + h, x + w, y]]}
    if not masked:
      entry['without_mask' if self._no_mask[row] else 'box_mask'] = 1
    if category.keypoints:
      keypoints = self._reader.keypoints.get(row, [0.0] * (3 * len(category.keypoints)))
      entry |= {'keypoints': list(keypoints), 'num_keypoints': sum(v > 0 for v in keypoints[2::3])}
    return entry

  def _table(self) -> suspicious.Table:
    """Return the kept annotations as an evaluator receives them."""
    rows = self._rows
    boxes = _corners(self._xywh[rows])
    replaced = (self._no_mask | self._box_masks)[rows, None]
    return suspicious.Table(self._images[rows], self._ids[rows], self.classes[rows], boxes, self._areas[rows],
                            self._crowds[rows], np.where(replaced, boxes, self._extents[rows]))

  def _case(self, row: int) -> Case:
    id_, image_id = int(self._listed_ids[row]), int(self._of_image[row])
    listed = self._image_ids[self._images[row]] == image_id
    name = self._file_names[self._images[row]] if listed and self._file_names is not None else f'image {image_id}'
    text = f'{name}, annotation {id_}' if id_ != NO_ID else f'{name}, annotations[{row}]'
    box = _corners(self._xywh[row:row + 1])[0]
    extent = self._extents[row] if self._no_mask[row] else np.full(4, np.nan)
    label = self.categories[self.classes[row] - 1].name if self.classes[row] else None
    return Case(text, image_id, id_ if id_ != NO_ID else None, *(
      tuple(corners.tolist()) if np.isfinite(corners).all() else None for corners in (box, extent)), label)

  def _read_masks(self, limits: np.ndarray, kept: np.ndarray) -> tuple[tuple[str, np.ndarray], ...]:
    """Set extent and area of the masks; return, by reason, the rows without a mask or with that of their box."""
    reader = self._reader
    malformed, unmasked, self._no_mask = (np.zeros(len(reader), bool) for _ in range(3))
    malformed[reader.malformed], unmasked[reader.unmasked], self._no_mask[reader.marked] = True, True, True
    malformed[reader.segmentations.rows_out_of_range()] = True
    for row, size in reader.segmentations.rle_sizes().items():
      malformed[row] = size != tuple(limits[row])
    self._extents, self._mask_areas = reader.segmentations.extents()
    self._extents[malformed], self._mask_areas[malformed] = np.nan, 0.0
    masked = kept & ~self._crowds & (self._mask_areas > 0)
    # The mask of some, but not of all: a rectangle in place of theirs would be trained as a mask.
    among_masked = unmasked & ~self._crowds & masked.any()
    self._box_masks = unmasked & ~among_masked
    found = ((UNMASKED, self._box_masks), (UNMASKED_AMONG_MASKED, among_masked), (MALFORMED, malformed),
             (MARKED, self._no_mask.copy()))
    self._no_mask |= malformed | among_masked
    return found

  def _repair_boxes(self, kept: np.ndarray) -> None:
    """Give an annotation without a box, or without an area, that of its mask."""
    masked = (self._mask_areas > 0) & (self._extents[:, 2:] > self._extents[:, :2]).all(axis=1)
    boxless = kept & masked & ~(self._xywh[:, 2:] > 0).all(axis=1)  # True for NaN too
    boxless |= kept & masked & ~np.isfinite(self._xywh).all(axis=1)
    y0, x0, y1, x1 = self._extents[boxless].T
    self._xywh[boxless] = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1)
    self._count(BOX_OF_MASK, boxless, REPAIRED)
    sides = self._xywh[:, 2:]
    invalid = kept & ~(np.isfinite(self._areas) & (self._areas > 0)) & (sides > 0).all(axis=1)
    self._areas[invalid] = np.where(masked, self._mask_areas, sides.prod(axis=1))[invalid]
    self._count(AREA_OF_MASK, invalid & ~boxless, REPAIRED)
    self._areas[~np.isfinite(self._areas)] = 0.0

  def _drop_wrong_masks(self, limits: np.ndarray) -> None:
    """Drop masks that cannot belong to their boxes."""
    checked = self.usable & ~self._no_mask & ~self._box_masks
    rows = np.flatnonzero(checked)
    segmentations = self._reader.segmentations
    for row in rows[(self._mask_areas[rows] <= 0) & (self._extents[rows, 2:] > self._extents[rows, :2]).all(axis=1)]:
      # The lobes of a polygon that intersects itself may cancel out.
      height, width = limits[row].tolist()
      self._mask_areas[row] = mask_api.area(to_rle(segmentations[row], height, width))
    found = suspicious.wrong_masks(self._extents[rows], self._mask_areas[rows], self.boxes[rows].astype(np.float64),
                                   limits[rows].astype(np.float64))
    for what, wrong in found:
      self._no_mask[rows[wrong]] = True
      wrong_rows = np.zeros_like(checked)
      wrong_rows[rows[wrong]] = True
      self._count(WRONG_MASK.format(what), wrong_rows, REPAIRED)

  def _drop(self, reason: str, bad: np.ndarray, kept: np.ndarray) -> np.ndarray:
    self._count(reason, bad & kept, LEFT_OUT)
    return kept & ~bad

  def _count(self, reason: str, rows: np.ndarray, outcome: str) -> None:
    if rows.any():
      self._found.append((reason, outcome, np.flatnonzero(rows)))

  def _find_usable(self, kept: np.ndarray) -> np.ndarray:
    no_area = (self._xywh[:, 2:] <= 0).any(axis=1) | (self._areas <= 0)
    outside = (self.boxes[:, 2:] <= self.boxes[:, :2]).any(axis=1)
    usable = kept & ~self._crowds
    usable = self._drop('without area (not trained on)', no_area, usable)
    return self._drop('with a box outside the image (not trained on)', outside, usable)

  def _renumber(self) -> None:
    """Replace annotation ids by 1, 2, ... if any is missing, repeated or 0 (pycocotools takes 0 for "no match")."""
    ids = self._ids[self._rows]
    if len(ids) and (ids.min() < 1 or len(np.unique(ids)) < len(ids)):
      self._ids[self._rows] = np.arange(1, len(ids) + 1)
      self._found.append(('renumbered, since ids are missing, repeated or below 1', REPAIRED, self._rows))

  def _drop_malformed_keypoints(self) -> None:
    malformed = []
    for row, keypoints in list((self._reader.keypoints or {}).items()):
      expected = 3 * len(self.categories[self.classes[row] - 1].keypoints) if self.classes[row] else 0
      if len(keypoints) != expected or not (np.abs(keypoints) <= _MAX_COORDINATE).all():  # False for NaN too
        del self._reader.keypoints[row]
        if expected or len(keypoints):
          malformed.append(row)
    if malformed:
      self._found.append((BAD_KEYPOINTS, REPAIRED, np.array(malformed)))

  def _keypoints_are_astray(self, row: int) -> bool:
    """Whether no labelled keypoint lies in the box, or within half its side of it."""
    x, y, visible = np.reshape(self._reader.keypoints[row], [-1, 3]).T
    y0, x0, y1, x1 = self.boxes[row]
    margin = 0.5 * max(y1 - y0, x1 - x0)
    inside = (x > x0 - margin) & (x < x1 + margin) & (y > y0 - margin) & (y < y1 + margin)
    return bool((visible > 0).any() and not (inside & (visible > 0)).any())

  def _count_visible(self, images: np.ndarray) -> np.ndarray:
    visible = np.zeros(len(self._image_ids), np.int32)
    for row, keypoints in (self._reader.keypoints or {}).items():
      if self.usable[row]:
        visible[images[row]] += sum(v > 0 for v in keypoints[2::3])
    return visible


class AnnotatedImages(abc.ABC):
  """Base class of sources that keep all annotations in memory."""

  _table: Annotations
  categories: Sequence[Category]
  image_ids: np.ndarray  # int64 [N]
  sizes: np.ndarray  # int32 [N, 2] height, width
  file_names: Sequence[str]  # [N]

  @abc.abstractmethod
  def image_annotations(self, i: int) -> list[dict[str, Any]]:
    """Return the annotations of image i as COCO json objects."""

  def annotations(self) -> dict[str, Any]:
    """Return the COCO json of these images with all annotations: the ground truth of an evaluator."""
    images = [{'id': int(id_), 'file_name': name, 'height': int(height), 'width': int(width)}
              for id_, name, (height, width) in zip(self.image_ids, self.file_names, self.sizes, strict=True)]
    annotations = [entry for i in range(len(images)) for entry in self.image_annotations(i)]
    return {'images': images, 'annotations': annotations, 'categories': categories_to_json(self.categories)}

  @property
  def skipped(self) -> dict[str, int]:
    """Reason -> number of annotations, of these and all other images, that were dropped or changed."""
    return self.problems.changed()

  @property
  def problems(self) -> Problems:
    """Annotations, of these and all other images, that were repaired, left out or look wrong."""
    return self._table.problems

  def digest(self, numbers: np.ndarray | None = None) -> str:
    """Return a hash of all annotations; numbers: of the categories in another order."""
    return self._table.digest(numbers)


def refuse_fractions(name: str, problems: Problems, total: int) -> None:
  """Raise UserError if all boxes are fractions of the image: nothing could be learnt from them."""
  if total and problems.counts[suspicious.FRACTIONS] == total:
    example = problems.by_reason()[suspicious.FRACTIONS].cases[0].text
    raise UserError(f'{name}: all {total} boxes lie in 0..1 (e.g. {example}): boxes are in pixels, bbox is '
                    '[x, y, width, height]: multiply them by the size of their image')


def _clip(xywh: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Clip boxes float64 xywh [A, 4] to the image -> float32 y0, x0, y1, x1 [A, 4], and the pixels clipped off [A]."""
  corners = _corners(xywh)
  boxes = np.clip(corners, 0.0, np.tile(sizes, 2))
  return boxes.astype(np.float32), np.abs(boxes - corners).max(axis=1, initial=0.0)


def _corners(xywh: np.ndarray) -> np.ndarray:
  """Return y0, x0, y1, x1 of boxes xywh [A, 4]."""
  corner = xywh[:, 1::-1]  # [A, 2] y, x
  return np.concatenate([corner, corner + xywh[:, :1:-1]], axis=1)
