"""Everything between the heads: anchors, proposals, samples, pooled features, detections.

No variables here: each class holds its settings (the paper's in the signature) and is called on tensors. Box arithmetic
is float32 whatever the precision policy.
"""

from __future__ import annotations

from collections.abc import Sequence

import gin
import tensorflow as tf

from rethink_tf.ops import anchors as anchor_ops
from rethink_tf.ops import boxes as box_ops
from rethink_tf.ops import matching, nms
from rethink_tf.ops.roi_align import Pyramid, roi_align
from rethink_tf.structures import Batch, BoxOutputs, Detections, Proposals, RoISamples, RPNOutputs

ANCHOR_STREAM, ROI_STREAM = 1, 2  # random streams of an image's seed


@gin.register
class Anchors:
  """Anchors of the pyramid: one size a level, `ratios` (height / width) a cell (FPN, section 4.1).

  offset: centre of the first cell in strides; 0.5, or 0.0 for weights trained with Detectron2.
  """

  def __init__(self, sizes: Sequence[float] = (32, 64, 128, 256, 512), ratios: Sequence[float] = (0.5, 1.0, 2.0),
               offset: float = 0.5, min_level: int = 2):
    self.sizes, self.ratios, self.offset, self.min_level = sizes, ratios, offset, min_level

  def __call__(self, features: dict[str, tf.Tensor]) -> list[tf.Tensor]:
    """One [H * W * ratios, 4] a level, for maps {'P2': [B, H, W, C], …}."""
    return [
      anchor_ops.grid_anchors(*_height_width(features[f'P{level}']), 2**level, size, self.ratios, self.offset)
      for level, size in enumerate(self.sizes, self.min_level)]


@gin.register
class AnchorSampler:
  """Which anchors the RPN learns from: 256 an image, at most half positive (Faster R-CNN, section 3.1.3)."""

  def __init__(self, batch_size: int = 256, positive_fraction: float = 0.5, positive_iou: float = 0.7,
               negative_iou: float = 0.3, drop_straddling: bool = True):
    self.batch_size, self.positive_fraction = batch_size, positive_fraction
    self.positive_iou, self.negative_iou = positive_iou, negative_iou
    self.drop_straddling = drop_straddling  # anchors across the border of the photograph; Detectron2 keeps them

  def __call__(self, rpn: RPNOutputs, image_sizes: tf.Tensor, labels: Batch) -> RPNOutputs:
    """Fills sampled, labels, weights [B, S] and target_deltas [B, S, 4]."""
    gt_valid = labels.gt_classes > 0
    usable = tf.ones(tf.shape(rpn.logits), tf.bool)
    if self.drop_straddling:
      usable = anchor_ops.inside_image(rpn.anchors, image_sizes)
    overlaps = box_ops.iou(rpn.anchors[None], labels.gt_boxes)  # [B, A, G]
    anchor_labels, matched = matching.match_anchors(overlaps, gt_valid, usable, self.positive_iou, self.negative_iou)
    sampled, used = matching.sample(anchor_labels, labels.seeds, ANCHOR_STREAM, self.batch_size,
                                    self.positive_fraction)
    gt_index = tf.gather(matched, sampled, batch_dims=1)
    targets = box_ops.encode(tf.gather(labels.gt_boxes, gt_index, batch_dims=1), tf.gather(rpn.anchors, sampled))
    positive = used & (tf.gather(anchor_labels, sampled, batch_dims=1) == 1)
    return rpn._replace(sampled=sampled, labels=tf.cast(positive, tf.float32), weights=tf.cast(used, tf.float32),
                        target_deltas=tf.where(positive[..., None], targets, 0.0))


@gin.register
class ProposalGenerator:
  """The best boxes of each level before, and of all levels after suppression (FPN, section 4.1)."""

  def __init__(self, pre_nms_train: int = 2000, pre_nms_test: int = 1000, post_nms_train: int = 1000,
               post_nms_test: int = 1000, nms_iou: float = 0.7):
    # Departure: Detectron keeps the best 2000 of all images of a device; here it is 1000 an image, so that results do
    # not depend on the images per device (facebookresearch/Detectron issue 459).
    self.pre_nms = {True: pre_nms_train, False: pre_nms_test}
    self.post_nms = {True: post_nms_train, False: post_nms_test}
    self.nms_iou = nms_iou

  def __call__(self, logits: list[tf.Tensor], deltas: list[tf.Tensor], anchors: list[tf.Tensor],
               image_sizes: tf.Tensor, training: bool, xla: bool) -> Proposals:
    """Per level: logits [B, A_l], deltas [B, A_l, 4], anchors [A_l, 4]. Clipped to the images, empty boxes left out."""
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
    kept_boxes, kept_scores, _, kept = nms.grouped_nms(boxes, scores, valid, self.nms_iou, number, number, xla)
    return Proposals(kept_boxes, kept_scores, kept)


