"""ResNets of Hugging Face transformers (microsoft/resnet-50), by torchvision's names."""

from __future__ import annotations

import re
from collections.abc import Collection

_RULES = (
  (re.compile(r'embedder\.embedder\.convolution\.'), 'conv1.'),
  (re.compile(r'embedder\.embedder\.normalization\.'), 'bn1.'),
  (re.compile(r'encoder\.stages\.([0-3])\.layers\.(\d+)\.layer\.([0-2])\.convolution\.'),
   lambda match: f'layer{int(match[1]) + 1}.{match[2]}.conv{int(match[3]) + 1}.'),
  (re.compile(r'encoder\.stages\.([0-3])\.layers\.(\d+)\.layer\.([0-2])\.normalization\.'),
   lambda match: f'layer{int(match[1]) + 1}.{match[2]}.bn{int(match[3]) + 1}.'),
  (re.compile(r'encoder\.stages\.([0-3])\.layers\.(\d+)\.shortcut\.convolution\.'),
   lambda match: f'layer{int(match[1]) + 1}.{match[2]}.downsample.0.'),
  (re.compile(r'encoder\.stages\.([0-3])\.layers\.(\d+)\.shortcut\.normalization\.'),
   lambda match: f'layer{int(match[1]) + 1}.{match[2]}.downsample.1.'),
)


def recognizes(names: Collection[str]) -> bool:
  """Return whether names of arrays are those of a ResNet of transformers."""
  return 'embedder.embedder.convolution.weight' in names


def renamed(name: str) -> str:
  """Return torchvision's name: encoder.stages.0.layers.1.layer.2.convolution.weight -> layer1.1.conv3.weight."""
  for rule, replacement in _RULES:
    if rule.match(name):
      return rule.sub(replacement, name, count=1)
  return name
