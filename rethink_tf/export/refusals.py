"""Turns the exceptions of converters and runtimes of other formats into one-line errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rethink_tf.errors import UserError, in_one_line


@contextlib.contextmanager
def in_words(what: str) -> Iterator[None]:
  """Raise any exception of the context as a UserError that begins with `what`: their classes have no common base."""
  try:
    yield
  except Exception as error:
    raise UserError(f'{what} ({in_one_line(error, 200)}): export a SavedModel') from error
