"""Checks of bindings that gin itself accepts: values of another type than annotated, and bindings without effect."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rethink_tf.errors import UserError, excerpt

_TYPES: Mapping[str, tuple[type, ...]] = {'int': (int,), 'float': (int, float), 'str': (str,), 'bool': (bool,),
                                          'None': (type(None),)}
_WORDS = {'int': ('an integer', 'integers'), 'float': ('a number', 'numbers'), 'str': ('a string', 'strings'),
          'bool': ('True or False', 'True or False'), 'None': ('None', 'None')}
_MAKERS = ('Callable', 'MakeNorm', 'MakeInitializer')  # annotations of parts that are called later
_LONGEST = 80  # value in a message


class _Sequence(NamedTuple):
  """A list or tuple in an annotation: of any length and one kind, or with one kind for each item."""

  kinds: tuple[Kind, ...]
  any_length: bool


class _Part(NamedTuple):
  """A part in an annotation, for which a reference stands: '@NAME()', or '@NAME' for one that is called later."""

  reference: str

  def fits(self, value: Any) -> bool:
    return isinstance(value, str) and value.startswith('@') and (
      value.endswith('()') or not self.reference.endswith('()'))


Kind = str | _Sequence | _Part  # a key of _WORDS, a sequence or a part


class Binding(NamedTuple):
  """A statement of a file that sets a parameter, or a macro."""

  where: str  # file and line
  scopes: tuple[str, ...]
  owner: str  # the configurable, or %NAME for a macro
  parameter: str  # '' for a macro
  uses: tuple[str, ...]  # references in its value, with their scopes, and macros as %NAME
  source: str = ''  # the file that was named, of which `where` may be an include, or the binding of the command line


def check_scopes(bindings: Iterable[Binding]) -> None:
  """Check that what is bound in a scope is called in it, by a reference like @eval/Resize() or through another part.

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
  reached = {scope: closure(names, used) for scope, names in called.items()}
  for binding in bindings:
    for scope in binding.scopes:
      if binding.owner not in reached.get(scope, ()):
        whole = f'{"/".join(binding.scopes)}/{binding.owner}'
        raise UserError(f'{binding.where}: {whole}.{binding.parameter} has no effect, since nothing calls '
                        f'{binding.owner} in the scope {scope}/: refer to it as @{whole}')


def check_hidden(bindings: Sequence[Binding]) -> None:
  """Check that a binding without a scope is not hidden by earlier ones in every scope that calls its part.

  The last one does not win there: gin takes that of the scope, wherever it stands.

  Raises:
    UserError: a binding has no effect.
  """
  of_owner: dict[str, list[Binding]] = defaultdict(list)
  for binding in bindings:
    of_owner[binding.owner].append(binding)
  referred = {_short(one.rpartition('/')[2]) for binding in bindings for one in binding.uses}
  todo = [(owner, ()) for owner in of_owner if owner not in referred]
  calls: dict[str, set[tuple[str, ...]]] = defaultdict(set)  # owner -> scopes in which it is called
  while todo:
    owner, scopes = todo.pop()
    if scopes in calls[owner]:
      continue
    calls[owner].add(scopes)
    for binding in of_owner[owner]:
      if scopes[:len(binding.scopes)] == binding.scopes:
        for one in binding.uses:  # a reference with scopes replaces those around it
          *own, name = one.split('/')
          todo.append((_short(name), tuple(own) or scopes))
  for owner, own in of_owner.items():
    for i, binding in enumerate(own):
      hiding = {one.scopes for one in own[:i] if one.scopes and one.parameter == binding.parameter}
      if hiding and not binding.scopes and binding.parameter and all(
          any(scopes[:len(one)] == one for one in hiding) for scopes in calls[owner]):
        names = ' and '.join(f'{"/".join(one)}/{owner}.{binding.parameter}' for one in sorted(hiding, reverse=True))
        raise UserError(f'{binding.where}: {owner}.{binding.parameter} has no effect, since a value of a scope goes '
                        f'before it: set {names}')


def check_types(values: Mapping[str, Mapping[str, Any]], signature_of: Callable[[str], inspect.Signature],
                literal: Callable[[Any], Any], is_part: Callable[[str], bool]) -> None:
  """Check values against the annotations of parameters: numbers, strings, bools, None, parts, or sequences of them.

  Args:
    values: configurable, with its scopes -> parameter -> value.
    signature_of: signature of a configurable.
    literal: value with macros resolved and references as strings; Parameter.empty for one that is neither.
    is_part: whether a name in an annotation is that of a part, for which no literal can stand.

  Raises:
    UserError: a value is of another type.
  """
  for owner, parameters in values.items():
    known = signature_of(owner.rpartition('/')[2]).parameters
    for name, value in parameters.items():
      value = literal(value)
      kinds = _kinds(known[name].annotation, is_part) if name in known else ()
      if not kinds or value is inspect.Parameter.empty or any(_fits(value, kind) for kind in kinds):
        continue
      if value is None and known[name].default is None:
        continue
      *scopes, owner_name = owner.split('/')
      wanted = ' or '.join(dict.fromkeys(map(_words, kinds)))
      raise UserError(f'{"/".join([*scopes, _short(owner_name)])}.{name} should be {wanted}, is {_shown(value)}'
                      + _cure(name, value, kinds))


