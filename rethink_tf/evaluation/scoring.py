"""Scoring of detections and its report: metrics, tables, rendered images, COCO's submission files.

Nothing here needs the model or its devices: during training it runs in a thread in parallel to the steps.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging
from pycocotools import mask as coco_mask

from rethink_tf.data.detection.segmentation import to_rle
from rethink_tf.data.images import ImageError
from rethink_tf.errors import UserError
from rethink_tf.evaluation import coco_metrics
from rethink_tf.evaluation.postprocessing import ImageDetections, submission
from rethink_tf.storage import files
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.structures import Source
from rethink_tf.visualization import drawing

SHOWN_SCORE = 0.5  # detections below it are scored but not drawn
SHOWN_TITLE = f'predictions, score >= {SHOWN_SCORE}'
CELLS = 'cells'  # text chunk of predictions.png: [image id, name, y0 x0 y1 x1 of ground truth, of predictions] of each
EVALUATED = 'evaluated'  # field of ground_truth.json: the time of the line in metrics.jsonl that its detections are of
IOU_TYPES = {'box': 'bbox', 'mask': 'segm', 'keypoint': 'keypoints'}
COCO_KEYPOINTS = 17  # of COCO's person, the only category with published sigmas


class Scores(NamedTuple):
  """The result of one scoring."""

  metrics: dict[str, float]  # in percent: 'box/AP', ..., 'mask/AP', ...; -1 where the data has no such object
  tables: Mapping[str, Any]  # by kind: 'box', 'mask', 'keypoint': CocoScores; 'voc': voc_evaluator.VocScores
  results: dict[str, list]  # by kind: detections in COCO's submission format


class Scorer:
  """Scores the detections of all images of a source and writes a report.

  source: the images and their ground truth. run_folder: for the report.
  write: (step, name, bytes) -> path, writes a file to the folder of a step.
  num_images, backend, save_results, keypoint_sigmas: as num_pictures etc. of CocoEvaluator.
  max_detections: by iou_type, best detections that are scored per image and category; None: COCO's.
  COLUMNS: of categories.csv, for each kind. LISTED: the metric that is printed by category.
  """

  COLUMNS: tuple[str, ...] = ('AP', 'AP50', 'AP75', 'AR')
  LISTED = 'AP'

  def __init__(self, source: Source, run_folder: RunFolder, write: Callable[[int, str, bytes], str], num_images: int,
               backend: str, save_results: bool, keypoint_sigmas: Sequence[float] | None = None,
               max_detections: Mapping[str, int] | None = None):
    self._source, self._run_folder, self._write = source, run_folder, write
    self._num_images, self._backend, self._save_results = num_images, backend, save_results
    self._names = [category.name for category in source.categories]
    self._category_ids = [category.id for category in source.categories]
    self._saved_results: list[str] = []  # paths of the previous evaluation
    self._skeleton = next((category.skeleton for category in source.categories if category.keypoints), ())
    self._num_keypoints = max((len(category.keypoints) for category in source.categories), default=0)
    if keypoint_sigmas is not None and len(keypoint_sigmas) != self._num_keypoints:
      raise UserError(f'CocoEvaluator.keypoint_sigmas has {len(keypoint_sigmas)} numbers for the '
                      f'{self._num_keypoints} keypoints of {source.name}')
    self._max_detections = max_detections or coco_metrics.MAX_DETECTIONS
    self._sigmas = default_sigmas(self._num_keypoints) if keypoint_sigmas is None else keypoint_sigmas

  def score(self, detections: list[ImageDetections], gt: dict) -> Scores:
    """Return the metrics of the detections of all images; gt: ground truth as in COCO's json."""
    results = submission(detections, self._source.categories)
    if without_masks(gt['annotations']):
      results.pop('mask', None)  # masks would be scored against boxes
    tables = {
      kind: coco_metrics.evaluate(gt, results[kind], IOU_TYPES[kind], self._backend,
                                  max_detections=self._max_detections[IOU_TYPES[kind]])
      for kind in ('box', 'mask') if kind in results
    }
    if 'keypoint' in results:
      truth = keypoint_truth(gt, self._num_keypoints)
      tables['keypoint'] = coco_metrics.evaluate(truth, results['keypoint'], 'keypoints', self._backend, self._sigmas,
                                                 self._max_detections['keypoints'])
    metrics = {
      f'{kind}/{name}': _percent(value) for kind, one in tables.items() for name, value in one.metrics.items()
    }
    return Scores(metrics, tables, results)

  def print_tables(self, heading: str, tables: Mapping[str, coco_metrics.CocoScores], notes: Sequence[str]) -> None:
    """Print all metrics and the AP by category, in one write so that lines of training do not get in between."""
    lines = [heading, *(f'  {note}' for note in notes)]
    for kind, one in tables.items():
      lines.append(f'  {kind:4} ' + '  '.join(f'{name} {_percent(value):.1f}' for name, value in one.metrics.items()))
    rows = zip(*(one.categories for one in tables.values()), strict=True)
    rows = [row for row in rows if getattr(row[0], self.LISTED) >= 0]
    lines.append(f'  {" / ".join(tables)} {self.LISTED} by category')
    cells = [(row[0].name, ' / '.join(f'{_percent(getattr(one, self.LISTED)):.1f}' for one in row)) for row in rows]
    width = min(max((len(name) for name, _ in cells), default=0), 24)
    columns = max(1, 100 // (width + 15))
    for i in range(0, len(cells), columns):
      lines.append('  ' + '  '.join(f'{name[:width]:{width}} {value:>11}' for name, value in cells[i : i + columns]))
    print('\n'.join(lines) + '\n', end='', flush=True)

  def save(self, step: int, scores: Scores, detections: list[ImageDetections], gt: dict) -> None:
    """Write everything but the line in metrics.jsonl. Errors of storage are logged and do not end training.

    gt: as for `score`, with the time of that line (EVALUATED).
    """
    folder, drawn = self._run_folder.join('eval', f'step-{step:08d}'), []
    with files.logged_failures(f'{folder}: results of the evaluation'):
      tf.io.gfile.makedirs(folder)
      self._write(step, 'categories.csv', self._categories_csv(scores.tables))
      if self._save_results:
        outdated = self._saved_results
        self._saved_results = [self._write(step, name, data) for name, data in self._result_files(scores.results, gt)]
        for path in set(outdated) - set(self._saved_results):
          tf.io.gfile.remove(path)
      drawn = list(self._draw(detections, gt))
      if drawn:
        names = {image['id']: image.get('file_name') for image in gt['images']}
        shown = [[image_id, drawing.short_name(names.get(image_id) or f'image {image_id}')] for image_id, _, _ in drawn]
        titles = [f'{name}: {title}' for _, name in shown for title in ('ground truth', SHOWN_TITLE)]
        images = [image for _, *pair in drawn for image in pair]
        grid, cells = drawing.image_grid_with_cells(images, 2 if len(images) == 2 else 4, titles)
        content = [[*one, *cells[2 * i : 2 * i + 2]] for i, one in enumerate(shown)]
        self._write(step, 'predictions.png', drawing.png(grid, {CELLS: json.dumps(content)}))
    # Apart from the files, which comparisons need.
    with files.logged_failures(f'{folder}: its TensorBoard events'), self._run_folder.writer().as_default(step=step):
      for name, value in scores.metrics.items():
        if value >= 0:
          tf.summary.scalar(f'eval/{name}', value)
      for image_id, *pair in drawn:
        tf.summary.image(f'eval/image/{image_id}', drawing.image_grid(pair, 2, ['ground truth', SHOWN_TITLE])[None])
      self._run_folder.writer().flush()

  def _result_files(self, results: Mapping[str, list], gt: dict) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each file of results, then of the ground truth they were scored against.

    The latter says which evaluation the detections are of, so that it must not appear before them.
    """
    if 'keypoint' in results:
      padded = {a['id']: a['keypoints'] for a in keypoint_truth(gt, self._num_keypoints)['annotations']}
      gt = {**gt, 'annotations': [{**a, 'keypoints': padded.get(a['id'], [])} for a in gt['annotations']]}
      gt |= {} if self._sigmas is None else {'keypoint_sigmas': list(self._sigmas)}
    if self._max_detections != coco_metrics.MAX_DETECTIONS:
      gt = {**gt, 'max_detections': self._max_detections}
    for kind, entries in results.items():
      yield f'{IOU_TYPES[kind]}.json', json.dumps(entries, separators=(',', ':')).encode()
    yield 'ground_truth.json', json.dumps(gt, separators=(',', ':')).encode()

  def _categories_csv(self, tables: Mapping[str, coco_metrics.CocoScores]) -> bytes:
    rows = [['id', 'category', *(f'{kind}/{name}' for kind in tables for name in self.COLUMNS)]]
    for row in zip(*(one.categories for one in tables.values()), strict=True):
      values = [_percent(getattr(one, name)) for one in row for name in self.COLUMNS]
      rows.append([row[0].id, row[0].name, *(f'{value:.3f}' for value in values)])
    return files.as_csv(rows)

  def _draw(self, detections: list[ImageDetections], gt: dict) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield image id, ground truth and predictions of images spread evenly over those with objects, always the same."""
    ids = np.asarray(self._source.image_ids)
    by_id = {one.image_id: one for one in detections}
    candidates = np.flatnonzero((np.asarray(self._source.num_instances) > 0) & np.isin(ids, list(by_id)))
    chosen = np.unique(np.linspace(0, len(candidates) - 1, min(self._num_images, len(candidates))).astype(int))
    classes = {category_id: k for k, category_id in enumerate(self._category_ids, start=1)}
    for i in candidates[chosen].tolist():
      try:
        image = self._source.load(i).image
      except ImageError as error:
        logging.warning('%s: not drawn: %s', self._source.name, error)
        continue
      truth = [a for a in gt['annotations'] if a['image_id'] == ids[i] and not a.get('iscrowd')]
      prediction = by_id[int(ids[i])]
      shown = np.flatnonzero(prediction.scores >= SHOWN_SCORE)
      masks = None if prediction.masks is None else [coco_mask.decode(prediction.masks[k]) for k in shown]
      keypoints = None if prediction.keypoints is None else prediction.keypoints[shown]
      yield (
        int(ids[i]),
        self._draw_truth(image, truth, classes),
        drawing.draw(image, prediction.boxes[shown], prediction.classes[shown], self._names,
                     prediction.scores[shown], masks, keypoints, self._skeleton,
                     '' if len(shown) else nothing_shown(SHOWN_SCORE, prediction.scores.max(initial=0.0))),
      )

  def _draw_truth(self, image: np.ndarray, annotations: list[dict], classes: Mapping[int, int]) -> np.ndarray:
    boxes = boxes_of(annotations)
    masks = [coco_mask.decode(to_rle(a['segmentation'], *image.shape[:2])) for a in annotations]
    keypoints = None
    if self._num_keypoints:
      size = 3 * self._num_keypoints
      keypoints = np.array([(list(a.get('keypoints', ())) + [0] * size)[:size] for a in annotations], np.float64)
      keypoints = keypoints.reshape(-1, self._num_keypoints, 3)[..., [1, 0, 2]]
    return drawing.draw(image, boxes, [classes[a['category_id']] for a in annotations], self._names, masks=masks,
                        keypoints=keypoints, skeleton=self._skeleton)


def nothing_shown(threshold: float, best: float | None) -> str:
  """Return the note drawn on an image without detections of at least `threshold`; best: the highest score, if any."""
  rounded = f'; best score {math.floor(100 * best) / 100:.2f}' if best else ''  # down: 0.499 is not 0.5
  return f'nothing with score >= {threshold:g}{rounded}'


def boxes_of(annotations: Sequence[Mapping]) -> np.ndarray:
  """Return the boxes of COCO annotations as float64 [n, 4] y0 x0 y1 x1."""
  xywh = np.array([a['bbox'] for a in annotations], np.float64).reshape(-1, 4)
  return np.concatenate([xywh[:, 1::-1], (xywh[:, :2] + xywh[:, 2:])[:, ::-1]], axis=1)


def without_masks(annotations: Iterable[Mapping]) -> bool:
  """Return whether no object has a mask: all have the outline that sources give to a box without one.

  Annotations are read up to the first mask. False without objects.
  """
  objects = False
  for one in annotations:
    if one.get('iscrowd') and not one.get('difficult'):
      continue
    objects = True
    x, y, w, h = one['bbox']
    outline = one.get('segmentation') if not one.get('without_mask') else None
    if outline and not _is_box(outline, (x, y, x, y + h, x + w, y + h, x + w, y)):
      return False
  return objects


def source_without_masks(source: Source) -> bool:
  """Return whether no object of a source has a mask, by what the source itself knows or else by its annotations.

  False without objects, or where annotations cannot be read image by image: others would read every record for them.
  """
  if not getattr(source, 'has_masks', True):
    return bool(np.any(source.num_instances))
  if not hasattr(source, 'image_annotations'):
    return False
  # Exported boxes are often outlines of four corners, which count as masks until they are looked at: all of them.
  each = (source.image_annotations(i) for i in range(len(source.image_ids)))
  return without_masks(itertools.chain.from_iterable(each))


def _is_box(outline: Any, box: Sequence[float]) -> bool:
  single = isinstance(outline, list) and len(outline) == 1 and len(outline[0]) == len(box)
  return single and all(abs(a - b) < 0.01 for a, b in zip(outline[0], box, strict=True))


def restricted(gt: dict, left_out: Collection[int]) -> dict:
  """Return ground truth without some images, given by id, and their annotations."""
  if not left_out:
    return gt
  left_out = set(left_out)
  return {**gt, 'images': [image for image in gt['images'] if image['id'] not in left_out],
          'annotations': [a for a in gt['annotations'] if a['image_id'] not in left_out]}


def max_detections(gt: Mapping, iou_type: str) -> int | None:
  """Return the limit with which a saved ground truth was scored, None for COCO's."""
  limits = gt.get('max_detections')
  limit = limits.get(iou_type) if isinstance(limits, dict) else None
  return limit if type(limit) is int and limit > 0 else None


def keypoint_truth(gt: dict, num_keypoints: int) -> dict:
  """Return the annotations with keypoints, padded to P keypoints each with unlabelled ones."""
  size = 3 * num_keypoints
  annotations = [{**a, 'keypoints': (list(a['keypoints']) + [0] * size)[:size]} for a in gt['annotations']
                 if a.get('keypoints')]
  return {**gt, 'annotations': annotations}


def default_sigmas(num_keypoints: int) -> tuple[float, ...] | None:
  """Return the sigmas of keypoint similarity: 1/P each; None, which stands for COCO's, for 17 keypoints."""
  return None if num_keypoints in (0, COCO_KEYPOINTS) else (1.0 / num_keypoints,) * num_keypoints


def _percent(value: float) -> float:
  return 100.0 * value if value >= 0 else -1.0
