"""Settings that a Detectron2 detector's weights do not contain, and the parts that its arrays imply.

`read` takes them from the configuration beside the file, as Detectron2's trainer and this package's export write it.
`assumed` are those of Detectron2's model zoo, to describe a file alone: loading one asks for them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from rethink_tf.weights import settings_files
from rethink_tf.weights.contents import (
  DETECTRON2_MEAN,
  TORCH_STD,
  UNIT_STD,
  Architecture,
  Array,
  Contents,
  coco_classes,
)

X101_STD = TORCH_STD  # of Detectron2's ResNeXt-101
# Bindings without which the same weights compute something else, by the convention they were trained with.
CONVENTIONS = {
  'detectron2': {'Anchors.offset': 0.0, 'RoIPooler.aligned': True, 'RoIPooler.sampling_ratio': 0},
  'detectron': {'Anchors.offset': 0.5, 'RoIPooler.aligned': False, 'RoIPooler.sampling_ratio': 2},
}
_DEFAULTS = {  # of Detectron2, for a configuration that leaves them out
  'INPUT.FORMAT': 'BGR', 'MODEL.RESNETS.STRIDE_IN_1X1': True, 'MODEL.PIXEL_MEAN': list(DETECTRON2_MEAN[::-1]),
  'MODEL.PIXEL_STD': list(UNIT_STD), 'MODEL.ANCHOR_GENERATOR.OFFSET': 0.0,
  'MODEL.ROI_BOX_HEAD.POOLER_TYPE': 'ROIAlignV2', 'MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO': 0,
}
_ONLY = {  # what this package computes; another value gives other outputs from the same arrays
  'MODEL.FPN.FUSE_TYPE': 'sum', 'MODEL.RPN.BBOX_REG_WEIGHTS': [1.0, 1.0, 1.0, 1.0], 'MODEL.RESNETS.RES5_DILATION': 1,
  'MODEL.RPN.IN_FEATURES': ['p2', 'p3', 'p4', 'p5', 'p6'], 'MODEL.ROI_HEADS.IN_FEATURES': ['p2', 'p3', 'p4', 'p5'],
  'MODEL.PROPOSAL_GENERATOR.MIN_SIZE': 0, 'MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION': 7,
  'MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION': 14, 'MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION': 14,
}
_HEADS = {'ROI_MASK_HEAD': 'MASK_ON', 'ROI_KEYPOINT_HEAD': 'KEYPOINT_ON'}  # and whether a detector has them
_LEVELS = 5  # of a pyramid, P2 to P6
_PLAIN = {  # further settings of the same meaning and type
  'MODEL.RPN.PRE_NMS_TOPK_TEST': ('ProposalGenerator.pre_nms_test', int),
  'MODEL.RPN.POST_NMS_TOPK_TEST': ('ProposalGenerator.post_nms_test', int),
  'MODEL.RPN.NMS_THRESH': ('ProposalGenerator.nms_iou', float),
  'MODEL.ROI_HEADS.SCORE_THRESH_TEST': ('DetectionGenerator.score_threshold', float),
  'MODEL.ROI_HEADS.NMS_THRESH_TEST': ('DetectionGenerator.nms_iou', float),
  'TEST.DETECTIONS_PER_IMAGE': ('DetectionGenerator.max_detections', int),
}


def read(contents: Contents) -> Contents:
  """Return the contents with the settings of the configuration beside the file, if there is one of the same network."""
  stem = os.path.splitext(os.path.basename(contents.path))[0]
  place, config = settings_files.beside(contents.path, (f'{stem}.yaml', 'config.yaml'))
  if not isinstance(config.get('MODEL'), Mapping):
    return contents
  problem = _problem(config, contents.architecture)
  if problem:
    logging.warning('%s is ignored: %s', place, problem)
    return contents

  def value(name: str) -> Any:
    found = settings_files.get(config, name)
    return _DEFAULTS[name] if found is None else found

  step = -1 if value('INPUT.FORMAT') == 'BGR' else 1
  settings = {
    'Anchors.offset': float(value('MODEL.ANCHOR_GENERATOR.OFFSET')),
    'RoIPooler.aligned': value('MODEL.ROI_BOX_HEAD.POOLER_TYPE') == 'ROIAlignV2',
    'RoIPooler.sampling_ratio': value('MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO'),
    **_anchors(config), **_box_weights(config)}
  for name, (binding, kind) in _PLAIN.items():
    found = settings_files.get(config, name)
    if isinstance(found, int | float) and not isinstance(found, bool):
      settings[binding] = kind(found)
  return contents._replace(
    channels='bgr' if step < 0 else 'rgb', stride_in_1x1=value('MODEL.RESNETS.STRIDE_IN_1X1'),
    pixel_mean=tuple(map(float, value('MODEL.PIXEL_MEAN')))[::step],
    pixel_std=tuple(map(float, value('MODEL.PIXEL_STD')))[::step], settings=settings,
    classes=coco_classes(contents.arrays) if _is_of_coco(config) else None,
    notes=(*contents.notes, f'configuration of the detector: {place}', *_unlike(config)))


def _is_of_coco(config: Mapping[str, Any]) -> bool:
  """Whether the configuration's training sets are COCO's only, whose classes have a known order."""
  names = settings_files.get(config, 'DATASETS.TRAIN')
  return isinstance(names, list) and bool(names) and all(
    isinstance(name, str) and re.fullmatch(r'coco_20(14|17)_(train|val|minival|valminusminival).*', name)
    for name in names)


def _unlike(config: Mapping[str, Any]) -> list[str]:
  """Return notes on settings that this package does not support."""
  heads = [head for head, switch in _HEADS.items() if settings_files.get(config, f'MODEL.{switch}')]
  without = tuple(f'MODEL.{head}.' for head in _HEADS if head not in heads)
  found = {name: (settings_files.get(config, name), f'only {only}') for name, only in _ONLY.items()
           if not name.startswith(without)}
  found |= {f'MODEL.ANCHOR_GENERATOR.{name}': (settings_files.get(config, f'MODEL.ANCHOR_GENERATOR.{name}'), only)
            for name, binding, only in (('SIZES', 'Anchors.sizes', 'only as many sizes at each level'),
                                        ('ASPECT_RATIOS', 'Anchors.ratios', 'only the same ratios at all levels'))
            if binding not in _anchors(config)}
  notes = [f'{name} = {str(value)[:40]}: {only} is computed here, so outputs differ from its training'
           for name, (value, only) in found.items() if value not in (None, _ONLY.get(name))]
  for head in heads:
    for name in ('POOLER_TYPE', 'POOLER_SAMPLING_RATIO'):
      box, other = (settings_files.get(config, f'MODEL.{each}.{name}') for each in ('ROI_BOX_HEAD', head))
      if None not in (box, other) and box != other:
        notes.append(f'{name} of box and {head.split("_")[1].lower()} head differ: only that of the box head, '
                     f'{str(box)[:40]}, is used')
  return notes


def _problem(config: Mapping[str, Any], architecture: Architecture | None) -> str:
  """Return why a configuration cannot be used, '' if it can."""
  if '_BASE_' in config:
    return 'it refers to another file by _BASE_: write it with cfg.dump()'
  for name, default in _DEFAULTS.items():
    found = settings_files.get(config, name)
    if found is None:
      continue
    kinds = int | float if isinstance(default, float) else type(default)
    if isinstance(found, bool) is not isinstance(default, bool) or not isinstance(found, kinds) or (
        isinstance(default, list) and not _is_numbers(found, 3)):
      return f'{name} is {str(found)[:40]!r}'
  if settings_files.get(config, 'MODEL.ROI_BOX_HEAD.POOLER_TYPE') not in ('ROIAlign', 'ROIAlignV2', None):
    return 'MODEL.ROI_BOX_HEAD.POOLER_TYPE is neither ROIAlign nor ROIAlignV2'
  if settings_files.get(config, 'INPUT.FORMAT') not in ('BGR', 'RGB', None):
    return 'INPUT.FORMAT is neither BGR nor RGB'
  for name, field in (('DEPTH', 'depth'), ('NUM_GROUPS', 'groups'), ('WIDTH_PER_GROUP', 'width_per_group')):
    found = settings_files.get(config, f'MODEL.RESNETS.{name}')
    if architecture is not None and found is not None and found != getattr(architecture, field):
      return f'MODEL.RESNETS.{name} is {str(found)[:40]}, that of the weights {getattr(architecture, field)}'
  return ''


def _is_numbers(values: Any, length: int | None = None) -> bool:
  return isinstance(values, list) and (length is None or len(values) == length) and all(
    isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _anchors(config: Mapping[str, Any]) -> dict[str, Any]:
  """Return the anchors of a pyramid: as many sizes at each level, and the same ratios at all levels."""
  sizes, ratios = (_of_levels(settings_files.get(config, f'MODEL.ANCHOR_GENERATOR.{name}'))
                   for name in ('SIZES', 'ASPECT_RATIOS'))
  found = {}
  if sizes and all(len(level) == len(sizes[0]) for level in sizes):
    found['Anchors.sizes'] = tuple(level[0] if len(level) == 1 else tuple(level) for level in sizes)
  if ratios and all(level == ratios[0] for level in ratios):
    found['Anchors.ratios'] = tuple(ratios[0])
  return found


def _of_levels(values: Any) -> list[list[float]]:
  """Return a list of numbers for each level, where one list is that of all of them; [] if it is none of these."""
  if isinstance(values, list) and len(values) in (1, _LEVELS) and all(
      _is_numbers(level) and level for level in values):
    return values * (_LEVELS // len(values))
  return []


def _box_weights(config: Mapping[str, Any]) -> dict[str, Any]:
  """Return the weights of box deltas: x before y there, y before x here."""
  def swapped(weights: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(weights[i]) for i in (1, 0, 3, 2))

  if settings_files.get(config, 'MODEL.ROI_HEADS.NAME') == 'CascadeROIHeads':
    stages, ious = (settings_files.get(config, f'MODEL.ROI_BOX_CASCADE_HEAD.{name}')
                    for name in ('BBOX_REG_WEIGHTS', 'IOUS'))
    if isinstance(stages, list) and stages and all(_is_numbers(each, 4) for each in stages) and \
        _is_numbers(ious, len(stages)):
      first, *others = map(swapped, stages)
      return {'RoISampler.box_weights': first, 'Cascade.box_weights': tuple(others),
              'Cascade.ious': tuple(map(float, ious[1:]))}
    return {}
  weights = settings_files.get(config, 'MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS')
  return {'RoISampler.box_weights': swapped(weights)} if _is_numbers(weights, 4) else {}


def assumed(contents: Contents) -> Contents:
  """Return the contents of a detector with what it does not record as in Detectron2's model zoo, and a note on it."""
  architecture, missing = contents.architecture, []
  plain = architecture is not None and architecture.groups == 1 and architecture.depth in (50, 101)
  values = {
    'channels': 'bgr', 'stride_in_1x1': plain and contents.norm == 'bn', 'pixel_mean': DETECTRON2_MEAN,
    'pixel_std': UNIT_STD if architecture is None or architecture.groups == 1 else X101_STD,
    'settings': CONVENTIONS['detectron2']}
  for name, value in values.items():
    if not getattr(contents, name) and getattr(contents, name) is not False:
      missing.append(name)
      contents = contents._replace(**{name: value})
  if missing:
    note = (f'not in the file, here as in Detectron2\'s model zoo: {", ".join(missing)} (its scratch models have '
            'another pixel_std, and strides on the 3x3); config.yaml of its training would be read beside the file')
    contents = contents._replace(notes=(*contents.notes, note))
  return contents


