"""What a converter or a runtime of other formats refuses, in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rethink_tf.errors import UserError, in_one_line


@contextlib.contextmanager
def in_words(what: str) -> Iterator[None]:
  """Raise whatever is raised inside as a UserError that begins with `what`: their exceptions have no common base."""
  try:
    yield
  except Exception as error:
    raise UserError(f'{what} ({in_one_line(error)[:200]}): export a SavedModel') from error
