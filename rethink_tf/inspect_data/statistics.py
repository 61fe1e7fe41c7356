"""Statistics of a data set: counts by class and size, duplicate and unreadable files.

Works with any detection source. Shapes: A annotations (crowds included) of N images.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from rethink_tf.data.detection.suspicious import Table
from rethink_tf.data.image_notes import TURNED, is_turned
from rethink_tf.data.images import ImageError
from rethink_tf.data.prepare.splitting import Look, thumbnail
from rethink_tf.structures import Source

AREAS = {'small': (0.0, 32.0**2), 'medium': (32.0**2, 96.0**2), 'large': (96.0**2, np.inf)}  # COCO's, in pixels
FEW_INSTANCES = 10  # of a class

def collect(source: Source) -> Table:
  """Read all annotations of a source, as an evaluator receives them."""
  class_of = {category.id: k for k, category in enumerate(source.categories, start=1)}
  columns: dict[str, list] = defaultdict(list)
  for i, entries in enumerate(_by_image(source)):
    for entry in entries:
      x, y, w, h = entry['bbox']
      columns['images'].append(i)
      columns['ids'].append(entry['id'])
      columns['classes'].append(class_of[entry['category_id']])
      columns['boxes'].append((y, x, y + h, x + w))
      columns['areas'].append(entry['area'])
      columns['crowds'].append(bool(entry.get('iscrowd', 0)))
      columns['mask_boxes'].append(_extent(entry.get('segmentation')))
  types = {'boxes': np.float64, 'mask_boxes': np.float64, 'areas': np.float64, 'crowds': bool}
  arrays = {name: np.array(columns[name], types.get(name, np.int64)) for name in Table._fields}
  return Table(**{name: array.reshape(-1, 4) if 'boxes' in name else array for name, array in arrays.items()})


def _by_image(source: Source) -> Iterator[list[dict[str, Any]]]:
  if hasattr(source, 'image_annotations'):  # image by image: the annotations of COCO take gigabytes
    for i in range(len(source.image_ids)):
      yield source.image_annotations(i)
    return
  grouped = defaultdict(list)
  for entry in source.annotations()['annotations']:
    grouped[entry['image_id']].append(entry)
  for image_id in np.asarray(source.image_ids).tolist():
    yield grouped[image_id]


def _extent(segmentation: Any) -> tuple[float, ...]:
  """Return the bounding box y0, x0, y1, x1 of a segmentation."""
  if isinstance(segmentation, dict):
    x, y, w, h = coco_mask.toBbox(segmentation).tolist()
    return y, x, y + h, x + w
  points = [np.reshape(polygon, [-1, 2]) for polygon in segmentation or ()]
  if not points:
    return (np.nan,) * 4
  points = np.concatenate(points)
  return *points.min(axis=0)[::-1].tolist(), *points.max(axis=0)[::-1].tolist()


def summarise(table: Table, source: Source) -> dict[str, Any]:
  """Return counts and quantiles of a source, as JSON."""
  objects = ~table.crowds
  sizes = np.asarray(source.sizes).reshape(-1, 2)
  sides = np.maximum(table.boxes[objects, 2:] - table.boxes[objects, :2], 0)
  per_image = np.bincount(table.images[objects], minlength=len(sizes))
  counts = np.bincount(table.classes[objects], minlength=len(source.categories) + 1)
  in_images = [len(np.unique(table.images[objects & (table.classes == k)])) for k in range(1, len(counts))]
  positive = sides[(sides > 0).all(axis=1)]
  common = Counter(map(tuple, sizes.tolist()))
  return {
    'images': len(sizes), 'images_without_objects': int((per_image == 0).sum()), 'instances': int(objects.sum()),
    'crowds': int(table.crowds.sum()),
    'classes': [{'id': category.id, 'name': category.name, 'instances': int(count), 'images': images}
                for category, count, images in zip(source.categories, counts[1:], in_images, strict=True)],
    'few': [category.name for category, count in zip(source.categories, counts[1:], strict=True)
            if count < FEW_INSTANCES],
    'areas': {name: int(((table.areas[objects] >= low) & (table.areas[objects] < high)).sum())
              for name, (low, high) in AREAS.items()},
    'box_side': quantiles(np.sqrt(positive.prod(axis=1))), 'aspect_ratio': quantiles(positive[:, 1] / positive[:, 0]),
    'instances_per_image': quantiles(per_image), 'height': quantiles(sizes[:, 0]), 'width': quantiles(sizes[:, 1]),
    'commonest_sizes': [[*size, count] for size, count in common.most_common(5)], 'different_sizes': len(common),
  }


def quantiles(values: np.ndarray) -> dict[str, float] | None:
  """Return minimum, 10 %, median, 90 % and maximum; None without values."""
  if not len(values):
    return None
  names = ('min', '10%', 'median', '90%', 'max')
  return dict(zip(names, np.round(np.quantile(values, [0, 0.1, 0.5, 0.9, 1]), 3).tolist(), strict=True))


class Files(NamedTuple):
  """Fingerprints of the files of a source, None for unreadable ones."""

  fingerprints: list[str | None]
  unreadable: dict[int, str]  # index -> reason
  looks: list[Look] | None = None  # of each image, if all were decoded


def fingerprints(source: Source, decode: bool, workers: int = 8, on_file: Callable[[], None] | None = None) -> Files:
  """Hash every file: its bytes if the source provides them, else its pixels.

  Args:
    source: the images.
    decode: decode every file, to find damaged ones.
    workers: threads.
    on_file: called after each file.
  """
  unreadable: dict[int, str] = {}
  looks = [Look(str(name)) for name in getattr(source, 'file_names', None) or source.image_ids]

  def fingerprint(i: int) -> str | None:
    try:
      image = source.load(i).image if decode or not hasattr(source, 'read') else None
      looks[i] = looks[i] if image is None else Look(looks[i].name, *thumbnail(image))
      data = source.read(i) if hasattr(source, 'read') else image.tobytes() + str(image.shape).encode()
      if image is None and hasattr(source, 'notes') and is_turned(data, tuple(source.sizes[i].tolist())):
        source.notes.add(TURNED, (getattr(source, 'file_names', None) or source.image_ids)[i])  # `load` does the same
      return hashlib.blake2b(data, digest_size=16).hexdigest()
    except ImageError as error:
      unreadable[i] = str(error)
      return None

  hashes = []
  with ThreadPoolExecutor(workers) as pool:
    for digest in pool.map(fingerprint, range(len(source.image_ids))):
      hashes.append(digest)
      if on_file is not None:
        on_file()
  return Files(hashes, unreadable, looks if decode else None)


def duplicates(keys: Sequence[Any]) -> list[list[int]]:
  """Return groups of indices with equal keys; None is ignored."""
  groups: dict[Any, list[int]] = defaultdict(list)
  for i, key in enumerate(keys):
    if key is not None:
      groups[key].append(i)
  return [group for group in groups.values() if len(group) > 1]


def matching_pairs(first: Sequence[Any], second: Sequence[Any]) -> list[tuple[int, int]]:
  """Return pairs of indices with equal keys, at most one for each key of `second`; None is ignored."""
  index = {key: i for i, key in reversed(list(enumerate(first))) if key is not None}
  return [(index[key], j) for j, key in enumerate(second) if key is not None and key in index]


def base_names(source: Source) -> list[str | None]:
  """Return the names of the files without folders; None if the source has none."""
  names = getattr(source, 'file_names', None) or [None] * len(source.image_ids)
  return [name and os.path.basename(name) for name in names]
