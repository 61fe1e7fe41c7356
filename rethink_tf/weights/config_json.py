"""Reads config.json beside a file of the Hugging Face hub, for what a ResNet's names and shapes do not reveal.

timm's resnetaa50 and resnetblur50 have the names and shapes of resnet50, but compute something else.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from rethink_tf.errors import UserError, excerpt
from rethink_tf.weights import settings_files
from rethink_tf.weights.contents import Architecture

# timm's networks that are built here: v1.5 ResNets, ResNeXts and wide ResNets with a 7x7 stem.
_PLAIN = re.compile(r'(?:tv_|gluon_|ssl_|swsl_|ig_|tv2_)?(?:wide_)?(?:resnet|resnext)(\d+)(?:_v1b|_\d+x\d+d|_2)?(_gn)?'
                    r'(?:\..*)?')
_OPTIONS = {'num_classes', 'in_chans', 'pretrained', 'global_pool'}  # of timm's models, without effect on C2..C5
_VARIANTS = ("timm's resnetaa50 and resnetblur50 have the same names and shapes: whether it is one of them is not in "
             'the file (it is in config.json of the Hugging Face hub)')


class Config(NamedTuple):
  """Settings from a config.json. norm: 'gn' or None. stride_in_1x1, pixel_mean, pixel_std: None if not given."""

  norm: str | None = None
  stride_in_1x1: bool | None = None
  pixel_mean: tuple[float, ...] | None = None
  pixel_std: tuple[float, ...] | None = None
  notes: tuple[str, ...] = ()


def beside(path: str, architecture: Architecture) -> Config:
  """Return the configuration beside a weight file; of another network it is not used, and noted.

  Raises:
    UserError: it names a variant that is not built here.
  """
  place, settings = settings_files.beside(path, ('config.json',))
  name = settings.get('architecture')
  if isinstance(name, str):
    return _of_timm(path, place, name, settings, architecture)
  if settings.get('model_type') == 'resnet':
    return _of_transformers(path, place, settings, architecture)
  return Config(notes=(_VARIANTS,))


def _of_timm(path: str, place: str, name: str, settings: Any, architecture: Architecture) -> Config:
  depth = re.search(r'(?:resnet|resnext|resnet\w*?)(\d{1,9})', name)
  if not depth or int(depth[1]) != architecture.depth:
    return Config(notes=(f'{place} is of another network ({excerpt(name, 40)}), and is not used', _VARIANTS))
  match = _PLAIN.fullmatch(name)
  options = settings.get('model_args')
  options = [key for key in options if key not in _OPTIONS] if isinstance(options, dict) else []
  if not match or options:
    what = f' with {excerpt(options[0], 40)}' if options else ''
    raise UserError(f'{path}: is a {excerpt(name, 40)}{what} by {place}, which is not built here: give the weights of '
                    'a plain resnet, resnext or wide_resnet')
  mean, std = (_scaled(settings_files.get(settings, f'pretrained_cfg.{key}')) for key in ('mean', 'std'))
  if not (mean and std):
    mean, std = (_scaled(settings.get(key)) for key in ('mean', 'std'))  # of older files
  return Config('gn' if match[2] else None, False, mean if std else None, std if mean else None,
                (f'{name} by {place}',))


def _of_transformers(path: str, place: str, settings: Any, architecture: Architecture) -> Config:
  depths = settings.get('depths')
  if isinstance(depths, list) and all(isinstance(depth, int) for depth in depths) and \
      3 * sum(depths) + 2 != architecture.depth:
    return Config(notes=(f'{place} is of another network, and is not used',))
  for name, built in (('hidden_act', 'relu'), ('downsample_in_first_stage', False), ('layer_type', 'bottleneck')):
    if settings.get(name, built) != built:
      raise UserError(f'{path}: has {name} = {excerpt(settings[name], 40)} by {place}, which is not built here: give '
                      f'the weights of a network with {built!r}')
  return Config(None, bool(settings.get('downsample_in_bottleneck', False)), notes=(f'strides are those of {place}',))


def _scaled(values: Any) -> tuple[float, ...] | None:
  """Convert three numbers from the range 0-1 to 0-255."""
  if isinstance(values, list | tuple) and len(values) == 3 and all(
      isinstance(value, int | float) and 0 < value <= 1 for value in values):
    return tuple(round(255.0 * value, 4) for value in values)
  return None
