"""Where a run loses average precision: python -m rethink_tf.inspect_run --model_dir=runs/scratch_6x.

Reads the detections that the newest evaluation has left in the run folder (bbox.json, segm.json, keypoints.json, or
VOC's files of each class) and the ground truth; prints how much AP each kind of error costs (error_breakdown.py,
keypoint_errors.py), and writes beside them errors.txt, errors.json, errors_box.png (bars by kind and by class) and
worst_box.png (the surest mistakes of each kind); the same for masks and keypoints.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from rethink_tf import command_line
from rethink_tf.errors import UserError

FLAGS = flags.FLAGS
FILES = {'box': 'bbox.json', 'mask': 'segm.json', 'keypoint': 'keypoints.json'}
VOC_FILES = 'comp?_det_test_*.txt'
COLOURS = {'classification': '#d1495b', 'localisation': '#e9a23b', 'both': '#8c6d4f', 'duplicate': '#4aa5a8',
           'background': '#7a52a3', 'missed': '#5b7db1',
           'jitter': '#e9a23b', 'inversion': '#d1495b', 'swap': '#7a52a3', 'miss': '#5b7db1'}
SHORT = dict(zip(COLOURS, ('Cls', 'Loc', 'Both', 'Dupe', 'Bkg', 'Miss', 'Jitter', 'Invers', 'Swap', 'Miss'),
                 strict=True))  # heads of columns, as in TIDE
LISTED = 15  # classes in the table
PLOTTED = 25  # classes in the picture
CELL = 320  # pixels of a mistake's picture


def main() -> None:
  """Reads a run's results and breaks their errors down."""
  from rethink_tf import error_breakdown, experiment, gin_files, keypoint_errors, reporting, scoring

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
  for kind, name, results in read_results(results_dir, gt, source.name):
    title = f'{os.path.join(results_dir, name)}: {len(gt["images"])} images of {source.name}'
    title += ", matched and averaged COCO's way" if name == VOC_FILES else ''  # voc/mAP is within a point or so
    if kind == 'keypoint':
      truth = scoring.keypoint_truth(gt, source.num_keypoints)
      sigmas = gin_files.bound('CocoEvaluator.keypoint_sigmas') or scoring.default_sigmas(source.num_keypoints)
      breakdown = keypoint_errors.analyse(truth, results, sigmas, FLAGS.examples)
      text.append(keypoint_table(breakdown, title))
      record[kind] = as_json(breakdown) | keypoints_as_json(breakdown)
      picture = plot_keypoints(breakdown)
    else:
      truth, breakdown = gt, error_breakdown.analyse(gt, results, 'segm' if kind == 'mask' else 'bbox', FLAGS.examples)
      text.append(table(breakdown, kind, title))
      record[kind] = as_json(breakdown)
      picture = plot(breakdown, kind)
    print(text[-1], flush=True)
    reporting.write(os.path.join(output, f'errors_{kind}.png'), picture)
    sheet = worst_cases(breakdown, source, truth, results, kind)
    if sheet is not None:
      reporting.write(os.path.join(output, f'worst_{kind}.png'), sheet)
  if not record:
    raise UserError(f'{results_dir}: holds neither {" nor ".join(FILES.values())} nor {VOC_FILES}')
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
    if tf.io.gfile.exists(f'{folder}/{FILES["box"]}') or tf.io.gfile.glob(f'{folder}/{VOC_FILES}'):
      return folder
  raise UserError(f'{model_dir}: no evaluation there has left its {FILES["box"]} or {VOC_FILES}: run '
                  f'rethink_tf.evaluate --model_dir={model_dir} first, or name a folder with --results')


