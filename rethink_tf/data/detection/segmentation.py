"""Segmentations in COCO's three formats: polygons, uncompressed and compressed run lengths (RLE).

  polygons      [[x0, y0, x1, y1, ...], ...] in pixels of the image, one list per polygon
  uncompressed  {'size': [h, w], 'counts': [n0, n1, ...]} lengths of alternating runs of 0 and 1, in column-major order
  compressed    {'size': [h, w], 'counts': 'aB3...'} the same as a string

Tools write further forms that can be read in one way only; `in_coco_format` converts them.
"""

import math
from array import array
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from rethink_tf.structures import MASK_CROP

# pycocotools rasterises every edge in steps of a fifth of a pixel: a coordinate of 1e12 would exhaust the memory.
_MAX_COORDINATE = 65536.0  # a side of a JPEG has at most 65535 pixels
_MAX_OUTLINE = 1e6  # total length of the outlines of an annotation, in pixels; needs 100 MB temporarily
_MAX_CROP_OUTLINE = 1e5  # length of an outline, in pixels of the crop

ROTATED = 'a rotated rectangle (the upright box around it is used)'


def in_coco_format(segmentation: Any) -> Any:
  """Convert the forms that annotation tools write to COCO's: None for an empty one, all others unchanged.

  One flat polygon [x0, y0, ...], points as pairs [x, y] or objects {'x': x, 'y': y}, and lists of run lengths.

  Raises:
    ValueError: a list of run lengths that cannot be joined.
  """
  if not segmentation:
    return None
  if not isinstance(segmentation, list):
    return segmentation
  first = segmentation[0]
  if isinstance(first, list) and len(first) > 2 and isinstance(first[0], int | float):  # COCO's polygons
    return segmentation
  if isinstance(first, dict) and 'counts' in first:
    return _join_rles(segmentation)
  if isinstance(first, int | float):
    return [segmentation]
  if len(segmentation) > 2 and all(map(_is_point, segmentation)):
    return [_flat(segmentation)]
  if all(isinstance(polygon, list) for polygon in segmentation):
    return [_flat(polygon) if polygon and all(map(_is_point, polygon)) else polygon
            for polygon in segmentation if polygon] or None
  return segmentation


def turned_box(x: float, y: float, width: float, height: float, degrees: float) -> tuple[float, float, float, float]:
  """Return x, y, width, height of the upright box around one that is turned about its centre."""
  sine, cosine = abs(math.sin(math.radians(degrees))), abs(math.cos(math.radians(degrees)))
  wide, high = width * cosine + height * sine, width * sine + height * cosine
  return x + (width - wide) / 2, y + (height - high) / 2, wide, high


def crop_segmentation(segmentation: Any, box: np.ndarray, height: int, width: int) -> np.ndarray:
  """Crop a mask to its box, and resample it to a square.

  Polygons are transformed to the coordinates of the box and rasterised there, which is exact; run lengths are decoded
  and sampled at the centres of the 112 x 112 bins.

  Args:
    segmentation: in any of COCO's formats; polygons may be arrays.
    box: [4] y0, x0, y1, x1 in pixels, with y1 > y0 and x1 > x0, inside the image.
    height, width: of the image.

  Returns:
    uint8 [112, 112] of 0 and 1.

  Raises:
    ValueError: malformed segmentation.
  """
  y0, x0, y1, x1 = (float(edge) for edge in box)
  if not isinstance(segmentation, dict):
    scale = np.array([MASK_CROP / (x1 - x0), MASK_CROP / (y1 - y0)])
    framed = [(polygon.reshape(-1, 2) - (x0, y0)) * scale for polygon in _check_polygons(segmentation)]
    # A narrow box of a large polygon (an object clipped by the image) would give a huge outline in these coordinates.
    if max(np.abs(np.diff(points, axis=0)).sum() for points in framed) < _MAX_CROP_OUTLINE:
      return _rasterise([points.ravel() for points in framed], MASK_CROP, MASK_CROP)
  mask = mask_api.decode(to_rle(segmentation, height, width))
  return mask[np.ix_(_bin_centres(y0, y1, height), _bin_centres(x0, x1, width))]


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
  """Convert a segmentation to one compressed RLE {'size': [height, width], 'counts': bytes}.

  Raises:
    ValueError: malformed, or run lengths that do not sum to height x width.
  """
  if isinstance(segmentation, dict):
    rle = _compress(segmentation)
    if rle['size'] != [height, width]:
      raise ValueError(f'RLE of size {rle["size"]} in an image of size {[height, width]}')
    return rle | {'counts': rle['counts'].encode()}
  return mask_api.merge(mask_api.frPyObjects(_check_polygons(segmentation), height, width))


