"""Annotations of a COCO json as columns, added one object at a time while the file is parsed."""

from __future__ import annotations

import math
from array import array
from typing import Any

from rethink_tf.data.categories import shorten
from rethink_tf.data.detection.segmentation import ROTATED, Segmentations, in_coco_format, turned_box

NO_ID = -1
_UNKNOWN = [float('nan')] * 4  # a box

NO_AREA = 'without an area (that of the box is used)'
IGNORED = 'with "ignore" set (treated as crowds)'
BAD_KEYPOINTS = 'with malformed keypoints (treated as not labelled)'
KEYPOINTS_ELSEWHERE = 'whose id is of another image or category in the keypoints file (its keypoints are not used)'


class FieldError(Exception):
  """A field of an annotation is missing or has a wrong type; the message names the field."""


class AnnotationReader:
  """Collects annotations, COCO json objects added one at a time, and keeps only the columns that are needed.

  A field that is null counts as left out.

  Attributes:
    ids, image_ids, category_ids, xywh, areas, crowds, segmentations: a row for each annotation; without a box xywh is
      nan, without a mask the segmentation is empty.
    keypoints: row -> x, y, visibility of every keypoint; None if keypoints are not read.
    unmasked: rows without a segmentation, or marked as "box_mask" by a conversion. malformed: rows with an invalid one.
      marked: rows that a conversion has marked as "without_mask".
    found: reason -> rows.
  """

  def __init__(self, with_keypoints: bool = False) -> None:
    self.ids, self.image_ids, self.category_ids = array('q'), array('q'), array('q')
    self.xywh, self.areas, self.crowds = array('d'), array('d'), array('b')
    self.segmentations = Segmentations()
    self.keypoints: dict[int, array] | None = {} if with_keypoints else None
    self.unmasked, self.malformed, self.marked = array('q'), array('q'), array('q')
    self.found: dict[str, array] = {}

  def __len__(self) -> int:
    return len(self.segmentations)

  def add(self, entry: dict[str, Any]) -> None:
    """Add one object of the `annotations` list.

    Raises:
      FieldError: a field is missing or has a wrong type.
    """
    row = len(self)
    for column, field, default in ((self.image_ids, 'image_id', None), (self.category_ids, 'category_id', None),
                                   (self.crowds, 'iscrowd', 0), (self.ids, 'id', NO_ID)):
      value = entry.get(field)
      try:
        column.append(default if value is None else value)
      except (TypeError, OverflowError):
        raise FieldError(f'{field} should be an integer, is {shorten(value)}') from None
    if entry.get('ignore') in (1, True) and not self.crowds[row]:
      self.crowds[row] = 1
      self.note(IGNORED, row)
    self._add_box(row, entry, self._add_segmentation(row, entry))
    if self.keypoints is not None and entry.get('keypoints') is not None:
      self.add_keypoints(row, entry['keypoints'])

  def add_keypoints(self, row: int, keypoints: Any) -> None:
    """Add x, y, visibility of every keypoint to an existing row."""
    try:
      self.keypoints[row] = array('d', keypoints)
    except (TypeError, OverflowError):
      self.note(BAD_KEYPOINTS, row)

  def note(self, reason: str, row: int) -> None:
    """Count a row under a reason."""
    self.found.setdefault(reason, array('q')).append(row)

  def _add_box(self, row: int, entry: dict[str, Any], masked: bool) -> None:
    bbox, area = entry.get('bbox'), entry.get('area')
    if bbox is None and masked:  # its mask gives both
      self.xywh.fromlist(_UNKNOWN)
      self.areas.append(_UNKNOWN[0])
      return
    degrees = 0.0 if masked else rotation(entry)
    try:
      if len(bbox) != 4:
        raise TypeError
      self.xywh.fromlist(list(turned_box(*bbox, degrees)) if degrees else bbox)
    except (TypeError, OverflowError):
      raise FieldError(f'bbox should be four numbers [x, y, width, height], is {shorten(bbox)}') from None
    if degrees:
      self.note(ROTATED, row)
    if area is None:
      self.note(NO_AREA, row)
      area = bbox[2] * bbox[3]
    try:
      self.areas.append(area)
    except (TypeError, OverflowError):
      raise FieldError(f'area should be a number, is {shorten(area)}') from None

  def _add_segmentation(self, row: int, entry: dict[str, Any]) -> bool:
    """Return whether the annotation has a mask."""
    if entry.get('without_mask'):
      self.marked.append(row)
    else:
      try:
        segmentation = None if entry.get('box_mask') else in_coco_format(entry.get('segmentation'))
        if segmentation is not None:
          self.segmentations.append(segmentation)
          return True
        self.unmasked.append(row)
      except ValueError:
        self.malformed.append(row)
    self.segmentations.append([])
    return False


def rotation(entry: dict[str, Any]) -> float:
  """Return by how many degrees CVAT has turned a rectangle about its centre; it writes the box as it was before."""
  attributes = entry.get('attributes')
  degrees = attributes.get('rotation') if isinstance(attributes, dict) else None
  return degrees % 360 if isinstance(degrees, int | float) and math.isfinite(degrees) else 0.0
