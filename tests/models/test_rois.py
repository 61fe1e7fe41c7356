"""Numbers that no part of a detector can work with are refused when it is made; golden tests hold what the parts do."""

import math

import pytest

from rethink_tf.errors import UserError
from rethink_tf.models.cascade import Cascade
from rethink_tf.models.fpn import FPN
from rethink_tf.models.heads import BoxHead, MaskHead, RPNHead
from rethink_tf.models.initializers import gaussian
from rethink_tf.models.keypoints import KeypointHead
from rethink_tf.models.mask_rcnn import MaskRCNN
from rethink_tf.models.norms import frozen_batch_norm, group_norm, sync_batch_norm
from rethink_tf.models.resnet import ResNet
from rethink_tf.models.rois import Anchors, AnchorSampler, DetectionGenerator, ProposalGenerator, RoISampler
from rethink_tf.models.vgg import VGG
from rethink_tf.training.losses import MaskRCNNLoss

ONE, NONE, FRACTION, POSITIVE = 'use 1 or more', 'use 0 or more', 'use a fraction, 0 to 1', 'use a number above 0'


@pytest.mark.parametrize('part, argument, value, cure', [
  (Anchors, 'sizes', (32, 64, 0, 256, 512), POSITIVE),
  (Anchors, 'sizes', ((32, 48), (64, -96)), POSITIVE),
  (Anchors, 'ratios', (0.5, 1.0, math.nan), POSITIVE),
  (Anchors, 'offset', 1.5, FRACTION),
  (AnchorSampler, 'batch_size', 0, ONE),
  (AnchorSampler, 'positive_fraction', -0.5, FRACTION),
  (AnchorSampler, 'positive_fraction', 0.0, 'none of AnchorSampler.batch_size = 256 would be an object'),
  (AnchorSampler, 'positive_iou', 1.5, FRACTION),
  (AnchorSampler, 'negative_iou', 0.8, 'use at most positive_iou, 0.7'),
  (ProposalGenerator, 'pre_nms_train', 0, ONE),
  (ProposalGenerator, 'post_nms_test', -1, ONE),
  (ProposalGenerator, 'nms_iou', 1.5, FRACTION),
  (RoISampler, 'batch_size', 0, ONE),
  (RoISampler, 'positive_fraction', 0.001, 'none of RoISampler.batch_size = 512 would be an object'),
  (RoISampler, 'foreground_iou', -1.0, FRACTION),
  (RoISampler, 'box_weights', (10.0, 10.0, 5.0, 0.0), POSITIVE),
  (DetectionGenerator, 'score_threshold', 5.0, FRACTION),
  (DetectionGenerator, 'nms_iou', 3, FRACTION),
  (DetectionGenerator, 'max_detections', 0, ONE),
  (FPN, 'channels', 0, ONE),
  (RPNHead, 'channels', 0, ONE),
  (RPNHead, 'anchors_per_cell', -1, ONE),
  (BoxHead, 'fc_width', 0, ONE),
  (BoxHead, 'num_convs', -1, NONE),
  (MaskHead, 'channels', 0, ONE),
  (MaskHead, 'num_convs', -1, NONE),
  (KeypointHead, 'channels', 0, ONE),
  (KeypointHead, 'num_convs', -1, NONE),
  (ResNet, 'res2_width', 0, ONE),
  (ResNet, 'groups', -1, ONE),
  (VGG, 'width', 0, ONE),
  (gaussian, 'stddev', -0.01, NONE),
  (MaskRCNNLoss, 'box_smooth_l1_beta', -1.0, NONE),
  (MaskRCNNLoss, 'stage_weights', (1.0, -0.5), NONE),
  (MaskRCNNLoss, 'keypoint_divisor', 0.0, POSITIVE)])
def test_numbers_out_of_range_are_refused(part, argument, value, cure):
  with pytest.raises(UserError) as caught:
    part(**{argument: value})
  assert str(caught.value).startswith(f'{part.__name__}.{argument} = {value}: ')
  assert str(caught.value).partition(f' = {value}: ')[2].startswith(cure)


@pytest.mark.parametrize('norm, argument, value, cure', [
  (group_norm, 'groups', 0, ONE), (group_norm, 'epsilon', -1e-5, NONE), (sync_batch_norm, 'momentum', 1.5, FRACTION),
  (frozen_batch_norm, 'epsilon', -1.0, NONE)])
def test_those_of_norms_too(norm, argument, value, cure):
  with pytest.raises(UserError, match=f'^{norm.__name__}.{argument} = {value}: {cure}$'):
    norm('norm', **{argument: value})


def test_those_of_parts_with_classes_too():
  with pytest.raises(UserError, match=r'^Cascade.ious = \(0.6, 1.7\): use a fraction, 0 to 1$'):
    Cascade(2, ious=(0.6, 1.7))
  with pytest.raises(UserError, match=r'^Cascade.gradient_scales = \(1, -1, 1\): use 0 or more$'):
    Cascade(2, gradient_scales=(1, -1, 1))
  with pytest.raises(UserError, match=r'^MaskRCNN.pixel_std = \(58.4, 0.0, 57.4\): use a number above 0$'):
    MaskRCNN(2, pixel_std=(58.4, 0.0, 57.4))


def test_the_ends_of_the_ranges_are_taken():
  assert DetectionGenerator(score_threshold=0.0, nms_iou=1, max_detections=1).nms_iou == 1
  assert AnchorSampler(batch_size=2, positive_fraction=1.0, positive_iou=0.5, negative_iou=0.5).batch_size == 2
  assert MaskRCNNLoss(rpn_smooth_l1_beta=0.0, box_smooth_l1_beta=0.0).rpn_beta == 0  # plain L1
  assert BoxHead(num_convs=0, num_fcs=2).convs == []
