"""Anchors, sampling, proposals, RoI pooling and detections: everything between the heads, without variables.

Each class holds its settings (defaults are the paper's) and is called on tensors. Box arithmetic is float32 under every
precision policy.
"""

from __future__ import annotations

from collections.abc import Sequence

import gin
import tensorflow as tf

from rethink_tf.errors import UserError, check_at_least, check_fractions, check_positive
from rethink_tf.ops import anchors as anchor_ops
from rethink_tf.ops import boxes as box_ops
from rethink_tf.ops import matching, nms, portable
from rethink_tf.ops.roi_align import Pyramid, roi_align
from rethink_tf.structures import Batch, Detections, Proposals, RoISamples, RPNOutputs

ANCHOR_STREAM, ROI_STREAM = 1, 2  # random streams of the seed of an image


@gin.register
class Anchors:
  """Anchors of one size per pyramid level and of several `ratios` (height / width) per cell (FPN, section 4.1).

  A level may also have several sizes, the same number at each: ((32, 48), (64, 96), …), as Detectron2's SIZES.
  A single level has all sizes, hence len(sizes) * len(ratios) anchors per cell (Faster R-CNN, section 3.1.1).
  offset: centre of the first cell in strides; 0.5, or 0.0 for weights trained with Detectron2.
  """

  def __init__(self, sizes: Sequence[float] | Sequence[Sequence[float]] = (32, 64, 128, 256, 512),
               ratios: Sequence[float] = (0.5, 1.0, 2.0), offset: float = 0.5):
    check_positive('Anchors', sizes=sizes, ratios=ratios)
    check_fractions('Anchors', offset=offset)
    self.sizes = tuple(tuple(size) if isinstance(size, tuple | list) else size for size in sizes)
    self.ratios, self.offset = tuple(ratios), offset

  def __call__(self, features: dict[str, tf.Tensor]) -> list[tf.Tensor]:
    """Return [H * W * anchors per cell, 4] per level, for feature maps {'P2': [B, H, W, C], …} of stride 2^level.

    Raises:
      UserError: there is not one size, or one tuple of as many sizes as at the others, for each level.
    """
    levels = sorted(features)
    sizes = self.of_levels(len(levels))
    if len(sizes) != len(levels):
      raise UserError(f'Anchors.sizes has {len(sizes)} sizes for the {len(levels)} levels {", ".join(levels)}: give '
                      'one per level')
    if len(set(map(len, sizes))) > 1:
      raise UserError(f'Anchors.sizes = {self.sizes} has {", ".join(str(len(own)) for own in sizes)} sizes at its '
                      'levels, which share one head: give each level as many')
    return [self._of_level(features[level], 2**int(level[1:]), own) for level, own in zip(levels, sizes, strict=True)]

  def of_levels(self, levels: int) -> list[tuple[float, ...]]:
    """Return the sizes of each level, given the number of pyramid levels."""
    own = [size if isinstance(size, tuple) else (size,) for size in self.sizes]
    return [sum(own, ())] if levels == 1 else own

  def per_cell(self, levels: int) -> int:
    """Return the number of anchors per cell, given the number of pyramid levels."""
    return len(self.ratios) * len(self.of_levels(levels)[0])

  def _of_level(self, feature: tf.Tensor, stride: int, sizes: Sequence[float]) -> tf.Tensor:
    grids = [anchor_ops.grid_anchors(*_height_width(feature), stride, size, self.ratios, self.offset) for size in sizes]
    cells = [tf.reshape(grid, [-1, len(self.ratios), 4]) for grid in grids]
    return tf.reshape(tf.concat(cells, 1), [-1, 4])  # row by row, all sizes of a cell together


@gin.register
class AnchorSampler:
  """Anchors that train the RPN: 256 per image, at most half of them positive (Faster R-CNN, section 3.1.3)."""

  def __init__(self, batch_size: int = 256, positive_fraction: float = 0.5, positive_iou: float = 0.7,
               negative_iou: float = 0.3, drop_straddling: bool = True):
    _check_sampling('AnchorSampler', batch_size, positive_fraction)
    check_fractions('AnchorSampler', positive_iou=positive_iou, negative_iou=negative_iou)
    if negative_iou > positive_iou:
      raise UserError(f'AnchorSampler.negative_iou = {negative_iou}: use at most positive_iou, {positive_iou}')
    self.batch_size, self.positive_fraction = batch_size, positive_fraction
    self.positive_iou, self.negative_iou = positive_iou, negative_iou
    self.drop_straddling = drop_straddling  # anchors that cross the image border; Detectron2 keeps them

  def __call__(self, rpn: RPNOutputs, image_sizes: tf.Tensor, labels: Batch) -> RPNOutputs:
    """Return `rpn` with sampled, labels, weights [B, S] and target_deltas [B, S, 4]."""
    gt_valid = labels.gt_classes > 0
    usable = tf.ones(tf.shape(rpn.logits), tf.bool)
    if self.drop_straddling:
      usable = anchor_ops.inside_image(rpn.anchors, image_sizes)
    overlaps = box_ops.iou(rpn.anchors[None], labels.gt_boxes)  # [B, A, G]
    anchor_labels, matched = matching.match_anchors(overlaps, gt_valid, usable, self.positive_iou, self.negative_iou)
    sampled, used = matching.sample(anchor_labels, labels.seeds, ANCHOR_STREAM, self.batch_size,
                                    int(self.batch_size * self.positive_fraction))
    gt_index = tf.gather(matched, sampled, batch_dims=1)
    targets = box_ops.encode(tf.gather(labels.gt_boxes, gt_index, batch_dims=1), tf.gather(rpn.anchors, sampled))
    positive = used & (tf.gather(anchor_labels, sampled, batch_dims=1) == 1)
    return rpn._replace(sampled=sampled, labels=tf.cast(positive, tf.float32), weights=tf.cast(used, tf.float32),
                        target_deltas=tf.where(positive[..., None], targets, 0.0))


