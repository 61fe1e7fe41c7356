"""Where a run loses average precision: python -m rethink_tf.inspect_run --model_dir=runs/scratch_6x.

Reads the detections that the newest evaluation has left in the run folder (bbox.json, segm.json) and the ground truth;
prints how much AP each kind of error costs (error_breakdown.py), and writes beside them errors.txt, errors.json,
errors_box.png (bars by kind and by class) and worst_box.png (the surest mistakes of each kind); the same for masks.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from typing import Any

from absl import flags

from rethink_tf import command_line
from rethink_tf.errors import UserError

FLAGS = flags.FLAGS
FILES = {'box': 'bbox.json', 'mask': 'segm.json'}
COLOURS = {'classification': '#d1495b', 'localisation': '#e9a23b', 'both': '#8c6d4f', 'duplicate': '#4aa5a8',
           'background': '#7a52a3', 'missed': '#5b7db1'}
SHORT = dict(zip(COLOURS, ('Cls', 'Loc', 'Both', 'Dupe', 'Bkg', 'Miss'), strict=True))  # heads of columns, as in TIDE
LISTED = 15  # classes in the table
PLOTTED = 25  # classes in the picture
CELL = 320  # pixels of a mistake's picture


def main() -> None:
  """Reads a run's results and breaks their errors down."""
  import tensorflow as tf

  from rethink_tf import error_breakdown, experiment, gin_files, reporting

  model_dir = FLAGS.model_dir or gin_files.default_run_folder(FLAGS.gin_file)
  if not model_dir:
    raise UserError('no run to inspect: name its folder with --model_dir')
  results_dir = os.path.expanduser(FLAGS.results or newest_results(model_dir))
  saved = f'{model_dir.rstrip("/")}/config.gin'
  command_line.configure([gin_files.saved_config(model_dir), *(f for f in FLAGS.gin_file if f != saved)]
                         if FLAGS.model_dir else FLAGS.gin_file)
  source = gin_files.argument(experiment.run, 'eval_source')(training=False)
  gt = source.annotations()
  output = os.path.expanduser(FLAGS.output or results_dir)
  text, record = [], {}
  for kind, name in FILES.items():
    path = os.path.join(results_dir, name)
    if not tf.io.gfile.exists(path):
      continue
    results = _read_results(path, gt, source.name)
    breakdown = error_breakdown.analyse(gt, results, name.split('.')[0], FLAGS.examples)
    text.append(table(breakdown, kind, f'{path}: {len(gt["images"])} images of {source.name}'))
    record[kind] = as_json(breakdown)
    print(text[-1], flush=True)
    reporting.write(os.path.join(output, f'errors_{kind}.png'), plot(breakdown, kind))
    sheet = worst_cases(breakdown, source, gt, results, masks=kind == 'mask')
    if sheet is not None:
      reporting.write(os.path.join(output, f'worst_{kind}.png'), sheet)
  if not record:
    raise UserError(f'{results_dir}: holds neither {" nor ".join(FILES.values())}')
  reporting.write(os.path.join(output, 'errors.txt'), '\n'.join(text).encode())
  reporting.write(os.path.join(output, 'errors.json'), json.dumps(record, indent=1).encode())
  print(f'pictures and tables: {output}')


def newest_results(model_dir: str) -> str:
  """The folder of the newest evaluation that has left its detections.

  Raises:
    UserError: there is none.
  """
  import tensorflow as tf

  steps = sorted(re.findall(r'step-\d+', ' '.join(tf.io.gfile.glob(f'{model_dir.rstrip("/")}/eval/step-*'))))
  for step in reversed(steps):
    folder = f'{model_dir.rstrip("/")}/eval/{step}'
    if tf.io.gfile.exists(f'{folder}/{FILES["box"]}'):
      return folder
  raise UserError(f'{model_dir}: no evaluation there has left its {FILES["box"]}: run rethink_tf.evaluate '
                  f"--model_dir={model_dir} first (for VOC with --gin_param='run.evaluator = @CocoEvaluator'), or name "
                  'a folder with --results')


