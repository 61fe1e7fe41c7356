"""Formats the output of `python -m rethink_tf.weights` for published weights: the table, and one entry."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from rethink_tf.downloads.remote_file import MIB
from rethink_tf.errors import UserError, plain
from rethink_tf.weights.catalog import LIST, Entry

_NOTES = (
  '* in the cache. address: "not tried" where nobody has downloaded from it with this package yet.',
  'images, pixels: seen in pre-training (Fig. 2); ~ partly assumed. input: "std" where pixels are divided by one.',
  'python -m rethink_tf.weights NAME downloads one and prints its source and the gin lines that use it.')


def matching(entries: Iterable[Entry], words: Sequence[str]) -> list[Entry]:
  """Return the entries whose row contains all words, ignoring case.

  Raises:
    UserError: there is none.
  """
  def has_all(entry: Entry) -> bool:
    text = f'{entry.name} {entry.kind} {entry.network} {entry.norm} {entry.licence}'.lower()
    return all(word.lower() in text for word in words)

  found = list(filter(has_all, entries))
  if not found:
    raise UserError(f'--list {plain(" ".join(words))}: no published weights have all of these words; without them '
                    f'{LIST} has all')
  return found


def table(entries: Iterable[Entry]) -> str:
  """Return a table of at most 120 columns, a row for each entry."""
  rows = [('name', 'network', 'norm', 'input', 'MiB', 'licence', 'images', 'pixels', 'address')]
  for entry in entries:
    cached = '*' if os.path.exists(entry.path) else ''
    scaled = '' if entry.pixel_std == (1.0, 1.0, 1.0) else '/std'
    assumed = '~' if entry.cost.assumed else ''
    network = f'Mask R-CNN {entry.network.replace("ResNet-", "R")}' if entry.kind == 'detector' else entry.network
    rows.append((f'{entry.name}{cached}', network, entry.norm, f'{entry.channels}{scaled}', _mib(entry), entry.licence,
                 f'{assumed}{entry.cost.images / 1e6:.0f}M', f'{assumed}{entry.cost.pixels:.1e}'.replace('e+', 'e'),
                 entry.address_state.removeprefix('address ')))
  return '\n'.join([*_aligned(rows), '', *_NOTES])


def as_json(entries: Iterable[Entry]) -> str:
  """Return all fields of the entries as JSON, with the path in the cache and whether the file is there."""
  return json.dumps([fields(entry) for entry in entries], indent=2)


def fields(entry: Entry) -> dict[str, Any]:
  """Return all fields of an entry by name, as JSON holds them."""
  found = entry._asdict()
  remote = found.pop('remote')
  return {**found, 'cost': entry.cost._asdict(), 'address': remote.url, 'size': remote.size, 'size_mib': remote.mib,
          'sha256': remote.sha256, 'md5': remote.md5, 'md5_suffix': remote.md5_suffix,
          'address_state': entry.address_state, 'path': entry.path, 'in_cache': os.path.exists(entry.path)}


def description(entry: Entry) -> list[tuple[str, str]]:
  """Return the rows about an entry that its file does not contain."""
  remote, cost = entry.remote, entry.cost
  checksum = ', '.join(f'{kind} {value}{"…" if len(value) < length else ""}' for kind, value, length in (
    ('sha256', remote.sha256, 64), ('md5', remote.md5, 32)) if value)
  return [
    ('name', entry.name),
    ('address', f'{remote.url} ({entry.address_state})'),
    ('address from', entry.source),
    ('published', (f'{_mib(entry)} MiB, ' if remote.size or remote.mib else '') + (
      checksum or (f'md5 at <address>{remote.md5_suffix}' if remote.md5_suffix else
                   'no checksum: that of the first download is recorded'))),
    ('pre-training', f'{cost.images:.3g} images, {cost.instances:.3g} instances, {cost.pixels:.3g} pixels: '
                     f'{cost.record()["source"]}'),
  ]


def _mib(entry: Entry) -> str:
  remote = entry.remote
  if remote.size is not None:
    return f'{remote.size / MIB:.0f}'
  return '-' if remote.mib is None else f'{remote.mib:.0f}'


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  right = ('MiB', 'images', 'pixels')
  return ['  '.join(text.rjust(width) if head in right else text.ljust(width)
                    for text, width, head in zip(row, widths, rows[0], strict=True)).rstrip() for row in rows]
