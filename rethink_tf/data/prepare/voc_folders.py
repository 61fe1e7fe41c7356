"""PASCAL VOC's xml, one an image: Annotations/ and JPEGImages/ with or without ImageSets/, or beside the images."""

from __future__ import annotations

import codecs
import posixpath
import re
from collections.abc import Iterator
from typing import Any

from rethink_tf.data.categories import as_text
from rethink_tf.data.detection.voc_xml import MAX_BYTES, VocAnnotation, XmlError, parse, too_large
from rethink_tf.data.prepare.layout import (
  NO_AREA,
  NO_IMAGE,
  NOT_FINITE,
  SECOND_FILE,
  LabelledImage,
  Options,
  Reading,
  count_unannotated,
  output_name,
  splits_by_folder,
)
from rethink_tf.data.prepare.shapes import box, boxed, numbers
from rethink_tf.data.prepare.source_folder import EXAMINED, IMAGE_SUFFIXES, SourceFolder, has_suffix
from rethink_tf.data.problems import REPAIRED
from rethink_tf.errors import UserError, in_one_line

NAME, TITLE = 'voc', "PASCAL VOC's xml"
DIFFICULT = 'marked difficult (not trained on, no false positive)'
DAMAGED = 'image whose annotation is damaged'
NOT_IN_A_LIST = 'annotation that no list of ImageSets/Main names'
NO_ANNOTATION = 'name in ImageSets/Main without an annotation'
POLYGON = 'with a <polygon>, which is not read (its box is used: export as COCO to have masks)'
_SETS = {'train': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val', 'test': 'test', 'trainval': 'train'}
_MEMBER = re.compile(r'\s+(-1|0|1)$')  # of a class: behind the names in a list of its own


def recognize(folder: SourceFolder) -> str | None:
  """Return one of the xml files that begin with <annotation>, None if there is none."""
  return next((file for file in folder.with_suffix('.xml')[:EXAMINED] if root_tag(folder, file) == 'annotation'), None)


def root_tag(folder: SourceFolder, file: str) -> str | None:
  """Return the name of the root element of an xml file, from its first bytes; None if there is none."""
  try:
    with open(folder.path(file), 'rb') as stream:
      head = stream.read(4096)
  except OSError:
    return None
  wide = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
  for piece in head.decode('utf-16' if wide else 'utf-8', 'replace').split('<')[1:]:
    if piece[:1].isalpha():
      return piece.split('>')[0].split()[0].rstrip('/')
  return None


def read(folder: SourceFolder, options: Options) -> Reading:
  """List the xml files; they are read one at a time."""
  files = folder.with_suffix('.xml')
  reading = Reading(TITLE, iter(()), len(files))
  listed = _listed(folder, files, reading)
  splits = listed or splits_by_folder(files)
  reading.total = len(splits)
  reading.images = _images(folder, splits, bool(listed), reading)
  unread = sorted({file.split('/')[0] if '/' not in posixpath.dirname(file) else posixpath.dirname(file)
                   for file in folder.images if posixpath.basename(posixpath.dirname(file)) == 'SegmentationObject'})
  if unread:
    reading.notes.append(f'{as_text(unread[0])}: the masks in it are not read')
  return reading


def _listed(folder: SourceFolder, files: list[str], reading: Reading) -> dict[str, str | None]:
  """Return xml file -> split by ImageSets/Main; {} without it. Names with spaces may stand in quotes.

  VoTT writes only lists of each class, with 1 or -1 behind a name, CVAT Train.txt and Validation.txt.
  """
  listed: dict[str, str | None] = {}
  stems = {file: posixpath.splitext(posixpath.basename(file))[0].lower() for file in folder.with_suffix('.txt')
           if posixpath.dirname(file).endswith('ImageSets/Main')}
  lists = {file: stem for file, stem in stems.items() if stem in _SETS} or {
    file: last for file, stem in stems.items() if (last := stem.rpartition('_')[2]) in _SETS}
  known, absent = set(files), {}
  for file, chosen in sorted(lists.items(), key=lambda one: list(_SETS).index(one[1])):
    root = posixpath.dirname(file).removesuffix('ImageSets/Main')
    for line in folder.read_text(file).splitlines():
      name = (_MEMBER.sub('', line.strip()) if chosen != stems[file] else line.strip()).strip('"')
      stem = posixpath.splitext(name)[0] if has_suffix(name, IMAGE_SUFFIXES) else name
      xml = f'{root}Annotations/{stem}.xml'
      if xml in known:
        listed.setdefault(xml, _SETS[chosen])
      elif name:
        absent.setdefault(xml, f'{file}: {name}')
  unlisted = [file for file in files if file not in listed]
  if listed and unlisted:
    reading.problems.add(NOT_IN_A_LIST, len(unlisted), as_text(unlisted[0]))
  if absent:
    reading.problems.add(NO_ANNOTATION, len(absent), as_text(next(iter(absent.values()))))
  return listed


def _images(folder: SourceFolder, splits: dict[str, str | None], listed: bool,
            reading: Reading) -> Iterator[LabelledImage]:
  used: set[str] = set()
  damaged, first = 0, ''
  for file, split in splits.items():
    try:
      data = _read(folder, file)
      annotation = parse(data, folder.path(file), own=True)
    except XmlError as error:
      damaged, first = damaged + 1, first or str(error)
      reading.problems.add(DAMAGED, 1, str(error))
      continue
    image = folder.image_of(file) or folder.find_image(annotation.file_name, of=file)
    if image is None or image in used:
      reading.problems.add(NO_IMAGE if image is None else SECOND_FILE, 1, as_text(file))
      continue
    used.add(image)
    reading.leave_out(POLYGON, file, data.count(b'<polygon'), REPAIRED)
    yield LabelledImage(image, output_name(image), split, _instances(annotation, file, reading), annotation.size)
  if damaged and damaged == len(splits):
    raise UserError(f'{first} ({damaged} of {damaged} annotations are damaged)')
  if not listed:
    count_unannotated(folder, used, reading)


def _read(folder: SourceFolder, file: str) -> bytes:
  path = folder.path(file)
  try:
    with open(path, 'rb') as stream:
      data = stream.read(MAX_BYTES + 1)
  except OSError as error:
    raise XmlError(f'{path}: cannot be read: {in_one_line(error)}') from error
  if len(data) > MAX_BYTES:
    raise too_large(len(data), path)
  return data


def _instances(annotation: VocAnnotation, file: str, reading: Reading) -> list[dict[str, Any]]:
  instances = []
  for i, one in enumerate(annotation.objects, start=1):
    where = f'{file}, object {i}'
    y0, x0, y1, x1 = one.box
    if numbers(one.box) is None or y1 <= y0 or x1 <= x0:
      reading.leave_out(NOT_FINITE if numbers(one.box) is None else NO_AREA, where)
      continue
    for repair in one.repairs:
      reading.leave_out(repair, where, outcome=REPAIRED)
    reading.leave_out(DIFFICULT, where, int(one.difficult), REPAIRED)
    instances.append({'category': one.name, 'iscrowd': int(one.difficult), **boxed(box(x0, y0, x1, y1))})
  return instances
