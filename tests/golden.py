"""Golden cases: detectors with the weights, images and results of Detectron2's (the .npz files of RETHINK_TF_GOLDEN).

Models are built from the shapes in the checkpoint and the name of the case, so a new case is two files, or one if it
uses the weights of another case. tests/golden_cases.py compares their results.
"""

import functools
import os
import pathlib
from unittest import mock

import numpy as np
import tensorflow as tf
from pycocotools import mask as mask_api

from rethink_tf.data.detection.segmentation import crop_segmentation
from rethink_tf.models.cascade import Cascade
from rethink_tf.models.fpn import FPN
from rethink_tf.models.heads import BoxHead, MaskHead, RPNHead
from rethink_tf.models.keypoints import KeypointHead
from rethink_tf.models.mask_rcnn import MaskRCNN
from rethink_tf.models.norms import group_norm, no_norm, sync_batch_norm
from rethink_tf.models.resnet import BLOCKS, ResNet
from rethink_tf.models.rois import Anchors, AnchorSampler, RoIPooler, RoISampler
from rethink_tf.ops import anchors as anchor_ops
from rethink_tf.structures import Batch
from rethink_tf.training import losses as loss_functions
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.trainer import Trainer
from rethink_tf.weights import detectron2

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDER = ROOT / os.environ.get('RETHINK_TF_GOLDEN', '../shared/golden')
UPDATES = FOLDER.with_name(f'{FOLDER.name}_updates')  # whole gradients and one update of the same cases
tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': True})  # what runs once need not be optimised
RATE, DECAY, SAMPLES = 0.02, 1e-4, 1024  # of the update
ATTEMPTS = 8  # at the same rounding as Detectron2's
# A constant added to a heat map has no effect: the gradient of its bias is zero up to rounding.
WITHOUT_EFFECT = {'roi_heads.keypoint_head.score_lowres.bias'}


def swap(boxes):
  """x y x y <-> y x y x, of boxes and of deltas."""
  return np.asarray(boxes)[..., [1, 0, 3, 2]]


def half(values):
  return np.float32(np.float16(values))


class HalfAnchors(Anchors):
  """Anchors from cell anchors rounded to float16, as in the reference."""

  def __call__(self, features):
    exact = anchor_ops.cell_anchors
    with mock.patch.object(anchor_ops, 'cell_anchors', lambda *arguments: half(exact(*arguments))):
      return super().__call__(features)


class ExactMasks:
  """The losses with mask targets rasterised from polygons inside each RoI, as in Detectron2.

  Our targets, sampled from crops of 112 x 112, are compared with them: share of cells that differ, and the loss.
  """

  def __init__(self, polygons):
    self.polygons = polygons  # [images][instances][2 points] x y
    self.losses = loss_functions.MaskRCNNLoss(rpn_smooth_l1_beta=0.0, box_smooth_l1_beta=0.0,
                                              rpn_box_divisor='batch_size')
    self.differing, self.crop_loss = tf.Variable(0.0), tf.Variable(0.0)

  def __call__(self, outputs, batch):
    if outputs.masks is None:
      return self.losses(outputs, batch)
    ours, rois = outputs.masks, outputs.boxes[0].rois
    slots = tf.shape(ours.weights)[1]
    targets = tf.numpy_function(self.rasterise, [rois.boxes[:, :slots], rois.gt_index[:, :slots], ours.weights],
                                tf.float32)
    exact = ours._replace(targets=tf.ensure_shape(targets, ours.targets.shape))
    number = tf.reduce_sum(ours.weights) * tf.cast(tf.size(targets[0, 0]), tf.float32)
    self.differing.assign(tf.reduce_sum(tf.abs(targets - ours.targets) * ours.weights[..., None, None]) / number)
    self.crop_loss.assign(loss_functions.mask_loss(ours))
    return self.losses(outputs._replace(masks=exact), batch)

  def rasterise(self, boxes, gt_index, weights, side=28):
    targets = np.zeros([*weights.shape, side, side], np.float32)
    for image, slot in np.argwhere(weights):
      y0, x0, y1, x1 = boxes[image, slot]
      polygon = self.polygons[image][gt_index[image, slot]].copy()
      polygon[0::2] = (polygon[0::2] - x0) * (side / max(x1 - x0, 0.1))
      polygon[1::2] = (polygon[1::2] - y0) * (side / max(y1 - y0, 0.1))
      targets[image, slot] = mask_api.decode(mask_api.merge(mask_api.frPyObjects([polygon], side, side)))
    return targets


