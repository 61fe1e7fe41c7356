"""A detector small enough for a test to train, and batches to train it on."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from rethink_tf.models.cascade import Cascade
from rethink_tf.models.fpn import FPN
from rethink_tf.models.heads import BoxHead, MaskHead, RPNHead
from rethink_tf.models.keypoints import KeypointHead
from rethink_tf.models.mask_rcnn import MaskRCNN
from rethink_tf.models.norms import MakeNorm, group_norm
from rethink_tf.models.resnet import ResNet
from rethink_tf.models.rois import Anchors, AnchorSampler, ProposalGenerator, RoISampler
from rethink_tf.structures import MASK_CROP, Batch

CLASSES, KEYPOINTS = 3, 5

# The same detector as gin bindings, for tests of commands.
GIN = (
  'ResNet.stem_width = 32', 'ResNet.res2_width = 32', 'ResNet.width_per_group = 32', 'FPN.channels = 32',
  'RPNHead.channels = 32', 'BoxHead.channels = 32', 'BoxHead.fc_width = 32', 'MaskHead.channels = 32',
  'KeypointHead.channels = 32', 'KeypointHead.num_convs = 2',
  'Anchors.sizes = (8, 16, 32, 64, 128)', 'AnchorSampler.batch_size = 32', 'RoISampler.batch_size = 16',
  'ProposalGenerator.pre_nms_train = 50', 'ProposalGenerator.pre_nms_test = 50',
  'ProposalGenerator.post_nms_train = 30', 'ProposalGenerator.post_nms_test = 20',
  'DetectionGenerator.max_detections = 10', 'Resize.short_side = (64,)', 'Resize.max_side = 64',
  'LargeScaleJitter.side = 64',
  'TrainInput.max_instances = 8', 'EvalInput.max_instances = 8', 'KTimesSchedule.warmup_steps = 0',
)

# A run of it on four batches of two synthetic images.
PARAMS = (
  *GIN, 'train/synthetic.num_images = 8', 'eval/synthetic.num_images = 3', 'ResNet.depth = 14',
  "strategy.kind = 'one_device'", 'synthetic.image_size = (64, 64)', 'synthetic.object_size = (16, 40)',
  'BATCH_SIZE = 2', 'KTimesSchedule.unit = 0.5',  # 0.5 steps of 16 images are 4 of 2
  'CocoEvaluator.every = 2', 'run.log_every = 1', 'run.checkpoint_every = 2',
)


def detector(norm: MakeNorm = group_norm, xla: bool = False, **parts: Any) -> MaskRCNN:
  """A Mask R-CNN of depth 14 and width 32."""
  defaults = dict(
    backbone=ResNet(14, norm=norm, stem_width=32, res2_width=32, width_per_group=32), fpn=FPN(32, norm=norm),
    rpn_head=RPNHead(32), box_head=BoxHead(1, 1, 32, 32, norm=norm), mask_head=MaskHead(1, 32, norm=norm),
    anchors=Anchors((8, 16, 32, 64, 128)), anchor_sampler=AnchorSampler(2048, drop_straddling=False),
    proposal_generator=ProposalGenerator(50, 50, 30, 20), roi_sampler=RoISampler(16))
  return MaskRCNN(CLASSES, xla=xla, **(defaults | parts))


def built(**parts: Any) -> MaskRCNN:
  """The same with its variables, made eagerly: a graph takes three times as long to build."""
  made, one = detector(**parts), batch(1)
  made(one.images, one.image_sizes, labels=one, training=True)
  return made


def cascade(**settings: Any) -> Callable[[int], Cascade]:
  """Constructor for detector(cascade=…)."""
  return functools.partial(Cascade, head=functools.partial(BoxHead, 1, 1, 32, 32), **settings)


def keypoint_detector(xla: bool = False, keypoints: int = KEYPOINTS, **parts: Any) -> MaskRCNN:
  """The same detector with a keypoint head instead of a mask head."""
  return detector(xla=xla, mask_head=None, keypoint_head=KeypointHead(2, 32), num_keypoints=keypoints, **parts)


def batch(images: int, seed: int = 0, objects: int = 3, side: int = 64, keypoints: int = 0) -> Batch:
  """Random images with `objects` boxes each; image i is the same for every batch size.

  keypoints: number per object, inside its box; the first is not labelled.
  """
  slots = max(objects, 4)
  pixels, boxes, classes = [], np.zeros((images, slots, 4), np.float32), np.zeros((images, slots), np.int32)
  points = np.zeros((images, slots, keypoints, 3), np.float32)
  for i in range(images):
    rng = np.random.default_rng([seed, i])
    pixels.append(rng.integers(0, 255, (side, side, 3)))
    for k in range(objects):
      low, extent = rng.uniform(0, side * 0.5, 2), rng.uniform(side * 0.2, side * 0.45, 2)
      boxes[i, k] = *low, *(low + extent)
      classes[i, k] = rng.integers(1, CLASSES + 1)
      if keypoints:
        points[i, k, 1:, :2] = low + np.random.default_rng([seed, i, k]).uniform(0.1, 0.9, (keypoints - 1, 2)) * extent
        points[i, k, 1:, 2] = 2
  size = [[side, side]] * images
  return Batch(
    images=tf.constant(np.stack(pixels), tf.uint8), image_sizes=tf.constant(size, tf.float32),
    scales=tf.ones([images, 2]), original_sizes=tf.constant(size, tf.int32),
    image_ids=tf.range(images, dtype=tf.int64), seeds=tf.constant([[seed, i] for i in range(images)], tf.int32),
    gt_boxes=tf.constant(boxes), gt_classes=tf.constant(classes),
    gt_masks=tf.ones([images, slots, MASK_CROP, MASK_CROP], tf.uint8), gt_keypoints=tf.constant(points))


@contextlib.contextmanager
def precision(policy: str):
  """The Keras policy of mixed precision, inside."""
  tf_keras.mixed_precision.set_global_policy(policy)
  try:
    yield
  finally:
    tf_keras.mixed_precision.set_global_policy('float32')
