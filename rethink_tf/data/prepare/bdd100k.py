"""JSON of BDD100K and Scalabel: a list of frames, alone or in an object beside `config`, each with its labels; or, of
BDD100K's first release, a file an image with `name` and a frame with `objects`.

Boxes are corners in continuous coordinates. Polygons are read if they are closed and have no curves.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any, NamedTuple

from rethink_tf.data.categories import is_text, shorten
from rethink_tf.data.prepare.labelme import WITHOUT_AREA
from rethink_tf.data.prepare.layout import (
  FEW_POINTS,
  NO_CLASS,
  NOT_FINITE,
  NOT_NAMED,
  LabelledImage,
  Options,
  Reading,
  chosen,
  claim,
  count_unannotated,
  each_json,
  image_size,
  output_name,
  sized,
)
from rethink_tf.data.prepare.shapes import flat_points, numbers, outlined
from rethink_tf.data.prepare.source_folder import EXAMINED, JsonShape, SourceFolder, split_of

NAME, TITLE = 'bdd100k', 'JSON of BDD100K'
FOREIGN = 'JSON file without frames of BDD100K'
NO_LABELS = 'frame without a list of labels (not annotated)'
REGION = 'lane or drivable area, which is no object'
CURVED = 'with an outline that has curves'
RUN_LENGTHS = 'with a mask as run lengths and without a box (not read)'
_REGIONS = ('lane', 'drivable area')


class _Frame(NamedTuple):
  """A frame with its labels."""

  file: str
  where: str
  name: Any  # of its image
  entry: dict[str, Any]
  labels: Any  # a list; an empty one: there are none


def recognize(folder: SourceFolder) -> str | None:
  """Return the JSON files with frames."""
  files = [file for file in folder.with_suffix('.json')[:EXAMINED] if _has_frames(folder.json_shape(file))]
  return folder.describe(files) if files else None


def read(folder: SourceFolder, options: Options) -> Reading:
  """List the files, which are the splits of one data set, or one an image; they are read one at a time."""
  files = chosen(folder, folder.with_suffix('.json'), options, 'JSON of BDD100K')
  reading = Reading(TITLE, iter(()), max(len(files), len(folder.images)))
  reading.images = _images(folder, files, reading)
  return reading


def _has_frames(shape: JsonShape | list[JsonShape] | None) -> bool:
  if isinstance(shape, list):
    return any({'name', 'labels'} <= {*one.keys} for one in shape)
  return shape is not None and 'frames' in shape.keys and bool({'name', 'config'} & {*shape.keys})


def _frames(file: str, content: Any) -> list[_Frame] | None:
  """Return the frames of a file; None if it has no list of them."""
  first_release = isinstance(content, dict) and 'name' in content
  frames = content.get('frames') if isinstance(content, dict) else content
  if not isinstance(frames, list):
    return None
  found = []
  for i, frame in enumerate(frames):
    frame = frame if isinstance(frame, dict) else {}
    name = content['name'] if first_release else frame.get('name')
    labels = frame.get('objects') if first_release else frame.get('labels')
    found.append(_Frame(file, f'{file}, frames[{i}], {shorten(name)}', name, frame, labels))
  return found


def _images(folder: SourceFolder, files: list[str], reading: Reading) -> Iterator[LabelledImage]:
  used: set[str] = set()
  left: set[str] = set()
  for file, content in each_json(folder, files, reading):
    frames = _frames(file, content)
    if frames is None:
      reading.problems.add(FOREIGN, 1, file)
    for frame in frames or ():
      image = _image(folder, frame)
      if not isinstance(frame.labels, list):
        reading.problems.add(NO_LABELS, 1, frame.where)
        left.add(image or '')
      elif claim(image, used, reading, frame.where, len(frame.labels)):
        yield _labelled(image, frame, reading)
  count_unannotated(folder, used | left, reading, NOT_NAMED)


def _image(folder: SourceFolder, frame: _Frame) -> str | None:
  """Return the image of a frame by its name, which may be without suffix, and its video or address."""
  if not is_text(frame.name):
    return None
  split, video = split_of(frame.file), frame.entry.get('videoName')
  names = [posixpath.join(video, frame.name), frame.name] if is_text(video) else [frame.name]
  found = [*(folder.find_image(name, of=frame.file, split=split) for name in names),
           folder.find_stem(frame.name, of=frame.file, split=split)]
  return next((image for image in found if image is not None), None)


def _labelled(image: str, frame: _Frame, reading: Reading) -> LabelledImage:
  instances = [instance for i, one in enumerate(frame.labels) if (instance := _instance(
    one if isinstance(one, dict) else {}, f'{frame.where}, labels[{i}]', reading)) is not None]
  size, video = frame.entry.get('size'), frame.entry.get('videoName')
  size = size if isinstance(size, dict) else {}
  return LabelledImage(image, output_name(image), split_of(posixpath.dirname(image)) or split_of(frame.file), instances,
                       image_size(size.get('height'), size.get('width')), video=video if is_text(video) else None)


def _instance(one: dict[str, Any], where: str, reading: Reading) -> dict[str, Any] | None:
  name, attributes = one.get('category'), one.get('attributes')
  if not is_text(name) or not name.strip():
    reading.leave_out(NO_CLASS, where)
  elif name in _REGIONS or name.startswith(('lane/', 'area/')):
    reading.leave_out(REGION, where)
  elif (fields := _fields(one, where, reading)) is not None:
    crowd = isinstance(attributes, dict) and attributes.get('crowd') is True
    return {'category': name.strip(), **fields, 'iscrowd': int(crowd)}
  return None


def _fields(one: dict[str, Any], where: str, reading: Reading) -> dict[str, Any] | None:
  """Return outline or box of a label; None if it is left out."""
  polygons = one.get('poly2d')
  if isinstance(polygons, list) and polygons and all(isinstance(polygon, dict) for polygon in polygons):
    return _outlines(polygons, where, reading)
  if isinstance(one.get('box2d'), dict):
    values = numbers([one['box2d'].get(key) for key in ('x1', 'y1', 'x2', 'y2')])
    corners = None if values is None else [*values[:2], values[2] - values[0], values[3] - values[1]]
    return sized(corners, where, reading)
  reading.leave_out(RUN_LENGTHS if isinstance(one.get('rle'), dict) else WITHOUT_AREA, where)
  return None


def _outlines(polygons: list[dict[str, Any]], where: str, reading: Reading) -> dict[str, Any] | None:
  outlines = [flat_points(polygon.get('vertices')) for polygon in polygons]
  if not all(polygon.get('closed') is True for polygon in polygons):
    reading.leave_out(WITHOUT_AREA, where)
  elif any('C' in str(polygon.get('types', '')) for polygon in polygons):
    reading.leave_out(CURVED, where)
  elif None in outlines or min(map(len, outlines)) < 6:
    reading.leave_out(NOT_FINITE if None in outlines else FEW_POINTS, where)
  else:
    return outlined(outlines)
  return None
