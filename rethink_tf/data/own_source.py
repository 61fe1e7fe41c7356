"""Checks the user's own source against the protocol `structures.Source` before the first step.

An error in one (sizes as width, height; boxes as x, y) would otherwise give wrong numbers silently, or fail only when
training ends and is evaluated. The sources of this package have tests instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rethink_tf.data.categories import Category, shorten
from rethink_tf.data.images import ImageError
from rethink_tf.errors import UserError
from rethink_tf.structures import MASK_CROP, NO_MASK, Example, Source

_TRUSTED = ('rethink_tf', 'builtins', 'abc', 'typing')  # packages of the classes of a source that needs no check
_LOADED = 3  # images that are looked at
_FIELDS = ('id', 'image_id', 'category_id', 'bbox', 'area', 'segmentation')  # of an annotation
_EDGE = 1.0  # pixels by which a box may lie outside, or differ from that of its annotation
_COMMON = ('name', 'categories', 'num_classes', 'image_ids', 'sizes', 'load')


def checked(source: Source, scored: bool = False) -> Source:
  """Return the source; unless it is of this package, its first images are loaded and checked.

  scored: its objects are scored by COCO's metric, so that `annotations()` is checked, too.

  Raises:
    UserError: the source violates the protocol.
  """
  if all(kind.__module__.partition('.')[0] in _TRUSTED for kind in type(source).__mro__):
    return source
  whose = f'{type(source).__module__}.{type(source).__qualname__}'

  def check(holds: bool, what: str) -> None:
    if not holds:
      raise UserError(f'{whose}: {what} (rethink_tf.structures.Source)')

  classification = hasattr(source, 'classes')
  needed = (*_COMMON, *(('classes',) if classification else ('num_instances', 'num_keypoints')),
            *(('annotations',) if scored and not classification else ()))
  missing = [name for name in needed if not hasattr(source, name)]
  check(not missing, f'a source has no {", ".join(missing)}')
  _check_table(source, classification, check)
  if not classification:
    boxes = _check_examples(source, check)
    if scored:
      _check_annotations(source, boxes, check)
  return source


def _check_table(source: Source, classification: bool, check: Callable[[bool, str], None]) -> None:
  """Check everything that is known about all images without loading one."""
  check(len(source.categories) == source.num_classes, f'num_classes = {source.num_classes}, but categories has '
        f'{len(source.categories)}')
  check(all(isinstance(one, Category) for one in source.categories),
        'categories should be a sequence of rethink_tf.data.categories.Category(id, name)')
  number = len(source.image_ids)
  columns = {'image_ids': (number,), 'sizes': (number, 2)} | ({} if classification else {'num_instances': (number,)})
  for name, shape in columns.items():
    values = getattr(source, name)
    check(isinstance(values, np.ndarray) and values.dtype.kind in 'iu' and values.shape == shape,
          f'{name} should be an array of integers {list(shape)}, is {_described(values)}')
  check(number == len(np.unique(source.image_ids)) and source.image_ids.min(initial=0) >= 0,
        'image_ids should be different integers of 0 or more')


def _check_examples(source: Source, check: Callable[[bool, str], None]) -> dict[int, np.ndarray]:
  """Load the first images; return the boxes of each by its id."""
  boxes = {}
  for i in range(min(_LOADED, len(source.image_ids))):
    try:
      example = source.load(i)
    except ImageError:
      continue  # counted when it is read
    where = f'load({i})'
    check(isinstance(example, Example), f'{where} should be a rethink_tf.structures.Example, is {_described(example)}')
    number, points = int(source.num_instances[i]), source.num_keypoints
    height, width = source.sizes[i].tolist()
    shapes = {'image': (np.uint8, (height, width, 3)), 'boxes': (np.float32, (number, 4)),
              'classes': (np.int32, (number,)), 'masks': (np.uint8, (number, MASK_CROP, MASK_CROP)),
              'keypoints': (np.float32, (number, points, 3))}
    for name, (kind, shape) in shapes.items():
      values = getattr(example, name)
      check(isinstance(values, np.ndarray) and values.dtype == kind and values.shape == shape,
            f'{where}.{name} should be {np.dtype(kind).name} {list(shape)} by sizes[{i}] (height, width), '
            f'num_instances[{i}] and num_keypoints, is {_described(values)}')
    y0, x0, y1, x1 = example.boxes.T
    check(bool(np.isfinite(example.boxes).all() and (y0 < y1).all() and (x0 < x1).all() and (y0 >= -_EDGE).all()
               and (x0 >= -_EDGE).all() and (y1 <= height + _EDGE).all() and (x1 <= width + _EDGE).all()),
          f'{where}.boxes should be y0, x0, y1, x1 in pixels of the image, {height} high and {width} wide, are '
          f'{shorten(example.boxes.tolist())}')
    classes = sorted(set(example.classes.tolist()))
    check(not classes or 1 <= classes[0] and classes[-1] <= source.num_classes,
          f'{where}.classes should be 1 to {source.num_classes}, since 0 is the background, are {shorten(classes)}')
    check(example.masks.max(initial=0) <= NO_MASK, f'{where}.masks should be 0 and 1, or {NO_MASK} where none is known,'
          f' has {example.masks.max(initial=0)}')
    boxes[int(source.image_ids[i])] = example.boxes
  return boxes


def _check_annotations(source: Source, boxes: Mapping[int, np.ndarray], check: Callable[[bool, str], None]) -> None:
  """Compare annotations() with the table and with the boxes of the images that were loaded."""
  found = source.annotations()
  parts = ('images', 'annotations', 'categories')
  check(isinstance(found, Mapping) and all(isinstance(found.get(part), list) for part in parts),
        f"annotations() should be COCO's json, with the lists {', '.join(parts)}")
  check([image.get('id') for image in found['images']] == source.image_ids.tolist(),
        'annotations() should have the images of image_ids, in their order, as integers')
  ids = [category.id for category in source.categories]
  check([category.get('id') for category in found['categories']] == ids,
        f'annotations() should have the ids of categories, {shorten(ids)}, in their order')
  for entry in found['annotations']:
    lacking = [field for field in _FIELDS if field not in entry]
    check(not lacking, f'annotations(): an annotation has no {", ".join(lacking)}; without a mask, segmentation is the '
          'outline of the box, and has_masks = False')
    check(entry['category_id'] in ids, f'annotations(): category_id {shorten(entry["category_id"])} is not an id of '
          f'categories, {shorten(ids)}')
  for image_id, own in boxes.items():
    x, y, w, h = np.array([entry['bbox'] for entry in found['annotations'] if entry['image_id'] == image_id
                           and not entry.get('iscrowd') and not entry.get('ignore')], np.float64).reshape(-1, 4).T
    scored = np.stack([y, x, y + h, x + w], axis=1)
    distances = np.abs(scored[None] - own[:, None]).max(axis=2)  # [of load(), of annotations()]
    check(bool((distances.min(axis=1, initial=np.inf) <= _EDGE).all()), f'annotations(): the bbox of image '
          f"{image_id} should be x, y, width, height of load()'s boxes: "
          f'as y0, x0, y1, x1 {shorten(scored.tolist())}, not {shorten(own.tolist())}')


def _described(values: Any) -> str:
  return f'{values.dtype} {list(values.shape)}' if isinstance(values, np.ndarray) else f'a {type(values).__name__}'
