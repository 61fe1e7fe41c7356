"""YOLO's text files, one an image: of Ultralytics, Roboflow and Label Studio (data.yaml or classes.txt, images/ and
labels/) and of Darknet and CVAT (obj.names, obj.data, train.txt and obj_train_data/ with images and labels).

A line is `class x y width height` of the centre, with keypoints behind it in pose data (yolo_pose.py), or
`class x0 y0 x1 y1 ...` of an outline, in fractions of the image.
"""

from __future__ import annotations

import contextlib
import itertools
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rethink_tf.data.categories import as_text
from rethink_tf.data.prepare import yaml_text
from rethink_tf.data.prepare.class_numbers import UNKNOWN_CLASS, check_names, check_numbers, listed_names
from rethink_tf.data.prepare.layout import (
  NO_AREA,
  NO_IMAGE,
  NO_IMAGE_FILES,
  NOT_FINITE,
  LabelledImage,
  Options,
  Reading,
  names_to_categories,
  output_name,
  refuse_several,
  splits_by_folder,
)
from rethink_tf.data.prepare.shapes import numbers
from rethink_tf.data.prepare.source_folder import EXAMINED, SourceFolder, split_of
from rethink_tf.data.prepare.yolo_pose import NO_PAIRS, NO_SHAPE, Pose, infer_pose, read_pose
from rethink_tf.data.problems import REPAIRED
from rethink_tf.errors import UserError, in_one_line

NAME, TITLE = 'yolo', 'YOLO text files'
NOT_A_LABEL = 'a line that is neither a box nor an outline'
IN_PIXELS = 'with coordinates that are not fractions of the image'
KEYPOINTS = 'with more or fewer values of keypoints than kpt_shape says (its box is used)'
NOT_IN_A_LIST = 'labelled image that no list or folder of the description has'
IN_SEVERAL = 'image that the description has in several splits (used in the first)'
DAMAGED = 'image whose label file cannot be read'
OF_FOUR_POINTS = ('every outline has four points: rotated boxes (OBB) are read as masks; to train on boxes alone, add '
                  '--gin_file=gin_configs/models/faster_rcnn.gin')
ONE_MORE = 'with a further number, a track or a confidence (ignored)'
_NAME_FILES = ('obj.names', 'classes.txt', 'labels.txt', '_darknet.labels', 'data.names', 'names.txt')
_LISTS = ('train.txt', 'val.txt', 'valid.txt', 'test.txt', 'trainval.txt')
_OTHER_TEXT = (*_NAME_FILES, *_LISTS, 'readme.txt', 'readme.roboflow.txt', 'readme.dataset.txt', 'requirements.txt')
_SAMPLED = 200  # label files by which keypoints are known
LARGEST = 2.0  # fraction; an object may be partly outside of its image


class _Description(NamedTuple):
  """The class names and splits that data.yaml, or the files of Darknet, describe."""

  file: str
  names: dict[int, str]
  splits: dict[str, list[str]]  # 'train', 'val', 'test' -> folders and lists of images, as written
  path: str
  pose: Pose | None = None


class _Listing(NamedTuple):
  """The images of a source."""

  images: dict[str, str | None]  # -> split, of several ones the first
  missing: list[str]  # listed names without an image
  unresolved: list[str]  # lists and folders of the description that are not there
  repeated: list[str]  # images of more than one split
  listed: bool  # by the description


def recognize(folder: SourceFolder) -> str | None:
  """Return the file of class names and a label file."""
  written = (file for file in _label_files(folder) if folder.size(file))  # images without objects have empty ones
  label = next((file for file in itertools.islice(written, EXAMINED) if _is_label(folder, file)), None)
  if label is None:
    return None
  described = _describe(folder, required=False)
  return f'{described.file}, {label}' if described else label


