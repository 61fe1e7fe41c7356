"""Masks of instances as PNG files:

  masks/NAME.png            one an image, a number for each instance and 0 for the background (16 bits, 8 bits, palette)
  masks/CLASS/NAME.png      the same for each class
  masks/NAME/CLASS_1.png    one an instance, not 0 where it is; CLASS_1 names the class, 1 or NAME_1 does not
  NAME/masks/1.png          the same beside NAME/images/NAME.png

A classes.json beside the first kind names the classes of its numbers: {"NAME": {"1": "cat", "2": "dog"}}. Without a
name, the class is 'object'. A folder with `mask` in its name is the folder of the masks.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image

from rethink_tf.data.categories import as_text, is_text
from rethink_tf.data.images import MAX_PIXELS, ImageError, check_pixels
from rethink_tf.data.prepare.layout import LabelledImage, Options, Reading, output_name, splits_by_folder
from rethink_tf.data.prepare.shapes import masked
from rethink_tf.data.prepare.source_folder import IMAGE_SUFFIXES, SourceFolder, split_of
from rethink_tf.data.problems import REPAIRED
from rethink_tf.errors import UserError, in_one_line

NAME, TITLE = 'masks', 'masks as PNG files'
OBJECT = 'object'  # the class, where nothing names one
OTHER_SIZE = 'mask of another size than the other masks of its image'
DAMAGED = 'mask that cannot be read'
NO_IMAGE = 'mask whose image is missing, or not the only one of its name'
_EXACTLY = re.compile(r'^masks?$', re.IGNORECASE)
_MASKS = re.compile(r'masks?$|^masks?', re.IGNORECASE)
_AFFIX = re.compile(r'[_-]?(instance|instances|inst|mask|masks|gt|label|labels)$', re.IGNORECASE)
# T1 of T1_1, black cat of black cat-02; cat of cat and of cat3
_CLASS = re.compile(r'(.*[^\W_])[\W_]+\d+|([^\d]*[^\W\d_])\d*')
_BLURRED = 'mask with grey levels at its edges (pixels of at least 128 are one object)'
_LEVELS = 8  # grey levels between 0 and 255: fewer may be objects of a few pixels
_VOC_BORDER = (224, 224, 192)  # colour of the index 255 in VOC's masks: pixels of no object
_BORDER = -1  # those pixels
_MAX_INSTANCES = 10_000  # of an image: one that is not a mask has more
_IGNORED = 255  # pixels of no object in masks of ADE20K, Cityscapes and others
_MAX_CLASSES = 255  # larger numbers are not classes
_PIECES, _PIECE = 3, 0.05  # of an object, from which it may be several; fraction of its pixels from which one counts
_OFTEN = 0.25  # fraction of the objects


def recognize(folder: SourceFolder) -> str | None:
  """Return the folder of the masks if there is one."""
  roots = _roots(folder)
  return f'{as_text(next(iter(roots.values())))}/ with {len(roots)} PNG files' if roots else None


def read(folder: SourceFolder, options: Options) -> Reading:
  """Match masks and images; masks are decoded one image at a time."""
  roots = _roots(folder)
  below = tuple({f'{root}/' for root in roots.values()})
  images = [image for image in folder.images if not image.startswith(below)]
  if not roots or not images:
    raise UserError(f'{folder.root}: {len(roots)} masks and {len(images)} images: put images/ beside masks/')
  problems, matched = [], defaultdict(list)
  by_stem: dict[str, list[str]] = defaultdict(list)
  for image in images:
    by_stem[posixpath.splitext(posixpath.basename(image))[0]].append(image)
  for file, root in roots.items():
    image, name = _match(file, root, by_stem)
    (matched[image] if image else problems).append((file, name))
  if not matched:
    raise UserError(f'{folder.root}: no mask has the name of an image, e.g. {as_text(next(iter(roots)))}: '
                    'masks/NAME.png belongs to images/NAME.jpg')
  classes = _read_classes(folder)
  splits = splits_by_folder(list(matched))
  reading = Reading(TITLE, iter(()), len(matched))
  if problems:
    reading.problems.add(NO_IMAGE, len(problems), as_text(problems[0][0]))
  unmasked = [image for image in images if image not in matched]
  if unmasked:
    reading.problems.add('image without a mask (not annotated)', len(unmasked), as_text(unmasked[0]))
  names = [(file, name) for masks in matched.values() for file, name in masks]
  nameless = [file for file, name in names if name == '']
  if nameless and len(nameless) < len(names):
    reading.problems.add(f'mask whose name has no class (taken for {OBJECT!r})', len(nameless), as_text(nameless[0]),
                         REPAIRED)
  reading.images = _images(folder, matched, splits, classes, reading)
  return reading


def in_another_format(folder: SourceFolder) -> str | None:
  """Return an image file in a folder of masks that is not a PNG file; None if there is none."""
  return next(iter(_roots(folder, IMAGE_SUFFIXES)), None)


def _roots(folder: SourceFolder, suffixes: tuple[str, ...] = ('.png',)) -> dict[str, str]:
  """Return {mask file: its folder of masks}, one named `masks` or else one with that in its name."""
  files = folder.with_suffix(*suffixes)
  for pattern in (_EXACTLY, _MASKS):
    found = {}
    for file in files:
      parts = file.split('/')[:-1]
      place = next((i for i, part in enumerate(parts) if pattern.search(part)), None)
      if place is not None:
        found[file] = '/'.join(parts[:place + 1])
    if found:
      return found
  return {}


def _match(file: str, root: str, by_stem: dict[str, list[str]]) -> tuple[str | None, str | None]:
  """Return the image of a mask, and the class of its only instance: '' for no class, None for numbered instances.

  If a named folder holds numbered instances, the class is given as f'={name}'.
  """
  below = posixpath.splitext(posixpath.relpath(file, root))[0].split('/')
  while len(below) > 1 and split_of(below[0]):
    below = below[1:]
  stem, folder, above = below[-1], below[-2] if len(below) > 1 else '', posixpath.basename(posixpath.dirname(root))
  split = split_of(posixpath.dirname(file))
  for name in filter(None, (folder, stem, _AFFIX.sub('', stem), above)):
    found = by_stem.get(name, ())
    if len(found) > 1:
      found = [image for image in found if split_of(posixpath.dirname(image)) == split]
    if len(found) == 1:
      if name in (folder, above):
        return found[0], _class(stem.removeprefix(name).lstrip('_- '))
      return found[0], f'={folder}' if folder else None
  return None, None


def _class(stem: str) -> str:
  """Return the class that the name of a file with one instance starts with: cat of cat_1; '' for none."""
  name = _CLASS.fullmatch(stem)
  found = (name[1] or name[2]) if name else ''
  return '' if found.isdigit() or _AFFIX.fullmatch(found) else found


def _read_classes(folder: SourceFolder) -> dict[str, dict[int, str]]:
  """Return the classes that classes.json gives to the numbers of each image."""
  found: dict[str, dict[int, str]] = {}
  for file in folder.named('classes.json'):
    content = folder.load_json(file)
    try:
      for name, classes in content.items():
        entries = {int(number): label for number, label in classes.items()}
        if not all(is_text(label) and label for label in entries.values()):
          raise ValueError('names should be strings')
        found[posixpath.splitext(posixpath.basename(name))[0]] = entries
    except (AttributeError, ValueError, TypeError) as error:
      raise UserError(f'{folder.path(file)}: should be {{"NAME": {{"1": "cat"}}}}, the class of each number in the '
                      f'mask of each image: {in_one_line(error)}') from error
  return found


class _Suspicions:
  """Collects hints, over all masks, that the numbers in them are not those of instances."""

  def __init__(self) -> None:
    self._masks = self._objects = self._in_pieces = self._ignored = self._largest = 0
    self._gaps: list[str] = []
    self._examples: dict[str, str] = {}

  def add(self, file: str, numbers: list[int], named: bool) -> None:
    """Record the numbers of a mask, ascending and without 0; named: their classes are known."""
    instances = [number for number in numbers if number != _IGNORED]
    self._masks += 1
    if instances:
      self._largest = max(self._largest, instances[-1])
      if len(instances) < len(numbers):
        self._ignored += 1
        self._examples.setdefault('ignored', as_text(file))
      # Numbers that are spread over the grey levels, 80, 160 and 240, are those of instances.
      spread = len(instances) > 1 and math.gcd(*instances) == instances[0] > 1
      if instances != list(range(1, len(instances) + 1)) and not named and not spread:
        more = ', ...' if len(instances) > 5 else ''
        self._gaps.append(f'{as_text(file)}: {", ".join(map(str, instances[:5]))}{more}')

  def add_object(self, file: str, number: int, mask: np.ndarray) -> None:
    """Record the pixels of an object, bool [h, w]."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    within = mask[y:y + height, x:x + width].astype(np.uint8)
    areas = cv2.connectedComponentsWithStats(within)[2][1:, cv2.CC_STAT_AREA]
    self._objects += 1
    if np.count_nonzero(areas >= _PIECE * areas.sum()) >= _PIECES:
      self._in_pieces += 1
      self._examples.setdefault('pieces', f'{as_text(file)}, number {number}')

  def notes(self) -> list[str]:
    """Return notes on what the user should check, for the report."""
    found = []
    if self._ignored and self._largest <= _IGNORED // 3:
      found.append(f'{self._ignored} of {self._masks} masks have the number {_IGNORED} beside small ones (e.g. '
                   f'{self._examples["ignored"]}), which is taken for an object: if it stands for pixels of no object, '
                   'set them to 0')
    if self._largest <= _MAX_CLASSES and len(self._gaps) > self._masks / 2:
      found.append(f'the numbers of {len(self._gaps)} of {self._masks} masks have gaps (e.g. {self._gaps[0]}): if they '
                   'are classes, all objects of a class in an image are taken for one: give each a number of its own')
    if self._in_pieces > _OFTEN * self._objects:
      found.append(f'{self._in_pieces} of {self._objects} objects are in three or more pieces (e.g. '
                   f'{self._examples["pieces"]}): if each piece is an object, give it a number of its own')
    return found


