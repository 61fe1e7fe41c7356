"""Parameters and multiply-adds of networks, counted in their graphs: nothing is allocated or computed.

Convention: one multiply-add is one multiplication with its addition; FLOPs are twice as many. Convolutions, transposed
convolutions and fully connected layers are counted, as in published tables; biases, norms, activations, pooling,
RoIAlign and suppression are not. Parameters are the trainable ones, including gamma and beta but not moving statistics.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import tensorflow as tf
import tf_keras

from rethink_tf.models.cascade import Cascade
from rethink_tf.models.cbnet import CBNet
from rethink_tf.models.classifier import Classifier
from rethink_tf.models.fpn import SingleLevel
from rethink_tf.models.heads import BoxHead, MaskHead, RPNHead
from rethink_tf.models.keypoints import KeypointHead
from rethink_tf.models.mask_rcnn import MaskRCNN
from rethink_tf.models.norms import group_norm, no_norm, sync_batch_norm
from rethink_tf.models.resnet import ResNet
from rethink_tf.models.rois import Anchors
from rethink_tf.models.vgg import VGG

T = TypeVar('T')

CLASSIFIERS = {
  'ResNet-50': dict(depth=50), 'ResNet-101': dict(depth=101), 'ResNet-152': dict(depth=152),
  **{f'ResNeXt-101 32x{width}d': dict(depth=101, groups=32, width_per_group=width) for width in (4, 8, 16, 32, 48)},
}


def _resnet(depth: int, groups: int = 1, width_per_group: int = 64, count: int = 1
            ) -> Callable[[], ResNet | CBNet]:
  """Return the constructor of a ResNet or ResNeXt with GroupNorm, or of a CBNet of `count` of them."""
  one = functools.partial(ResNet, depth, group_norm, groups=groups, width_per_group=width_per_group)
  return one if count == 1 else functools.partial(CBNet, one, count)


def _vgg() -> MaskRCNN:
  """Build the detector of gin_configs/models/vgg16.gin."""
  return MaskRCNN(80, backbone=VGG(16), fpn=SingleLevel(4), anchors=Anchors((64, 128, 256, 512)),
                  rpn_head=RPNHead(512, anchors_per_cell=12),
                  box_head=BoxHead(num_convs=0, num_fcs=2, fc_width=4096, norm=no_norm))


def _keypoints() -> MaskRCNN:
  return MaskRCNN(1, backbone=_resnet(50)(), keypoint_head=KeypointHead(), num_keypoints=17)


def _mask_rcnn(*backbone: int, cascade: type[Cascade] | None = None) -> Callable[[], MaskRCNN]:
  return lambda: MaskRCNN(80, backbone=_resnet(*backbone)(), mask_head=MaskHead(), cascade=cascade)


X152 = (152, 8, 32)  # the paper's
DETECTORS = {
  'Mask R-CNN R50-FPN': _mask_rcnn(50),
  'Mask R-CNN R101-FPN': _mask_rcnn(101),
  'Mask R-CNN X101-32x8d-FPN': _mask_rcnn(101, 32, 8),
  'Cascade Mask R-CNN R50-FPN': _mask_rcnn(50, cascade=Cascade),
  'Cascade Mask R-CNN X152-8x32d-FPN': _mask_rcnn(*X152, cascade=Cascade),
  'Mask R-CNN CBNet dual R50-FPN': _mask_rcnn(50, 1, 64, 2),
  'Cascade Mask R-CNN CBNet triple X152-8x32d-FPN': _mask_rcnn(*X152, 3, cascade=Cascade),
  'Keypoint R-CNN R50-FPN, one class': _keypoints,
  'Faster R-CNN VGG-16, one level, no norm': _vgg,
}


class Cost(NamedTuple):
  """Size and work of a component."""

  parameters: int
  multiply_adds: int

  def __add__(self, other: Cost) -> Cost:
    return Cost(self.parameters + other.parameters, self.multiply_adds + other.multiply_adds)


def count(make: Callable[[], tf_keras.layers.Layer], *shapes: Sequence[int]) -> Cost:
  """Return the cost of the layer that `make()` builds, called on float32 inputs of the given static shapes."""
  with tf.Graph().as_default():
    layer = make()
    layer(*(tf.zeros(shape) for shape in shapes))
    return cost_of(layer)


def count_classifier(make: Callable[[], Classifier], side: int = 224) -> Cost:
  """Return the cost of a classifier on one image [side, side, 3]."""
  with tf.Graph().as_default():
    classifier = make()
    classifier(tf.zeros([1, side, side, 3], tf.uint8), tf.zeros([1, 2]))
    return cost_of(classifier)


def count_detector(make: Callable[[], MaskRCNN], height: int = 800, width: int = 1344) -> dict[str, Cost]:
  """Return the costs of the components of a Mask R-CNN at inference on one image of the given padded shape.

  An upper bound: the box head runs on all proposals, the mask head on all detections.
  """
  costs = {}
  with tf.Graph().as_default() as graph:
    model = make()

    def add(name: str, layers: list[tf_keras.layers.Layer], call: Callable[[], T]) -> T:
      before = multiply_adds_of(graph)
      result = call()
      costs[name] = Cost(sum(_parameters(layer) for layer in layers), multiply_adds_of(graph) - before)
      return result

    features = add('backbone', [model.backbone], lambda: model.backbone(tf.zeros([1, height, width, 3])))
    pyramid = add('fpn', [model.fpn], lambda: model.fpn(features))
    add('rpn', [model.rpn_head], lambda: [model.rpn_head(pyramid[level]) for level in sorted(pyramid)])
    channels = pyramid[min(pyramid)].shape[-1]
    rois = model.proposal_generator.post_nms[False]
    pooled = tf.zeros([1, rois, *[model.box_pooler.size] * 2, channels])
    add('box head', [model.box_head, model.box_predictor], lambda: model.box_predictor(model.box_head(pooled)))
    if model.cascade is not None:
      add('cascade', [model.cascade],
          lambda: [predictor(head(pooled)) for head, predictor in model.cascade.stages((None, None))[1:]])
    detections = model.detection_generator.max_detections
    if model.keypoint_head is not None:
      pooled_keypoints = tf.zeros([1, detections, *[model.keypoint_pooler.size] * 2, channels])
      add('keypoint head', [model.keypoint_head, model.keypoint_predictor],
          lambda: model.keypoint_predictor(model.keypoint_head(pooled_keypoints)))
    if model.mask_head is not None:
      pooled_masks = tf.zeros([1, detections, *[model.mask_pooler.size] * 2, channels])
      add('mask head', [model.mask_head, model.mask_predictor],
          lambda: model.mask_predictor(model.mask_head(pooled_masks)))
  return costs | {'total': sum(costs.values(), Cost(0, 0))}


def cost_of(layer: tf_keras.layers.Layer) -> Cost:
  """Return the cost of a layer, the only one that was called in the current graph, once."""
  return Cost(_parameters(layer), multiply_adds_of(tf.compat.v1.get_default_graph()))


def multiply_adds_of(graph: tf.Graph) -> int:
  """Return the multiply-adds of a graph and the functions that it calls.

  Raises:
    ValueError: a shape is not static.
  """
  total = 0
  for op in graph.get_operations():
    if op.type in _COUNTED:
      total += _COUNTED[op.type](op)
    elif op.type in ('PartitionedCall', 'StatefulPartitionedCall'):
      # tf_keras wraps a grouped convolution in a function. Private API: there is no public way to its graph.
      total += multiply_adds_of(graph._get_function(op.get_attr('f').name).graph)
  return total


def _convolution(op: tf.Operation) -> int:
  """Each output element [N, H, W, out] is a sum over the kernel [h, w, in / groups, out] without its last axis."""
  return _size(op.outputs[0], op) * _size(op.inputs[1], op) // op.inputs[1].shape[-1]


def _transposed(op: tf.Operation) -> int:
  """A gradient with respect to the input: each element of the smaller map is multiplied by a kernel [h, w, out, in]."""
  return _size(op.inputs[2], op) * _size(op.inputs[1], op) // op.inputs[1].shape[-1]


def _dense(op: tf.Operation) -> int:
  depth = op.inputs[0].shape[0 if op.get_attr('transpose_a') else 1]
  return _size(op.outputs[0], op) * depth


_COUNTED = {'Conv2D': _convolution, 'Conv2DBackpropInput': _transposed, 'MatMul': _dense}


def _size(tensor: tf.Tensor, op: tf.Operation) -> int:
  if not tensor.shape.is_fully_defined():
    raise ValueError(f'{op.name}: the shape {tensor.shape} is not static, so its multiply-adds cannot be counted')
  return math.prod(tensor.shape.as_list())


def _parameters(layer: tf_keras.layers.Layer) -> int:
  return sum(math.prod(variable.shape.as_list()) for variable in layer.trainable_variables)


def classifier_costs() -> dict[str, Cost]:
  """Return the costs of CLASSIFIERS with 1000 classes at 224 x 224."""
  return {name: count_classifier(lambda settings=settings: Classifier(1000, ResNet(norm=sync_batch_norm, **settings)))
          for name, settings in CLASSIFIERS.items()}


def detector_costs() -> dict[str, dict[str, Cost]]:
  """Return the costs of DETECTORS at 800 x 1344, by component."""
  return {name: count_detector(make) for name, make in DETECTORS.items()}


def tables() -> str:
  """Return both tables and their convention, in Markdown."""
  lines = ['# Parameters and multiply-adds', '',
           'Counted in the graphs of this package by `python -m rethink_tf.bench.complexity '
           '--output=results/complexity.md`.',
           'Convolutions, transposed convolutions and fully connected layers count; one multiply-add is two FLOPs.', '',
           '## Classification, 1000 classes, BatchNorm, one image of 224 x 224', '',
           '| network | parameters | multiply-adds | GFLOPs |', '|---|---|---|---|']
  for name, cost in classifier_costs().items():
    lines.append(f'| {name} | {cost.parameters:,} | {cost.multiply_adds:,} | {2e-9 * cost.multiply_adds:.1f} |')
  lines += ['', '## Detection, 80 classes, GroupNorm, one image of 800 x 1344, 1000 proposals, 100 masks or people', '',
            '| detector | component | parameters | multiply-adds | GFLOPs |', '|---|---|---|---|---|']
  for name, costs in detector_costs().items():
    lines += [
      f'| {name} | {component} | {cost.parameters:,} | {cost.multiply_adds:,} | {2e-9 * cost.multiply_adds:.1f} |'
      for component, cost in costs.items()]
  return '\n'.join(lines) + '\n'
