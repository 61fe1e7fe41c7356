"""Losses of detection and classification: pure functions of the network's outputs, with Detectron's normalisers.

Every loss is a mean over this replica, as in Detectron; the trainer divides by the number of replicas and adds.
"""

from __future__ import annotations

from collections.abc import Sequence

import gin
import tensorflow as tf

from rethink_tf.errors import UserError, check_at_least, check_positive
from rethink_tf.structures import (
  Batch,
  BoxOutputs,
  ClassifierOutputs,
  KeypointOutputs,
  LabelledImages,
  MaskOutputs,
  Outputs,
  RPNOutputs,
)


@gin.register
class MaskRCNNLoss:
  """loss(outputs, batch) -> {'rpn/objectness', 'rpn/box', 'box/class', 'box/regression', …}: float32 scalars.

  'mask' and 'keypoint' are present with those heads. A cascade's box losses end in '/stage1', '/stage2', ….

  rpn_smooth_l1_beta, box_smooth_l1_beta: width of the quadratic region; 0 is plain L1 (Detectron2).
  rpn_box_divisor: 'sampled' divides an image's RPN box loss by the number of sampled anchors (Detectron), 'batch_size'
  by the 256 requested ones (Detectron2); they are equal unless an image has fewer usable anchors.
  stage_weights: weights of the box losses of a cascade's stages; None: all 1 (Cascade.gradient_scales acts on the
  features alone).
  keypoint_weight, keypoint_divisor: the keypoint loss is divided by the visible keypoints (None), or by a fixed number
  per image (Detectron: weight 4 and 128 RoIs x 17 keypoints = 2176). min_keypoints: with fewer visible ones it is zero.
  """

  def __init__(self, rpn_smooth_l1_beta: float = 1 / 9, box_smooth_l1_beta: float = 1.0,
               rpn_box_divisor: str = 'sampled', stage_weights: Sequence[float] | None = None,
               keypoint_weight: float = 1.0, keypoint_divisor: float | None = None, min_keypoints: int = 21):
    if rpn_box_divisor not in ('sampled', 'batch_size'):
      raise UserError(f"MaskRCNNLoss.rpn_box_divisor = {rpn_box_divisor!r}: use 'sampled' or 'batch_size'")
    check_at_least('MaskRCNNLoss', 0, rpn_smooth_l1_beta=rpn_smooth_l1_beta, box_smooth_l1_beta=box_smooth_l1_beta,
                   stage_weights=stage_weights, keypoint_weight=keypoint_weight, min_keypoints=min_keypoints)
    check_positive('MaskRCNNLoss', keypoint_divisor=keypoint_divisor)
    self.rpn_beta, self.box_beta, self.rpn_box_divisor = rpn_smooth_l1_beta, box_smooth_l1_beta, rpn_box_divisor
    self.stage_weights = stage_weights if stage_weights is None else tuple(stage_weights)
    self.keypoint_weight, self.keypoint_divisor = keypoint_weight, keypoint_divisor
    # Departure: Detectron skips a batch with 20 visible keypoints or fewer; here its other losses train.
    self.min_keypoints = min_keypoints

  def __call__(self, outputs: Outputs, batch: Batch) -> dict[str, tf.Tensor]:
    del batch  # ground truth is matched in the model's graph
    losses = rpn_losses(outputs.rpn, self.rpn_beta, self.rpn_box_divisor)
    for stage, boxes in enumerate(outputs.boxes):
      suffix = f'/stage{stage + 1}' if len(outputs.boxes) > 1 else ''
      weight = 1.0 if self.stage_weights is None else self.stage_weights[stage]
      classes, regression = box_losses(boxes, self.box_beta)
      losses['box/class' + suffix], losses['box/regression' + suffix] = weight * classes, weight * regression
    if outputs.masks is not None:
      losses['mask'] = mask_loss(outputs.masks)
    if outputs.keypoints is not None:
      losses['keypoint'] = self.keypoint_weight * keypoint_loss(outputs.keypoints, self.keypoint_divisor,
                                                                self.min_keypoints)
    return losses


@gin.register
class ClassificationLoss:
  """loss(outputs, batch) -> {'class': float32 scalar}: softmax cross-entropy, mean over the labelled images.

  The target is 1/k on each of an image's k labels (Mahajan et al. 2018, section 2.2).
  label_smoothing: e changes each target t to (1 - e) t + e / L (Szegedy et al. 2016, section 7); off in Goyal et al.
  """

  def __init__(self, label_smoothing: float = 0.0):
    if not 0 <= label_smoothing < 1:
      raise UserError(f'ClassificationLoss.label_smoothing = {label_smoothing}: use 0 (off) or more, below 1')
    self.label_smoothing = label_smoothing

  def __call__(self, outputs: ClassifierOutputs, batch: LabelledImages) -> dict[str, tf.Tensor]:
    return {'class': classification_loss(outputs.logits, batch.classes, self.label_smoothing)}


