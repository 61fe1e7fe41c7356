"""Plots of the error breakdown, and sheets of the most confident errors."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from absl import flags

from rethink_tf.inspect_run.report import COLOURS, _worst_classes

FLAGS = flags.FLAGS
PLOTTED = 25  # classes in the picture
CELL = 320  # pixels of a mistake's picture


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

  from rethink_tf.visualization import pictures

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

  from rethink_tf.data.detection.segmentation import to_rle
  from rethink_tf.data.images import ImageError
  from rethink_tf.visualization import pictures

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
