"""Sources for prediction, without annotations: image files, arrays, and the frames of a video."""

from __future__ import annotations

import abc
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
from rethink_tf.data.image_notes import ImageNotes, exif_orientation
from rethink_tf.data.images import MAX_PIXELS, TURNS, ImageError, check_pixels, decode, read_file, stored_size
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.storage.files import require_regular
from rethink_tf.structures import MASK_CROP, Example

IMAGE_EXTENSIONS = (
  '.jpg', '.jpeg', '.jfif', '.png', '.bmp', '.webp', '.tif', '.tiff', '.gif', '.ppm', '.pgm', '.jp2', '.avif', '.heic')
VIDEO_EXTENSIONS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg')
_READERS = 8  # threads that read headers
_LOGGED = 10  # skipped images that are logged one by one


class UnannotatedImages(abc.ABC):
  """Base class: a source without objects that keeps the pixels of each loaded image until they are taken.

  An image that cannot be decoded is logged, recorded in `skipped`, and replaced by a grey one.

  Attributes: those of structures.Source, and
    file_names: [N] names of the images.
    skipped: name -> reason of the images that could not be read.
  """

  is_placeholder = True  # inputs do not log its number of images
  image_ids: np.ndarray
  sizes: np.ndarray
  file_names: list[str]

  def __init__(self, name: str, categories: Sequence[Category]):
    self.name, self.categories = name, tuple(categories)
    self.num_classes = len(self.categories)
    self.num_keypoints = max((len(category.keypoints) for category in self.categories), default=0)
    self.skipped: dict[str, str] = {}
    self._kept: dict[int, np.ndarray] = {}
    self._lock = threading.RLock()

  @abc.abstractmethod
  def _pixels(self, i: int) -> np.ndarray:
    """Return image i, uint8 [h, w, 3] RGB; raises ImageError."""

  @property
  def num_instances(self) -> np.ndarray:
    return np.zeros(len(self.image_ids), np.int32)

  def load(self, i: int) -> Example:
    """Return image i, without objects."""
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
    """Return the pixels of image i after `load`, and release them; None if it could not be read."""
    with self._lock:
      return self._kept.pop(i, None)

  def _skip(self, name: str, reason: ImageError) -> None:
    with self._lock:
      self.skipped[name] = str(reason)
      count = len(self.skipped)
    if count <= _LOGGED:
      logging.warning('%s; skipped', reason)
    elif count == _LOGGED + 1:
      logging.warning('more images are skipped; predict lists all of them in images.json')


class ImageFiles(UnannotatedImages):
  """Image files as a source. Files whose size cannot be determined are left out and recorded in `skipped`.

  paths: local or gs://. upright: apply the EXIF orientation; otherwise pixels are taken as stored, as by training
    unless the annotated size is that of the upright image.

  Attributes: those of UnannotatedImages, and
    paths, positions: [N] the files that are left, and their indices among the given ones.
    file_names: [N] their paths below the deepest folder that contains all of them.
    turned: number of files with an EXIF orientation other than upright.
  """

  def __init__(self, paths: Sequence[str], categories: Sequence[Category], upright: bool = False):
    super().__init__('image files', categories)
    self._upright, self._notes = upright, ImageNotes(self.name)
    with ThreadPoolExecutor(_READERS) as pool:
      measured = list(pool.map(_measure, paths))
    names = dict(zip(paths, relative_names(paths), strict=True))
    kept = []
    for i, (path, measurement) in enumerate(zip(paths, measured, strict=True)):
      if isinstance(measurement, ImageError):
        self._skip(names[path], measurement)
      else:
        kept.append((i, path, *measurement))
    self.positions = [i for i, *_ in kept]
    self.paths = [path for _, path, *_ in kept]
    self.file_names = [names[path] for path in self.paths]
    self.image_ids = number([os.path.basename(name) for name in self.file_names])
    self._orientations = [orientation for *_, orientation in kept]
    self.turned = sum(orientation in TURNS for orientation in self._orientations)
    self.sizes = np.array([size[::-1] if upright and orientation >= 5 else size for *_, size, orientation in kept],
                          np.int32).reshape(-1, 2)

  def _pixels(self, i: int) -> np.ndarray:
    height, width = self.sizes[i].tolist()
    data = read_file(self.paths[i])
    image = decode(data, self.paths[i])
    self._notes.check_pages(data, self.paths[i])
    if self._upright and self._orientations[i] in TURNS:
      image = np.ascontiguousarray(TURNS[self._orientations[i]](image))
    if image.shape[:2] != (height, width):
      raise ImageError(f'{self.paths[i]}: is {image.shape[1]}x{image.shape[0]}, but its header says {width}x{height}')
    return image


class ImageArrays(UnannotatedImages):
  """Arrays as a source; their names are their indices, counted from 0.

  images: uint8 [h, w, 3] RGB, or [h, w] grey.

  Raises:
    UserError: another type, dtype or shape.
  """

  def __init__(self, images: Sequence[np.ndarray], categories: Sequence[Category]):
    super().__init__('arrays', categories)
    for i, image in enumerate(images):
      check_array(image, f'image {i}')
    self._images = images
    self.image_ids = np.arange(1, len(images) + 1)
    self.file_names = [str(i) for i in range(len(images))]
    self.sizes = np.array([image.shape[:2] for image in images], np.int32).reshape(-1, 2)

  def _pixels(self, i: int) -> np.ndarray:
    return to_rgb(self._images[i])