class RecordingTrainer(Trainer):
  """The trainer, whose forward and backward pass is traced once; the rest of its step runs eagerly.

  replay: losses and gradients that steps use instead of new ones.
  """

  replay = None

  def make_variables(self, batch):
    """Trace forward and backward pass, which creates all variables: a tf.function would be traced twice."""
    compute = super().gradients
    specs = [tf.TensorSpec.from_tensor(x) for x in tf.nest.flatten(batch)]
    self.traced = tf.compat.v1.wrap_function(lambda *x: compute(tf.nest.pack_sequence_as(batch, x)), specs)
    self.make_metrics(list(self.traced.structured_outputs[0]))
    self.built = True

  def gradients(self, batch):
    return self.replay or self.traced(*tf.nest.flatten(batch))


def build_detector(name, weights):
  """The detector of a checkpoint's arrays."""
  def out(layer):
    return weights[f'{layer}.weight'].shape[0]

  def count(pattern):  # of layers 1, 2, … of that name
    numbers = range(1, 100)
    return next(n for n in numbers if f'{pattern.format(n)}.weight' not in weights) - 1

  norm = no_norm
  if 'backbone.bottom_up.stem.conv1.norm.weight' in weights:
    batch_statistics = 'backbone.bottom_up.stem.conv1.norm.running_mean' in weights
    norm = sync_batch_norm if batch_statistics else group_norm
  stages = tuple(1 + count(f'backbone.bottom_up.res{stage}.{{}}.conv1') for stage in (2, 3, 4, 5))
  inner, grouped = weights['backbone.bottom_up.res2.0.conv2.weight'].shape[:2]
  cascaded = 'roi_heads.box_head.0.conv1.weight' in weights
  box, mask = 'roi_heads.box_head' + '.0' * cascaded, 'roi_heads.mask_head'
  keypoint, score = 'roi_heads.keypoint_head', 'roi_heads.keypoint_head.score_lowres.weight'
  box_head = functools.partial(BoxHead, count(f'{box}.conv{{}}'), count(f'{box}.fc{{}}'), out(f'{box}.conv1'),
                               out(f'{box}.fc1'), norm)
  num_classes = out('roi_heads.box_predictor' + '.0' * cascaded + '.cls_score') - 1
  parts = {}
  if f'{mask}.predictor.weight' in weights:
    parts['mask_head'] = MaskHead(count(f'{mask}.mask_fcn{{}}'), out(f'{mask}.mask_fcn1'), norm)
  if cascaded:
    parts['cascade'] = functools.partial(Cascade, head=box_head, gradient_scales=(1 / 3,) * 3, mask_stage='first')
  if score in weights:
    parts['keypoint_head'] = KeypointHead(count(f'{keypoint}.conv_fcn{{}}'), out(f'{keypoint}.conv_fcn1'))
    parts['num_keypoints'] = weights[score].shape[1]
  aligned = not name.endswith('_legacyalign')
  return MaskRCNN(
    num_classes,
    ResNet({blocks: depth for depth, blocks in BLOCKS.items()}[stages], norm, groups=inner // grouped,
           width_per_group=grouped, stem_width=out('backbone.bottom_up.stem.conv1'),
           res2_width=out('backbone.bottom_up.res2.0.conv3')),
    FPN(out('backbone.fpn_output2'), norm),
    RPNHead(out('proposal_generator.rpn_head.conv'), out('proposal_generator.rpn_head.objectness_logits')),
    box_head(),
    anchors=HalfAnchors(offset=0.0),
    anchor_sampler=AnchorSampler(batch_size=100000, positive_fraction=1.0, drop_straddling=False),
    roi_sampler=RoISampler(batch_size=5000, positive_fraction=1.0),
    roi_pooler=functools.partial(RoIPooler, aligned=aligned),
    pixel_mean=half([123.675, 116.28, 103.53]).tolist(), pixel_std=half([58.395, 57.12, 57.375]).tolist(),
    **parts)


