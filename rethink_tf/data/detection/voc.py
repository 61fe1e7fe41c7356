"""Images with annotations in PASCAL VOC's layout: one or several years of VOC, or any data set in this layout."""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import gin
import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.data.categories import Category, is_text, shorten, warn_of_similar
from rethink_tf.data.detection.annotation_reader import AnnotationReader
from rethink_tf.data.detection.annotations import AnnotatedImages, Annotations, refuse_fractions
from rethink_tf.data.detection.voc_xml import MAX_BYTES, VocAnnotation, XmlError, parse, too_large
from rethink_tf.data.folders import check_one_path, list_names
from rethink_tf.data.image_notes import ImageNotes
from rethink_tf.data.images import MAX_PIXELS, ImageError, decode, read_file
from rethink_tf.data.prepare import recognition
from rethink_tf.data.subset import select
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.storage.files import open_regular
from rethink_tf.structures import Example, LeftOut

VOC_CLASSES = ('aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable',
               'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor')
_EXTENSIONS = ('.jpg', '.jpeg', '.jfif', '.png', '.bmp', '.webp')
_READERS = 16  # threads; on gs:// they are limited by latency
_SHOWN = 3  # examples in a message
_MAX_LIST_BYTES = 1 << 28  # of an image set


class _Entry(NamedTuple):
  """An image of an image set."""

  name: str  # without extension, as listed in the image set
  xml: str  # path of its annotation
  image: str | None  # path of the image file relative to the data folder, None if it is missing
  folder: str  # of the images, relative to the data folder
  listing: dict[str, list[str]]  # name without extension -> image files in that folder


def _choose_image(entry: _Entry, annotation: VocAnnotation | XmlError) -> tuple[_Entry, bool]:
  """Choose the file that the annotation names, if the name of the image fits several files or none.

  Returns the entry, and whether the choice remains arbitrary.
  """
  files = entry.listing.get(entry.name, [])
  named = '' if isinstance(annotation, XmlError) else annotation.file_name
  found = named in files or not files and named in entry.listing.get(os.path.splitext(named)[0], ())
  if found and is_text(named):
    return entry._replace(image=os.path.join(entry.folder, named)), False
  return entry, len(files) > 1


