"""A summary of a split, by which it is known whether a run continues with the data it was started with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from rethink_tf.data.images import ImageError
from rethink_tf.structures import Source

_SAMPLED = 8  # image files whose contents are hashed


def summarize(source: Source) -> dict[str, Any]:
  """Return the number of images and instances of a split, and hashes of its annotations and of some image files.

  Cheap: of what the source has in memory (ids, sizes, names, boxes, classes, masks), and of eight image files.
  """
  instances = getattr(source, 'num_instances', None)
  return {'name': source.name, 'images': len(source.image_ids),
          'instances': int(np.sum(instances)) if instances is not None else None,
          'annotations': _annotations(source), 'files': _files(source)}


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """Return what differs between two summaries, which may come from a file, in words; [] for equal ones."""
  found = [f'{was[name]!r} -> {now.get(name)!r} {name}' for name in ('images', 'instances')
           if name in was and was[name] != now.get(name)]
  if not found and was.get('annotations') != now.get('annotations'):
    found.append('other annotations under the same number of images')
  elif not found and was.get('files') != now.get('files'):
    found.append('other contents of the image files under the same names')
  return found


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
  """Return a hash of some image files, spread over the split; None for a source that does not read files."""
  if not hasattr(source, 'read'):
    return None
  digest = hashlib.sha256()
  for i in sorted(set(np.linspace(0, len(source.image_ids) - 1, _SAMPLED).astype(int).tolist())):
    try:
      digest.update(hashlib.sha256(source.read(i)).digest())
    except ImageError:
      digest.update(b'unreadable')
  return digest.hexdigest()[:32]
