"""CVAT's own xml ("CVAT for images 1.1", "CVAT for video 1.1"): boxes, polygons, ellipses and masks of all images."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

from rethink_tf.data.categories import as_text, is_text, shorten
from rethink_tf.data.detection.segmentation import ROTATED, turned_box
from rethink_tf.data.detection.voc_xml import XmlError, parse_xml
from rethink_tf.data.images import MAX_PIXELS
from rethink_tf.data.prepare import cvat_video
from rethink_tf.data.prepare.labelme import BAD_MASK, WITHOUT_AREA
from rethink_tf.data.prepare.layout import (
  FEW_POINTS,
  NO_AREA,
  NO_CLASS,
  NOT_FINITE,
  NOT_NAMED,
  LabelledImage,
  Options,
  Reading,
  chosen,
  claim,
  count_unannotated,
  grouped,
  image_size,
  output_name,
)
from rethink_tf.data.prepare.shapes import box, ellipse, text_numbers
from rethink_tf.data.prepare.source_folder import EXAMINED, SourceFolder, split_of
from rethink_tf.data.prepare.voc_folders import root_tag
from rethink_tf.data.problems import REPAIRED
from rethink_tf.errors import UserError, in_one_line

NAME, TITLE = 'cvat', "CVAT's xml"
NO_TRACK = ('{count} frames after the last one with an object of {file} are read as images without objects: remove '
            'those that are not annotated yet')
TAG = 'a tag of a whole image'
SKELETON = "a skeleton, whose keypoints are not read (export as 'COCO Keypoints 1.0' to have them)"
_MAX_BYTES = 512 << 20  # of a file, whose elements take several times as much memory
_ATTRIBUTES = {'box': ('xtl', 'ytl', 'xbr', 'ybr'), 'ellipse': ('cx', 'cy', 'rx', 'ry'),
               'mask': ('left', 'top', 'width', 'height')}


class _Image(NamedTuple):
  """The element of an image in a file."""

  file: str
  element: Element
  video: str | None = None  # that it is a frame of
  track: bool = False  # whether it is made of tracks


def recognize(folder: SourceFolder) -> str | None:
  """Return the xml files that begin with <annotations>."""
  files = _files(folder, folder.with_suffix('.xml')[:EXAMINED])
  return folder.describe(files) if files else None


def read(folder: SourceFolder, options: Options) -> Reading:
  """Read all files, which may be several splits or jobs of one data set, or videos."""
  files = chosen(folder, _files(folder, folder.with_suffix('.xml')), options, 'xml of CVAT')
  images = [image for file in files for image in _load(folder, file)]
  videos = sorted({image.file for image in images if image.track})
  if len({posixpath.dirname(file) for file in videos}) < len(videos):
    raise UserError(f'{folder.root}: {folder.describe(videos)} have tracks over the same frames: export the whole task '
                    'of CVAT, or name one of them with --annotation_file')
  reading = Reading(TITLE, iter(()), len(images), upright=True)
  for file in videos:
    frames = [image.element for image in images if image.file == file]
    if last := next((i for i in range(len(frames), 0, -1) if len(frames[i - 1])), 0):
      reading.notes += [NO_TRACK.format(count=len(frames) - last, file=as_text(file))] * (last < len(frames))
  reading.images = _images(folder, images, reading)
  return reading


def _files(folder: SourceFolder, files: list[str]) -> list[str]:
  return [file for file in files if root_tag(folder, file) == 'annotations']


def _load(folder: SourceFolder, file: str) -> list[_Image]:
  """Return the <image> elements of a file, or the frames of its tracks."""
  path = folder.path(file)
  try:
    if os.path.getsize(path) > _MAX_BYTES:
      raise UserError(f'{path}: more than {_MAX_BYTES >> 20} MB: export the jobs of the task one by one')
    with open(path, 'rb') as stream:
      root = parse_xml(stream.read(_MAX_BYTES + 1), path, _MAX_BYTES)
  except XmlError as error:
    raise UserError(str(error)) from error
  except OSError as error:
    raise UserError(f'{path}: cannot be read: {in_one_line(error)}') from error
  if root.find('track') is not None:
    return [_Image(file, element, file, True) for element in cvat_video.frames(folder, file, root)]
  images = root.findall('image')
  if not images:
    raise UserError(f"{path}: no <image> in it: export the task of CVAT as 'CVAT for images 1.1' or 'COCO 1.0'")
  tasks = [*root.iterfind('meta/task'), *root.iterfind('meta/job'), *root.iterfind('meta/project/tasks/task')]
  videos = {task.findtext('id') for task in tasks if task.findtext('mode') == 'interpolation'}
  only = tasks[0].findtext('id') if len(tasks) == 1 else None
  return [_Image(file, one, f'{file}, {task}' if (task := one.get('task_id') or only) in videos else None)
          for one in images]


def _images(folder: SourceFolder, images: list[_Image], reading: Reading) -> Iterator[LabelledImage]:
  used: set[str] = set()
  for file, element, video, _ in images:
    name, split = element.get('name'), split_of(element.get('subset') or '') or split_of(file)
    where, shapes = f'{file}, {shorten(name)}', [one for one in element if one.tag != 'tag']
    image = folder.find_image(name, of=file, split=split)
    if not claim(image, used, reading, where, len(shapes)):
      continue
    reading.leave_out(TAG, where, len(element) - len(shapes))
    size = image_size(*_numbers(element, ('height', 'width')) or (None, None))
    instances = grouped(_parts(shapes, size, where, reading), where, reading)
    yield LabelledImage(image, output_name(image), split, instances, size, video=video)
  count_unannotated(folder, used, reading, NOT_NAMED)


def _parts(shapes: list[Element], size: tuple[int, int] | None, where: str,
           reading: Reading) -> Iterator[tuple[str, str | None, tuple[str, Any]]]:
  """Yield label, group and part of each shape, whose groups are objects as in CVAT's own COCO json."""
  for i, shape in enumerate(shapes):
    place, label = f'{where}, {shorten(shape.tag)} {i}', (shape.get('label') or '').strip()
    if not label or not is_text(label):
      reading.leave_out(NO_CLASS, place)
      continue
    part = _part(shape, size, place, reading)
    if part is not None:
      group = shape.get('group_id') or '0'
      yield label, None if group == '0' else group, part


