"""VoTT's JSON: the export of a project, or the files of its assets beside the project itself.

An asset is an image with regions in pixels; one that was visited and has none is an image without objects.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

from rethink_tf.data.categories import as_text, is_text, shorten
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
from rethink_tf.data.prepare.shapes import flat_pairs, numbers, outlined
from rethink_tf.data.prepare.source_folder import EXAMINED, JsonShape, SourceFolder, split_of
from rethink_tf.data.problems import REPAIRED

NAME, TITLE = 'vott', "VoTT's JSON"
NOT_VISITED = 'image that was not visited in VoTT (not annotated yet)'
SEVERAL = 'region with several tags (an object of each, as in the exports of VoTT)'
UNREAD = '{count} files of single assets, e.g. {file}, are not read beside the export {export}'
_VISITED = 1  # AssetState of an image without regions that somebody has looked at


def recognize(folder: SourceFolder) -> str | None:
  """Return the exports of projects, or the files of assets."""
  files = [file for file in folder.with_suffix('.json')[:EXAMINED] if _kind(folder.json_shape(file))]
  return folder.describe(files) if files else None


def read(folder: SourceFolder, options: Options) -> Reading:
  """Read the exports of projects or, without any, the files of assets and the project that lists the others."""
  kinds = {file: kind for file in folder.with_suffix('.json', '.vott') if (kind := _kind(folder.json_shape(file)))}
  files = chosen(folder, list(kinds), options, 'JSON of VoTT')
  exports, assets = ([file for file in files if kinds[file] == kind] for kind in ('export', 'asset'))
  reading = Reading(TITLE, iter(()), len(files))
  if exports and assets:
    reading.notes.append(UNREAD.format(count=len(assets), file=as_text(assets[0]), export=as_text(exports[0])))
  # Assets before projects: a project lists them, too, but without their regions.
  reading.images = _images(folder, exports or sorted(files, key=lambda file: kinds[file] == 'project'), reading)
  return reading


def _kind(shape: Any) -> str | None:
  """Return what a file of VoTT is: 'export', 'asset', 'project'; None for others."""
  keys = {*shape.keys} if isinstance(shape, JsonShape) else set()
  if {'asset', 'regions'} <= keys:
    return 'asset'
  return None if not {'assets', 'tags'} <= keys else 'project' if 'sourceConnection' in keys else 'export'


def _entries(file: str, content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yield the file and objects with "asset" and "regions", the latter not in a project."""
  assets = content.get('assets') if isinstance(content, dict) else None
  entries = assets.values() if isinstance(assets, dict) else () if assets else [content]
  yield from ((file, entry if isinstance(entry, dict) and 'asset' in entry else {'asset': entry}) for entry in entries)


def _images(folder: SourceFolder, files: list[str], reading: Reading) -> Iterator[LabelledImage]:
  used: set[str] = set()
  not_visited: dict[str, str] = {}  # image -> the place of its entry
  for file, entry in (entry for each in each_json(folder, files, reading) for entry in _entries(*each)):
    asset, regions = (value if isinstance(value, kind) else kind() for value, kind in (
      (entry['asset'], dict), (entry.get('regions'), list)))
    where = f'{file}, {shorten(asset.get("name"))}'
    image = next((image for name in ('path', 'name') if (image := folder.find_image(asset.get(name), of=file))), None)
    if not regions and asset.get('state') != _VISITED:
      not_visited.setdefault(image or where, where)
    elif claim(image, used, reading, where, len(regions)):
      size = asset.get('size') if isinstance(asset.get('size'), dict) else {}
      instances = [instance for i, region in enumerate(regions)
                   for instance in _instances(region, f'{where}, regions[{i}]', reading)]
      yield LabelledImage(image, output_name(image), split_of(posixpath.dirname(image)), instances,
                          image_size(size.get('height'), size.get('width')))
  left = [where for image, where in not_visited.items() if image not in used]
  if left:
    reading.problems.add(NOT_VISITED, len(left), left[0])
  count_unannotated(folder, used | not_visited.keys(), reading, NOT_NAMED)


def _instances(region: Any, where: str, reading: Reading) -> list[dict[str, Any]]:
  """Return an object for each tag of a region."""
  tags = region.get('tags') if isinstance(region, dict) else None
  names = dict.fromkeys(tag.strip() for tag in tags if is_text(tag) and tag.strip()) if isinstance(tags, list) else {}
  if not names:
    reading.leave_out(NO_CLASS, where)
    return []
  fields = _fields(region, where, reading)
  if fields is None:
    return []
  reading.leave_out(SEVERAL, where, int(len(names) > 1), REPAIRED)
  return [{'category': name, **fields} for name in names]


def _fields(region: dict[str, Any], where: str, reading: Reading) -> dict[str, Any] | None:
  """Return box and outline of a region; None if it is left out."""
  kind, place = region.get('type'), region.get('boundingBox')
  if kind == 'POLYGON':
    points = flat_pairs(region.get('points'))
    if points is not None and len(points) >= 6:
      return outlined([points])
    reading.leave_out(NOT_FINITE if points is None else FEW_POINTS, where)
  elif kind in ('RECTANGLE', 'SQUARE'):
    values = numbers([place.get(name) for name in ('left', 'top', 'width', 'height')]) if isinstance(
      place, dict) else None
    return sized(values, where, reading)
  else:
    reading.leave_out(f'{WITHOUT_AREA} ({shorten(kind)})', where)
  return None
