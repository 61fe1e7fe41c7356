"""Images with one class each, in folders: one folder per class, or ImageNet's flat validation folder with a list."""

import hashlib
import os
import posixpath
from collections.abc import Iterable, Sequence

import gin
import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.data.categories import Category, as_text, shorten
from rethink_tf.data.folders import list_names
from rethink_tf.data.images import MAX_PIXELS, decode, read_file
from rethink_tf.data.subset import subset, whose_images
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.storage.files import open_regular

IMAGE_EXTENSIONS = ('.jpg', '.jpeg', '.jfif', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff')
# Names of the lists of a flat folder: Caffe's, Kaggle's, and that of TensorFlow's ImageNet scripts.
LABELS_FILES = ('{split}.txt', 'LOC_{split}_solution.csv', 'imagenet_2012_validation_synset_labels.txt')
_MAX_LIST_BYTES = 1 << 30


@gin.register('image_folder')
class ImageFolder:
  """A split with a folder per class (`train/cat/1.jpg`), or a flat one with a list of labels.

  Class k of 0..L - 1 is the k-th class folder of `class_split`, sorted by name (ImageNet's usual order: ascending
  WordNet ids). Images may be at any depth below their class folder.

  A flat folder (ImageNet's `val`) needs a list, one image per line, in one of three formats:
    `ILSVRC2012_val_00000001.JPEG 65`                       name, class folder or 0-based class number (Caffe)
    `ILSVRC2012_val_00000001,n01751748 111 108 370 389 …`   with a header; boxes are ignored (LOC_val_solution.csv)
    `n01751748`                                             class folders only, in the order of the sorted names
  All lines have class folders, or all have numbers. Where a folder is named by the number of another class and a list
  can be read as either, only the third format is accepted.
  The plain numbers of ImageNet's development kit (ILSVRC2012_validation_ground_truth.txt) use another order of the
  classes and are rejected.

  Attributes:
    name: data set and split, for messages.
    categories: class k is categories[k]; num_classes: L.
    image_ids: int64 [N], 1-based position in the sorted list of the split's images.
    classes: int32 [N, 1]; num_instances: int32 [N], all 1; file_names: [N], relative to data_dir.
  """

  def __init__(self, data_dir: str, split: str = 'train', class_split: str = 'train', labels_file: str | None = None,
               fraction: float = 1.0, num_images: int | None = None, subset_seed: int = 0,
               training: bool = False, max_pixels: int = MAX_PIXELS) -> None:
    """List the folders; images are read by `load`.

    Args:
      data_dir: folder of the data set, local or gs://.
      split: folder of the images inside it.
      class_split: folder whose subfolders are the classes, so that all splits have the same class numbers.
      labels_file: list of a flat split; by default val.txt, LOC_val_solution.csv or
        imagenet_2012_validation_synset_labels.txt (for the split val) in data_dir.
      fraction, num_images, subset_seed: a seeded, nested subset, see `subset.subset`.
      training: reject a split with images of one class only.
      max_pixels: limit of height x width of an image.

    Raises:
      UserError: folders or list are missing, a class is not in `class_split`, there are no images.
    """
    data_dir = os.path.expanduser(data_dir)
    self.name = f'{os.path.basename(os.path.normpath(data_dir))}/{split}'
    self._folder, self._max_pixels = data_dir, max_pixels
    root = os.path.join(data_dir, split)
    names = _class_folders(os.path.join(data_dir, class_split))
    own, loose = _list_folder(root)
    if loose and not own:
      files, labels = _read_labels(_find_labels(data_dir, split, labels_file), loose, names)
      files = [posixpath.join(split, file) for file in files]
    else:
      files, labels = self._walk(root, split, own, names)
      if loose:
        logging.warning('%s: %d images are outside the class folders and are dropped, e.g. %s', self.name, len(loose),
                        loose[0])
    if not files:
      raise UserError(f'{root}: there are no images ({", ".join(IMAGE_EXTENSIONS)}) in its {len(own)} class folders')
    positions = subset(stable_ids(files), fraction, num_images, subset_seed, root)
    self.classes = np.array(labels, np.int32)[positions, None]
    counts = np.bincount(self.classes[:, 0], minlength=len(names))  # a subset may lack a class of the folder
    if training and np.count_nonzero(counts) < 2:
      whose, fix = whose_images('image_folder', len(positions), len(files))
      raise UserError(f'{root}: all {whose} are of class {names[int(counts.argmax())]!r}; training needs at least two '
                      f'classes{fix or ", each in a folder of its own"}')
    _warn_of_empty(self.name, [names[k] for k in np.flatnonzero(counts == 0)], len(names))

    self.categories = tuple(Category(k, as_text(name)) for k, name in enumerate(names))
    self.num_classes = len(names)
    self.image_ids = positions.astype(np.int64) + 1
    self.file_names = [files[i] for i in positions]
    self.num_instances = np.ones(len(positions), np.int32)
    logging.info('%s: %d images, %d classes', self.name, len(positions), self.num_classes)

  def load(self, i: int) -> np.ndarray:
    """Return image i, uint8 [h, w, 3] RGB; raises ImageError if it cannot be read."""
    name = self.file_names[i]
    return decode(read_file(self.path(i), name), name, max_pixels=self._max_pixels)

  def path(self, i: int) -> str:
    """Return the path of the file of image i."""
    return os.path.join(self._folder, self.file_names[i])

  def _walk(self, root: str, split: str, own: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the image files, relative to data_dir, and their classes; sorted."""
    numbers = {name: k for k, name in enumerate(names)}
    unknown = [name for name in own if name not in numbers]
    if unknown:
      raise UserError(f'{root}: {len(unknown)} folders are not among the {len(names)} classes that are trained, e.g. '
                      f'{unknown[0]!r}: rename or remove them, or set image_folder.class_split to the folder with all '
                      'classes')
    files, labels = [], []
    for name in own:
      images = sorted(_images_below(os.path.join(root, name), posixpath.join(split, name)))
      files += images
      labels += [numbers[name]] * len(images)
    return files, labels


def stable_ids(names: Iterable[str]) -> np.ndarray:
  """Hash names to 63 bits -> int64 [N]: a subset selected by them does not change when other images are added."""
  digests = b''.join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
  return np.frombuffer(digests, '<i8').astype(np.int64) & 0x7FFFFFFFFFFFFFFF


def _class_folders(folder: str) -> list[str]:
  names, loose = _list_folder(folder)
  if not names:
    found = f'only {len(loose)} images' if loose else 'no images'
    raise UserError(f'{folder}: should contain a folder per class (…/train/cat/1.jpg), contains {found}')
  return names


def _list_folder(folder: str) -> tuple[list[str], list[str]]:
  """Return the sorted names of the subfolders and of the images of a folder, without hidden and archiver's files."""
  try:
    entries = list_names(folder)
  except tf.errors.OpError as error:
    if isinstance(error, tf.errors.UnimplementedError | tf.errors.PermissionDeniedError):
      raise UserError(f'{folder}: cannot be read: {in_one_line(error)}') from error
    if not tf.io.gfile.isdir(os.path.dirname(folder)):
      raise UserError(f'{os.path.dirname(folder)}: no such folder: give the data set with --data_dir') from error
    raise UserError(f'{folder}: no such folder: set the folders of the data set with image_folder.split (train/… and '
                    'eval/…) and image_folder.class_split') from error
  folders, images = [], []
  for entry in entries:
    name = entry.rstrip('/')  # folders on gs:// end with a slash
    if name.startswith(('.', '__MACOSX')):
      continue
    # isdir() for each file of ImageNet takes minutes on gs://; a folder hardly ever has a name like that of an image.
    if name.lower().endswith(IMAGE_EXTENSIONS) and not entry.endswith('/'):
      images.append(name)
    elif entry.endswith('/') or tf.io.gfile.isdir(os.path.join(folder, name)):
      folders.append(name)
  return sorted(folders), sorted(images)


def _images_below(folder: str, name: str, parents: tuple[str, ...] = ()) -> list[str]:
  real = folder if '://' in folder else os.path.realpath(folder)
  if real in parents:
    logging.warning('%s: is a link to its parent folder %s and is ignored', folder, real)
    return []
  folders, images = _list_folder(folder)
  files = [posixpath.join(name, image) for image in images]
  for inner in folders:
    files += _images_below(os.path.join(folder, inner), posixpath.join(name, inner), (*parents, real))
  return files


def _find_labels(data_dir: str, split: str, labels_file: str | None) -> str:
  candidates = [labels_file] if labels_file else [name.format(split=split) for name in LABELS_FILES]
  for name in candidates:
    path = name if '://' in name else os.path.join(data_dir, os.path.expanduser(name))
    if tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path):
      return path
  raise UserError(f'{os.path.join(data_dir, split)}: has images but no class folders, and there is no list of labels '
                  f'({", ".join(candidates)}) in {data_dir}: set image_folder.labels_file')


def _read_labels(path: str, images: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[int]]:
  """Return the images of a flat folder, sorted, and their classes, from a list in one of the formats of ImageFolder."""
  rows = _read_rows(path)
  alone = all(len(fields) == 1 for _, fields in rows)
  if rows and alone:
    if len(rows) != len(images):
      raise UserError(f'{path}: lists {len(rows)} labels for {len(images)} images')
    rows = [(number, [image, *fields]) for (number, fields), image in zip(rows, images, strict=True)]
  numbers = _read_classes(path, rows, names, alone)
  stems = {image.rsplit('.', 1)[0]: image for image in images}
  present = set(images)
  classes: dict[str, int] = {}
  unmatched = 0
  for number, fields in rows:
    image = posixpath.basename(fields[0])
    image = image if image in present else stems.get(image)
    unmatched += image is None
    if image is not None and classes.setdefault(image, numbers[fields[1]]) != numbers[fields[1]]:
      raise UserError(f'{path}:{number}: {as_text(image)} has the class {shorten(names[numbers[fields[1]]])} here and '
                      f'{shorten(names[classes[image]])} in a line above: keep one of them')
  if unmatched or len(classes) < len(images):
    logging.warning('%s: %d of its lines name no image, %d of %d images have no line and are dropped', path,
                    unmatched, len(images) - len(classes), len(images))
  if not classes:
    raise UserError(f'{path}: names none of the {len(images)} images (e.g. {images[0]})')
  files = sorted(classes)
  return files, [classes[image] for image in files]


def _read_rows(path: str) -> list[tuple[int, list[str]]]:
  """Return the number of each line of a list of labels, and its first two fields."""
  try:
    with open_regular(path) as file:
      if file.size() > _MAX_LIST_BYTES:
        raise UserError(f'{path}: {file.size():,} bytes are too many for a list of labels')
      lines = [line.replace(',', ' ').split() for line in file.read().decode('utf-8-sig').splitlines()]
  except UnicodeDecodeError as error:
    raise UserError(f'{path}: not a text file of names and classes: {in_one_line(error)}') from error
  return [(number, fields[:2]) for number, fields in enumerate(lines, 1) if fields and fields[0] != 'ImageId']


def _read_classes(path: str, rows: Sequence[tuple[int, list[str]]], names: Sequence[str],
                  alone: bool) -> dict[str, int]:
  """Return the class of each text of a list of labels: of all lines the class folder or of all the class number.

  rows: line number, image and class of each line. alone: the list has class folders only, never numbers.
  """
  by_name = {name: k for k, name in enumerate(names)}
  by_number = {} if alone else {str(k): k for k in range(len(names))}
  known = by_name.keys() | by_number.keys()
  found: dict[str, int] = {}  # the first line of each text
  for number, fields in rows:
    if len(fields) < 2 or fields[1] not in known:
      raise UserError(f'{path}:{number}: should be an image and its class, a class folder or a number from 0 to '
                      f'{len(names) - 1}, is {shorten(" ".join(fields))}')
    found.setdefault(fields[1], number)
  readings = [one for one in (by_name, by_number) if found.keys() <= one.keys()]
  if not readings:
    folder, index = (next(text for text in found if text not in one) for one in (by_number, by_name))
    raise UserError(f'{path}: line {found[folder]} has the class folder {shorten(folder)}, line {found[index]} the '
                    f'class number {index}: write class folders in all lines, or numbers from 0 in all')
  ambiguous = next((text for text in found if any(one[text] != readings[0][text] for one in readings)), None)
  if ambiguous is not None:
    raise UserError(f'{path}:{found[ambiguous]}: {ambiguous} is a class folder and also the number, from 0, of '
                    f'{shorten(names[by_number[ambiguous]])}: write class folders alone, one a line in the order of '
                    'the images, or put the images into class folders')
  return readings[0]


def _warn_of_empty(name: str, empty: Sequence[str], total: int) -> None:
  if empty:
    logging.warning('%s: %d of %d classes have no images here: %s', name, len(empty), total, ', '.join(empty[:5]))
