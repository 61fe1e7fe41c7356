"""Parsing of YAML from others' files: plain strings, lists and mappings, with limits on size and depth."""

from __future__ import annotations

import re
from typing import Any

from rethink_tf.errors import UserError, in_one_line

_MAX_LENGTH = 1 << 20  # characters
_MAX_DEPTH = 20  # of brackets, whose parsing takes time with the square of it


def parse(path: str, text: str) -> Any:
  """Return the content of YAML, all scalars as text: a class named `no` or `1` keeps its name.

  None if the text is too long, or its brackets are nested too deeply, for a description of a data set.

  Raises:
    UserError: it is not YAML.
  """
  import yaml  # needed for few files only

  if len(text) > _MAX_LENGTH or _depth(text) > _MAX_DEPTH:
    return None
  try:
    return yaml.load(text, yaml.BaseLoader)
  except (yaml.YAMLError, RecursionError, ValueError) as error:
    place = getattr(error, 'problem_mark', None)
    raise UserError(f'{path}: not valid YAML' + (f', line {place.line + 1}' if place else '')
                    + f': {getattr(error, "problem", None) or in_one_line(error)}') from error


def _depth(text: str) -> int:
  """Return how deeply brackets are nested in a text."""
  depth = deepest = 0
  for bracket in re.findall(r'[\[\]{}]', text):
    depth += 1 if bracket in '[{' else -1
    deepest = max(deepest, depth)
  return deepest
