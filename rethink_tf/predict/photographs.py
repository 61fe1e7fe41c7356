"""Photographs and films as they lie on a disk, without annotations: what prediction reads."""

from __future__ import annotations

import io
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import tensorflow as tf
from absl import logging
from PIL import Image

from rethink_tf.data.batching import GREY
from rethink_tf.data.categories import Category, as_text, is_text
from rethink_tf.data.images import MAX_PIXELS, ImageError, check_pixels, decode, read_bounded
from rethink_tf.errors import UserError
from rethink_tf.structures import MASK_CROP, Example

PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.gif', '.ppm', '.pgm', '.jp2', '.avif', '.heic')
FILMS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg')
_EXIF_ORIENTATION = 0x0112
_READERS = 8  # threads that look at the heads of files
_LOGGED = 10  # files that are skipped with a line of their own

# EXIF orientation -> how the stored pixels are turned to stand upright.
_TURNS = {
  2: lambda image: image[:, ::-1],
  3: lambda image: image[::-1, ::-1],
  4: lambda image: image[::-1],
  5: lambda image: image.transpose(1, 0, 2),
  6: lambda image: np.rot90(image, -1),
  7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
  8: np.rot90,
}


class _Unannotated:
  """What photographs and films have in common as sources: no objects, and pictures that are kept until `take`n.

  A picture that cannot be decoded is noted in `skipped` (file -> why), logged, and loaded as a grey one.
  """

  def __init__(self, name: str, categories: Sequence[Category]):
    self.name, self.categories = name, tuple(categories)
    self.num_classes = len(self.categories)
    self.num_keypoints = max((len(category.keypoints) for category in self.categories), default=0)
    self.skipped: dict[str, str] = {}
    self._kept: dict[int, np.ndarray] = {}
    self._lock = threading.RLock()

  @property
  def num_instances(self) -> np.ndarray:
    return np.zeros(len(self.image_ids), np.int32)

  def load(self, i: int) -> Example:
    """Picture i, without objects."""
    try:
      image = self._pixels(i)
      with self._lock:
        self._kept[i] = image
    except ImageError as error:
      self._skip(self.file_names[i], error)
      image = np.full([*self.sizes[i], 3], GREY, np.uint8)
    return Example(image, np.zeros([0, 4], np.float32), np.zeros(0, np.int32),
                   np.zeros([0, MASK_CROP, MASK_CROP], np.uint8), np.zeros([0, self.num_keypoints, 3], np.float32))

  def take(self, i: int) -> np.ndarray | None:
    """The pixels of picture i, once it has been loaded: read once, drawn on later. None where that failed."""
    with self._lock:
      return self._kept.pop(i, None)

  def _skip(self, name: str, reason: ImageError) -> None:
    with self._lock:
      self.skipped[name] = str(reason)
      count = len(self.skipped)
    if count <= _LOGGED:
      logging.warning('%s; skipped', reason)
    elif count == _LOGGED + 1:
      logging.warning('more pictures are skipped: images.json will list them all')