def read_results(folder: str, gt: dict[str, Any], name: str) -> Iterator[tuple[str, str, list[dict]]]:
  """Kind, file and content, in COCO's submission format, of the results that a folder holds.

  gt, name: of the data that they were scored against.

  Raises:
    UserError: a file is not what an evaluation writes, or of other data.
  """
  import tensorflow as tf

  from rethink_tf import voc_evaluator

  there = [kind for kind, file in FILES.items() if tf.io.gfile.exists(os.path.join(folder, file))]
  for kind in there:
    yield kind, FILES[kind], _read_json(os.path.join(folder, FILES[kind]), kind, gt, name)
  if 'box' not in there:
    results = voc_evaluator.read_results(folder, gt)
    if results is not None:
      yield 'box', VOC_FILES, results


def _read_json(path, kind, gt, name):
  from rethink_tf.data.coco import load_json

  fields = {'image_id', 'category_id', 'score', {'box': 'bbox', 'mask': 'segmentation', 'keypoint': 'keypoints'}[kind]}
  results = load_json(path)
  if not isinstance(results, list) or not all(isinstance(r, dict) and fields <= r.keys() for r in results):
    raise UserError(f"{path}: is not a list in COCO's results format")
  strangers = {r['image_id'] for r in results} - {image['id'] for image in gt['images']}
  if strangers:
    raise UserError(f'{path}: image {min(strangers)} is not in {name}: give the --data_dir that was evaluated')
  return results


def table(breakdown: Any, kind: str, title: str) -> str:
  """The breakdown as text: by kind, then for the classes that lose most."""
  lines = [title, f'  {kind} AP at IoU 0.5: {100 * breakdown.ap:.1f}; {breakdown.correct} of {breakdown.objects} '
           'objects found', f'  {"":16} {"errors":>8} {"AP gained if mended":>20}']
  for name, gained in breakdown.gained.items():
    lines.append(f'  {name:16} {breakdown.counts[name]:8} {100 * gained:20.1f}')
  lines += [f'  {"all that is wrong":25} {100 * breakdown.false_positives:20.1f}',
            f'  {"all that is not found":25} {100 * breakdown.false_negatives:20.1f}']
  return '\n'.join(lines + _by_class(breakdown)) + '\n'


def keypoint_table(breakdown: Any, title: str) -> str:
  """The breakdown of keypoints as text: by kind, by keypoint, and by class where there are several."""
  total = max(1, int(breakdown.by_keypoint.sum()))
  lines = [title, f'  keypoint AP (mean over OKS 0.5 to 0.95): {100 * breakdown.ap:.1f}; a detection stands for '
           f'{breakdown.correct} of {breakdown.objects} objects',
           f'  {"":16} {"keypoints":>9} {"share":>8} {"AP gained if mended":>20}',
           f'  {"found well":16} {breakdown.well:9} {100 * breakdown.well / total:6.1f} %']
  for name, gained in breakdown.gained.items():
    count = breakdown.counts[name]
    lines.append(f'  {name:16} {count:9} {100 * count / total:6.1f} % {100 * gained:20.1f}')
  lines += [f'  {label:35} {100 * gained:20.1f}' for label, gained in (
    ('all four kinds', breakdown.all_mended), ('detections that stand for nothing', breakdown.false_positives),
    ('objects that nothing stands for', breakdown.false_negatives))]
  width = max(18, *(len(name[:24]) for name in breakdown.keypoint_names))
  heads = ['Well', *(SHORT[name] for name in breakdown.gained)]
  lines.append(f'  {"share by keypoint":{width}} ' + ' '.join(f'{head:>8}' for head in heads))
  for name, column in zip(breakdown.keypoint_names, breakdown.by_keypoint.T, strict=True):
    shares = 100 * column / max(1, column.sum())
    lines.append(f'  {name[:24]:{width}} ' + ' '.join(f'{share:6.1f} %' for share in (shares[-1], *shares[:-1])))
  return '\n'.join(lines + (_by_class(breakdown) if (breakdown.category_ap >= 0).sum() > 1 else [])) + '\n'


