"""Shapes that annotation tools draw, as boxes, polygons and run lengths of COCO."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_api

from rethink_tf.data.detection.segmentation import to_rle
from rethink_tf.data.images import MAX_PIXELS, header_size

MAX_COORDINATE = 1e6  # as detection.annotations
JOINED = 'object of several rectangles of one label and group (the box around them is used)'
_SAMPLED = 64  # points of a circle or an ellipse
_DIGITS = 3  # behind the point of a coordinate that is computed


def numbers(values: Sequence[Any], largest: float = MAX_COORDINATE) -> list[float] | None:
  """Return values as finite floats of plausible size, by default that of coordinates; None if one is not."""
  try:
    found = [float(value) for value in values if not isinstance(value, (bool, str, bytes))]
  except (TypeError, ValueError, OverflowError):
    return None
  if len(found) != len(values) or not all(abs(value) <= largest for value in found):  # False for NaN
    return None
  return found


def text_numbers(words: Sequence[str | None]) -> list[float] | None:
  """Return `numbers` of words; None if one is missing or not a number."""
  try:
    return numbers([float(word) for word in words])
  except (TypeError, ValueError):
    return None


def flat_points(points: Any) -> list[float] | None:
  """Return `numbers` of points [[x, y], ...] as [x0, y0, x1, y1, ...]; None if they are not such a list."""
  if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
    return None
  return numbers([value for point in points for value in point])


def flat_pairs(points: Any) -> list[float] | None:
  """Return `flat_points` of points [{'x': x, 'y': y}, ...]."""
  if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
    return None
  return flat_points([[point.get('x'), point.get('y')] for point in points])


def box(x0: float, y0: float, x1: float, y1: float) -> list[float]:
  """Return the bbox [x, y, width, height] of two corners in any order."""
  x0, x1, y0, y1 = (round(value, _DIGITS) for value in (*sorted((x0, x1)), *sorted((y0, y1))))
  return [x0, y0, round(x1 - x0, _DIGITS), round(y1 - y0, _DIGITS)]


def boxed(bbox: list[float]) -> dict[str, Any]:
  """Return the fields of an object that has a box only."""
  return {'bbox': bbox, 'area': round(bbox[2] * bbox[3], _DIGITS), 'segmentation': []}


def outlined(polygons: Sequence[Sequence[float]]) -> dict[str, Any]:
  """Return the fields of an object given as polygons [x0, y0, x1, y1, ...]; its box is their extent."""
  arrays = [np.round(np.asarray(polygon, np.float64), _DIGITS) for polygon in polygons]
  points = np.concatenate(arrays).reshape(-1, 2)
  (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
  return {'bbox': box(x0, y0, x1, y1), 'area': round(sum(map(_area, arrays)), _DIGITS),
          'segmentation': [array.tolist() for array in arrays]}


def masked(mask: np.ndarray) -> dict[str, Any]:
  """Return the fields of an object given as a mask, bool or uint8 [height, width] with at least one pixel."""
  # Column by column, as COCO's run lengths are: OpenCV transposes large images some 20 times as fast as NumPy.
  rle = mask_api.encode(cv2.transpose(np.ascontiguousarray(mask, np.uint8)).T)
  return {'bbox': mask_api.toBbox(rle).tolist(), 'area': float(mask_api.area(rle)),
          'segmentation': {'size': list(rle['size']), 'counts': rle['counts'].decode()}}


def decoded_png(data: bytes, size: tuple[int, int], flags: int = cv2.IMREAD_UNCHANGED) -> np.ndarray | None:
  """Decode the PNG of a mask or of its box; None if that fails, or if it is larger than the image."""
  stored = header_size(data)
  if stored is None or size[0] * size[1] > MAX_PIXELS or stored[0] > size[0] + 1 or stored[1] > size[1] + 1:
    return None
  return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def pasted(crop: np.ndarray, x0: int, y0: int, size: tuple[int, int]) -> np.ndarray | None:
  """Return the mask, uint8 [height, width], of pixels of its box; None if that begins outside of the image."""
  if x0 < 0 or y0 < 0:
    return None
  mask = np.zeros(size, np.uint8)
  target = mask[y0:y0 + crop.shape[0], x0:x0 + crop.shape[1]]
  target[:] = crop[:target.shape[0], :target.shape[1]] > 0
  return mask


def cut_out(outline: Sequence[float], holes: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray | None:
  """Return the mask, uint8 [height, width], of a polygon without its holes; None if it cannot be drawn."""
  whole, cut = _drawn([outline], size), _drawn(holes, size)
  return None if whole is None or cut is None else whole & (1 - cut)


def alternating(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray | None:
  """Return the mask, uint8 [height, width], of what an odd number of polygons contains; None if it cannot be drawn."""
  mask: np.ndarray | None = np.zeros((1, 1), np.uint8)
  for polygon in polygons:
    drawn = _drawn([polygon], size)
    if drawn is None:
      return None
    mask = mask ^ drawn
  return mask


def _drawn(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray | None:
  """Return the mask of polygons, uint8 [height, width]; None if it would be too large, or an outline is too long."""
  if size[0] * size[1] > MAX_PIXELS:
    return None
  try:
    return mask_api.decode(to_rle(list(map(list, polygons)), *size))
  except ValueError:
    return None


def joined(parts: Sequence[tuple[str, Any]]) -> dict[str, Any]:
  """Return the fields of an object that consists of parts: its outlines or masks, and the box drawn around it, if any.

  parts: ('polygon', [x0, y0, x1, y1, ...]), ('mask', uint8 [height, width] of the image) or ('box', [x, y, w, h]).
  """
  polygons, masks, boxes = ([value for kind, value in parts if kind == wanted] for wanted in ('polygon', 'mask', 'box'))
  around = None
  if boxes:
    around = box(min(x for x, _, _, _ in boxes), min(y for _, y, _, _ in boxes), max(x + w for x, _, w, _ in boxes),
                 max(y + h for _, y, _, h in boxes))
  if masks:
    whole = np.maximum.reduce(masks) if len(masks) > 1 else masks[0]
    if polygons:
      whole = whole | mask_api.decode(to_rle(polygons, *whole.shape))
    found = masked(whole)
  elif polygons:
    found = outlined(polygons)
  else:
    return boxed(around)
  return found | ({'bbox': around} if around else {})


def are_boxes(parts: Sequence[tuple[str, Any]]) -> bool:
  """Whether an object consists of several rectangles, which few tools mean as one object."""
  return len(parts) > 1 and {kind for kind, _ in parts} == {'box'}


def ellipse(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> list[float]:
  """Return an ellipse as a polygon. angle: of its first axis, in radians, clockwise in an image."""
  turn = np.linspace(0, 2 * math.pi, _SAMPLED, endpoint=False)
  x, y = rx * np.cos(turn), ry * np.sin(turn)
  points = np.stack([cx + x * math.cos(angle) - y * math.sin(angle), cy + x * math.sin(angle) + y * math.cos(angle)], 1)
  return points.ravel().tolist()


def rotated_box(x: float, y: float, width: float, height: float, degrees: float) -> list[float]:
  """Return the bbox around a rectangle that is turned clockwise about its upper left corner."""
  angle = math.radians(degrees)
  corners = [(x + a * math.cos(angle) - b * math.sin(angle), y + a * math.sin(angle) + b * math.cos(angle))
             for a, b in ((0, 0), (width, 0), (width, height), (0, height))]
  xs, ys = zip(*corners, strict=True)
  return box(min(xs), min(ys), max(xs), max(ys))


def scaled(instance: dict[str, Any], width: int, height: int) -> dict[str, Any]:
  """Convert an instance with coordinates as fractions of an image to pixels."""
  if 'keypoints' in instance:
    values = np.asarray(instance['keypoints'], np.float64).reshape(-1, 3) * [width, height, 1]
    instance = instance | {'keypoints': np.round(values, _DIGITS).ravel().tolist()}
  if instance['segmentation']:
    return instance | outlined([np.asarray(polygon, np.float64) * np.tile([width, height], len(polygon) // 2)
                                for polygon in instance['segmentation']])
  x, y, w, h = instance['bbox']
  return instance | boxed(box(x * width, y * height, (x + w) * width, (y + h) * height))


def _area(polygon: np.ndarray) -> float:
  x, y = polygon.reshape(-1, 2).T
  return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(np.roll(x, -1), y)) / 2)