class Photographs(_Unannotated):
  """Picture files as a source. What cannot be measured is left out at once, logged and counted in `skipped`.

  paths: local or gs://. upright: turn photographs as their EXIF orientation says; else pixels are taken as stored, as
  everywhere in training.

  Attributes: those of every source but annotations(), and
    file_names: [N] the paths below the folder that all of them share.
    turned: how many photographs say that they should be turned.
  """

  def __init__(self, paths: Sequence[str], categories: Sequence[Category], upright: bool = False):
    super().__init__('photographs', categories)
    self._upright = upright
    with ThreadPoolExecutor(_READERS) as pool:
      measured = list(pool.map(_measure, paths))
    names = dict(zip(paths, relative_names(paths), strict=True))
    kept = []
    for path, found in zip(paths, measured, strict=True):
      if isinstance(found, ImageError):
        self._skip(names[path], found)
      else:
        kept.append((path, *found))
    self.paths = [path for path, *_ in kept]
    self.file_names = [names[path] for path in self.paths]
    self.image_ids = number([os.path.basename(name) for name in self.file_names])
    self._orientations = [orientation for *_, orientation in kept]
    self.turned = sum(orientation in _TURNS for orientation in self._orientations)
    self.sizes = np.array([size[::-1] if upright and orientation >= 5 else size for _, size, orientation in kept],
                          np.int32).reshape(-1, 2)

  def _pixels(self, i: int) -> np.ndarray:
    height, width = self.sizes[i].tolist()
    image = decode(_read(self.paths[i]), self.paths[i])
    if self._upright and self._orientations[i] in _TURNS:
      image = np.ascontiguousarray(_TURNS[self._orientations[i]](image))
    if image.shape[:2] != (height, width):
      raise ImageError(f'{self.paths[i]}: is {image.shape[1]}x{image.shape[0]}, but its head says {width}x{height}')
    return image


class Film(_Unannotated):
  """The frames of a film as a source; they are read once and in order, however threads ask for them.

  Attributes: those of every source but annotations(); image_ids are the frames from 1 on.

  Raises:
    UserError: OpenCV cannot read it, or it has no frames.
  """

  def __init__(self, path: str, categories: Sequence[Category]):
    super().__init__(os.path.basename(path), categories)
    self.path = path
    frames, size, self.frames_per_second = _count_frames(path)
    self.image_ids = np.arange(1, frames + 1)
    self.file_names = [f'{self.name}#{frame}' for frame in self.image_ids.tolist()]
    self.sizes = np.tile(np.array(size, np.int32), (frames, 1))
    self._capture, self._next = cv2.VideoCapture(path), 0

  def _pixels(self, i: int) -> np.ndarray:
    with self._lock:
      while self._next <= i:
        good, frame = self._capture.read()
        if good and frame.shape[:2] == tuple(self.sizes[0]):
          self._kept[self._next] = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        self._next += 1
      image = self._kept.get(i)
    if image is None:
      raise ImageError(f'{self.file_names[i]}: the frame cannot be decoded, or is of another size than the first')
    return image


def find(paths: Iterable[str], leave_out: str | None = None) -> tuple[list[str], list[str]]:
  """Pictures and films among files and folders, in natural order (img2 before img10), each once.

  Folders are searched to the bottom for pictures; films must be named. A file that is named is taken for a picture
  unless it is called like a film.

  leave_out: a folder that is passed over, since results are written there.

  Raises:
    UserError: a path does not exist, or there is nothing at all.
  """
  pictures: dict[str, str] = {}  # by real path
  films: dict[str, str] = {}
  others = 0
  for path in (os.path.expanduser(path) for path in paths):
    if tf.io.gfile.isdir(path):
      inside = list(_walk(path, leave_out))
      chosen = [file for file in inside if file.lower().endswith(PICTURES)]
      others += len(inside) - len(chosen)
      pictures |= {_real(file): file for file in chosen}
    elif not tf.io.gfile.exists(path):
      raise UserError(f'{path}: no such file or folder')
    else:
      (films if path.lower().endswith(FILMS) else pictures)[_real(path)] = path
  if not pictures and not films:
    kinds = ', '.join(kind.lstrip('.') for kind in PICTURES[:7])
    raise UserError(f'{", ".join(paths)}: no pictures there ({kinds}, ...)'
                    + (f'; {others} other files are left alone, films must be named one by one' if others else ''))
  if others:
    logging.info('%d files in the folders are no pictures by their names and are left alone', others)
  return sorted(pictures.values(), key=natural_order), sorted(films.values(), key=natural_order)


def natural_order(path: str) -> tuple[list[Any], str]:
  """Sorting key: numbers inside a path by their values."""
  parts = re.split(r'([0-9]+)', path.casefold())
  return [int(part) if k % 2 else part for k, part in enumerate(parts)], path