@gin.register('voc')
class VocSource(AnnotatedImages):
  """PASCAL VOC (section 5.2), or any data set with the same files: Annotations/, ImageSets/Main/, JPEGImages/.

  Attributes: those of `CocoSource`; images with a damaged annotation are left out of training too. The id of an image
  is the number formed by the digits of its name (2008000001 for 2008_000001), or its position in the lists if these
  numbers are not unique.
  """

  def __init__(self, data_dir: str, sets: Sequence[str] = ('VOC2007/trainval', 'VOC2012/train'),
               classes: Sequence[str] | None = VOC_CLASSES, use_difficult: bool = False, fraction: float = 1.0,
               num_images: int | None = None, subset_seed: int = 0, training: bool = False,
               max_pixels: int = MAX_PIXELS, filter_empty: bool = True) -> None:
    """Read image sets and annotations; images are read by `load`.

    Args:
      data_dir: VOCdevkit or its parent folder, local or gs://; for a data set without years, the folder itself.
      sets: image sets to concatenate, in this order: '<year folder>/<set>', or '<set>' without years. An image that is
        listed twice counts once.
      classes: class k is classes[k - 1]; None: all names in the annotations of these folders, sorted, and corners
        with fractions are continuous coordinates, as CVAT and VoTT write them.
      use_difficult: train on objects marked difficult too (as Detectron2 does; Detectron, which the paper follows, does
        not). The ground truth of an evaluation keeps the mark in any case.
      fraction, num_images, subset_seed: a seeded, nested subset, see `subset.subset`.
      training: drop images without a usable box, and those whose annotation is missing or damaged.
      max_pixels: limit of height x width of an image in the annotations.
      filter_empty: False trains on images without a usable box too: all of them is background.

    Raises:
      UserError: a set is missing or empty, nothing in it is usable, or an annotation needed for evaluation is missing
        or damaged.
    """
    check_one_path('voc.data_dir', data_dir)
    data_dir, sets = _devkit(os.path.expanduser(data_dir), sets)
    self._folder, self._max_pixels = data_dir, max_pixels
    self.name = f'{os.path.basename(os.path.normpath(data_dir))}/{"+".join(sets)}'
    self.notes = ImageNotes(self.name)
    entries, parsed = self._read_annotations(_list_entries(data_dir, sets, self.name), training,
                                              own=classes is None)
    if classes is None:
      classes = _find_classes(data_dir, sets, max_pixels)
    self.categories = tuple(Category(k, name) for k, name in enumerate(_check_classes(classes), start=1))
    self.num_classes, self.num_keypoints, self.has_masks = len(self.categories), 0, False

    ids = _number([entry.name for entry in entries])
    order = np.argsort(ids)
    entries, parsed = [entries[i] for i in order], [parsed[i] for i in order]
    sizes = np.array([annotation.size or self._measure(entry)
                      for entry, annotation in zip(entries, parsed, strict=True)], np.int32)
    reader = self._collect(ids[order], parsed, use_difficult)
    self._table = Annotations(reader, ids[order], sizes, self.categories,
                              [entry.image or f'{entry.name}.jpg' for entry in entries])
    refuse_fractions(self.name, self.problems, len(reader))
    self._check_names(parsed)

    self._positions = select(self.name, ids[order], self._table.num_usable, training, fraction, num_images, subset_seed,
                             filter_empty=filter_empty)
    self.image_ids, self.sizes = ids[order][self._positions], sizes[self._positions]
    self.file_names = [entries[i].image for i in self._positions]
    self.num_instances = self._table.num_usable[self._positions]
    if training:
      self._table.warn_of_unused_classes(self.name, self._positions)
    logging.info('%s: %d images, %d instances, %d classes', self.name, len(self._positions), self.num_instances.sum(),
                 self.num_classes)

  def load(self, i: int) -> Example:
    """Return image i with its usable annotations; the masks are the full boxes.

    Raises:
      ImageError: the file is missing, damaged or of another size than annotated.
    """
    image = decode(self.read(i), self.file_names[i], tuple(self.sizes[i].tolist()), self._max_pixels,
                   self.notes)
    return self._table.example(self._positions[i], image)

  def path(self, i: int) -> str:
    """Return the path of the file of image i."""
    return os.path.join(self._folder, self.file_names[i])

  def read(self, i: int) -> bytes:
    """Return the bytes of the file of image i; raises ImageError if it cannot be read."""
    return self._read_image(self.file_names[i])

  def image_annotations(self, i: int) -> list[dict[str, Any]]:
    """Return the annotations of image i as COCO json objects; difficult objects have "difficult" and "iscrowd" set."""
    return [entry | {'iscrowd': difficult, 'difficult': difficult} for entry in self._table.to_json(self._positions[i])
            for difficult in (int(self._difficult[entry['id'] - 1]),)]

  def _read_annotations(self, entries: list[_Entry], training: bool,
                        own: bool) -> tuple[list[_Entry], list[VocAnnotation]]:
    """Return the usable entries and their annotations; in training the others are dropped and counted."""
    results = _read_all([entry.xml for entry in entries], self._max_pixels, own)
    damaged = [str(result) for result in results if isinstance(result, XmlError)]
    if damaged and (not training or len(damaged) == len(results)):
      raise UserError(damaged[0] + (f' ({len(damaged)} of {len(results)} annotations are damaged)'
                                    if len(damaged) > 1 else ''))
    entries, arbitrary = map(list, zip(*map(_choose_image, entries, results), strict=True))
    if any(arbitrary):
      logging.warning('%s: %d images have several files and no <filename> that names one of them, e.g. %s is used',
                      self.name, sum(arbitrary), entries[arbitrary.index(True)].image)
    missing = [entry.name for entry in entries if entry.image is None]
    if len(missing) == len(entries):
      raise UserError(f'{self.name}: none of the {len(missing)} images was found (e.g. {missing[0]}.jpg): unpack them '
                      'into JPEGImages/, next to Annotations/')
    left_out = {}
    for what, reason, examples in (('annotations are damaged', 'with a damaged annotation', damaged),
                                   ('images are missing', 'missing', missing)):
      if examples:
        some = '; '.join(examples[:_SHOWN])
        left_out[f'{reason}, e.g. {some}'] = len(examples)
        logging.warning('%s: %d of %d %s and left out, e.g. %s', self.name, len(examples), len(entries), what, some)
    self.left_out = LeftOut(left_out, len(entries))
    usable = [(entry, result) for entry, result in zip(entries, results, strict=True)
              if not isinstance(result, XmlError) and entry.image]
    if not usable:
      raise UserError(f'{self.name}: no image has both an image file and an annotation')
    return [entry for entry, _ in usable], [result for _, result in usable]

  def _collect(self, image_ids: np.ndarray, parsed: list[VocAnnotation], use_difficult: bool) -> AnnotationReader:
    """Collect all objects as columns; difficult ones as crowds, which are not trained on, unless `use_difficult`."""
    numbers = {category.name: category.id for category in self.categories}
    reader, self._difficult = AnnotationReader(), []
    for image_id, annotation in zip(image_ids.tolist(), parsed, strict=True):
      for name, difficult, (y0, x0, y1, x1), repairs in annotation.objects:
        for repair in repairs:
          reader.note(repair, len(reader))
        self._difficult.append(difficult)
        reader.add({'id': len(self._difficult), 'image_id': image_id, 'category_id': numbers.get(name, 0),
                    'bbox': [x0, y0, x1 - x0, y1 - y0], 'area': (x1 - x0) * (y1 - y0),
                    'iscrowd': int(difficult and not use_difficult),
                    'segmentation': [[x0, y0, x0, y1, x1, y1, x1, y0]]})
    return reader

  def _check_names(self, parsed: list[VocAnnotation]) -> None:
    used = {object_.name for annotation in parsed for object_ in annotation.objects}
    known = {category.name for category in self.categories}
    if used and not used & known:
      raise UserError(f'{self.name}: none of its objects ({_some(sorted(used))}) is one of voc.classes '
                      f'({_some(sorted(known))}): set voc.classes = None to use all names that occur')
    if used - known:
      logging.warning('%s: names that are not in voc.classes: %s', self.name, _some(sorted(used - known)))
      warn_of_similar(sorted(used | known), self.name)

  def _measure(self, entry: _Entry) -> tuple[int, int]:
    """Return height and width of the image file, if the annotation does not contain them."""
    try:
      return decode(self._read_image(entry.image), entry.image, max_pixels=self._max_pixels).shape[:2]
    except ImageError as error:
      raise UserError(f'{entry.xml}: has no <size>, and {error}: remove it from the image set') from error

  def _read_image(self, name: str) -> bytes:
    return read_file(os.path.join(self._folder, name), name)


