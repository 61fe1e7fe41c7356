"""JSON Lines: text with a JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rethink_tf.data.prepare.source_folder import SourceFolder

_HEAD = 5  # lines that tell what a file holds: the first one may be damaged


def first(folder: SourceFolder, file: str) -> dict[str, Any]:
  """Return the first object among the first lines of a file; {} if there is none."""
  return next(filter(None, map(_parsed, folder.first_lines(file, _HEAD))), {})


def objects(folder: SourceFolder, file: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yield (file and line, object) of each line that is not empty, {} for one that holds none.

  Raises:
    UserError: the file cannot be read, or is not UTF-8 text.
  """
  for i, line in enumerate(folder.lines(file), start=1):
    if line.strip():
      yield f'{file}, line {i}', _parsed(line)


def _parsed(line: str) -> dict[str, Any]:
  try:
    content = json.loads(line)
  except (ValueError, RecursionError):
    return {}
  return content if isinstance(content, dict) else {}
