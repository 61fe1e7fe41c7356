"""Command lines that the documentation names: which flags a door has, and whether what they name exists."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]


@functools.cache
def flags_of(module: str) -> frozenset[str]:
  """Names of the flags of `python -m <module>`, read from its source: to ask it with --help takes seconds a module."""
  path = ROOT / (module.replace('.', '/') + '.py')
  assert path.is_file() or module == 'rethink_tf.weights', f'there is no module {module}'
  if module == 'rethink_tf.weights':
    return frozenset()
  text = path.read_text()
  found = _defined(ast.parse(text))
  shared = ast.parse((ROOT / 'rethink_tf/command_line.py').read_text())
  if 'command_line.define_flags' in text or 'command_line.open_door' in text:
    found |= _defined(next(node for node in shared.body if getattr(node, 'name', '') == 'define_flags'))
  if "open_door('evaluate')" in text:
    found |= _defined(next(node for node in shared.body if getattr(node, 'name', '') == 'open_door'))
  return frozenset(found | {'help'})


def _defined(tree):
  return {node.args[0].value.lstrip('-') for node in ast.walk(tree)
          if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args
          and re.match('DEFINE_|add_argument$', node.func.attr) and isinstance(node.args[0], ast.Constant)}


def flags_of_script(path: str) -> frozenset[str]:
  """Names of the options of a shell script, as its --help lists them."""
  return frozenset(re.findall(r'--(\w+)', (ROOT / path).read_text()))


def values(words: Sequence[str], flag: str) -> list[str]:
  """What a command line gives to --flag, in order."""
  return [word.partition('=')[2] for word in words if word.startswith(f'--{flag}=')]


def check(words: Sequence[str]) -> None:
  """Fails unless the program, its flags and the gin files of a command line exist."""
  words = list(words)
  while words and words[0] in ('sbatch', 'nice'):  # its own options stand before the script
    words = words[1:]
    while words[0].startswith('--'):
      words = words[1:]
  if words[:2] == ['python', '-m']:
    program, known, arguments = words[2], flags_of(words[2]), words[3:]
  elif words[0] == 'python':
    program, known, arguments = words[1], flags_of(words[1].removesuffix('.py')), words[2:]
  else:
    program, arguments = words[0], words[1:]
    assert (ROOT / program).is_file(), f'there is no {program}'
    known = flags_of_script(program)
    if '--' in arguments:
      behind = arguments.index('--')
      check(['python', '-m', 'rethink_tf.train', *arguments[behind + 1:]]
            if arguments[behind + 1].startswith('--') else arguments[behind + 1:])
      arguments = arguments[:behind]
    elif program == 'launch/slurm.sh':
      known |= flags_of('rethink_tf.train')
  for word in arguments:
    if word.startswith('--'):
      name = word[2:].partition('=')[0]
      assert name in known or name.removeprefix('no') in known, f'{program} has no flag --{name}'
  for name in values(arguments, 'gin_file'):
    assert (ROOT / name).is_file() or not name.startswith('gin_configs/'), f'there is no {name}'
