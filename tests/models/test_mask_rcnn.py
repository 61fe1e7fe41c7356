"""The detector: shapes, norms and biases of its layers, trainable variables, independence of images."""

import functools
import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError
from rethink_tf.models.fpn import SingleLevel
from rethink_tf.models.norms import no_norm
from rethink_tf.models.resnet import ResNet
from rethink_tf.models.rois import Anchors, AnchorSampler, ProposalGenerator, RoISampler
from rethink_tf.structures import MASK_CROP, NO_MASK
from tests import tiny

K, R, SIDE = tiny.CLASSES, 16, 64


@functools.cache
def model(xla=False):
  tf_keras.utils.set_random_seed(3)
  return tiny.detector(xla=xla)


def train(detector, batch):
  return detector(batch.images, batch.image_sizes, labels=batch, training=True)


def detect(detector, batch):
  return detector(batch.images, batch.image_sizes)


@functools.cache
def trained():
  return train(model(), tiny.batch(2))


@functools.cache
def detected():
  trained()
  return detect(model(), tiny.batch(2))


def present(outputs):
  """All tensors of the outputs that are not None."""
  return [x for x in tf.nest.flatten(outputs) if x is not None]


def build(layer, *shape):
  """Build a layer; return its output shapes."""
  return {name: tuple(value.shape) for name, value in layer(tf.zeros(shape)).items()}


def test_training_shapes():
  outputs = trained()
  anchors = 3 * sum((SIDE >> level) ** 2 for level in range(2, 7))
  assert {level: tuple(x.shape) for level, x in outputs.features.items()} == {
    f'P{level}': (2, SIDE >> level, SIDE >> level, 32) for level in range(2, 7)}
  rpn, boxes, masks = outputs.rpn, outputs.boxes[0], outputs.masks
  assert rpn.logits.shape == (2, anchors) and rpn.deltas.shape == (2, anchors, 4) and rpn.anchors.shape == (anchors, 4)
  assert rpn.labels.shape == rpn.weights.shape == rpn.sampled.shape == (2, 2048)
  assert outputs.proposals.boxes.shape == (2, 30, 4)
  assert boxes.class_logits.shape == (2, R, K + 1) and boxes.box_deltas.shape == (2, R, K, 4)
  assert masks.logits.shape == masks.targets.shape and masks.logits.shape[2:] == (28, 28)
  assert masks.weights.shape == masks.logits.shape[:2]
  assert outputs.detections is None


def test_inference_shapes():
  outputs = detected()
  detections = outputs.detections
  assert outputs.proposals.boxes.shape == (2, 20, 4) and outputs.masks is None
  assert detections.boxes.shape == (2, 100, 4) and detections.masks.shape == (2, 100, 28, 28)
  scores, classes = detections.scores.numpy(), detections.classes.numpy()
  assert (np.diff(scores) <= 0).all() and ((classes > 0) == (scores > 0.05)).all() and classes.max() <= K
  assert ((detections.masks.numpy() > 0).all((2, 3)) == (classes > 0)).all()  # zero in empty slots


