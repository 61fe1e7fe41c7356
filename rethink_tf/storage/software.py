"""Versions with which a run is trained."""

from __future__ import annotations

import importlib.metadata
import pathlib
import platform
import subprocess

import rethink_tf

_PACKAGES = {
  'tensorflow': ('tensorflow', 'tensorflow-cpu', 'tf-nightly'),
  'tf_keras': ('tf_keras',),
  'official': ('tf-models-official', 'tf-models-nightly'),
  'numpy': ('numpy',),
}


def versions() -> dict[str, str | None]:
  """Return the versions of Python, this package and its main dependencies."""
  found: dict[str, str | None] = {'python': platform.python_version(), 'rethink_tf': rethink_tf.__version__}
  for name, distributions in _PACKAGES.items():
    found[name] = None
    for distribution in distributions:
      try:
        found[name] = importlib.metadata.version(distribution)
        break
      except importlib.metadata.PackageNotFoundError:
        continue
  return found


def git_commit() -> str | None:
  """Return the commit of this package's checkout ('+changes' if edited); None if the package is installed."""
  root = pathlib.Path(rethink_tf.__file__).resolve().parents[1]

  def git(*arguments: str) -> str:
    return subprocess.run(['git', '-C', str(root), *arguments], capture_output=True, text=True, check=True,
                          timeout=20).stdout.strip()
  try:
    if pathlib.Path(git('rev-parse', '--show-toplevel')).resolve() != root:
      return None  # site-packages inside another repository
    return git('rev-parse', 'HEAD') + ('+changes' if git('status', '--porcelain', '--', 'rethink_tf') else '')
  except (OSError, subprocess.SubprocessError):
    return None
