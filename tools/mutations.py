"""Mutations of the fuzzer: bytes, JSON trees, texts. All draws come from one generator, so cases can be repeated."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 32767, 65535, 65536, 100_000, 2 ** 24, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1,
           2 ** 32, 2 ** 40, 2 ** 60, 2 ** 63 - 1, 2 ** 63, 2 ** 64, 10 ** 30, 10 ** 400, -2 ** 31, -2 ** 63, 0.0, -0.0,
           0.5, 1e-300, 1e19, 1e308, -1e308, float('nan'), float('inf'), float('-inf'))
WORDS = ('', ' ', 'x', 'A' * 70_000, '../../etc/passwd', '/etc/passwd', '~root/.ssh/id_rsa', 'a/../../b',
         '..\\..\\x.jpg',
         'C:\\x', 'gs://elsewhere/x.jpg', 'http://localhost/x', 'file:///etc/passwd', 'a\0b', 'a\nb',
         '\x1b[2J\x1b]0;t\x07', '\ud800', '\udfff.jpg', '\u202egnp.jpg', '%s%n', '<script>alert(1)</script>', '=1+1',
         'null', 'NaN', '1e999', '$\\frac{$',
         'e\u0301' * 50, '\u0316\u0301' * 400, '-', '.', '..', 'nan', 'true')
SMALL = (b'\0', b'\xff', b'\x7f', b'\x80', b'\xff\xd9', b'\xff\xda', b'IEND', b'PK\x03\x04', b'\n', b'"', b'[', b'{',
         b'<')


def number(rng: np.random.Generator) -> Any:
  return NUMBERS[int(rng.integers(len(NUMBERS)))]


def word(rng: np.random.Generator) -> str:
  return WORDS[int(rng.integers(len(WORDS)))]


def corrupt_bytes(rng: np.random.Generator, data: bytes, others: Sequence[bytes] = ()) -> bytes:
  """One to eight changes: bit flips, other bytes, huge integers, ranges cut, repeated or taken from other files."""
  found = bytearray(data)
  for _ in range(int(rng.choice([1, 1, 1, 2, 3, 8]))):
    # Headers matter most, so half of all changes are near the start.
    limit = min(len(found), 200) if rng.random() < 0.5 else len(found)
    place = int(rng.integers(limit + 1)) if limit else 0
    end = min(place + int(rng.choice([1, 2, 4, 8, 64, 1000])), len(found))
    match int(rng.integers(9)):
      case 0 if place < len(found):
        found[place] ^= 1 << int(rng.integers(8))
      case 1:
        found[place:end] = rng.bytes(end - place)
      case 2:
        del found[place:]
      case 3:
        del found[place:end]
      case 4:
        found[place:place] = found[place:end] * int(rng.choice([1, 2, 50]))
      case 5:
        found[place:place] = SMALL[int(rng.integers(len(SMALL)))]
      case 6:
        width = rng.choice(['H', 'I', 'Q'])
        value = [0, 1, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 62, 2 ** 64 - 1][int(rng.integers(7))]
        packed = struct.pack(f'{rng.choice(["<", ">"])}Q', value)
        size = struct.calcsize(width)
        found[place:place + size] = packed[:size] if packed[0] else packed[-size:]
      case 7 if others:
        other = others[int(rng.integers(len(others)))]
        begin = int(rng.integers(len(other) + 1))
        found[place:end] = other[begin:begin + int(rng.choice([8, 64, 4096]))]
      case _:
        found += rng.bytes(int(rng.choice([1, 16, 300])))
  return bytes(found)


def _places(tree: Any, path: tuple = ()) -> list[tuple]:
  """Paths of all nodes of a JSON tree; of long lists only those of the first items."""
  items = tree.items() if isinstance(tree, dict) else enumerate(tree[:6]) if isinstance(tree, list) else ()
  return [path, *(found for key, value in items for found in _places(value, (*path, key)))]


def _at(tree: Any, path: tuple) -> Any:
  for key in path:
    tree = tree[key]
  return tree


def strange(rng: np.random.Generator) -> Any:
  """A value that no field expects."""
  match int(rng.integers(9)):
    case 0 | 1 | 2:
      return number(rng)
    case 3 | 4:
      return word(rng)
    case 5:
      return [None, True, False, [], {}, [[]], [None], {'': None}][int(rng.integers(8))]
    case 6:
      return [number(rng) for _ in range(int(rng.choice([1, 2, 4, 5, 51, 3000])))]
    case 7:
      return [word(rng)] * int(rng.choice([1, 2, 100]))
    case _:
      value: Any = number(rng)
      for _ in range(int(rng.choice([2, 50, 150]))):
        value = [value] if rng.random() < 0.7 else {'a': value}
      return value


def corrupt_tree(rng: np.random.Generator, tree: Any) -> Any:
  """One to four changes to a JSON tree: fields with other types and numbers, missing, renamed, swapped, repeated."""
  holder = [copy.deepcopy(tree)]
  for _ in range(int(rng.choice([1, 1, 2, 4]))):
    places = [path for path in _places(holder) if path]
    path = places[int(rng.integers(len(places)))]
    parent, key = _at(holder, path[:-1]), path[-1]
    match int(rng.integers(8)):
      case 0 if len(path) > 1:
        del parent[key]
      case 1:
        other = places[int(rng.integers(len(places)))]
        parent[key] = copy.deepcopy(_at(holder, other))
      case 2 if isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
      case 3 if isinstance(parent, dict):
        parent[word(rng)] = parent.pop(key)
      case 4 if isinstance(parent[key], list):
        parent[key] = parent[key] * int(rng.choice([0, 2, 40]))
      case 5 if isinstance(parent[key], str):
        parent[key] = corrupt_text(rng, parent[key])
      case _:
        parent[key] = strange(rng)
  return holder[0]


def corrupt_json(rng: np.random.Generator, tree: Any) -> bytes:
  """A JSON text of a corrupted tree, or a corrupted text."""
  if rng.random() < 0.15:
    return corrupt_bytes(rng, json.dumps(tree).encode())
  if rng.random() < 0.03:
    return [b'', b'[' * 200_000, b'{"a":' * 200_000, b'\xef\xbb\xbf{}', b'\x1f\x8b\x08' + bytes(50), b'9' * 10_000,
            json.dumps(tree).encode('utf-16')][int(rng.integers(7))]
  return json.dumps(corrupt_tree(rng, tree)).encode()


def corrupt_text(rng: np.random.Generator, text: str) -> str:
  """A text with words, numbers and lines replaced, repeated, moved or dropped."""
  lines = text.split('\n')
  for _ in range(int(rng.choice([1, 1, 2, 5]))):
    i = int(rng.integers(len(lines)))
    j = int(rng.integers(len(lines)))
    line = lines[i]
    place = int(rng.integers(len(line) + 1))
    digits = [k for k, letter in enumerate(line) if letter.isdigit()]
    match int(rng.integers(8)):
      case 0:
        lines[i] = line[:place] + word(rng) + line[place:]
      case 1 if digits:
        k = digits[int(rng.integers(len(digits)))]
        lines[i] = f'{line[:k]}{number(rng) if rng.random() < 0.95 else 7}{line[k + 1:]}'
      case 2:
        lines[i], lines[j] = lines[j], lines[i]
      case 3:
        lines.insert(j, line)
      case 4:
        lines[i] = line[:place]
      case 5:
        lines[i] = line[:place] + '[({<'[int(rng.integers(4))] * int(rng.choice([1, 3, 150, 5000])) + line[place:]
      case 6:
        lines[i] = line[:place] + chr(int(rng.integers(1, 0xd7ff))) + line[place:]
      case _:
        lines[i] = line[:place] + line[place + int(rng.integers(1, 12)):]
  return '\n'.join(lines)
