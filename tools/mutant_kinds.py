"""The mutants: one error each, planted in a part of the package that a golden case runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple
from unittest import mock

import tensorflow as tf

from rethink_tf.models import cascade, fpn, heads, keypoints, mask_rcnn, norms, resnet, rois
from rethink_tf.models.mask_rcnn import MaskRCNN
from rethink_tf.ops import boxes as box_ops
from rethink_tf.ops import group_norm as group_norm_ops
from rethink_tf.structures import BoxOutputs
from rethink_tf.training import losses
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.trainer import Trainer
from rethink_tf.weights import detectron2

GN, BN = 'mask_rcnn_r50_fpn_gn', 'mask_rcnn_r50_fpn_bn'
CASCADE, KEYPOINTS = 'cascade_r50_fpn_gn', 'keypoint_r50_fpn_gn'
X50 = 'mask_rcnn_x50_fpn_gn'  # where the class loss does not outweigh the mask loss

UPDATES = ('update (detectron2)', 'update (detectron)')
STEP = ('losses', 'gradient norms', 'gradients', *UPDATES)

Patch = Callable[[], AbstractContextManager]
Change = Callable[[Callable[..., Any]], Callable[..., Any]]


class Mutant(NamedTuple):
  """An error, and the golden checks (keys of mutants.CHECKS) that are to notice it.

  built: False if the error is not in the detector, whose gradients are then those of the unmutated case.
  """

  name: str
  case: str
  patch: Patch
  checks: tuple[str, ...] = STEP
  built: bool = True


def replaced(target: Any, attribute: str, change: Change) -> Patch:
  """A function or method becomes change(function)."""
  return lambda: mock.patch.object(target, attribute, change(getattr(target, attribute)))


def setting(target: type, **values: Any) -> Patch:
  """Objects of a class have other attributes, from the end of their constructor on."""
  def change(construct):
    def constructor(self, *arguments, **named):
      construct(self, *arguments, **named)
      for name, value in values.items():
        setattr(self, name, value)
    return constructor
  return replaced(target, '__init__', change)


def ascending(function: Callable[..., Any]) -> Callable[..., Any]:
  """The same loss, with the gradient's sign flipped."""
  def loss(*arguments):
    value = function(*arguments)
    return 2 * tf.stop_gradient(value) - value
  return loss


def ascending_boxes(box_losses: Callable[..., Any]) -> Callable[..., Any]:
  def box(*arguments):
    entropy, regression = box_losses(*arguments)
    return entropy, 2 * tf.stop_gradient(regression) - regression
  return box


def ascending_rpn(rpn_losses: Callable[..., Any]) -> Callable[..., Any]:
  def rpn(*arguments):
    found = rpn_losses(*arguments)
    return {**found, 'rpn/box': 2 * tf.stop_gradient(found['rpn/box']) - found['rpn/box']}
  return rpn


def over_foreground(box_losses: Callable[..., Any]) -> Callable[..., Any]:
  """The regression loss is a mean over the foreground instead of all RoIs."""
  def box(outputs: BoxOutputs, beta: float):
    entropy, regression = box_losses(outputs, beta)
    foreground = tf.reduce_sum(tf.cast(outputs.rois.classes > 0, tf.float32))
    return entropy, regression * tf.reduce_sum(outputs.rois.weights) / foreground
  return box


def detached_features(logits: Callable[..., Any]) -> Callable[..., Any]:
  """A head does not train the features that it pools."""
  return lambda self, pyramid, *rest: logits(self, pyramid._replace(pixels=tf.stop_gradient(pyramid.pixels)), *rest)


def next_class(mask_logits: Callable[..., Any]) -> Callable[..., Any]:
  def logits(self, pyramid, boxes, classes):
    return mask_logits(self, pyramid, boxes, tf.where(classes > 0, classes % self.num_classes + 1, 0))
  return logits


def detached_shortcut(call: Callable[..., Any]) -> Callable[..., Any]:
  def block(self, x):
    if self.shortcut is not None:
      return call(self, x)
    return tf.nn.relu(self.conv3(self.conv2(self.conv1(x))) + tf.stop_gradient(x))
  return block


