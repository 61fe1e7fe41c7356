"""Statistics of a data set: counts by class and size, suspicious annotations, duplicate and unreadable files.

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

from rethink_tf.data.images import ImageError
from rethink_tf.structures import Source

AREAS = {'small': (0.0, 32.0**2), 'medium': (32.0**2, 96.0**2), 'large': (96.0**2, np.inf)}  # COCO's, in pixels
MAX_OVERHANG = 1.0  # pixels by which a box may exceed its image; COCO's own boxes are rounded
TINY = 4.0  # pixels of the longer side
SAME_IOU = 0.95  # IoU above which two boxes count as duplicates
MASK_TOLERANCE = (2.0, 0.05)  # distance of the edges of mask and box: pixels, or fraction of the side of the box
FEW_INSTANCES = 10  # of a class

# Kinds of suspicious annotations.
OUTSIDE, DEGENERATE, TINY_BOX = 'box outside the image', 'box without area', f'box of less than {TINY:g} pixels'
REPEATED, TWO_CLASSES = 'same box twice in a class', 'same box in two classes'
MASK_ELSEWHERE, TOO_LARGE = 'extent of the mask differs from the box', 'area larger than the box'


class Table(NamedTuple):
  """The annotations of a source as columns, ordered by image."""

  images: np.ndarray  # int64 [A] index into the source
  ids: np.ndarray  # int64 [A] of the annotation
  classes: np.ndarray  # int64 [A] 1..K
  boxes: np.ndarray  # float64 [A, 4] y0 x0 y1 x1, as annotated: not clipped
  areas: np.ndarray  # float64 [A] as annotated
  crowds: np.ndarray  # bool [A]
  mask_boxes: np.ndarray  # float64 [A, 4] extent of the segmentation, nan without one


class SuspiciousAnnotation(NamedTuple):
  """An annotation that is probably wrong."""

  kind: str
  row: int  # of the table
  other: int | None = None  # row of the annotation that it duplicates


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


def find_suspicious(table: Table, sizes: np.ndarray) -> list[SuspiciousAnnotation]:
  """Return the suspicious annotations; sizes: int [N, 2] height, width of the images."""
  boxes, sides = table.boxes, table.boxes[:, 2:] - table.boxes[:, :2]
  limits = np.asarray(sizes, np.float64).reshape(-1, 2)[table.images]
  out = np.maximum(-boxes[:, :2], boxes[:, 2:] - limits).max(axis=1, initial=0.0) > MAX_OVERHANG
  flat = (sides <= 0).any(axis=1) | (table.areas <= 0)
  tiny = ~flat & (sides.max(axis=1, initial=0.0) < TINY)
  # An outline may exceed the image although its box is clipped.
  extents = np.clip(table.mask_boxes, 0.0, np.tile(limits, 2))
  off = np.abs(extents - np.clip(boxes, 0.0, np.tile(limits, 2)))
  elsewhere = ~flat & (off > np.maximum(MASK_TOLERANCE[0], MASK_TOLERANCE[1] * np.tile(sides, 2))).any(axis=1)
  large = ~flat & (table.areas > 1.05 * sides.prod(axis=1) + 1)
  found = [SuspiciousAnnotation(kind, int(row)) for kind, rows in (
    (OUTSIDE, out), (DEGENERATE, flat), (TINY_BOX, tiny), (MASK_ELSEWHERE, elsewhere), (TOO_LARGE, large))
    for row in np.flatnonzero(rows)]
  return found + list(_repeated(table, ~flat & ~table.crowds))


def _repeated(table: Table, usable: np.ndarray) -> Iterator[SuspiciousAnnotation]:
  """Yield boxes that duplicate an earlier one of their image."""
  rows = np.flatnonzero(usable)
  starts = np.flatnonzero(np.diff(table.images[rows], prepend=-1))
  for group in np.split(rows, starts[1:]):
    if len(group) < 2:
      continue
    boxes = table.boxes[group]
    low, high = np.maximum(boxes[:, None, :2], boxes[:, :2]), np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    common = np.maximum(high - low, 0).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    same = np.tril(common >= SAME_IOU * (areas[:, None] + areas - common), -1)
    for second in np.flatnonzero(same.any(axis=1)):
      first = int(same[second].argmax())
      alike = table.classes[group[first]] == table.classes[group[second]]
      yield SuspiciousAnnotation(REPEATED if alike else TWO_CLASSES, int(group[second]), int(group[first]))


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


def fingerprints(source: Source, decode: bool, workers: int = 8, on_file: Callable[[], None] | None = None) -> Files:
  """Hash every file: its bytes if the source provides them, else its pixels.

  Args:
    source: the images.
    decode: decode every file, to find damaged ones.
    workers: threads.
    on_file: called after each file.
  """
  unreadable: dict[int, str] = {}

  def fingerprint(i: int) -> str | None:
    try:
      image = source.load(i).image if decode or not hasattr(source, 'read') else None
      data = source.read(i) if hasattr(source, 'read') else image.tobytes() + str(image.shape).encode()
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
  return Files(hashes, unreadable)


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
