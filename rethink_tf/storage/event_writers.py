"""The TensorBoard writers of a run folder, which are recreated if their files are deleted while the run goes on."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import tensorflow as tf
from absl import logging


class EventWriters:
  """Writers by name: events of '' go to the root folder, others to subfolders."""

  def __init__(self, root: str):
    self._root = root.rstrip('/')
    self._writers: dict[str, tf.summary.SummaryWriter] = {}
    self._written: set[str] = set()  # names whose files have been seen
    self._lock = threading.RLock()

  def get(self, name: str = '') -> tf.summary.SummaryWriter:
    """Return the writer of a name, created on first use and again if its local files have been deleted."""
    with self._lock:
      folder = '/'.join([self._root, *filter(None, [name])])
      if name in self._writers and self._deleted(name, folder):
        logging.warning('%s: the TensorBoard events were deleted during the run; new ones begin here (metrics.jsonl is '
                        'not affected)', folder)
        del self._writers[name]
        self._written.discard(name)
      if name not in self._writers:
        self._writers[name] = tf.summary.create_file_writer(folder)
      return self._writers[name]

  def written(self, name: str) -> bool:
    """Whether events of a name have been written, in earlier starts too."""
    return tf.io.gfile.isdir(f'{self._root}/{name}')

  def __iter__(self) -> Iterator[tf.summary.SummaryWriter]:
    """Iterate over the writers that have been created."""
    return iter(list(self._writers.values()))

  def _deleted(self, name: str, folder: str) -> bool:
    """Whether existing files are gone: their writer would go on writing to an unlinked file."""
    if '://' in folder:
      return False
    try:
      present = any('.tfevents.' in entry.name for entry in os.scandir(folder))
    except OSError:
      present = False
    if present:
      self._written.add(name)
    return not present and name in self._written
