"""Anchors of the region proposal network, each size with several aspect ratios per cell (FPN, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def cell_anchors(size: float, ratios: Sequence[float]) -> np.ndarray:
  """Return anchors [len(ratios), 4] centred at the origin, of area size²; a ratio is height / width."""
  # Departure: Detectron rounds the sizes at the smallest scale; exact sizes are Detectron2's and do not lower AP.
  ratios = np.asarray(ratios, np.float64)
  half_h, half_w = size * np.sqrt(ratios) / 2, size / np.sqrt(ratios) / 2
  return np.stack([-half_h, -half_w, half_h, half_w], axis=1).astype(np.float32)


def grid_anchors(height: int | tf.Tensor, width: int | tf.Tensor, stride: int, size: float, ratios: Sequence[float],
                 offset: float) -> tf.Tensor:
  """Return anchors [height * width * len(ratios), 4] of one level, row by row, all ratios of a cell together.

  offset: centre of the first cell in strides: 0.5 (half a cell) or 0 (Detectron2's models).
  height, width: of the feature map.
  """
  centres_y = (tf.range(height, dtype=tf.float32) + offset) * stride
  centres_x = (tf.range(width, dtype=tf.float32) + offset) * stride
  y, x = tf.meshgrid(centres_y, centres_x, indexing='ij')
  centres = tf.stack([y, x, y, x], axis=-1)[:, :, None, :]  # [H, W, 1, 4]
  return tf.reshape(centres + cell_anchors(size, ratios), [-1, 4])


def inside_image(anchors: tf.Tensor, image_sizes: tf.Tensor, slack: float = 0.0) -> tf.Tensor:
  """Return a mask [B, A] of the anchors [A, 4] inside the images [B, 2] (height, width), up to `slack` pixels.

  As Detectron's RPN_STRADDLE_THRESH. The padding is outside the image.
  """
  low = tf.reduce_all(anchors[:, :2] >= -slack, axis=-1)
  high = tf.reduce_all(anchors[None, :, 2:] <= image_sizes[:, None, :] + slack, axis=-1)
  return low[None, :] & high