def half_cell_lower(crop_targets: Callable[..., Any]) -> Callable[..., Any]:
  def targets(masks, boxes, rois_, index):
    height = (rois_[..., 2] - rois_[..., 0])[..., None] / 56
    return crop_targets(masks, boxes, rois_ + height * tf.constant([1., 0., 1., 0.]), index)
  return targets


@contextlib.contextmanager
def constant_statistics() -> Iterator[None]:
  """The gradient of GroupNorm treats means and variances as constants."""
  exact = group_norm_ops._backward

  def backward(groups, x, gamma, mean, inverse_std, dy):
    _, d_gamma, d_beta = exact(groups, x, gamma, mean, inverse_std, dy)
    return dy * gamma * inverse_std[:, None, None, :], d_gamma, d_beta

  group_norm_ops._group_norm.cache_clear()
  with mock.patch.object(group_norm_ops, '_backward', backward):
    yield
  group_norm_ops._group_norm.cache_clear()


def rule_of(rule: Callable[[str, str, tuple[float, float], float], tuple[float, float]]) -> Patch:
  """Another rate or decay of variables: rule(kind, bias_rule, (multiple, decay), SGD.decay) -> (multiple, decay)."""
  return replaced(SGD, 'rule', lambda own: lambda self, name: rule(
    name.split(':')[0].rsplit('/', 1)[-1], self.bias_rule, own(self, name), self.decay))


def decoupled(update_step: Callable[..., Any]) -> Callable[..., Any]:
  """The decay is not multiplied by the rate, and not in the velocity."""
  def update(self, gradient, variable):
    index = self._index_dict[self._var_key(variable)]
    multiple, decay = self._rules[index]
    self._rules[index] = multiple, 0.
    update_step(self, gradient, variable)
    self._rules[index] = multiple, decay
    variable.assign_sub(decay * variable)
  return update


OF_THE_OPTIMIZER = [
  ('no weight decay', rule_of(lambda kind, rule, own, decay: (own[0], 0.))),
  ('norms decay', rule_of(lambda kind, rule, own, decay: (own[0], decay if kind in ('gamma', 'beta') else own[1]))),
  ('biases decay under the rule `detectron`',
   rule_of(lambda kind, rule, own, decay: (own[0], decay if kind == 'bias' else own[1]))),
  ('biases do not decay under the rule `detectron2`',
   rule_of(lambda kind, rule, own, decay: (own[0], 0. if kind == 'bias' else own[1]))),
  ('betas of norms at the single rate under the rule `detectron`',
   rule_of(lambda kind, rule, own, decay: (1. if kind == 'beta' else own[0], own[1]))),
  ('gammas of norms at twice the rate under the rule `detectron`',
   rule_of(lambda kind, rule, own, decay: (2. if kind == 'gamma' and rule == 'detectron' else own[0], own[1]))),
  ('always the rule `detectron`', setting(SGD, bias_rule='detectron')),
  ('always the rule `detectron2`', setting(SGD, bias_rule='detectron2')),
  ('decay half as large', setting(SGD, decay=5e-5)),
  ('decay decoupled from the rate', replaced(SGD, 'update_step', decoupled)),
  ('Nesterov momentum', setting(SGD, nesterov=True)),
  ('gradients damped by 1 - momentum',
   replaced(SGD, 'update_step', lambda update: lambda self, g, v: update(self, (1 - self.momentum) * g, v))),
  ('gradients clipped to a global norm of 35', setting(SGD, global_clipnorm=35.)),
]

