"""Reads the YAML file in which other programs keep settings beside their weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from absl import logging

from rethink_tf.errors import in_one_line
from rethink_tf.storage.files import open_regular

_MAX_BYTES = 256 << 10


def beside(path: str, names: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
  """Return the path and the content of the first of these files in the folder of `path`; ('', {}) without one.

  A file that is not plain YAML of a mapping is reported and skipped: what it holds is then asked for.
  """
  for name in names:
    place = os.path.join(os.path.dirname(path), name)
    try:
      with open_regular(place, 'r') as file:
        text = file.read(_MAX_BYTES + 1)
    except (OSError, tf.errors.OpError, UnicodeDecodeError, ValueError):
      continue
    content = _parsed(place, text)
    if content is not None:
      return place, content
  return '', {}


def _parsed(place: str, text: str) -> Mapping[str, Any] | None:
  import yaml  # of tf-models-official; needed for these files only

  try:
    if len(text) > _MAX_BYTES:
      raise ValueError(f'more than {_MAX_BYTES >> 10} KiB')
    if '<<' in text:  # each level can double what the next one copies
      raise ValueError('merge keys')
    content = yaml.safe_load(text)
    if not isinstance(content, Mapping):
      raise ValueError('not a mapping')
  except (yaml.YAMLError, ValueError, RecursionError) as error:
    logging.warning('%s is ignored: not a YAML file of settings (%s)', place, in_one_line(error, 120))
    return None
  return content


def get(settings: Mapping[str, Any], name: str) -> Any:
  """Return the setting at a dotted name, as 'MODEL.RESNETS.DEPTH'; None if there is none."""
  for key in name.split('.'):
    if not isinstance(settings, Mapping) or key not in settings:
      return None
    settings = settings[key]
  return settings
