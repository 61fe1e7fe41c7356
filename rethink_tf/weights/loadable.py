"""Checks that every array of a file belongs to a layer that this package can build."""

from __future__ import annotations

import re

from rethink_tf.errors import UserError, excerpt
from rethink_tf.weights import torchvision_vgg
from rethink_tf.weights.contents import Contents

_RESNET = re.compile(r'(?:stem\.conv1|res[2-5]\.\d+\.(?:conv[123]|shortcut))\.'
                     r'(?:weight|norm\.(?:weight|bias|running_mean|running_var))|linear\.(?:weight|bias)')
_VGG = re.compile(r'(?:conv[1-5]_[1-4]|fc[67]|linear)\.(?:weight|bias)')
_REASONS = (
  (re.compile(r'res\d\.\d+\.(?:se|attn|eca)\b'), 'squeeze-and-excitation or another attention'),
  (re.compile(r'(?:^|\.)attnpool\.'), "CLIP's attention pooling"),
  (re.compile(r'(?:conv\d|shortcut)\.bias$'), 'convolutions with biases: BatchNorm is fused into them'),
)


def unknown(contents: Contents) -> list[str]:
  """Return the names of a backbone's arrays that belong to no layer of a ResNet or VGG here."""
  if contents.own or contents.kind != 'backbone':
    return []
  rule = _VGG if torchvision_vgg.is_of(contents) else _RESNET
  return [name for name in contents.arrays if not rule.fullmatch(name)]


def check(contents: Contents) -> None:
  """Raise a UserError if a file has arrays that no network of this package can load."""
  names = unknown(contents)
  if names:
    reason = next((f'{reason}; ' for rule, reason in _REASONS for name in names if rule.search(name)), '')
    shown = ', '.join(excerpt(name) for name in names[:3]) + (', …' if len(names) > 3 else '')
    raise UserError(f'{contents.path}: {len(names)} of its arrays ({shown}) are of no layer that is built here '
                    f'({reason}see the names): use the weights of a plain ResNet, ResNeXt or VGG')
