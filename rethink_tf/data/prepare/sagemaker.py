"""Manifests of SageMaker Ground Truth, as Rekognition Custom Labels takes them: a JSON line an image.

A line has the address of an image and, for each labelling job, the name of its attribute with the boxes, and that of
its metadata with the names of the classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from rethink_tf.data.categories import as_text, is_text, shorten
from rethink_tf.data.prepare import json_lines
from rethink_tf.data.prepare.layout import (
  NO_CLASS,
  NOT_NAMED,
  LabelledImage,
  Options,
  Reading,
  chosen,
  claim,
  count_unannotated,
  image_size,
  output_name,
  sized,
)
from rethink_tf.data.prepare.shapes import numbers
from rethink_tf.data.prepare.source_folder import EXAMINED, SourceFolder, split_of
from rethink_tf.errors import UserError

NAME, TITLE = 'sagemaker', "SageMaker Ground Truth's manifest"
ADJUSTED = '{file}: the boxes are those of the job {job}, which adjusts those of {others}'
NO_LABELS = 'image that the job has not labelled (not annotated yet)'
NOT_JSON = 'line that is not valid JSON, or has no source-ref'
_SUFFIXES = ('.manifest', '.jsonl', '.json')
_METADATA = '-metadata'


class _Line(NamedTuple):
  """A line of a manifest."""

  where: str
  entry: dict[str, Any]


def recognize(folder: SourceFolder) -> str | None:
  """Return the files whose first line has the address of an image."""
  files = _files(folder, folder.with_suffix(*_SUFFIXES)[:EXAMINED])
  return folder.describe(files) if files else None


def read(folder: SourceFolder, options: Options) -> Reading:
  """Read all manifests, which are the splits of one data set, or parts of it, each with the boxes of one job."""
  reading = Reading(TITLE, iter(()), 0)
  files = chosen(folder, _files(folder, folder.with_suffix(*_SUFFIXES)), options, 'manifest of SageMaker')
  lines = {file: list(_lines(folder, file, reading)) for file in files}
  reading.total = sum(map(len, lines.values()))
  jobs = {file: _job(folder, file, lines[file], options, reading) for file in files}
  if options.class_key not in (None, *jobs.values()):
    raise UserError(f'{folder.root}: --class_key = {options.class_key!r} is no job with boxes: '
                    f'{", ".join(sorted({*map(as_text, jobs.values())}))}')
  reading.images = _images(folder, lines, jobs, reading)
  return reading


def _files(folder: SourceFolder, files: list[str]) -> list[str]:
  return [file for file in files if 'source-ref' in json_lines.first(folder, file)]


def _lines(folder: SourceFolder, file: str, reading: Reading) -> Iterator[_Line]:
  for where, entry in json_lines.objects(folder, file):
    if is_text(entry.get('source-ref')):
      yield _Line(where, entry)
    else:
      reading.problems.add(NOT_JSON, 1, where)


def _metadata(entry: dict[str, Any], job: str) -> dict[str, Any]:
  """Return the metadata of a job of bounding boxes in a line; {} without."""
  found = entry.get(job + _METADATA)
  return found if isinstance(found, dict) and (
    found.get('type') == 'groundtruth/object-detection' or 'type' not in found and 'class-map' in found) else {}


def _job(folder: SourceFolder, file: str, lines: list[_Line], options: Options, reading: Reading) -> str:
  """Return the job whose boxes are read: the one that the options name, the only one, or the one that adjusts others.

  Raises:
    UserError: there is none, or there are several.
  """
  names = {key.removesuffix(_METADATA) for _, entry in lines for key in entry if key.endswith(_METADATA)}
  jobs = sorted(job for job in names if any(_metadata(entry, job) for _, entry in lines))
  adjusting = [job for job in jobs if any('adjustment-status' in _metadata(entry, job) for _, entry in lines)]
  if not jobs:
    raise UserError(f'{folder.path(file)}: no line has boxes of a labelling job (type groundtruth/object-detection): '
                    'give its output.manifest')
  if len(jobs) == 1 or options.class_key in jobs:
    return options.class_key if options.class_key in jobs else jobs[0]
  if len(adjusting) != 1:
    raise UserError(f'{folder.path(file)}: has boxes of the jobs {", ".join(map(as_text, jobs))}: name the one to read '
                    'with --class_key')
  reading.notes.append(ADJUSTED.format(file=as_text(file), job=as_text(adjusting[0]), others=', '.join(
    as_text(job) for job in jobs if job not in adjusting)))
  return adjusting[0]


def _images(folder: SourceFolder, lines: dict[str, list[_Line]], jobs: dict[str, str],
            reading: Reading) -> Iterator[LabelledImage]:
  used: set[str] = set()
  left: set[str] = set()
  for file, (where, entry) in ((file, line) for file, own in lines.items() for line in own):
    split, value, metadata = split_of(file), entry.get(jobs[file]), _metadata(entry, jobs[file])
    image = folder.find_image(entry['source-ref'], of=file, split=split)
    objects = value.get('annotations') if isinstance(value, dict) else None
    if not isinstance(objects, list) or not metadata or 'failure-reason' in metadata:
      reading.problems.add(NO_LABELS, 1, f'{where}, {shorten(entry["source-ref"])}')
      left.add(image or '')
    elif claim(image, used, reading, where, len(objects)):
      names = metadata['class-map'] if isinstance(metadata.get('class-map'), dict) else {}
      instances = [instance for i, one in enumerate(objects)
                   if (instance := _instance(one, names, f'{where}, annotations[{i}]', reading)) is not None]
      yield LabelledImage(image, output_name(image), split, instances, _size(value))
  count_unannotated(folder, used | left, reading, NOT_NAMED)


def _size(value: dict[str, Any]) -> tuple[int, int] | None:
  sizes = value.get('image_size')
  size = sizes[0] if isinstance(sizes, list) and sizes and isinstance(sizes[0], dict) else {}
  return image_size(size.get('height'), size.get('width'))


def _instance(one: Any, names: dict[str, Any], where: str, reading: Reading) -> dict[str, Any] | None:
  one = one if isinstance(one, dict) else {}
  name = names.get(str(one.get('class_id')))
  values = numbers([one.get(field) for field in ('left', 'top', 'width', 'height')])
  if not is_text(name) or not name.strip():
    reading.leave_out(NO_CLASS, where)
    return None
  fields = sized(values, where, reading)
  return None if fields is None else {'category': name.strip(), **fields}
