"""Arguments of the API: one path or several, and configurations of gin files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence

Path = str | os.PathLike[str]


@contextlib.contextmanager
def configuration(files: Sequence[str], params: Sequence[str], data_dir: Path | None = None,
                   weights: Path | None = None) -> Iterator[None]:
  """Bind a configuration; clear it afterwards, since gin accepts no new parts while it is bound."""
  import gin

  from rethink_tf import experiment

  try:
    experiment.configure(files, params, optional(data_dir), optional(weights))
    yield
  finally:
    gin.clear_config()


def strings(value: str | Iterable[str]) -> list[str]:
  """Return one string or several as a list."""
  return [value] if isinstance(value, str) else list(value)


def text(path: Path) -> str:
  """Return a path as text, with the home directory for ~."""
  return os.path.expanduser(os.fspath(path))


def optional(path: Path | None) -> str | None:
  """Return a path as text, with the home directory for ~."""
  return None if path is None else text(path)


def paths(value: Path | Iterable[Path]) -> list[str]:
  """Return one path or several as a list of texts."""
  return [text(path) for path in ([value] if isinstance(value, str | os.PathLike) else value)]
