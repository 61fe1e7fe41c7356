"""Test-time augmentation: detection on resized and mirrored views of each image, merged (section 5.1, Table 3).

Detectron merges all boxes of all classes before suppression, Detectron2 the final detections of each view. In both,
masks are then predicted at the merged boxes in every view and averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gin
import numpy as np
import tensorflow as tf

from rethink_tf.data import augment, keypoint_pairs
from rethink_tf.data.detection.input import EvalInput
from rethink_tf.data.detection.views import ViewsInput
from rethink_tf.errors import UserError, check_at_least
from rethink_tf.models.mask_rcnn import roi_pyramid
from rethink_tf.ops import boxes as box_ops
from rethink_tf.structures import Detections, Source, Views

if TYPE_CHECKING:
  from rethink_tf.training.trainer import Trainer

MERGES = ('candidates', 'detections')


@gin.register
class TestTimeAugmentation:
  """The views of an image on which a detector runs, and the merging of their results.

  The defaults are Detectron's; gin_configs/augment has both variants. Every view is resized from the original image.
  Suppression, its thresholds and the number of detections are those of the detector's DetectionGenerator.

  Args:
    views: (short side, largest long side) of each; detections are in pixels of the first.
    flip: also use the mirror image of each view.
    merge: 'candidates', all boxes and scores of all views before suppression (Detectron), or 'detections', the final
      ones of each view (Detectron2).
    vote_iou: box voting: each box becomes the mean, weighted by scores, of the candidates of its class that overlap it
      by at least this IoU; its score stays. None: no voting.
    keypoint_area: heat maps of objects up to this area (in original pixels) are not taken from views smaller than the
      first, those of larger objects not from larger views (Detectron's size-dependent scales); None: from all views.
    flip_order: index of the mirrored counterpart of each keypoint; None: from the names of the data's keypoints.

  Raises:
    UserError: no or impossible views, an unknown merge, a vote_iou outside (0, 1], or keypoints with 'detections'.
      predictor: a flip_order that is not a permutation of the keypoints.
  """

  def __init__(
    self,
    views: Sequence[tuple[int, int]] = ((800, 1333), (400, 2000), (500, 2000), (600, 2000), (700, 2000), (900, 2000),
                                        (1000, 2000), (1100, 2000), (1200, 2000)),
    flip: bool = True,
    merge: str = 'candidates',
    vote_iou: float | None = 0.9,
    keypoint_area: float | None = 180.0**2,
    flip_order: Sequence[int] | None = None,
  ):
    if not views or any(len(view) != 2 for view in views):
      raise UserError(f'TestTimeAugmentation.views = {views}: give pairs of short side and largest long side')
    if merge not in MERGES:
      raise UserError(f"TestTimeAugmentation.merge = {merge!r}: use one of {', '.join(MERGES)}")
    if vote_iou is not None and not 0 < vote_iou <= 1:
      raise UserError(f'TestTimeAugmentation.vote_iou = {vote_iou}: use a number above 0, at most 1, or None')
    check_at_least('TestTimeAugmentation', 0, keypoint_area=keypoint_area)
    self.resizes = [augment.Resize((short,), long) for short, long in views]
    self.flip, self.merge, self.vote_iou = flip, merge, vote_iou
    self.keypoint_area, self.flip_order = keypoint_area, flip_order

  def views_of(self, inputs: EvalInput) -> ViewsInput:
    """Return the input that yields views of the images in place of a plain evaluation's batches."""
    return ViewsInput(inputs, self.resizes)

  def predictor(self, trainer: Trainer, source: Source) -> Callable[[Views], Detections]:
    """Return the function that replaces the trainer's predict_batch; the names of keypoints are those of `source`."""
    detector = trainer.detector
    if not hasattr(detector, 'score_boxes'):
      raise UserError('run.test_augmentation merges detections, which this model does not have: leave it out')
    order = self.flip_order
    if getattr(detector, 'keypoint_head', None) is not None:
      if self.merge == 'detections':
        raise UserError("TestTimeAugmentation.merge = 'detections' does not support keypoints (nor does Detectron2): "
                        'use gin_configs/augment/tta_detectron.gin')
      number = detector.keypoint_predictor.deconv.filters
      if order is not None and sorted(order) != list(range(number)):
        raise UserError(f'TestTimeAugmentation.flip_order = {tuple(order)}: give each of 0 to {number - 1} once, the '
                        'index of the counterpart of each keypoint, or None')
      order = keypoint_pairs.flip_orders(source.categories, source.num_keypoints) if order is None else order
    order = np.array(() if order is None else order, int)
    if order.ndim == 2 and (order == order[0]).all():
      order = order[0]
    return Predictor(trainer, self, order)


class Predictor:
  """Views -> Detections in pixels of the first view, on all devices of a trainer.

  Each step is a function of its own, run view by view, so that the memory is that of the largest view. Features are
  computed again for the masks, as in Detectron: 18 pyramids would not fit into memory.
  """

  def __init__(self, trainer: Trainer, settings: TestTimeAugmentation, flip_order: np.ndarray):
    """flip_order: int [P], or [K, P] if it depends on the class; empty without keypoints."""
    self.trainer, self.detector, self.settings, self.flip_order = trainer, trainer.detector, settings, flip_order
    # Unless shapes must be static, one graph for all padded shapes, of which there are some sixty.
    plain = tf.autograph.experimental.do_not_convert  # as in Trainer
    self._steps = {step: tf.function(plain(step), autograph=False, reduce_retracing=not self.detector.xla) for step in (
      self.find, self.merge, self.add_masks, self.mean_masks, self.add_heatmaps, self.mean_keypoints)}

  def __call__(self, views: Views) -> Detections:
    shared = self.trainer.shard(views)
    found = [self._run(self.find, *view) for view in self._each(shared)]
    detections = self._run(self.merge, found)
    if self.detector.mask_head is not None:
      masks = None
      for view in self._each(shared):
        masks = self._run(self.add_masks, masks, detections, *view)
      detections = self._run(self.mean_masks, masks, detections)
    if self.detector.keypoint_head is not None:
      sums = None
      for view in self._each(shared):
        sums = self._run(self.add_heatmaps, sums, detections, *view)
      detections = self._run(self.mean_keypoints, sums, detections, shared.images[0])
    return self.trainer.gather(detections)

  def _run(self, step: Callable[..., Any], *arguments: Any) -> Any:
    return self.trainer.run_step(self._steps[step], *arguments)

  def _each(self, views: Views) -> Iterator[tuple]:
    """Yield images, image_sizes, scales, scales of the first view and whether it is mirrored, of every view."""
    for view in zip(views.images, views.image_sizes, views.view_scales, strict=True):
      for mirrored in (False, True)[:1 + self.settings.flip]:
        yield *view, views.view_scales[0], tf.constant(mirrored)

  # In the steps, a view is: images [B, H, W, 3], image_sizes [B, 2], scales [B, 2], first_scales [B, 2], mirrored [].

  def find(self, images: tf.Tensor, image_sizes: tf.Tensor, scales: tf.Tensor, first_scales: tf.Tensor,
           mirrored: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Detect in one view: boxes [B, n, K or 1, 4] in pixels of the first view, scores [B, n, K], valid bool [B, n]."""
    detector, features = self.detector, self._features(images, image_sizes, mirrored)
    _, proposals = detector.propose(features, image_sizes, False)
    pyramid = roi_pyramid(features)
    if self.settings.merge == 'candidates':
      _, boxes, scores = detector.score_boxes(pyramid, proposals, image_sizes)
      valid = proposals.valid
    else:
      _, found = detector.detect_boxes(pyramid, proposals, image_sizes)
      scores = found.scores[..., None] * tf.one_hot(found.classes - 1, detector.num_classes)
      boxes, valid = found.boxes[:, :, None, :], found.classes > 0
    return to_first_view(boxes, image_sizes, scales, first_scales, mirrored), scores, valid

  def merge(self, found: list[tuple[tf.Tensor, tf.Tensor, tf.Tensor]]) -> Detections:
    """Suppress duplicates among the boxes of all views, and apply box voting."""
    boxes, scores, valid = (tf.concat(views, 1) for views in zip(*found, strict=True))
    generator = self.detector.detection_generator
    detections = generator.select(boxes, scores, valid, self.detector.nms_form)
    if self.settings.vote_iou is None:
      return detections
    votes = tf.where((scores > generator.score_threshold) & valid[..., None], scores, 0.0)
    return detections._replace(boxes=vote(detections, boxes, votes, self.settings.vote_iou))

  def add_masks(self, total: tf.Tensor | None, detections: Detections, images: tf.Tensor, image_sizes: tf.Tensor,
                scales: tf.Tensor, first_scales: tf.Tensor, mirrored: tf.Tensor) -> tf.Tensor:
    """Add the mask probabilities of a view to the sum of the earlier ones [B, D, 28, 28], None for the first."""
    boxes = from_first_view(detections.boxes, image_sizes, scales, first_scales, mirrored)
    pyramid = roi_pyramid(self._features(images, image_sizes, mirrored))
    masks = self.detector.detect_masks(pyramid, detections._replace(boxes=boxes)).masks
    masks = tf.where(mirrored, masks[..., ::-1], masks)
    return masks if total is None else total + masks

  def mean_masks(self, total: tf.Tensor, detections: Detections) -> Detections:
    """Give detections the mean mask probabilities of all views, from their sum [B, D, 28, 28]."""
    return detections._replace(masks=total / (len(self.settings.resizes) * (1 + self.settings.flip)))

  def add_heatmaps(self, sums: tuple[tf.Tensor, tf.Tensor] | None, detections: Detections, images: tf.Tensor,
                   image_sizes: tf.Tensor, scales: tf.Tensor, first_scales: tf.Tensor,
                   mirrored: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Add the heat maps of a view to the sum [B, M, P, 56, 56] over the views that count for a detection, and to the
    number [B, M] of these views."""
    slots = self.detector.mask_slots(detections.classes, detections.classes.shape[1])
    first, classes = detections.boxes[:, :slots], detections.classes[:, :slots]
    boxes = from_first_view(first, image_sizes, scales, first_scales, mirrored)
    pyramid = roi_pyramid(self._features(images, image_sizes, mirrored))
    maps = self.detector.keypoint_logits(pyramid, boxes, classes > 0)
    maps = tf.where(mirrored, exchange_sides(maps, classes, self.flip_order)[..., ::-1], maps)
    counts = tf.cast(self._counts(first, scales, first_scales), tf.float32)
    maps *= counts[:, :, None, None, None]
    return (maps, counts) if sums is None else (sums[0] + maps, sums[1] + counts)

  def mean_keypoints(self, sums: tuple[tf.Tensor, tf.Tensor], detections: Detections, images: tf.Tensor) -> Detections:
    """Place keypoints by the mean heat maps, in pixels of the first view; images: of that view, for their shape."""
    maps, counts = sums
    height, width = (images.shape[axis] or tf.shape(images)[axis] for axis in (1, 2))
    return self.detector.place_keypoints(maps / counts[:, :, None, None, None], detections, (height, width))

  def _features(self, images: tf.Tensor, image_sizes: tf.Tensor, mirrored: tf.Tensor) -> dict[str, tf.Tensor]:
    images = mirror(images, image_sizes, mirrored)
    return self.detector.fpn(self.detector.backbone(self.detector.normalise(images, image_sizes)))

  def _counts(self, boxes: tf.Tensor, scales: tf.Tensor, first_scales: tf.Tensor) -> tf.Tensor:
    """Whether a view counts for the keypoints of boxes [B, M, 4] in the first view -> bool [B, M]."""
    if self.settings.keypoint_area is None:
      return tf.ones(tf.shape(boxes)[:2], tf.bool)
    original = boxes / tf.concat([first_scales, first_scales], 1)[:, None]
    small = box_ops.area(original) <= self.settings.keypoint_area
    larger = tf.reduce_all(scales > first_scales, 1)[:, None]
    smaller = tf.reduce_all(scales < first_scales, 1)[:, None]
    return ~(small & smaller) & ~(~small & larger)


def exchange_sides(maps: tf.Tensor, classes: tf.Tensor, order: np.ndarray) -> tf.Tensor:
  """Return the maps [B, M, P, ...] of the counterparts of keypoints; order: int [P], or [K, P] by class [B, M]."""
  order = tf.constant(order, tf.int32)
  if order.shape.rank == 1:
    return tf.gather(maps, order, axis=2)
  return tf.gather(maps, tf.gather(order, tf.maximum(classes, 1) - 1), axis=2, batch_dims=2)


def mirror(images: tf.Tensor, image_sizes: tf.Tensor, mirrored: tf.Tensor) -> tf.Tensor:
  """Flip images [B, H, W, 3] left to right if `mirrored`, each within its own width; the padding stays in place."""
  widths = tf.cast(tf.round(image_sizes[:, 1]), tf.int32)
  return tf.reverse_sequence(images, tf.where(mirrored, widths, 0), seq_axis=2, batch_axis=0)


def to_first_view(boxes: tf.Tensor, image_sizes: tf.Tensor, scales: tf.Tensor, first_scales: tf.Tensor,
                  mirrored: tf.Tensor) -> tf.Tensor:
  """Convert boxes [B, ..., 4] of a view, mirrored or not, to pixels of the first view."""
  factors = tf.tile(first_scales / scales, [1, 2])
  return _mirror_boxes(boxes, image_sizes, mirrored) * _per_image(factors, boxes)


def from_first_view(boxes: tf.Tensor, image_sizes: tf.Tensor, scales: tf.Tensor, first_scales: tf.Tensor,
                    mirrored: tf.Tensor) -> tf.Tensor:
  """Invert `to_first_view`."""
  factors = tf.tile(scales / first_scales, [1, 2])
  return _mirror_boxes(boxes * _per_image(factors, boxes), image_sizes, mirrored)


def vote(detections: Detections, boxes: tf.Tensor, votes: tf.Tensor, iou: float) -> tf.Tensor:
  """Apply box voting (as in Detectron): the mean of overlapping candidates of the same class, weighted by their scores.

  boxes: candidates [B, N, K or 1, 4]; votes: their scores [B, N, K], 0 where one does not count. Returns [B, D, 4]; a
  box without votes is unchanged.
  """
  own = tf.maximum(detections.classes - 1, 0)  # [B, D]
  candidates = tf.transpose(boxes, [0, 2, 1, 3])  # [B, K or 1, N, 4]
  candidates = tf.gather(candidates, own if boxes.shape[2] > 1 else tf.zeros_like(own), batch_dims=1)  # [B, D, N, 4]
  weights = tf.gather(tf.transpose(votes, [0, 2, 1]), own, batch_dims=1)  # [B, D, N]
  overlaps = box_ops.iou(detections.boxes[:, :, None, :], candidates)[:, :, 0]
  weights = tf.where(overlaps >= iou, weights, 0.0)
  total = tf.reduce_sum(weights, 2)[..., None]
  mean = tf.math.divide_no_nan(tf.reduce_sum(weights[..., None] * candidates, 2), total)
  return tf.where((total > 0) & (detections.classes > 0)[..., None], mean, detections.boxes)


def _mirror_boxes(boxes: tf.Tensor, image_sizes: tf.Tensor, mirrored: tf.Tensor) -> tf.Tensor:
  y0, x0, y1, x1 = tf.unstack(boxes, axis=-1)
  width = tf.reshape(image_sizes[:, 1], [-1] + [1] * (boxes.shape.rank - 2))
  return tf.where(mirrored, tf.stack([y0, width - x1, y1, width - x0], axis=-1), boxes)


def _per_image(factors: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
  return tf.reshape(factors, [-1] + [1] * (boxes.shape.rank - 2) + [4])
