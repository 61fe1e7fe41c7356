"""Reads the configuration in a checkpoint of OpenMMLab (mmdet, mmpretrain), for what torchvision's names do not reveal.

Its ResNets of style 'caffe' have torchvision's names, Caffe's channel order and strides on the first 1x1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rethink_tf.weights.contents import Contents

_MAX_LENGTH = 1 << 20  # characters of a configuration


def configured(contents: Contents, content: Mapping[str, Any]) -> Contents:
  """Return the contents with strides, channel order and normalisation of the checkpoint's own configuration, if any."""
  meta = content.get('meta')
  texts = [meta.get(key) for key in ('cfg', 'config')] if isinstance(meta, Mapping) else []
  text = next((text for text in texts if isinstance(text, str) and len(text) < _MAX_LENGTH), None)
  if text is None or contents.kind != 'backbone' or contents.architecture is None:
    return contents
  order = re.search(r"""\b(?:bgr_)?to_rgb['"]?\s*[=:]\s*(True|False|true|false)""", text)
  caffe = bool(re.search(r"""\bstyle['"]?\s*[=:]\s*['"]caffe['"]""", text))
  is_bgr = order[1].lower() == 'false' if order else caffe
  mean, std = (_numbers(text, name) for name in ('mean', 'std'))
  contents = contents._replace(
    channels='bgr' if is_bgr else 'rgb', stride_in_1x1=caffe,
    notes=tuple(note for note in contents.notes if not note.startswith('mean and')) + (
      'strides, channel order and normalisation are those of the configuration in the checkpoint',))
  if mean and std:
    step = -1 if is_bgr else 1
    contents = contents._replace(pixel_mean=mean[::step], pixel_std=std[::step])
  return contents


def _numbers(text: str, name: str) -> tuple[float, ...] | None:
  number = r'\s*(\d+(?:\.\d*)?)\s*'
  match = re.search(rf"""\b{name}['"]?\s*[=:]\s*\[{number},{number},{number},?\s*\]""", text)
  return tuple(float(value) for value in match.groups()) if match else None