def classification_loss(logits: tf.Tensor, classes: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
  """Softmax cross-entropy of logits [B, L] with targets 1/k on the k labels in classes [B, T] (-1 = empty slot).

  Computed without a [B, L] table of targets: the labels' terms are gathered, the smoothing is a mean over all classes.
  """
  log_probabilities = tf.nn.log_softmax(tf.cast(logits, tf.float32))
  used = tf.cast(classes >= 0, tf.float32)  # [B, T]
  number = tf.reduce_sum(used, axis=1)  # [B] labels of each image
  own = tf.gather(log_probabilities, tf.maximum(classes, 0), batch_dims=1) * used
  entropy = -tf.reduce_sum(own, axis=1) / tf.maximum(number, 1.0)
  if label_smoothing:
    uniform = -tf.reduce_mean(log_probabilities, axis=1)
    entropy = (1 - label_smoothing) * entropy + label_smoothing * uniform
  labelled = tf.cast(number > 0, tf.float32)
  return tf.reduce_sum(entropy * labelled) / tf.maximum(tf.reduce_sum(labelled), 1.0)


def rpn_losses(rpn: RPNOutputs, beta: float, box_divisor: str = 'sampled') -> dict[str, tf.Tensor]:
  """Binary cross-entropy and smooth L1 at the sampled anchors, mean over images (Faster R-CNN, equation 1)."""
  logits = tf.gather(rpn.logits, rpn.sampled, batch_dims=1)  # [B, S]
  deltas = tf.gather(rpn.deltas, rpn.sampled, batch_dims=1)  # [B, S, 4]
  entropy = tf.nn.sigmoid_cross_entropy_with_logits(rpn.labels, logits) * rpn.weights
  regression = tf.reduce_sum(smooth_l1(deltas - rpn.target_deltas, beta), axis=-1) * rpn.labels
  batch_size = float(rpn.sampled.shape[1])  # slots, in use or not
  number = tf.maximum(tf.reduce_sum(rpn.weights, axis=1), 1.0) if box_divisor == 'sampled' else batch_size
  return {
    'rpn/objectness': tf.reduce_mean(tf.reduce_sum(entropy, axis=1)) / batch_size,
    'rpn/box': tf.reduce_mean(tf.reduce_sum(regression, axis=1) / number),
  }


def box_losses(boxes: BoxOutputs, beta: float) -> tuple[tf.Tensor, tf.Tensor]:
  """Softmax cross-entropy, and smooth L1 of the foreground; both divided by *all* sampled RoIs (Fast R-CNN, 2.3)."""
  rois = boxes.rois
  number = tf.maximum(tf.reduce_sum(rois.weights), 1.0)
  entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(rois.classes, boxes.class_logits) * rois.weights
  slot = tf.maximum(rois.classes - 1, 0) if boxes.box_deltas.shape[2] > 1 else tf.zeros_like(rois.classes)
  deltas = tf.gather(boxes.box_deltas, slot, batch_dims=2)  # [B, R, 4]
  foreground = tf.cast(rois.classes > 0, tf.float32)
  regression = tf.reduce_sum(smooth_l1(deltas - rois.target_deltas, beta), axis=-1) * foreground
  return tf.reduce_sum(entropy) / number, tf.reduce_sum(regression) / number


def mask_loss(masks: MaskOutputs) -> tf.Tensor:
  """Binary cross-entropy, mean over the foreground RoIs' 28x28 cells, own class only (Mask R-CNN, section 3)."""
  entropy = tf.nn.sigmoid_cross_entropy_with_logits(masks.targets, masks.logits)  # [B, M, 28, 28]
  number = tf.maximum(tf.reduce_sum(masks.weights), 1.0)  # without foreground the loss and its gradients are zero
  return tf.reduce_sum(tf.reduce_mean(entropy, axis=[2, 3]) * masks.weights) / number


def keypoint_loss(keypoints: KeypointOutputs, divisor: float | None = None, min_keypoints: int = 21) -> tf.Tensor:
  """Softmax cross-entropy over the positions of a heat map, mean over visible keypoints (Mask R-CNN, section 5)."""
  positions = keypoints.logits.shape[3] * keypoints.logits.shape[4]
  shape = tf.concat([tf.shape(keypoints.targets), [positions]], 0)
  logits = tf.reshape(keypoints.logits, shape)  # [B, M, P, 56 * 56]
  entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(keypoints.targets, logits) * keypoints.weights
  visible = tf.reduce_sum(keypoints.weights)
  images = tf.cast(tf.shape(logits)[0], tf.float32)
  number = tf.maximum(visible, 1.0) if divisor is None else divisor * images
  return tf.where(visible >= min_keypoints, tf.reduce_sum(entropy) / number, 0.0)


def smooth_l1(difference: tf.Tensor, beta: float) -> tf.Tensor:
  """Quadratic within `beta`, linear outside; plain L1 at beta 0 (Fast R-CNN, equation 3)."""
  magnitude = tf.abs(difference)
  if beta == 0:
    return magnitude
  return tf.where(magnitude < beta, 0.5 / beta * tf.square(difference), magnitude - 0.5 * beta)
