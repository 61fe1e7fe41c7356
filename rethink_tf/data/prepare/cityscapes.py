"""Cityscapes' fine annotations: NAME_gtFine_polygons.json for NAME_leftImg8bit.png, polygons from back to front.

What a later polygon covers is no part of an object, so that objects are masks of the pixels that are seen, drawn as the
data set draws its own. Classes without instances (road, sky) are no objects; a group (cargroup) is a crowd.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from rethink_tf.data.categories import is_text
from rethink_tf.data.images import MAX_PIXELS
from rethink_tf.data.prepare.layout import (
  FEW_POINTS,
  NO_CLASS,
  NOT_FINITE,
  LabelledImage,
  Options,
  Reading,
  chosen,
  claim,
  count_unannotated,
  each_json,
  image_size,
  output_name,
)
from rethink_tf.data.prepare.shapes import flat_points, masked
from rethink_tf.data.prepare.source_folder import EXAMINED, JsonShape, SourceFolder, split_of

NAME, TITLE = 'cityscapes', "Cityscapes' fine annotations"
FOREIGN = 'JSON file without the size and the objects of a Cityscapes image'
WITHHELD = 'image whose annotation is withheld, as of the test images'
NO_INSTANCES = 'of a class without instances (road, sky and others), which is no object'
COVERED = 'covered by later ones, or outside of the image'
CROWDS = '{count} objects are groups (as cargroup): crowds, which are not trained on'
OTHERS = 'classes that Cityscapes does not have are taken for classes of objects: {names}'
_SUFFIX = '_gtFine_polygons.json'
_IMAGE = '_leftImg8bit'
_GROUP = 'group'
_UNSEEN = {'ego vehicle', 'rectification border', 'out of roi'}
_NOT_DRAWN = 'license plate'
_WITHOUT_INSTANCES = _UNSEEN | {
  'unlabeled', 'static', 'dynamic', 'ground', 'road', 'sidewalk', 'parking', 'rail track', 'building', 'wall', 'fence',
  'guard rail', 'bridge', 'tunnel', 'pole', 'polegroup', 'traffic light', 'traffic sign', 'vegetation', 'terrain',
  'sky'}
_WITH_INSTANCES = {'person', 'rider', 'car', 'truck', 'bus', 'caravan', 'trailer', 'train', 'motorcycle', 'bicycle'}


def recognize(folder: SourceFolder) -> str | None:
  """Return the first file of fine annotations."""
  return next((file for file in _files(folder)[:EXAMINED] if isinstance(
    shape := folder.json_shape(file), JsonShape) and {'imgHeight', 'imgWidth', 'objects'} <= {*shape.keys}), None)


def read(folder: SourceFolder, options: Options) -> Reading:
  """List the files; they are read one at a time."""
  files = chosen(folder, _files(folder), options, f'file with the name NAME{_SUFFIX}')
  reading = Reading(TITLE, iter(()), len(files))
  reading.images = _images(folder, files, reading)
  return reading


def _files(folder: SourceFolder) -> list[str]:
  return folder.with_suffix(_SUFFIX.lower())


def _images(folder: SourceFolder, files: list[str], reading: Reading) -> Iterator[LabelledImage]:
  used: set[str] = set()
  left: set[str] = set()
  others: set[str] = set()
  crowds = 0
  for file, content in each_json(folder, files, reading):
    content = content if isinstance(content, dict) else {}
    size, objects = image_size(content.get('imgHeight'), content.get('imgWidth')), content.get('objects')
    if size is None or size[0] * size[1] > MAX_PIXELS or not isinstance(objects, list):
      reading.problems.add(FOREIGN, 1, file)
      continue
    objects = [one if isinstance(one, dict) else {} for one in objects]
    labels = {one['label'] for one in objects if isinstance(one.get('label'), str)}
    image = _image(folder, file)
    if labels and labels <= _UNSEEN:
      reading.problems.add(WITHHELD, 1, file)
      left.add(image or '')
    elif claim(image, used, reading, file, len(objects)):
      instances = _instances(objects, size, file, reading)
      crowds += sum(one['iscrowd'] for one in instances)
      others |= {one['category'] for one in instances} - _WITH_INSTANCES
      yield LabelledImage(image, output_name(image), split_of(posixpath.dirname(file)), instances, size)
  count_unannotated(folder, used | left, reading)
  if crowds:
    reading.notes.append(CROWDS.format(count=crowds))
  if others:
    reading.notes.append(OTHERS.format(names=folder.describe(sorted(others), shown=10)))


def _image(folder: SourceFolder, file: str) -> str | None:
  """Return the image of an annotation file; names may repeat in folders of the same names (cities, sequences)."""
  name = posixpath.basename(file)[:-len(_SUFFIX)]
  within = posixpath.join(posixpath.basename(posixpath.dirname(file)), f'{name}{_IMAGE}.png')
  return (folder.find_image(within, of=file) or folder.find_stem(f'{name}{_IMAGE}', of=file)
          or folder.find_stem(name, of=file))


def _instances(objects: list[dict[str, Any]], size: tuple[int, int], file: str,
               reading: Reading) -> list[dict[str, Any]]:
  """Return the objects of an image with the pixels that are seen of them."""
  drawn = np.zeros(size, np.int32)  # number of the object that is seen, from 1
  seen: dict[int, tuple[str, bool]] = {}  # number -> class, crowd
  for i, one in enumerate(objects, start=1):
    label, points, where = one.get('label'), flat_points(one.get('polygon')), f'{file}, objects[{i - 1}]'
    if one.get('deleted') or label == _NOT_DRAWN:
      reading.leave_out(NO_INSTANCES, where, int(label == _NOT_DRAWN))
    elif not is_text(label) or not label.strip():
      reading.leave_out(NO_CLASS, where)
    elif points is None or len(points) < 6:
      reading.leave_out(NOT_FINITE if points is None else FEW_POINTS, where)
    else:
      cv2.fillPoly(drawn, [np.round(points).astype(np.int32).reshape(-1, 2)], i)
      if label in _WITHOUT_INSTANCES:
        reading.leave_out(NO_INSTANCES, where)
      else:
        name = label.removesuffix(_GROUP).strip() or label
        seen[i] = name, name != label
  found = []
  for i, (name, crowd) in seen.items():
    mask = drawn == i
    if mask.any():
      found.append({'category': name, **masked(mask), 'iscrowd': int(crowd)})
    else:
      reading.leave_out(COVERED, f'{file}, objects[{i - 1}]')
  return found