@gin.register
class RoISampler:
  """RoIs the heads learn from: 512 an image, at most a quarter foreground (Mask R-CNN, section 3.1)."""

  def __init__(self, batch_size: int = 512, positive_fraction: float = 0.25, foreground_iou: float = 0.5,
               box_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0)):
    self.batch_size, self.positive_fraction = batch_size, positive_fraction
    self.foreground_iou, self.box_weights = foreground_iou, tuple(box_weights)

  @property
  def max_foreground(self) -> int:
    return int(self.batch_size * self.positive_fraction)

  def __call__(self, proposals: Proposals, labels: Batch) -> RoISamples:
    """Proposals and ground truth are sampled together; foreground comes first."""
    gt_valid = labels.gt_classes > 0
    boxes = tf.stop_gradient(tf.concat([proposals.boxes, labels.gt_boxes], axis=1))  # [B, N + G, 4]
    valid = tf.concat([proposals.valid, gt_valid], axis=1)
    roi_labels, matched = matching.match_proposals(box_ops.iou(boxes, labels.gt_boxes), gt_valid, valid,
                                                   self.foreground_iou)
    size = min(self.batch_size, boxes.shape[1])
    sampled, used = matching.sample(roi_labels, labels.seeds, ROI_STREAM, size, self.positive_fraction)
    rois = tf.where(used[..., None], tf.gather(boxes, sampled, batch_dims=1), 0.0)
    foreground = used & (tf.gather(roi_labels, sampled, batch_dims=1) == 1)
    gt_index = tf.where(foreground, tf.gather(matched, sampled, batch_dims=1), 0)
    classes = tf.where(foreground, tf.gather(labels.gt_classes, gt_index, batch_dims=1), 0)
    targets = box_ops.encode(tf.gather(labels.gt_boxes, gt_index, batch_dims=1), rois, self.box_weights)
    return RoISamples(rois, classes, gt_index, tf.cast(used, tf.float32),
                      tf.where(foreground[..., None], targets, 0.0))


@gin.register
class RoIPooler:
  """RoIAlign from P2..P5 (Mask R-CNN, section 3).

  aligned: False is the paper's grid (Detectron); Detectron2's models use True: switch it on for their weights.
  """

  def __init__(self, size: int, sampling_ratio: int = 2, aligned: bool = False):
    self.size, self.sampling_ratio, self.aligned = size, sampling_ratio, aligned

  def __call__(self, pyramid: Pyramid, boxes: tf.Tensor, xla: bool) -> tf.Tensor:
    """[B, R, size, size, C] of boxes [B, R, 4]; pyramid: levels P2..P5, flattened."""
    return roi_align(pyramid, boxes, self.size, 2, self.sampling_ratio, self.aligned, 'gather' if xla else 'csr')


@gin.register
class DetectionGenerator:
  """Final boxes: score > 0.05, suppression within a class, the best 100 of an image (Mask R-CNN, section 3.1)."""

  def __init__(self, score_threshold: float = 0.05, nms_iou: float = 0.5, max_detections: int = 100):
    self.score_threshold, self.nms_iou, self.max_detections = score_threshold, nms_iou, max_detections

  def __call__(self, outputs: BoxOutputs, proposals: Proposals, image_sizes: tf.Tensor,
               box_weights: Sequence[float], xla: bool) -> Detections:
    """From class logits [B, N, K + 1] and deltas [B, N, K or 1, 4] at proposals [B, N, 4]."""
    scores = tf.nn.softmax(outputs.class_logits)[..., 1:]  # [B, N, K]
    boxes = box_ops.decode(outputs.box_deltas, proposals.boxes[:, :, None, :], box_weights)
    boxes = box_ops.clip(boxes, image_sizes)  # [B, N, K or 1, 4]
    valid = (scores > self.score_threshold) & proposals.valid[..., None]
    boxes, scores, classes, kept = nms.grouped_nms(boxes, scores, valid, self.nms_iou, self.max_detections,
                                                   self.max_detections, xla)
    return Detections(boxes, scores, tf.where(kept, classes + 1, 0))


def _height_width(feature):
  shape = tf.shape(feature)
  return tuple(static if static is not None else shape[i + 1] for i, static in enumerate(feature.shape[1:3]))
