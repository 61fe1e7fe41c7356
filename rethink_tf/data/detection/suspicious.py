"""Suspicious annotations: those that are probably wrong, found by comparing boxes, masks, areas and image sizes.

Shapes: A annotations (crowds included) of N images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MAX_OVERHANG = 1.0  # pixels by which a box may exceed its image; COCO's own boxes are rounded
TINY = 4.0  # pixels of the longer side
SAME_IOU = 0.95  # IoU above which two boxes count as duplicates
MASK_TOLERANCE = (2.0, 0.05)  # distance of the edges of mask and box: pixels, or fraction of the side of the box
_ROUNDING = 1.0  # pixels by which masks and boxes may be apart
_MIN_INSIDE, _MIN_COVERED = 0.5, 0.05  # fractions: of the extent of a mask inside its box, of the box that it covers
_MIN_FIT = 0.8  # IoU of an explanation
_MIN_CORNERS = 0.1  # fraction of boxes, and three of them, from which CORNERS is reported
_MIN_QUARTER, _QUARTER = 50, 0.55  # boxes from which QUARTER is reported; fraction of both sides of the image

# Kinds of suspicious annotations. The first two are found in raw boxes only: training repairs them or leaves them out.
OUTSIDE, DEGENERATE = 'box outside the image', 'box without area'
TINY_BOX = f'box of less than {TINY:g} pixels'
REPEATED, TWO_CLASSES = 'same box twice in a class', 'same box in two classes'
MASK_ELSEWHERE = 'extent of the mask differs from the box'
TOO_LARGE, TOO_SMALL = 'area larger than the box', 'area of less than a hundredth of the box'
FRACTIONS = 'box in 0..1: a fraction of the image instead of pixels?'
# Of many boxes, whose coordinates seem to have another meaning.
CORNERS = 'box that fits as [x0, y0, x1, y1], not as [x, y, width, height]'
QUARTER = 'all boxes lie in the upper left quarter: pixels of an image of another size?'

# Masks that are wrong beyond doubt.
EMPTY, AWAY = 'an empty mask', 'a mask outside its box'
_EXPLANATIONS = ('with x and y exchanged', 'in 0..1', 'relative to the box', 'of an image of another size')


class Table(NamedTuple):
  """The annotations of a source as columns, ordered by image."""

  images: np.ndarray  # int64 [A] index into the source
  ids: np.ndarray  # int64 [A] of the annotation
  classes: np.ndarray  # int64 [A] 1..K
  boxes: np.ndarray  # float64 [A, 4] y0 x0 y1 x1, as annotated: not clipped
  areas: np.ndarray  # float64 [A] as annotated
  crowds: np.ndarray  # bool [A]
  mask_boxes: np.ndarray  # float64 [A, 4] extent of the segmentation, nan without one


class SuspiciousAnnotation(NamedTuple):
  """An annotation that is probably wrong."""

  kind: str
  row: int  # of the table
  other: int | None = None  # row of the annotation that it duplicates


def find_suspicious(table: Table, sizes: np.ndarray) -> list[SuspiciousAnnotation]:
  """Return the suspicious annotations; sizes: int [N, 2] height, width of the images."""
  boxes, sides = table.boxes, table.boxes[:, 2:] - table.boxes[:, :2]
  limits = np.asarray(sizes, np.float64).reshape(-1, 2)[table.images]
  out = np.maximum(-boxes[:, :2], boxes[:, 2:] - limits).max(axis=1, initial=0.0) > MAX_OVERHANG
  flat = (sides <= 0).any(axis=1) | (table.areas <= 0)
  fractions = ~flat & in_unit_square(boxes, limits)
  tiny = ~flat & ~fractions & (sides.max(axis=1, initial=0.0) < TINY)
  # An outline may exceed the image although its box is clipped.
  extents = np.clip(table.mask_boxes, 0.0, np.tile(limits, 2))
  off = np.abs(extents - np.clip(boxes, 0.0, np.tile(limits, 2)))
  elsewhere = ~flat & (off > np.maximum(MASK_TOLERANCE[0], MASK_TOLERANCE[1] * np.tile(sides, 2))).any(axis=1)
  large = ~flat & (table.areas > 1.05 * sides.prod(axis=1) + 1)
  small = ~flat & ~table.crowds & (table.areas < 0.01 * sides.prod(axis=1))
  found = [SuspiciousAnnotation(kind, int(row)) for kind, rows in (
    (OUTSIDE, out), (DEGENERATE, flat), (FRACTIONS, fractions), (TINY_BOX, tiny), (MASK_ELSEWHERE, elsewhere),
    (TOO_LARGE, large), (TOO_SMALL, small)) for row in np.flatnonzero(rows)]
  return found + _repeated(table, np.flatnonzero(~flat & ~table.crowds))


def in_unit_square(boxes: np.ndarray, limits: np.ndarray) -> np.ndarray:
  """Whether boxes y0 x0 y1 x1 [A, 4] look like fractions of images of several pixels, [A, 2] height, width.

  VOC's corners begin at 1, which its reader subtracts.
  """
  return (boxes >= -1).all(axis=1) & (boxes <= 1).all(axis=1) & (limits > TINY).all(axis=1)


def find_other_units(boxes: np.ndarray, limits: np.ndarray) -> list[tuple[str, np.ndarray]]:
  """Return kinds of wrong coordinates that only show in many boxes [A, 4] (not clipped), and which boxes, bool [A]."""
  low, high = boxes[:, :2], boxes[:, 2:]
  sides = high - low
  out = (high > limits + MAX_OVERHANG).any(axis=1) | (low < -MAX_OVERHANG).any(axis=1)
  corners = out & (sides > low).all(axis=1) & (low >= -MAX_OVERHANG).all(axis=1) & (
    sides <= limits + MAX_OVERHANG).all(axis=1)
  corners &= corners.sum() >= max(3, _MIN_CORNERS * len(boxes))
  quarter = (high < _QUARTER * limits).all(axis=1)
  quarter &= len(boxes) >= _MIN_QUARTER and bool(quarter.all()) and not in_unit_square(boxes, limits).any()
  return [(CORNERS, corners), (QUARTER, quarter)]


def _repeated(table: Table, rows: np.ndarray) -> list[SuspiciousAnnotation]:
  """Return boxes of these rows that duplicate an earlier one of their image.

  Two boxes with an IoU of 95 % have nearly the same upper edge, so that only neighbours in this order are compared.
  """
  order = rows[np.lexsort((table.boxes[rows, 0], table.images[rows]))]
  boxes, images = table.boxes[order], table.images[order]
  sides = boxes[:, 2:] - boxes[:, :2]
  found = [np.zeros((2, 0), np.int64)]  # pairs of rows, the earlier one first
  left = np.arange(len(order) - 1)  # positions that may have a duplicate `distance` places on
  distance = 1
  while len(left):
    a, b = left, left + distance
    near = (images[a] == images[b]) & (boxes[b, 0] - boxes[a, 0] <= (1 - SAME_IOU) * sides[a, 0] / SAME_IOU)
    a, b = a[near], b[near]
    low, high = np.maximum(boxes[a, :2], boxes[b, :2]), np.minimum(boxes[a, 2:], boxes[b, 2:])
    common = np.maximum(high - low, 0).prod(axis=1)
    same = common >= SAME_IOU * (sides[a].prod(axis=1) + sides[b].prod(axis=1) - common)
    found.append(np.sort([order[a[same]], order[b[same]]], axis=0))
    distance += 1
    left = a[a + distance < len(order)]
  first, second = np.concatenate(found, axis=1)
  pairs = np.lexsort((first, second))
  first, second = first[pairs], second[pairs]
  earliest = np.flatnonzero(np.diff(second, prepend=-1))
  return [SuspiciousAnnotation(REPEATED if table.classes[i] == table.classes[j] else TWO_CLASSES, int(j), int(i))
          for i, j in zip(first[earliest], second[earliest], strict=True)]


def wrong_masks(extents: np.ndarray, areas: np.ndarray, boxes: np.ndarray,
                limits: np.ndarray) -> list[tuple[str, np.ndarray]]:
  """Find masks that cannot be those of their boxes: what is wrong, and which they are, bool [A].

  Args:
    extents: float64 [A, 4] y0 x0 y1 x1 of the masks, nan for none. areas: [A] of the masks in pixels.
    boxes: [A, 4] clipped to the image, with area. limits: [A, 2] height, width of the images.
  """
  masked = np.isfinite(extents).all(axis=1)
  extents = np.where(masked[:, None], extents, 0.0)
  clipped = np.clip(extents, 0.0, np.tile(limits, 2))
  inside = _common(clipped, _grow(boxes)) >= _MIN_INSIDE * _area(clipped)
  covered = _common(_grow(clipped), boxes) >= _MIN_COVERED * _area(boxes)
  empty = masked & ((areas <= 0) | (_area(extents) <= 0))
  away = masked & ~empty & ((_area(clipped) <= 0) | ~inside | ~covered)
  found = [(EMPTY, empty)]
  explained = np.zeros_like(away)
  rows = np.flatnonzero(away)
  if len(rows):
    for what, others in zip(_EXPLANATIONS, _explain(extents[rows], boxes[rows], limits[rows]), strict=True):
      fits = np.zeros_like(away)
      fits[rows] = _common(others, boxes[rows]) >= _MIN_FIT * (
        _area(others) + _area(boxes[rows]) - _common(others, boxes[rows]))
      found.append((f'{AWAY} ({what})', fits & ~explained))
      explained |= fits
  return [*found, (AWAY, away & ~explained)]


def _explain(extents: np.ndarray, boxes: np.ndarray, limits: np.ndarray) -> list[np.ndarray]:
  """Return the extents as each of _EXPLANATIONS would make them."""
  corners, sides = np.tile(boxes[:, :2], 2), extents[:, 2:] - extents[:, :2]
  scale = np.sqrt(_area(boxes) / np.maximum(sides.prod(axis=1), 1e-9))[:, None]
  return [extents[:, [1, 0, 3, 2]], extents * np.tile(limits, 2), extents + corners, extents * scale]


def _grow(boxes: np.ndarray) -> np.ndarray:
  return boxes + [-_ROUNDING, -_ROUNDING, _ROUNDING, _ROUNDING]


def _area(boxes: np.ndarray) -> np.ndarray:
  return np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0).prod(axis=1)


def _common(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  return np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0.0).prod(axis=1)