class Video(UnannotatedImages):
  """The frames of a video as a source; each is decoded once and in order, whichever order threads load them in.

  Attributes: those of UnannotatedImages, and
    image_ids: numbers of the frames, from 1 on.
    frames_per_second: from the header, 25 if that is implausible.

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
      raise ImageError(f'{self.file_names[i]}: the frame cannot be decoded, or has another size than the first one')
    return image


def check_array(image: object, name: str) -> None:
  """Raise UserError unless `image` is a uint8 array [h, w, 3] or [h, w]."""
  if not isinstance(image, np.ndarray):
    raise UserError(f'{name} is of type {type(image).__name__}: give a path, or a uint8 array [h, w, 3] or [h, w]')
  if image.dtype != np.uint8 or not (image.ndim == 2 or image.ndim == 3 and image.shape[2] == 3) or not image.size:
    raise UserError(f'{name} is an array of {image.dtype} {list(image.shape)}: give uint8 [h, w, 3] (RGB) or [h, w] '
                    '(grey), values 0 to 255')


def to_rgb(image: np.ndarray) -> np.ndarray:
  """Convert [h, w, 3] or [h, w] to contiguous [h, w, 3]."""
  return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else np.ascontiguousarray(image)


def find_images(paths: Iterable[str], leave_out: str | None = None) -> tuple[list[str], list[str]]:
  """Return the image files and videos among files and folders, in natural order (img2 before img10), each once.

  Folders are searched recursively for image files; videos must be named. A named file counts as an image unless it has
  the extension of a video.

  leave_out: a folder that is not searched, since results are written there.

  Raises:
    UserError: a path does not exist, is the folder to leave out, or nothing is found.
  """
  images: dict[str, str] = {}  # by real path
  videos: dict[str, str] = {}
  others = 0
  paths = [os.path.expanduser(path) for path in paths]
  for path in paths:
    if not is_text(path):
      raise UserError(f'{as_text(path)}: its name is not UTF-8 or has control characters: rename it')
    if tf.io.gfile.isdir(path):
      if leave_out and real_path(path) == real_path(leave_out):
        raise UserError(f'{path}: is also the folder for the results, which is not searched: choose another --output')
      inside = list(_walk(path, leave_out))
      chosen = [file for file in inside if file.lower().endswith(IMAGE_EXTENSIONS)]
      others += len(inside) - len(chosen)
      images |= {real_path(file): file for file in chosen}
    elif not tf.io.gfile.exists(path):
      raise UserError(f'{path}: no such file or folder')
    else:
      (videos if path.lower().endswith(VIDEO_EXTENSIONS) else images)[real_path(path)] = path
  if not images and not videos:
    kinds = ', '.join(kind.lstrip('.') for kind in IMAGE_EXTENSIONS[:7])
    raise UserError(f'{", ".join(paths)}: no images there ({kinds}, ...)'
                    + (f'; {others} other files are ignored, videos must be named one by one' if others else ''))
  if others:
    logging.info('%d files in the folders do not have the extension of an image and are ignored', others)
  return sorted(images.values(), key=natural_order), sorted(videos.values(), key=natural_order)


def natural_order(path: str) -> tuple[list[Any], str]:
  """Return a sorting key that compares numbers inside a path by value."""
  pieces = re.split(r'([0-9]+)', path.casefold())
  return [int(piece) if k % 2 else piece for k, piece in enumerate(pieces)], path


def relative_names(paths: Sequence[str]) -> list[str]:
  """Return the paths below the deepest folder that contains all of them: names of different files differ."""
  full = [path.replace('://', '/') if '://' in path else os.path.abspath(path).replace(os.sep, '/') for path in paths]
  folders = [path.split('/')[:-1] for path in full]
  shared = os.path.commonprefix(folders)
  return ['/'.join(path.split('/')[len(shared):]) for path in full]


def output_names(names: Sequence[str], extension: str) -> list[str]:
  """Return distinct names of output files: the extension replaces that of the input, or is appended in a conflict."""
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
  """Return image ids, int64 [N]: the names if all are distinct integers, as in COCO, else 1, 2, ..."""
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
    if real in seen or real == left_out:  # a link to a folder above, or results of an earlier run
      folders.clear()
      continue
    seen.add(real)
    yield from (os.path.join(path, file) for file in files)


def real_path(path: str) -> str:
  """Return a path with symbolic links resolved, to tell whether two paths are of the same file."""
  return path if '://' in path else os.path.realpath(path)


def _measure(path: str) -> tuple[tuple[int, int], int] | ImageError:
  """Return the stored (height, width) and the EXIF orientation from the header, or by decoding if that fails."""
  if not is_text(path):  # TensorFlow cannot open it, and it may contain terminal escape sequences
    return ImageError(f'{as_text(path)}: its name is not UTF-8 or has control characters: rename it')
  try:
    require_regular(path)
    with Image.open(io.BytesIO(read_file(path)) if '://' in path else path) as image:
      check_pixels((image.height, image.width), path, MAX_PIXELS)  # a grey image of this size may replace it
      return stored_size(image), exif_orientation(image)
  except Exception:  # whatever Pillow raises, the decoder decides
    try:
      return decode(read_file(path), path).shape[:2], 1
    except ImageError as error:
      return error


def _count_frames(path: str) -> tuple[int, tuple[int, int], float]:
  """Return number of frames, (height, width) and frame rate. Frames are counted: headers are often wrong."""
  try:
    require_regular(path)
  except tf.errors.OpError as error:
    raise UserError(f'{path}: {in_one_line(error)}: leave it out') from error
  capture = cv2.VideoCapture(path)
  try:
    good, frame = capture.read()
    if not good:
      raise UserError(f'{path}: OpenCV can read no frame of this video: convert it to mp4 (H.264)')
    frames = 1
    while capture.grab():
      frames += 1
    rate = capture.get(cv2.CAP_PROP_FPS)
    return frames, frame.shape[:2], rate if 0 < rate <= 1000 else 25.0
  finally:
    capture.release()