def parts(contents: Contents) -> tuple[list[str], dict[str, Any]]:
  """Return the gin files and bindings of a detector's parts after the backbone, as its arrays imply them."""
  arrays, files, bindings = contents.arrays, [], {}
  cascade = 'roi_heads.box_predictor.1.cls_score.weight' in arrays
  if cascade:
    files.append('models/cascade.gin')
  box = 'roi_heads.box_head.0' if cascade else 'roi_heads.box_head'
  mask, keypoint = 'roi_heads.mask_head', 'roi_heads.keypoint_head'
  if f'{keypoint}.score_lowres.weight' in arrays:
    files.append('models/keypoints.gin')
    bindings |= _convolutions(arrays, f'{keypoint}.conv_fcn', 'KeypointHead', 8, 512)
    if f'{mask}.deconv.weight' in arrays:
      bindings['MaskRCNN.mask_head'] = '@MaskHead()'
  elif f'{mask}.deconv.weight' not in arrays:
    files.append('models/faster_rcnn.gin')
  bindings |= _rpn(arrays) | _different('FPN.channels', arrays.get('backbone.fpn_output2.weight'), 256)
  bindings |= _convolutions(arrays, f'{box}.conv', 'BoxHead', 4, 256) | _fully_connected(arrays, f'{box}.fc')
  if f'{mask}.deconv.weight' in arrays:
    bindings |= _convolutions(arrays, f'{mask}.mask_fcn', 'MaskHead', 4, 256)
  return files, bindings | _norms(contents, files, {'BoxHead': f'{box}.conv1', 'MaskHead': f'{mask}.mask_fcn1'})


