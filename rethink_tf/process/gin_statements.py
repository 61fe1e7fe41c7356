"""Parses the statements of a gin file, with macros and references in their values; nothing is looked up or bound."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gin import config_parser


class Text(io.StringIO):
  """A text stream with a file name, which gin's error messages contain."""

  def __init__(self, text: str, name: str):
    super().__init__(text)
    self.name = name


class _Macro(NamedTuple):
  """A macro in the value of a binding, by its name."""

  name: str


class _Reference(NamedTuple):
  """A reference in the value of a binding: scopes and name of the configurable."""

  name: str


class _Names(config_parser.ParserDelegate):
  """Keeps macros and references as names while gin parses a value, instead of looking them up."""

  def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> _Reference:
    return _Reference(scoped_configurable_name)

  def macro(self, macro_name: str) -> _Macro:
    return _Macro(macro_name)


class Statement(NamedTuple):
  """A statement of gin, with what its value names."""

  statement: Any  # one of config_parser's statements
  macros: Sequence[str]
  references: Sequence[str]


@functools.lru_cache(maxsize=256)  # the plan of a study reads the same files for each of its runs
def statements(name: str, text: str) -> tuple[Statement, ...]:
  """Return the statements of a text; name: of the file, for errors."""
  found = []
  for statement in config_parser.ConfigParser(Text(text, name), _Names()):
    named = list(_named(statement.value)) if isinstance(statement, config_parser.BindingStatement) else []
    found.append(Statement(statement, [one.name for one in named if isinstance(one, _Macro)],
                            [one.name for one in named if isinstance(one, _Reference)]))
  return tuple(found)


def _named(value: Any) -> Iterator[_Macro | _Reference]:
  """Yield the macros and references in the value of a binding."""
  if isinstance(value, (_Macro, _Reference)):
    yield value
  elif isinstance(value, dict):
    for one in value.items():
      yield from _named(one)
  elif isinstance(value, (list, tuple, set)):
    for one in value:
      yield from _named(one)
