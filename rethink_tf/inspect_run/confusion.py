"""Confusion matrix of a detector at one IoU and one score threshold, with a row and a column of background.

Rows are annotated classes, columns detected ones. The diagonal is exactly the metric's true detections. Of the others,
by decreasing score, each is paired with the object of another class that overlaps it most, at the IoU at least, and is
still unpaired. What remains is background: detections of nothing (duplicates too) in the last row, missed objects in
the last column. Ignored detections, and crowds and difficult objects, are left out, so that a row adds up to the
objects of its class and a column to its detections.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rethink_tf.inspect_run.counted import Counted
from rethink_tf.inspect_run.detection_errors import pairwise_iou
from rethink_tf.inspect_run.precision_recall import in_full

BACKGROUND, MISSED = 'background', 'missed'  # names of the last row and column
OTHERS = 'other classes'


class Confusion(NamedTuple):
  """A confusion matrix, with the IoU and score threshold it was made at."""

  names: tuple[str, ...]  # K
  iou: float
  score: float
  counts: np.ndarray  # int64 [K + 1, K + 1]

  @property
  def shares(self) -> np.ndarray:
    """Counts divided by the sum of their row, float64 [K + 1, K + 1]; 0 in an empty row."""
    return self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)


def confusion(counted: Counted, gt: dict[str, Any], results: Sequence[dict[str, Any]], iou_type: str,
              score: float) -> Confusion:
  """Return the confusion matrix of detections with at least `score`.

  counted: of gt and results. iou_type: 'bbox' or 'segm'.
  """
  size = len(counted.category_names)
  counts = np.zeros([size + 1, size + 1], np.int64)
  shown = (counted.scores >= score) & ~counted.ignored
  true = shown & counted.true
  np.add.at(counts, (counted.classes[true], counted.classes[true]), 1)
  free = counted.object_classes >= 0
  free[counted.targets[true]] = False
  by_image: dict[Any, list[int]] = defaultdict(list)
  for index in np.flatnonzero(free).tolist():
    by_image[gt['annotations'][index]['image_id']].append(index)
  rows_of: dict[Any, list[int]] = defaultdict(list)
  for row in np.flatnonzero(shown & ~counted.true).tolist():  # by decreasing score
    rows_of[results[counted.results[row]]['image_id']].append(row)
  sizes = {image['id']: (image['height'], image['width']) for image in gt['images']}
  for image_id, rows in rows_of.items():
    objects = np.array(by_image.get(image_id, ()), np.int64)
    overlaps = pairwise_iou([results[counted.results[row]] for row in rows],
                            [gt['annotations'][index] for index in objects], iou_type, sizes[image_id])
    for row, own in zip(rows, overlaps, strict=True):
      own = np.where(free[objects] & (counted.object_classes[objects] != counted.classes[row]), own, -1.0)
      best = int(own.argmax()) if len(own) else -1
      annotated = size
      if best >= 0 and own[best] >= counted.iou:
        annotated = counted.object_classes[objects[best]]
        free[objects[best]] = False
      counts[annotated, counted.classes[row]] += 1
  np.add.at(counts, (counted.object_classes[free], size), 1)
  return Confusion(counted.category_names, counted.iou, score, counts)


def pairs(matrix: Confusion) -> list[tuple[str, str, int, float]]:
  """Return annotated class, detected class, count and share of the row of all confusions, the most frequent first."""
  counts = matrix.counts[:-1, :-1] * ~np.eye(len(matrix.names), dtype=bool)
  rows, columns = np.nonzero(counts)
  found = [(matrix.names[r], matrix.names[c], int(counts[r, c]), float(matrix.shares[r, c]))
           for r, c in zip(rows.tolist(), columns.tolist(), strict=True)]
  return sorted(found, key=lambda one: (-one[2], -one[3], one[:2]))


def most_confused(matrix: Confusion, most: int) -> Confusion:
  """Return the matrix of the classes most confused with others, with the rest added up as OTHERS.

  With few classes it is the whole matrix. The cell of OTHERS with itself holds true detections and confusions among
  them.
  """
  if len(matrix.names) <= most:
    return matrix
  inner = matrix.counts[:-1, :-1]
  wrong = inner.sum(axis=0) + inner.sum(axis=1) - 2 * np.diag(inner)
  errors = matrix.counts.sum(axis=0)[:-1] + matrix.counts.sum(axis=1)[:-1]
  kept = np.sort(np.lexsort([np.arange(len(wrong)), -errors, -wrong])[:most])
  rest = np.setdiff1d(np.arange(len(wrong)), kept)
  group = np.full(len(wrong) + 1, most)  # of each class; the last is background
  group[kept], group[-1] = np.arange(most), most + 1
  counts = np.zeros([most + 2, most + 2], np.int64)
  np.add.at(counts, (group[:, None], group[None]), matrix.counts)
  names = (*(matrix.names[k] for k in kept), f'{len(rest)} {OTHERS}')
  return Confusion(names, matrix.iou, matrix.score, counts)


def as_text(matrix: Confusion, listed: int) -> str:
  """Return the totals and the most frequent confusions."""
  counts, inner = matrix.counts, matrix.counts[:-1, :-1]
  found = pairs(matrix)
  lines = [f'  confusion at IoU {matrix.iou:g} and score >= {in_full(matrix.score)}: {np.trace(inner)} of '
           f'{counts[:-1].sum()} objects found, {inner.sum() - np.trace(inner)} as another class, '
           f'{counts[:-1, -1].sum()} missed; {counts[-1, :-1].sum()} detections of nothing']
  lines += [f'    {row[:24]} detected as {column[:24]}: {count} ({100 * share:.0f} %)'
            for row, column, count, share in found[:listed]]
  if len(found) > listed:
    lines.append(f'    {len(found) - listed} more pairs: see errors.json')
  return '\n'.join(lines) + '\n'


def as_json(matrix: Confusion) -> dict[str, Any]:
  """Return thresholds, totals by class and all confusions; the whole matrix is in the CSV file."""
  counts = matrix.counts
  return {'iou': matrix.iou, 'score_threshold': matrix.score,
          'classes': {name: {'objects': int(counts[k].sum()), 'found': int(counts[k, k]), 'missed': int(counts[k, -1]),
                             'of_nothing': int(counts[-1, k])} for k, name in enumerate(matrix.names)},
          'confused': [{'annotated': row, 'detected': column, 'count': count, 'percent_of_annotated': round(
            100 * share, 4)} for row, column, count, share in pairs(matrix)]}


def as_rows(matrix: Confusion) -> list[list[str]]:
  """Return the whole matrix as rows of a CSV file: counts, annotated classes down, detected ones across."""
  return [['annotated \\ detected', *matrix.names, MISSED],
          *([name, *map(str, row)] for name, row in zip((*matrix.names, BACKGROUND), matrix.counts.tolist(),
                                                        strict=True))]