def _norms(contents: Contents, files: list[str], heads: Mapping[str, str]) -> dict[str, Any]:
  """Add the gin file of the FPN's norm to `files`; return the bindings of what has another one."""
  names = {'bn': '@sync_batch_norm', 'gn': '@group_norm', 'none': '@no_norm', 'folded': '@frozen_batch_norm'}
  pyramid = norm_of(contents.arrays, 'backbone.fpn_lateral2')
  backbone = 'folded' if contents.norm == 'bn' and pyramid != 'bn' else contents.norm
  norm_file = {'bn': 'syncbn', 'gn': 'gn'}.get(pyramid, 'frozen_bn' if backbone == 'folded' else 'none')
  files.append(f'norms/{norm_file}.gin')
  bindings = {}
  if names.get(backbone) != {'syncbn': '@sync_batch_norm', 'gn': '@group_norm', 'none': '@no_norm',
                             'frozen_bn': '@frozen_batch_norm'}[norm_file]:
    bindings['ResNet.norm'] = names[backbone]
  for head, convolution in heads.items():
    if f'{convolution}.weight' in contents.arrays and norm_of(contents.arrays, convolution) != pyramid:
      bindings[f'{head}.norm'] = names[norm_of(contents.arrays, convolution)]
  return bindings


def norm_of(arrays: Mapping[str, Array], convolution: str) -> str:
  """Return 'bn', 'gn' or 'none': the norm behind a convolution outside the backbone, where none is folded."""
  if f'{convolution}.norm.weight' not in arrays:
    return 'none'
  return 'bn' if f'{convolution}.norm.running_var' in arrays else 'gn'


