"""Digests of data sets, by which a run recognises whether it continues with the data it was started with."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from rethink_tf.data.images import QUARTER_TURNS, ImageError, turn_and_size
from rethink_tf.structures import Source

_SAMPLED = 8  # image files whose contents are hashed
_MOST, _BEGINNING, _READERS = 5_000, 8192, 16  # image files whose beginnings are hashed; bytes of each; threads
_LOOKED_AT = 1_000  # image files whose EXIF orientation is looked up
_BYTES = 6  # of such a hash: two of 5,000 images in a million are equal by chance


def summarize(source: Source) -> dict[str, Any]:
  """Return the number of images and instances of a split, and hashes of its annotations and of some image files.

  Cheap: of what the source has in memory (ids, sizes, names, boxes, classes, masks), of eight image files, and of a
  local set of some thousand image files the beginnings, by which images are found in other sets (same_images).
  """
  instances = getattr(source, 'num_instances', None)
  return {'name': source.name, 'images': len(source.image_ids),
          'instances': int(np.sum(instances)) if instances is not None else None,
          'annotations': _annotations(source), 'files': _files(source), 'each': _each(source),
          'turned': _turned(source)}


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """Return in words how two summaries differ, which may come from files; [] if they are equal."""
  found = [f'{was[name]!r} -> {now.get(name)!r} {name}' for name in ('images', 'instances')
           if name in was and was[name] != now.get(name)]
  if not found and was.get('annotations') != now.get('annotations'):
    found.append('other annotations under the same number of images')
  elif not found and was.get('files') != now.get('files'):
    found.append('other contents of the image files under the same names')
  return found


def to_compare(summaries: Mapping[str, Mapping[str, Any]]) -> str:
  """Return the part of the summaries of all splits that `difference_to` compares, as a short text."""
  return json.dumps({split: {name: value for name, value in summary.items() if name != 'each'}
                     for split, summary in summaries.items()})


def difference_to(theirs: str, own: Mapping[str, Mapping[str, Any]]) -> str:
  """Return in one line how this worker's data differs from the chief's (`theirs`, by to_compare); '' if equal."""
  chief = json.loads(theirs)
  found = [f'{split}: {", ".join(different)}' for split, summary in own.items()
           if (different := differences(chief.get(split, {}), summary))]
  if not found:
    return ''
  return (f'this worker has other data than the chief (chief -> this worker, {"; ".join(found)}): give all workers the '
          'same data, on shared storage or as equal copies')


def same_images(training: Mapping[str, Any], held_out: Mapping[str, Any]) -> int:
  """Return the number of images that two summaries share, which may come from files; 0 if unknown."""
  return len(_hashes(training.get('each')) & _hashes(held_out.get('each')))


def reads_upright(summary: Mapping[str, Any]) -> bool | None:
  """Return whether images are read with their EXIF orientation applied, by a summary, which may come from a file.

  None: not known, since none has an orientation that its size tells, or some are read so and some as they are stored.
  """
  turned = summary.get('turned')
  counts = [turned.get(name) for name in ('upright', 'stored')] if isinstance(turned, dict) else []
  if not all(type(count) is int for count in counts) or sum(map(bool, counts)) != 1:
    return None
  return counts[0] > 0


def _turned(source: Source) -> dict[str, int] | None:
  """Return how many images with a quarter turn in their EXIF orientation have the upright, and the stored, size.

  Counted on local image files spread over the source; None for any other source.
  """
  if not (hasattr(source, 'path') and hasattr(source, 'sizes')):
    return None
  images = np.unique(np.linspace(0, len(source.image_ids) - 1, _LOOKED_AT).astype(int)).tolist()
  paths = [source.path(i) for i in images]
  if any('://' in path for path in paths):
    return None
  with ThreadPoolExecutor(_READERS) as pool:
    found = list(pool.map(turn_and_size, paths))
  counts = {'upright': 0, 'stored': 0}
  for i, (turn, size) in zip(images, found, strict=True):
    annotated = tuple(source.sizes[i].tolist())
    if turn in QUARTER_TURNS and size[0] != size[1] and annotated in (size, size[::-1]):
      counts['stored' if annotated == size else 'upright'] += 1
  return counts


def _hashes(text: Any) -> set[bytes]:
  try:
    data = base64.b64decode(text or '')
  except (TypeError, ValueError):
    return set()
  return {data[i:i + _BYTES] for i in range(0, len(data), _BYTES)}


def _each(source: Source) -> str | None:
  """Return a short hash of each image file, joined, for a local set that is not large; None for any other."""
  if len(source.image_ids) > _MOST or not hasattr(source, 'path'):
    return None
  paths = [source.path(i) for i in range(len(source.image_ids))]
  if any('://' in path for path in paths):
    return None
  with ThreadPoolExecutor(_READERS) as pool:
    found = {one for one in pool.map(_beginning, paths) if one is not None}
  return base64.b64encode(b''.join(sorted(found))).decode()


def _beginning(path: str) -> bytes | None:
  """Return a hash of the size and the beginning of a file, None if it cannot be read."""
  try:
    if not os.path.isfile(path):
      return None
    with open(path, 'rb') as file:
      text = b'%d ' % os.fstat(file.fileno()).st_size + file.read(_BEGINNING)
  except OSError:
    return None
  return hashlib.blake2b(text, digest_size=_BYTES).digest()


def _annotations(source: Source) -> str:
  digest = hashlib.sha256()
  for name in ('image_ids', 'sizes', 'num_instances', 'classes'):
    column = getattr(source, name, None)
    if column is not None:
      digest.update(np.ascontiguousarray(column))
  digest.update('\n'.join(getattr(source, 'file_names', ())).encode('utf-8', 'surrogateescape'))
  digest.update('\n'.join(category.name for category in source.categories).encode())
  if hasattr(source, 'digest'):
    digest.update(source.digest().encode())
  return digest.hexdigest()[:32]


def _files(source: Source) -> str | None:
  """Return a hash of some image files spread over the split; None if the source does not read files."""
  if not hasattr(source, 'read'):
    return None
  digest = hashlib.sha256()
  for i in sorted(set(np.linspace(0, len(source.image_ids) - 1, _SAMPLED).astype(int).tolist())):
    try:
      digest.update(hashlib.sha256(source.read(i)).digest())
    except ImageError:
      digest.update(b'unreadable')
  return digest.hexdigest()[:32]
