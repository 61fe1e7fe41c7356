"""The interface of a layout of annotation files, and of the result of reading one."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from rethink_tf.data.categories import as_text
from rethink_tf.data.prepare.shapes import JOINED, are_boxes, box, boxed, joined, numbers
from rethink_tf.data.prepare.source_folder import SourceFolder, is_below, split_of
from rethink_tf.data.problems import LEFT_OUT, REPAIRED, Case, Problems
from rethink_tf.errors import UserError

NO_IMAGE = 'image whose file is missing, or not the only one of its name'
NOT_ANNOTATED = 'image without an annotation file (not annotated yet)'
NOT_NAMED = 'image that no annotation names (not annotated yet)'
NO_IMAGE_FILES = 'no image is among its files: export with images, or copy them into it'
SECOND_FILE = 'image with a second annotation file'
AGAIN, OF_AGAIN = 'image with a second entry', 'of an image with a second entry'
DAMAGED = 'JSON file that is damaged'
MISSING = 'of an image whose file is missing, or not the only one of its name'
NO_CLASS = 'without a class'
FEW_POINTS = 'with an outline of fewer than three points'
NO_AREA = 'with a box without area'
NOT_RASTERISED = 'of a mask and an outline that is too large to be drawn'
_IMAGE_FOLDERS = ('images', 'jpegimages', 'pngimages', 'imgs', 'img')
NOT_FINITE = 'with a number that is missing or not finite'


@dataclass
class Options:
  """Options of the user on how to read a source.

  annotation_file: the one to read of several, relative to the source. class_key: the attribute of VIA that holds the
  class, the job of a SageMaker manifest, or the project of Labelbox.
  crowds: 'auto', 'keep' or 'objects', the meaning of `iscrowd = 1` in exports of CVAT.
  """

  annotation_file: str | None = None
  class_key: str | None = None
  crowds: str = 'auto'


class LabelledImage(NamedTuple):
  """An image with its objects."""

  file: str  # relative to the source; of an image within an annotation file, the name that it is given
  name: str  # relative to the folder of its split
  split: str | None  # 'train', 'val', 'test'; None: the source has no splits
  instances: list[dict[str, Any]]  # COCO's fields, with 'category' (a key of Reading.categories) for category_id
  size: tuple[int, int] | None = None  # height, width as annotated; None: not recorded
  fractions: bool = False  # coordinates are fractions of width and height
  data: bytes | None = None  # of an image within an annotation file
  id: int | None = None
  video: str | None = None  # that it is a frame of; frames are in the order of their names


@dataclass
class Reading:
  """A source that is being read, one image at a time.

  Attributes:
    layout: its name, for messages.
    images: of which each is used once.
    total: number of images, for progress.
    categories: key -> entry of "categories"; None: keys are names, numbered 1, 2, ... in alphabetical order.
    upright: whether coordinates are those of the image with its EXIF orientation applied, where its size does not
      decide; None: not known.
    problems: what is left out or changed; complete when all images are read.
    notes: lines for the report.
  """

  layout: str
  images: Iterator[LabelledImage]
  total: int
  categories: dict[Any, dict[str, Any]] | None = None
  upright: bool | None = None
  problems: Problems = field(default_factory=Problems)
  notes: list[str] = field(default_factory=list)
  superfluous: set[Any] = field(default_factory=set)  # keys of categories that are dropped if no object is of them

  def leave_out(self, reason: str, where: str, count: int = 1, outcome: str = LEFT_OUT) -> None:
    """Count annotations that are left out or changed; where: file and annotation, for the report."""
    if count:
      self.problems.add(reason, count, [Case(where)], outcome)

  def examples(self) -> str:
    """Return the most frequent reasons for leaving out annotations, for a message; '' if there are none."""
    left_out = [f'{problem.cases[0].text} ({reason})' for reason, problem in self.problems.by_reason().items()
                if problem.outcome == LEFT_OUT]
    return '; '.join(left_out[:2])


class Layout(Protocol):
  """Interface of the modules that read one layout each."""

  NAME: str  # as --layout takes it
  TITLE: str  # for messages

  def recognize(self, folder: SourceFolder) -> str | None:
    """Return evidence that a folder has this layout, as words for messages; None if it has not."""

  def read(self, folder: SourceFolder, options: Options) -> Reading:
    """Open a folder of this layout; raises UserError if files are damaged or ambiguous."""


def names_to_categories(names: Sequence[str]) -> dict[int, dict[str, Any]]:
  """Return the categories of a list of names; keys are the indices, ids begin at 1."""
  return {i: {'id': i + 1, 'name': name} for i, name in enumerate(names)}


def output_name(image: str) -> str:
  """Return the path of an image without leading folders that are only `images` or the name of a split."""
  parts = image.split('/')
  while len(parts) > 1 and (parts[0].lower() in _IMAGE_FOLDERS or split_of(parts[0])):
    parts = parts[1:]
  return '/'.join(parts)


def each_json(folder: SourceFolder, files: Iterable[str], reading: Reading) -> Iterator[tuple[str, Any]]:
  """Yield (file, content) of JSON files, one at a time; those that are damaged are counted instead."""
  for file in files:
    try:
      content = folder.load_json(file)
    except UserError as error:
      reading.problems.add(DAMAGED, 1, str(error))
    else:
      yield file, content


def claim(image: str | None, used: set[str], reading: Reading, where: str, objects: int) -> bool:
  """Whether an entry may have its image, which is then added to `used`: there is one, and no other entry has it.

  Otherwise the entry is counted, with its number of objects. image: its file; None: missing. where: for the report.
  """
  if image is None or image in used:
    reading.problems.add(AGAIN if image else NO_IMAGE, 1, where)
    reading.leave_out(OF_AGAIN if image else MISSING, where, objects)
    return False
  used.add(image)
  return True


def grouped(parts: Iterable[tuple[str, Any, tuple[str, Any]]], where: str, reading: Reading) -> list[dict[str, Any]]:
  """Return the objects of an image: shapes of one class and group are parts of one object.

  parts: (class, group, part as `joined` takes it); group: None for an object of one part. where: for the report.
  """
  groups: dict[Any, Any] = {}
  for i, (name, group, part) in enumerate(parts):
    if group is None:  # at once: masks are held as run lengths
      groups[name, None, i] = joined([part])
    else:
      groups.setdefault((name, group), []).append(part)
  found = []
  for key, of_one in groups.items():
    if isinstance(of_one, list):
      reading.leave_out(JOINED, where, int(are_boxes(of_one)), REPAIRED)
      try:
        of_one = joined(of_one)
      except ValueError:
        reading.leave_out(NOT_RASTERISED, where)
        continue
    found.append({'category': key[0], **of_one})
  return found


def sized(values: Sequence[float] | None, where: str, reading: Reading) -> dict[str, Any] | None:
  """Return the box of an object whose numbers begin with x, y, width and height; None if it is counted and left out.

  values: None if one is missing or not finite. where: for the report.
  """
  if values is None or min(values[2:4]) <= 0:
    reading.leave_out(NOT_FINITE if values is None else NO_AREA, where)
    return None
  x, y, width, height = values[:4]
  return boxed(box(x, y, x + width, y + height))


def image_size(height: Any, width: Any) -> tuple[int, int] | None:
  """Return the size of an image as annotated; None if it is not recorded, or no size."""
  size = numbers([height, width])
  return (int(size[0]), int(size[1])) if size and min(size) >= 1 else None


def chosen(folder: SourceFolder, files: Sequence[str], options: Options, what: str) -> list[str]:
  """Return the files of a layout, or only the one that the options name; raises UserError if that does not exist."""
  found = [file for file in files if options.annotation_file in (None, file)]
  if not found:
    raise UserError(f'{folder.root}: {options.annotation_file}: no {what} in the source: --annotation_file is relative '
                    'to it')
  return found


def count_unannotated(folder: SourceFolder, used: Collection[str], reading: Reading,
                      reason: str = NOT_ANNOTATED, folders: Collection[str] = ()) -> None:
  """Count the images without an annotation beside those in use and in `folders`, which were not annotated yet."""
  folders = {*folders, *(posixpath.dirname(image) for image in used)}
  left = [image for image in folder.images if posixpath.dirname(image) in folders and image not in used]
  if left:
    reading.problems.add(reason, len(left), as_text(left[0]))


def refuse_several(folder: SourceFolder, files: Sequence[str], what: str, nested: bool = False) -> None:
  """Check that description files are those of one export. files: a folder of an export is that of its file.

  nested: whether a folder below another one is a further export, too.

  Raises:
    UserError: some are in folders side by side that both have images, each a data set with classes of its own.
  """
  roots = sorted({posixpath.dirname(file) for file in files if folder.below(posixpath.dirname(file))})
  inner = [root for root in roots if any(is_below(root, other) for other in roots if other != root)]
  if nested and inner:
    raise UserError(f'{folder.root}: the folder {as_text(inner[0])} is one of {len(roots)} {what} and lies within '
                    'another one: move it out of there, and give one of them')
  apart = [root for root in roots if not any(is_below(root, other) or is_below(other, root)
                                             for other in roots if other != root)]
  if len(apart) > 1:
    raise UserError(f'{folder.root}: holds {len(apart)} {what} ({folder.describe(apart)}): give one of these folders, '
                    'or merge them in the annotation tool, which knows whose classes are the same')


def splits_by_folder(images: Sequence[str]) -> dict[str, str | None]:
  """Return {image or annotation file: the split that its folders name}, None where they name none."""
  return {image: split_of(posixpath.dirname(image)) for image in images}