def _images(folder: SourceFolder, matched: dict[str, list[tuple[str, str | None]]], splits: dict[str, str | None],
            classes: dict[str, dict[int, str]], reading: Reading) -> Iterator[LabelledImage]:
  suspicions = _Suspicions()
  for image, masks in matched.items():
    size, instances = None, []
    named = classes.get(posixpath.splitext(posixpath.basename(image))[0], {})
    for file, label in masks:
      try:
        pixels = _decode(folder.path(file), file)
      except ImageError as error:
        reading.leave_out(DAMAGED, str(error))
        continue
      if size is not None and pixels.shape != size:
        reading.leave_out(OTHER_SIZE, file)
        continue
      size = pixels.shape
      if (pixels == _BORDER).any():
        reading.leave_out("mask with VOC's border (pixels of no object)", file, outcome=REPAIRED)
        pixels[pixels == _BORDER] = 0
      if _is_blurred(pixels):
        reading.leave_out(_BLURRED, file, outcome=REPAIRED)
        pixels = np.where(pixels < 128, 0, 255)
      if label is not None and not label.startswith('='):
        instances += [{'category': label or OBJECT, **masked(pixels > 0)}] if pixels.any() else []
        continue
      numbers = np.unique(pixels)
      if len(numbers) > _MAX_INSTANCES:
        reading.leave_out(f'mask of more than {_MAX_INSTANCES} numbers, as an image would be', file)
        continue
      numbers = numbers[numbers > 0].tolist()
      suspicions.add(file, numbers, bool(named))
      for number in numbers:
        name, mask = label[1:] if label else named.get(number, OBJECT), pixels == number
        instances.append({'category': name, **masked(mask)})
        suspicions.add_object(file, number, mask)
    yield LabelledImage(image, output_name(image), splits[image], instances, size)
  reading.notes += suspicions.notes()