def table(breakdown: Any, kind: str, title: str) -> str:
  """The breakdown as text: by kind, then for the classes that lose most."""
  lines = [title, f'  {kind} AP at IoU 0.5: {100 * breakdown.ap:.1f}; {breakdown.correct} of {breakdown.objects} '
           'objects found', f'  {"":16} {"errors":>8} {"AP gained if mended":>20}']
  for name, gained in breakdown.gained.items():
    lines.append(f'  {name:16} {breakdown.counts[name]:8} {100 * gained:20.1f}')
  lines += [f'  {"all that is wrong":25} {100 * breakdown.false_positives:20.1f}',
            f'  {"all that is not found":25} {100 * breakdown.false_negatives:20.1f}']
  width = max(18, *(len(name[:24]) for name in breakdown.category_names))
  lines.append(f'  {"AP gained by class":{width}} {"AP":>6} ' + ' '.join(f'{SHORT[name]:>6}' for name in SHORT))
  for k in _worst_classes(breakdown)[:LISTED]:
    figures = [100 * one for one in (breakdown.category_ap[k], *breakdown.category_gained[:, k])]
    lines.append(f'  {breakdown.category_names[k][:24]:{width}} ' + ' '.join(f'{figure:6.1f}' for figure in figures))
  return '\n'.join(lines) + '\n'


def as_json(breakdown: Any) -> dict[str, Any]:
  """All figures in percent."""
  def percent(values):
    return {name: round(100 * float(value), 4) for name, value in values.items()}

  classes = {name: {'AP': round(100 * float(ap), 4) if ap >= 0 else None,
                    'gained': percent(dict(zip(breakdown.gained, gained, strict=True)))}
             for name, ap, gained in zip(breakdown.category_names, breakdown.category_ap,
                                         breakdown.category_gained.T, strict=True)}
  return {'AP': round(100 * breakdown.ap, 4), 'gained': percent(breakdown.gained), 'errors': breakdown.counts,
          'correct': breakdown.correct, 'objects': breakdown.objects,
          **percent({'false_positives': breakdown.false_positives, 'false_negatives': breakdown.false_negatives}),
          'classes': classes}


def _worst_classes(breakdown):
  """Indices of the classes with objects, those that lose most first."""
  lost = [(-gained.sum(), k) for k, gained in enumerate(breakdown.category_gained.T) if breakdown.category_ap[k] >= 0]
  return [k for _, k in sorted(lost)]


