"""Portable operations: a detector computed with only what ONNX and TensorFlow Lite have, for export.

Within `operations()` the parts of a detector (models/) build the same computation from other operations: RoIAlign tap
by tap, non-maximum suppression group by group, group normalisation by plain means. XLA compiles none of them, which is
why the trainer, too, creates its variables with them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_choice = threading.local()  # functions are traced by the thread that exports


@contextlib.contextmanager
def operations() -> Iterator[None]:
  """Use portable operations in graphs that are traced within this context."""
  _choice.made = True
  try:
    yield
  finally:
    _choice.made = False


def chosen() -> bool:
  """Whether this thread is within `operations()`."""
  return getattr(_choice, 'made', False)
