"""What a data set holds and what looks wrong in it, as text and JSON."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

from absl import flags

from rethink_tf.errors import UserError

FLAGS = flags.FLAGS

EXAMPLES = 6  # of each kind of doubt
TABLE_CLASSES = 100


class Part(NamedTuple):
  """Training or held-out images, and what was found about them."""

  title: str
  source: Any  # all images, also those that training leaves out
  table: Any  # data.statistics.Table
  summary: dict[str, Any]
  suspicious: list[Any]
  files: Any  # data.statistics.Files, None without --files


def look_at(title: str, make: Any, instead: Any) -> Part:
  """Statistics of a source, of all its images; `instead` where some are so damaged that only training passes over."""
  from absl import logging

  from rethink_tf import console
  from rethink_tf.inspect_data import statistics

  try:
    source = make(training=False)
  except UserError as error:
    if instead is None:
      raise
    logging.warning('only what is trained on is looked at, since %s', error)
    source = instead
  table = statistics.collect(source)
  files = None
  if FLAGS.files != 'none':
    progress = console.Progress(f'files, {title}', len(source.image_ids))
    files = statistics.fingerprints(source, FLAGS.files == 'decode', tell=progress.count)
  return Part(title, source, table, statistics.summary(table, source), statistics.suspicious(table, source.sizes),
              files)


def both(training: Part, held_out: Part) -> dict[str, list[tuple[int, int]]]:
  """What training and held-out images share, by what they are compared: pairs of indices."""
  from rethink_tf.inspect_data import statistics

  keys = {'id': [part.source.image_ids.tolist() for part in (training, held_out)],
          'name': [statistics.base_names(part.source) for part in (training, held_out)]}
  if training.files is not None:
    keys['content'] = [part.files.fingerprints for part in (training, held_out)]
  return {kind: statistics.in_both(*pair) for kind, pair in keys.items()}


def padding(inputs: Any) -> list[dict[str, Any]]:
  """Images and share of padding of each canvas of the training input, and of all together at the end."""
  import numpy as np

  from rethink_tf.data.buckets import padding_waste

  sizes = inputs.resize.largest_sizes(inputs.source.sizes)
  rows = []
  for bucket in np.unique(inputs.buckets).tolist():
    here = inputs.buckets == bucket
    rows.append({'canvas': inputs.padded_shapes[bucket].tolist(), 'images': int(here.sum()),
                 'waste': round(padding_waste(sizes[here], inputs.padded_shapes, inputs.buckets[here]), 4)})
  return rows + [{'canvas': None, 'images': len(sizes),
                  'waste': round(padding_waste(sizes, inputs.padded_shapes, inputs.buckets), 4)}]


def report(parts: list[Part], inputs: Any, waste: list[dict], crossing: dict[str, list]) -> str:
  """Everything as text."""
  lines = []
  for part in parts:
    lines += _about(part)
  over = int((inputs.source.num_instances > inputs.max_instances).sum())
  left_out = len(parts[0].source.image_ids) - len(inputs.source.image_ids)
  lines += ['training input',
            f'  {len(inputs.source.image_ids)} images are trained on; {left_out} are left out (no object, or no file)',
            f'  {over} images have more than {inputs.max_instances} instances (max_instances): the smallest are left '
            'out',
            '  canvas          images  padding']
  lines += [f'  {"x".join(map(str, row["canvas"])) if row["canvas"] else "all":14} {row["images"]:7} '
            f'{100 * row["waste"]:6.1f} %' for row in waste]
  lines += ['', 'training and held out share']
  for kind, pairs in crossing.items():
    harmless = ' (harmless where the content differs)' if kind != 'content' and pairs else ''
    lines.append(f'  the same {kind:8} {len(pairs):6} images{harmless}'
                 + _examples([str(parts[1].source.image_ids[j]) for _, j in pairs]))
  return '\n'.join(lines) + '\n'


def _about(part: Part) -> list[str]:
  from rethink_tf.inspect_data import statistics

  s = part.summary
  lines = [f'{part.title}: {part.source.name}',
           f'  {s["images"]} images, {s["instances"]} instances, {s["crowds"]} crowds (or difficult), '
           f'{len(s["classes"])} classes',
           '  by area          ' + '   '.join(f'{name} {count} ({100 * count / max(s["instances"], 1):.0f} %)'
                                               for name, count in s['areas'].items()),
           f'  {"":22} {"min":>9} {"10%":>9} {"median":>9} {"90%":>9} {"max":>9}']
  for name, label in (('box_side', 'side of boxes, px'), ('aspect_ratio', 'width : height'),
                      ('instances_per_image', 'instances an image'), ('height', 'height of images'),
                      ('width', 'width of images')):
    lines.append(f'  {label:22} ' + ' '.join(f'{value:9.4g}' for value in (s[name] or {}).values()))
  ranked = sorted(s['classes'], key=lambda c: -c['instances'])
  lines.append('  class                    instances   images')
  lines += [f'  {c["name"][:24]:24} {c["instances"]:9} {c["images"]:8}' for c in ranked[:TABLE_CLASSES]]
  if len(ranked) > TABLE_CLASSES:
    lines.append(f'  ... and {len(ranked) - TABLE_CLASSES} more, in report.json')
  lines += ['  what looks wrong', f'  {s["images_without_objects"]:7} images without objects',
            f'  {len(s["few"]):7} classes with fewer than {statistics.FEW} instances' + _examples(s['few'])]
  kinds = collections.Counter(suspect.kind for suspect in part.suspicious)
  for kind, count in kinds.most_common():
    rows = [suspect.row for suspect in part.suspicious if suspect.kind == kind]
    lines.append(f'  {count:7} {kind}' + _examples([f'annotation {part.table.ids[row]}' for row in rows]))
  names = [name and name.casefold() for name in statistics.base_names(part.source)]
  lines += _twice('name', statistics.twice(names), part)
  if part.files is not None:
    lines += _twice('content', statistics.twice(part.files.fingerprints), part)
    lines.append(f'  {len(part.files.unreadable):7} files that cannot be read'
                 + _examples(list(part.files.unreadable.values())))
  lines += [f'  {count:7} annotations {reason}' for reason, count in getattr(part.source, 'skipped', {}).items()]
  return [*lines, '']


def _twice(what, groups, part):
  ids = part.source.image_ids
  return [f'  {sum(map(len, groups)):7} images that share their file\'s {what} with another'
          + _examples([' = '.join(str(ids[i]) for i in group) for group in groups])]


def _examples(texts):
  return f': {", ".join(texts[:3])}{", ..." if len(texts) > 3 else ""}' if texts else ''


def as_json(parts: list[Part], waste: list[dict], crossing: dict[str, list]) -> dict[str, Any]:
  """Everything for programs; every doubt by the ids of image and annotation."""
  content: dict[str, Any] = {'padding': waste}
  for part in parts:
    ids = part.source.image_ids
    suspicious = [{'kind': suspect.kind, 'image_id': int(ids[part.table.images[suspect.row]]),
               'annotation_id': int(part.table.ids[suspect.row])}
              | ({} if suspect.other is None else {'other_annotation_id': int(part.table.ids[suspect.other])})
              for suspect in part.suspicious]
    content[part.title] = {'name': part.source.name, **part.summary, 'doubts': suspicious,
                           'left_out_or_changed': dict(getattr(part.source, 'skipped', {}))}
    if part.files is not None:
      content[part.title]['unreadable'] = {int(ids[i]): why for i, why in part.files.unreadable.items()}
  held_out = parts[1].source.image_ids
  content['in_both'] = {kind: [[int(parts[0].source.image_ids[i]), int(held_out[j])] for i, j in pairs]
                        for kind, pairs in crossing.items()}
  return content
