"""Masks of instances as PNG files:

  masks/NAME.png            one an image, a number for each instance and 0 for the background (16 bits, 8 bits, palette)
  masks/CLASS/NAME.png      the same for each class
  masks/NAME/CLASS_1.png    one an instance, not 0 where it is; CLASS_1 names the class, 1 alone does not
  NAME/masks/1.png          the same beside NAME/images/NAME.png

A classes.json beside the first kind names the classes of its numbers: {"NAME": {"1": "cat", "2": "dog"}}. Without a
name, the class is 'object'. A folder with `mask` in its name is the folder of the masks.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from PIL import Image

from rethink_tf.data.categories import as_text, is_text
from rethink_tf.data.images import MAX_PIXELS, ImageError, check_pixels
from rethink_tf.data.prepare.layout import LabelledImage, Options, Reading, output_name, splits_by_folder
from rethink_tf.data.prepare.shapes import masked
from rethink_tf.data.prepare.source_folder import SourceFolder, split_of
from rethink_tf.errors import UserError, in_one_line

NAME, TITLE = 'masks', 'masks as PNG files'
OBJECT = 'object'  # the class, where nothing names one
OTHER_SIZE = 'mask of another size than the other masks of its image'
DAMAGED = 'mask that cannot be read'
NO_IMAGE = 'mask whose image is missing, or not the only one of its name'
_MASKS = re.compile(r'masks?$|^masks?', re.IGNORECASE)
_AFFIX = re.compile(r'[_-]?(instance|instances|inst|mask|masks|gt|label|labels)$', re.IGNORECASE)
_CLASS = re.compile(r'([^\d]*[^\W\d_])[\W_]*\d*')  # cat, cat_1, black cat-02
_MAX_INSTANCES = 10_000  # of an image: one that is no mask has more


def recognize(folder: SourceFolder) -> str | None:
  """Return the folder of the masks."""
  masks = [file for file in folder.with_suffix('.png') if _root(file) is not None]
  return f'{as_text(_root(masks[0]))}/ with {len(masks)} PNG files' if masks else None


def read(folder: SourceFolder, options: Options) -> Reading:
  """Match masks and images; masks are decoded one image at a time."""
  masks = [file for file in folder.with_suffix('.png') if _root(file) is not None]
  images = [image for image in folder.images if _root(image) is None]
  if not masks or not images:
    raise UserError(f'{folder.root}: {len(masks)} masks and {len(images)} images: put images/ beside masks/')
  problems, matched = [], defaultdict(list)
  by_stem: dict[str, list[str]] = defaultdict(list)
  for image in images:
    by_stem[posixpath.splitext(posixpath.basename(image))[0]].append(image)
  for file in masks:
    image, name = _match(file, by_stem)
    (matched[image] if image else problems).append((file, name))
  if not matched:
    raise UserError(f'{folder.root}: no mask has the name of an image, e.g. {as_text(masks[0])}: masks/NAME.png '
                    'belongs to images/NAME.jpg')
  classes = _read_classes(folder)
  splits = splits_by_folder(list(matched))
  reading = Reading(TITLE, iter(()), len(matched))
  if problems:
    reading.problems.add(NO_IMAGE, len(problems), as_text(problems[0][0]))
  unmasked = [image for image in images if image not in matched]
  if unmasked:
    reading.problems.add('image without a mask (not annotated)', len(unmasked), as_text(unmasked[0]))
  reading.images = _images(folder, matched, splits, classes, reading)
  return reading


def _root(file: str) -> str | None:
  """Return the folder of masks in the path of a file; None if it is in none."""
  parts = file.split('/')
  for i, part in enumerate(parts[:-1]):
    if _MASKS.search(part):
      return '/'.join(parts[:i + 1])
  return None


def _match(file: str, by_stem: dict[str, list[str]]) -> tuple[str | None, str | None]:
  """Return the image of a mask; and the class of the one instance in it, '' for none, or None for numbered instances.

  Numbered instances of a folder with a name are of the class f'={name}'.
  """
  root = _root(file)
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
        return found[0], _class(stem)
      return found[0], f'={folder}' if folder else None
  return None, None


def _class(stem: str) -> str:
  """Return the class that the name of a file with one instance starts with: cat of cat_1; '' for none."""
  name = _CLASS.fullmatch(stem)
  return _AFFIX.sub('', name[1]) if name else ''


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


def _images(folder: SourceFolder, matched: dict[str, list[tuple[str, str | None]]], splits: dict[str, str | None],
            classes: dict[str, dict[int, str]], reading: Reading) -> Iterator[LabelledImage]:
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
      if label is not None and not label.startswith('='):
        instances += [{'category': label or OBJECT, **masked(pixels > 0)}] if pixels.any() else []
        continue
      numbers = np.unique(pixels)
      if len(numbers) > _MAX_INSTANCES:
        reading.leave_out(f'mask of more than {_MAX_INSTANCES} numbers, as an image would be', file)
        continue
      for number in numbers[numbers > 0].tolist():
        name = label[1:] if label else named.get(number, OBJECT)
        instances.append({'category': name, **masked(pixels == number)})
    yield LabelledImage(image, output_name(image), splits[image], instances, size)


def _decode(path: str, name: str) -> np.ndarray:
  """Return the numbers of a mask, [h, w]: the indices of a palette, not its colours."""
  try:
    with Image.open(path, formats=('PNG',)) as image:
      check_pixels(image.size[::-1], name, MAX_PIXELS)
      pixels = np.asarray(image)
  except ImageError:
    raise
  except Exception as error:  # damaged files raise any type of exception in Pillow
    raise ImageError(f'{as_text(name)}: cannot be decoded: {in_one_line(error)}') from error
  if pixels.ndim == 3:  # a mask that was saved as RGB: a number for each colour
    if pixels.shape[2] in (2, 4):
      pixels = pixels[..., :-1]
    pixels = pixels.astype(np.int64) @ (256 ** np.arange(pixels.shape[2])[::-1])
  return pixels.astype(np.int64)
