"""Cascade R-CNN (Cai and Vasconcelos 2018, section 4): a sequence of box heads, each refining the boxes of the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError, check_at_least, check_fractions, check_positive
from rethink_tf.models.heads import BoxHead, BoxPredictor
from rethink_tf.models.rois import gather_samples
from rethink_tf.ops import boxes as box_ops
from rethink_tf.ops import matching
from rethink_tf.structures import Batch, BoxOutputs, Proposals, RoISamples

SCORE_ROIS = ('own', 'last')
MASK_STAGES = ('last', 'first')

Pool = Callable[[tf.Tensor], tf.Tensor]  # boxes [B, R, 4] -> RoI features [B, R, 7, 7, C]
Stage = tuple[tf_keras.layers.Layer, tf_keras.layers.Layer]  # box head, box predictor


@gin.register
class Cascade(tf_keras.layers.Layer):
  """Stages after the first, which is MaskRCNN's box head with the RoISampler's IoU 0.5 and weights (10, 10, 5, 5).

  All stages regress class-agnostic boxes. All boxes refined by a stage are relabelled for the next, without sampling.

  head: constructor of a stage's box head, called once per stage.
  ious, box_weights: foreground IoU and box weights of stages 2, 3, …; () and () give the plain detector.
  gradient_scales: factor of each stage's gradient (the first included) into the shared features; the heads themselves
    learn at the full rate (Detectron's fork). (1/3, 1/3, 1/3) is Detectron2's. To weight the losses, set
    MaskRCNNLoss.stage_weights.
  append_ground_truth: True adds the ground truth to the RoIs of every stage (Detectron's fork).
  score_rois: scores are means over the stages' classifiers, each on the RoIs of its 'own' stage (Detectron2), or all
    on those of the 'last' (Detectron's fork, the paper).
  mask_stage: the stage whose samples train the mask and keypoint heads: 'last' (section 5.1 of Rethinking) or 'first'
    (Detectron2). At test time they use the final boxes.
  """

  def __init__(self, num_classes: int, head: Callable[..., BoxHead] = BoxHead, ious: Sequence[float] = (0.6, 0.7),
               box_weights: Sequence[tuple[float, float, float, float]] = ((20.0, 20.0, 10.0, 10.0),
                                                                           (30.0, 30.0, 15.0, 15.0)),
               gradient_scales: Sequence[float] = (1.0, 0.5, 0.25), append_ground_truth: bool = False,
               score_rois: str = 'own', mask_stage: str = 'last', name: str = 'cascade'):
    super().__init__(name=name, autocast=False)
    if not len(ious) == len(box_weights) == len(gradient_scales) - 1:
      raise UserError(f'Cascade: {len(ious)} ious, {len(box_weights)} box_weights and {len(gradient_scales)} '
                      'gradient_scales: give n, n and n + 1 for n stages after the first')
    check_fractions('Cascade', ious=ious)
    check_at_least('Cascade', 0, gradient_scales=gradient_scales)
    check_positive('Cascade', box_weights=box_weights)
    if score_rois not in SCORE_ROIS:
      raise UserError(f"Cascade.score_rois = {score_rois!r}: use one of {', '.join(SCORE_ROIS)}")
    if mask_stage not in MASK_STAGES:
      raise UserError(f"Cascade.mask_stage = {mask_stage!r}: use one of {', '.join(MASK_STAGES)}")
    stages = range(2, len(ious) + 2)
    self.heads = [head(name=f'box_head{stage}') for stage in stages]
    self.predictors = [BoxPredictor(num_classes, class_agnostic=True, name=f'box_predictor{stage}')
                       for stage in stages]
    self.ious, self.box_weights = tuple(ious), tuple(tuple(weights) for weights in box_weights)
    self.gradient_scales, self.append_ground_truth = tuple(gradient_scales), append_ground_truth
    self.score_rois, self.mask_stage = score_rois, mask_stage

  def stages(self, first: Stage) -> list[Stage]:
    """Return all stages, given the first one."""
    return [first, *zip(self.heads, self.predictors, strict=True)]

  def learn(self, first: Stage, first_weights: Sequence[float], pool: Pool, rois: RoISamples, image_sizes: tf.Tensor,
            labels: Batch) -> tuple[BoxOutputs, ...]:
    """Training: return the outputs of all stages, each on its own RoIs. first_weights: box weights of stage 1."""
    weights = [tuple(first_weights), *self.box_weights]
    outputs = []
    for stage, (head, predictor) in enumerate(self.stages(first)):
      if stage:
        rois = self.next_samples(outputs[-1], weights[stage - 1], stage, image_sizes, labels)
      pooled = scale_gradient(pool(rois.boxes), self.gradient_scales[stage])
      outputs.append(BoxOutputs(*predictor(head(pooled, rois.weights)), rois))
    return tuple(outputs)

  def next_samples(self, outputs: BoxOutputs, box_weights: Sequence[float], stage: int, image_sizes: tf.Tensor,
                   labels: Batch) -> RoISamples:
    """Return the boxes refined by the previous stage, labelled at this stage's IoU; foreground first, unused last.

    Departure: Detectron's fork does not clip them to the image; Detectron2 does.
    """
    rois = outputs.rois
    boxes, used = refine(outputs, rois.boxes, box_weights, image_sizes), rois.weights > 0
    used &= box_ops.area(boxes) > 0
    gt_valid, size = labels.gt_classes > 0, rois.boxes.shape[1]
    if self.append_ground_truth:
      same = tf.reduce_all(rois.boxes[:, :, None, :] == labels.gt_boxes[:, None, :, :], axis=-1)  # [B, R, G]
      used &= ~tf.reduce_any(same & gt_valid[:, None, :], axis=-1)
      boxes, used = tf.concat([boxes, labels.gt_boxes], 1), tf.concat([used, gt_valid], 1)
      size += labels.gt_boxes.shape[1] if stage == 1 else 0  # the ground truth appended before is unused now
    roi_labels, matched = matching.match_proposals(box_ops.iou(boxes, labels.gt_boxes), gt_valid, used,
                                                   self.ious[stage - 1])
    order = tf.math.top_k(tf.cast(roi_labels, tf.float32), size)  # 1, 0, -1; ties keep their order
    return gather_samples(boxes, roi_labels, matched, order.indices, order.values >= 0, labels,
                          self.box_weights[stage - 1])

  def score(self, first: Stage, first_weights: Sequence[float], pool: Pool, proposals: Proposals,
            image_sizes: tf.Tensor) -> tuple[tuple[BoxOutputs, ...], tf.Tensor, tf.Tensor]:
    """Inference: return the outputs of all stages at the scored RoIs, the final boxes [B, N, 1, 4] and mean scores."""
    weights = [tuple(first_weights), *self.box_weights]
    stages, outputs, boxes = self.stages(first), [], proposals.boxes
    for stage, (head, predictor) in enumerate(stages):
      if stage:
        boxes = refine(outputs[-1], boxes, weights[stage - 1], image_sizes)
      pooled = pool(boxes)
      outputs.append(BoxOutputs(*predictor(head(pooled))))
    if self.score_rois == 'last':
      outputs = [*(BoxOutputs(*predictor(head(pooled))) for head, predictor in stages[:-1]), outputs[-1]]
    scores = tf.add_n([tf.nn.softmax(output.class_logits) for output in outputs])[..., 1:] / len(outputs)
    boxes = refine(outputs[-1], boxes, weights[-1], image_sizes)
    return tuple(outputs), boxes[:, :, None, :], scores


def refine(outputs: BoxOutputs, boxes: tf.Tensor, box_weights: Sequence[float], image_sizes: tf.Tensor) -> tf.Tensor:
  """Apply class-agnostic deltas [B, R, 1, 4] to boxes [B, R, 4] and clip them to the images; no gradient."""
  return box_ops.clip(box_ops.decode(tf.stop_gradient(outputs.box_deltas[:, :, 0]), boxes, box_weights), image_sizes)


def scale_gradient(x: tf.Tensor, scale: float) -> tf.Tensor:
  """Return x unchanged; its gradient is multiplied by `scale`."""
  if scale == 1:
    return x

  @tf.custom_gradient
  def scaled(x: tf.Tensor):
    def gradient(upstream: tf.Tensor) -> tf.Tensor:
      with tf.name_scope('scale_gradient'):
        return upstream * tf.cast(scale, upstream.dtype)

    return tf.identity(x), gradient

  return scaled(x)
