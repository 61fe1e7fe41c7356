"""Photographs with a class each, in folders: one folder a class, or ImageNet's flat validation folder with a list."""

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
from rethink_tf.data.images import MAX_PIXELS, ImageError, decode, read_bounded
from rethink_tf.data.subset import subset
from rethink_tf.errors import UserError

PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff')
# What lists of a flat folder are called: Caffe's, Kaggle's, and the one of TensorFlow's own ImageNet scripts.
LABELS_FILES = ('{split}.txt', 'LOC_{split}_solution.csv', 'imagenet_2012_validation_synset_labels.txt')
_MAX_LIST_BYTES = 1 << 30


@gin.register('image_folder')
class ImageFolder:
  """A split with a folder per class (`train/cat/1.jpg`), or a flat one with a list of labels.

  Class k of 0..L - 1 is the k-th of the class folders of `class_split`, sorted by name (ImageNet's usual order:
  ascending WordNet ids). Pictures may lie at any depth below their class folder.

  A flat folder (ImageNet's `val`) needs a list, a picture a line, in one of three forms:
    `ILSVRC2012_val_00000001.JPEG 65`                       name, class folder or 0-based number of the class (Caffe)
    `ILSVRC2012_val_00000001,n01751748 111 108 370 389 …`   with a headline; boxes are ignored (LOC_val_solution.csv)
    `n01751748`                                             class folders only, in the order of the sorted names
  The bare numbers of ImageNet's development kit (ILSVRC2012_validation_ground_truth.txt) follow another order of the
  classes and are refused.

  Attributes:
    name: data set and split, for messages.
    categories: class k is categories[k]; num_classes: L.
    image_ids: int64 [N], the place in the sorted list of the split's pictures, from 1.
    classes: int32 [N, 1]; num_instances: int32 [N], all 1; file_names: [N], relative to data_dir.
  """

  def __init__(self, data_dir: str, split: str = 'train', class_split: str = 'train', labels_file: str | None = None,
               fraction: float = 1.0, num_images: int | None = None, subset_seed: int = 0,
               training: bool = False, max_pixels: int = MAX_PIXELS) -> None:
    """Lists the folders; photographs are read by `load`.

    Args:
      data_dir: folder of the data set, local or gs://.
      split: folder of the pictures inside it.
      class_split: folder whose subfolders are the classes, so that all splits number them alike.
      labels_file: list of a flat split; by default val.txt, LOC_val_solution.csv or
        imagenet_2012_validation_synset_labels.txt (for the split val) in data_dir.
      fraction, num_images, subset_seed: a seeded, nested subset, see `subset.subset`.
      training: refuse a split without pictures of more than one class.
      max_pixels: height x width that a photograph may have.

    Raises:
      UserError: folders or list missing, a class that `class_split` does not have, no pictures.
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
        logging.warning('%s: %d pictures lie in no class folder and are left out, e.g. %s', self.name, len(loose),
                        loose[0])
    if not files:
      raise UserError(f'{root}: there are no pictures ({", ".join(PICTURES)}) in its {len(own)} class folders')
    found = np.bincount(labels, minlength=len(names))
    if training and np.count_nonzero(found) < 2:
      raise UserError(f'{root}: all pictures are of class {names[int(found.argmax())]!r}: there is nothing to tell '
                      'apart; put the pictures of each class into a folder of its own')
    _warn_of_empty(self.name, [names[k] for k in np.flatnonzero(found == 0)], len(names))

    positions = subset(stable_ids(files), fraction, num_images, subset_seed)
    self.categories = tuple(Category(k, as_text(name)) for k, name in enumerate(names))
    self.num_classes = len(names)
    self.image_ids = positions.astype(np.int64) + 1
    self.file_names = [files[i] for i in positions]
    self.classes = np.array(labels, np.int32)[positions, None]
    self.num_instances = np.ones(len(positions), np.int32)
    logging.info('%s: %d images, %d classes', self.name, len(positions), self.num_classes)

  def load(self, i: int) -> np.ndarray:
    """Image i, uint8 [h, w, 3] RGB; ImageError where it cannot be read."""
    name = self.file_names[i]
    try:
      with tf.io.gfile.GFile(os.path.join(self._folder, name), 'rb') as file:
        return decode(read_bounded(file, name), name, max_pixels=self._max_pixels)
    except tf.errors.OpError as error:
      raise ImageError(f'{name}: cannot be read: {error.message}') from error

  def _walk(self, root: str, split: str, own: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Files, relative to data_dir, and their classes; sorted."""
    numbers = {name: k for k, name in enumerate(names)}
    unknown = [name for name in own if name not in numbers]
    if unknown:
      raise UserError(f'{root}: {len(unknown)} folders are no class of the {len(names)} that are trained, e.g. '
                      f'{unknown[0]!r}: rename or remove them, or name the folder that has all classes with '
                      'image_folder.class_split')
    files, labels = [], []
    for name in own:
      found = sorted(_pictures_below(os.path.join(root, name), posixpath.join(split, name)))
      files += found
      labels += [numbers[name]] * len(found)
    return files, labels


