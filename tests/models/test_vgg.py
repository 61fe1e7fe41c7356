"""VGG: all layers against float64 NumPy, published sizes, scale of activations without norms."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.bench import costs as complexity
from rethink_tf.errors import UserError
from rethink_tf.models import initializers
from rethink_tf.models.fpn import FPN, SingleLevel
from rethink_tf.models.heads import BoxHead, RPNHead
from rethink_tf.models.mask_rcnn import MaskRCNN, roi_pyramid
from rethink_tf.models.norms import group_norm, no_norm
from rethink_tf.models.rois import Anchors, ProposalGenerator
from rethink_tf.models.vgg import VGG
from rethink_tf.training.losses import MaskRCNNLoss
from tests import tiny


def vgg(width=4, **arguments):
  tf_keras.utils.set_random_seed(11)
  made = VGG(width=width, **arguments)
  made(tf.zeros([1, 32, 32, 3]))
  return made


def detector(**components):
  """A narrow Faster R-CNN on one level."""
  tf_keras.utils.set_random_seed(11)
  defaults = dict(
    backbone=VGG(width=16), fpn=SingleLevel(), rpn_head=RPNHead(32, 6), mask_head=None, anchors=Anchors((16, 32)),
    box_head=BoxHead(0, 2, fc_width=64, fc_initializer=initializers.msra), pixel_std=(58.0, 58.0, 58.0))
  return tiny.detector(**(defaults | components))


def reference(backbone, x):
  """The three feature maps in float64 NumPy: sums over nine shifts for convolutions, maxima over four for pooling."""
  x, maps = np.asarray(x, np.float64), []
  for number, group in enumerate([backbone.stem, *backbone.stages]):
    if number:
      x = np.max([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=0)
    for layer in group:
      kernel, bias = (v.numpy().astype(np.float64) for v in (layer.conv.kernel, layer.conv.bias))
      padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
      height, width = x.shape[1:3]
      x = sum(padded[:, i:i + height, j:j + width] @ kernel[i, j] for i in range(3) for j in range(3)) + bias
      x = np.maximum(x, 0)
    maps.append(x)
  return {f'C{number}': x for number, x in enumerate(maps[2:], 2)}


def test_feature_maps_are_those_of_numpy():
  backbone = vgg()
  for variable in backbone.variables:
    if 'bias' in variable.name:
      variable.assign(tf.random.stateless_normal(variable.shape, [3, 4]))
  x = tf.random.stateless_normal([2, 32, 64, 3], [1, 2])
  maps, expected = backbone(x), reference(backbone, x)
  assert {name: y.shape for name, y in maps.items()} == {name: y.shape for name, y in expected.items()} == {
    'C2': (2, 8, 16, 16), 'C3': (2, 4, 8, 32), 'C4': (2, 2, 4, 32)}
  for name, y in expected.items():
    np.testing.assert_allclose(maps[name], y, rtol=1e-4, atol=1e-5, err_msg=name)


def test_vgg_16_has_the_published_size():
  """138,357,544 parameters with its three fully connected layers, and 30.9 GFLOPs at 224 x 224."""
  backbone = complexity.count(VGG, [1, 224, 224, 3])
  fc = [complexity.count(lambda width=width: tf_keras.layers.Dense(width), [1, inputs])
        for width, inputs in ((4096, 7 * 7 * 512), (4096, 4096), (1000, 4096))]
  total = sum(fc, backbone)
  assert backbone.parameters == 14_714_688 and total.parameters == 138_357_544
  assert 2e-9 * total.multiply_adds == pytest.approx(30.9, abs=0.05)


def test_the_detector_has_fc6_and_fc7():
  def make():
    return MaskRCNN(80, backbone=VGG(), fpn=SingleLevel(), rpn_head=RPNHead(512, 12),
                    box_head=BoxHead(0, 2, fc_width=4096, fc_initializer=initializers.msra))
  costs = complexity.count_detector(make, 320, 320)
  predictors = 4096 * (81 + 320) + 81 + 320
  assert costs['box head'].parameters == 102_764_544 + 16_781_312 + predictors
  assert costs['fpn'] == (0, 0)
  assert costs['rpn'].parameters == 9 * 512 * 512 + 512 + 512 * 5 * 12 + 5 * 12


def test_msra_keeps_the_scale_through_thirteen_layers():
  """He et al. 2015, section 2.2: the deviation stays within an order of magnitude."""
  x = tf.random.stateless_normal([1, 64, 64, 3], [1, 2])

  def deviations(initializer):
    backbone = vgg(width=32, initializer=initializer)
    y, found = x, []
    for number, group in enumerate([backbone.stem, *backbone.stages]):
      y = tf.nn.max_pool2d(y, 2, 2, 'VALID') if number else y
      for layer in group:
        y = layer(y)
        found.append(float(tf.math.reduce_std(y)))
    return found[0], found[-1]

  first, last = deviations(initializers.msra)
  assert 0.1 < last / first < 10
  first, last = deviations(lambda: initializers.gaussian(0.01))
  assert last / first < 1e-6


@functools.cache
def gradients():
  made, batch = detector(), tiny.batch(2)
  with tf.GradientTape() as tape:
    outputs = made(batch.images, batch.image_sizes, labels=batch, training=True)
    losses = MaskRCNNLoss()(outputs, batch)
    loss = tf.add_n(list(losses.values()))
  return made, outputs, losses, tape.gradient(loss, made.trainable_variables)


def test_every_variable_trains_and_gradients_are_finite():
  made, _, losses, found = gradients()
  assert set(losses) == {'rpn/objectness', 'rpn/box', 'box/class', 'box/regression'}
  assert made.variables == made.trainable_variables
  for variable, gradient in zip(made.trainable_variables, found, strict=True):
    assert np.isfinite(gradient).all() and np.any(gradient), variable.name
  assert not [v.name for v in made.variables if 'norm' in v.name or 'fpn' in v.name]
  assert len([v for v in made.variables if v.name.endswith('bias:0')]) == len(made.variables) / 2


def test_shapes_of_a_single_level():
  _, outputs, _, _ = gradients()
  assert {name: x.shape for name, x in outputs.features.items()} == {'P4': (2, 4, 4, 128)}
  assert outputs.rpn.anchors.shape == (4 * 4 * 6, 4) and outputs.rpn.logits.shape == (2, 4 * 4 * 6)
  made, batch = gradients()[0], tiny.batch(2)
  detections = made(batch.images, batch.image_sizes).detections
  assert detections.boxes.shape == (2, 100, 4) and detections.masks is None


def test_pooling_of_one_level_has_its_stride():
  """With coordinates as feature map, a bin is the mean coordinate of its area, for any size of the box."""
  made = detector()
  y, x = tf.meshgrid(tf.range(16.0), tf.range(16.0), indexing='ij')
  features = {'P4': tf.stack([y, x], -1)[None]}  # value i at pixel 16 i
  boxes = tf.constant([[[32.0, 16.0, 144.0, 128.0], [16.0, 16.0, 240.0, 240.0], [64.0, 80.0, 96.0, 96.0]]])
  pooled = made.box_pooler(roi_pyramid(features), boxes, False).numpy()
  for box, found in zip(boxes[0].numpy(), pooled[0], strict=True):
    centres = (np.arange(7) + 0.5) / 7
    np.testing.assert_allclose(found[:, 0, 0], (box[0] + centres * max(box[2] - box[0], 16)) / 16, rtol=1e-4)
    np.testing.assert_allclose(found[0, :, 1], (box[1] + centres * max(box[3] - box[1], 16)) / 16, rtol=1e-4)


@pytest.mark.slow
def test_xla_operations_give_the_same_results():
  plain, compiled, batch = detector(), detector(xla=True), tiny.batch(1)
  for made in (plain, compiled):
    made(batch.images, batch.image_sizes)
  for ours, theirs in zip(plain.variables, compiled.variables, strict=True):
    theirs.assign(ours)
  outputs = [made(batch.images, batch.image_sizes) for made in (plain, compiled)]
  for a, b in zip(outputs[0].detections[:3], outputs[1].detections[:3], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('freeze_at', range(6))
def test_freezing(freeze_at):
  training = {v.name.split('/')[1].split('_')[0] for v in vgg(freeze_at=freeze_at).trainable_variables}
  assert training == {f'conv{group}' for group in range(freeze_at + 1, 6)}


def test_a_norm_is_an_argument():
  backbone = vgg(width=32, norm=group_norm)
  assert not [v.name for v in backbone.variables if 'bias' in v.name]
  assert len([v.name for v in backbone.variables if v.name.endswith('norm/gamma:0')]) == 13


def test_depths():
  assert [len(vgg(depth=depth).variables) // 2 for depth in (11, 16, 19)] == [8, 13, 16]


@pytest.mark.parametrize('make, message', [
  (lambda: VGG(17), 'VGG.depth = 17'), (lambda: VGG(freeze_at=6), 'VGG.freeze_at = 6'),
  (lambda: SingleLevel(5)(VGG(width=4, norm=no_norm)(tf.zeros([1, 32, 32, 3]))), 'SingleLevel.level = 5'),
  (lambda: FPN(8)(VGG(width=4, norm=no_norm)(tf.zeros([1, 32, 32, 3]))), 'no C5, only C2, C3, C4: use'),
  (lambda: Anchors((32, 64, 128))({'P2': tf.zeros([1, 4, 4, 1]), 'P3': tf.zeros([1, 2, 2, 1])}), 'Anchors.sizes')])
def test_invalid_arguments(make, message):
  with pytest.raises(UserError, match=message):
    make()


def test_few_proposals_of_one_level_are_padded():
  generator = ProposalGenerator(50, 50, 40, 30)
  anchors = Anchors((16, 32))({'P4': tf.zeros([1, 2, 2, 1])})
  assert anchors[0].shape == (2 * 2 * 6, 4)
  areas = np.prod(anchors[0].numpy()[:, 2:] - anchors[0].numpy()[:, :2], axis=1).reshape(4, 2, 3)
  np.testing.assert_allclose(areas, np.broadcast_to(np.array([256, 1024])[:, None], (4, 2, 3)), rtol=1e-5)
  proposals = generator([tf.zeros([1, 24])], [tf.zeros([1, 24, 4])], anchors, tf.constant([[32.0, 32.0]]), False)
  assert proposals.boxes.shape == (1, 30, 4) and 0 < int(tf.reduce_sum(tf.cast(proposals.valid, tf.int32))) <= 24
