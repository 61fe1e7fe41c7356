"""Detectron's .pkl files (Python 2 pickles): ImageNet backbones, and whole detectors as {'blobs': …, 'cfg': …}."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rethink_tf.errors import UserError
from rethink_tf.weights.contents import (
  BACKBONE,
  DETECTRON_MEAN,
  UNIT_STD,
  Architecture,
  Array,
  Contents,
  architecture_of,
  check_arrays,
  check_names,
  coco_classes,
  norm_of,
)
from rethink_tf.weights.detectron2_settings import CONVENTIONS

_SUFFIXES = (('_bn_s', '.norm.weight'), ('_gn_s', '.norm.weight'), ('_bn_b', '.norm.bias'), ('_gn_b', '.norm.bias'),
             ('_bn_rm', '.norm.running_mean'), ('_bn_riv', '.norm.running_var'), ('_w', '.weight'), ('_b', '.bias'))
_BRANCHES = {'1': 'shortcut', '2a': 'conv1', '2b': 'conv2', '2c': 'conv3'}
_CLASSIFIERS = ('fc1000', 'pred')  # of MSRA's models, of Caffe2's
_LAYERS = (
  (re.compile(r'(res_)?conv1'), f'{BACKBONE}stem.conv1'),
  (re.compile(r'res([2-5])_(\d+)_branch(1|2[abc])'),
   lambda match: f'{BACKBONE}res{match[1]}.{match[2]}.{_BRANCHES[match[3]]}'),
  (re.compile(r'fpn_inner_res([2-5])_\d+_sum(_lateral)?'), r'backbone.fpn_lateral\1'),
  (re.compile(r'fpn_res([2-5])_\d+_sum'), r'backbone.fpn_output\1'),
  (re.compile(r'conv_rpn(_fpn2)?'), 'proposal_generator.rpn_head.conv'),
  (re.compile(r'rpn_cls_logits(_fpn2)?'), 'proposal_generator.rpn_head.objectness_logits'),
  (re.compile(r'rpn_bbox_pred(_fpn2)?'), 'proposal_generator.rpn_head.anchor_deltas'),
  (re.compile(r'head_conv(\d)'), r'roi_heads.box_head.conv\1'),
  (re.compile(r'fc6'), 'roi_heads.box_head.fc1'),
  (re.compile(r'fc7'), 'roi_heads.box_head.fc2'),
  (re.compile(r'cls_score'), 'roi_heads.box_predictor.cls_score'),
  (re.compile(r'bbox_pred'), 'roi_heads.box_predictor.bbox_pred'),
  (re.compile(r'_\[mask\]_fcn(\d)'), r'roi_heads.mask_head.mask_fcn\1'),
  (re.compile(r'conv5_mask'), 'roi_heads.mask_head.deconv'),
  (re.compile(r'mask_fcn_logits'), 'roi_heads.mask_head.predictor'),
  (re.compile(r'conv_fcn(\d)'), r'roi_heads.keypoint_head.conv_fcn\1'),
  (re.compile(r'kps_score_lowres'), 'roi_heads.keypoint_head.score_lowres'),
)


def recognizes(content: Any) -> bool:
  """Return whether an unpickled object is Detectron's: {'blobs': …}, or the blobs themselves."""
  return isinstance(content, dict) and ('blobs' in content or 'conv1_w' in content)


def contents(content: Mapping[str, Any], path: str) -> Contents:
  """Return the contents of an unpickled file; unknown names are kept, for the loader to refuse.

  Raises:
    UserError: not a dictionary of arrays, or not a ResNet.
  """
  blobs, config = (content['blobs'], content.get('cfg')) if 'blobs' in content else (content, None)
  if not isinstance(blobs, Mapping):
    raise UserError(f"{path}: its 'blobs' are not a dictionary, so it is not a Detectron file: use another file")
  check_names(blobs, path)
  # Optimizer state; and conv1_b, which Detectron's network does not have: its stem has no bias.
  ignored = tuple(name for name in blobs
                  if str(name).endswith('_momentum') or name in ('conv1_b', 'lr', 'weight_order'))
  blobs = {name: array for name, array in blobs.items() if name not in ignored}
  check_arrays(blobs, path)
  arrays = {}
  for name, array in blobs.items():
    full = canonical(name)
    arrays[full] = _background_last(full, array)
  detector = any(name.startswith(('proposal_generator.', 'roi_heads.')) for name in arrays)
  if not detector:
    arrays = {name.removeprefix(BACKBONE): array for name, array in arrays.items()}
  found = Contents(path, 'Detectron .pkl', 'detector' if detector else 'backbone', arrays, norm=None,
                   architecture=None)
  backbone = found.backbone()
  norm = norm_of(list(backbone))
  if norm == 'gn' and not any('_gn_' in name for name in blobs):
    norm = 'folded'
  architecture = architecture_of(backbone, path)
  notes = ('boxes were trained with Detectron\'s widths x1 - x0 + 1 and its rounded anchors: metrics differ slightly',)
  return found._replace(
    norm=norm, architecture=architecture, channels='bgr', pixel_mean=DETECTRON_MEAN, pixel_std=UNIT_STD,
    stride_in_1x1=_stride_in_1x1(blobs, config, norm, architecture), licence='CC BY-SA 3.0 (Detectron\'s model zoo)',
    ignored=ignored, notes=notes if detector else (), settings=CONVENTIONS['detectron'] if detector else {},
    classes=coco_classes(arrays) if re.search(r'\bcoco_20(14|17)_train\b', str(config)) else None)


def canonical(name: str) -> str:
  """Return Detectron2's name: res4_5_branch2a_bn_s -> backbone.bottom_up.res4.5.conv1.norm.weight.

  An unknown name is returned unchanged.
  """
  for suffix, canonical_suffix in _SUFFIXES:
    layer = name.removesuffix(suffix)
    if layer == name:
      continue
    if layer in _CLASSIFIERS:
      return f'linear{canonical_suffix}'
    for rule, replacement in _LAYERS:
      if match := rule.fullmatch(layer):
        return (replacement(match) if callable(replacement) else match.expand(replacement)) + canonical_suffix
  return name


def _background_last(name: str, array: Array) -> Array:
  """Move the background from class 0 (Detectron) to the last one (Detectron2); drop its boxes and masks."""
  if not array.shape:
    return array
  if name.startswith('roi_heads.box_predictor.cls_score.'):
    return np.roll(array, -1, axis=0)
  if name.startswith('roi_heads.box_predictor.bbox_pred.'):
    return array[4:]
  if name.startswith('roi_heads.mask_head.predictor.') and len(array) > 1:
    return array[1:]
  return array


def _stride_in_1x1(blobs: Mapping[str, Array], config: Any, norm: str, architecture: Architecture) -> bool | None:
  """From a detector's configuration. Of backbones only MSRA's have fc1000, and only they have strides on the 1x1."""
  match = re.search(r'STRIDE_1X1:\s*(true|false)', config, re.IGNORECASE) if isinstance(config, str) else None
  if match:
    return match[1].lower() == 'true'
  if norm == 'gn' or architecture.groups > 1:
    return False
  if any(f'{name}_w' in blobs for name in _CLASSIFIERS):
    return 'fc1000_w' in blobs
  return None
