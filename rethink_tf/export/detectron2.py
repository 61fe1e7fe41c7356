"""Detectron2 checkpoints (.pkl) of a Mask R-CNN: the inverse of weights/detectron2.py, array by array."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from rethink_tf.data.augment import Resize
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.export import description
from rethink_tf.models.layers import ConvNorm
from rethink_tf.models.mask_rcnn import MaskRCNN
from rethink_tf.models.norms import EPSILON
from rethink_tf.models.resnet import BLOCKS, ResNet
from rethink_tf.storage import files
from rethink_tf.weights.detectron2 import Entry, table, without_names

DEPTHS = (50, 101, 152)  # that Detectron2 builds from bottleneck blocks
NORMS = {'GroupNorm': 'GN', 'GroupNormalization': 'GN', 'SyncBatchNorm': 'SyncBN', 'FrozenBatchNorm': 'FrozenBN',
         'NoNorm': ''}  # class -> Detectron2's name
AUTHOR = 'rethink_tf'  # with any '__author__' Detectron2 converts neither names nor layout


def arrays_of(model: MaskRCNN, channels: str = 'bgr') -> dict[str, np.ndarray]:
  """Return every variable of a built MaskRCNN as float32, by Detectron2's names and in its layout.

  channels: 'bgr' or 'rgb', the order of the input of the Detectron2 model (INPUT.FORMAT).
  """
  if channels not in ('rgb', 'bgr'):
    raise UserError(f"channels = {channels!r}: use 'bgr' (Detectron2's default) or 'rgb'")
  layer = without_names(model)
  if (part := _own_part(model) if layer is None else layer) is not None:
    raise UserError(f'Detectron2 has no {type(part).__name__}: export a SavedModel, or --format=onnx or tflite')
  entries = table(model, channels)
  _check(model)
  return {name: invert(entry) for name, entry in entries.items()}


def _own_part(model: MaskRCNN) -> Any:
  """Return a part or norm that is the user's own, so that Detectron2 would compute something else with its weights."""
  parts = [model, model.backbone, model.fpn, model.rpn_head, model.box_head, model.mask_head, model.keypoint_head,
           model.cascade, model.anchors, model.proposal_generator, model.box_pooler, model.detection_generator]
  norms = [layer.norm for layer in model.submodules if isinstance(layer, ConvNorm)]
  own = (part for part in parts if part is not None and not type(part).__module__.startswith('rethink_tf.'))
  return next(own, next((norm for norm in norms if type(norm).__name__ not in NORMS), None))


def _check(model: MaskRCNN) -> None:
  """Raise a UserError if Detectron2 would compute something else with the same weights."""
  backbone, cascade, keypoints = model.backbone, model.cascade, model.keypoint_head
  norms = {name: getattr(conv, 'norm', None) for name, conv in (
    ('ResNet', backbone.stem), ('FPN', model.fpn.outputs[0]), *(('BoxHead', conv) for conv in model.box_head.convs),
    *(('MaskHead', conv) for conv in getattr(model.mask_head, 'convs', ())))}
  problems = [f'{name}: epsilon {norm.epsilon:g} of its norm, there {EPSILON:g}' for name, norm in norms.items()
              if abs(getattr(norm, 'epsilon', EPSILON) - EPSILON) > 1e-3 * EPSILON]
  problems += [f'{name}: {norm.groups} groups of its norm, there 32' for name, norm in norms.items()
               if getattr(norm, 'groups', 32) != 32]
  if backbone.padding != 'symmetric':
    problems.append(f'ResNet.padding = {backbone.padding!r}, there symmetric')
  if not _norm(backbone.stem):
    problems.append('ResNet.norm = @no_norm, there without the biases')
  if keypoints is not None and any(_norm(conv) for conv in keypoints.convs):
    problems.append('KeypointHead.norm, there none')
  if cascade is not None and cascade.score_rois != 'own':
    problems.append(f"Cascade.score_rois = {cascade.score_rois!r}, there 'own'")
  if problems:
    raise UserError(f'Detectron2 cannot compute what this detector does: {"; ".join(problems)}: export a SavedModel, '
                    'or train with the values there')


def invert(entry: Entry) -> np.ndarray:
  """Return the array that `entry.convert` converts to the value of the variable.

  Conversions only move elements, so converting 0, 1, 2, … gives the position of each element.
  """
  value = np.asarray(entry.variable, np.float32)
  shape = file_shape(value.shape)
  source = entry.convert(np.arange(value.size).reshape(shape))  # index in the file of each element of the variable
  array = np.empty(value.size, np.float32)
  array[source.ravel()] = value.ravel()
  return array.reshape(shape)


