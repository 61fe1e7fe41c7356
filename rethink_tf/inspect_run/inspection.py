"""Error breakdown of the detections that an evaluation has saved, with tables and plots."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from rethink_tf.compare.saved_results import reported
from rethink_tf.errors import UserError
from rethink_tf.evaluation import coco_metrics, object_limits, scoring, voc_evaluator
from rethink_tf.inspect_run import (
  confusion,
  counted,
  detection_errors,
  keypoint_errors,
  plots,
  precision_recall,
  report,
  threshold_plots,
)
from rethink_tf.inspect_run.counted import Counted
from rethink_tf.inspect_run.detection_errors import Breakdown
from rethink_tf.inspect_run.keypoint_errors import KeypointBreakdown
from rethink_tf.inspect_run.results import FILES, VOC_FILES, read_results, scored_truth
from rethink_tf.storage import files
from rethink_tf.structures import Source

_NAMES = ('errors_{}.png', 'worst_{}.png', 'precision_recall_{}.png', 'confusion_{}.png', 'confusion_{}.csv')


def inspect(results_folder: str, source: Source, output: str | None = None, examples: int = 6,
            keypoint_sigmas: Sequence[float] | None = None, iou: float = 0.5,
            score: float | None = None) -> dict[str, Breakdown | KeypointBreakdown]:
  """Break down the errors of all results in a folder, print the tables and write the files.

  The limits on objects that it names are those of gin's configuration.

  Args:
    results_folder: folder with bbox.json, segm.json, keypoints.json or VOC's files of each class (newest_results).
    source: data set that was evaluated, as gin_files.argument(experiment.run, 'eval_source')(training=False).
    output: folder for errors.txt, errors.json, errors_<kind>.png and worst_<kind>.png, and, of boxes and masks,
      confusion_<kind>.png and .csv and precision_recall_<kind>.png; None: results_folder.
    examples: images of each kind of error in worst_<kind>.png.
    keypoint_sigmas: sigmas of keypoint similarity; None: those that the evaluation has saved, else COCO's.
    iou: of the confusion matrix and the precision-recall curves.
    score: lowest score in the confusion matrix; None: the threshold with the best F1 of all classes together.

  Returns:
    Breakdowns by kind: 'box', 'mask', 'keypoint'.

  Raises:
    UserError: `score` is not in 0..1, results are missing, malformed or of other data, or output cannot be written.
  """
  _check_score(score)
  output = output or results_folder
  gt = scored_truth(results_folder, source)
  notes = object_limits.describe(source, object_limits.of_evaluation())
  limits = coco_metrics.MAX_DETECTIONS | gt.get('max_detections', {})
  breakdowns, text, record = {}, [], {}
  contents: dict[str, Any] = dict.fromkeys(name.format(kind) for kind in FILES for name in _NAMES)  # None: is removed
  for kind, name, results in read_results(results_folder, gt, source.name):
    path = os.path.join(results_folder, name)
    title = _title(path, gt, source.name, notes)
    if kind == 'mask' and scoring.without_masks(gt['annotations']):
      continue
    with reported(path):
      more: dict[str, Any] = {}
      if kind == 'keypoint':
        truth = scoring.keypoint_truth(gt, source.num_keypoints)
        sigmas = keypoint_sigmas or gt.get('keypoint_sigmas') or scoring.default_sigmas(source.num_keypoints)
        breakdown = keypoint_errors.analyse(truth, results, sigmas, examples, max_detections=limits['keypoints'])
        table, plot = report.keypoint_table(breakdown, title), plots.plot_keypoints(breakdown)
      else:
        truth, iou_type = (coco_metrics.mask_truth(gt), 'segm') if kind == 'mask' else (gt, 'bbox')
        breakdown = detection_errors.analyse(truth, results, iou_type, examples, limits[iou_type])
        table, plot = report.detection_table(breakdown, kind, title), plots.plot_detections(breakdown, kind)
        counts = _count(gt, results, iou_type, iou, limits[iou_type], name)
        more_text, more, more_files = _thresholds(counts, gt, results, kind, score)
        table, contents = table + more_text, contents | more_files
      grid = plots.plot_examples(breakdown, source, truth, results, kind, examples)
      contents |= {f'errors_{kind}.png': plot, f'worst_{kind}.png': grid}
    breakdowns[kind], record[kind] = breakdown, report.as_json(breakdown) | more
    text.append(table)
    print(table, flush=True)
  if not breakdowns:
    raise UserError(f'{results_folder}: holds neither {" nor ".join(FILES.values())} nor {VOC_FILES}')
  files.write_outputs(output, contents | {'errors.txt': '\n'.join(text), 'errors.json': json.dumps(record, indent=1)})
  print(f'plots and tables: {output}')
  return breakdowns


def _title(path: str, gt: dict[str, Any], source: str, notes: Sequence[str]) -> str:
  """Return the heading of a file of results, with a line for each note."""
  title = f'{path}: {len(gt["images"])} images of {source}'
  if os.path.basename(path) == VOC_FILES:
    title += ", matched and averaged COCO's way"  # within a point or so of voc/mAP
  return '\n  '.join([title, *notes])


def _count(gt: dict[str, Any], results: list[dict[str, Any]], iou_type: str, iou: float, limit: int,
           name: str) -> Counted:
  """Count detections as the metric of the evaluation does; name: of the file they are from."""
  if name != VOC_FILES:
    return counted.count_coco(gt, results, iou_type, iou, limit)
  class_of = {category_id: k for k, category_id in enumerate(sorted(c['id'] for c in gt['categories']), start=1)}
  return counted.count_voc(gt, voc_evaluator.objects_of(gt['annotations'], class_of),
                           voc_evaluator.detections_of(results, class_of), iou)


def _check_score(score: float | None) -> None:
  if score is not None and not 0 <= score <= 1:  # also NaN, which the flag's bounds let pass: no detection would count
    raise UserError(f'--score={score:g}: use 0 to 1')


def _thresholds(counts: Counted, gt: dict[str, Any], results: list[dict[str, Any]], kind: str,
                score: float | None) -> tuple[str, dict[str, Any], dict[str, Any]]:
  """Return precision-recall curves and the confusion matrix as text, as JSON values and as {file name: content}."""
  curves = precision_recall.curves(counts)
  best = curves[0].best
  matrix = confusion.confusion(counts, gt, results, scoring.IOU_TYPES[kind],
                               score if score is not None else best.threshold if best else scoring.SHOWN_SCORE)
  return (precision_recall.as_text(curves, counts.iou, report.LISTED) + confusion.as_text(matrix, report.LISTED),
          {'precision_recall': precision_recall.as_json(curves), 'confusion': confusion.as_json(matrix)},
          {f'precision_recall_{kind}.png': threshold_plots.plot_curves(curves, kind, counts.iou),
           f'confusion_{kind}.png': threshold_plots.plot_confusion(matrix, kind),
           f'confusion_{kind}.csv': files.as_csv(confusion.as_rows(matrix))})
