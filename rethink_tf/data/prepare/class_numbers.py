"""The names of classes that a layout has as numbers, in a list of names, one a line, that counts from 0."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rethink_tf.data.categories import is_text
from rethink_tf.data.prepare.source_folder import SourceFolder
from rethink_tf.errors import UserError, excerpt

UNKNOWN_CLASS = 'of a class number without a name'
MAX_NUMBER = (1 << 31) - 1


def listed_names(folder: SourceFolder, file: str) -> dict[int, str]:
  """Return {number: name} of a list of names, one a line; raises UserError if a name is not usable."""
  lines = [line.strip() for line in folder.read_text(file).splitlines()]
  while lines and not lines[-1]:
    lines.pop()
  names = dict(enumerate(lines))
  check_names(names, folder.path(file))
  return names


def check_names(names: dict[int, Any], where: str) -> None:
  """Check {number: name}; raises UserError, which begins with `where`, if a number or a name is not usable."""
  for key, name in names.items():
    if not 0 <= key <= MAX_NUMBER or not name or not is_text(name):
      raise UserError(f'{where}: class {excerpt(key)} should have a name without control characters, is '
                      f'{excerpt(name)}')


def check_numbers(folder: SourceFolder, used: Collection[float], names: dict[int, str], file: str) -> None:
  """Check the class numbers of all objects.

  used: the numbers. names: of `file`.

  Raises:
    UserError: the numbers count from 1 and the names from 0, so that all but one object had the name of another class.
  """
  if used and min(names) < min(used) and max(used) == max(names) + 1:
    raise UserError(f'{folder.root}: its labels have the class numbers {min(used):g} to {max(used):g}, {file} has '
                    f'names for {min(names)} to {max(names)}: number both from 0, else objects get the name of '
                    'another class')