def plot(breakdown: Any, kind: str) -> bytes:
  """AP gained by kind, and stacked for the classes that lose most, as a PNG."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg  # 0.3 s, and only needed here
  from matplotlib.figure import Figure

  shown = _worst_classes(breakdown)[:PLOTTED][::-1]
  figure = Figure(figsize=(12, max(4.2, 1.6 + 0.26 * len(shown))), dpi=110, layout='constrained')
  FigureCanvasAgg(figure)
  by_kind, by_class = figure.subplots(1, 2, width_ratios=[2, 3])
  kinds = list(breakdown.gained)[::-1]
  bars = by_kind.barh(kinds, [100 * breakdown.gained[k] for k in kinds], color=[COLOURS[k] for k in kinds])
  by_kind.bar_label(bars, [f'{100 * breakdown.gained[k]:.1f}  ({breakdown.counts[k]})' for k in kinds], padding=4)
  by_kind.set_xlim(0, max(1.0, 130 * max(breakdown.gained.values())))
  by_kind.set_title(f'{kind} AP gained if mended (errors); AP at IoU 0.5 is {100 * breakdown.ap:.1f}', loc='left',
                    fontsize=10)
  starts = [0.0] * len(shown)
  names = [f'{breakdown.category_names[k][:24]}  {100 * breakdown.category_ap[k]:.0f}' for k in shown]
  for row, name in enumerate(breakdown.gained):
    lengths = [100 * max(0.0, float(breakdown.category_gained[row, k])) for k in shown]
    by_class.barh(range(len(shown)), lengths, left=starts, color=COLOURS[name])
    starts = [start + length for start, length in zip(starts, lengths, strict=True)]
  by_class.set_yticks(range(len(shown)), names, fontsize=9, parse_math=False)
  by_class.set_ylim(-0.6, max(len(shown), 8) - 0.4)
  by_class.set_title('the same by class, stacked; beside its name its AP', loc='left', fontsize=10)
  for axes in (by_kind, by_class):
    axes.spines[['top', 'right']].set_visible(False)
  data = io.BytesIO()
  figure.savefig(data, format='png')
  return data.getvalue()


def worst_cases(breakdown: Any, source: Any, gt: dict[str, Any], results: list[dict], masks: bool) -> bytes | None:
  """The surest mistakes of each kind as a PNG, a row a kind; None without any."""
  import numpy as np

  from rethink_tf import pictures

  rows = []
  for kind, mistakes in breakdown.worst.items():
    drawn = [one for one in (_draw(mistake, source, gt, results, masks) for mistake in mistakes) if one is not None]
    if not drawn:
      continue
    blank = np.full((8, 8, 3), 255, np.uint8)
    cells, titles = zip(*drawn, *([(blank, '')] * (FLAGS.examples - len(drawn))), strict=True)
    row = pictures.sheet(cells, FLAGS.examples, titles, CELL)
    heading = f'{kind}: {breakdown.counts[kind]} errors, {100 * breakdown.gained[kind]:.1f} AP'
    rows.append(pictures.under_heading(heading, row))
  if not rows:
    return None
  key = np.full((8, rows[0].shape[1], 3), 255, np.uint8)
  return pictures.png(pictures.stack([pictures.under_heading('orange: detection; green: ground truth', key), *rows]))


def _draw(mistake, source, gt, results, masks):
  """Picture and title, or None if the photograph cannot be read."""
  import numpy as np
  from pycocotools import mask as coco_mask

  from rethink_tf import pictures
  from rethink_tf.data.images import ImageError
  from rethink_tf.data.segmentation import to_rle

  names = {category['id']: category['name'] for category in gt['categories']}
  try:
    image = source.load(int(np.flatnonzero(np.asarray(source.image_ids) == mistake.image_id)[0])).image
  except ImageError:
    return None
  found = None if mistake.result is None else results[mistake.result]
  true = None if mistake.annotation is None else gt['annotations'][mistake.annotation]
  pixels = [None, None]
  if masks:
    pixels = [None if one is None else coco_mask.decode(to_rle(one['segmentation'], *image.shape[:2]))
              for one in (found, true)]
  boxes = [None if one is None else np.array([y, x, y + h, x + w]) for one in (found, true)
           for x, y, w, h in [(0, 0, 0, 0) if one is None else _box_of(one)]]
  picture = pictures.draw_mistake(
    image, boxes[0], '' if found is None else f'{names[found["category_id"]]} {found["score"]:.2f}', boxes[1],
    '' if true is None else names[true['category_id']], *pixels)
  overlap = f', IoU {mistake.overlap:.2f}' if found is not None and true is not None else ''
  return picture, f'image {mistake.image_id}{overlap}'


def _box_of(entry):
  from pycocotools import mask as coco_mask
  return entry['bbox'] if 'bbox' in entry else coco_mask.toBbox(entry['segmentation']).tolist()


def _read_results(path, gt, name):
  from rethink_tf.data.coco import load_json

  results = load_json(path)
  if not isinstance(results, list) or not all(isinstance(r, dict) and {'image_id', 'category_id', 'score'} <= r.keys()
                                              for r in results):
    raise UserError(f"{path}: is not a list in COCO's results format")
  strangers = {r['image_id'] for r in results} - {image['id'] for image in gt['images']}
  if strangers:
    raise UserError(f'{path}: image {min(strangers)} is not in {name}: give the --data_dir that was evaluated')
  return results


if __name__ == '__main__':
  command_line.define_flags()
  _here = {'module_name': sys.argv[0]}
  flags.DEFINE_string('results', None, 'folder with bbox.json; default: the newest of the run that has one', **_here)
  flags.DEFINE_string('output', None, 'where tables and pictures go; default: beside the results', **_here)
  flags.DEFINE_integer('examples', 6, 'pictures of each kind of error', lower_bound=1, **_here)
  command_line.start(main)
