"""Turns gin's errors into one-line messages, and suggests names that gin knows."""

from __future__ import annotations

import difflib
import inspect
import re
import tokenize
from collections.abc import Iterable

import gin


def line_of(error: Exception, name: str, without: str) -> str:
  """Return the line number in a gin error as ':3'; '' if unknown, or for the name `without`."""
  if name == without:
    return ''
  if isinstance(error, tokenize.TokenError):
    return f':{error.args[1][0]}'
  line = re.search(r'line (\d+)', str(error))
  return f':{line.group(1)}' if line else ''


def reason(error: Exception) -> str:
  """Return the reason of a gin error in one line, in words for users."""
  told = isinstance(error, (KeyError, tokenize.TokenError)) and error.args  # gin's copies of errors have no arguments
  message = str(error.args[0] if told else error)
  statement = re.search(r'\n  In .*\n\s*(.*)', message)
  quoted = f' ({statement.group(1).strip()})' if statement else ''
  first = re.sub(r' \(.*line \d+\)$', '', message.split('\n')[0]).rstrip('.')
  if re.search('EOF in multi-line (statement|string)', first):  # whose words depend on the version of Python
    return 'a bracket or a quotation mark is opened and not closed'
  if match := re.match(r"No configurable matching (?:reference )?'@?([^'()]+)", first):
    name = match.group(1).split('/')[-1]
    return f"there is nothing called '{name}' to configure{quoted}{suggestion(name, _configurables())}"
  if match := re.match(r"Configurable '(.+)' doesn't have a parameter named '(.+)'", first):
    parameters = _parameters(match.group(1))
    return f"{match.group(1)} has no parameter '{match.group(2)}'{quoted}{suggestion(match.group(2), parameters)}"
  if match := re.match(r"Configurable '(.+)' has denylisted kwarg '(.+)'", first):
    flag = f'the option --{match.group(2)}' if match.group(2) == 'allow_changes' else 'an argument in Python'
    return f'{match.group(1)}.{match.group(2)} cannot be set in a configuration: it is {flag}'
  if match := re.match(r'(.+) set to `%gin.REQUIRED`', first):
    name = match.group(1).removesuffix('/macro.value')
    flag = '--weights=FILE, or a name of python -m rethink_tf.weights --list'
    return f'{name} must be given: add ' + (flag if name == 'WEIGHTS' else f"--gin_param='{name} = ...'")
  if match := re.match(r"""["']?Ambiguous selector '(.+)', matches \[(.+)\]""", first):
    names = ', '.join(sorted(re.findall("'([^']+)'", match.group(2))))
    return f"several parts are called '{match.group(1)}' ({names}){quoted}: give that of your own another name"
  return f'{first or type(error).__name__}{quoted}'


# gin has no public view of what is registered.
def _configurables() -> list[str]:
  return sorted({selector.split('.')[-1] for selector, _ in gin.config._REGISTRY.items()} - {'macro', 'constant'})


def _parameters(selector: str) -> list[str]:
  return list(signature(selector).parameters)


def signature(selector: str) -> inspect.Signature:
  """Return the signature of a configurable."""
  return inspect.signature(gin.config._REGISTRY.get_match(selector).wrapped)


def suggestion(name: str, known: Iterable[str]) -> str:
  """Return '; did you mean X?', '' if no known name is similar."""
  close = difflib.get_close_matches(name, list(known), n=1, cutoff=.6)
  return f'; did you mean {close[0]}?' if close else ''
