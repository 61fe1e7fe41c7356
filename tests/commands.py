"""Command lines of the documentation: the flags of each command, and whether everything that they name exists."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]


@functools.cache
def flags_of(module: str) -> frozenset[str]:
  """Names of the flags of `python -m <module>`, read from its source: running it with --help takes seconds."""
  path = ROOT / module.replace('.', '/')
  path = path / '__main__.py' if path.is_dir() else path.with_suffix('.py')
  assert path.is_file(), f'there is no module {module}'
  text = path.read_text()
  found = _defined(ast.parse(text))
  shared = ast.parse((ROOT / 'rethink_tf/command_line.py').read_text())
  if 'command_line.define_flags' in text or 'command_line.run_command' in text:
    found |= _defined(next(node for node in shared.body if getattr(node, 'name', '') == 'define_flags'))
  if "run_command('evaluate')" in text:
    found |= _defined(next(node for node in shared.body if getattr(node, 'name', '') == 'run_command'))
  return frozenset(found | {'help'})


def _defined(tree):
  return {node.args[0].value.lstrip('-') for node in ast.walk(tree)
          if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args
          and re.match('DEFINE_|add_argument$', node.func.attr) and isinstance(node.args[0], ast.Constant)}


def flags_of_script(path: str) -> frozenset[str]:
  """Names of the options of a shell script, as listed by its --help."""
  return frozenset(re.findall(r'--(\w+)', (ROOT / path).read_text()))


def values(words: Sequence[str], flag: str) -> list[str]:
  """Values of --flag on a command line, in order."""
  return [word.partition('=')[2] for word in words if word.startswith(f'--{flag}=')]


def check(words: Sequence[str]) -> None:
  """Fail unless the program, its flags and the gin files of a command line exist."""
  words = list(words)
  while words and words[0] in ('sbatch', 'nice'):  # their own options precede the script
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
      end = arguments.index('--')
      check(['python', '-m', 'rethink_tf.train', *arguments[end + 1:]]
            if arguments[end + 1].startswith('--') else arguments[end + 1:])
      arguments = arguments[:end]
    elif program == 'launch/slurm.sh':
      known |= flags_of('rethink_tf.train')
  for word in arguments:
    if word.startswith('--'):
      name = word[2:].partition('=')[0]
      assert name in known or name.removeprefix('no') in known, f'{program} has no flag --{name}'
  for name in values(arguments, 'gin_file'):
    assert (ROOT / name).is_file() or not name.startswith('gin_configs/'), f'there is no {name}'
