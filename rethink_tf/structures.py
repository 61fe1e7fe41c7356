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

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf
import tf_keras

if TYPE_CHECKING:  # types of higher floors, for annotations alone
  from rethink_tf.distributed.workers import Workers
  from rethink_tf.evaluation.test_time_augmentation import TestTimeAugmentation
  from rethink_tf.storage.checkpoints import RunCheckpoints
  from rethink_tf.storage.identity import Identity
  from rethink_tf.storage.run_folder import RunFolder
  from rethink_tf.training.ema import ExponentialMovingAverage
  from rethink_tf.training.trainer import Trainer
  from rethink_tf.weights.pretrained import PretrainedWeights

AVERAGES = 'ema'  # names the averages of the weights: in checkpoints, metrics ('ema/box/AP') and the run folder
MASK_CROP = 112  # side of the box-relative crop in which a ground-truth mask travels
NO_MASK = 2  # in every cell of the crop of an object whose mask is not known, from which the mask head does not learn


class Example(NamedTuple):
  """One annotated image in original pixels, as `source.load(i)` gives it (NumPy)."""

  image: np.ndarray  # uint8 [h, w, 3] RGB
  boxes: np.ndarray  # float32 [n, 4] y0 x0 y1 x1, clipped to the image, crowds left out
  classes: np.ndarray  # int32 [n] 1..K
  masks: np.ndarray  # uint8 [n, 112, 112] 0/1, or NO_MASK: the box, stretched to a square, flips and scales with it
  keypoints: np.ndarray  # float32 [n, P, 3] y, x, visibility (COCO's 0, 1, 2)


class Batch(NamedTuple):
  """One padded batch, everything that the input passes to the model."""

  images: tf.Tensor  # uint8 [B, H, W, 3] RGB; what lies outside image_sizes is padding
  image_sizes: tf.Tensor  # float32 [B, 2] height, width of the resized image within the padded shape
  scales: tf.Tensor  # float32 [B, 2] resized / original, y and x
  original_sizes: tf.Tensor  # int32 [B, 2] height, width of the image file
  image_ids: tf.Tensor  # int64 [B]; -1 fills up the last batch of an evaluation
  seeds: tf.Tensor  # int32 [B, 2] key of all randomness of this image in this epoch
  gt_boxes: tf.Tensor  # float32 [B, G, 4]
  gt_classes: tf.Tensor  # int32 [B, G]; 0 = empty slot
  gt_masks: tf.Tensor  # uint8 [B, G, 112, 112] 0/1, or NO_MASK
  gt_keypoints: tf.Tensor  # float32 [B, G, P, 3]


class Views(NamedTuple):
  """The same images at V sizes, for test-time augmentation. Detections are in pixels of the first size."""

  image_ids: tf.Tensor  # int64 [B]; -1 fills up the last batch of an evaluation
  original_sizes: tf.Tensor  # int32 [B, 2] height, width of the image file
  images: tuple[tf.Tensor, ...]  # V of uint8 [B, H, W, 3] RGB, each with a padded shape of its own
  image_sizes: tuple[tf.Tensor, ...]  # V of float32 [B, 2] height, width of the resized image within its padded shape
  view_scales: tuple[tf.Tensor, ...]  # V of float32 [B, 2] resized / original, y and x

  @property
  def scales(self) -> tf.Tensor:
    """Of the pixels in which detections are."""
    return self.view_scales[0]


class LabelledImages(NamedTuple):
  """One batch of image classification: crops of one size, with one label each or several (hashtags)."""

  images: tf.Tensor  # uint8 [B, H, W, 3] RGB
  image_sizes: tf.Tensor  # float32 [B, 2] height, width: all of it
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


class LeftOut(NamedTuple):
  """Images that a data set lists but that cannot be used."""

  counts: Mapping[str, int] = {}  # reason, with examples -> number of images
  listed: int = 0  # images that the data set lists, these included

  @property
  def total(self) -> int:
    return sum(self.counts.values())

  def __str__(self) -> str:
    return '; '.join(f'{count} {reason}' for reason, count in self.counts.items())