def stable_ids(names: Iterable[str]) -> np.ndarray:
  """A 63-bit key of each name -> int64 [N]: a subset by it stays the same when other pictures come or go."""
  digests = b''.join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
  return np.frombuffer(digests, '<i8').astype(np.int64) & 0x7FFFFFFFFFFFFFFF


def _class_folders(folder: str) -> list[str]:
  names, loose = _list_folder(folder)
  if not names:
    there = f'only {len(loose)} pictures' if loose else 'nothing of use'
    raise UserError(f'{folder}: should hold a folder per class (…/train/cat/1.jpg), holds {there}')
  return names


def _list_folder(folder: str) -> tuple[list[str], list[str]]:
  """Names of the subfolders and of the pictures of a folder, sorted; hidden ones and those of archivers left out."""
  try:
    entries = list_names(folder)
  except tf.errors.OpError as error:
    if not tf.io.gfile.isdir(os.path.dirname(folder)):
      raise UserError(f'{os.path.dirname(folder)}: no such folder: give the data set with --data_dir') from error
    raise UserError(f'{folder}: no such folder: name the folders of the data set with image_folder.split (train/… and '
                    'eval/…) and image_folder.class_split') from error
  folders, pictures = [], []
  for entry in entries:
    name = entry.rstrip('/')  # gs:// lists folders so
    if name.startswith(('.', '__MACOSX')):
      continue
    # A look at each file of ImageNet costs minutes on gs://; a folder is hardly ever called something.jpg.
    if name.lower().endswith(PICTURES) and not entry.endswith('/'):
      pictures.append(name)
    elif entry.endswith('/') or tf.io.gfile.isdir(os.path.join(folder, name)):
      folders.append(name)
  return sorted(folders), sorted(pictures)


def _pictures_below(folder: str, name: str, above: tuple[str, ...] = ()) -> list[str]:
  real = folder if '://' in folder else os.path.realpath(folder)
  if real in above:
    logging.warning('%s: leads back to %s and is left out', folder, real)
    return []
  folders, pictures = _list_folder(folder)
  found = [posixpath.join(name, picture) for picture in pictures]
  for inner in folders:
    found += _pictures_below(os.path.join(folder, inner), posixpath.join(name, inner), (*above, real))
  return found


def _find_labels(data_dir: str, split: str, labels_file: str | None) -> str:
  candidates = [labels_file] if labels_file else [name.format(split=split) for name in LABELS_FILES]
  for name in candidates:
    path = name if '://' in name else os.path.join(data_dir, os.path.expanduser(name))
    if tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path):
      return path
  raise UserError(f'{os.path.join(data_dir, split)}: has pictures but no class folders, and there is no list of labels '
                  f'({", ".join(candidates)}) in {data_dir}: name it with image_folder.labels_file')


def _read_labels(path: str, pictures: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[int]]:
  """The pictures of a flat folder, sorted, and their classes by one of the lists of ImageFolder."""
  try:
    with tf.io.gfile.GFile(path, 'rb') as file:
      if file.size() > _MAX_LIST_BYTES:
        raise UserError(f'{path}: {file.size():,} bytes are too many for a list of labels')
      lines = [line.replace(',', ' ').split() for line in file.read().decode('utf-8-sig').splitlines()]
  except UnicodeDecodeError as error:
    raise UserError(f'{path}: not a text of names and classes: {error}') from error
  rows = [(number, fields[:2]) for number, fields in enumerate(lines, 1) if fields and fields[0] != 'ImageId']
  numbers = {name: k for k, name in enumerate(names)}
  if rows and all(len(fields) == 1 for _, fields in rows):
    if len(rows) != len(pictures):
      raise UserError(f'{path}: lists {len(rows)} labels for {len(pictures)} pictures')
    rows = [(number, [picture, *fields]) for (number, fields), picture in zip(rows, pictures, strict=True)]
  else:
    numbers = {str(k): k for k in range(len(names))} | numbers
  stems = {picture.rsplit('.', 1)[0]: picture for picture in pictures}
  present = set(pictures)
  classes: dict[str, int] = {}
  absent = 0
  for number, fields in rows:
    if len(fields) < 2 or fields[1] not in numbers:
      raise UserError(f'{path}:{number}: should be a picture and its class, a class folder or a number from 0 to '
                      f'{len(names) - 1}, is {shorten(" ".join(fields))}')
    picture = posixpath.basename(fields[0])
    picture = picture if picture in present else stems.get(picture)
    absent += picture is None
    if picture is not None:
      classes[picture] = numbers[fields[1]]
  if absent or len(classes) < len(pictures):
    logging.warning('%s: %d of its lines name no picture, %d of %d pictures have no line and are left out', path,
                    absent, len(pictures) - len(classes), len(pictures))
  if not classes:
    raise UserError(f'{path}: names none of the {len(pictures)} pictures (e.g. {pictures[0]})')
  found = sorted(classes)
  return found, [classes[picture] for picture in found]


def _warn_of_empty(name: str, empty: Sequence[str], total: int) -> None:
  if empty:
    logging.warning('%s: %d of %d classes have no pictures here: %s', name, len(empty), total, ', '.join(empty[:5]))