def read(folder: SourceFolder, options: Options) -> Reading:
  """Read the class names and list the images; label files are read one at a time."""
  described = _describe(folder, required=True)
  listing = _list_images(folder, described)
  labels = {image: _label_file(folder, image) for image in listing.images}
  found = [label for label in labels.values() if label is not None]
  inferred = None if described.pose else _infer_pose(folder, found)
  described = described._replace(pose=described.pose or inferred)
  reading = Reading(TITLE, iter(()), len(labels), _categories(described), upright=True)
  if inferred:
    reading.notes.append(NO_SHAPE.format(count=inferred.count))
  if described.pose and not described.pose.mirrored and not described.pose.names:
    reading.notes.append(NO_PAIRS.format(file=described.file))
  _note_images(described, listing, reading)
  if len(found) < len(labels):
    reading.notes.append(f'{len(labels) - len(found)} images have no label file: images without objects')
  _count_label_files(folder, described, labels, found, reading)
  reading.images = _images(folder, listing.images, labels, described, reading)
  return reading


def _note_images(described: _Description, listing: _Listing, reading: Reading) -> None:
  """Note where the images differ from those that the description lists."""
  if described.splits and not listing.listed:
    reading.notes.append(f'{described.file}: none of its lists and folders of images is in the source: the images with '
                         'label files are read')
  elif listing.unresolved:
    reading.notes.append(f'{described.file}: {", ".join(listing.unresolved)}: no such list or folder of images in the '
                         'source')
  if listing.repeated:
    reading.problems.add(IN_SEVERAL, len(set(listing.repeated)), as_text(listing.repeated[0]), REPAIRED)
  if listing.missing:
    reading.problems.add(NO_IMAGE, len(listing.missing), listing.missing[0])


def _count_label_files(folder: SourceFolder, described: _Description, labels: dict[str, str | None], found: list[str],
                       reading: Reading) -> None:
  """Count label files that are of no image, or of several. labels: of each image that is read; found: those there."""
  unused = set(_label_files(folder)) - set(found)
  outside = {label: image for image in folder.images
             if image not in labels and (label := _label_file(folder, image)) in unused}
  if outside:
    reading.problems.add(NOT_IN_A_LIST, len(outside), as_text(next(iter(outside.values()))))
  lists = {re.split(r'[/\\]', value)[-1] for values in described.splits.values() for value in values}
  unused = sorted(file for file in unused - outside.keys() if posixpath.basename(file) not in lists and (
    not folder.size(file) or _is_label(folder, file)))  # other texts are notes, lists and settings
  if unused:
    reading.problems.add('label file without its image', len(unused), as_text(unused[0]))
  shared = [label for label, count in Counter(found).items() if count > 1]
  if shared:
    reading.problems.add('label file of several images (used for each)', len(shared), shared[0], REPAIRED)


def _images(folder: SourceFolder, splits: dict[str, str | None], labels: dict[str, str | None],
            described: _Description, reading: Reading) -> Iterator[LabelledImage]:
  counts, used = Counter(), set()
  for image, split in splits.items():
    try:
      lines = folder.read_text(labels[image]).splitlines() if labels[image] is not None else ()
    except UserError as error:
      reading.problems.add(DAMAGED, 1, str(error))
      continue
    instances = []
    for i, line in enumerate(lines, start=1):
      if line.strip():
        counts['lines'] += 1
        instance = _parse(line, f'{labels[image]}, line {i}', described, reading, used)
        if instance is not None:
          instances.append(instance)
    outlines = [polygon for one in instances for polygon in one['segmentation']]
    counts['outlines'] += len(outlines)
    counts['of four points'] += sum(len(polygon) == 8 + 2 * (polygon[:2] == polygon[-2:]) for polygon in outlines)
    counts['objects'] += len(instances)
    yield LabelledImage(image, output_name(image), split, instances, fractions=True)
  if counts['outlines'] and counts['outlines'] == counts['of four points']:
    reading.notes.append(OF_FOUR_POINTS)
  check_numbers(folder, used, described.names, described.file)
  if counts['lines'] and not counts['objects']:
    raise UserError(f'{folder.root}: none of its {counts["lines"]} labels can be used: {reading.examples()}')