def relative_names(paths: Sequence[str]) -> list[str]:
  """The paths below the deepest folder that holds all of them: different files have different names."""
  full = [path.replace('://', '/') if '://' in path else os.path.abspath(path).replace(os.sep, '/') for path in paths]
  folders = [path.split('/')[:-1] for path in full]
  shared = os.path.commonprefix(folders)
  return ['/'.join(path.split('/')[len(shared):]) for path in full]


def output_names(names: Sequence[str], extension: str) -> list[str]:
  """Names of what is made from files, all different: with this extension for their own, or behind it if need be."""
  stems = Counter(os.path.splitext(name)[0].casefold() for name in names)
  outputs = []
  for name in names:
    stem, own = os.path.splitext(name)
    clear = own.casefold() == extension or stems[stem.casefold()] == 1
    outputs.append(stem + extension if clear else name + extension)
  if len({name.casefold() for name in outputs}) == len(names):
    return outputs
  return [name + extension for name in names]


def number(names: Sequence[str]) -> np.ndarray:
  """Image ids, int64 [N]: the names where all are different integers, as COCO's are, else 1, 2, ..."""
  stems = [os.path.splitext(name)[0] for name in names]
  if all(re.fullmatch(r'[0-9]{1,18}', stem) for stem in stems) and len({int(stem) for stem in stems}) == len(stems):
    return np.array([int(stem) for stem in stems], np.int64)
  return np.arange(1, len(names) + 1)


def _walk(folder: str, leave_out: str | None) -> Iterable[str]:
  if '://' in folder:
    for path, _, files in tf.io.gfile.walk(folder):
      yield from (os.path.join(path, file) for file in files)
    return
  seen, left_out = set(), leave_out and os.path.realpath(leave_out)
  for path, folders, files in os.walk(folder, followlinks=True):
    real = os.path.realpath(path)
    if real in seen or real == left_out:  # a link to a folder above, or an earlier run's pictures
      folders.clear()
      continue
    seen.add(real)
    yield from (os.path.join(path, file) for file in files)


def _real(path: str) -> str:
  return path if '://' in path else os.path.realpath(path)


def _read(path: str) -> bytes:
  try:
    with tf.io.gfile.GFile(path, 'rb') as file:
      return read_bounded(file, path)
  except tf.errors.OpError as error:
    raise ImageError(f'{path}: cannot be read: {error.message}') from error


def _measure(path: str) -> tuple[tuple[int, int], int] | ImageError:
  """Height and width as stored, and EXIF orientation, from the head of a file; by decoding where that fails."""
  if not is_text(path):  # TensorFlow opens no file with such a name, and terminals should not show it
    return ImageError(f'{as_text(path)}: its name is not UTF-8 or has control characters: rename it')
  try:
    with Image.open(io.BytesIO(_read(path)) if '://' in path else path) as picture:
      check_pixels((picture.height, picture.width), path, MAX_PIXELS)  # a grey one of this size may stand in
      return (picture.height, picture.width), int(picture.getexif().get(_EXIF_ORIENTATION, 1))
  except Exception:  # whatever Pillow stumbles over, the decoder has the last word
    try:
      return decode(_read(path), path).shape[:2], 1
    except ImageError as error:
      return error


def _count_frames(path: str) -> tuple[int, tuple[int, int], float]:
  """By going through the film: what its head says is often a guess."""
  capture = cv2.VideoCapture(path)
  try:
    good, frame = capture.read()
    if not good:
      raise UserError(f'{path}: OpenCV can read no frame of this film: convert it to mp4 (H.264)')
    frames = 1
    while capture.grab():
      frames += 1
    rate = capture.get(cv2.CAP_PROP_FPS)
    return frames, frame.shape[:2], rate if 0 < rate <= 1000 else 25.0
  finally:
    capture.release()