def _part(shape: Element, size: tuple[int, int] | None, where: str, reading: Reading) -> tuple[str, Any] | None:
  """Return ('polygon', points), ('box', bbox) or ('mask', uint8 [height, width]); None if the shape is left out."""
  if shape.tag == 'polygon':
    points = text_numbers((shape.get('points') or '').replace(';', ',').split(','))
    if points is not None and len(points) >= 6 and len(points) % 2 == 0:
      return 'polygon', points
    reading.leave_out(NOT_FINITE if points is None or len(points) % 2 else FEW_POINTS, where)
    return None
  if shape.tag not in _ATTRIBUTES:
    reading.leave_out(SKELETON if shape.tag == 'skeleton' else f'{WITHOUT_AREA} ({shorten(shape.tag)})', where)
    return None
  values = _numbers(shape, _ATTRIBUTES[shape.tag])
  degrees = _numbers(shape, ('rotation',)) if 'rotation' in shape.attrib else [0.0]
  if values is None or degrees is None:
    reading.leave_out(NOT_FINITE, where)
    return None
  if shape.tag == 'mask':
    mask = _mask(shape.get('rle') or '', list(map(int, values)), size)
    if mask is None or not mask.any():
      reading.leave_out(BAD_MASK if mask is None else NO_AREA, where)
      return None
    return 'mask', mask
  a, b, c, d = values
  if (a == c or b == d) if shape.tag == 'box' else min(c, d) <= 0:
    reading.leave_out(NO_AREA, where)
    return None
  if shape.tag == 'ellipse':
    return 'polygon', ellipse(a, b, c, d, np.radians(degrees[0]))
  x, y, width, height = box(a, b, c, d)
  if degrees[0] % 360:
    reading.leave_out(ROTATED, where, outcome=REPAIRED)
    x, y, width, height = turned_box(x, y, width, height, degrees[0])
  return 'box', box(x, y, x + width, y + height)


def _mask(text: str, place: list[int], size: tuple[int, int] | None) -> np.ndarray | None:
  """Decode run lengths of pixels outside and inside a mask in turn, row by row within the box `place`."""
  left, top, width, height = place
  try:
    counts = list(map(int, text.split(',')))
  except ValueError:
    return None
  if size is None or size[0] * size[1] > MAX_PIXELS or min(counts) < 0 or sum(counts) > width * height or (
      min(left, top) < 0 or min(width, height) < 1 or top + height > size[0] or left + width > size[1]):
    return None
  runs = np.array(counts, np.int64)
  crop = np.zeros(height * width, np.uint8)
  crop[:runs.sum()] = np.repeat(np.arange(len(runs)) % 2, runs)
  mask = np.zeros(size, np.uint8)
  mask[top:top + height, left:left + width] = crop.reshape(height, width)
  return mask


def _numbers(element: Element, names: tuple[str, ...]) -> list[float] | None:
  return text_numbers([element.get(name) for name in names])
