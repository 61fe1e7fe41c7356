"""The command-line options of a run that starts from a weight file: gin files and bindings that fit the file."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from rethink_tf import gin_files
from rethink_tf.models.cascade import Cascade
from rethink_tf.models.rois import Anchors, DetectionGenerator, ProposalGenerator, RoIPooler, RoISampler
from rethink_tf.weights import detectron2_settings, tf_models, torchvision_vgg
from rethink_tf.weights.contents import SWAV_STD, Architecture, Contents

# Files of gin_configs/models by depth, groups and width per group; all have a stem of 64 and res2 of 256 channels.
MODELS = {(50, 1, 64): 'r50', (101, 1, 64): 'r101', (152, 8, 32): 'x152', (101, 32, 8): 'x101_32x8d',
          (101, 32, 16): 'x101_32x16d', (101, 32, 32): 'x101_32x32d', (101, 32, 48): 'x101_32x48d',
          (101, 64, 4): 'x101_64x4d'}
_R50 = Architecture(50, 1, 64, 64, 256)
_PARTS = (Anchors, RoIPooler, RoISampler, ProposalGenerator, DetectionGenerator, Cascade)


def alternatives(contents: Contents, init: str | None = None) -> dict[str, list[str]]:
  """Return the options of a run that starts from a file; two variants if the file does not record its norms.

  init: file of gin_configs/init, if it is known from elsewhere than the contents.
  """
  if contents.norm is not None or contents.architecture is None:
    return {'use it with': command_line(contents, init=init)}
  return {'if GroupNorm': command_line(contents, 'gn'), 'if folded BN': command_line(contents, 'folded')}


def command_line(contents: Contents, norm: str = 'gn', init: str | None = None) -> list[str]:
  """Return the options of a run that starts from a file, to follow those of a complete configuration.

  norm: 'gn' or 'folded', of a file that does not record it. init: see alternatives.
  """
  known = completed(contents)
  known = known._replace(norm=norm) if known.norm is None and known.architecture is not None else known
  files, bindings = _model(contents)
  init = init or _init(known)
  files.append(f'gin_configs/init/{init}.gin')
  shipped = bindings_of(init)
  if known.kind == 'detector' and not known.own:
    further, parts = detectron2_settings.parts(known)
    files += [f'gin_configs/{name}' for name in further]
    bindings |= parts | {name: value for name, value in known.settings.items()
                         if name in shipped or value != default_of(name)}
  elif known.kind == 'backbone' and known.norm_part is not None:
    bindings['NORM'] = known.norm_part
  elif known.kind == 'backbone' and known.settings:
    bindings |= known.settings
  elif known.kind == 'backbone' and not torchvision_vgg.is_of(known):
    norm = {'bn': 'syncbn', 'folded': 'frozen_bn', 'none': 'none', 'gn': 'gn', None: 'gn'}[known.norm]
    files.append(f'gin_configs/norms/{norm}.gin')
  bindings |= _of_file(contents, known)
  bindings = {name: value for name, value in bindings.items() if name not in shipped or shipped[name] != value}
  # What a run takes of the user's own: parts of the configuration of a detector, a backbone or its norm.
  imports = contents.imports if known.kind == 'detector' or known.norm_part is not None or known.settings else ()
  return [*(f"--gin_param='import {name}'" for name in imports),
          *(f'--gin_file={shlex.quote(name)}' for name in files), f'--weights={shlex.quote(contents.path)}',
          *(f'--gin_param={quoted(name, value)}' for name, value in bindings.items())]


def completed(contents: Contents) -> Contents:
  """Return the contents; for a file of Detectron2, what it does not record is taken from its model zoo."""
  return detectron2_settings.assumed(contents) if contents.format.startswith('Detectron2') else contents


def _init(contents: Contents) -> str:
  """Return the name of a file of gin_configs/init."""
  if contents.kind == 'detector':
    return 'detector' if contents.own or not contents.settings.get('RoIPooler.aligned') else 'detector_detectron2'
  if contents.own:
    return 'pretrained_run'
  if contents.format.startswith('keras'):
    return 'imagenet_keras'
  if contents.padding == 'same':
    return 'imagenet_tf_models'
  if contents.stride_in_1x1:
    return 'imagenet_msra'
  if contents.pixel_std is not None and contents.pixel_std[0] > 2:
    if contents.pixel_std == SWAV_STD:
      return 'swav'
    return 'wsl' if 'WSL' in contents.licence else 'imagenet_torchvision'
  return 'imagenet'


def _model(contents: Contents) -> tuple[list[str], dict[str, Any]]:
  """Return the gin files and bindings of the architecture; a detector of this package has them in its configuration."""
  if contents.own and contents.kind == 'detector':
    config = os.path.join(os.path.dirname(os.path.dirname(contents.checkpoint.rstrip('/'))), 'config.gin')
    return [config] if tf.io.gfile.exists(config) else [], {}
  if torchvision_vgg.is_of(contents):
    usual = {'VGG.depth': 16, 'VGG.width': 64, 'BoxHead.fc_width': 4096}
    bindings = {name: value for name, value in torchvision_vgg.settings(contents).items() if value != usual[name]}
    if 'fc6.weight' not in contents.arrays:
      bindings['PretrainedWeights.new'] = ('fc6.*', 'fc7.*')
    return ['gin_configs/models/vgg16.gin'], bindings
  if contents.architecture is None:
    return [], {}
  usual = MODELS.get(contents.architecture[:3]) if contents.architecture[3:] == _R50[3:] else None
  differences = {f'ResNet.{name}': value for name, value in contents.architecture._asdict().items()
                 if usual is None and value != getattr(_R50, name)}
  return [f'gin_configs/models/{usual or "r50"}.gin'], differences


def _of_file(contents: Contents, known: Contents) -> dict[str, Any]:
  """Return the bindings of pixels, strides, padding and of what the file does not record."""
  found = {'MaskRCNN.pixel_mean': known.pixel_mean, 'MaskRCNN.pixel_std': known.pixel_std}
  if known.architecture is not None:
    found |= {'ResNet.stride_in_1x1': known.stride_in_1x1, 'ResNet.padding': known.padding}
  if contents.epsilon is None:
    found['PretrainedWeights.epsilon'] = tf_models.likely_epsilon(contents.ignored)
  if contents.norm is None and contents.architecture is not None:
    found['PretrainedWeights.norm'] = known.norm
  for name in ('channels', 'stride_in_1x1'):
    if getattr(contents, name) is None:
      found[f'PretrainedWeights.{name}'] = getattr(known, name)
  return {name: value for name, value in found.items() if value is not None}


def bindings_of(init: str) -> dict[str, Any]:
  """Return the literal values that a file of gin_configs/init binds."""
  text = (gin_files.shipped_root() / 'gin_configs' / 'init' / f'{init}.gin').read_text()
  found = {}
  for name, value in re.findall(r'^([\w.]+) = ([^@%\n].*)$', text, re.MULTILINE):
    found[name] = ast.literal_eval(value)
  return found


def default_of(binding: str) -> Any:
  """Return the default of a parameter of a part, named as in gin ('Anchors.offset')."""
  part, name = binding.split('.')
  classes: Mapping[str, type] = {each.__name__: each for each in _PARTS}
  return inspect.signature(classes[part]).parameters[name].default


def quoted(name: str, value: Any) -> str:
  """Return a binding in quotes for a shell."""
  text = f'{name} = {value if str(value).startswith("@") else repr(value)}'
  return f'"{text}"' if "'" in text else f"'{text}'"
