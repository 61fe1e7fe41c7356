"""Mask R-CNN with a feature pyramid network (He et al. 2017), trained end to end with its RPN."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError, check_positive
from rethink_tf.models.cascade import Cascade
from rethink_tf.models.fpn import FPN, SingleLevel
from rethink_tf.models.heads import BoxHead, BoxPredictor, MaskHead, MaskPredictor, RPNHead
from rethink_tf.models.keypoints import HEATMAP_SIZE, KeypointHead, KeypointPredictor
from rethink_tf.models.resnet import ResNet
from rethink_tf.models.rois import (
  Anchors,
  AnchorSampler,
  DetectionGenerator,
  ProposalGenerator,
  RoIPooler,
  RoISampler,
)
from rethink_tf.ops import boxes as box_ops
from rethink_tf.ops import portable
from rethink_tf.ops.heatmaps import decode_heatmaps, heatmap_targets
from rethink_tf.ops.masks import crop_targets
from rethink_tf.ops.nms import FORMS, Form
from rethink_tf.ops.roi_align import Pyramid, flatten
from rethink_tf.structures import (
  NO_MASK,
  Batch,
  BoxOutputs,
  Detections,
  KeypointOutputs,
  MaskOutputs,
  Outputs,
  Proposals,
  RoISamples,
  RPNOutputs,
)

MASK_SLOT_STEP = 8  # the number of RoIs of an image in the mask head is a multiple of this: few different shapes

Size = tuple[int | tf.Tensor, int | tf.Tensor]  # height, width


@gin.register
class MaskRCNN(tf_keras.layers.Layer):
  """backbone -> FPN -> RPN -> box head -> mask head; every part is an argument, the defaults are the paper's.

  model(images uint8 [B, H, W, 3], image_sizes [B, 2], labels=Batch, training=...) -> structures.Outputs.
  backbone: any layer that returns feature maps 'C2'.. (resnet.py, vgg.py, cbnet.py).
  mask_head: None gives Faster R-CNN. keypoint_head: for data whose instances have num_keypoints keypoints.
  cascade: constructor, called with num_classes, of further box stages (cascade.py); box deltas are then class-agnostic.
  roi_pooler: constructor, called with the sizes 7 and 14.
  pixel_mean, pixel_std: RGB, range 0-255; padding is 0 after normalisation.
  xla: True uses only operations that XLA compiles, with static shapes (TPU); False the faster ones for CPU and GPU.
  nms: form of non-maximum suppression (ops/nms.py): None is that of the device, with xla 'batched'.
  """

  def __init__(
    self,
    num_classes: int,
    backbone: tf_keras.layers.Layer | None = None,
    fpn: FPN | SingleLevel | None = None,
    rpn_head: RPNHead | None = None,
    box_head: BoxHead | None = None,
    mask_head: MaskHead | None = None,
    keypoint_head: KeypointHead | None = None,
    cascade: Callable[[int], Cascade] | None = None,
    anchors: Anchors | None = None,
    anchor_sampler: AnchorSampler | None = None,
    proposal_generator: ProposalGenerator | None = None,
    roi_sampler: RoISampler | None = None,
    roi_pooler: Callable[..., RoIPooler] = RoIPooler,
    detection_generator: DetectionGenerator | None = None,
    pixel_mean: tuple[float, float, float] = (122.7717, 115.9465, 102.9801),  # Detectron's, in RGB order
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0),
    xla: bool = False,
    nms: Form | None = None,
    num_keypoints: int = 0,
    name: str = 'mask_rcnn',
  ):
    super().__init__(name=name, autocast=False)
    self.num_classes, self.xla, self.nms = num_classes, xla, nms
    if nms is not None and (nms not in FORMS or (xla and nms == 'combined')):
      usable = ', '.join(form for form in FORMS if not xla or form != 'combined')
      raise UserError(f"MaskRCNN.nms = {nms!r}{' with MaskRCNN.xla' if xla else ''}: use None or one of {usable}")
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
    self.cascade = cascade(num_classes) if cascade is not None else None
    self.box_predictor = BoxPredictor(num_classes, class_agnostic=cascade is not None)
    self.mask_predictor = MaskPredictor(num_classes) if mask_head is not None else None
    if keypoint_head is not None and not num_keypoints:
      raise UserError('MaskRCNN.keypoint_head: the data has no keypoints: use gin_configs/data/coco_keypoints.gin, or '
                      'set coco.keypoints = True')
    self.keypoint_head, self.keypoint_pooler = keypoint_head, roi_pooler(size=14)
    self.keypoint_predictor = KeypointPredictor(num_keypoints) if keypoint_head is not None else None
    check_positive('MaskRCNN', pixel_std=pixel_std)
    self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)

  @property
  def nms_form(self) -> Form | None:
    """The form of suppression to build a graph with; None: that of the device."""
    if portable.chosen():
      return 'per_group'
    return self.nms or ('batched' if self.xla else None)

  @tf.autograph.experimental.do_not_convert  # Keras would convert every layer, which takes longer than the tracing
  def call(self, images: tf.Tensor, image_sizes: tf.Tensor, labels: Batch | None = None,
           training: bool = False) -> Outputs:
    features = self.backbone(self.normalise(images, image_sizes))
    check_strides(features, images.shape)
    features = self.fpn(features)
    rpn, proposals = self.propose(features, image_sizes, training)
    if training:
      return self.learn(features, rpn, proposals, image_sizes, labels)
    return self.detect(features, rpn, proposals, image_sizes)

  def normalise(self, images: tf.Tensor, image_sizes: tf.Tensor) -> tf.Tensor:
    """Normalise pixels: uint8 RGB -> float32 [B, H, W, 3], zero in the padding."""
    x = (tf.cast(images, tf.float32) - tf.constant(self.pixel_mean)) / tf.constant(self.pixel_std)
    shape = tf.shape(images)
    rows = tf.range(shape[1], dtype=tf.float32)[None, :] < image_sizes[:, :1]  # [B, H]
    columns = tf.range(shape[2], dtype=tf.float32)[None, :] < image_sizes[:, 1:]  # [B, W]
    inside = tf.cast(rows[:, :, None] & columns[:, None, :], tf.float32)  # [B, H, W]
    return x * inside[..., None]  # twice as fast as a selection

  def propose(self, features: dict[str, tf.Tensor], image_sizes: tf.Tensor,
              training: bool) -> tuple[RPNOutputs, Proposals]:
    """Return the outputs and the proposals of the region proposal network on P2..P6."""
    anchors, per_cell = self.anchors(features), self.anchors.per_cell(len(features))
    if per_cell != self.rpn_head.anchors_per_cell:  # a GPU would silently gather zeros beyond the end
      raise UserError(f'RPNHead.anchors_per_cell = {self.rpn_head.anchors_per_cell}, but Anchors.sizes and '
                      f'Anchors.ratios give {per_cell} anchors per cell: set RPNHead.anchors_per_cell = {per_cell}, '
                      'or sizes and ratios of as many')
    logits, deltas = zip(*(self.rpn_head(features[level]) for level in sorted(features)), strict=True)
    with tf.name_scope('proposals'):
      proposals = self.proposal_generator(logits, deltas, anchors, image_sizes, training, self.nms_form)
    rpn = RPNOutputs(tf.concat(logits, 1), tf.concat(deltas, 1), tf.concat(anchors, 0))
    return rpn, proposals

  def learn(self, features: dict[str, tf.Tensor], rpn: RPNOutputs, proposals: Proposals, image_sizes: tf.Tensor,
            labels: Batch) -> Outputs:
    """Training: sampling, heads on the samples, targets."""
    with tf.name_scope('samples'):
      rpn = self.anchor_sampler(rpn, image_sizes, labels)
      rois = self.roi_sampler(proposals, labels)
    pyramid = roi_pyramid(features)
    boxes = self.learn_boxes(pyramid, rois, image_sizes, labels)
    rois = boxes[-1 if self.cascade is None or self.cascade.mask_stage == 'last' else 0].rois
    masks = self.learn_masks(pyramid, rois, labels) if self.mask_head is not None else None
    keypoints = self.learn_keypoints(pyramid, rois, labels) if self.keypoint_head is not None else None
    return Outputs(features, rpn, proposals, boxes, masks, keypoints=keypoints)

  def learn_boxes(self, pyramid: Pyramid, rois: RoISamples, image_sizes: tf.Tensor,
                  labels: Batch) -> tuple[BoxOutputs, ...]:
    """Box head on the samples; in a cascade, each stage on its own samples."""
    if self.cascade is not None:
      pool = functools.partial(self.box_pooler, pyramid, xla=self.xla)
      return self.cascade.learn((self.box_head, self.box_predictor), self.roi_sampler.box_weights, pool, rois,
                                image_sizes, labels)
    pooled = self.box_pooler(pyramid, rois.boxes, self.xla)  # [B, R, 7, 7, C]
    return (BoxOutputs(*self.box_predictor(self.box_head(pooled, rois.weights)), rois),)

  def learn_masks(self, pyramid: Pyramid, rois: RoISamples, labels: Batch) -> MaskOutputs:
    """Mask head on the foreground RoIs, which are the first samples; those of objects without a mask have weight 0."""
    slots = self.mask_slots(rois.classes, min(self.roi_sampler.max_foreground, rois.boxes.shape[1]))
    boxes, classes, gt_index = rois.boxes[:, :slots], rois.classes[:, :slots], rois.gt_index[:, :slots]
    logits = self.mask_logits(pyramid, boxes, classes)
    targets = crop_targets(labels.gt_masks, labels.gt_boxes, boxes, gt_index)
    known = tf.gather(labels.gt_masks[:, :, 0, 0] != NO_MASK, gt_index, batch_dims=1)  # [B, M]
    return MaskOutputs(logits, targets, tf.cast((classes > 0) & known, tf.float32))

  def learn_keypoints(self, pyramid: Pyramid, rois: RoISamples, labels: Batch) -> KeypointOutputs:
    """Keypoint head on the foreground RoIs; those without a visible keypoint inside have weight 0 in the loss."""
    slots = self.mask_slots(rois.classes, min(self.roi_sampler.max_foreground, rois.boxes.shape[1]))
    boxes, gt_index, foreground = rois.boxes[:, :slots], rois.gt_index[:, :slots], rois.classes[:, :slots] > 0
    points = tf.gather(labels.gt_keypoints, gt_index, batch_dims=1)  # [B, M, P, 3]
    targets, valid = heatmap_targets(points, boxes, HEATMAP_SIZE)
    logits = self.keypoint_logits(pyramid, boxes, foreground)
    return KeypointOutputs(logits, targets, tf.cast(valid & foreground[..., None], tf.float32))

  def keypoint_logits(self, pyramid: Pyramid, boxes: tf.Tensor, used: tf.Tensor) -> tf.Tensor:
    """Return heat maps [B, M, P, 56, 56] for boxes [B, M, 4]; used: bool [B, M]."""
    pooled = self.keypoint_pooler(pyramid, boxes, self.xla)  # [B, M, 14, 14, C]
    return self.keypoint_predictor(self.keypoint_head(pooled, used))

  def mask_slots(self, classes: tf.Tensor, limit: int) -> int | tf.Tensor:
    """Return the number of leading slots [B, R] that hold the objects of every image; all if shapes must be static."""
    if self.xla:
      return limit
    largest = tf.reduce_max(tf.reduce_sum(tf.cast(classes > 0, tf.int32), axis=1))
    steps = (largest + MASK_SLOT_STEP - 1) // MASK_SLOT_STEP  # of positive numbers, since ONNX rounds towards zero
    return tf.minimum(limit, tf.maximum(steps, 1) * MASK_SLOT_STEP)

  def mask_logits(self, pyramid: Pyramid, boxes: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """Return mask logits [B, M, 28, 28] of the given classes [B, M] (class 1 for background) for boxes [B, M, 4]."""
    pooled = self.mask_pooler(pyramid, boxes, self.xla)  # [B, M, 14, 14, C]
    maps = self.mask_predictor(self.mask_head(pooled, classes > 0))  # [B, M, 28, 28, K]
    own = tf.one_hot(tf.maximum(classes, 1) - 1, self.num_classes)
    return tf.einsum('bmyxk,bmk->bmyx', maps, own)

  def detect(self, features: dict[str, tf.Tensor], rpn: RPNOutputs, proposals: Proposals,
             image_sizes: tf.Tensor) -> Outputs:
    """Inference: box head on all proposals, non-maximum suppression, mask and keypoint heads on the final boxes."""
    pyramid = roi_pyramid(features)
    boxes, detections = self.detect_boxes(pyramid, proposals, image_sizes)
    if self.mask_head is not None:
      detections = self.detect_masks(pyramid, detections)
    if self.keypoint_head is not None:
      detections = self.detect_keypoints(pyramid, detections, padded_shape(features))
    return Outputs(features, rpn, proposals, boxes, None, detections)

  def detect_boxes(self, pyramid: Pyramid, proposals: Proposals,
                   image_sizes: tf.Tensor) -> tuple[tuple[BoxOutputs, ...], Detections]:
    """Boxes of all classes for all proposals, and non-maximum suppression."""
    outputs, boxes, scores = self.score_boxes(pyramid, proposals, image_sizes)
    return outputs, self.detection_generator.select(boxes, scores, proposals.valid, self.nms_form)

  def score_boxes(self, pyramid: Pyramid, proposals: Proposals,
                  image_sizes: tf.Tensor) -> tuple[tuple[BoxOutputs, ...], tf.Tensor, tf.Tensor]:
    """Box head on all proposals, or all stages of a cascade, before non-maximum suppression.

    Returns the outputs, clipped boxes [B, N, K or 1, 4] and probabilities [B, N, K].
    """
    weights = self.roi_sampler.box_weights
    if self.cascade is not None:
      pool = functools.partial(self.box_pooler, pyramid, xla=self.xla)
      return self.cascade.score((self.box_head, self.box_predictor), weights, pool, proposals, image_sizes)
    pooled = self.box_pooler(pyramid, proposals.boxes, self.xla)
    outputs = BoxOutputs(*self.box_predictor(self.box_head(pooled)))
    boxes = box_ops.decode(outputs.box_deltas, proposals.boxes[:, :, None, :], weights)
    scores = tf.nn.softmax(outputs.class_logits)[..., 1:]
    return (outputs,), box_ops.clip(boxes, image_sizes), scores

  def detect_masks(self, pyramid: Pyramid, detections: Detections) -> Detections:
    """Add mask probabilities [B, D, 28, 28] of each detection's class; zero in empty slots."""
    limit = detections.classes.shape[1]
    slots = self.mask_slots(detections.classes, limit)
    logits = self.mask_logits(pyramid, detections.boxes[:, :slots], detections.classes[:, :slots])
    masks = tf.pad(tf.nn.sigmoid(logits), [[0, 0], [0, limit - slots], [0, 0], [0, 0]])
    masks = tf.where((detections.classes > 0)[..., None, None], masks, 0.0)
    return detections._replace(masks=_with_slots(masks, limit))

  def detect_keypoints(self, pyramid: Pyramid, detections: Detections, limits: Size) -> Detections:
    """Add keypoints [B, D, P, 3] of each detection; zero in empty slots. limits: largest size of boxes in pixels."""
    slots = self.mask_slots(detections.classes, detections.classes.shape[1])
    boxes, used = detections.boxes[:, :slots], detections.classes[:, :slots] > 0
    return self.place_keypoints(self.keypoint_logits(pyramid, boxes, used), detections, limits)

  def place_keypoints(self, logits: tf.Tensor, detections: Detections, limits: Size) -> Detections:
    """Add keypoints decoded from heat maps [B, M, P, 56, 56] of the first M slots, which hold all detections."""
    limit, slots = detections.classes.shape[1], tf.shape(logits)[1]
    boxes, used = detections.boxes[:, :slots], detections.classes[:, :slots] > 0
    points = decode_heatmaps(tf.reshape(logits, [-1, *logits.shape[2:]]), tf.reshape(boxes, [-1, 4]),
                             limits if self.xla else None)
    points = tf.reshape(points, tf.concat([tf.shape(used), points.shape[1:]], 0))
    points = tf.pad(tf.where(used[..., None, None], points, 0.0), [[0, 0], [0, limit - slots], [0, 0], [0, 0]])
    return detections._replace(keypoints=_with_slots(points, limit))


