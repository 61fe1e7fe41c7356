"""The choice of operations that ONNX and TensorFlow Lite have counterparts of, made while a graph is built for export.

None of them is compiled, so that the trainer makes its variables with them, too.

Inside `operations()` the parts of a detector (models/) compute the same with other operations: RoIAlign tap by tap,
non-maximum suppression group by group, group normalisation by plain means.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_choice = threading.local()  # functions are traced by the thread that exports


@contextlib.contextmanager
def operations() -> Iterator[None]:
  """Choose portable operations for what is traced inside."""
  _choice.made = True
  try:
    yield
  finally:
    _choice.made = False


def chosen() -> bool:
  """Whether the graph that is being built is to consist of portable operations."""
  return getattr(_choice, 'made', False)
