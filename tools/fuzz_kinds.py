"""Shared code of the fuzzer's kinds.

`build` writes valid files into a folder; `run` corrupts one with a random generator, reads it with the package's own
readers as a command would, and returns ACCEPTED, or SKIPPED where something was skipped and counted. Everything else is
an exception.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rethink_tf.data.images import ImageError

ACCEPTED, SKIPPED = 'accepted', 'counted skip'


@dataclasses.dataclass(frozen=True)
class Target:
  name: str
  build: Callable[[pathlib.Path], None]
  run: Callable[[np.random.Generator, pathlib.Path, pathlib.Path], str]  # generator, valid files, output folder


def pick(rng: np.random.Generator, items: Sequence[Any]) -> Any:
  return items[int(rng.integers(len(items)))]


def fresh(seeds: pathlib.Path, work: pathlib.Path) -> None:
  shutil.rmtree(work, ignore_errors=True)
  shutil.copytree(seeds, work)


def load_all(source: Any, skipped: bool = False) -> str:
  """Load every image; SKIPPED if one cannot be read."""
  for i in range(min(len(source.image_ids), 8)):
    try:
      source.load(i)
    except ImageError as error:
      one_line(error)
      skipped = True
  return SKIPPED if skipped else ACCEPTED


def one_line(error: Exception) -> None:
  if '\n' in str(error):
    raise AssertionError(f'{type(error).__name__} of several lines: {str(error)[:200]!r}')