def _parse(line: str, where: str, described: _Description, reading: Reading,
           used: set[float]) -> dict[str, Any] | None:
  """Return an object with its coordinates as fractions; None if the line is left out. used: gets its class number."""
  words = line.split()
  try:
    values = numbers(list(map(float, words)))
  except ValueError:
    reading.leave_out(NOT_A_LABEL, where)
    return None
  if values is None:
    reading.leave_out(NOT_FINITE, where)
    return None
  used.add(values[0])
  if values[0] not in described.names:
    reading.leave_out(UNKNOWN_CLASS, where)
    return None
  key, values = int(values[0]), values[1:]
  keypoints = {}
  if described.pose and len(values) > 4:
    if len(values) == 4 + described.pose.length:
      keypoints = described.pose.of_object(values[4:])
    else:
      reading.leave_out(KEYPOINTS, where, outcome=REPAIRED)
    values = values[:4]
  elif len(values) > 4 and len(values) % 2:
    reading.leave_out(ONE_MORE, where, outcome=REPAIRED)
    values = values[:-1]
  if len(values) < 4:
    reading.leave_out(NOT_A_LABEL, where)
  elif max(map(abs, [*values, *keypoints.get('keypoints', ())])) > LARGEST:
    reading.leave_out(IN_PIXELS, where)
  elif len(values) > 4:
    return {'category': key, 'segmentation': [values]}
  else:
    x, y, w, h = values
    if w > 0 and h > 0:
      return {'category': key, 'bbox': [x - w / 2, y - h / 2, w, h], 'segmentation': [], **keypoints}
    reading.leave_out(NO_AREA, where)
  return None


def _infer_pose(folder: SourceFolder, labels: Sequence[str]) -> Pose | None:
  """Return the keypoints that some label files have although no description mentions them."""
  lines: list[list[float]] = []
  for label in labels[:_SAMPLED]:
    with contextlib.suppress(UserError, ValueError):
      lines += [[float(word) for word in line.split()[1:]] for line in folder.read_text(label).splitlines()]
  return infer_pose(lines)


def _describe(folder: SourceFolder, required: bool) -> _Description | None:
  """Return the class names and splits; raises UserError if they are required and missing, or damaged."""
  files = folder.with_suffix('.yaml', '.yml')
  found = [described for file in files if (described := _read_yaml(folder, file))]
  found = [one for one in found if one.splits] or found
  if not found:
    found = [_read_names(folder, file) for file in folder.named(*_NAME_FILES)]
    found = [one for one in found if one.names]
  if required:  # labelImg writes its classes.txt to each folder of images of one data set
    refuse_several(folder, [one.file for one in found if one.splits], 'exports of YOLO')
  if len(found) > 1 and len({tuple(one.names.items()) for one in found}) > 1 and required:
    raise UserError(f'{folder.root}: {folder.describe([one.file for one in found])} have different class names: remove '
                    'all but one')
  if not found and required:
    for file in files:
      yaml_text.parse(folder.path(file), folder.read_text(file))  # which says so if it is not UTF-8 text
    raise UserError(f'{folder.root}: YOLO labels without class names: write the names, one a line, to '
                    f'{folder.path("classes.txt")}, or add data.yaml')
  return found[0] if found else None


def _read_yaml(folder: SourceFolder, file: str) -> _Description | None:
  """Return the description in a YAML file; None if it has no class names."""
  try:
    content = yaml_text.parse(file, folder.read_text(file))
  except UserError:
    return None
  names = content.get('names') if isinstance(content, dict) else None
  if isinstance(names, list):
    names = dict(enumerate(names))
  if not isinstance(names, dict) or not names:
    return None
  where = folder.path(file)
  try:
    names = {int(key): name for key, name in names.items()}
  except (ValueError, TypeError) as error:
    raise UserError(f'{where}: names: keys should be class numbers: {in_one_line(error)}') from error
  check_names(names, where)
  splits = {}
  for key, split in (('train', 'train'), ('val', 'val'), ('valid', 'val'), ('validation', 'val'), ('test', 'test')):
    value = content.get(key)
    values = value if isinstance(value, list) else [value]
    if value and all(isinstance(one, str) for one in values):
      splits.setdefault(split, []).extend(values)
  path = content.get('path')
  return _Description(file, names, splits, path if isinstance(path, str) else '', read_pose(content, where))


