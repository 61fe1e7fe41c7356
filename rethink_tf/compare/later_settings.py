"""Settings that runs of an earlier version of the package lack, since their parameters were added later."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from rethink_tf import gin_files


def added(configurations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Return the configurations, each completed with the defaults of parameters that only the others have.

  A run records all parameters of the components that it uses. If it lacks a parameter of such a component, that was
  added in a later version, with the earlier behaviour as its default. A component that is not used at all is not
  completed: the binding that selects another one differs already.
  """
  names = sorted({name for one in configurations for name in one})
  found, defaults = [], {}
  for one in configurations:
    owners = {_owner(name) for name in one}
    lacking = [name for name in names if name not in one and _owner(name) in owners]
    for name in lacking:
      if name not in defaults:
        defaults[name] = _default(name)
    found.append({**one, **{name: defaults[name] for name in lacking if defaults[name] is not inspect.Parameter.empty}})
  return found


def _owner(name: str) -> str:
  return name.rpartition('.')[0]


def _default(name: str) -> Any:
  """Return the default of a parameter; Parameter.empty if this version has none, or one that is not a literal."""
  from rethink_tf import experiment  # noqa: F401  registers all components

  value = gin_files.default(name.rpartition('/')[2])
  return value if _is_literal(value) else inspect.Parameter.empty


def _is_literal(value: Any) -> bool:
  if isinstance(value, (list, tuple)):
    return all(map(_is_literal, value))
  return value is None or isinstance(value, (bool, int, float, str))
