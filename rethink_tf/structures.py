"""Data structures shared by all modules: named tuples of tensors, protocols of the parts, and a glossary of shapes.

Shapes
  B  images of a batch (one replica's micro-batch inside the model)
  H, W  the padded shape in pixels, multiples of 32, the same for a whole batch
  G  ground-truth slots of an image (padded), P  keypoints of an instance (0 without keypoints)
  A  anchors of all levels, S  sampled anchor slots, N  proposals, R  sampled RoIs, D  detections
  K  object classes; class 0 is the background, so class scores have K + 1 columns
  L  classes of image classification, 0..L - 1: no background there; T  label slots of an image (padded)
Conventions
  Boxes are float32 [y0, x0, y1, x1] in pixels of the resized image (the model's input), continuous, without the
  +1 of old Detectron; box deltas are [dy, dx, dh, dw]. Images are RGB. Padding slots have class 0 and a zero box.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

MASK_CROP = 112  # side of the box-relative crop in which a ground-truth mask travels


class Example(NamedTuple):
  """One annotated photograph in original pixels, as `source.load(i)` gives it (NumPy)."""

  image: np.ndarray  # uint8 [h, w, 3] RGB
  boxes: np.ndarray  # float32 [n, 4] y0 x0 y1 x1, clipped to the image, crowds left out
  classes: np.ndarray  # int32 [n] 1..K
  masks: np.ndarray  # uint8 [n, 112, 112] 0/1: the box, stretched to a square, flips and scales with it
  keypoints: np.ndarray  # float32 [n, P, 3] y, x, visibility (COCO's 0, 1, 2)


class Batch(NamedTuple):
  """One padded batch, the only thing the data floor hands to the model."""

  images: tf.Tensor  # uint8 [B, H, W, 3] RGB; what lies outside image_sizes is padding
  image_sizes: tf.Tensor  # float32 [B, 2] height, width of the resized image on the canvas
  scales: tf.Tensor  # float32 [B, 2] resized / original, y and x
  original_sizes: tf.Tensor  # int32 [B, 2] height, width of the photograph
  image_ids: tf.Tensor  # int64 [B]; -1 fills up the last batch of an evaluation
  seeds: tf.Tensor  # int32 [B, 2] key of all randomness of this image in this epoch
  gt_boxes: tf.Tensor  # float32 [B, G, 4]
  gt_classes: tf.Tensor  # int32 [B, G]; 0 = empty slot
  gt_masks: tf.Tensor  # uint8 [B, G, 112, 112]
  gt_keypoints: tf.Tensor  # float32 [B, G, P, 3]


class Views(NamedTuple):
  """The same photographs at V sizes, for test-time augmentation. Detections are in pixels of the first size."""

  image_ids: tf.Tensor  # int64 [B]; -1 fills up the last batch of an evaluation
  original_sizes: tf.Tensor  # int32 [B, 2] height, width of the photograph
  images: tuple[tf.Tensor, ...]  # V of uint8 [B, H, W, 3] RGB, each with a canvas of its own
  image_sizes: tuple[tf.Tensor, ...]  # V of float32 [B, 2] height, width of the resized image on its canvas
  view_scales: tuple[tf.Tensor, ...]  # V of float32 [B, 2] resized / original, y and x

  @property
  def scales(self) -> tf.Tensor:
    """Of the pixels in which detections are."""
    return self.view_scales[0]


class LabelledImages(NamedTuple):
  """One batch of image classification: crops of one size, with one label each or several (hashtags)."""

  images: tf.Tensor  # uint8 [B, H, W, 3] RGB
  image_sizes: tf.Tensor  # float32 [B, 2] height, width: the whole canvas
  image_ids: tf.Tensor  # int64 [B]; -1 fills up the last batch of an evaluation
  classes: tf.Tensor  # int32 [B, T] 0..L - 1, all different in a row; -1 = empty slot. Targets are 1/k on k labels


class RPNOutputs(NamedTuple):
  """Region proposal network, at the sampled anchor slots in training (S = None at test time)."""

  logits: tf.Tensor  # float32 [B, A]
  deltas: tf.Tensor  # float32 [B, A, 4]
  anchors: tf.Tensor  # float32 [A, 4]
  sampled: tf.Tensor | None = None  # int32 [B, S] index of an anchor
  labels: tf.Tensor | None = None  # float32 [B, S] 1 object, 0 background
  weights: tf.Tensor | None = None  # float32 [B, S] 1 where the slot is in use
  target_deltas: tf.Tensor | None = None  # float32 [B, S, 4]


class Proposals(NamedTuple):
  """Boxes that may hold an object, best first."""

  boxes: tf.Tensor  # float32 [B, N, 4]
  scores: tf.Tensor  # float32 [B, N] objectness logit
  valid: tf.Tensor  # bool [B, N]


class RoISamples(NamedTuple):
  """RoIs drawn for training, foreground first, with what they are matched to."""

  boxes: tf.Tensor  # float32 [B, R, 4]
  classes: tf.Tensor  # int32 [B, R] 0 = background
  gt_index: tf.Tensor  # int32 [B, R] matched ground truth (0 where background)
  weights: tf.Tensor  # float32 [B, R] 1 where the slot is in use
  target_deltas: tf.Tensor  # float32 [B, R, 4]


class BoxOutputs(NamedTuple):
  """One box head: a plain detector has one, a cascade one per stage."""

  class_logits: tf.Tensor  # float32 [B, R, K + 1]
  box_deltas: tf.Tensor  # float32 [B, R, K, 4], or [B, R, 1, 4] when class-agnostic
  rois: RoISamples | None = None  # None at test time


class MaskOutputs(NamedTuple):
  """Mask head on the foreground slots."""

  logits: tf.Tensor  # float32 [B, M, 28, 28] of the RoI's own class
  targets: tf.Tensor  # float32 [B, M, 28, 28] 0/1
  weights: tf.Tensor  # float32 [B, M] 1 for a foreground RoI


class KeypointOutputs(NamedTuple):
  """Keypoint head on the foreground slots."""

  logits: tf.Tensor  # float32 [B, M, P, 56, 56]
  targets: tf.Tensor  # int32 [B, M, P] row * 56 + column of the true cell
  weights: tf.Tensor  # float32 [B, M, P] 1 for a visible keypoint inside a foreground RoI


class Detections(NamedTuple):
  """Final detections, best first, in pixels of the resized image; empty slots have score 0 and class 0."""

  boxes: tf.Tensor  # float32 [B, D, 4]
  scores: tf.Tensor  # float32 [B, D]
  classes: tf.Tensor  # int32 [B, D] 1..K
  masks: tf.Tensor | None = None  # float32 [B, D, 28, 28] probabilities
  keypoints: tf.Tensor | None = None  # float32 [B, D, P, 3] y, x (indices of pixel centres, as in gt_keypoints), score


class Outputs(NamedTuple):
  """All that the detector computes. Training fills rpn, boxes, masks, keypoints; inference fills detections too."""

  features: dict[str, Any]  # 'P2'..'P6' -> [B, H / stride, W / stride, C]
  rpn: RPNOutputs
  proposals: Proposals
  boxes: tuple[BoxOutputs, ...]
  masks: MaskOutputs | None = None
  detections: Detections | None = None
  keypoints: KeypointOutputs | None = None

  @property
  def predictions(self) -> Detections | None:
    """What an evaluator scores."""
    return self.detections


class ClassifierOutputs(NamedTuple):
  """All that a classifier computes, in training as at test time."""

  features: dict[str, Any]  # 'C2'..'C5' -> [B, H / stride, W / stride, C]
  logits: tf.Tensor  # float32 [B, L]

  @property
  def predictions(self) -> tf.Tensor:
    """What an evaluator scores: the logits."""
    return self.logits


class Source(Protocol):
  """Images with annotations. A classification source has `classes` (int32 [N, T], -1 = none) instead of the last three.

  A part's constructor takes `training`: True leaves out what cannot be trained on (images without objects, say).
  """

  name: str  # for messages: the annotation file or folder
  categories: Sequence[Any]  # data.categories.Category, in the order of classes 1..K
  num_classes: int
  image_ids: np.ndarray  # int64 [N]
  sizes: np.ndarray  # int32 [N, 2] height, width in the file
  num_instances: np.ndarray  # int32 [N]
  num_keypoints: int  # P, 0 without keypoints

  def load(self, i: int) -> Any:
    """Return the Example (or the RGB image, for classification) of index i; raises ImageError if it cannot be read."""


class Input(Protocol):
  """Batches of a source as a `tf.data.Dataset`."""

  source: Source
  batch_size: int
  failure: Exception | None  # the error that ended the data set; TensorFlow raises a wrapped one

  def dataset(self, *position: Any) -> tf.data.Dataset:
    """Training: endless, from (step, InputContext | None). Evaluation: one pass over every n-th batch, from (i, n)."""


class Evaluator(Protocol):
  """A callback of `fit` that scores the model on held-out images."""

  main_metric: str  # by which the best checkpoint is chosen: 'box/AP'
  workers: Any  # distributed.workers.Workers that share the images
  evaluated_step: int  # of the evaluation that began last, -1 before the first
  last: dict[str, float]  # metrics of the latest evaluation in percent, {} before the first

  def evaluate(self, step: int, extra: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Score the current weights as those of `step`; return metrics in percent."""

  def due(self, step: int) -> bool:
    """Whether training is evaluated at a step, its end apart."""