def read_batch(golden):
  """The two images of a case with their ground truth."""
  images = np.stack([golden['image0'], golden['image1']])
  height, width = images.shape[1:3]
  boxes = np.stack([swap(golden[f'gt{i}_boxes']) for i in (0, 1)])
  masks = [[crop_segmentation([polygon], box.astype(np.float64), height, width)
            for polygon, box in zip(golden[f'gt{i}_polygons'], boxes[i], strict=True)] for i in (0, 1)]
  size = [[height, width]] * 2
  keypoints = np.zeros([2, boxes.shape[1], 0, 3], np.float32)
  if 'gt0_keypoints' in golden:  # x y in continuous coordinates -> y x as indices of pixel centres
    keypoints = np.stack([golden[f'gt{i}_keypoints'] for i in (0, 1)])[..., [1, 0, 2]] - np.float32([0.5, 0.5, 0])
  values = Batch(
    images=images, image_sizes=np.float32(size), scales=np.ones([2, 2], np.float32), original_sizes=np.int32(size),
    image_ids=np.int64([1, 2]), seeds=np.int32([[1, 2], [3, 4]]), gt_boxes=boxes,
    gt_classes=np.int32([golden[f'gt{i}_classes'] + 1 for i in (0, 1)]), gt_masks=np.uint8(masks),
    gt_keypoints=keypoints)
  return tf.nest.map_structure(tf.constant, values)


