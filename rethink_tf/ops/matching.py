"""Matching of boxes to ground truth, and fixed-size sampling without replacement.

All shapes are static. Randomness is stateless and keyed by the seed of each image, so that a step draws the same
samples on one device, on several, and after a restart.
"""

from __future__ import annotations

import tensorflow as tf


def match_anchors(
  overlaps: tf.Tensor, gt_valid: tf.Tensor, usable: tf.Tensor, positive: float = 0.7, negative: float = 0.3
) -> tuple[tf.Tensor, tf.Tensor]:
  """Return RPN labels [B, A] (1 object, 0 background, -1 ignored), matched ground truth [B, A] (Faster R-CNN, 3.1.2).

  An anchor is positive at IoU >= `positive`, or if its IoU is the highest of a ground-truth box (including ties).
  overlaps: [B, A, G]; gt_valid: bool [B, G]; usable: bool [B, A], other anchors are labelled -1.
  """
  overlaps = tf.where(gt_valid[:, None, :] & usable[:, :, None], overlaps, -1.0)
  best = tf.reduce_max(overlaps, axis=2)  # [B, A]
  matched = tf.argmax(overlaps, axis=2, output_type=tf.int32)
  best_of_gt = tf.reduce_max(overlaps, axis=1, keepdims=True)  # [B, 1, G]
  forced = tf.reduce_any((overlaps == best_of_gt) & (best_of_gt > 0.0), axis=2)
  labels = tf.where(best < negative, 0, -1)
  labels = tf.where((best >= positive) | forced, 1, labels)
  return tf.where(usable, labels, -1), matched


def match_proposals(
  overlaps: tf.Tensor, gt_valid: tf.Tensor, valid: tf.Tensor, foreground: float = 0.5
) -> tuple[tf.Tensor, tf.Tensor]:
  """Return RoI labels [B, N] (1 foreground, 0 background, -1 unused), matched ground truth [B, N] (Fast R-CNN, 2.3)."""
  overlaps = tf.where(gt_valid[:, None, :], overlaps, -1.0)
  best = tf.reduce_max(overlaps, axis=2)
  matched = tf.argmax(overlaps, axis=2, output_type=tf.int32)
  return tf.where(valid, tf.cast(best >= foreground, tf.int32), -1), matched


def sample(
  labels: tf.Tensor, seeds: tf.Tensor, stream: int, size: int, max_positives: int
) -> tuple[tf.Tensor, tf.Tensor]:
  """Sample up to `size` candidates of each image, at most `max_positives` of them positive, positives first.

  labels: int32 [B, N] 1, 0 or -1; seeds: int32 [B, 2]; stream: makes the samples of different callers independent.
  Returns indices int32 [B, size] into the candidates and used bool [B, size]; unused slots hold index 0.
  """
  count = labels.shape[1] if labels.shape[1] is not None else tf.shape(labels)[1]
  keys = _uniform(seeds, stream, count)  # [B, N] in [0, 1)
  order_positive, num_positive = _draw(labels == 1, keys, max_positives)
  order_negative, num_negative = _draw(labels == 0, keys, size)
  slot = tf.range(size)[None, :]  # [1, size]
  num_positive = num_positive[:, None]
  is_positive = slot < num_positive
  used = slot < num_positive + num_negative[:, None]
  from_positive = tf.gather(order_positive, tf.clip_by_value(slot, 0, max(max_positives - 1, 0)) + 0 * num_positive,
                            batch_dims=1)
  from_negative = tf.gather(order_negative, tf.clip_by_value(slot - num_positive, 0, size - 1), batch_dims=1)
  indices = tf.where(is_positive, from_positive, from_negative)
  return tf.where(used, indices, 0), used


def _uniform(seeds: tf.Tensor, stream: int, count: int | tf.Tensor) -> tf.Tensor:
  """Return uniform random numbers [B, count] in [0, 1), an independent stateless stream for every image and caller.

  A hash of seed, stream and position; tf.random gives other numbers under XLA for the same seed.
  """
  seeds = tf.bitcast(seeds, tf.uint32)
  key = _mix(seeds[:, 0] + _mix(seeds[:, 1] + _mix(tf.constant([stream], tf.uint32))))  # [B]
  position = tf.cast(tf.range(count), tf.uint32) * tf.constant(0x9E3779B9, tf.uint32)
  bits = _mix(key[:, None] + position)  # [B, count]
  return tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32) * 2.0**-24


def _mix(x: tf.Tensor) -> tf.Tensor:
  """Finalizer of MurmurHash3 of uint32: every bit depends on all bits."""
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32)))
    x *= tf.constant(factor, tf.uint32)
  return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(16, tf.uint32)))


def _draw(eligible: tf.Tensor, keys: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
  """Return a random order [B, size] of the eligible candidates, and their number (at most `size`)."""
  if not size:
    return tf.zeros([tf.shape(keys)[0], 1], tf.int32), tf.zeros([tf.shape(keys)[0]], tf.int32)
  number = tf.minimum(tf.reduce_sum(tf.cast(eligible, tf.int32), axis=1), size)
  keys = tf.where(eligible, keys, -1.0)
  shortage = size - keys.shape[1] if keys.shape[1] is not None else tf.maximum(size - tf.shape(keys)[1], 0)
  if not isinstance(shortage, int) or shortage > 0:  # top_k needs at least `size` candidates
    keys = tf.pad(keys, [[0, 0], [0, shortage]], constant_values=-2.0)
  return tf.math.top_k(keys, size).indices, number