class Source(Protocol):
  """Images with annotations. A classification source has `classes` (int32 [N, T], -1 = none) instead of the last three.

  A part's constructor takes `training`: True leaves out what cannot be trained on (images without objects, say).
  COCO's and VOC's evaluators also need `annotations()`: the COCO json of the N images in their order, as a dictionary,
  with `segmentation` in every annotation (without a mask the outline of the box).
  Sources of files have `left_out` too, a LeftOut: images that are not among the N, since their file is missing; and
  `has_masks`, whether any object has one (without it: yes). data/own_source.py checks a source of the user's own.
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
  unreadable: set[int]  # indices of images that could not be read
  facts: Callable[[int], Any]  # of training: step -> data.batching.StepFacts

  def dataset(self, *position: Any) -> tf.data.Dataset:
    """Training: endless, from (step, InputContext | None). Evaluation: one pass over every n-th batch, from (i, n)."""


class Evaluator(Protocol):
  """A callback of `fit` that scores the model on held-out images."""

  main_metric: str  # by which the best checkpoint is chosen: 'box/AP'
  workers: Any  # distributed.workers.Workers that share the images
  notes: Sequence[str]  # what readers of the metrics must know, a line each
  evaluated_step: int  # of the evaluation that began last, -1 before the first
  last: dict[str, float]  # metrics of the latest evaluation in percent, {} before the first

  def evaluate(self, step: int, extra: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Score the current weights as those of `step`; return metrics in percent."""

  def due(self, step: int) -> bool:
    """Whether training is evaluated at a step, its end apart."""

  def settle(self, seconds: float) -> None:
    """Wait, at most so long, for what an evaluation still does in threads: the process is about to end."""


class Devices(NamedTuple):
  """Distribution of a global batch."""

  replicas: int
  micro_batches: int  # slices of a replica's batch whose gradients are accumulated
  images: int  # images of a micro-batch

  @classmethod
  def of_start(cls, record: Mapping[str, Any]) -> Devices | None:
    """Return the devices that an entry of command.json records, None if it has none or is malformed."""
    found = record.get('devices')
    values = [found.get(name) for name in cls._fields] if isinstance(found, dict) else []
    return cls(*values) if values and all(type(value) is int and value > 0 for value in values) else None

  @property
  def statistics(self) -> int:
    """Images over which SyncBatchNorm takes its statistics: the micro-batches of all replicas."""
    return self.replicas * self.images


@dataclasses.dataclass
class Experiment:
  """All that `experiment.run` builds from a configuration; nothing has been restored or written yet.

  Consumed by training.loop.train, evaluation.on_demand.evaluate, evaluation.follow.follow and by commands such as
  predict and export.
  """

  folder: RunFolder
  workers: Workers
  strategy: tf.distribute.Strategy
  devices: Devices
  trainer: Trainer  # all variables exist
  checkpoints: RunCheckpoints
  make_train_input: Callable[[], Input]  # reads the annotations of the training images
  eval_input: Input
  make_evaluator: Callable[[], Evaluator]
  total_steps: int
  initial_weights: PretrainedWeights | None = None  # None: random
  averages: ExponentialMovingAverage | None = None  # of the weights
  precise_statistics: Callable[..., tf_keras.callbacks.Callback] | None = None
  test_augmentation: TestTimeAugmentation | None = None
  log_every: int = 20
  checkpoint_every: int = 2500
  steps_per_execution: int = 1
  keep_best: bool | str = True
  checkpoint: str | int = 'latest'  # that is evaluated
  own_evaluation: bool = True  # False: a follower evaluates
  follow_minutes: float = 120.0
  notes: tuple[str, ...] = ()  # logged before the first step, a line each
  recorded: Identity | None = None  # of the run so far; None for a new run, or without a run folder
  allow_changes: bool = False  # continue with settings that are not those of the run so far
  hosts: int = 1  # of a TPU slice; with several, one runs Python, and each reads its records in a graph

  @functools.cached_property
  def train_input(self) -> Input:
    return self.make_train_input()

  @functools.cached_property
  def evaluator(self) -> Evaluator:
    return self.make_evaluator()

  @property
  def trackables(self) -> dict[str, Any]:
    """What checkpoints hold, by name."""
    averages = {} if self.averages is None else {AVERAGES: self.averages.state}
    return {'detector': self.trainer.detector, 'optimizer': self.trainer.optimizer} | averages

  @property
  def metric(self) -> str:
    """The metric that chooses the best checkpoint."""
    return self.keep_best if isinstance(self.keep_best, str) else self.evaluator.main_metric

  def batches(self, step: int, steps: int | None = None) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Training batches from a step on, at least `steps`; None: to the end of the schedule, for `fit`."""
    if self.hosts > 1:
      number = self.total_steps - step if steps is None else steps
      return self.strategy.distribute_datasets_from_function(
        lambda context: self.train_input.graph_dataset(step, number, context))
    if self.strategy.num_replicas_in_sync == 1:
      return self.train_input.dataset(step)
    return self.strategy.distribute_datasets_from_function(lambda context: self.train_input.dataset(step, context))

  def due(self, step: int) -> bool:
    """Whether this job evaluates after a step."""
    return self.own_evaluation and self.evaluator.due(step)

  def evaluated(self, step: int) -> bool:
    """Whether this job or a follower evaluates after a step."""
    apart = not self.own_evaluation and step % self.checkpoint_every == 0
    return step == self.total_steps or self.due(step) or apart
