"""Checks of the kernels on one device against float64 NumPy (references.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from pycocotools import mask as coco_mask

from rethink_tf.doctor import references
from rethink_tf.doctor.rows import Row, compared
from rethink_tf.models import norms
from rethink_tf.ops import group_norm as group_norms
from rethink_tf.ops import masks, matching, nms, paste, roi_align

_EPSILON = 1e-5
# Of the largest value. float32 sums of some thousand terms; outputs rounded to 8 and 11 bits.
_TOLERANCES = {'float32': 1e-5, 'bfloat16': 8e-3, 'float16': 2e-3}
_STRIDES = (4, 8, 16, 32)


def difference(ours: Any, expected: Any) -> float:
  """Return the largest difference relative to the largest expected value; NaN and other shapes do not pass."""
  ours, expected = np.float64(ours), np.float64(expected)
  if ours.shape != expected.shape:
    return np.inf
  return float(np.abs(ours - expected).max() / max(np.abs(expected).max(), 1e-30)) if expected.size else 0.0


def group_norm(device: str) -> Iterator[Row]:
  """Check GroupNorm, forward and backward, on inputs with a mean and with a small variance, where epsilon counts."""
  for dtype, tolerance in _TOLERANCES.items():
    worst = dict.fromkeys(('forward', 'backward'), 0.0)
    for shape, deviation in (((2, 25, 42, 64), 2.0), ((3, 7, 7, 64), 0.01)):
      rng = np.random.default_rng(0)
      x, dy = rng.normal(0.0, deviation, shape) + rng.normal(size=shape[-1:]) * deviation, rng.normal(size=shape)
      gamma, beta = np.float32(rng.uniform(0.5, 1.5, shape[-1])), np.float32(rng.normal(size=shape[-1]))
      with tf.device(device):
        x, dy = tf.cast(x, dtype), tf.cast(dy, dtype)
        inputs = [x, tf.constant(gamma), tf.constant(beta)]
        with tf.GradientTape() as tape:
          tape.watch(inputs)
          y = group_norms.group_norm(*inputs, 32, _EPSILON)
        gradients = tape.gradient(y, inputs, dy)
      expected = references.group_norm(tf.cast(x, tf.float64), gamma, beta, 32, tf.cast(dy, tf.float64), _EPSILON)
      worst['forward'] = _worse(worst['forward'], difference(tf.cast(y, tf.float64), expected[0]))
      for ours, golden in zip(gradients, expected[1:], strict=True):
        worst['backward'] = _worse(worst['backward'], difference(tf.cast(ours, tf.float64), golden))
    for direction, error in worst.items():
      yield compared(f'GroupNorm {direction} {dtype}', device, error, 3 * tolerance if direction == 'backward' else
                     tolerance)


def _worse(a: float, b: float) -> float:
  """Return the larger error; NaN counts as the largest."""
  return b if np.isnan(b) or b > a else a


def roi_alignment(device: str) -> Iterator[Row]:
  """Check values and gradients of RoIAlign, in both grids and forms; boxes across the border, empty and outside."""
  rng = np.random.default_rng(0)
  height, width, channels = 128, 192, 4
  features = [rng.normal(size=(2, height // stride, width // stride, channels)) for stride in _STRIDES]
  corners = rng.uniform(-0.1, 1.1, (2, 6, 2, 2)) * [height, width]
  special = [[-64, -64, height + 64, width + 64], [height + 40, width + 40, height + 60, width + 70],
             [50, 60, 50, 60], [50.25, 60.5, 50.5, 61.25], [3, 100, 5, 190]]
  boxes = np.concatenate([np.concatenate([corners.min(2), corners.max(2)], -1), [special, special[::-1]]], 1)
  boxes = np.float32(boxes)
  upstream = rng.normal(size=(*boxes.shape[:2], 3, 3, channels))
  worst = dict.fromkeys(('csr', 'gather'), 0.0)
  for aligned in (False, True):
    expected = references.roi_align(features, boxes, 3, 2, aligned, upstream)
    for method in worst:
      with tf.device(device):
        maps = [tf.constant(f, tf.float32) for f in features]
        with tf.GradientTape() as tape:
          tape.watch(maps)
          pooled = roi_align.roi_align(roi_align.flatten(maps), tf.constant(boxes), 3, aligned=aligned, method=method)
        gradients = tape.gradient(pooled, maps, tf.constant(upstream, tf.float32), 'zero')
      for ours, golden in zip([pooled, *gradients], [expected[0], *expected[1]], strict=True):
        worst[method] = _worse(worst[method], difference(ours, golden))
  for method, error in worst.items():
    yield compared(f'RoIAlign {method}', device, error, 1e-4)


def suppression(device: str) -> Iterator[Row]:
  """NMS: the same boxes in the same order, also for scores below -1 and invalid boxes.

  Every form on a CPU; on others that of the device and the one for XLA.
  """
  rng = np.random.default_rng(0)
  images, number, groups, limits = 2, 80, 3, (0.5, 20, 40)
  centres, sizes = rng.uniform(0, 150, (images, number, groups, 2)), rng.uniform(20, 80, (images, number, groups, 2))
  boxes = np.float32(np.concatenate([centres - sizes / 2, centres + sizes / 2], -1))
  scores = np.float32(rng.normal(-2, 5, size=(images, number, groups)))
  valid = rng.uniform(size=scores.shape) < 0.8
  expected = [references.suppress(b, s, v, *limits) for b, s, v in zip(boxes, scores, valid, strict=True)]
  for form in nms.FORMS if nms.form_on(device) == 'combined' else (nms.form_on(device), 'batched'):
    with tf.device(device):
      found = [x.numpy() for x in nms.grouped_nms(tf.constant(boxes), tf.constant(scores), tf.constant(valid), *limits,
                                                  form)]
    wrong = 0
    for i, golden in enumerate(expected):
      ours = list(zip(*(x[i][found[3][i]].tolist() for x in found[:3]), strict=True))
      golden = [(box.tolist(), float(score), group) for score, group, box in golden]
      wrong += max(len(ours), len(golden)) - sum(a == b for a, b in zip(ours, golden, strict=False))
    yield compared(f'NMS {form}', device, wrong, 0, f'boxes that differ, of {sum(map(len, expected))}')


def box_matching(device: str) -> Iterator[Row]:
  """Check the labels of anchors and of proposals, with ties and images without objects."""
  rng = np.random.default_rng(0)
  overlaps = np.float32(np.round(rng.uniform(0, 1, (4, 60, 5)) ** 2, 1))  # rounded: many ties
  overlaps[0, :, 1] *= 0.2  # a box without an anchor above 0.2
  gt_valid, usable = rng.uniform(size=(4, 5)) < 0.7, rng.uniform(size=(4, 60)) < 0.8
  gt_valid[2] = False
  with tf.device(device):
    inputs = tf.constant(overlaps), tf.constant(gt_valid), tf.constant(usable)
    labels, matched = matching.match_anchors(*inputs)
    roi_labels, roi_matched = matching.match_proposals(*inputs)
  hidden = np.where(gt_valid[:, None], overlaps, -1.0)
  expected = np.stack([references.anchor_labels(*row) for row in zip(overlaps, gt_valid, usable, strict=True)])
  of_rois = np.where(usable, hidden.max(2) >= 0.5, -1)
  wrong = (labels.numpy() != expected).sum() + (roi_labels.numpy() != of_rois).sum()
  for ours, positive in ((matched, expected == 1), (roi_matched, of_rois == 1)):
    best = np.take_along_axis(hidden, ours.numpy()[..., None], 2)[..., 0]
    wrong += (best != hidden.max(2))[positive].sum()
  yield compared('matching', device, float(wrong), 0, f'labels and matches that differ, of {4 * expected.size}')


def pasting(device: str) -> Iterator[Row]:
  """Check masks pasted into the image: on the device, as in exports, and by NumPy, as in evaluation."""
  rng = np.random.default_rng(0)
  height, width, number = 60, 97, 24
  probabilities = np.float32(np.clip(rng.normal(0.5, 0.3, (number, 28, 28)), 0, 1))
  sides = np.exp(rng.uniform(np.log(2), np.log(120), (number, 2)))
  centres = rng.uniform(-0.1, 1.1, (number, 2)) * [height, width]
  boxes = np.float32(np.concatenate([centres - sides / 2, centres + sides / 2], 1))
  expected = np.stack([references.paste(mask, np.float64(box), height, width)
                       for mask, box in zip(probabilities, boxes, strict=True)])
  with tf.device(device):
    pixels = paste.paste_pixels(tf.constant(probabilities), tf.constant(boxes), tf.constant(height), tf.constant(width))
  note = f'pixels that differ, of {expected.size}'
  yield compared('mask paste', device, float((pixels.numpy() != expected).sum()), 0, note)
  if 'CPU' in device:
    encoded = coco_mask.decode(masks.paste(probabilities, boxes, height, width)).transpose(2, 0, 1)
    yield compared('mask paste NumPy', device, float((encoded != expected).sum()), 0, note)


def batch_norm(device: str) -> Iterator[Row]:
  """Check SyncBN of a single replica: outputs, gradients and moving statistics."""
  x, dy, gamma, beta = _batch(images=4, height=25, width=42)
  with tf.device(device):
    layer = _batch_norm_layer(gamma, beta)
    x32 = tf.constant(x, tf.float32)
    with tf.GradientTape() as tape:
      tape.watch(x32)
      y = layer(x32, training=True)
    gradients = tape.gradient(y, [x32, layer.gamma, layer.beta], tf.constant(dy, tf.float32))
  yield from _compared_batch_norm('BatchNorm', device, (x, gamma, beta, dy), (y, *gradients),
                                  (layer.moving_mean, layer.moving_variance))


def sync_batch_norm(strategy: tf.distribute.Strategy, device: str) -> Iterator[Row]:
  """Check that outputs, gradients and moving statistics of SyncBN over two replicas are those of one batch."""
  x, dy, gamma, beta = _batch(images=6, height=6, width=5)
  x[3:] += 5.0  # each replica's own statistics would be others
  with strategy.scope():
    layer = _batch_norm_layer(gamma, beta)

  def step(x: tf.Tensor, dy: tf.Tensor) -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = layer(x, training=True)
    return [y, *tape.gradient(y, [x, layer.gamma, layer.beta], dy)]

  results = on_replicas(strategy, step, *(np.float32(each).reshape(2, 3, *x.shape[1:]) for each in (x, dy)))
  y, dx, dgamma, dbeta = ([result.numpy() for result in each] for each in results)
  moving = (strategy.experimental_local_results(v)[0] for v in (layer.moving_mean, layer.moving_variance))
  yield from _compared_batch_norm('SyncBN', device, (x, gamma, beta, dy), (
    np.concatenate(y), np.concatenate(dx), np.sum(dgamma, 0), np.sum(dbeta, 0)), moving)


def _batch(images: int, height: int, width: int, channels: int = 32) -> tuple[np.ndarray, ...]:
  """Return random x and dy [N, H, W, C], gamma and beta [C]."""
  rng = np.random.default_rng(0)
  shape = images, height, width, channels
  return (rng.normal(3.0, 2.0, shape), rng.normal(size=shape), rng.uniform(0.5, 1.5, channels),
          rng.normal(size=channels))


def _batch_norm_layer(gamma: np.ndarray, beta: np.ndarray) -> norms.SyncBatchNorm:
  layer = norms.sync_batch_norm('norm')
  layer.build(tf.TensorShape([None, None, None, len(gamma)]))
  for variable, value in ((layer.gamma, gamma), (layer.beta, beta)):
    variable.assign(np.float32(value))
  return layer


def _compared_batch_norm(name: str, device: str, inputs: Sequence[np.ndarray], ours: Sequence[Any],
                         moving: Iterable[Any]) -> Iterator[Row]:
  """Compare with float64 NumPy. inputs: x, gamma, beta, dy; ours: y and the gradients; moving: mean and variance."""
  x = inputs[0]
  expected = references.batch_norm(*inputs, norms.EPSILON)
  statistics = 0.1 * x.mean((0, 1, 2)), 0.9 + 0.1 * x.var((0, 1, 2), ddof=1)
  yield compared(f'{name} forward', device, difference(ours[0], expected[0]), 1e-5)
  yield compared(f'{name} backward', device, max(map(difference, ours[1:], expected[1:])), 3e-5)
  yield compared(f'{name} statistics', device, max(map(difference, moving, statistics)), 1e-5)


def on_replicas(strategy: tf.distribute.Strategy, function: Callable[..., Sequence[tf.Tensor]],
                *arrays: np.ndarray) -> list[tuple[tf.Tensor, ...]]:
  """Run a function on each replica with its row of the arrays; return the results, each a tuple over the replicas."""
  rows = [strategy.experimental_distribute_values_from_function(
    lambda context, array=array: tf.constant(array[context.replica_id_in_sync_group])) for array in arrays]
  results = tf.function(lambda *a: strategy.run(function, a), autograph=False)(*rows)
  return [strategy.experimental_local_results(result) for result in results]


KERNELS = {'group_norm': group_norm, 'batch_norm': batch_norm, 'roi_align': roi_alignment, 'nms': suppression,
           'matching': box_matching, 'paste': pasting}
