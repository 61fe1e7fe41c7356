"""Checks of bindings that gin itself accepts: values of another type than annotated, and bindings without effect."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from rethink_tf.errors import UserError, excerpt

_TYPES: Mapping[str, tuple[type, ...]] = {'int': (int,), 'float': (int, float), 'str': (str,), 'bool': (bool,),
                                          'None': (type(None),)}
_WORDS = {'int': 'an integer', 'float': 'a number', 'str': 'a string', 'bool': 'True or False', 'None': 'None'}


class Binding(NamedTuple):
  """A statement of a file that sets a parameter, or a macro."""

  where: str  # file and line
  scopes: tuple[str, ...]
  owner: str  # the configurable, or %NAME for a macro
  parameter: str  # '' for a macro
  uses: tuple[str, ...]  # references in its value, with their scopes, and macros as %NAME


def check_scopes(bindings: Iterable[Binding]) -> None:
  """Check that what is bound in a scope is called in it: by a reference like @eval/Resize(), or by what that calls.

  Raises:
    UserError: a binding has no effect.
  """
  used: dict[str, set[str]] = defaultdict(set)  # configurable or macro -> those in its values
  called: dict[str, set[str]] = defaultdict(set)  # scope -> configurables that are referred to in it
  for binding in bindings:
    for one in binding.uses:
      *scopes, name = one.split('/')
      name = _short(name)
      used[binding.owner].add(name)
      for scope in scopes:
        called[scope].add(name)
  reached = {scope: _closure(names, used) for scope, names in called.items()}
  for binding in bindings:
    for scope in binding.scopes:
      if binding.owner not in reached.get(scope, ()):
        whole = f'{"/".join(binding.scopes)}/{binding.owner}'
        raise UserError(f'{binding.where}: {whole}.{binding.parameter} has no effect, since nothing calls '
                        f'{binding.owner} in the scope {scope}/: refer to it as @{whole}')


def check_types(values: Mapping[str, Mapping[str, Any]], signature_of: Callable[[str], inspect.Signature],
                literal: Callable[[Any], Any]) -> None:
  """Check values against the annotations of parameters that are numbers, strings, bools or None.

  Args:
    values: configurable, with its scopes -> parameter -> value.
    signature_of: signature of a configurable.
    literal: value with macros resolved; Parameter.empty for one that is no literal.

  Raises:
    UserError: a value is of another type.
  """
  for owner, parameters in values.items():
    known = signature_of(owner.rpartition('/')[2]).parameters
    for name, value in parameters.items():
      value = literal(value)
      kinds = str(known[name].annotation).replace(' ', '').split('|') if name in known else ()
      if not kinds or not set(kinds) <= _TYPES.keys() or value is None or value is inspect.Parameter.empty:
        continue
      if isinstance(value, bool) and 'bool' not in kinds or not isinstance(value, tuple(
          kind for one in kinds for kind in _TYPES[one])):
        *scopes, owner_name = owner.split('/')
        raise UserError(f'{"/".join([*scopes, _short(owner_name)])}.{name} should be '
                        f'{" or ".join(_WORDS[kind] for kind in kinds)}, is {excerpt(value)}')


def _short(name: str) -> str:
  """Return a name without the modules before it; a macro has none."""
  return name if name.startswith('%') else re.sub(r'.*\.', '', name)


def _closure(names: Iterable[str], used: Mapping[str, set[str]]) -> set[str]:
  found, todo = set(), list(names)
  while todo:
    name = todo.pop()
    if name not in found:
      found.add(name)
      todo += used.get(name, ())
  return found
