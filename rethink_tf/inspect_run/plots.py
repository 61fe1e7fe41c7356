"""Plots of error breakdowns, and image grids of the most confident errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from rethink_tf.data.detection.segmentation import to_rle
from rethink_tf.data.images import ImageError
from rethink_tf.inspect_run import detection_errors, keypoint_errors
from rethink_tf.inspect_run.detection_errors import Breakdown
from rethink_tf.inspect_run.keypoint_errors import KeypointBreakdown
from rethink_tf.inspect_run.report import worst_classes
from rethink_tf.structures import Source
from rethink_tf.visualization import drawing, plotting

COLOURS = {
  'classification': '#d1495b', 'localisation': '#e9a23b', 'both': '#8c6d4f', 'duplicate': '#4aa5a8',
  'background': '#7a52a3', 'missed': '#5b7db1',
  'jitter': '#e9a23b', 'inversion': '#d1495b', 'swap': '#7a52a3', 'miss': '#5b7db1'}
MAX_ROWS = 25  # classes or keypoints in a plot
CELL = 320  # pixels of an example


def plot_detections(breakdown: Breakdown, kind: str) -> bytes:
  """Plot the AP gained by kind of error, in total and for the classes that lose most; PNG. kind: 'box' or 'mask'."""
  shown = worst_classes(breakdown)[:MAX_ROWS]
  names = [f'{breakdown.category_names[k][:24]}  {100 * breakdown.category_ap[k]:.0f}' for k in shown]
  return _plot(breakdown, f'{kind} AP gained if fixed (errors); AP at IoU 0.5 is {100 * breakdown.ap:.1f}',
               names, 100 * breakdown.category_gained[:, shown].clip(0),
               'the same by class, stacked; AP after the name')


def plot_keypoints(breakdown: KeypointBreakdown) -> bytes:
  """Plot the AP gained by kind of error, and the share of errors by keypoint; PNG."""
  shares = 100 * breakdown.by_keypoint / breakdown.by_keypoint.sum(axis=0).clip(1)
  shown = sorted(range(shares.shape[1]), key=lambda k: shares[-1, k])[:MAX_ROWS]
  return _plot(breakdown, f'keypoint AP gained if fixed (keypoints); AP is {100 * breakdown.ap:.1f}',
               [breakdown.keypoint_names[k][:24] for k in shown], shares[:-1, shown],
               '% of the labelled keypoints that are errors, stacked')


def plot_examples(breakdown: Breakdown | KeypointBreakdown, source: Source, gt: dict[str, Any],
                  results: Sequence[dict[str, Any]], kind: str, examples: int) -> bytes | None:
  """Draw the most confident errors of each kind, one row per kind; PNG, or None without errors.

  Args:
    breakdown: result of `analyse` with gt and results.
    source: images, by image_ids.
    kind: 'box', 'mask' or 'keypoint'.
    examples: columns.
  """
  rows = []
  for error, worst in breakdown.worst.items():
    drawn = [one for one in (_draw(example, source, gt, results, kind) for example in worst) if one is not None]
    if not drawn:
      continue
    blank = np.full((8, 8, 3), 255, np.uint8)
    cells, titles = zip(*drawn, *([(blank, '')] * (examples - len(drawn))), strict=True)
    row = drawing.image_grid(cells, examples, titles, CELL)
    unit = 'keypoints' if kind == 'keypoint' else 'errors'
    heading = f'{error}: {breakdown.counts[error]} {unit}, {100 * breakdown.gained[error]:.1f} AP'
    rows.append(drawing.under_heading(heading, row))
  if not rows:
    return None
  key = np.full((8, rows[0].shape[1], 3), 255, np.uint8)
  arrows = '; arrows: from the detected to the true keypoint' if kind == 'keypoint' else ''
  heading = f'orange: detection; green: ground truth{arrows}'
  return drawing.png(drawing.stack([drawing.under_heading(heading, key), *rows]))


def _plot(breakdown: Breakdown | KeypointBreakdown, title: str, names: Sequence[str], lengths: np.ndarray,
          stacked_title: str) -> bytes:
  """Plot bars by kind, and stacked bars of `lengths` [kinds, rows], the first row on top."""
  fig = plotting.new_figure((12, max(4.2, 1.6 + 0.26 * len(names))))
  by_kind, stacked = fig.subplots(1, 2, width_ratios=[2, 3])
  kinds, gained = list(breakdown.gained)[::-1], breakdown.gained
  bars = by_kind.barh(kinds, [100 * gained[k] for k in kinds], color=[COLOURS[k] for k in kinds])
  by_kind.bar_label(bars, [f'{100 * gained[k]:.1f}  ({breakdown.counts[k]})' for k in kinds], padding=4)
  by_kind.set_xlim(min(0.0, 130 * min(gained.values())), max(1.0, 130 * max(gained.values())))
  by_kind.set_title(title, loc='left', fontsize=10)
  starts, rows = [0.0] * len(names), range(len(names))[::-1]
  for kind, row in zip(breakdown.gained, lengths.tolist(), strict=True):
    stacked.barh(rows, row, left=starts, color=COLOURS[kind])
    starts = [start + length for start, length in zip(starts, row, strict=True)]
  stacked.set_yticks(rows, names, fontsize=9)
  stacked.set_ylim(min(0, len(names) - 8) - 0.6, len(names) - 0.4)
  stacked.set_title(stacked_title, loc='left', fontsize=10)
  for axes in (by_kind, stacked):
    axes.spines[['top', 'right']].set_visible(False)
  return plotting.encode(fig)


def _draw(example: detection_errors.ErrorExample | keypoint_errors.ErrorExample, source: Source, gt: dict[str, Any],
          results: Sequence[dict[str, Any]], kind: str) -> tuple[np.ndarray, str] | None:
  """Return a rendered example and its title, None if the image cannot be read."""
  names = {category['id']: category['name'] for category in gt['categories']}
  try:
    image = source.load(int(np.flatnonzero(np.asarray(source.image_ids) == example.image_id)[0])).image
  except ImageError:
    return None
  detected = None if example.result is None else results[example.result]
  true = None if example.annotation is None else gt['annotations'][example.annotation]
  pair = [None if one is None else _drawn_object(one, names, kind, image.shape[:2]) for one in (detected, true)]
  file_name = next((image.get('file_name') for image in gt['images'] if image['id'] == example.image_id), None)
  title = drawing.short_name(file_name or f'image {example.image_id}')
  if kind == 'keypoint':
    category = next(category for category in source.categories if category.name == names[true['category_id']])
    wrong = ', '.join(category.keypoints[k] for k in example.keypoints)
    return (drawing.draw_error(image, *pair, category.skeleton, example.keypoints),
            f'{title}, OKS {example.oks:.2f}: {wrong}')
  overlap = f', IoU {example.overlap:.2f}' if detected is not None and true is not None else ''
  return drawing.draw_error(image, *pair), f'{title}{overlap}'


def _drawn_object(entry: dict[str, Any], names: Mapping[int, str], kind: str,
                  size: tuple[int, int]) -> drawing.DrawnObject:
  """Return what is drawn of a result or annotation. names: of the categories, by id. size: height and width."""
  text = names[entry['category_id']] + (f' {entry["score"]:.2f}' if 'score' in entry else '')
  mask = points = None
  if kind == 'mask':
    mask = coco_mask.decode(to_rle(entry['segmentation'], *size))
  elif kind == 'keypoint':
    points = np.reshape(entry['keypoints'], [-1, 3])[:, [1, 0, 2]].astype(float)
    if 'score' in entry:
      points[:, 2] = 1  # a score in results, which may be <= 0
  return drawing.DrawnObject(_box_of(entry), text, mask, points)


def _box_of(entry: dict[str, Any]) -> np.ndarray:
  """Return the box of a result or annotation, y0 x0 y1 x1."""
  if 'bbox' not in entry and 'keypoints' in entry:
    points = np.reshape(entry['keypoints'], [-1, 3])[:, 1::-1]
    return np.concatenate([points.min(axis=0), points.max(axis=0) + 1])
  x, y, w, h = entry['bbox'] if 'bbox' in entry else coco_mask.toBbox(entry['segmentation']).tolist()
  return np.array([y, x, y + h, x + w])