class Case:
  """One case: the detector with its weights, and cached results of each stage."""

  def __init__(self, name):
    self.name = name
    self.golden, self.updates = read_arrays(FOLDER / f'{name}.npz'), read_arrays(UPDATES / f'{name}.npz')
    self.weights = detectron2.read(str(weights_path(FOLDER, name)))
    self.batch = read_batch(self.golden)
    self.losses = ExactMasks([self.golden[f'gt{i}_polygons'] for i in (0, 1)])
    self.trainer = RecordingTrainer(build_detector(name, self.weights), self.losses)
    self.trainer.make_variables(self.batch)
    self.entries = detectron2.table(self.detector)
    self.report = []
    self.reset()

  def reset(self):
    detectron2.assign(self.entries, self.weights, self.name)

  @property
  def detector(self):
    return self.trainer.detector

  @functools.cached_property
  def maps(self):
    """C2..C5 and P2..P6 of both images."""
    c = self.detector.backbone(self.detector.normalise(self.batch.images, self.batch.image_sizes))
    return c | self.detector.fpn(c)

  @property
  def pyramid(self):
    return {level: values for level, values in self.maps.items() if level.startswith('P')}

  @functools.cached_property
  def outputs(self):
    rpn, proposals = self.detector.propose(self.pyramid, self.batch.image_sizes, training=False)
    return self.detector.detect(self.pyramid, rpn, proposals, self.batch.image_sizes)

  @functools.cached_property
  def first_step(self):
    """Losses, and gradients by Detectron2's names; for mask targets from crops, the share of cells that differ, and
    the loss.

    Rounding decides which of two boxes with an IoU of 0.7 is a proposal, and which units at a ReLU's kink are active.
    Where gradients just miss the tolerance, other rounding errors are tried.
    """
    for attempt in range(ATTEMPTS):
      losses, gradients = self.first_step_with_noise(attempt)
      if not self.is_near_miss(losses, gradients):
        break
    return losses, gradients, (float(self.losses.differing), float(self.losses.crop_loss))

  def first_step_with_noise(self, seed):
    """Losses and gradients, with relative noise of 1e-7 in the first kernel unless the seed is 0."""
    self.reset()
    kernel = self.detector.backbone.stem.conv.kernel
    kernel.assign(kernel * (1 + np.random.default_rng(seed).normal(0, 1e-7 if seed else 0, kernel.shape)))
    self.computed = losses, gradients = self.trainer.gradients(self.batch)
    self.statistics = {name: self.entries[name].variable.numpy() for name in self.weights if '.running_' in name}
    names = {id(entry.variable): name for name, entry in self.entries.items()}
    names = [names[id(variable)] for variable in self.detector.trainable_variables]
    return ({name.removeprefix('loss/'): float(value) for name, value in losses.items()},
            {name: gradient.numpy() for name, gradient in zip(names, gradients, strict=True)})

  def is_near_miss(self, losses, gradients):
    """Whether all losses agree, but directions of gradients exceed the tolerance by a small factor."""
    if not self.updates or abs(losses['total'] / self.golden['trajectory_total'][0] - 1) > 1e-4:
      return False
    error = max(self.directions(gradients).values())
    return self.tolerance < error < 4 * self.tolerance

  @property
  def has_batch_norm(self):
    return any('running_mean' in name for name in self.weights)

  @property
  def tolerance(self):
    """Of 1 - cosine between gradients; batch statistics amplify rounding."""
    return 1e-3 if self.has_batch_norm else 3e-4

  def directions(self, gradients):
    """1 - cosine between sampled gradients and Detectron2's, by name."""
    errors = {}
    for name in gradients.keys() - WITHOUT_EFFECT:
      ours, golden = self.sample(name, gradients[name]), np.float64(self.updates[f'gradient/{name}'])
      errors[name] = 1 - ours @ golden / max(np.linalg.norm(ours) * np.linalg.norm(golden), 1e-30)
    return errors

  def update(self, bias_rule):
    """Parameters by Detectron2's names after one step of the trainer, on the first step's gradients, at RATE, DECAY."""
    self.first_step  # noqa: B018
    self.reset()
    self.trainer.compile(SGD(RATE, weight_decay=DECAY, bias_rule=bias_rule))
    self.trainer.replay = self.computed
    self.trainer.train_step(self.batch)
    self.trainer.replay = None
    return {name: entry.variable.numpy() for name, entry in self.entries.items()}

  @functools.cached_property
  def steps(self):
    """Losses of five training steps."""
    self.reset()
    self.trainer.compile(SGD(*(float(self.golden[f'sgd_{key}']) for key in ('lr', 'momentum', 'weight_decay')),
                             bias_rule='detectron2'))
    steps = []
    for _ in self.golden['trajectory_total']:
      self.trainer.reset_metrics()
      steps.append({name.removeprefix('loss/'): float(value) for name, value in
                    self.trainer.train_step(self.batch).items()})
    return steps

  def gradient(self, name):
    """The sampled gradient of the first step; zeros of a parameter that does not learn."""
    variable = self.entries[name].variable
    return self.sample(name, self.first_step[1].get(name, np.zeros(variable.shape)))

  def weights_of(self, name):
    """The initial value of a parameter, in our layout."""
    return self.entries[name].convert(np.float32(self.weights[name]))

  def sample(self, name, value):
    """The elements of one of our arrays that the golden updates hold: SAMPLES of Detectron2's flattened array."""
    shape, size = self.weights[name].shape, value.size
    places = np.unique(np.linspace(0, size - 1, min(size, SAMPLES)).round().astype(int))
    flat = np.empty(size)
    flat[self.entries[name].convert(np.arange(size).reshape(shape)).ravel()] = value.ravel()
    return flat[places]

  def check(self, stage, error, limit, where=''):
    """Assert that an error does not exceed its limit, and add it to the report."""
    self.report.append((stage, float(error), limit, where))
    assert error <= limit, f'{self.name}: {stage}: {error:.3g} > {limit:g} {where}'.rstrip()

  def compare(self, stage, ours, golden, limit=1e-4):
    """Check the largest difference relative to the largest value."""
    ours = np.asarray(ours)
    assert ours.shape == golden.shape
    self.check(stage, np.abs(ours - golden).max() / np.abs(golden).max(), limit)

  def compare_parameters(self, stage, errors, limit):
    """Check the largest of the errors {parameter: error}; none is larger than NaN."""
    worst = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf))
    self.check(stage, errors[worst], limit, worst)


def weights_path(folder, name):
  """The checkpoint of a case: its own, or that of the case whose RoIAlign is aligned."""
  own = folder / f'{name}.pkl'
  return own if own.exists() else folder / f"{name.removesuffix('_legacyalign')}.pkl"


def read_arrays(path):
  if not path.exists():
    return {}
  with np.load(path) as arrays:
    return dict(arrays)
