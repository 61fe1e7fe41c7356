"""Images that several rows of a batch need: read once, in any thread."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class SharedReads:
  """Rows of a batch that need several images, some in common: each image is read once, and kept until its last row.

  The thread that reads the last image of a row fills the row, so that no thread waits for another.

  Args:
    needed: indices of the images of each row.
    read: index -> anything, in any thread.
    fill: row, {index: what was read}.

  Attributes:
    indices: int64, the images to read, in the order of the rows.
  """

  def __init__(self, needed: Sequence[Sequence[int]], read: Callable[[int], Any],
               fill: Callable[[int, dict[int, Any]], None]):
    self._needed = [set(indices) for indices in needed]
    self._read, self._fill = read, fill
    self._rows: dict[int, list[int]] = {}  # that need an image
    for row, indices in enumerate(needed):
      for index in dict.fromkeys(indices):
        self._rows.setdefault(index, []).append(row)
    self.indices = np.array(list(self._rows), np.int64)
    self._missing = [len(indices) for indices in self._needed]
    self._uses = {index: len(rows) for index, rows in self._rows.items()}
    self._kept: dict[int, Any] = {}
    self._lock = threading.Lock()

  def __call__(self, number: int, index: int) -> None:
    """Read an image, and fill the rows for which it was the last one missing; for BatchedInput._fill_rows."""
    del number
    found = self._read(index)
    ready = []
    with self._lock:
      self._kept[index] = found
      for row in self._rows[index]:
        self._missing[row] -= 1
        if not self._missing[row]:
          ready.append((row, {each: self._kept[each] for each in self._needed[row]}))
    del found
    for row, images in ready:
      self._fill(row, images)
      with self._lock:
        for each in images:
          self._uses[each] -= 1
          if not self._uses[each]:
            del self._kept[each]