@gin.register
class ProposalGenerator:
  """Top-scoring boxes: per level before non-maximum suppression, of all levels after it (FPN, section 4.1)."""

  def __init__(self, pre_nms_train: int = 2000, pre_nms_test: int = 1000, post_nms_train: int = 1000,
               post_nms_test: int = 1000, nms_iou: float = 0.7):
    check_at_least('ProposalGenerator', 1, pre_nms_train=pre_nms_train, pre_nms_test=pre_nms_test,
                   post_nms_train=post_nms_train, post_nms_test=post_nms_test)
    check_fractions('ProposalGenerator', nms_iou=nms_iou)
    # Departure: Detectron keeps the best 2000 of all images on a device; here 1000 per image, so that results do not
    # depend on the number of images per device (facebookresearch/Detectron issue 459).
    self.pre_nms = {True: pre_nms_train, False: pre_nms_test}
    self.post_nms = {True: post_nms_train, False: post_nms_test}
    self.nms_iou = nms_iou

  def __call__(self, logits: Sequence[tf.Tensor], deltas: Sequence[tf.Tensor], anchors: Sequence[tf.Tensor],
               image_sizes: tf.Tensor, training: bool, form: nms.Form | None = None) -> Proposals:
    """Return the proposals of all levels; boxes are clipped to the image, empty ones removed.

    logits [B, A_l], deltas [B, A_l, 4], anchors [A_l, 4]: one tensor per level.
    form: of the suppression (ops/nms.py); None is that of the device.
    """
    limit = self.pre_nms[bool(training)]
    boxes, scores, valid = [], [], []
    for level_logits, level_deltas, level_anchors in zip(logits, deltas, anchors, strict=True):
      shortage = tf.maximum(limit - tf.shape(level_logits)[1], 0)  # small levels hold fewer anchors than `limit`
      padded = tf.pad(tf.stop_gradient(level_logits), [[0, 0], [0, shortage]], constant_values=float('-inf'))
      top = tf.math.top_k(padded, limit)
      exists = top.indices < tf.shape(level_logits)[1]
      index = tf.where(exists, top.indices, 0)
      level_boxes = box_ops.decode(tf.gather(tf.stop_gradient(level_deltas), index, batch_dims=1),
                                   tf.gather(level_anchors, index))
      level_boxes = box_ops.clip(level_boxes, image_sizes)
      boxes.append(level_boxes)
      scores.append(tf.where(exists, top.values, 0.0))
      valid.append(exists & (box_ops.area(level_boxes) > 0.0) & tf.math.is_finite(top.values))
    boxes, scores, valid = (tf.stack(x, axis=2) for x in (boxes, scores, valid))  # [B, limit, levels(, 4)]
    number = self.post_nms[bool(training)]
    kept_boxes, kept_scores, _, kept = nms.grouped_nms(boxes, scores, valid, self.nms_iou, number, number, form)
    return Proposals(kept_boxes, kept_scores, kept)


@gin.register
class RoISampler:
  """RoIs that train the heads: 512 per image, at most a quarter of them foreground (Mask R-CNN, section 3.1)."""

  def __init__(self, batch_size: int = 512, positive_fraction: float = 0.25, foreground_iou: float = 0.5,
               box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)):
    _check_sampling('RoISampler', batch_size, positive_fraction)
    check_fractions('RoISampler', foreground_iou=foreground_iou)
    check_positive('RoISampler', box_weights=box_weights)
    self.batch_size, self.positive_fraction = batch_size, positive_fraction
    self.foreground_iou, self.box_weights = foreground_iou, tuple(box_weights)

  @property
  def max_foreground(self) -> int:
    """Largest number of foreground RoIs of an image."""
    return int(self.batch_size * self.positive_fraction)

  def __call__(self, proposals: Proposals, labels: Batch) -> RoISamples:
    """Sample from proposals and ground truth together; foreground comes first."""
    gt_valid = labels.gt_classes > 0
    boxes = tf.stop_gradient(tf.concat([proposals.boxes, labels.gt_boxes], axis=1))  # [B, N + G, 4]
    valid = tf.concat([proposals.valid, gt_valid], axis=1)
    roi_labels, matched = matching.match_proposals(box_ops.iou(boxes, labels.gt_boxes), gt_valid, valid,
                                                   self.foreground_iou)
    size = min(self.batch_size, boxes.shape[1])  # slots; the share of the foreground is that of the whole batch
    sampled, used = matching.sample(roi_labels, labels.seeds, ROI_STREAM, size, self.max_foreground)
    return gather_samples(boxes, roi_labels, matched, sampled, used, labels, self.box_weights)


