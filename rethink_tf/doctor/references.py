"""The kernels in float64 NumPy, written from their definitions, for the doctor and the tests to compare with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Array = np.ndarray
Normalised = tuple[Array, Array, Array, Array]  # y, dx, dgamma, dbeta


def group_norm(x: Array, gamma: Array, beta: Array, groups: int, dy: Array, epsilon: float = 1e-5) -> Normalised:
  """Group normalisation of x [N, H, W, C] and the gradients of sum(y * dy), by the formula and its derivative."""
  n, h, w, c = np.shape(x)
  return _normalise((n, h * w, groups, c // groups), (1, 3), x, gamma, beta, dy, epsilon)


def batch_norm(x: Array, gamma: Array, beta: Array, dy: Array, epsilon: float = 1e-5) -> Normalised:
  """Batch normalisation of x [N, H, W, C] with the statistics of the batch, likewise."""
  return _normalise(np.shape(x), (0, 1, 2), x, gamma, beta, dy, epsilon)


def _normalise(shape: Sequence[int], axes: tuple[int, ...], x: Array, gamma: Array, beta: Array, dy: Array,
               epsilon: float) -> Normalised:
  """shape, axes: of x for the statistics."""
  x, gamma, beta, dy = (np.float64(v) for v in (x, gamma, beta, dy))
  grouped, slopes = x.reshape(shape), (dy * gamma).reshape(shape)

  def mean(values: Array) -> Array:
    return values.mean(axis=axes, keepdims=True)

  std = np.sqrt(mean(np.square(grouped - mean(grouped))) + epsilon)
  x_hat = (grouped - mean(grouped)) / std
  dx = ((slopes - mean(slopes) - x_hat * mean(slopes * x_hat)) / std).reshape(x.shape)
  x_hat = x_hat.reshape(x.shape)
  return x_hat * gamma + beta, dx, (dy * x_hat).sum((0, 1, 2)), dy.sum((0, 1, 2))


def _bilinear(height: int, width: int, y: float, x: float) -> list[tuple[int, int, float]]:
  """[(row, column, weight)] of one sample, as Caffe2's bilinear_interpolate."""
  if y < -1 or y > height or x < -1 or x > width:
    return []
  y, x = max(y, 0.0), max(x, 0.0)
  low_y, low_x = min(int(y), height - 1), min(int(x), width - 1)
  high_y, high_x = min(low_y + 1, height - 1), min(low_x + 1, width - 1)
  y, x = (low_y if low_y == height - 1 else y), (low_x if low_x == width - 1 else x)
  dy, dx = y - low_y, x - low_x
  return [(low_y, low_x, (1 - dy) * (1 - dx)), (low_y, high_x, (1 - dy) * dx),
          (high_y, low_x, dy * (1 - dx)), (high_y, high_x, dy * dx)]


def roi_align(features: Sequence[Array], boxes: Array, size: int, ratio: int, aligned: bool,
              upstream: Array) -> tuple[Array, list[Array]]:
  """RoIAlign of Detectron: pooled features and the gradients of sum(pooled * upstream), sample by sample.

  features: [B, H / 2^l, W / 2^l, C] of levels l = 2, 3, …; boxes [B, R, 4]; ratio 0 is adaptive.
  """
  pooled = np.zeros((*boxes.shape[:2], size, size, features[0].shape[-1]))
  gradients = [np.zeros(f.shape) for f in features]
  for (b, r), box in np.ndenumerate(np.array([[tuple(box) for box in row] for row in boxes], 'd,d,d,d')):
    box = np.array(box.tolist())
    extent = np.sqrt(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))
    level = int(np.clip(np.floor(4 + np.log2(extent / 224 + 1e-8)), 2, 1 + len(features)))
    feature, gradient = features[level - 2][b], gradients[level - 2][b]
    y0, x0, y1, x1 = box / 2**level - (0.5 if aligned else 0)
    bins = np.array([y1 - y0, x1 - x0]) if aligned else np.maximum([y1 - y0, x1 - x0], 1)
    bins = bins / size
    down, across = (ratio, ratio) if ratio else np.ceil(bins).astype(int)
    for i, j, di, dj in np.ndindex(size, size, down, across):
      y, x = y0 + (i + (di + 0.5) / down) * bins[0], x0 + (j + (dj + 0.5) / across) * bins[1]
      for row, column, weight in _bilinear(*feature.shape[:2], y, x):
        pooled[b, r, i, j] += feature[row, column] * weight / (down * across)
        gradient[row, column] += upstream[b, r, i, j] * weight / (down * across)
  return pooled, gradients


def suppress(boxes: Array, scores: Array, valid: Array, threshold: float, max_per_group: int,
             max_total: int) -> list[tuple[float, int, Array]]:
  """Greedy suppression within each group: [(score, group, box)] of one image, best first.

  boxes: [N, Q, 4] or [N, 1, 4]; scores, valid: [N, Q].
  """
  kept = []
  for group in range(scores.shape[1]):
    own = np.float64(boxes[:, min(group, boxes.shape[1] - 1)])
    chosen = []
    for i in np.argsort(-scores[:, group], kind='stable'):
      if not valid[i, group] or len(chosen) == max_per_group:
        continue
      if all(overlap(own[i], own[j]) <= threshold for j in chosen):
        chosen.append(i)
    kept += [(scores[i, group], group, boxes[i, min(group, boxes.shape[1] - 1)]) for i in chosen]
  return sorted(kept, key=lambda item: -item[0])[:max_total]


def overlap(a: Array, b: Array) -> float:
  """IoU of two boxes."""
  sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
  union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - sides.prod()
  return sides.prod() / union if union else 0


def anchor_labels(overlaps: Array, gt_valid: Array, usable: Array, positive: float = 0.7,
                  negative: float = 0.3) -> Array:
  """Labels 1, 0 and -1 of anchors: Faster R-CNN, section 3.1.2, for one image."""
  labels = np.full(len(overlaps), -1)
  for i, row in enumerate(overlaps):
    best = max((iou for iou, valid in zip(row, gt_valid, strict=True) if valid), default=0)
    labels[i] = 1 if best >= positive else 0 if best < negative else -1
  for g in np.flatnonzero(gt_valid):
    column = np.where(usable, overlaps[:, g], -1)
    if column.max() > 0:
      labels[column == column.max()] = 1
  return np.where(usable, labels, -1)


def paste(mask: Array, box: Array, height: int, width: int) -> Array:
  """A mask [M, M] pasted into its box, bool [height, width].

  Detectron2's grid_sample(align_corners=False, zeros outside) >= 0.5, pixel by pixel.
  """

  def axis(low: float, high: float, pixels: int) -> tuple[Array, Array]:
    position = (np.arange(pixels) + 0.5 - low) / (high - low) * len(mask) - 0.5
    position = np.clip(position, -1, len(mask))
    cell = np.minimum(np.floor(position).astype(int), len(mask) - 1)
    return cell + 1, position - cell

  padded = np.pad(mask.astype(np.float64), 1)
  y, fy = axis(box[0], box[2], height)
  x, fx = axis(box[1], box[3], width)
  fy = fy[:, None]
  top = padded[y][:, x] * (1 - fx) + padded[y][:, x + 1] * fx
  bottom = padded[y + 1][:, x] * (1 - fx) + padded[y + 1][:, x + 1] * fx
  return top * (1 - fy) + bottom * fy >= 0.5