def test_samples_follow_the_recipe():
  """A quarter of the RoIs is foreground, and first; only foreground has targets and masks."""
  outputs, batch = trained(), tiny.batch(2)
  rois = outputs.boxes[0].rois
  classes, weights = rois.classes.numpy(), rois.weights.numpy()
  foreground = classes > 0
  assert (foreground.sum(1) <= R // 4).all() and foreground.any(1).all()  # ground truth is among the proposals
  assert (np.diff(foreground.astype(int), axis=1) <= 0).all() and (np.diff(weights, axis=1) <= 0).all()
  assert not rois.target_deltas.numpy()[~foreground].any()
  matched = np.take_along_axis(batch.gt_classes.numpy(), rois.gt_index.numpy(), 1)
  assert (matched[foreground] == classes[foreground]).all()
  slots = outputs.masks.weights.shape[1]
  np.testing.assert_array_equal(outputs.masks.weights, foreground[:, :slots].astype('f'))
  assert not foreground[:, slots:].any()
  labels, used = outputs.rpn.labels.numpy(), outputs.rpn.weights.numpy()
  assert (labels.sum(1) <= 1024).all() and (labels <= used).all() and labels.any()


def test_layers_with_norms_are_those_of_the_paper():
  trained()
  with_norm = {v.name.rsplit('/norm/', 1)[0].split('/', 1)[1] for v in model().variables if '/norm/' in v.name}
  convolutions = {v.name.rsplit('/conv/', 1)[0].split('/', 1)[1] for v in model().variables if '/conv/' in v.name}
  assert convolutions - with_norm == {'rpn_head', 'mask_predictor'}
  assert {f'fpn/{kind}{level}' for kind in ('lateral', 'output') for level in '2345'} < with_norm
  with_bias = {v.name.rsplit('/bias', 1)[0].split('/', 1)[1] for v in model().variables if '/bias' in v.name}
  assert with_bias == {'rpn_head/conv', 'rpn_head/objectness', 'rpn_head/deltas', 'box_head/fc1', 'mask_head/deconv',
                       'box_predictor/classes', 'box_predictor/deltas', 'mask_predictor/conv'}


def test_from_scratch_everything_trains():
  trained()
  assert model().variables == model().trainable_variables
  gammas = [v.numpy() for v in model().variables if v.name.endswith('/gamma:0')]
  assert gammas and all((gamma == 1).all() for gamma in gammas)


def test_initial_weights_have_the_papers_deviation():
  trained()
  wide = ResNet(14)
  build(wide, 1, 64, 64, 3)
  kernel = wide.stages[3][0].conv3.conv.kernel.numpy()  # [1, 1, 512, 2048]
  np.testing.assert_allclose(kernel.std(), np.sqrt(2 / 2048), rtol=0.01)  # MSRA, fan-out
  np.testing.assert_allclose(model().rpn_head.conv.kernel.numpy().std(), 0.01, rtol=0.05)
  lateral = model().fpn.laterals[3].conv.kernel.numpy()  # [1, 1, 256, 32]
  np.testing.assert_allclose([lateral.std(), np.abs(lateral).max()], [np.sqrt(1 / 256), np.sqrt(3 / 256)], rtol=0.05)
  np.testing.assert_allclose(model().box_predictor.deltas.kernel.numpy().std(), 0.001, rtol=0.15)


def test_xla_operations_give_the_same_results():
  """The implementations for TPUs compute the same as those for CPU and GPU."""
  compiled, batch = model(xla=True), tiny.batch(2)
  train(compiled, batch)
  for a, b in zip(compiled.variables, model().variables, strict=True):
    a.assign(b)
  ours, theirs = trained(), train(compiled, batch)
  slots = ours.masks.weights.shape[1]
  theirs = theirs._replace(masks=type(ours.masks)(*(x[:, :slots] for x in theirs.masks)))
  for a, b in ((ours, theirs), (detected(), detect(compiled, batch))):
    for x, y in zip(present(a), present(b), strict=True):
      np.testing.assert_allclose(tf.cast(x, tf.float32), tf.cast(y, tf.float32), rtol=1e-4, atol=1e-4)


def test_an_image_does_not_depend_on_others_of_the_batch():
  batch = tiny.batch(2)
  alone = detect(model(), tf.nest.map_structure(lambda x: x[:1], batch)).detections
  for x, y in zip(present(detected().detections), present(alone), strict=True):
    np.testing.assert_allclose(x[:1], y, rtol=1e-4, atol=1e-4)


def test_padding_has_no_effect():
  batch = tiny.batch(2)
  sizes = tf.constant([[64.0, 40.0], [33.0, 64.0]])
  pixels = model().normalise(batch.images, sizes).numpy()
  assert not pixels[0, :, 40:].any() and not pixels[1, 33:].any() and pixels[0, :, :40].any()
  first = batch.images.numpy()[0, 0, 0] - np.array([122.7717, 115.9465, 102.9801])
  np.testing.assert_allclose(pixels[0, 0, 0], first, rtol=1e-5)
  noisy = batch.images.numpy().copy()
  noisy[0, :, 40:] = 255 - noisy[0, :, 40:]
  a, b = (detect(model(), batch._replace(images=tf.constant(x), image_sizes=sizes)) for x in (batch.images, noisy))
  for x, y in zip(present(a), present(b), strict=True):
    np.testing.assert_array_equal(x, y)
  for boxes, valid in ((a.proposals.boxes, a.proposals.valid), (a.detections.boxes, a.detections.classes)):
    assert valid.numpy().any()
    assert (boxes[0, :, 3] <= 40).numpy().all() and (boxes[1, :, 2] <= 33).numpy().all()


def test_objects_without_a_mask_have_weight_zero_in_the_mask_loss():
  detector = tiny.detector()
  detector.mask_logits = lambda pyramid, boxes, classes: tf.zeros([*classes.shape, 28, 28])
  masks = np.ones([1, 3, MASK_CROP, MASK_CROP], np.uint8)
  masks[0, 1] = NO_MASK
  box = tf.constant([[[0.0, 0, 10, 10]] * 3])
  labels = types.SimpleNamespace(gt_masks=tf.constant(masks), gt_boxes=box)
  rois = types.SimpleNamespace(boxes=tf.constant([[[0.0, 0, 10, 10]] * 4]), classes=tf.constant([[1, 2, 1, 0]]),
                               gt_index=tf.constant([[0, 1, 2, 0]]))
  outputs = detector.learn_masks(None, rois, labels)
  assert outputs.weights.numpy().tolist() == [[1, 0, 1, 0]]
  assert outputs.targets.numpy()[0, [0, 2]].all()


def test_without_a_mask_head_it_is_faster_rcnn():
  detector, batch = tiny.detector(mask_head=None), tiny.batch(1)
  assert train(detector, batch).masks is None and detect(detector, batch).detections.masks is None
  assert not [v.name for v in detector.variables if 'mask_head' in v.name or 'mask_predictor' in v.name]


@pytest.mark.parametrize('norm', [None, no_norm])
def test_mixed_precision_keeps_boxes_and_logits_in_float32(norm):
  tf_keras.mixed_precision.set_global_policy('mixed_bfloat16')
  try:
    detector = tiny.detector(**({'norm': norm} if norm else {}))
    outputs = train(detector, tiny.batch(1))
  finally:
    tf_keras.mixed_precision.set_global_policy('float32')
  assert outputs.features['P2'].dtype == tf.bfloat16
  for x in present(outputs._replace(features={})):
    assert x.dtype in (tf.float32, tf.int32, tf.bool)
  assert all(v.dtype == tf.float32 for v in detector.variables)


def test_resnet_shapes_and_strides():
  for strides in (False, True):
    backbone = ResNet(50, stem_width=32, res2_width=64, width_per_group=32, stride_in_1x1=strides)
    shapes = build(backbone, 2, 32, 96, 3)
    assert shapes == {f'C{i}': (2, 32 >> i, 96 >> i, 16 << i) for i in (2, 3, 4, 5)}
    block = backbone.stages[1][0]
    assert (block.conv1.conv.strides, block.conv2.conv.strides) == (((2, 2), (1, 1)) if strides else ((1, 1), (2, 2)))
    assert [len(stage) for stage in backbone.stages] == [3, 4, 6, 3]
    assert all((block.shortcut is None) == bool(i) for stage in backbone.stages for i, block in enumerate(stage))


def test_resnext_has_grouped_convolutions():
  backbone = ResNet(14, groups=8, width_per_group=4, stem_width=32, res2_width=64)
  build(backbone, 1, 64, 64, 3)
  assert [stage[0].conv2.conv.kernel.shape for stage in backbone.stages] == [(3, 3, 4 << i, 32 << i) for i in range(4)]


@pytest.mark.parametrize('freeze_at', range(6))
def test_freezing(freeze_at):
  backbone = ResNet(14, stem_width=32, res2_width=32, width_per_group=32, freeze_at=freeze_at)
  build(backbone, 1, 64, 64, 3)
  training = {v.name.split('/')[1] for v in backbone.trainable_variables}
  assert training == set(['stem', 'res2_0', 'res3_0', 'res4_0', 'res5_0'][freeze_at:])


def test_zero_init_residual_makes_blocks_the_identity():
  backbone = ResNet(26, stem_width=32, res2_width=32, width_per_group=32, zero_init_residual=True)
  build(backbone, 1, 64, 64, 3)
  x = tf.abs(tf.random.stateless_normal([1, 8, 8, 32], [1, 2]))
  np.testing.assert_allclose(backbone.stages[0][1](x), x, atol=1e-6)


@pytest.mark.parametrize('arguments, message', [({'depth': 42}, 'depth = 42'), ({'freeze_at': 6}, 'freeze_at = 6')])
def test_invalid_arguments(arguments, message):
  with pytest.raises(UserError, match=message):
    ResNet(**arguments)


def test_even_sizes_are_padded_on_both_sides():
  """TensorFlow's 'same' pads two rows above and three below."""
  backbone = ResNet(14, norm=no_norm, stem_width=4, res2_width=8, width_per_group=4)
  x = tf.random.stateless_normal([1, 64, 64, 3], [1, 2])
  backbone(x)
  kernel = backbone.stem.conv.kernel
  padded = np.pad(x.numpy()[0], ((3, 3), (3, 3), (0, 0)))
  first = np.einsum('yxc,yxco->o', padded[:7, :7], kernel.numpy())
  np.testing.assert_allclose(backbone.stem.conv(tf.pad(x, [[0, 0], [3, 3], [3, 3], [0, 0]]))[0, 0, 0], first, atol=1e-4)
  np.testing.assert_allclose(backbone.stem(x)[0, 0, 0], np.maximum(first, 0), atol=1e-4)


@pytest.mark.parametrize('settings, message', [
  (dict(nms='fused'), "MaskRCNN.nms = 'fused': use None or one of combined, per_group, batched"),
  (dict(nms='combined', xla=True), "'combined' with MaskRCNN.xla: use None or one of per_group, batched")])
def test_a_form_of_suppression_that_does_not_exist(settings, message):
  with pytest.raises(UserError, match=message):
    tiny.detector(**settings)


@pytest.mark.parametrize('settings, message', [
  (dict(anchors=Anchors((8, 16, 32, 64, 128), (0.3, 0.5, 1.0, 2.0, 3.0))), 'set RPNHead.anchors_per_cell = 5'),
  (dict(anchors=Anchors((8, 16, 32, 64, 128), (1.0,))), 'anchors_per_cell = 3, but .* give 1 anchors per cell'),
  (dict(anchors=Anchors(((8, 12), (16, 24), (32, 48), (64, 96), (128, 192)))), 'set RPNHead.anchors_per_cell = 6'),
  (dict(anchors=Anchors((8, (16, 24), 32, 64, 128))), '1, 2, 1, 1, 1 sizes at its levels'),
  (dict(anchors=Anchors((32, 64)), fpn=SingleLevel(4)), 'set RPNHead.anchors_per_cell = 6')])
def test_anchors_that_the_rpn_head_does_not_predict(settings, message):
  with pytest.raises(UserError, match=message):
    tiny.built(**settings)


def test_several_sizes_of_a_level_are_ordered_as_in_detectron2():
  """DefaultAnchorGenerator: for each cell all sizes, and all ratios of each of them."""
  sizes, ratios = ((8, 12), (16, 24)), (0.5, 2.0)
  levels = Anchors(sizes, ratios)({'P2': tf.zeros([1, 2, 3, 1]), 'P3': tf.zeros([1, 1, 2, 1])})
  assert [level.shape for level in levels] == [(2 * 3 * 4, 4), (1 * 2 * 4, 4)]
  for level, own in zip(levels, sizes, strict=True):
    height, width = (level.numpy()[:, 2:] - level.numpy()[:, :2]).T
    expected = np.array([(size, ratio) for size in own for ratio in ratios])
    np.testing.assert_allclose(np.sqrt(height * width).reshape(-1, 4), np.tile(expected[:, 0], (len(height) // 4, 1)),
                               rtol=1e-5)
    np.testing.assert_allclose((height / width).reshape(-1, 4), np.tile(expected[:, 1], (len(height) // 4, 1)),
                               rtol=1e-5)
    centres = (level.numpy()[:, 2:] + level.numpy()[:, :2]).reshape(-1, 4, 2) / 2
    np.testing.assert_allclose(centres, np.broadcast_to(centres[:, :1], centres.shape), atol=1e-5)


class Maps(tf_keras.layers.Layer):
  """A backbone: maps of any strides, named as one likes."""

  def __init__(self, strides, kind=dict):
    super().__init__(name='backbone')
    self.strides, self.kind = strides, kind

  def call(self, images):
    return self.kind((level, images[:, ::stride, ::stride]) for level, stride in self.strides.items())


@pytest.mark.parametrize('backbone, message', [
  (Maps({'C4': 32}), 'C4 should have stride 16, but has 2 cells for 64 pixels'),  # the last map of a classifier, say
  (Maps({'C4': 16}, kind=list), 'MaskRCNN.backbone returns a list')])
def test_a_backbone_whose_maps_are_of_other_strides_than_their_names_say(backbone, message):
  with pytest.raises(UserError, match=message):
    tiny.built(backbone=backbone, fpn=SingleLevel(4), anchors=Anchors((32,)))


def proposals_of(logits, deltas, anchors, size, **settings):
  generator = ProposalGenerator(**settings)
  return [x.numpy() for x in generator([tf.constant(x) for x in logits], [tf.constant(x) for x in deltas],
                                       [tf.constant(x) for x in anchors], tf.constant(size), False)]


def test_proposals_without_empty_boxes_and_with_separate_levels():
  box = np.float32([[10, 10, 30, 30]])
  outside = np.float32([[200, 10, 230, 30]])
  anchors = [np.concatenate([box, box + 1, outside]), box]
  logits = [np.float32([[-3.0, -4.0, 5.0]]), np.float32([[-9.0]])]
  deltas = [np.zeros([1, 3, 4], np.float32), np.zeros([1, 1, 4], np.float32)]
  boxes, scores, valid = proposals_of(logits, deltas, anchors, [[100.0, 100.0]], pre_nms_test=3, post_nms_test=5)
  np.testing.assert_array_equal(valid, [[True, True, False, False, False]])
  np.testing.assert_array_equal(scores[0, :2], [-3, -9])  # the same box on two levels is not suppressed
  np.testing.assert_array_equal(boxes[0, :2], np.concatenate([box, box]))
  assert not boxes[0, 2:].any()


def test_samplers_with_only_ground_truth_and_straddling_anchors():
  batch = tiny.batch(2)
  rois = RoISampler(4, 0.5)(type(trained().proposals)(*(x[:, :0] for x in trained().proposals)), batch)
  used = rois.weights.numpy() > 0  # ground truth is all there is, limited to half of the slots
  assert (used.sum(1) == 2).all() and rois.boxes.shape == (2, 4, 4)
  np.testing.assert_allclose(rois.target_deltas, np.zeros([2, 4, 4]), atol=1e-5)
  few = RoISampler(16, 0.25)(type(trained().proposals)(*(x[:, :1] for x in trained().proposals)), batch)
  # A quarter of 16, as in Detectron and Detectron2, and not of the five candidates: an image has three objects.
  assert few.boxes.shape == (2, 5, 4) and ((few.classes.numpy() > 0).sum(1) >= 3).all()
  rpn = trained().rpn._replace(sampled=None)
  counts = []
  for drop in (True, False):
    sampled = AnchorSampler(10000, 1.0, drop_straddling=drop)(rpn, batch.image_sizes, batch)
    counts.append(sampled.weights.numpy().sum())
    boxes = rpn.anchors.numpy()[sampled.sampled.numpy()[sampled.weights.numpy() > 0]]
    assert ((boxes >= 0) & (boxes <= SIDE)).all() == drop
  assert counts[0] < counts[1]