def _devkit(data_dir: str, sets: Sequence[str]) -> tuple[str, tuple[str, ...]]:
  """Return the folder that contains the years, and the validated names of the sets."""
  sets = (sets,) if isinstance(sets, str) else tuple(sets)
  if not sets:
    raise UserError("voc.sets is empty: name image sets, such as ('VOC2007/trainval', 'VOC2012/train')")
  for name in sets:
    if not isinstance(name, str) or not re.fullmatch(r'[\w. -]+(/[\w. -]+)?', name) or '..' in name:
      raise UserError(f"voc.sets: {name!r} should be '<year folder>/<set>' or '<set>', such as 'VOC2007/trainval'")
  nested = os.path.join(data_dir, 'VOCdevkit')
  year = sets[0].rpartition('/')[0]
  if year and not tf.io.gfile.isdir(os.path.join(data_dir, year)) and tf.io.gfile.isdir(os.path.join(nested, year)):
    data_dir = nested
  return data_dir, sets


def _list_entries(data_dir: str, sets: Sequence[str], name: str) -> list[_Entry]:
  """Return the images of all sets, each once."""
  listed: dict[tuple[str, str], _Entry] = {}
  repeated, folders = 0, {}
  for full_name in sets:
    year, _, image_set = full_name.rpartition('/')
    if year not in folders:
      folders[year] = _list_images(os.path.join(data_dir, year, 'JPEGImages'), data_dir)
    folder = os.path.join(year, 'JPEGImages')
    for stem in _read_image_set(os.path.join(data_dir, year, 'ImageSets', 'Main', f'{image_set}.txt'), data_dir):
      shorter, extension = os.path.splitext(stem)
      if stem not in folders[year] and extension.lower() in _EXTENSIONS:
        stem = shorter
      repeated += (year, stem) in listed
      files = folders[year].get(stem)
      listed[year, stem] = _Entry(stem, os.path.join(data_dir, year, 'Annotations', f'{stem}.xml'),
                                  files and os.path.join(folder, files[0]), folder, folders[year])
  if repeated:
    logging.warning('%s: %d images are listed more than once and count once', name, repeated)
  return list(listed.values())


