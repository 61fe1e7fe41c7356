"""What a configuration really trains on: python -m rethink_tf.inspect_data --gin_file=gin_configs/scratch_6x.gin.

Writes, by default into data/ of the run folder, or with --data_dir alone into runs/data/<its name>: report.txt (also
printed) and report.json with the statistics of the training and held-out images and whatever looks wrong in them;
training.png, batches as the network gets them, with the ground truth that travels along and the canvases' padding;
statistics.png; doubts.png, what looks wrong.
"""

from __future__ import annotations

import collections
import io
import json
import os
import sys
from typing import Any, NamedTuple

from absl import flags

from rethink_tf import command_line
from rethink_tf.errors import UserError

FLAGS = flags.FLAGS
EXAMPLES = 6  # of each kind of doubt
NAMED_CLASSES = 90  # more would be unreadable below the bars
TABLE_CLASSES = 100
COLUMNS = 4


class Part(NamedTuple):
  """Training or held-out images, and what was found about them."""

  title: str
  source: Any  # all images, also those that training leaves out
  table: Any  # data.statistics.Table
  summary: dict[str, Any]
  doubts: list[Any]
  files: Any  # data.statistics.Files, None without --files


def default_output(model_dir: str) -> str:
  """data/ in the run folder; of a folder of data that no run has been named for, runs/data/<its name>."""
  if FLAGS.model_dir or not FLAGS.data_dir:
    return f'{model_dir.rstrip("/")}/data'
  return f'runs/data/{os.path.basename(FLAGS.data_dir.rstrip("/"))}'


def main() -> None:
  """Reads the sources of a configuration, and reports."""
  from rethink_tf import experiment, gin_files, reporting

  if FLAGS.pictures < 0:
    raise UserError(f'--pictures = {FLAGS.pictures}: use 0 or more')
  model_dir = FLAGS.model_dir or gin_files.default_run_folder(FLAGS.gin_file)
  if not model_dir:
    raise UserError('nothing to inspect: name a configuration with --gin_file, or a run with --model_dir')
  command_line.configure(FLAGS.gin_file or [gin_files.saved_config(model_dir)])
  output = os.path.expanduser(FLAGS.output or default_output(model_dir))

  def argument(name):
    return gin_files.argument(experiment.run, name)

  trained_on = argument('train_source')(training=True)
  if not hasattr(trained_on, 'num_instances'):
    raise UserError('this configuration trains a classifier: inspect_data looks at detection data')
  feed = argument('train_input')(trained_on, argument('batch_size'), argument('seed'))
  parts = [look_at('training', argument('train_source'), trained_on),
           look_at('held out', argument('eval_source'), None)]
  crossing = both(*parts)
  waste = padding(feed)
  text = report(parts, feed, waste, crossing)
  print(text, flush=True)
  reporting.write(f'{output}/report.txt', text.encode())
  reporting.write(f'{output}/report.json', json.dumps(as_json(parts, waste, crossing), indent=1).encode())
  reporting.write(f'{output}/statistics.png', plots(parts, feed, waste))
  if FLAGS.pictures:
    reporting.write(f'{output}/training.png', training_sheet(feed, FLAGS.pictures))
  sheet = doubtful_sheet(parts)
  if sheet is not None:
    reporting.write(f'{output}/doubts.png', sheet)
  print(f'pictures and tables: {output}')


def look_at(title: str, make: Any, instead: Any) -> Part:
  """Statistics of a source, of all its images; `instead` where some are so damaged that only training passes over."""
  from absl import logging

  from rethink_tf import reporting
  from rethink_tf.data import statistics

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
    progress = reporting.Progress(f'files, {title}', len(source.image_ids))
    files = statistics.fingerprints(source, FLAGS.files == 'decode', tell=progress.count)
  return Part(title, source, table, statistics.summary(table, source), statistics.doubts(table, source.sizes), files)


