"""CVAT's xml of a video ("CVAT for video 1.1"): tracks, as the elements of images that "CVAT for images" has.

A track lists its object in each frame, the interpolated ones included; in those with outside="1" there is none. Frames
are the images frame_000000.PNG and so on, numbered as in the video; one that no track is in has no objects.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from rethink_tf.data.categories import as_text
from rethink_tf.data.prepare.source_folder import SourceFolder
from rethink_tf.errors import UserError

_FRAME = re.compile(r'frame_(\d{6,9})\.\w+', re.IGNORECASE)
_NUMBER = re.compile(r'\d{1,9}')


def frames(folder: SourceFolder, file: str, root: Element) -> list[Element]:
  """Return an <image> element for each frame of a file, with the shapes that are visible in it.

  Raises:
    UserError: the frames are not in the source, or those of several tasks cannot be told apart.
  """
  path, tracks = folder.path(file), root.findall('track')
  if len({track.get('task_id') for track in tracks}) > 1:
    raise UserError(f'{path}: has tracks of several tasks, whose frames have the same numbers: export each task')
  images = dict(_images(folder, file))
  if not images:
    raise UserError(f'{path}: has the tracks of a video, but no image frame_000000.PNG, … is beside it: export with '
                    "images, as 'CVAT for video 1.1' or 'COCO 1.0'")
  if len(places := sorted({posixpath.dirname(image) for image in images.values()})) > 1:
    raise UserError(f'{path}: has the tracks of one video, but frames are in {len(places)} folders '
                    f'({folder.describe(places)}): give the folder of one task')
  size = {side: found for side in ('width', 'height') if (found := root.findtext(f'.//original_size/{side}'))}
  elements = {number: Element('image', size | {'name': image}) for number, image in images.items()}
  for track in tracks:
    for shape in track:
      if shape.get('outside') != '1':
        text = shape.get('frame') or ''
        number = int(text) if _NUMBER.fullmatch(text) else -1
        name = f'frame_{number:06d}' if number >= 0 else f'frame {as_text(text[:20])}'
        shape.set('label', track.get('label') or '')
        shape.set('group_id', track.get('group_id') or '0')
        elements.setdefault(number, Element('image', {'name': name})).append(shape)
  if subset := next((found for track in tracks if (found := track.get('subset'))), None):
    for element in elements.values():
      element.set('subset', subset)
  return [elements[number] for number in sorted(elements)]


def _images(folder: SourceFolder, file: str) -> Iterator[tuple[int, str]]:
  """Yield number and image of the frames that are nearer to this file than to others of its name."""
  for image in folder.below(posixpath.dirname(file)):
    found = _FRAME.fullmatch(posixpath.basename(image))
    if found and _owner(folder, file, image) == posixpath.dirname(file):
      yield int(found[1]), image


def _owner(folder: SourceFolder, file: str, image: str) -> str:
  """Return the nearest folder above an image that has a file of the same name."""
  place, name = posixpath.dirname(image), posixpath.basename(file)
  while place and posixpath.join(place, name) not in folder:
    place = posixpath.dirname(place)
  return place
