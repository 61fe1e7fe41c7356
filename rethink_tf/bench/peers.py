"""tf-models-official's Mask R-CNN, trained on the same pictures, as the yardstick of a step."""

from __future__ import annotations

from collections.abc import Callable

import gin
import numpy as np
import tensorflow as tf
import tf_keras

from rethink_tf.structures import Batch


def train_step(batch: Batch, padded_shape: tuple[int, int], num_classes: int, policy: str) -> Callable[[], dict]:
  """Its train step (R50-FPN, BN, 4conv1fc, 512 RoIs, 128 masks) on our batch in NumPy arrays."""
  with gin.unlock_config():  # it registers parts of its own
    from official.core import exp_factory
    from official.vision.configs import maskrcnn as _registered  # noqa: F401
    from official.vision.tasks import maskrcnn

  before = tf_keras.mixed_precision.global_policy()
  tf_keras.mixed_precision.set_global_policy(policy)
  config = exp_factory.get_exp_config('maskrcnn_resnetfpn_coco').task
  config.init_checkpoint, config.annotation_file = None, None
  config.model.num_classes, config.model.input_size = num_classes + 1, [*padded_shape, 3]
  config.model.norm_activation.use_sync_bn = False  # one device: plain BN is the faster layer
  task = maskrcnn.MaskRCNNTask(config)
  model = task.build_model()
  optimizer = tf_keras.optimizers.legacy.SGD(0.01, momentum=0.9)
  parsed = [_parsed(batch, i, padded_shape, config) for i in range(len(batch.images))]
  images, labels = tf.nest.map_structure(lambda *parts: tf.stack(parts), *parsed)
  if policy == 'mixed_bfloat16':
    images = tf.cast(images, tf.bfloat16)
  step = tf.function(lambda: task.train_step((images, labels), model, optimizer), autograph=False)
  step()
  tf_keras.mixed_precision.set_global_policy(before)
  return step


def _parsed(batch, i, padded_shape, config):
  """Image i as its own parser gives it: anchors matched on the host."""
  from official.vision.dataloaders import maskrcnn_input

  model = config.model
  parser = maskrcnn_input.Parser(
    output_size=list(padded_shape), min_level=model.min_level, max_level=model.max_level,
    num_scales=model.anchor.num_scales, aspect_ratios=model.anchor.aspect_ratios,
    anchor_size=model.anchor.anchor_size, include_mask=True)
  used = batch.gt_classes[i] > 0
  boxes, height, width = batch.gt_boxes[i][used], *padded_shape
  return parser._parse_train_data({
    'image': tf.constant(batch.images[i]), 'groundtruth_classes': tf.constant(batch.gt_classes[i][used], tf.int64),
    'groundtruth_boxes': tf.constant(boxes / np.array([height, width, height, width], np.float32)),
    'groundtruth_instance_masks': tf.constant(_full_masks(batch.gt_masks[i][used], boxes, height, width)),
    'groundtruth_is_crowd': tf.zeros([int(used.sum())], tf.bool)})


def _full_masks(crops, boxes, height, width):
  """Box-relative crops [n, 112, 112] -> float32 [n, height, width]."""
  import cv2

  masks = np.zeros([len(crops), height, width], np.float32)
  for mask, crop, box in zip(masks, crops, np.rint(boxes).astype(int), strict=True):
    y0, x0, y1, x1 = box
    if y1 > y0 and x1 > x0:
      mask[y0:y1, x0:x1] = cv2.resize(crop.astype(np.float32), (int(x1 - x0), int(y1 - y0)))
  return masks