def file_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Return the shape in Detectron2: (h, w, in / groups, out) is (out, in / groups, h, w), matrices are transposed."""
  return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def save(model: MaskRCNN, path: str, *, channels: str = 'bgr', resize: Resize | None = None,
         about: description.About | None = None) -> list[str]:
  """Write a checkpoint that Detectron2 and weights/detectron2.py read, and its `settings` as .yaml; return its names.

  about: description of the detector, with the names of its classes, written as .json.

  resize: that of evaluation. If Detectron2 does not build this ResNet, `backbone_path` is a module that registers one.

  Raises:
    UserError: a file cannot be written, or a variable has no name in Detectron2.
  """
  arrays = arrays_of(model, channels)
  try:
    tf.io.gfile.makedirs(os.path.dirname(path) or '.')
    # Protocol 2, as in Detectron2's own files.
    files.write(path, pickle.dumps({'model': arrays, '__author__': AUTHOR}, protocol=2))
    files.write(settings_path(path), settings(model, channels, resize).encode())
    if about is not None:
      description.write(f"{path.removesuffix('.pkl')}.json", about)
    if not builds(model.backbone):
      files.write(backbone_path(path), backbone_module(model.backbone.depth).encode())
  except (OSError, tf.errors.OpError) as error:
    raise UserError(f'{path}: cannot be written ({in_one_line(error)}): choose another place with --out') from error
  return list(arrays)


def settings_path(path: str) -> str:
  return f"{path.removesuffix('.pkl')}.yaml"


def backbone_path(path: str) -> str:
  return f"{path.removesuffix('.pkl')}_backbone.py"


def backbone_module(depth: int) -> str:
  """Return a module that registers a ResNet with FPN that Detectron2 does not build."""
  return f'''"""ResNet-{depth} with FPN. Import this module before the model is built from the .yaml beside it."""

from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, FPN, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock


@BACKBONE_REGISTRY.register()
def build_resnet{depth}_fpn_backbone(cfg, input_shape):
  resnet, fpn, stages = cfg.MODEL.RESNETS, cfg.MODEL.FPN, []
  stem = BasicStem(input_shape.channels, resnet.STEM_OUT_CHANNELS, resnet.NORM)
  channels = resnet.STEM_OUT_CHANNELS
  for stage, blocks in enumerate({BLOCKS[depth]}):
    width = resnet.RES2_OUT_CHANNELS * 2**stage
    stages.append(ResNet.make_stage(
      BottleneckBlock, blocks, stride_per_block=[2 if stage else 1] + [1] * (blocks - 1), in_channels=channels,
      out_channels=width, bottleneck_channels=resnet.NUM_GROUPS * resnet.WIDTH_PER_GROUP * 2**stage,
      num_groups=resnet.NUM_GROUPS, norm=resnet.NORM, stride_in_1x1=resnet.STRIDE_IN_1X1))
    if channels == width:  # of equal widths Detectron2 makes no convolution
      stages[stage][0].shortcut = Conv2d(
        channels, width, kernel_size=1, bias=False, norm=get_norm(resnet.NORM, width))
    channels = width
  bottom_up = ResNet(stem, stages, out_features=resnet.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
  return FPN(bottom_up, fpn.IN_FEATURES, fpn.OUT_CHANNELS, fpn.NORM, LastLevelMaxPool(), fpn.FUSE_TYPE)
'''


def builds(backbone: ResNet) -> bool:
  """Return whether Detectron2 builds this ResNet, whose first block has a shortcut convolution of any widths."""
  return backbone.depth in DEPTHS and backbone.stem_width != backbone.res2_width


def _backbone_name(backbone: ResNet) -> str:
  return 'build_resnet_fpn_backbone' if builds(backbone) else f'build_resnet{backbone.depth}_fpn_backbone'


def settings(model: MaskRCNN, channels: str = 'bgr', resize: Resize | None = None) -> str:
  """Return the Detectron2 configuration (YAML) of the same model, which a checkpoint does not contain."""
  step = -1 if channels == 'bgr' else 1
  backbone, box, mask, rpn = model.backbone, model.box_head, model.mask_head, model.proposal_generator
  final, anchors = model.detection_generator, model.anchors
  levels = [f'p{level}' for level in range(2, 7)]
  pooler = {'POOLER_SAMPLING_RATIO': model.box_pooler.sampling_ratio,
            'POOLER_TYPE': 'ROIAlignV2' if model.box_pooler.aligned else 'ROIAlign'}
  tree = {
    'META_ARCHITECTURE': 'GeneralizedRCNN', 'MASK_ON': mask is not None,
    'PIXEL_MEAN': list(model.pixel_mean)[::step], 'PIXEL_STD': list(model.pixel_std)[::step],
    'BACKBONE': {'NAME': _backbone_name(backbone), 'FREEZE_AT': 0},
    'RESNETS': {
      **({'DEPTH': backbone.depth} if backbone.depth in DEPTHS else {}),
      'NUM_GROUPS': backbone.groups, 'WIDTH_PER_GROUP': backbone.width_per_group,
      'STRIDE_IN_1X1': backbone.stride_in_1x1, 'STEM_OUT_CHANNELS': backbone.stem_width,
      'RES2_OUT_CHANNELS': backbone.res2_width, 'NORM': _norm(backbone.stem),
      'OUT_FEATURES': ['res2', 'res3', 'res4', 'res5']},
    'FPN': {'IN_FEATURES': ['res2', 'res3', 'res4', 'res5'], 'OUT_CHANNELS': _width(model.fpn.outputs[0]),
            'NORM': _norm(model.fpn.outputs[0])},
    'ANCHOR_GENERATOR': {'SIZES': [list(sizes) for sizes in anchors.of_levels(len(levels))],
                         'ASPECT_RATIOS': [list(anchors.ratios)], 'OFFSET': anchors.offset},
    'RPN': {'IN_FEATURES': levels, 'PRE_NMS_TOPK_TEST': rpn.pre_nms[False], 'POST_NMS_TOPK_TEST': rpn.post_nms[False],
            'NMS_THRESH': rpn.nms_iou,
            'CONV_DIMS': [conv.filters for conv in (model.rpn_head.conv, *model.rpn_head.further_convs)]},
    'ROI_HEADS': {'NAME': 'StandardROIHeads', 'IN_FEATURES': levels[:4], 'NUM_CLASSES': model.num_classes,
                  'SCORE_THRESH_TEST': final.score_threshold, 'NMS_THRESH_TEST': final.nms_iou},
    'ROI_BOX_HEAD': {
      'NAME': 'FastRCNNConvFCHead', 'NUM_CONV': len(box.convs), 'NUM_FC': len(box.fcs),
      **({'CONV_DIM': _width(box.convs[0]), 'NORM': _norm(box.convs[0])} if box.convs else {}),
      **({'FC_DIM': box.fcs[0].units} if box.fcs else {}), 'POOLER_RESOLUTION': model.box_pooler.size,
      'BBOX_REG_WEIGHTS': [model.roi_sampler.box_weights[i] for i in (1, 0, 3, 2)], **pooler},
  }
  if mask is not None:
    tree['ROI_MASK_HEAD'] = {
      'NAME': 'MaskRCNNConvUpsampleHead', 'NUM_CONV': len(mask.convs), 'CONV_DIM': mask.deconv.filters,
      'NORM': _norm(mask.convs[0]) if mask.convs else '', 'POOLER_RESOLUTION': model.mask_pooler.size, **pooler}
  if model.cascade is not None:
    tree['ROI_HEADS']['NAME'] = 'CascadeROIHeads'
    tree['ROI_BOX_HEAD']['CLS_AGNOSTIC_BBOX_REG'] = True
    weights = [model.roi_sampler.box_weights, *model.cascade.box_weights]
    tree['ROI_BOX_CASCADE_HEAD'] = {'IOUS': [model.roi_sampler.foreground_iou, *model.cascade.ious],
                                    'BBOX_REG_WEIGHTS': [[each[i] for i in (1, 0, 3, 2)] for each in weights]}
  if model.keypoint_head is not None:
    tree['KEYPOINT_ON'] = True
    tree['ROI_KEYPOINT_HEAD'] = {
      'NUM_KEYPOINTS': model.keypoint_predictor.deconv.filters,
      'CONV_DIMS': [_width(conv) for conv in model.keypoint_head.convs],
      'POOLER_RESOLUTION': model.keypoint_pooler.size, **pooler}
  sizes = [f'  MIN_SIZE_TEST: {resize.largest}', f'  MAX_SIZE_TEST: {resize.max_side}'] if resize is not None else []
  lines = ['VERSION: 2', 'MODEL:', *_yaml(tree, '  '), 'INPUT:', f'  FORMAT: {channels.upper()}', *sizes, 'TEST:',
           f'  DETECTIONS_PER_IMAGE: {final.max_detections}']
  return '\n'.join(lines) + '\n'


def _norm(layer: ConvNorm) -> str:
  """Return Detectron2's name of the norm."""
  return NORMS[type(layer.norm).__name__]


def _width(layer: ConvNorm) -> int:
  return layer.conv.filters


def _yaml(tree: Mapping[str, Any], indent: str) -> Iterator[str]:
  for name, value in tree.items():
    if isinstance(value, dict):
      yield f'{indent}{name}:'
      yield from _yaml(value, f'{indent}  ')
    else:
      yield f'{indent}{name}: {json.dumps(value)}'  # JSON's scalars and lists are YAML's
