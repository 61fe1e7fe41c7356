"""Lists every `# Departure:` comment: python tools/departures.py > docs/departures.md."""

from __future__ import annotations

import pathlib
import re
import textwrap

ROOT = pathlib.Path(__file__).resolve().parents[1]
HEAD = '''# Where this differs from the paper and its code base

Written by `python tools/departures.py > docs/departures.md` from the comments that begin `Departure:`. Everything else
follows Detectron, the paper's code base, layer by layer.

'''


def departures(root: pathlib.Path = ROOT) -> list[tuple[str, str]]:
  """(file, text) of each comment, in the order of files and lines; a text told several times stands once a folder."""
  found, seen = [], set()
  for path in sorted([*(root / 'rethink_tf').rglob('*.py'), *(root / 'gin_configs').rglob('*.gin')]):
    name = path.relative_to(root).as_posix()
    for text in _texts(path.read_text().splitlines()):
      if (path.parent, text) not in seen:
        seen.add((path.parent, text))
        found.append((name, text))
  return found


def _texts(lines: list[str]) -> list[str]:
  texts = []
  for i, line in enumerate(lines):
    begin = re.match(r'(\s*)(# ?)?Departure: (.*)', line)
    if not begin:
      continue
    words = [begin.group(3)]
    for after in lines[i + 1:]:
      more = re.match(r'\s*#\s*(?!Departure:|\s)(.+)' if begin.group(2) else r'\s*(?!""")(\S.*)', after)
      if more is None or '"""' in words[-1]:
        break
      words.append(more.group(1).strip())
    texts.append(' '.join(words).replace('"""', '').strip())
  return texts


def page() -> str:
  lines = [textwrap.fill(f'- `{name}`: {text}', 118, subsequent_indent='  ', break_long_words=False,
                         break_on_hyphens=False) for name, text in departures()]
  return HEAD + '\n'.join(lines) + '\n'


if __name__ == '__main__':
  print(page(), end='')