def _by_class(breakdown):
  width = max(18, *(len(name[:24]) for name in breakdown.category_names))
  lines = [f'  {"AP gained by class":{width}} {"AP":>6} ' + ' '.join(f'{SHORT[name]:>6}' for name in breakdown.gained)]
  for k in _worst_classes(breakdown)[:LISTED]:
    figures = [100 * one for one in (breakdown.category_ap[k], *breakdown.category_gained[:, k])]
    lines.append(f'  {breakdown.category_names[k][:24]:{width}} ' + ' '.join(f'{figure:6.1f}' for figure in figures))
  return lines


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


def keypoints_as_json(breakdown: Any) -> dict[str, Any]:
  """What only keypoints have: numbers of keypoints by name and kind."""
  kinds = (*breakdown.gained, 'well')
  return {'all_mended': round(100 * breakdown.all_mended, 4), 'well': breakdown.well,
          'keypoints': {name: dict(zip(kinds, column.tolist(), strict=True))
                        for name, column in zip(breakdown.keypoint_names, breakdown.by_keypoint.T, strict=True)}}


def _worst_classes(breakdown):
  """Indices of the classes with objects, those that lose most first."""
  lost = [(-gained.sum(), k) for k, gained in enumerate(breakdown.category_gained.T) if breakdown.category_ap[k] >= 0]
  return [k for _, k in sorted(lost)]


def plot(breakdown: Any, kind: str) -> bytes:
  """AP gained by kind, and stacked for the classes that lose most, as a PNG."""
  shown = _worst_classes(breakdown)[:PLOTTED]
  names = [f'{breakdown.category_names[k][:24]}  {100 * breakdown.category_ap[k]:.0f}' for k in shown]
  return _plot(breakdown, f'{kind} AP gained if mended (errors); AP at IoU 0.5 is {100 * breakdown.ap:.1f}',
               names, 100 * breakdown.category_gained[:, shown].clip(0),
               'the same by class, stacked; beside its name its AP')


def plot_keypoints(breakdown: Any) -> bytes:
  """AP gained by kind, and shares of the labelled keypoints by name, as a PNG."""
  shares = 100 * breakdown.by_keypoint / breakdown.by_keypoint.sum(axis=0).clip(1)
  shown = sorted(range(shares.shape[1]), key=lambda k: shares[-1, k])[:PLOTTED]
  return _plot(breakdown, f'keypoint AP gained if mended (keypoints); AP is {100 * breakdown.ap:.1f}',
               [breakdown.keypoint_names[k][:24] for k in shown], shares[:-1, shown],
               '% of the labelled keypoints that are in error, stacked')


