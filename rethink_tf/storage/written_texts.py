"""The texts that a process has written to a run folder, to be written again if they are deleted while it runs.

Checkpoints are of no use without config.gin, identity.json and categories.json beside them, which are written when
training begins.
"""

from __future__ import annotations

import os

import tensorflow as tf
from absl import logging

from rethink_tf.storage import files


class WrittenTexts:
  """Texts by path."""

  def __init__(self) -> None:
    self._texts: dict[str, str] = {}

  def add(self, path: str, text: str) -> None:
    """Remember what was written to a path."""
    self._texts[path] = text

  def write_missing(self) -> None:
    """Write the files that are gone, with a warning; raises OSError or tf.errors.OpError if one cannot be written."""
    for path, text in self._texts.items():
      if not tf.io.gfile.exists(path):
        tf.io.gfile.makedirs(os.path.dirname(path))
        files.write(path, text)
        logging.warning('%s was deleted during the run: it is written again, since the checkpoints need it', path)
