"""Losses of Mask R-CNN: pure functions of what the detector computed, with Detectron's normalisers.

Every loss is the mean of this replica, as in Detectron; the trainer divides by the number of replicas and adds.
"""

from __future__ import annotations

import gin
import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.structures import Batch, BoxOutputs, MaskOutputs, Outputs, RPNOutputs


@gin.register
class MaskRCNNLoss:
  """loss(outputs, batch) -> {'rpn/objectness', 'rpn/box', 'box/class', 'box/regression', 'mask'}: float32 scalars.

  rpn_smooth_l1_beta, box_smooth_l1_beta: width of the quadratic part; 0 is plain L1 (Detectron2).
  rpn_box_divisor: 'sampled' divides an image's RPN box loss by the anchors really drawn (Detectron), 'batch_size' by
  the 256 asked for (Detectron2); the same number unless an image has fewer usable anchors.
  """

  def __init__(self, rpn_smooth_l1_beta: float = 1 / 9, box_smooth_l1_beta: float = 1.0,
               rpn_box_divisor: str = 'sampled'):
    if rpn_box_divisor not in ('sampled', 'batch_size'):
      raise UserError(f"MaskRCNNLoss.rpn_box_divisor = {rpn_box_divisor!r}: use 'sampled' or 'batch_size'")
    self.rpn_beta, self.box_beta, self.rpn_box_divisor = rpn_smooth_l1_beta, box_smooth_l1_beta, rpn_box_divisor

  def __call__(self, outputs: Outputs, batch: Batch) -> dict[str, tf.Tensor]:
    del batch  # everything a loss needs was matched inside the model's graph
    losses = rpn_losses(outputs.rpn, self.rpn_beta, self.rpn_box_divisor)
    for stage, boxes in enumerate(outputs.boxes):
      suffix = f'/stage{stage + 1}' if len(outputs.boxes) > 1 else ''
      losses['box/class' + suffix], losses['box/regression' + suffix] = box_losses(boxes, self.box_beta)
    if outputs.masks is not None:
      losses['mask'] = mask_loss(outputs.masks)
    return losses


def rpn_losses(rpn: RPNOutputs, beta: float, box_divisor: str = 'sampled') -> dict[str, tf.Tensor]:
  """Binary cross-entropy and smooth L1 at the sampled anchors, means over images (Faster R-CNN, equation 1)."""
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
  number = tf.maximum(tf.reduce_sum(masks.weights), 1.0)  # without foreground the loss, and every gradient, is zero
  return tf.reduce_sum(tf.reduce_mean(entropy, axis=[2, 3]) * masks.weights) / number


def smooth_l1(difference: tf.Tensor, beta: float) -> tf.Tensor:
  """Quadratic within `beta`, linear outside; plain L1 at beta 0 (Fast R-CNN, equation 3)."""
  magnitude = tf.abs(difference)
  if beta == 0:
    return magnitude
  return tf.where(magnitude < beta, 0.5 / beta * tf.square(difference), magnitude - 0.5 * beta)
