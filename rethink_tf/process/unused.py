"""Finds gin files and bindings without effect: gin accepts bindings of a part that nothing refers to."""

from __future__ import annotations

import pathlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rethink_tf.process.bindings import Binding, closure

_ROOT, _COMPLETE = 'run', ('run', 'model')  # a complete configuration names the model
_MOST = 3  # names in a line


class Usage(NamedTuple):
  """The parts that a configuration uses, and remarks on what it does not use."""

  remarks: Sequence[str] = ()  # lines about what has no effect
  parts: frozenset[str] = frozenset()  # names of the configurables in use; empty for what is not a run


def usage(bindings: Sequence[Binding], files: Sequence[str], shipped: pathlib.Path) -> Usage:
  """Return the parts in use, and remarks about files and bindings of the command line.

  A file has no effect if nothing uses a part that it configures, or if later files set all of it again; a complete
  configuration replaces settings of the files before it.
  files: those that were named, in their order, without what they include. shipped: folder of the axes' folders, which
  are searched for a file that uses a part.
  """
  last = {_key(binding): binding for binding in bindings}
  used: Mapping[str, set[str]] = defaultdict(set)
  for binding in last.values():
    used[binding.owner].update(one.rpartition('/')[2].rpartition('.')[2] for one in binding.uses)
  if _ROOT not in used:
    return Usage()
  reached = closure([_ROOT], used)
  of_source: Mapping[str, list[Binding]] = defaultdict(list)
  for binding in bindings:
    of_source[binding.source].append(binding)
  lines, in_use = [], []
  for name in files:
    own = of_source[name]
    if own and not any(last[_key(binding)].source == name and binding.owner in reached for binding in own):
      lines.append(f'{name} has no effect: {_reasons(own, last)}')
    else:
      in_use.append(name)
      if any((one.owner, one.parameter) == _COMPLETE for one in own):
        lines += _replaced(name, own, [(file, of_source[file]) for file in in_use[:-1]])
  lines += [
    f'{_name(binding)} has no effect: {_unreachable([binding.owner])}{_suggestion(binding.owner, shipped)}'
    for binding in bindings if binding.source not in files and binding.owner not in reached]
  return Usage(lines, frozenset(name for name in reached if not name.startswith('%')))


def _replaced(name: str, own: Sequence[Binding], before: Iterable[tuple[str, Sequence[Binding]]]) -> list[str]:
  """Return a line for each earlier file whose bindings a complete configuration replaces."""
  keys, lines = {_key(binding) for binding in own}, []
  for file, bindings in before:
    again = [_name(binding) for binding in bindings if _key(binding) in keys]
    if again:
      lines.append(f'{name} is a complete configuration and replaces {_listed(again)} of {file}: give it first')
  return lines


def _reasons(own: Sequence[Binding], last: Mapping[tuple, Binding]) -> str:
  """Return why none of the bindings of a file has an effect."""
  again: Mapping[str, list[str]] = defaultdict(list)
  for binding in own:
    setter = last[_key(binding)].source
    if setter != binding.source:
      again[setter].append(_name(binding))
  owners = [binding.owner for binding in own if last[_key(binding)].source == binding.source]
  reasons = [f'{setter}, given after it, sets {_listed(names)}' for setter, names in again.items()]
  return '; '.join(reasons + ([_unreachable(owners)] if owners else []))


def _unreachable(owners: Iterable[str]) -> str:
  names = dict.fromkeys(owner if owner.startswith('%') else f'@{owner}' for owner in owners)
  return f'no part of this configuration uses {_listed(list(names))}'


def _suggestion(owner: str, shipped: pathlib.Path) -> str:
  """Return the files that would use an optional part; '' for parts of the shared recipe, or if there are none."""
  if owner == '%DATA_DIR':
    return '; gin_configs/data/own.gin and others of that folder do'
  pattern = re.compile((re.escape(owner) if owner.startswith('%') else f'@(?:\\w+/)*{owner}') + r'\b')
  folders = ('models', 'init', 'data', 'augment', 'runtime')
  found = [path.relative_to(shipped.parent).as_posix() for folder in folders
           for path in sorted((shipped / folder).glob('*.gin')) if pattern.search(path.read_text())]
  base = shipped / 'base.gin'
  if not found or (base.is_file() and pattern.search(base.read_text())):
    return ''
  return f'; {_listed(found)} {"do" if len(found) > 1 else "does"}'


def _listed(names: Sequence[str]) -> str:
  return ', '.join(names[:_MOST]) + (', …' if len(names) > _MOST else '')


def _name(binding: Binding) -> str:
  name = f'{binding.owner}.{binding.parameter}' if binding.parameter else binding.owner.removeprefix('%')
  name += ' (--data_dir)' if name == 'DATA_DIR' and binding.source == '--gin_param' else ''
  return '/'.join([*binding.scopes, name])


def _key(binding: Binding) -> tuple[tuple[str, ...], str, str]:
  return binding.scopes, binding.owner, binding.parameter