def _read_names(folder: SourceFolder, file: str) -> _Description:
  """Return the description from a list of names, one a line, and Darknet's lists of images beside it."""
  names = listed_names(folder, file)
  splits: dict[str, list[str]] = {}
  for one in folder.named(*_LISTS):
    if posixpath.dirname(one) == posixpath.dirname(file):
      splits.setdefault(split_of(one) or 'train', []).append(one)
  return _Description(file, names, splits, '')


def _categories(described: _Description) -> dict[int, dict[str, Any]]:
  if list(described.names) == list(range(len(described.names))):
    found = names_to_categories(list(described.names.values()))
  else:
    found = {key: {'id': key + 1, 'name': name} for key, name in sorted(described.names.items())}
  return {key: entry | (described.pose.of_category(key) if described.pose else {}) for key, entry in found.items()}


def _list_images(folder: SourceFolder, described: _Description) -> _Listing:
  """List the images of the description, or, if it names none, those with label files."""
  images: dict[str, str | None] = {}
  missing: list[str] = []
  unresolved: list[str] = []
  repeated: list[str] = []
  for split, values in described.splits.items():
    for value in values:
      resolved = _resolve(folder, described, value)
      if resolved is None:
        unresolved.append(f'{split}: {as_text(value)}')
        continue
      missing += resolved[1]
      for image in resolved[0]:
        if images.setdefault(image, split) != split:
          repeated.append(image)
  listed = bool(images)
  if not listed:
    labelled = {posixpath.dirname(image) for image in folder.images if _label_file(folder, image) is not None}
    images = splits_by_folder([image for image in folder.images if posixpath.dirname(image) in labelled])
  if not folder.images:
    raise UserError(f'{folder.root}: {TITLE} without a usable image: {NO_IMAGE_FILES}')
  if not images:
    raise UserError(f'{folder.root}: none of its {len(folder.images)} images has a label file: labels/ should have a '
                    f'.txt for each image of images/')
  return _Listing(images, missing, unresolved, repeated, listed)


def _resolve(folder: SourceFolder, described: _Description, value: str) -> tuple[list[str], list[str]] | None:
  """Return the images of a folder, or of a list of images, and the listed names without an image; None if there is no
  such folder or list.

  The folder may be written as the path of another machine.
  """
  base = posixpath.dirname(described.file)
  parts = [part for part in re.split(r'[/\\]', value) if part not in ('', '.', '..')]
  for start in range(len(parts) + 1):
    for above in (posixpath.join(base, described.path.replace('\\', '/')), base, ''):
      candidate = posixpath.normpath(posixpath.join(above, *parts[start:]))
      candidate = '' if candidate == '.' else candidate
      if candidate in folder and candidate.lower().endswith('.txt'):
        lines = [line.strip() for line in folder.read_text(candidate).splitlines() if line.strip()]
        found = [(folder.find_image(line, of=candidate), line) for line in lines]
        return ([image for image, _ in found if image is not None],
                [as_text(line) for image, line in found if image is None])
      if start < len(parts) and folder.below(candidate):
        return folder.below(candidate), []
  return None


def _label_files(folder: SourceFolder) -> list[str]:
  return [file for file in folder.with_suffix('.txt') if posixpath.basename(file).lower() not in _OTHER_TEXT]


def _label_file(folder: SourceFolder, image: str) -> str | None:
  """Return the label file of an image: in labels/ instead of images/, or beside the image."""
  stem = posixpath.splitext(image)[0]
  parts = stem.split('/')
  candidates = []
  if places := [i for i, part in enumerate(parts[:-1]) if part.lower() == 'images']:
    candidates = ['/'.join([*parts[:places[-1]], 'labels', *parts[places[-1] + 1:]])]
  candidates += [stem, f'labels/{stem}', f'labels/{parts[-1]}']
  return next((file for one in candidates if (file := folder.in_any_case(f'{one}.txt')) is not None), None)


def _is_label(folder: SourceFolder, file: str) -> bool:
  try:
    line = next((line for line in folder.read_text(file).splitlines() if line.strip()), '')
  except UserError:
    return False
  return re.fullmatch(r'\s*\d+(\.0+)?(\s+\S+){4,}\s*', line) is not None and _float(line.split()[1])


def _float(word: str) -> bool:
  try:
    return float(word) is not None
  except ValueError:
    return False