def _with_slots(values: tf.Tensor, limit: int) -> tf.Tensor:
  """Return values [B, D, ...] with D checked to be `limit`."""
  shape = [None, limit, *values.shape[2:]]
  if portable.chosen():  # other runtimes have no such check
    values.set_shape(shape)
    return values
  return tf.ensure_shape(values, shape)


def check_strides(features: Mapping[str, tf.Tensor], images: tf.TensorShape) -> None:
  """Raise UserError for a feature map whose stride does not match its name; only static shapes are checked."""
  if not isinstance(features, Mapping):
    raise UserError(f"MaskRCNN.backbone returns a {type(features).__name__}: return {{'C2': …, 'C3': …}}, by level")
  for name, feature in features.items():
    stride = 2 ** int(name[1:]) if name[:1] == 'C' and name[1:].isdecimal() else 0
    for size, cells in zip(images[1:3], feature.shape[1:3], strict=True) if stride else ():
      if None not in (size, cells) and cells not in (size // stride, -(-size // stride)):
        raise UserError(f'MaskRCNN.backbone: {name} should have stride {stride}, but has {cells} cells for {size} '
                        'pixels, so anchors and RoIs would be misplaced: name the map by its stride, 2^level')


def padded_shape(features: dict[str, tf.Tensor]) -> Size:
  """Return the padded shape in pixels from feature maps; static if theirs is."""
  level = min(features)
  shape = tf.shape(features[level])
  return tuple((static or shape[i]) * 2**int(level[1:]) for i, static in enumerate(features[level].shape[1:3], 1))


def roi_pyramid(features: dict[str, tf.Tensor]) -> Pyramid:
  """Return the existing levels of P2..P5, from which RoIs are pooled (P6 is for the RPN only)."""
  levels = [level for level in ('P2', 'P3', 'P4', 'P5') if level in features]
  return flatten([features[level] for level in levels], int(levels[0][1:]))