MUTANTS = [
  *(Mutant(name, GN, patch, UPDATES, built=False) for name, patch in OF_THE_OPTIMIZER),
  Mutant('no momentum', GN, setting(SGD, momentum=0.), ('trajectory',), built=False),
  # Other cases.
  Mutant('BatchNorm: epsilon 1e-3', BN, setting(norms.SyncBatchNorm, epsilon=1e-3)),
  Mutant('BatchNorm: momentum 0.99', BN, setting(norms.SyncBatchNorm, momentum=0.99), ('moving statistics',)),
  Mutant('keypoint loss ascends', KEYPOINTS, replaced(losses, 'keypoint_loss', ascending)),
  Mutant('keypoint head frozen', KEYPOINTS, setting(keypoints.KeypointHead, trainable=False)),
  Mutant('keypoints shifted by half a pixel', KEYPOINTS, replaced(mask_rcnn, 'heatmap_targets', lambda own: (
    lambda points, *rest: own(points - [0.5, 0.5, 0.], *rest)))),
  Mutant('stages of the cascade train the features at the full rate', CASCADE,
         setting(cascade.Cascade, gradient_scales=(1., 1., 1.))),
  Mutant('masks trained on the last stage', CASCADE, setting(cascade.Cascade, mask_stage='last')),
  # Losses.
  Mutant('loss divided by two replicas', GN, replaced(Trainer, 'scaled', lambda own: lambda self, loss: loss / 2)),
  Mutant('mask loss ascends', GN, replaced(losses, 'mask_loss', ascending)),
  Mutant('box regression ascends', GN, replaced(losses, 'box_losses', ascending_boxes)),
  Mutant('RPN box regression ascends', GN, replaced(losses, 'rpn_losses', ascending_rpn)),
  Mutant('box loss smooth L1, beta 1', GN, setting(losses.MaskRCNNLoss, box_beta=1.)),
  Mutant('RPN box loss divided by sampled anchors', GN, setting(losses.MaskRCNNLoss, rpn_box_divisor='sampled')),
  Mutant('box regression divided by the foreground', GN, replaced(losses, 'box_losses', over_foreground)),
  Mutant('mask of the next class', GN, replaced(MaskRCNN, 'mask_logits', next_class)),
  Mutant('mask targets half a cell lower', GN, replaced(mask_rcnn, 'crop_targets', half_cell_lower)),
  # What trains.
  Mutant('mask head frozen', GN, setting(heads.MaskHead, trainable=False)),
  Mutant('mask loss does not train the features', X50, replaced(MaskRCNN, 'mask_logits', detached_features)),
  Mutant('top-down path of the FPN without gradient', GN,
         replaced(fpn, 'upsample', lambda own: lambda x: tf.stop_gradient(own(x)))),
  Mutant('shortcuts without gradient', GN, replaced(resnet.Bottleneck, 'call', detached_shortcut)),
  Mutant('GroupNorm: gradient with constant statistics', GN, constant_statistics),
  # Networks.
  Mutant('no top-down path in the FPN', GN, replaced(fpn, 'upsample', lambda own: lambda x: tf.zeros_like(own(x)))),
  Mutant('GroupNorm of 16 groups', GN, setting(norms.GroupNorm, groups=16)),
  Mutant('GroupNorm: epsilon 1e-3', GN, setting(norms.GroupNorm, epsilon=1e-3)),
  # Boxes.
  Mutant('anchors shifted by half a cell', GN, setting(rois.Anchors, offset=0.5)),
  Mutant('dx and dy of targets swapped', GN, replaced(box_ops, 'encode', lambda own: lambda *rest: tf.gather(
    own(*rest), [1, 0, 2, 3], axis=-1))),
  Mutant('box weights (5, 5, 10, 10)', GN, setting(rois.RoISampler, box_weights=(5., 5., 10., 10.))),
  Mutant('background is the last class', GN, replaced(detectron2, 'background_first', lambda own: lambda w: w)),
  Mutant('anchors positive from an IoU of 0.6', GN, setting(rois.AnchorSampler, positive_iou=0.6)),
  Mutant('RoIs foreground from an IoU of 0.6', GN, setting(rois.RoISampler, foreground_iou=0.6)),
  Mutant('RoIAlign without the half-cell shift', GN, setting(rois.RoIPooler, aligned=False)),
  Mutant('proposals suppressed at an IoU of 0.6', GN, setting(rois.ProposalGenerator, nms_iou=0.6)),
]