def _read_image_set(file: str, root: str) -> list[str]:
  """Read the names in a file of ImageSets/Main, one a line; in files of a class (dog_train.txt) with -1, 0 or 1.

  root: the data folder, for messages.
  """
  try:
    with open_regular(file) as stream:
      if stream.size() > _MAX_LIST_BYTES:
        raise UserError(f'{file}: {stream.size():,} bytes are too many for a list of images')
      lines = [line.strip() for line in stream.read().decode('utf-8-sig').splitlines() if line.strip()]
  except tf.errors.OpError as error:
    others = [os.path.basename(path) for path in sorted(tf.io.gfile.glob(os.path.join(os.path.dirname(file), '*.txt')))]
    raise UserError(f'{file}: no such image set' + (f' (found: {_some(others)})' if others else '')
                    + f'{_held(root)}. For PASCAL '
                    'VOC, unpack the archives of http://host.robots.ox.ac.uk/pascal/VOC/ into one folder and give its '
                    'VOCdevkit with --data_dir; for your own images, set train/voc.sets and eval/voc.sets') from error
  except UnicodeDecodeError as error:
    raise UserError(f'{file}: not a text file of names: {in_one_line(error)}') from error
  if not lines:
    raise UserError(f'{file}: lists no images')
  marked = [re.fullmatch(r'(\S.*?)\s+(?:-1|0|1)', line) for line in lines]
  names = [match.group(1) for match in marked] if all(marked) else lines
  for name in names:
    if '/' in name or '\\' in name or name in ('.', '..') or not is_text(name):
      raise UserError(f'{file}: {shorten(name)} should be the name of an image without folder and extension')
  return names


def _list_images(folder: str, root: str) -> dict[str, list[str]]:
  """Return name without extension -> names of the files, by one listing of the folder. root: as _read_image_set."""
  try:
    files = sorted(list_names(folder))
  except tf.errors.OpError as error:
    raise UserError(f'{folder}: no such folder; it should contain the images{_held(root)}') from error
  listing: dict[str, list[str]] = {}
  for wanted in _EXTENSIONS:
    for file in files:
      stem, extension = os.path.splitext(file)
      if extension.lower() == wanted:
        listing.setdefault(stem, []).append(file)
  return listing


def _held(root: str) -> str:
  """Return a further sentence for a message: what a data folder holds instead of the expected files."""
  held = recognition.describe(root) if '://' not in root and os.path.isdir(root) else None
  return f'. {held}' if held else ''


def _read_all(files: list[str], max_pixels: int, own: bool = False) -> list[VocAnnotation | XmlError]:
  """Read annotation files; an XmlError takes the place of each unusable one."""
  def read(file: str) -> VocAnnotation | XmlError:
    try:
      with open_regular(file) as stream:
        if stream.size() > MAX_BYTES:
          raise too_large(stream.size(), file)
        annotation = parse(stream.read(), file, own)
      if annotation.size is not None and annotation.size[0] * annotation.size[1] > max_pixels:
        raise XmlError(f'{file}: <size> is {annotation.size[1]}x{annotation.size[0]}, more than voc.max_pixels = '
                       f'{max_pixels:,}')
      return annotation
    except tf.errors.NotFoundError:
      return XmlError(f'{file}: no such annotation')
    except tf.errors.OpError as error:
      return XmlError(f'{file}: cannot be read: {in_one_line(error)}')
    except XmlError as error:
      return error

  with ThreadPoolExecutor(_READERS) as pool:
    return list(pool.map(read, files))


def _find_classes(data_dir: str, sets: Sequence[str], max_pixels: int) -> list[str]:
  """Return all names in the annotations of the folders, of every set, so that training and test classes agree."""
  years = sorted({name.rpartition('/')[0] for name in sets})
  folders = [os.path.join(data_dir, year, 'Annotations') for year in years]
  files = [os.path.join(folder, name) for folder in folders for name in sorted(list_names(folder))
           if name.endswith('.xml')]
  names = sorted({object_.name for annotation in _read_all(files, max_pixels) if not isinstance(annotation, XmlError)
                  for object_ in annotation.objects})
  if not names:
    raise UserError(f'{data_dir}: voc.classes is None and no annotation has an object')
  warn_of_similar(names, data_dir)
  return names


def _check_classes(classes: Sequence[str]) -> tuple[str, ...]:
  classes = tuple(classes)
  if not classes or len(set(classes)) < len(classes) or not all(isinstance(name, str) and name for name in classes):
    raise UserError(f'voc.classes = {_some(classes)}: should be unique names, or None for all that occur')
  return classes


def _number(names: list[str]) -> np.ndarray:
  """Return image ids, int64 [N]: the digits of the names if these are unique, else 1, 2, ..."""
  digits = [''.join(re.findall('[0-9]', name)) for name in names]
  if all(0 < len(number) <= 18 for number in digits):
    ids = np.array([int(number) for number in digits], np.int64)
    if len(np.unique(ids)) == len(ids):
      return ids
  return np.arange(1, len(names) + 1)


def _some(names: Sequence[Any]) -> str:
  shown = ', '.join(str(name)[:40] for name in names[:5])
  return shown + (', ...' if len(names) > 5 else '')