class Segmentations:
  """The segmentations of many annotations in a few arrays: as Python lists, the 860,000 of COCO would take gigabytes.

  Row r is the r-th one that was appended: a list of float64 arrays (polygons), a compressed RLE, or [] for none.
  """

  def __init__(self) -> None:
    self._points = array('d')  # x and y of all polygons, concatenated
    self._polygon_ends = array('q', [0])  # end of each polygon in _points
    self._row_ends = array('q', [0])  # end of each row in _polygon_ends
    self._rles: dict[int, dict[str, Any]] = {}

  def __len__(self) -> int:
    return len(self._row_ends) - 1

  def append(self, segmentation: Any) -> None:
    """Add a row; polygons of fewer than three points are dropped, as in Detectron.

    Raises:
      ValueError: malformed; no row is added.
    """
    if isinstance(segmentation, dict):
      self._rles[len(self)] = _compress(segmentation)
    else:
      start = len(self._points)
      ends = []
      try:
        for polygon in segmentation:
          if len(polygon) >= 6 and len(polygon) % 2 == 0:
            self._points.fromlist(polygon)
            ends.append(len(self._points))
        if segmentation and not ends:
          raise ValueError('no polygon has three points')
      except (TypeError, ValueError, OverflowError) as error:
        del self._points[start:]
        raise ValueError(f'not a list of polygons: {error}') from error
      self._polygon_ends.extend(ends)
    self._row_ends.append(len(self._polygon_ends) - 1)

  def __getitem__(self, row: int) -> Any:
    if row in self._rles:
      return self._rles[row]
    points = np.frombuffer(self._points)
    ends = self._polygon_ends[self._row_ends[row]:self._row_ends[row + 1] + 1]
    return [points[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]

  def to_json(self, row: int) -> Any:
    """Return a row in the format of a COCO json."""
    segmentation = self[row]
    return dict(segmentation) if isinstance(segmentation, dict) else [polygon.tolist() for polygon in segmentation]

  def extents(self) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounding boxes y0 x0 y1 x1 of all rows, float64 [A, 4], nan for none; and their areas [A] in pixels.

    Overlapping polygons of a row count twice.
    """
    boxes, areas = np.full([len(self), 4], np.nan), np.zeros(len(self))
    points, ends = np.frombuffer(self._points).reshape(-1, 2), np.array(self._polygon_ends) // 2
    starts, row_ends = ends[:-1], np.array(self._row_ends)
    if len(starts):
      following = np.arange(1, len(points) + 1)
      following[ends[1:] - 1] = starts  # a polygon is closed
      rows = np.flatnonzero(np.diff(row_ends))
      firsts = starts[row_ends[rows]]  # the first point of each row
      with np.errstate(over='ignore', invalid='ignore'):
        x, y = points.T
        doubled = np.add.reduceat(x * y[following] - x[following] * y, starts)
        areas = np.bincount(np.repeat(np.arange(len(self)), np.diff(row_ends)), np.abs(doubled) / 2, len(self))
        boxes[rows, :2] = np.minimum.reduceat(points, firsts)[:, ::-1]
        boxes[rows, 2:] = np.maximum.reduceat(points, firsts)[:, ::-1]
    if self._rles:
      rows, rles = list(self._rles), list(self._rles.values())
      x, y, w, h = np.asarray(mask_api.toBbox(rles), np.float64).reshape(-1, 4).T
      # One at a time: with NumPy 2, pycocotools refuses a list of more than 255.
      boxes[rows], areas[rows] = np.stack([y, x, y + h, x + w], axis=1), [mask_api.area(rle) for rle in rles]
    return boxes, areas

  def rows_out_of_range(self) -> np.ndarray:
    """Return the rows with a coordinate that is not finite or out of range, or with too long outlines, int64."""
    points, ends = np.frombuffer(self._points), np.array(self._polygon_ends)
    starts, row_ends = ends[:-1], np.array(self._row_ends)
    if not len(starts):
      return np.zeros(0, np.int64)
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)  # [polygons]
    row_of = np.repeat(np.arange(len(self)), np.diff(row_ends))  # [polygons]
    near = (low >= -_MAX_COORDINATE) & (high <= _MAX_COORDINATE)  # False for NaN
    # No edge is longer than twice the extent; nearly all annotations need no computation of the exact length.
    longest = np.bincount(row_of[near], np.diff(ends)[near] * (high - low)[near], minlength=len(self))
    long = [row for row in np.setdiff1d(np.flatnonzero(longest > _MAX_OUTLINE), row_of[~near])
            if sum(map(_outline, self[row])) > _MAX_OUTLINE]
    return np.unique(np.concatenate([row_of[~near], np.array(long, np.int64)]))

  def update_digest(self, digest: Any) -> None:
    """Update a hashlib hash with all rows."""
    for column in (self._points, self._polygon_ends, self._row_ends):
      digest.update(column)
    digest.update(repr(self._rles).encode())

  def rle_sizes(self) -> dict[int, tuple[int, int]]:
    """Return row -> (height, width) of the rows that are run lengths."""
    return {row: tuple(rle['size']) for row, rle in self._rles.items()}


def _is_point(value: Any) -> bool:
  if isinstance(value, dict):
    value = [value.get('x'), value.get('y')]
  return isinstance(value, list) and len(value) == 2 and all(isinstance(one, int | float) for one in value)


def _flat(points: list[Any]) -> list[float]:
  pairs = ((point['x'], point['y']) if isinstance(point, dict) else point for point in points)
  return [coordinate for pair in pairs for coordinate in pair]


def _join_rles(rles: list[Any]) -> dict[str, Any]:
  if not all(isinstance(rle, dict) for rle in rles):
    raise ValueError('run lengths and other segmentations in one list')
  if len(rles) == 1:
    return rles[0]
  compressed = [_compress(rle) for rle in rles]
  if len({tuple(rle['size']) for rle in compressed}) > 1:
    raise ValueError('run lengths of different sizes')
  return mask_api.merge(compressed)


def _rasterise(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
  rles = mask_api.frPyObjects(polygons, height, width)
  return mask_api.decode(rles[0] if len(rles) == 1 else mask_api.merge(rles))


def _bin_centres(start: float, end: float, limit: int) -> np.ndarray:
  centres = start + (np.arange(MASK_CROP) + 0.5) * ((end - start) / MASK_CROP)
  return np.clip(np.floor(centres).astype(np.int64), 0, limit - 1)


def _check_polygons(segmentation: Any) -> list[np.ndarray]:
  try:
    # array() accepts numbers only; NumPy would parse the string '12' as 12.
    polygons = [polygon if isinstance(polygon, np.ndarray) else np.array(array('d', polygon))
                for polygon in segmentation]
  except (TypeError, OverflowError) as error:
    raise ValueError(f'not a list of polygons: {error}') from error
  polygons = [p for p in polygons if p.ndim == 1 and len(p) >= 6 and len(p) % 2 == 0]
  largest = [np.abs(p).max() for p in polygons]
  if not polygons or not all(each <= _MAX_COORDINATE for each in largest):  # False for NaN
    raise ValueError('no polygon of at least three finite points')
  # No edge is longer than four times the largest coordinate; nearly all need no computation of the exact length.
  longest = sum(2 * len(p) * each for p, each in zip(polygons, largest, strict=True))
  if longest > _MAX_OUTLINE and sum(map(_outline, polygons)) > _MAX_OUTLINE:
    raise ValueError(f'an outline of more than {_MAX_OUTLINE:.0f} pixels')
  return polygons


def _outline(polygon: np.ndarray) -> float:
  """Return the L1 length of a polygon [2 n] of alternating x and y."""
  points = polygon.reshape(-1, 2)
  return float(np.abs(points - np.roll(points, 1, axis=0)).sum())


def _compress(segmentation: dict[str, Any]) -> dict[str, Any]:
  """Convert either RLE to {'size': [h, w], 'counts': str}; validated, since pycocotools reads past a short one."""
  size, counts = segmentation.get('size'), segmentation.get('counts')
  if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
    raise ValueError(f'RLE size {size!r}')
  if isinstance(counts, str | bytes):
    runs = run_lengths(counts.encode() if isinstance(counts, str) else counts)
  elif isinstance(counts, list) and all(type(run) is int for run in counts):
    runs = np.array(counts)
  else:
    raise ValueError('RLE counts are neither a string nor a list of integers')
  pixels = size[0] * size[1]
  if pixels >= 2 ** 32:  # pycocotools' type of a run length
    raise ValueError(f'RLE of {size[0]} x {size[1]} pixels')
  if not len(runs) or runs.min() < 0 or runs.max() > pixels or runs.sum() != pixels:
    raise ValueError(f'RLE counts do not sum to {size[0]} x {size[1]} pixels')
  if isinstance(counts, list):
    counts = mask_api.frPyObjects({'size': size, 'counts': counts}, *size)['counts']
  return {'size': list(size), 'counts': counts if isinstance(counts, str) else counts.decode()}


def run_lengths(counts: bytes) -> np.ndarray:
  """Decode a compressed RLE to int64 run lengths: five bits a character, lowest first; differences from run 4 on."""
  chars = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
  if not len(chars) or chars.min() < 0 or chars.max() > 63 or chars[-1] & 0x20:
    raise ValueError('RLE counts are not a compressed string')
  ends = np.flatnonzero((chars & 0x20) == 0)
  starts = np.concatenate([[0], ends[:-1] + 1])
  lengths = ends - starts + 1
  if lengths.max() > 8:
    raise ValueError('RLE count out of range')
  digits = np.arange(len(chars)) - np.repeat(starts, lengths)
  runs = np.add.reduceat((chars & 0x1f) << (5 * digits), starts)
  runs -= np.where(chars[ends] & 0x10, np.left_shift(1, 5 * lengths), 0)  # sign bit
  runs[1::2] = np.cumsum(runs[1::2])  # stored as the difference to the run two before, except the first three
  runs[2::2] = np.cumsum(runs[2::2])
  return runs
