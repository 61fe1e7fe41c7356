"""Masks: RoI targets from crops of instances (on the device), COCO RLE from RoI masks (on the host)."""

from __future__ import annotations

import cv2
import numpy as np
import tensorflow as tf

PASTE_MODES = ('accurate', 'detectron')


def crop_targets(
  gt_masks: tf.Tensor, gt_boxes: tf.Tensor, rois: tf.Tensor, gt_index: tf.Tensor, size: int = 28
) -> tf.Tensor:
  """Return mask targets of RoIs (Mask R-CNN, section 3): the mask of the matched instance in each RoI.

  The instance's crop is sampled bilinearly at the centre of every cell of the RoI; outside the instance's box is
  background. Shapes are static and compile with XLA; there is no gradient.

  Args:
    gt_masks: uint8 [B, G, C, C] 0/1, each box stretched to a square.
    gt_boxes: [B, G, 4] in pixels of the resized image.
    rois: [B, M, 4] in the same pixels.
    gt_index: int [B, M] the matched ground truth of each RoI.
    size: side of the target in cells.

  Returns:
    float32 [B, M, size, size] 0/1.
  """
  crop = gt_masks.shape[-1]
  boxes = tf.gather(tf.cast(gt_boxes, tf.float32), gt_index, batch_dims=1)  # [B, G, 4] -> [B, M, 4]
  rois = tf.cast(rois, tf.float32)
  rows = _interpolation(rois[..., 0], rois[..., 2], boxes[..., 0], boxes[..., 2], size, crop)  # [B, M, size, C]
  columns = _interpolation(rois[..., 1], rois[..., 3], boxes[..., 1], boxes[..., 3], size, crop)
  masks = tf.cast(tf.gather(gt_masks, gt_index, batch_dims=1), tf.float32)  # [B, M, C, C]
  values = tf.matmul(tf.matmul(rows, masks), columns, transpose_b=True)  # [B, M, size, size]
  return tf.stop_gradient(tf.cast(values >= 0.5, tf.float32))


def _interpolation(
  roi_low: tf.Tensor, roi_high: tf.Tensor, box_low: tf.Tensor, box_high: tf.Tensor, size: int, crop: int
) -> tf.Tensor:
  """Return the matrix of linear interpolation along one axis: edges [B, M] -> weights [B, M, size, crop]."""
  centres = (tf.range(size, dtype=tf.float32) + 0.5) / size  # [size]
  points = roi_low[..., None] + (roi_high - roi_low)[..., None] * centres  # [B, M, size]
  inside = (points >= box_low[..., None]) & (points < box_high[..., None])
  length = tf.maximum(box_high - box_low, 1e-6)[..., None]
  cells = (points - box_low[..., None]) / length * crop - 0.5
  # The outermost half cells have no neighbour: the edge cell extends to the edge of the box.
  cells = tf.clip_by_value(cells, 0.0, crop - 1.0)
  weights = tf.nn.relu(1.0 - tf.abs(cells[..., None] - tf.range(crop, dtype=tf.float32)))
  return tf.where(inside[..., None], weights, 0.0)