def _rpn(arrays: Mapping[str, Array]) -> dict[str, Any]:
  prefix = 'proposal_generator.rpn_head'
  several = _count(arrays, rf'{re.escape(prefix)}\.conv\.conv(\d+)\.weight')
  last = arrays.get(f'{prefix}.conv.conv0.weight' if several else f'{prefix}.conv.weight')
  return _different('RPNHead.channels', last, 256) | ({'RPNHead.num_convs': several} if several > 1 else {}) | \
    _different('RPNHead.anchors_per_cell', arrays.get(f'{prefix}.objectness_logits.weight'), 3)


def _convolutions(arrays: Mapping[str, Array], prefix: str, part: str, usual: int, channels: int) -> dict[str, Any]:
  number = _count(arrays, rf'{re.escape(prefix)}(\d+)\.weight')
  found = _different(f'{part}.channels', arrays.get(f'{prefix}1.weight'), channels)
  return found if number == usual else {f'{part}.num_convs': number, **found}


def _fully_connected(arrays: Mapping[str, Array], prefix: str) -> dict[str, Any]:
  number = _count(arrays, rf'{re.escape(prefix)}(\d+)\.weight')
  found = _different('BoxHead.fc_width', arrays.get(f'{prefix}1.weight'), 1024)
  return found if number == 1 else {'BoxHead.num_fcs': number, **found}


def _count(arrays: Mapping[str, Array], pattern: str) -> int:
  return sum(bool(re.fullmatch(pattern, name)) for name in arrays)


def _different(binding: str, array: Array | None, usual: int) -> dict[str, int]:
  """Return {binding: outputs of the layer} if it has an unusual number of them, else {}."""
  return {} if array is None or not array.shape or array.shape[0] == usual else {binding: array.shape[0]}
