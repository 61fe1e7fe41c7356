"""Mask R-CNN on a feature pyramid (He et al. 2017), end to end with its RPN."""

from __future__ import annotations

from collections.abc import Sequence

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.models.fpn import FPN
from rethink_tf.models.heads import BoxHead, BoxPredictor, MaskHead, MaskPredictor, RPNHead
from rethink_tf.models.resnet import ResNet
from rethink_tf.models.rois import (
  Anchors,
  AnchorSampler,
  DetectionGenerator,
  ProposalGenerator,
  RoIPooler,
  RoISampler,
)
from rethink_tf.ops.masks import crop_targets
from rethink_tf.ops.roi_align import Pyramid, flatten
from rethink_tf.structures import (
  Batch,
  BoxOutputs,
  Detections,
  MaskOutputs,
  Outputs,
  Proposals,
  RoISamples,
  RPNOutputs,
)

MASK_SLOT_STEP = 8  # the mask head runs on a multiple of so many RoIs an image: few shapes, little waste


@gin.register
class MaskRCNN(tf_keras.layers.Layer):
  """backbone -> FPN -> RPN -> box head -> mask head; every part is an argument, the defaults are the paper's.

  model(images uint8 [B, H, W, 3], image_sizes [B, 2], labels=Batch, training=...) -> structures.Outputs.
  mask_head: None makes it Faster R-CNN. roi_pooler: constructor, called with the heads' sizes, 7 and 14.
  pixel_mean, pixel_std: RGB, of the 0-255 range; padding is 0 after both.
  xla: True uses only operations that XLA compiles, with static shapes (TPU); False the faster ones of CPU and GPU.
  """

  def __init__(
    self,
    num_classes: int,
    backbone: ResNet | None = None,
    fpn: FPN | None = None,
    rpn_head: RPNHead | None = None,
    box_head: BoxHead | None = None,
    mask_head: MaskHead | None = None,
    anchors: Anchors | None = None,
    anchor_sampler: AnchorSampler | None = None,
    proposal_generator: ProposalGenerator | None = None,
    roi_sampler: RoISampler | None = None,
    roi_pooler=RoIPooler,
    detection_generator: DetectionGenerator | None = None,
    pixel_mean: Sequence[float] = (122.7717, 115.9465, 102.9801),  # Detectron's, here in RGB order
    pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
    xla: bool = False,
    name: str = 'mask_rcnn',
  ):
    super().__init__(name=name, autocast=False)
    self.num_classes, self.xla = num_classes, xla
    self.backbone = backbone or ResNet()
    self.fpn = fpn or FPN()
    self.rpn_head = rpn_head or RPNHead()
    self.box_head = box_head or BoxHead()
    self.mask_head = mask_head
    self.anchors = anchors or Anchors()
    self.anchor_sampler = anchor_sampler or AnchorSampler()
    self.proposal_generator = proposal_generator or ProposalGenerator()
    self.roi_sampler = roi_sampler or RoISampler()
    self.box_pooler, self.mask_pooler = roi_pooler(size=7), roi_pooler(size=14)
    self.detection_generator = detection_generator or DetectionGenerator()
    self.box_predictor = BoxPredictor(num_classes)
    self.mask_predictor = MaskPredictor(num_classes) if mask_head is not None else None
    self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)

  def call(self, images: tf.Tensor, image_sizes: tf.Tensor, labels: Batch | None = None,
           training: bool = False) -> Outputs:
    features = self.fpn(self.backbone(self.normalise(images, image_sizes)))
    rpn, proposals = self.propose(features, image_sizes, training)
    if training:
      return self.learn(features, rpn, proposals, image_sizes, labels)
    return self.detect(features, rpn, proposals, image_sizes)

  def normalise(self, images: tf.Tensor, image_sizes: tf.Tensor) -> tf.Tensor:
    """uint8 RGB -> float32 [B, H, W, 3], zero outside the photograph."""
    x = (tf.cast(images, tf.float32) - tf.constant(self.pixel_mean)) / tf.constant(self.pixel_std)
    shape = tf.shape(images)
    rows = tf.range(shape[1], dtype=tf.float32)[None, :] < image_sizes[:, :1]  # [B, H]
    columns = tf.range(shape[2], dtype=tf.float32)[None, :] < image_sizes[:, 1:]  # [B, W]
    return tf.where((rows[:, :, None] & columns[:, None, :])[..., None], x, 0.0)

  def propose(self, features: dict[str, tf.Tensor], image_sizes: tf.Tensor, training: bool):
    """Region proposal network over P2..P6 -> RPNOutputs, Proposals."""
    anchors = self.anchors(features)
    logits, deltas = zip(*(self.rpn_head(features[level]) for level in sorted(features)), strict=True)
    proposals = self.proposal_generator(logits, deltas, anchors, image_sizes, training, self.xla)
    rpn = RPNOutputs(tf.concat(logits, 1), tf.concat(deltas, 1), tf.concat(anchors, 0))
    return rpn, proposals

  def learn(self, features: dict[str, tf.Tensor], rpn: RPNOutputs, proposals: Proposals, image_sizes: tf.Tensor,
            labels: Batch) -> Outputs:
    """Training: samples, heads on the samples, targets."""
    rpn = self.anchor_sampler(rpn, image_sizes, labels)
    rois = self.roi_sampler(proposals, labels)
    pyramid = roi_pyramid(features)
    pooled = self.box_pooler(pyramid, rois.boxes, self.xla)  # [B, R, 7, 7, C]
    boxes = BoxOutputs(*self.box_predictor(self.box_head(pooled, rois.weights)), rois)
    masks = self.learn_masks(pyramid, rois, labels) if self.mask_head is not None else None
    return Outputs(features, rpn, proposals, (boxes,), masks)

  def learn_masks(self, pyramid: Pyramid, rois: RoISamples, labels: Batch) -> MaskOutputs:
    """Mask head on the foreground RoIs, which come first among the samples."""
    slots = self.mask_slots(rois.classes, min(self.roi_sampler.max_foreground, rois.boxes.shape[1]))
    boxes, classes, gt_index = rois.boxes[:, :slots], rois.classes[:, :slots], rois.gt_index[:, :slots]
    logits = self.mask_logits(pyramid, boxes, classes)
    targets = crop_targets(labels.gt_masks, labels.gt_boxes, boxes, gt_index)
    return MaskOutputs(logits, targets, tf.cast(classes > 0, tf.float32))

  def mask_slots(self, classes: tf.Tensor, limit: int) -> int | tf.Tensor:
    """How many leading slots [B, R] hold an object in some image; where shapes are static, all of them."""
    if self.xla:
      return limit
    most = tf.reduce_max(tf.reduce_sum(tf.cast(classes > 0, tf.int32), axis=1))
    return tf.minimum(limit, tf.maximum(-(-most // MASK_SLOT_STEP), 1) * MASK_SLOT_STEP)

  def mask_logits(self, pyramid: Pyramid, boxes: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """Map of the given class [B, M, 28, 28] for boxes [B, M, 4], classes [B, M] (0, background, gives class 1's)."""
    pooled = self.mask_pooler(pyramid, boxes, self.xla)  # [B, M, 14, 14, C]
    maps = self.mask_predictor(self.mask_head(pooled, classes > 0))  # [B, M, 28, 28, K]
    own = tf.one_hot(tf.maximum(classes, 1) - 1, self.num_classes)
    return tf.einsum('bmyxk,bmk->bmyx', maps, own)

  def detect(self, features: dict[str, tf.Tensor], rpn: RPNOutputs, proposals: Proposals,
             image_sizes: tf.Tensor) -> Outputs:
    """Inference: heads on all proposals, suppression, masks at the final boxes."""
    pyramid = roi_pyramid(features)
    pooled = self.box_pooler(pyramid, proposals.boxes, self.xla)
    boxes = BoxOutputs(*self.box_predictor(self.box_head(pooled)))
    detections = self.detection_generator(boxes, proposals, image_sizes, self.roi_sampler.box_weights, self.xla)
    if self.mask_head is not None:
      detections = self.detect_masks(pyramid, detections)
    return Outputs(features, rpn, proposals, (boxes,), None, detections)

  def detect_masks(self, pyramid: Pyramid, detections: Detections) -> Detections:
    """Adds mask probabilities [B, D, 28, 28] of each detection's class; zero in empty slots."""
    limit = detections.classes.shape[1]
    slots = self.mask_slots(detections.classes, limit)
    logits = self.mask_logits(pyramid, detections.boxes[:, :slots], detections.classes[:, :slots])
    masks = tf.pad(tf.nn.sigmoid(logits), [[0, 0], [0, limit - slots], [0, 0], [0, 0]])
    masks = tf.where((detections.classes > 0)[..., None, None], masks, 0.0)
    return detections._replace(masks=tf.ensure_shape(masks, [None, limit, *masks.shape[2:]]))


def roi_pyramid(features: dict[str, tf.Tensor]) -> Pyramid:
  """P2..P5, from which RoIs are pooled (P6 is for the RPN alone)."""
  return flatten([features[level] for level in ('P2', 'P3', 'P4', 'P5')])