def paste(masks: np.ndarray, boxes: np.ndarray, height: int, width: int, mode: str = 'accurate') -> list[dict]:
  """Return binary masks of detections in the image, as COCO RLE (Mask R-CNN, section 3.1, inference).

  No array of the image's size is allocated: only the positions where a mask turns on or off are computed.

  Args:
    masks: [D, M, M] probabilities over each box.
    boxes: [D, 4] y0 x0 y1 x1 in pixels of the image; they may exceed it.
    height, width: of the image in pixels.
    mode: 'accurate' samples the mask bilinearly at the pixel centres of the continuous box, as Detectron2 does
      (about +0.5 mask AP); 'detectron' resizes the padded mask to the integer box, as the paper's code does.

  Returns:
    D dictionaries {'size': [height, width], 'counts': bytes}; an empty, inverted or non-finite box gives an empty mask.

  Raises:
    ValueError: an unknown mode.
  """
  if mode not in PASTE_MODES:
    raise ValueError(f'paste: mode {mode!r} is not one of {PASTE_MODES}')
  boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
  valid = np.isfinite(boxes).all(1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
  boxes = np.where(valid[:, None], boxes, [-9.0, -9.0, -8.0, -8.0])  # outside every image
  padded = np.pad(np.asarray(masks, np.float32), ((0, 0), (1, 1), (1, 1)))  # bilinear sampling fades to zero
  flips = _sampled_flips if mode == 'accurate' else _resized_flips
  results = []
  for start in range(0, len(boxes), 32):  # a chunk fits into the CPU's cache
    chunk = slice(start, start + 32)
    columns = np.ascontiguousarray(padded[chunk].transpose(0, 2, 1))  # [d, x, y]: run lengths are column-major
    results += _encode_flips(*flips(columns, boxes[chunk], height, width), len(columns), height, width)
  return results


def _sampled_flips(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Return where bilinearly sampled masks [d, M + 2, M + 2] cross 0.5: mask index and column-major pixel of each flip.

  Along an image column a bilinear mask is piecewise linear between the centres of its cells. Each piece with one end
  on and the other off crosses 0.5 exactly once, at the pixel where the mask flips.
  """
  side = masks.shape[-1]
  y0, x0, y1, x1 = boxes.T
  first = np.maximum(np.ceil(x0 - 0.5), 0).astype(np.int64)  # pixels whose centre is outside the box are below 0.5
  last = np.minimum(np.floor(x1 - 0.5), width - 1).astype(np.int64)
  counts = np.maximum(last - first + 1, 0)
  owner = np.repeat(np.arange(len(boxes)), counts)  # [c] every image column of every mask
  x = np.arange(len(owner)) + np.repeat(first - np.cumsum(counts) + counts, counts)
  position = (x + 0.5 - x0[owner]) / (x1 - x0)[owner] * (side - 2) + 0.5
  cell = np.minimum(position.astype(np.int64), side - 2)
  fraction = (position - cell)[:, None]
  lines = masks.reshape(-1, side)
  row = owner * side + cell
  values = lines[row] * (1 - fraction) + lines[row + 1] * fraction  # float64 [c, M + 2]
  on = values >= 0.5
  column, piece = np.divmod(np.flatnonzero(on[:, 1:] != on[:, :-1]), side - 1)
  low, high = values[column, piece], values[column, piece + 1]
  owner = owner[column]
  crossing = (piece + (0.5 - low) / (high - low) - 0.5) / (side - 2) * (y1 - y0)[owner] + y0[owner] - 0.5
  # A pixel whose centre is at the crossing is on; the tolerance is for rounding errors.
  y = np.where(high >= 0.5, np.ceil(crossing - 1e-9), np.floor(crossing + 1e-9) + 1)
  return owner, x[column] * height + np.clip(y, 0, height).astype(np.int64)


def _resized_flips(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Return mask index and column-major pixel of each flip of masks resized to Detectron's integer boxes."""
  side = masks.shape[-1]
  centres, halves = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * side / (side - 2)
  corners = np.concatenate([(centres - halves).astype(np.int64), (centres + halves).astype(np.int64) + 1], axis=1)
  limits = np.clip(corners, 0, [height, width, height, width])
  owners, positions = [], []
  for i, (mask, (y0, x0, y1, x1), (top, left, bottom, right)) in enumerate(zip(masks, corners, limits, strict=True)):
    if top >= bottom or left >= right:
      continue
    resized = cv2.resize(mask, (int(y1 - y0), int(x1 - x0)))[left - x0 : right - x0, top - y0 : bottom - y0]
    on = np.zeros((right - left, bottom - top + 2), bool)
    on[:, 1:-1] = resized > 0.5
    column, y = np.divmod(np.flatnonzero(on[:, 1:] != on[:, :-1]), bottom - top + 1)
    positions.append((column + left) * height + y + top)
    owners.append(np.full(len(y), i))
  if not owners:
    return np.zeros(0, np.int64), np.zeros(0, np.int64)
  return np.concatenate(owners), np.concatenate(positions)


def _encode_flips(owner: np.ndarray, flips: np.ndarray, number: int, height: int, width: int) -> list[dict]:
  """Return COCO's compressed RLE of `number` masks that flip at the given column-major pixels."""
  total = height * width
  keys = np.sort(owner * (total + 1) + flips)
  begins = np.flatnonzero(np.diff(keys, prepend=-1))
  keys = keys[begins[np.diff(begins, append=len(keys)) % 2 == 1]]  # two flips at the same pixel cancel
  owner, flips = np.divmod(keys, total + 1)
  owner, flips = owner[flips < total], flips[flips < total]  # no flip after the last pixel
  sizes = np.bincount(owner, minlength=number) + 1  # runs of each mask, background first
  ends = np.cumsum(sizes)
  bounds = np.full(ends[-1], total)
  bounds[np.arange(len(owner)) + owner] = flips
  runs = np.diff(bounds, prepend=0)
  runs[ends[:-1]] = bounds[ends[:-1]]
  # From the fourth run on, COCO stores the difference to the run two before.
  numbers = runs.copy()
  later = np.arange(len(runs)) - np.repeat(ends - sizes, sizes) > 2
  numbers[later] -= np.roll(runs, 2)[later]
  characters, stops = _base32(numbers)
  stops = stops[ends - 1].tolist()
  starts = [0, *stops[:-1]]
  return [
    {'size': [height, width], 'counts': characters[start:stop]} for start, stop in zip(starts, stops, strict=True)
  ]


def _base32(numbers: np.ndarray) -> tuple[bytes, np.ndarray]:
  """Return the concatenated integers in COCO's encoding, and the end of each.

  Five bits per character, least significant first, plus 48; bit 5 is set if more characters follow. In the last one,
  bit 4 is the sign.
  """
  magnitudes = numbers ^ (numbers >> 63)  # n or -n - 1: the bits below the sign bit
  lengths = np.ones(len(numbers), np.int64)
  limit, largest = 16, magnitudes.max()
  while limit <= largest:
    lengths += magnitudes >= limit
    limit *= 32
  ends = np.cumsum(lengths)
  characters = np.empty(ends[-1], np.uint8)
  positions = ends - lengths
  for _ in range(lengths.max()):
    more = lengths > 1
    characters[positions] = (numbers & 31) + 48 + 32 * more
    numbers, positions, lengths = numbers[more] >> 5, positions[more] + 1, lengths[more] - 1
  return characters.tobytes(), ends