def _cure(name: str, value: Any, kinds: Sequence[Kind]) -> str:
  """Return how a value of another type is probably meant, '' if that is unknown."""
  if any(isinstance(kind, _Sequence) and _fits([value], kind) for kind in kinds):
    return f': write ({_shown(value)},)'
  if isinstance(value, list) and name.endswith(('_file', '_dir')):
    return '; it should be one path in quotes: join several files into one'
  reference = re.fullmatch(r'@?([\w./]+)', value) if isinstance(value, str) else None
  part = next((kind for kind in kinds if isinstance(kind, _Part)), None)
  if reference is None or part is None:
    return ''
  return f': write @{reference[1]}{"()" if part.reference.endswith("()") else ""}'


def _shown(value: Any) -> str:
  """Format a value for a message; lists as tuples, the usual form in gin files."""
  if not isinstance(value, list):
    return excerpt(value)
  text = ', '.join(_shown(item) for item in value[:_LONGEST])
  text = f'({text},)' if len(value) == 1 else f'({text})'
  return text if len(text) <= _LONGEST else f'{text[:_LONGEST]}…'


def _kinds(annotation: Any, is_part: Callable[[str], bool]) -> tuple[Kind, ...]:
  """Return the alternatives of an annotation; [] if one of them is of a type that is not checked."""
  text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
  text = re.sub(r'\b(?:\w+\.)+(?=\w)', '', text).replace(' ', '')
  return () if annotation is inspect.Parameter.empty else _alternatives(text, is_part)


def _alternatives(text: str, is_part: Callable[[str], bool]) -> tuple[Kind, ...]:
  found: list[Kind] = []
  for part in _split(text, '|'):
    sequence = re.fullmatch(r'(?:Sequence|tuple|list)\[(.+)\]', part)
    items = _split(sequence[1], ',') if sequence else []
    inner = [_alternatives(item, is_part) for item in items if item != '...']
    if part in _TYPES:
      found.append(part)
    elif part.partition('[')[0] in _MAKERS:
      found.append(_Part('@NAME'))
    elif part == 'Layer' or is_part(part):
      found.append(_Part('@NAME()' if part == 'Layer' else f'@{part}()'))  # any layer, as a backbone is
    elif inner and all(len(kinds) == 1 for kinds in inner):
      found.append(_Sequence(tuple(kinds[0] for kinds in inner), items[-1] == '...' or not part.startswith('tuple')))
    else:
      return ()
  return tuple(found)


def _split(text: str, separator: str) -> list[str]:
  """Split a text at a separator that is outside of brackets."""
  pieces, depth = [''], 0
  for letter in text:
    depth += (letter == '[') - (letter == ']')
    if letter == separator and not depth:
      pieces.append('')
    else:
      pieces[-1] += letter
  return pieces


def _fits(value: Any, kind: Kind) -> bool:
  if isinstance(kind, _Part):
    return kind.fits(value)
  if isinstance(kind, str):
    return isinstance(value, _TYPES[kind]) and (kind == 'bool' or not isinstance(value, bool))
  if not isinstance(value, list) or not kind.any_length and len(value) != len(kind.kinds):
    return False
  return all(_fits(item, one) for item, one in zip(value, kind.kinds * len(value), strict=False))


def _words(kind: Kind, plural: bool = False) -> str:
  """Describe what a value should be."""
  if isinstance(kind, _Part):
    return f'{"parts" if plural else "a part"} ({kind.reference})'
  if isinstance(kind, str):
    return _WORDS[kind][plural]
  number = '' if kind.any_length else f'{len(kind.kinds)} '
  return f'{"lists" if plural else "a list"} of {number}{_words(kind.kinds[0], plural=True)}'


def _short(name: str) -> str:
  """Return a name without the modules before it; a macro has none."""
  return name if name.startswith('%') else re.sub(r'.*\.', '', name)


def closure(names: Iterable[str], used: Mapping[str, set[str]]) -> set[str]:
  """Return the names with everything that they use, directly or indirectly."""
  found, todo = set(), list(names)
  while todo:
    name = todo.pop()
    if name not in found:
      found.add(name)
      todo += used.get(name, ())
  return found
