"""Train step and prediction of tf-models-official's Mask R-CNN on the same images, as a reference."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from rethink_tf.errors import needs_models
from rethink_tf.structures import Batch


def train_step(batch: Batch, padded_shape: tuple[int, int], num_classes: int, policy: str
               ) -> Callable[[], dict[str, tf.Tensor]]:
  """Return its train step (R50-FPN, BN, 4conv1fc, 512 RoIs, 128 masks) on a batch of arrays.

  policy: 'float32' or 'mixed_bfloat16'.
  """
  with _policy(policy):
    task, model, images, labels = _build(batch, padded_shape, num_classes, policy)
    optimizer = tf_keras.optimizers.legacy.SGD(0.01, momentum=0.9)
    step = tf.function(lambda: task.train_step((images, labels), model, optimizer), autograph=False)
    step()
  return step


def predict_step(batch: Batch, padded_shape: tuple[int, int], num_classes: int, policy: str, proposals: int,
                 detections: int) -> Callable[[], dict[str, tf.Tensor]]:
  """Return its prediction, masks included but not pasted, on a batch of arrays.

  policy: 'float32' or 'mixed_bfloat16'. proposals, detections: of an image; no score is too low, so that random weights
  give all of them.
  """
  with _policy(policy):
    _, model, images, labels = _build(batch, padded_shape, num_classes, policy, proposals, detections)
    step = tf.function(lambda: _outputs(model(images, labels['image_info'][:, 1, :], labels['anchor_boxes'],
                                              training=False)), autograph=False)
    found = step()['num_detections'].numpy()
  if (found != detections).any():
    raise RuntimeError(f'tf-models-official: {found.tolist()} detections instead of {detections}')
  return step


def _outputs(outputs: dict[str, Any]) -> dict[str, tf.Tensor]:
  """Return what a user gets, without the features, so that nothing else has to be kept."""
  return {name: outputs[name] for name in ('num_detections', 'detection_boxes', 'detection_classes',
                                           'detection_scores', 'detection_masks')}


@contextlib.contextmanager
def _policy(name: str) -> Iterator[None]:
  before = tf_keras.mixed_precision.global_policy()
  tf_keras.mixed_precision.set_global_policy(name)
  try:
    yield
  finally:
    tf_keras.mixed_precision.set_global_policy(before)


def _build(batch: Batch, padded_shape: tuple[int, int], num_classes: int, policy: str, proposals: int | None = None,
           detections: int | None = None) -> tuple[Any, Any, tf.Tensor, dict[str, Any]]:
  """Return its task, model, images and labels. proposals, detections: at inference; None: its own."""
  with needs_models('--peers'):
    from official.core import exp_factory
    from official.vision.configs import maskrcnn as _registered  # noqa: F401
    from official.vision.tasks import maskrcnn

  config = exp_factory.get_exp_config('maskrcnn_resnetfpn_coco').task
  config.init_checkpoint, config.annotation_file = None, None
  config.model.num_classes, config.model.input_size = num_classes + 1, [*padded_shape, 3]
  config.model.norm_activation.use_sync_bn = False  # plain BN is faster on one device
  if proposals is not None:
    config.model.roi_generator.test_num_proposals = proposals
    config.model.detection_generator.max_num_detections = detections
    config.model.detection_generator.pre_nms_score_threshold = 0.0
  task = maskrcnn.MaskRCNNTask(config)
  model = task.build_model()
  parsed = [_parse(batch, i, padded_shape, config) for i in range(len(batch.images))]
  images, labels = tf.nest.map_structure(lambda *x: tf.stack(x), *parsed)
  return task, model, tf.cast(images, tf.bfloat16) if policy == 'mixed_bfloat16' else images, labels


def _parse(batch: Batch, i: int, padded_shape: tuple[int, int], config: Any) -> tuple[tf.Tensor, dict[str, Any]]:
  """Return image i and its labels from the parser of tf-models-official, which matches anchors on the host."""
  with needs_models('--peers'):
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


def _full_masks(crops: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
  """Resize box-relative crops [n, 112, 112] into masks float32 [n, height, width]."""
  import cv2

  masks = np.zeros([len(crops), height, width], np.float32)
  for mask, crop, box in zip(masks, crops, np.rint(boxes).astype(int), strict=True):
    y0, x0, y1, x1 = box
    if y1 > y0 and x1 > x0:
      mask[y0:y1, x0:x1] = cv2.resize(crop.astype(np.float32), (int(x1 - x0), int(y1 - y0)))
  return masks