def both(training: Part, held_out: Part) -> dict[str, list[tuple[int, int]]]:
  """What training and held-out images share, by what they are compared: pairs of indices."""
  from rethink_tf.data import statistics

  keys = {'id': [part.source.image_ids.tolist() for part in (training, held_out)],
          'name': [statistics.base_names(part.source) for part in (training, held_out)]}
  if training.files is not None:
    keys['content'] = [part.files.fingerprints for part in (training, held_out)]
  return {kind: statistics.in_both(*pair) for kind, pair in keys.items()}


def padding(feed: Any) -> list[dict[str, Any]]:
  """Images and share of padding of each canvas of the training input, and of all together at the end."""
  import numpy as np

  from rethink_tf.data.buckets import padding_waste

  sizes = feed.resize.largest_sizes(feed.source.sizes)
  rows = []
  for bucket in np.unique(feed.buckets).tolist():
    here = feed.buckets == bucket
    rows.append({'canvas': feed.canvases[bucket].tolist(), 'images': int(here.sum()),
                 'waste': round(padding_waste(sizes[here], feed.canvases, feed.buckets[here]), 4)})
  return rows + [{'canvas': None, 'images': len(sizes),
                  'waste': round(padding_waste(sizes, feed.canvases, feed.buckets), 4)}]