def _decode(path: str, name: str) -> np.ndarray:
  """Return the numbers of a mask, [h, w]: the indices of a palette, not its colours; _BORDER where VOC has its own."""
  try:
    with Image.open(path, formats=('PNG',)) as image:
      check_pixels(image.size[::-1], name, MAX_PIXELS)
      pixels = np.array(image)
      palette = image.getpalette() if image.mode == 'P' else None
  except ImageError:
    raise
  except Exception as error:  # damaged files raise any type of exception in Pillow
    raise ImageError(f'{as_text(name)}: cannot be decoded: {in_one_line(error)}') from error
  if palette and tuple(palette[3 * 255:]) == _VOC_BORDER:
    return np.where(pixels == 255, _BORDER, pixels.astype(np.int64))
  if pixels.ndim == 3:  # a mask that was saved as RGB: a number for each colour
    if pixels.shape[2] in (2, 4):
      pixels = pixels[..., :-1]
    if (pixels == pixels[..., :1]).all():
      pixels = pixels[..., :1]
    pixels = pixels.astype(np.int64) @ (256 ** np.arange(pixels.shape[2])[::-1])
  return pixels.astype(np.int64)


def _is_blurred(pixels: np.ndarray) -> bool:
  """Whether a mask shows one object, 255, with grey levels at its edges; several objects would have pixels inside."""
  grey = (pixels > 0) & (pixels < 255)
  if pixels.max() != 255 or len(np.unique(pixels[grey])) < _LEVELS:
    return False
  square = pixels[:-1, :-1]
  within = (square == pixels[1:, :-1]) & (square == pixels[:-1, 1:]) & grey[:-1, :-1]
  return np.count_nonzero(within) < np.count_nonzero(grey) / 4
