"""Contents of a data set and its suspicious annotations, as text and JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from rethink_tf import console
from rethink_tf.data import own_source
from rethink_tf.data import problems as reasons
from rethink_tf.data.buckets import padding_waste
from rethink_tf.data.detection.input import TrainInput
from rethink_tf.data.detection.suspicious import SuspiciousAnnotation, Table, find_suspicious
from rethink_tf.data.prepare.splitting import near_pairs
from rethink_tf.data.problems import SUSPICIOUS, Case, Problems
from rethink_tf.errors import UserError
from rethink_tf.inspect_data import statistics
from rethink_tf.inspect_data.statistics import Files
from rethink_tf.structures import Source

NEAR = 'near-duplicates'
TABLE_CLASSES = 100  # rows of the table of classes


class Split(NamedTuple):
  """The training or held-out images, and the results of their analysis."""

  title: str  # 'training' or 'held out'
  source: Source  # all images, including those that are dropped in training, unless it is of a subset
  table: Table
  summary: dict[str, Any]
  suspicious: list[SuspiciousAnnotation]
  problems: Problems  # by reason, as training reports them
  files: Files | None  # None if the files were not read


def analyse(title: str, make_source: Callable[..., Source], read_files: str, trained_on: Source | None = None) -> Split:
  """Analyse all images of a source, or those of `trained_on` if these are a subset.

  Args:
    title: of the split.
    make_source: called with training=False.
    read_files: 'none', 'read' or 'decode'.
    trained_on: of the training split: made with training=True; analysed in place of all images if these have other
      images with objects, or if only training tolerates the damage of the data.

  Raises:
    UserError: the source cannot be read, and there is no trained_on.
  """
  try:
    source = make_source(training=False)
  except UserError as error:
    if trained_on is None:
      raise
    logging.warning('only the images that are trained on are analysed: %s', error)
    source = trained_on
  if trained_on is not None and not _are_those_of(source, trained_on):
    source = trained_on
  table = statistics.collect(own_source.checked(source, scored=True))
  files = None
  if read_files != 'none':
    progress = console.Progress(f'files, {title}', len(source.image_ids))
    files = statistics.fingerprints(source, read_files == 'decode', on_file=progress.count)
  found = find_suspicious(table, source.sizes)
  problems = getattr(source, 'problems', None)
  return Split(title, source, table, statistics.summarise(table, source), found,
               _as_problems(found, table, source) if problems is None else problems, files)


def _are_those_of(source: Source, trained_on: Source) -> bool:
  """Whether training uses all images of a source, or all that have an object.

  A subset, such as a fraction, is one of the images with objects in training and one of all images without.
  """
  useful = np.asarray(source.num_instances) > 0
  if source.num_keypoints and hasattr(source, 'num_visible'):
    useful &= np.asarray(source.num_visible) > 0
  ids, trained = np.asarray(source.image_ids), np.sort(trained_on.image_ids)
  return any(np.array_equal(np.sort(each), trained) for each in (ids[useful], ids))


def _as_problems(suspicious: list[SuspiciousAnnotation], table: Table, source: Source) -> Problems:
  """Count suspicious annotations of a source that does not check its annotations itself."""
  problems = Problems()
  for kind, row, other in suspicious:
    image_id, id_ = int(source.image_ids[table.images[row]]), int(table.ids[row])
    boxes = (None if i is None else tuple(table.boxes[i].tolist()) for i in (row, other))
    label = source.categories[table.classes[row] - 1].name
    problems.add(kind, 1, [Case(f'image {image_id}, annotation {id_}', image_id, id_, *boxes, label)], SUSPICIOUS)
  return problems


def shared_images(training: Split, held_out: Split) -> dict[str, list[tuple[int, int]]]:
  """Return the images that both splits share, as {criterion: pairs of indices}."""
  keys = {'id': [split.source.image_ids.tolist() for split in (training, held_out)],
          'name': [statistics.base_names(split.source) for split in (training, held_out)]}
  if training.files is not None and held_out.files is not None:
    keys['content'] = [split.files.fingerprints for split in (training, held_out)]
  found = {kind: statistics.matching_pairs(*pair) for kind, pair in keys.items()}
  looks = [split.files and split.files.looks for split in (training, held_out)]
  return found | ({NEAR: near_pairs(*looks)} if all(looks) else {})


def padding(inputs: TrainInput) -> list[dict[str, Any]]:
  """Return number of images and fraction of padding for each padded shape of the input, and for all in the last row."""
  sizes = inputs.resize.largest_sizes(inputs.source.sizes)
  rows = []
  for bucket in np.unique(inputs.buckets).tolist():
    members = inputs.buckets == bucket
    rows.append({'padded_shape': inputs.padded_shapes[bucket].tolist(), 'images': int(members.sum()),
                 'waste': round(padding_waste(sizes[members], inputs.padded_shapes, inputs.buckets[members]), 4)})
  return rows + [{'padded_shape': None, 'images': len(sizes),
                  'waste': round(padding_waste(sizes, inputs.padded_shapes, inputs.buckets), 4)}]


def as_text(training: Split, held_out: Split, inputs: TrainInput, padding_rows: list[dict[str, Any]],
            shared: dict[str, list[tuple[int, int]]], notes: Sequence[str] = ()) -> str:
  """Format the results as text. notes: on missing images and on limits that the data exceeds."""
  splits = [(split.title, split.problems) for split in (training, held_out)]
  lines = [*_describe(training), *_describe(held_out), 'annotations repaired, left out or suspicious',
           *(reasons.table(splits) or ['  none']), '']
  dropped = len(training.source.image_ids) - len(inputs.source.image_ids)
  lines += ['training input',
            f'  {len(inputs.source.image_ids)} images are trained on; {dropped} are dropped (no object)',
            '  padded shape    images  padding']
  lines += [f'  {"x".join(map(str, row["padded_shape"])) if row["padded_shape"] else "all":14} {row["images"]:7} '
            f'{100 * row["waste"]:6.1f} %' for row in padding_rows]
  lines += ['', 'missing images, and limits on the objects of an image']
  lines += [f'  {note}' for note in notes or ['all images are there, and none has more objects than the limits']]
  lines += ['', 'images in both training and held-out data']
  for kind, pairs in shared.items():
    note = ' (harmless if the content differs)' if kind in ('id', 'name') and pairs else ''
    title = NEAR if kind == NEAR else f'same {kind}'
    lines.append(f'  {title:15} {len(pairs):6} images{note}'
                 + _examples([f'{_name(training, i)} = {_name(held_out, j)}' for i, j in pairs]))
  return '\n'.join(lines) + '\n'


def _name(split: Split, i: int) -> str:
  return (getattr(split.source, 'file_names', None) or split.source.image_ids)[i]


def _describe(split: Split) -> list[str]:
  s = split.summary
  lines = [f'{split.title}: {split.source.name}',
           f'  {s["images"]} images, {s["instances"]} instances, {s["crowds"]} crowds (or difficult), '
           f'{len(s["classes"])} classes',
           '  by area          ' + '   '.join(f'{name} {count} ({100 * count / max(s["instances"], 1):.0f} %)'
                                               for name, count in s['areas'].items()),
           f'  {"":22} {"min":>9} {"10%":>9} {"median":>9} {"90%":>9} {"max":>9}']
  for name, label in (('box_side', 'box side, px'), ('aspect_ratio', 'width : height'),
                      ('instances_per_image', 'instances per image'), ('height', 'image height'),
                      ('width', 'image width')):
    lines.append(f'  {label:22} ' + ' '.join(f'{value:9.4g}' for value in (s[name] or {}).values()))
  ranked = sorted(s['classes'], key=lambda c: -c['instances'])
  lines.append('  class                    instances   images')
  lines += [f'  {c["name"][:24]:24} {c["instances"]:9} {c["images"]:8}' for c in ranked[:TABLE_CLASSES]]
  if len(ranked) > TABLE_CLASSES:
    lines.append(f'  ... and {len(ranked) - TABLE_CLASSES} more, in report.json')
  return [*lines, *_describe_problems(split), '']


def _describe_problems(split: Split) -> list[str]:
  s = split.summary
  lines = ['  possible problems', f'  {s["images_without_objects"]:7} images without objects',
           f'  {len(s["few"]):7} classes with fewer than {statistics.FEW_INSTANCES} instances' + _examples(s['few'])]
  names = [name and name.casefold() for name in statistics.base_names(split.source)]
  lines.append(_describe_duplicates('name', statistics.duplicates(names), split))
  if split.files is not None:
    lines.append(_describe_duplicates('content', statistics.duplicates(split.files.fingerprints), split))
    only_read = split.files.looks is None and hasattr(split.source, 'read')
    lines.append(f'  {len(split.files.unreadable):7} unreadable files' + _examples([*split.files.unreadable.values()])
                 + ' (not decoded: --files=decode finds damaged ones)' * only_read)
  return lines + [f'  {len(names):7} images {reason}' + _examples(sorted(map(str, names)))
                  for reason, names in _notes(split).items()]


def _notes(split: Split) -> dict[str, set[str]]:
  """Return unusual properties of the image files read so far, as {reason: names}."""
  return split.source.notes.names if hasattr(split.source, 'notes') else {}


def _describe_duplicates(what: str, groups: list[list[int]], split: Split) -> str:
  ids = split.source.image_ids
  return (f'  {sum(map(len, groups)):7} images with the same file {what} as another'
          + _examples([' = '.join(str(ids[i]) for i in group) for group in groups]))


def _examples(texts: Sequence[str]) -> str:
  return f': {", ".join(texts[:3])}{", ..." if len(texts) > 3 else ""}' if texts else ''


def as_json(training: Split, held_out: Split, padding_rows: list[dict[str, Any]],
            shared: dict[str, list[tuple[int, int]]], notes: Sequence[str] = ()) -> dict[str, Any]:
  """Return the results as JSON; suspicious annotations are given by the ids of image and annotation."""
  content: dict[str, Any] = {'padding': padding_rows, 'notes': list(notes)}
  for split in (training, held_out):
    ids = split.source.image_ids
    suspicious = [{'kind': suspect.kind, 'image_id': int(ids[split.table.images[suspect.row]]),
                   'annotation_id': int(split.table.ids[suspect.row])}
                  | ({} if suspect.other is None else {'other_annotation_id': int(split.table.ids[suspect.other])})
                  for suspect in split.suspicious]
    content[split.title] = {'name': split.source.name, **split.summary, 'suspicious': suspicious,
                            'left_out_or_changed': split.problems.changed(), 'problems': split.problems.to_json(),
                            'unusual_images': {reason: sorted(map(str, names))
                                               for reason, names in _notes(split).items()}}
    if split.files is not None:
      content[split.title]['unreadable'] = {int(ids[i]): reason for i, reason in split.files.unreadable.items()}
  content['in_both'] = {kind: [[int(training.source.image_ids[i]), int(held_out.source.image_ids[j])] for i, j in pairs]
                        for kind, pairs in shared.items()}
  return content