def report(parts: list[Part], feed: Any, waste: list[dict], crossing: dict[str, list]) -> str:
  """Everything as text."""
  lines = []
  for part in parts:
    lines += _about(part)
  over = int((feed.source.num_instances > feed.max_instances).sum())
  left_out = len(parts[0].source.image_ids) - len(feed.source.image_ids)
  lines += ['training input',
            f'  {len(feed.source.image_ids)} images are trained on; {left_out} are left out (no object, or no file)',
            f'  {over} images have more than {feed.max_instances} instances (max_instances): the smallest are left out',
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
  from rethink_tf.data import statistics

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
  kinds = collections.Counter(doubt.kind for doubt in part.doubts)
  for kind, count in kinds.most_common():
    rows = [doubt.row for doubt in part.doubts if doubt.kind == kind]
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
    doubts = [{'kind': doubt.kind, 'image_id': int(ids[part.table.images[doubt.row]]),
               'annotation_id': int(part.table.ids[doubt.row])}
              | ({} if doubt.other is None else {'other_annotation_id': int(part.table.ids[doubt.other])})
              for doubt in part.doubts]
    content[part.title] = {'name': part.source.name, **part.summary, 'doubts': doubts,
                           'left_out_or_changed': dict(getattr(part.source, 'skipped', {}))}
    if part.files is not None:
      content[part.title]['unreadable'] = {int(ids[i]): why for i, why in part.files.unreadable.items()}
  held_out = parts[1].source.image_ids
  content['in_both'] = {kind: [[int(parts[0].source.image_ids[i]), int(held_out[j])] for i, j in pairs]
                        for kind, pairs in crossing.items()}
  return content


def training_sheet(feed: Any, number: int) -> bytes:
  """Pictures of training as the network gets them, padding hatched, with boxes, masks and keypoints, as a PNG."""
  from rethink_tf import pictures

  names = [category.name for category in feed.source.categories]
  skeleton = next((category.skeleton for category in feed.source.categories if category.keypoints), ())
  cells, titles, step = [], [], 0
  while len(cells) < number:
    batch = feed.batch(step)
    for row in range(min(len(batch.images), number - len(cells))):
      size = batch.image_sizes[row].astype(int)
      used = batch.gt_classes[row] > 0
      image = pictures.hatch(batch.images[row], *size.tolist())
      crops, masks = batch.gt_masks[row][used], None
      if not crops.all():  # as in data of boxes alone, where the whole box would be painted over
        masks = pictures.uncrop(crops, batch.gt_boxes[row][used], *image.shape[:2])
      cells.append(pictures.draw(image, batch.gt_boxes[row][used], batch.gt_classes[row][used], names, masks=masks,
                                 keypoints=batch.gt_keypoints[row][used] if feed.source.num_keypoints else None,
                                 skeleton=skeleton))
      titles.append(f'image {batch.image_ids[row]}: {size[0]}x{size[1]} on {"x".join(map(str, image.shape[:2]))}')
    step += 1
  return pictures.png(pictures.sheet(cells, COLUMNS, titles))


def doubtful_sheet(parts: list[Part]) -> bytes | None:
  """What looks wrong, a row a kind, as a PNG; None if nothing does."""
  import numpy as np

  from rethink_tf import pictures

  rows = []
  for part in parts:
    for kind in dict.fromkeys(doubt.kind for doubt in part.doubts):
      doubts = [doubt for doubt in part.doubts if doubt.kind == kind]
      drawn = [one for one in (_draw_doubt(part, doubt) for doubt in doubts[:EXAMPLES]) if one is not None]
      if drawn:
        blank = (np.full((8, 8, 3), 255, np.uint8), '')
        row = pictures.sheet(*_columns([*drawn, *[blank] * (EXAMPLES - len(drawn))]), width=320)
        rows.append(pictures.under_heading(f'{part.title}: {kind} ({len(doubts)})', row))
  if not rows:
    return None
  key = 'green: the box as annotated; orange: the other box, or the extent of the mask'
  return pictures.png(pictures.stack([
    pictures.under_heading(key, np.full((8, rows[0].shape[1], 3), 255, np.uint8)), *rows]))


def _columns(drawn):
  return [picture for picture, _ in drawn], EXAMPLES, [title for _, title in drawn]


def _draw_doubt(part, doubt):
  from rethink_tf import pictures
  from rethink_tf.data.images import ImageError
  from rethink_tf.data.statistics import MASK_ELSEWHERE

  table, i = part.table, int(part.table.images[doubt.row])
  names = [category.name for category in part.source.categories]
  try:
    image = part.source.load(i).image
  except ImageError:
    return None
  other, text = None, ''
  if doubt.other is not None:
    other, text = table.boxes[doubt.other], names[table.classes[doubt.other] - 1]
  elif doubt.kind == MASK_ELSEWHERE:
    other, text = table.mask_boxes[doubt.row], 'mask'
  picture = pictures.draw_mistake(image, other, text, table.boxes[doubt.row], names[table.classes[doubt.row] - 1])
  return picture, f'image {part.source.image_ids[i]}, annotation {table.ids[doubt.row]}'


# Over 60 lines: one panel after the other.
def plots(parts: list[Part], feed: Any, waste: list[dict]) -> bytes:
  """The long tail of classes, and distributions of training, as a PNG."""
  import numpy as np
  from matplotlib.backends.backend_agg import FigureCanvasAgg  # 0.3 s, and only needed here
  from matplotlib.figure import Figure

  part, held_out = parts
  figure = Figure(figsize=(15, 11), dpi=100, layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.subplot_mosaic([['tail'] * 4, ['area', 'side', 'ratio', 'count'],
                                ['size', 'size', 'padding', 'padding']])
  classes = part.summary['classes']
  order = sorted(range(len(classes)), key=lambda k: -classes[k]['instances'])
  tail, places = axes['tail'], np.arange(len(order))
  tail.bar(places, [classes[k]['instances'] for k in order], color='#1f6fb4', width=0.8, label='training')
  tail.plot(places, [held_out.summary['classes'][k]['instances'] for k in order], 'o', markersize=3, color='#d1495b',
            label='held out')
  tail.set_yscale('symlog', linthresh=1)
  tail.set_xlim(-0.8, max(len(order), 8) - 0.2)
  if len(order) <= NAMED_CLASSES:
    tail.set_xticks(places, [classes[k]['name'][:20] for k in order], rotation=90 if len(order) > 12 else 0, fontsize=8,
                    parse_math=False)
  tail.set_title('instances by class', loc='left', fontsize=10)
  tail.legend(frameon=False, fontsize=9)

  table, objects = part.table, ~part.table.crowds
  sides = np.maximum(table.boxes[:, 2:] - table.boxes[:, :2], 0)
  good = objects & (sides > 0).all(axis=1)
  scale = (feed.resize.largest_sizes(part.source.sizes) / np.maximum(part.source.sizes, 1)).mean(axis=1)
  areas = part.summary['areas']
  bars = axes['area'].bar(list(areas), list(areas.values()), color=['#4aa5a8', '#1f6fb4', '#7a52a3'])
  axes['area'].bar_label(bars)
  axes['area'].margins(y=0.12)  # for the numbers
  axes['area'].set_title("instances by COCO's areas", loc='left', fontsize=10)
  roots = np.sqrt(sides.prod(axis=1))
  bins = np.geomspace(2, 2048, 41)
  axes['side'].hist(roots[good], bins, color='#c3cad3', label='as annotated')
  axes['side'].hist((roots * scale[table.images])[good], bins, histtype='step', color='#1f6fb4', linewidth=1.6,
                    label='as the network sees it')
  axes['side'].set_xscale('log')
  axes['side'].margins(y=0.3)  # for the legend
  axes['side'].legend(frameon=False, fontsize=8, loc='upper left')
  axes['side'].set_title('side of boxes (root of the area), px', loc='left', fontsize=10)
  axes['ratio'].hist(np.log2(sides[good, 1] / sides[good, 0]), np.linspace(-4, 4, 33), color='#1f6fb4')
  axes['ratio'].set_xticks([-4, -2, 0, 2, 4], ['1:16', '1:4', '1:1', '4:1', '16:1'])
  axes['ratio'].set_title('width : height of boxes', loc='left', fontsize=10)
  counts = np.bincount(table.images[objects], minlength=len(part.source.image_ids))
  axes['count'].hist(counts, np.arange(min(counts.max(), 100) + 2) - 0.5, color='#1f6fb4')
  axes['count'].set_title('instances an image', loc='left', fontsize=10)
  heights, widths = np.asarray(part.source.sizes).T
  axes['size'].plot(widths, heights, 'o', markersize=3, alpha=0.3, color='#1f6fb4')
  axes['size'].set_xlim(left=0)
  axes['size'].set_ylim(bottom=0)
  axes['size'].set_title('images: width, height, px', loc='left', fontsize=10)
  rows = waste[:-1][::-1]
  bars = axes['padding'].barh([f'{"x".join(map(str, row["canvas"]))}  ({row["images"]})' for row in rows],
                              [100 * row['waste'] for row in rows], color='#e08e2b')
  axes['padding'].bar_label(bars, fmt='%.1f', padding=3)
  axes['padding'].margins(x=0.1)
  axes['padding'].set_ylim(min(0, len(rows) - 5) - 0.6, len(rows) - 0.4)
  axes['padding'].set_title(f'padding by canvas (images), %; {100 * waste[-1]["waste"]:.1f} % of all', loc='left',
                            fontsize=10)
  for each in axes.values():
    each.spines[['top', 'right']].set_visible(False)
  data = io.BytesIO()
  figure.savefig(data, format='png')
  return data.getvalue()


if __name__ == '__main__':
  command_line.define_flags()
  _here = {'module_name': sys.argv[0]}
  flags.DEFINE_string('output', None, 'where report and pictures go; default: data/ in the run folder, '
                      'or runs/data/<name of --data_dir>', **_here)
  flags.DEFINE_integer('pictures', 16, 'training pictures that are drawn', **_here)
  flags.DEFINE_enum('files', 'read', ['none', 'read', 'decode'], 'read every file, to find the same ones twice; or '
                    'also decode it, to find damaged ones', **_here)
  command_line.start(main)