def _plot(breakdown: Any, title: str, names: Sequence[str], lengths: Any, stacked_title: str) -> bytes:
  """Bars by kind, and stacked ones, lengths [kinds, rows], the first row on top."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg  # 0.3 s, and only needed here
  from matplotlib.figure import Figure

  figure = Figure(figsize=(12, max(4.2, 1.6 + 0.26 * len(names))), dpi=110, layout='constrained')
  FigureCanvasAgg(figure)
  by_kind, stacked = figure.subplots(1, 2, width_ratios=[2, 3])
  kinds, gained = list(breakdown.gained)[::-1], breakdown.gained
  bars = by_kind.barh(kinds, [100 * gained[k] for k in kinds], color=[COLOURS[k] for k in kinds])
  by_kind.bar_label(bars, [f'{100 * gained[k]:.1f}  ({breakdown.counts[k]})' for k in kinds], padding=4)
  by_kind.set_xlim(min(0.0, 130 * min(gained.values())), max(1.0, 130 * max(gained.values())))
  by_kind.set_title(title, loc='left', fontsize=10)
  starts, rows = [0.0] * len(names), range(len(names))[::-1]
  for kind, row in zip(breakdown.gained, lengths.tolist(), strict=True):
    stacked.barh(rows, row, left=starts, color=COLOURS[kind])
    starts = [start + length for start, length in zip(starts, row, strict=True)]
  stacked.set_yticks(rows, names, fontsize=9, parse_math=False)
  stacked.set_ylim(min(0, len(names) - 8) - 0.6, len(names) - 0.4)
  stacked.set_title(stacked_title, loc='left', fontsize=10)
  for axes in (by_kind, stacked):
    axes.spines[['top', 'right']].set_visible(False)
  data = io.BytesIO()
  figure.savefig(data, format='png')
  return data.getvalue()


def worst_cases(breakdown: Any, source: Any, gt: dict[str, Any], results: list[dict], kind: str) -> bytes | None:
  """The surest mistakes of each kind as a PNG, a row a kind; None without any."""
  import numpy as np

  from rethink_tf import pictures

  rows = []
  for error, mistakes in breakdown.worst.items():
    drawn = [one for one in (_draw(mistake, source, gt, results, kind) for mistake in mistakes) if one is not None]
    if not drawn:
      continue
    blank = np.full((8, 8, 3), 255, np.uint8)
    cells, titles = zip(*drawn, *([(blank, '')] * (FLAGS.examples - len(drawn))), strict=True)
    row = pictures.sheet(cells, FLAGS.examples, titles, CELL)
    what = 'keypoints' if kind == 'keypoint' else 'errors'
    heading = f'{error}: {breakdown.counts[error]} {what}, {100 * breakdown.gained[error]:.1f} AP'
    rows.append(pictures.under_heading(heading, row))
  if not rows:
    return None
  key = np.full((8, rows[0].shape[1], 3), 255, np.uint8)
  arrows = '; arrows: from where a keypoint was found to where it is' if kind == 'keypoint' else ''
  heading = f'orange: detection; green: ground truth{arrows}'
  return pictures.png(pictures.stack([pictures.under_heading(heading, key), *rows]))


def _draw(mistake, source, gt, results, kind):
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
  boxes = [None if one is None else _box_of(one) for one in (found, true)]
  texts = ('' if found is None else f'{names[found["category_id"]]} {found["score"]:.2f}',
           '' if true is None else names[true['category_id']])
  title = f'image {mistake.image_id}'
  if kind == 'keypoint':
    points = [np.reshape(one['keypoints'], [-1, 3])[:, [1, 0, 2]].astype(float) for one in (found, true)]
    points[0][:, 2] = 1  # its score there, which may be 0 or less
    category = next(category for category in source.categories if category.id == true['category_id'])
    picture = pictures.draw_mistake(image, boxes[0], texts[0], boxes[1], texts[1], found_keypoints=points[0],
                                    true_keypoints=points[1], skeleton=category.skeleton, wrong=mistake.keypoints)
    wrong = ', '.join(category.keypoints[k] for k in mistake.keypoints)
    return picture, f'{title}, OKS {mistake.oks:.2f}: {wrong}'
  pixels = [None, None]
  if kind == 'mask':
    pixels = [None if one is None else coco_mask.decode(to_rle(one['segmentation'], *image.shape[:2]))
              for one in (found, true)]
  picture = pictures.draw_mistake(image, boxes[0], texts[0], boxes[1], texts[1], *pixels)
  overlap = f', IoU {mistake.overlap:.2f}' if found is not None and true is not None else ''
  return picture, f'{title}{overlap}'


def _box_of(entry):
  """y0 x0 y1 x1."""
  import numpy as np
  from pycocotools import mask as coco_mask

  if 'bbox' not in entry and 'keypoints' in entry:
    points = np.reshape(entry['keypoints'], [-1, 3])[:, 1::-1]
    return np.concatenate([points.min(axis=0), points.max(axis=0) + 1])
  x, y, w, h = entry['bbox'] if 'bbox' in entry else coco_mask.toBbox(entry['segmentation']).tolist()
  return np.array([y, x, y + h, x + w])


if __name__ == '__main__':
  command_line.define_flags()
  _here = {'module_name': sys.argv[0]}
  flags.DEFINE_string('results', None, 'folder with bbox.json; default: the newest of the run that has one', **_here)
  flags.DEFINE_string('output', None, 'where tables and pictures go; default: beside the results', **_here)
  flags.DEFINE_integer('examples', 6, 'pictures of each kind of error', lower_bound=1, **_here)
  command_line.start(main)
