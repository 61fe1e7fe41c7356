"""Checks of the API's arguments, configurations from gin files, and errors in one line.

Every check takes the name of the argument, and raises a UserError with that name for a value of a wrong type or range.
"""

from __future__ import annotations

import contextlib
import numbers
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rethink_tf.errors import UserError, WorkerLost, excerpt, storage_error

Path = str | os.PathLike[str]

_configured = threading.Lock()


@contextlib.contextmanager
def configuration(files: Sequence[str], params: Sequence[str], data_dir: str | None = None,
                  weights: str | None = None) -> Iterator[None]:
  """Bind a configuration for a context, and clear it afterwards: gin accepts no new parts while one is bound.

  Raises:
    UserError: another thread has bound a configuration, which would be mixed with this one; or as experiment.configure.
  """
  import gin

  from rethink_tf import experiment

  if not _configured.acquire(blocking=False):
    raise UserError('another call of this API is not over, and a process has one configuration at a time: make one '
                    'call after the other, or use several processes')
  try:
    experiment.configure(files, params, data_dir, weights)
    yield
  finally:
    gin.clear_config()
    _configured.release()


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
  """Raise UserErrors without the lines that gin appends, and errors of storage as UserErrors; also a decorator."""
  try:
    yield
  except UserError as error:
    if '\n' not in str(error):
      raise
    raise (WorkerLost if isinstance(error, WorkerLost) else UserError)(error.line()) from error
  except Exception as error:
    if (found := storage_error(error)) is None:
      raise
    raise found from error


def path(value: Any, name: str) -> str:
  """Return a path as text, with the home directory for ~."""
  text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
  if not isinstance(text, str) or not text:
    raise UserError(f'{name} = {excerpt(value)}: use a path, as text or pathlib.Path')
  return os.path.expanduser(text)


def optional_path(value: Any, name: str) -> str | None:
  """Return a path as text, or None."""
  return None if value is None else path(value, name)


def paths(value: Any, name: str) -> list[str]:
  """Return one path or several as a list of texts."""
  return [path(one, name) for one in _several(value, str | os.PathLike, name, 'a path, as text or pathlib.Path')]


def bindings(value: Any, name: str) -> list[str]:
  """Return one binding or several as a list."""
  found = _several(value, str, name, "a binding as text, as 'SCHEDULE = 2'")
  for one in found:
    if not isinstance(one, str):
      raise UserError(f"{name} = {excerpt(one)}: use a binding as text, as 'SCHEDULE = 2', or a sequence of them")
  return found


def number(value: Any, name: str, low: float, high: float) -> float:
  """Return a number from low to high."""
  if not isinstance(value, numbers.Real) or isinstance(value, bool) or not low <= value <= high:
    raise UserError(f'{name} = {excerpt(value)}: use a number, {low:g} to {high:g}')
  return float(value)


def positive_integer(value: Any, name: str) -> int:
  """Return a whole number of 1 or more."""
  if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
    raise UserError(f'{name} = {excerpt(value)}: use a whole number, 1 or more')
  return int(value)


def boolean(value: Any, name: str) -> bool:
  """Return True or False; the text 'False' would count as true."""
  if not isinstance(value, bool | np.bool_):
    raise UserError(f'{name} = {excerpt(value)}: use True or False')
  return bool(value)


def _several(value: Any, one: Any, name: str, what: str) -> list[Any]:
  if isinstance(value, one):
    return [value]
  if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
    raise UserError(f'{name} = {excerpt(value)}: use {what}, or a sequence of them')
  return list(value)