def gather_samples(boxes: tf.Tensor, roi_labels: tf.Tensor, matched: tf.Tensor, sampled: tf.Tensor, used: tf.Tensor,
                   labels: Batch, box_weights: Sequence[float]) -> RoISamples:
  """Return the samples of labelled boxes, with their targets.

  boxes: [B, N, 4]; roi_labels, matched: [B, N], of matching.match_proposals.
  sampled, used: [B, R], indices of the samples among the boxes, and whether a slot is in use.
  """
  rois = tf.where(used[..., None], tf.gather(boxes, sampled, batch_dims=1), 0.0)
  foreground = used & (tf.gather(roi_labels, sampled, batch_dims=1) == 1)
  gt_index = tf.where(foreground, tf.gather(matched, sampled, batch_dims=1), 0)
  classes = tf.where(foreground, tf.gather(labels.gt_classes, gt_index, batch_dims=1), 0)
  targets = box_ops.encode(tf.gather(labels.gt_boxes, gt_index, batch_dims=1), rois, box_weights)
  return RoISamples(rois, classes, gt_index, tf.cast(used, tf.float32), tf.where(foreground[..., None], targets, 0.0))


@gin.register
class RoIPooler:
  """RoIAlign on P2..P5, or on a single level (Mask R-CNN, section 3).

  aligned: False is the paper's grid (Detectron); set True for weights of Detectron2's models.
  sampling_ratio: samples of a bin along each axis; 0 is adaptive (Detectron2's default), which XLA cannot compile.
  """

  def __init__(self, size: int, sampling_ratio: int = 2, aligned: bool = False):
    if sampling_ratio < 0:
      raise UserError(f'RoIPooler.sampling_ratio = {sampling_ratio}: use 1 or more, or 0 (adaptive)')
    self.size, self.sampling_ratio, self.aligned = size, sampling_ratio, aligned

  def __call__(self, pyramid: Pyramid, boxes: tf.Tensor, xla: bool) -> tf.Tensor:
    """Return [B, R, size, size, C] for boxes [B, R, 4]; pyramid: levels P2..P5, or a single one, flattened."""
    # Without a graph the trainer makes its variables, with portable operations where there are some.
    taps = portable.chosen() and (self.sampling_ratio > 0 or not tf.executing_eagerly())
    with tf.name_scope('roi_align'):
      return roi_align(pyramid, boxes, self.size, self.sampling_ratio, self.aligned,
                       'gather' if xla else 'taps' if taps else 'csr')


@gin.register
class DetectionGenerator:
  """Final boxes: score > 0.05, non-maximum suppression per class, the best 100 of an image (Mask R-CNN, 3.1)."""

  def __init__(self, score_threshold: float = 0.05, nms_iou: float = 0.5, max_detections: int = 100):
    check_fractions('DetectionGenerator', score_threshold=score_threshold, nms_iou=nms_iou)
    check_at_least('DetectionGenerator', 1, max_detections=max_detections)
    self.score_threshold, self.nms_iou, self.max_detections = score_threshold, nms_iou, max_detections

  def select(self, boxes: tf.Tensor, scores: tf.Tensor, valid: tf.Tensor,
             form: nms.Form | None = None) -> Detections:
    """Suppress boxes [B, N, K or 1, 4] with class probabilities [B, N, K]; valid: bool [B, N]; form: see ops/nms.py."""
    valid = (scores > self.score_threshold) & valid[..., None]
    boxes, scores, classes, kept = nms.grouped_nms(boxes, scores, valid, self.nms_iou, self.max_detections,
                                                   self.max_detections, form)
    return Detections(boxes, scores, tf.where(kept, classes + 1, 0))


def _check_sampling(sampler: str, batch_size: int, positive_fraction: float) -> None:
  check_at_least(sampler, 1, batch_size=batch_size)
  check_fractions(sampler, positive_fraction=positive_fraction)
  if int(batch_size * positive_fraction) < 1:
    raise UserError(f'{sampler}.positive_fraction = {positive_fraction}: none of {sampler}.batch_size = {batch_size} '
                    'would be an object; use larger ones')


def _height_width(feature: tf.Tensor) -> tuple[int | tf.Tensor, ...]:
  shape = tf.shape(feature)
  return tuple(static if static is not None else shape[i + 1] for i, static in enumerate(feature.shape[1:3]))
